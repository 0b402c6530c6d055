//! PriorityClass: how important pods are to the scheduler.

use crate::prelude::*;

/// Names with this prefix, and values above the highest of users, are the system's.
const SYSTEM_PREFIX: &str = "system-";
const HIGHEST_OF_USERS: i64 = 1_000_000_000;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses")
        .short(&["pc"])
        .columns("Name,Value:integer,Global-Default:boolean,Age,PreemptionPolicy", |o, now| {
            cells![
                get::name(o),
                count(o, "value"),
                is_true(o, "globalDefault"),
                age(o, now),
                text(o, "preemptionPolicy"),
            ]
        })
        .strategy(Rules {
            default: |o| get::default_absent(o, "preemptionPolicy", "PreemptLowerPriority"),
            validate_create: validate,
            validate_update,
            prepare_create: |_, o| set(o, "metadata.generation", 1),
            ..Rules::PLAIN
        })
        .build()
}

/// Upstream: pkg/apis/scheduling/validation/validation.go ValidatePriorityClass
fn validate(class: &Value) -> Errors {
    const SYSTEM: &[(&str, i64)] =
        &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
    let mut errors = Errors::new();
    let (name, value) = (get::name(class), number(class, "value"));
    if name.starts_with(SYSTEM_PREFIX) {
        if !SYSTEM.contains(&(name, value)) {
            let detail = format!(
                "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {name} \
                 is not a known system priority class"
            );
            errors.push(Error::forbidden(&path("metadata.name"), detail));
        }
    } else if value > HIGHEST_OF_USERS {
        let detail = format!("maximum allowed value of a user defined priority is {HIGHEST_OF_USERS}");
        errors.push(Error::forbidden(&path("value"), detail));
    }
    if let Some(policy) = at(class, "preemptionPolicy").and_then(Value::as_str) {
        let at = path("preemptionPolicy");
        errors.extend(crate::validate::required_one_of(policy, &at, &["PreemptLowerPriority", "Never"]));
    }
    errors
}

/// Upstream: pkg/apis/scheduling/validation/validation.go ValidatePriorityClassUpdate
fn validate_update(class: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    if class.get("value") != old.get("value") {
        errors.push(Error::forbidden(&path("value"), "may not be changed in an update."));
    }
    errors.extend(crate::validate::immutable(class, old, "preemptionPolicy"));
    errors
}
