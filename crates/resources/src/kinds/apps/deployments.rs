//! Deployment: ReplicaSets that replace each other step by step.

use super::validate_selector;
use crate::podspec;
use crate::prelude::*;
use crate::validate::{immutable, int_or_percent, int_or_percent_value, non_negative};

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("apps/v1", "Deployment", "deployments")
        .short(&["deploy"])
        .category("all")
        .scale()
        .status()
        .columns("Name,Ready,Up-to-date,Available,Age,+Containers,+Images,+Selector", cells)
        .strategy(Rules {
            default,
            validate,
            validate_update: |o, old| immutable(o, old, "spec.selector"),
            validate_status,
            generation: true,
            // Upstream: pkg/registry/apps/deployment/strategy.go PrepareForUpdate
            generation_of_annotations: true,
            warnings: podspec::template_warnings,
            ..Rules::PLAIN
        })
        .build()
}

fn cells(deployment: &Value, now: i64) -> Vec<Cell> {
    let (names, images) = print::containers(deployment, "spec.template.spec");
    let selector = print::selector(deployment, "spec.selector");
    cells![
        get::name(deployment),
        format!("{}/{}", number(deployment, "status.readyReplicas"), number(deployment, "spec.replicas")),
        count(deployment, "status.updatedReplicas"),
        count(deployment, "status.availableReplicas"),
        age(deployment, now),
        names,
        images,
        selector,
    ]
}

/// Upstream: pkg/apis/apps/v1/defaults.go SetDefaults_Deployment
fn default(deployment: &mut Value) {
    podspec::default_template(deployment, "spec.template");
    get::default(deployment, "spec.replicas", 1);
    get::default(deployment, "spec.strategy.type", "RollingUpdate");
    if text(deployment, "spec.strategy.type") == "RollingUpdate" {
        for field in ["maxUnavailable", "maxSurge"] {
            get::default_absent(deployment, &format!("spec.strategy.rollingUpdate.{field}"), "25%");
        }
    }
    get::default(deployment, "spec.revisionHistoryLimit", 10);
    get::default(deployment, "spec.progressDeadlineSeconds", 600);
}

/// Upstream: pkg/apis/apps/validation/validation.go ValidateDeploymentSpec
fn validate(deployment: &Value) -> Errors {
    let mut errors = non_negative(deployment, "spec.replicas");
    errors.extend(validate_selector(deployment, "deployment"));
    errors.extend(podspec::validate_workload_template(deployment, "ReplicaSet"));
    errors.extend(validate_strategy(deployment));
    errors.extend(non_negative(deployment, "spec.minReadySeconds"));
    errors.extend(non_negative(deployment, "spec.revisionHistoryLimit"));
    errors.extend(non_negative(deployment, "spec.progressDeadlineSeconds"));
    if let Some(deadline) = get::int(deployment, "spec.progressDeadlineSeconds")
        && deadline <= number(deployment, "spec.minReadySeconds")
    {
        let detail = "must be greater than minReadySeconds";
        errors.push(Error::invalid(&path("spec.progressDeadlineSeconds"), deadline, detail));
    }
    errors
}

fn validate_strategy(deployment: &Value) -> Errors {
    let mut errors = Errors::new();
    let strategy = path("spec.strategy");
    let rolling = strategy.child("rollingUpdate");
    match text(deployment, "spec.strategy.type") {
        "Recreate" => {
            if has(deployment, "spec.strategy.rollingUpdate") {
                let detail = "may not be specified when strategy `type` is 'Recreate'";
                errors.push(Error::forbidden(&rolling, detail));
            }
        }
        "RollingUpdate" => {
            let zero = Value::from(0);
            let value = |field: &str| {
                at(deployment, &format!("spec.strategy.rollingUpdate.{field}")).unwrap_or(&zero)
            };
            let (unavailable, surge) = (value("maxUnavailable"), value("maxSurge"));
            errors.extend(int_or_percent(unavailable, &rolling.child("maxUnavailable"), true));
            errors.extend(int_or_percent(surge, &rolling.child("maxSurge"), false));
            if int_or_percent_value(unavailable) == 0 && int_or_percent_value(surge) == 0 {
                let detail = "may not be 0 when `maxSurge` is 0";
                errors.push(Error::invalid(&rolling.child("maxUnavailable"), unavailable.clone(), detail));
            }
        }
        _ => {
            let value = at(deployment, "spec.strategy").cloned().unwrap_or_default();
            errors.push(Error::not_supported(&strategy, value, &["Recreate", "RollingUpdate"]));
        }
    }
    errors
}

/// Upstream: pkg/apis/apps/validation/validation.go ValidateDeploymentStatusUpdate
fn validate_status(deployment: &Value, old: &Value) -> Errors {
    const COUNTS: &[&str] = &["updatedReplicas", "readyReplicas", "availableReplicas"];
    let mut errors = super::validate_counts(deployment, COUNTS);
    errors.extend(non_negative(deployment, "status.unavailableReplicas"));
    let collisions = number(deployment, "status.collisionCount");
    if collisions < number(old, "status.collisionCount") {
        errors.push(Error::invalid(&path("status.collisionCount"), collisions, "cannot be decremented"));
    }
    errors
}
