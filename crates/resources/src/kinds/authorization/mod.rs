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
    let mut errors = Errors::new();
    if resource && other {
        let value = at(review, "spec.nonResourceAttributes").cloned().unwrap_or_default();
        let detail = "cannot be specified in combination with resourceAttributes";
        errors.push(Error::invalid(&path("spec.nonResourceAttributes"), value, detail));
    }
    if !resource && !other {
        let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(Error::invalid(&path("spec.resourceAttributes"), Value::Null, detail));
    }
    errors
}

/// The selectors that narrow what is asked about.
fn validate_selectors(review: &Value) -> Errors {
    let attributes = path("spec.resourceAttributes");
    let mut errors = Errors::new();
    for field in ["fieldSelector", "labelSelector"] {
        let Some(selector) = at(review, &format!("spec.resourceAttributes.{field}")) else { continue };
        let at_selector = attributes.child(field);
        let (raw, requirements) = (text(selector, "rawSelector"), list(selector, "requirements"));
        if !raw.is_empty() && !requirements.is_empty() {
            let detail = "may not specified at the same time as requirements";
            errors.push(Error::invalid(&at_selector.child("rawSelector"), raw, detail));
        }
        let at_list = at_selector.child("requirements");
        if raw.is_empty() && requirements.is_empty() {
            let detail = format!("when {at_selector} is specified, requirements or rawSelector is required");
            errors.push(Error::required(&at_list, detail));
        }
        for (requirement, at) in get::items(selector, "requirements", &at_list) {
            errors.extend(validate_requirement(requirement, field == "labelSelector", &at));
        }
    }
    errors
}

/// An operator that is unknown here may be known to who asks.
fn validate_requirement(requirement: &Value, of_labels: bool, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let (key, at_key) = (text(requirement, "key"), path.child("key"));
    if key.is_empty() && !of_labels {
        errors.push(Error::required(&at_key, "must be specified"));
    }
    let values = list(requirement, "values");
    match text(requirement, "operator") {
        "In" | "NotIn" if values.is_empty() => {
            let detail = "must be specified when `operator` is 'In' or 'NotIn'";
            errors.push(Error::required(&path.child("values"), detail));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(Error::forbidden(&path.child("values"), detail));
        }
        _ => {}
    }
    if of_labels {
        errors.extend(crate::validate::each(names::qualified_name(key), &at_key, key));
        for (value, at) in get::items(requirement, "values", &path.child("values")) {
            let value = value.as_str().unwrap_or_default();
            errors.extend(crate::validate::each(names::label_value(value), &at, value));
        }
    }
    errors
}

/// A question has no metadata; one about a namespace is in it.
fn validate_metadata(review: &Value, detail: &str) -> Errors {
    let allowed = |name: &str| match name {
        "managedFields" => true,
        "namespace" => detail.ends_with("namespace"),
        _ => false,
    };
    let fields = get::entries(review, "metadata");
    let empty = |value: &Value| value.is_null() || value == "" || value == &json!({});
    match fields.into_iter().any(|(name, value)| !allowed(name) && !empty(value)) {
        true => {
            let value = at(review, "metadata").cloned().unwrap_or_default();
            vec![Error::invalid(&path("metadata"), value, detail)]
        }
        false => Errors::new(),
    }
}

/// Upstream: pkg/apis/authorization/validation/validation.go ValidateSelfSubjectAccessReview
fn validate_self(review: &Value) -> Errors {
    let mut errors = validate_attributes(review);
    errors.extend(validate_selectors(review));
    errors.extend(validate_metadata(review, "must be empty"));
    errors
}

fn validate_subject(review: &Value) -> Errors {
    let mut errors = validate_attributes(review);
    if text(review, "spec.user").is_empty() && list(review, "spec.groups").is_empty() {
        let detail = "at least one of user or group must be specified";
        errors.push(Error::invalid(&path("spec.user"), "", detail));
    }
    errors.extend(validate_selectors(review));
    errors
}
