//! DaemonSet: a pod on every node.

use super::validate_selector;
use crate::podspec;
use crate::prelude::*;
use crate::validate::{immutable, int_or_percent, int_or_percent_value, non_negative};

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("apps/v1", "DaemonSet", "daemonsets")
        .short(&["ds"])
        .category("all")
        .status()
        .columns(
            "Name,Desired:integer,Current:integer,Ready:integer,Up-to-date:integer,Available:integer,Node Selector,\
             Age,+Containers,+Images,+Selector",
            cells,
        )
        .strategy(Rules {
            default,
            validate_create: validate,
            validate_update: |o, old| {
                let mut errors = immutable(o, old, "spec.selector");
                errors.extend(validate(o));
                errors
            },
            validate_status,
            prepare_create: |_, set| get::set_annotation(set, TEMPLATE_GENERATION, "1"),
            prepare_update,
            generation: true,
            warnings: podspec::template_warnings,
            ..Rules::PLAIN
        })
        .build()
}

/// How often the template changed, kept for clients of versions long gone.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// Upstream: pkg/registry/apps/daemonset/strategy.go PrepareForUpdate
fn prepare_update(_: &crate::Context, set: &mut Value, old: &Value) {
    let before = at(old, "metadata.annotations").and_then(|all| all.get(TEMPLATE_GENERATION));
    let before: i64 = before.and_then(Value::as_str).and_then(|n| n.parse().ok()).unwrap_or(0);
    let changed = !crate::validate::same(at(set, "spec.template"), at(old, "spec.template"));
    get::set_annotation(set, TEMPLATE_GENERATION, &(before + i64::from(changed)).to_string());
}

fn cells(set: &Value, now: i64) -> Vec<Cell> {
    let (names, images) = print::containers(set, "spec.template.spec");
    cells![
        get::name(set),
        count(set, "status.desiredNumberScheduled"),
        count(set, "status.currentNumberScheduled"),
        count(set, "status.numberReady"),
        count(set, "status.updatedNumberScheduled"),
        count(set, "status.numberAvailable"),
        print::labels(set, "spec.template.spec.nodeSelector"),
        age(set, now),
        names,
        images,
        print::selector(set, "spec.selector"),
    ]
}

/// Upstream: pkg/apis/apps/v1/defaults.go SetDefaults_DaemonSet
fn default(set: &mut Value) {
    podspec::default_template(set, "spec.template");
    get::default(set, "spec.updateStrategy.type", "RollingUpdate");
    if text(set, "spec.updateStrategy.type") == "RollingUpdate" {
        get::default_absent(set, "spec.updateStrategy.rollingUpdate.maxUnavailable", 1);
        get::default_absent(set, "spec.updateStrategy.rollingUpdate.maxSurge", 0);
    }
    get::default(set, "spec.revisionHistoryLimit", 10);
}

/// Upstream: pkg/apis/apps/validation/validation.go ValidateDaemonSetSpec
fn validate(set: &Value) -> Errors {
    let mut errors = validate_selector(set, "daemonset");
    errors.extend(podspec::validate_daemon_template(set));
    errors.extend(non_negative(set, "spec.minReadySeconds"));
    errors.extend(non_negative(set, "spec.revisionHistoryLimit"));
    let strategy = path("spec.updateStrategy");
    match text(set, "spec.updateStrategy.type") {
        "OnDelete" => {}
        "RollingUpdate" => errors.extend(validate_rolling_update(set, &strategy.child("rollingUpdate"))),
        _ => {
            let value = at(set, "spec.updateStrategy").cloned().unwrap_or_default();
            errors.push(Error::not_supported(&strategy, value, &["RollingUpdate", "OnDelete"]));
        }
    }
    errors
}

fn validate_rolling_update(set: &Value, rolling: &Path) -> Errors {
    let mut errors = Errors::new();
    let zero = Value::from(0);
    let value = |field: &str| at(set, &format!("spec.updateStrategy.rollingUpdate.{field}")).unwrap_or(&zero);
    let (unavailable, surge) = (value("maxUnavailable"), value("maxSurge"));
    errors.extend(int_or_percent(unavailable, &rolling.child("maxUnavailable"), true));
    errors.extend(int_or_percent(surge, &rolling.child("maxSurge"), true));
    match (int_or_percent_value(unavailable) != 0, int_or_percent_value(surge) != 0) {
        (true, true) => {
            let detail = "may not be set when maxUnavailable is non-zero";
            errors.push(Error::invalid(&rolling.child("maxSurge"), surge.clone(), detail));
        }
        (false, false) => {
            let detail = "cannot be 0 when maxSurge is 0";
            errors.push(Error::required(&rolling.child("maxUnavailable"), detail));
        }
        _ => {}
    }
    errors
}

fn validate_status(set: &Value, old: &Value) -> Errors {
    const COUNTS: &[&str] = &[
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
        "observedGeneration",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
    ];
    let mut errors: Errors =
        COUNTS.iter().flat_map(|field| non_negative(set, &format!("status.{field}"))).collect();
    let collisions = number(set, "status.collisionCount");
    if collisions < number(old, "status.collisionCount") {
        errors.push(Error::invalid(&path("status.collisionCount"), collisions, "cannot be decremented"));
    }
    errors
}
