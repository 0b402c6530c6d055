//! PodDisruptionBudget: how many of some pods may be gone at once.

use crate::prelude::*;
use crate::validate::{int_or_percent, selector};

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
        .short(&["pdb"])
        .status()
        .columns("Name,Min Available,Max Unavailable,Allowed Disruptions:integer,Age", |o, now| {
            cells![
                get::name(o),
                print::plain_or(o, "spec.minAvailable", "N/A"),
                print::plain_or(o, "spec.maxUnavailable", "N/A"),
                count(o, "status.disruptionsAllowed"),
                age(o, now),
            ]
        })
        .strategy(Rules {
            name: names::path_segment,
            validate,
            generation: true,
            unconditional_update: false,
            ..Rules::PLAIN
        })
        .build()
}

/// Upstream: pkg/apis/policy/validation/validation.go ValidatePodDisruptionBudgetSpec
fn validate(budget: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = path("spec");
    if has(budget, "spec.minAvailable") && has(budget, "spec.maxUnavailable") {
        let value = at(budget, "spec").cloned().unwrap_or_default();
        errors.push(Error::invalid(&spec, value, "minAvailable and maxUnavailable cannot be both set"));
    }
    for field in ["minAvailable", "maxUnavailable"] {
        if let Some(value) = at(budget, &format!("spec.{field}")) {
            errors.extend(int_or_percent(value, &spec.child(field), true));
        }
    }
    if let Some(value) = at(budget, "spec.selector") {
        errors.extend(selector(value, &spec.child("selector")));
    }
    if let Some(policy) = at(budget, "spec.unhealthyPodEvictionPolicy").and_then(Value::as_str) {
        let at = spec.child("unhealthyPodEvictionPolicy");
        errors.extend(crate::validate::one_of(policy, &at, &["AlwaysAllow", "IfHealthyBudget"]));
    }
    errors
}
