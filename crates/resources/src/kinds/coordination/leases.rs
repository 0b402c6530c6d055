//! Lease: a claim that must be renewed. Nodes and leaders live by it.

use super::strategy;
use crate::prelude::*;
use crate::validate::non_negative;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("coordination.k8s.io/v1", "Lease", "leases")
        .columns("Name,Holder,Age", |o, now| {
            cells![get::name(o), text(o, "spec.holderIdentity"), age(o, now)]
        })
        .strategy(Rules { validate, create_on_update: true, unconditional_update: false, ..Rules::PLAIN })
        .build()
}

/// Upstream: pkg/apis/coordination/validation/validation.go ValidateLeaseSpec
fn validate(lease: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = path("spec");
    if let Some(seconds) = get::int(lease, "spec.leaseDurationSeconds")
        && seconds <= 0
    {
        errors.push(Error::invalid(&spec.child("leaseDurationSeconds"), seconds, "must be greater than 0"));
    }
    errors.extend(non_negative(lease, "spec.leaseTransitions"));
    if has(lease, "spec.strategy") {
        errors.extend(strategy::validate(text(lease, "spec.strategy"), &spec.child("strategy")));
    }
    if !text(lease, "spec.preferredHolder").is_empty() && text(lease, "spec.strategy").is_empty() {
        let why = "may only be specified if `strategy` is defined";
        errors.push(Error::forbidden(&spec.child("preferredHolder"), why));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_lease_may_be_given_up_and_needs_a_strategy_to_prefer() {
        for (spec, expected) in [
            (json!({"holderIdentity": "", "leaseDurationSeconds": 1}), &[] as &[&str]),
            (json!({"strategy": "OldestEmulationVersion", "preferredHolder": "a"}), &[]),
            (
                json!({"preferredHolder": "a"}),
                &["spec.preferredHolder: Forbidden: may only be specified if `strategy` is defined"],
            ),
            (
                json!({"leaseDurationSeconds": 0}),
                &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"],
            ),
        ] {
            let said: Vec<String> =
                validate(&json!({"spec": spec})).iter().map(ToString::to_string).collect();
            assert_eq!(said, expected, "{spec}");
        }
    }
}
