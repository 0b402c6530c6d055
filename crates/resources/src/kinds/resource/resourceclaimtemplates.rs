//! ResourceClaimTemplate: claims that are made for each pod.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("resource.k8s.io/v1", "ResourceClaimTemplate", "resourceclaimtemplates")
        .columns("Name,Age", |o, now| cells![get::name(o), age(o, now)])
        .strategy(Rules {
            default: |o| super::resourceclaims::default_spec(o, "spec.spec"),
            validate,
            validate_update: |o, old| crate::validate::immutable(o, old, "spec"),
            ..Rules::PLAIN
        })
        .build()
}

/// Upstream: pkg/apis/resource/validation/validation.go ValidateResourceClaimTemplate
fn validate(template: &Value) -> Errors {
    let metadata = at(template, "spec.metadata").unwrap_or(&Value::Null);
    let mut errors = apimachinery::objectmeta::validate_template(metadata, &path("spec.metadata"));
    let spec = at(template, "spec.spec").unwrap_or(&Value::Null);
    errors.extend(super::devices::claim_spec(spec, &path("spec.spec")));
    errors
}
