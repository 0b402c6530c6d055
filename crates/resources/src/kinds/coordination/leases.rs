//! Lease: a claim that must be renewed. Nodes and leaders live by it.

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
    if has(lease, "spec.holderIdentity") && text(lease, "spec.holderIdentity").is_empty() {
        errors.push(Error::invalid(&spec.child("holderIdentity"), "", "must not be empty"));
    }
    errors
}
