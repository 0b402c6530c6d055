//! ReplicaSet: so many equal pods.

use super::{replica_cells, validate_replica_status, validate_selector};
use crate::podspec;
use crate::prelude::*;
use crate::validate::{immutable, non_negative};

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("apps/v1", "ReplicaSet", "replicasets")
        .short(&["rs"])
        .category("all")
        .scale()
        .status()
        .columns(
            "Name,Desired:integer,Current:integer,Ready:integer,Age,+Containers,+Images,+Selector",
            |o, now| replica_cells(o, now, print::selector(o, "spec.selector")),
        )
        .strategy(Rules {
            default,
            validate,
            validate_update: |o, old| immutable(o, old, "spec.selector"),
            validate_status: |o, _| validate_replica_status(o),
            generation: true,
            warnings: podspec::template_warnings,
            ..Rules::PLAIN
        })
        .build()
}

fn default(set: &mut Value) {
    podspec::default_template(set, "spec.template");
    get::default(set, "spec.replicas", 1);
}

/// Upstream: pkg/apis/apps/validation/validation.go ValidateReplicaSetSpec
fn validate(set: &Value) -> Errors {
    let mut errors = non_negative(set, "spec.replicas");
    errors.extend(non_negative(set, "spec.minReadySeconds"));
    errors.extend(validate_selector(set, "replicaset"));
    errors.extend(podspec::validate_workload_template(set, "ReplicaSet"));
    errors
}
