//! Workloads: how many of which pods there should be.

pub mod controllerrevisions;
pub mod daemonsets;
pub mod deployments;
pub mod replicasets;
pub mod statefulsets;

use crate::prelude::*;
use crate::validate::non_negative;

/// The cells of a ReplicaSet and a ReplicationController.
pub fn replica_cells(object: &Value, now: i64, selector: String) -> Vec<Cell> {
    let (names, images) = print::containers(object, "spec.template.spec");
    cells![
        get::name(object),
        count(object, "spec.replicas"),
        count(object, "status.replicas"),
        count(object, "status.readyReplicas"),
        age(object, now),
        names,
        images,
        selector,
    ]
}

/// No count of a status is negative, and none is greater than the count of all.
///
/// Upstream: pkg/apis/apps/validation/validation.go ValidateReplicaSetStatus
pub fn validate_replica_status(object: &Value) -> Errors {
    const COUNTS: &[&str] = &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
    validate_counts(object, COUNTS)
}

fn validate_counts(object: &Value, counts: &[&str]) -> Errors {
    let mut errors = non_negative(object, "status.replicas");
    let all = number(object, "status.replicas");
    let detail = "cannot be greater than status.replicas";
    for field in counts {
        errors.extend(non_negative(object, &format!("status.{field}")));
        let value = number(object, &format!("status.{field}"));
        if value > all {
            errors.push(Error::invalid(&path("status").child(field), value, detail));
        }
    }
    errors.extend(non_negative(object, "status.observedGeneration"));
    let ready = number(object, "status.readyReplicas");
    let available = number(object, "status.availableReplicas");
    if available > ready {
        let detail = "cannot be greater than readyReplicas";
        errors.push(Error::invalid(&path("status.availableReplicas"), available, detail));
    }
    errors
}

/// A selector that is there, well-formed and not empty.
fn validate_selector(object: &Value, kind: &str) -> Errors {
    let at_selector = path("spec.selector");
    let Some(value) = at(object, "spec.selector") else {
        return vec![Error::required(&at_selector, "")];
    };
    let mut errors = crate::validate::selector(value, &at_selector);
    if get::len(value, "matchLabels") + get::len(value, "matchExpressions") == 0 {
        let detail = format!("empty selector is invalid for {kind}");
        errors.push(Error::invalid(&at_selector, value.clone(), detail));
    }
    errors
}
