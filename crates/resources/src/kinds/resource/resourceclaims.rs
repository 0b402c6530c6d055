//! ResourceClaim: devices that a pod wants.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("resource.k8s.io/v1", "ResourceClaim", "resourceclaims")
        .status()
        .columns("Name,State,Age", |o, now| cells![get::name(o), state(o), age(o, now)])
        .strategy(Rules {
            default: |o| default_spec(o, "spec"),
            validate_update: |o, old| crate::validate::immutable(o, old, "spec"),
            ..Rules::PLAIN
        })
        .build()
}

fn state(claim: &Value) -> String {
    let mut states = Vec::new();
    let deleted = has(claim, "metadata.deletionTimestamp");
    if deleted {
        states.push("deleted");
    }
    if has(claim, "status.allocation") {
        states.push("allocated");
        if !list(claim, "status.reservedFor").is_empty() {
            states.push("reserved");
        }
    } else if !deleted {
        states.push("pending");
    }
    states.join(",")
}

/// The defaults of a claim's spec, in a claim or a template of claims.
///
/// Upstream: pkg/apis/resource/v1/defaults.go
pub fn default_spec(object: &mut Value, spec: &str) {
    fn exact(request: &mut Value) {
        get::default(request, "allocationMode", "ExactCount");
        if text(request, "allocationMode") == "ExactCount" && number(request, "count") == 0 {
            set(request, "count", 1);
        }
    }
    for request in get::list_mut(object, &format!("{spec}.devices.requests")) {
        if let Some(value) = get::at_mut(request, "exactly") {
            exact(value);
        }
        get::list_mut(request, "firstAvailable").for_each(exact);
    }
}
