//! ReplicationController: the ReplicaSet's ancestor.

use apimachinery::selector::LabelSelector;

use crate::kinds::apps::{replica_cells, validate_replica_status};
use crate::podspec;
use crate::prelude::*;
use crate::validate::non_negative;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("v1", "ReplicationController", "replicationcontrollers")
        .short(&["rc"])
        .category("all")
        .prefix("controllers")
        .scale()
        .status()
        .columns(
            "Name,Desired:integer,Current:integer,Ready:integer,Age,+Containers,+Images,+Selector",
            |o, now| replica_cells(o, now, print::labels(o, "spec.selector")),
        )
        .field("status.replicas", |o| number(o, "status.replicas").to_string())
        .strategy(Rules {
            default,
            validate,
            validate_status: |o, _| validate_replica_status(o),
            generation: true,
            orphans: true,
            warnings: podspec::template_warnings,
            ..Rules::PLAIN
        })
        .build()
}

/// Upstream: pkg/apis/core/v1/defaults.go SetDefaults_ReplicationController
fn default(controller: &mut Value) {
    podspec::default_template(controller, "spec.template");
    get::default(controller, "spec.replicas", 1);
    let Some(labels) = at(controller, "spec.template.metadata.labels").cloned() else { return };
    for field in ["spec.selector", "metadata.labels"] {
        if get::len(controller, field) == 0 {
            set(controller, field, labels.clone());
        }
    }
}

/// Upstream: pkg/apis/core/validation/validation.go ValidateReplicationControllerSpec
fn validate(controller: &Value) -> Errors {
    let mut errors = non_negative(controller, "spec.minReadySeconds");
    if get::len(controller, "spec.selector") == 0 {
        errors.push(Error::required(&path("spec.selector"), ""));
    }
    errors.extend(non_negative(controller, "spec.replicas"));
    let template = path("spec.template");
    if !has(controller, "spec.template") {
        errors.push(Error::required(&template, ""));
        return errors;
    }
    let pairs = get::entries(controller, "spec.selector").filter_map(|(k, v)| Some((k, v.as_str()?)));
    let selector = LabelSelector::from_map(pairs);
    errors.extend(podspec::validate_selected_template(controller, &selector, "ReplicationController"));
    errors
}
