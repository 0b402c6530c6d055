//! Questions about who may do what: created, answered, never stored.

pub mod localsubjectaccessreviews;
pub mod selfsubjectaccessreviews;
pub mod selfsubjectrulesreviews;
pub mod subjectaccessreviews;

use crate::prelude::*;

/// Exactly one of the two kinds of attributes is asked about.
///
/// Upstream: pkg/apis/authorization/validation/validation.go
fn validate_attributes(review: &Value) -> Errors {
    let resource = has(review, "spec.resourceAttributes");
    let other = has(review, "spec.nonResourceAttributes");
    if resource != other {
        return Errors::new();
    }
    let value = at(review, "spec.nonResourceAttributes").cloned().unwrap_or_default();
    if resource {
        let detail = "cannot be specified in combination with resourceAttributes";
        vec![Error::invalid(&path("spec.nonResourceAttributes"), value, detail)]
    } else {
        let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        vec![Error::invalid(&path("spec.resourceAttributes"), value, detail)]
    }
}

fn validate_subject(review: &Value) -> Errors {
    let mut errors = validate_attributes(review);
    if text(review, "spec.user").is_empty() && list(review, "spec.groups").is_empty() {
        let detail = "at least one of user or group must be specified";
        errors.push(Error::invalid(&path("spec.user"), "", detail));
    }
    errors
}
