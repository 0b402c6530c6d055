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
    let mut errors = Errors::new();
    let metadata = path("spec.metadata");
    errors.extend(crate::validate::labels(template, "spec.metadata.labels", &metadata.child("labels")));
    for (key, _) in get::entries(template, "spec.metadata.annotations") {
        let messages = names::qualified_name(&key.to_lowercase());
        errors.extend(crate::validate::each(messages, &metadata.child("annotations"), key));
    }
    let spec = at(template, "spec.spec").unwrap_or(&Value::Null);
    errors.extend(super::devices::claim_spec(spec, &path("spec.spec")));
    errors
}
