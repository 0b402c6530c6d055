//! PriorityLevelConfiguration: how many requests of a level run at once, and what happens to the rest.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    const KIND: &str = "PriorityLevelConfiguration";
    Row::cluster("flowcontrol.apiserver.k8s.io/v1", KIND, "prioritylevelconfigurations")
        .status()
        .columns("Name,Type,NominalConcurrencyShares,Queues,HandSize,QueueLengthLimit,Age", cells)
        .strategy(Rules { default, validate, generation: true, ..Rules::PLAIN })
        .build()
}

fn cells(level: &Value, now: i64) -> Vec<Cell> {
    let shown =
        |field: &str| at(level, &format!("spec.limited.{field}")).cloned().unwrap_or_else(|| "<none>".into());
    cells![
        get::name(level),
        text(level, "spec.type"),
        shown("nominalConcurrencyShares"),
        shown("limitResponse.queuing.queues"),
        shown("limitResponse.queuing.handSize"),
        shown("limitResponse.queuing.queueLengthLimit"),
        age(level, now),
    ]
}

/// Upstream: pkg/apis/flowcontrol/v1/defaults.go
fn default(level: &mut Value) {
    if has(level, "spec.exempt") {
        get::default(level, "spec.exempt.nominalConcurrencyShares", 0);
        get::default(level, "spec.exempt.lendablePercent", 0);
    }
    if has(level, "spec.limited") {
        get::default(level, "spec.limited.nominalConcurrencyShares", 30);
        get::default(level, "spec.limited.lendablePercent", 0);
    }
    if has(level, "spec.limited.limitResponse.queuing") {
        for (field, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
            let at = format!("spec.limited.limitResponse.queuing.{field}");
            if number(level, &at) == 0 {
                set(level, &at, value);
            }
        }
    }
}

fn validate(level: &Value) -> Errors {
    let kind = text(level, "spec.type");
    let at = path("spec.type");
    if kind.is_empty() {
        return vec![Error::required(&at, "")];
    }
    let mut errors = crate::validate::one_of(kind, &at, &["Exempt", "Limited"]);
    if kind == "Limited" && !has(level, "spec.limited") {
        let detail = "must not be empty when type is Limited";
        errors.push(Error::required(&path("spec.limited"), detail));
    }
    errors
}
