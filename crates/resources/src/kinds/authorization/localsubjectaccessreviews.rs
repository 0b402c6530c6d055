//! LocalSubjectAccessReview: may a subject do this in this namespace?

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("authorization.k8s.io/v1", "LocalSubjectAccessReview", "localsubjectaccessreviews")
        .verbs(&[Verb::Create])
        .strategy(Rules { validate, ..Rules::PLAIN })
        .build()
}

fn validate(review: &Value) -> Errors {
    let mut errors = super::validate_subject(review);
    errors.extend(super::validate_metadata(review, "must be empty except for namespace"));
    let namespace = text(review, "spec.resourceAttributes.namespace");
    if has(review, "spec.resourceAttributes") && namespace != text(review, "metadata.namespace") {
        let detail = "must match metadata.namespace";
        errors.push(Error::invalid(&path("spec.resourceAttributes.namespace"), namespace, detail));
    }
    if has(review, "spec.nonResourceAttributes") {
        let value = at(review, "spec.nonResourceAttributes").cloned().unwrap_or_default();
        let detail = "disallowed on this kind of request";
        errors.push(Error::invalid(&path("spec.nonResourceAttributes"), value, detail));
    }
    errors
}
