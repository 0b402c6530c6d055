//! What pods and the templates of pods share: defaults, validation, quality of service.

use apimachinery::field::{Error, Path};
use apimachinery::names;
use apimachinery::selector::LabelSelector;
use serde_json::Value;

use crate::get::{Errors, at, entries, has, list, path, text};
use crate::validate::{each, labels};

mod containers;
mod defaults;
mod handlers;
mod qos;
mod scheduling;
pub mod sources;
mod validation;
mod volumes;
mod warnings;
mod windows;

pub use containers::ResourceIs;
pub use defaults::{default_pod_only, default_spec, default_template, mirror_service_account};
pub use qos::class as qos_class;
pub use scheduling::{validate_node_selector, validate_tolerations};
pub use validation::{validate_pod, validate_spec};
pub use warnings::{claim_fractions, node_term, plugin, template_warnings, template_warnings_at, warnings};

/// The template of pods at a field.
///
/// Upstream: pkg/apis/core/validation/validation.go ValidatePodTemplateSpec
pub fn validate_template(object: &Value, field: &str, at_template: &Path) -> Errors {
    let empty = Value::Object(serde_json::Map::new());
    let template = at(object, field).unwrap_or(&empty);
    let mut errors = labels(template, "metadata.labels", &at_template.child("labels"));
    for (key, _) in entries(template, "metadata.annotations") {
        let messages = names::qualified_name(&key.to_lowercase());
        errors.extend(each(messages, &at_template.child("annotations"), key));
    }
    let spec = template.get("spec").unwrap_or(&empty);
    let at_spec = at_template.child("spec");
    errors.extend(validate_spec(spec, &at_spec, ResourceIs::Template));
    if !list(spec, "ephemeralContainers").is_empty() {
        let detail = "ephemeral containers not allowed in pod template";
        errors.push(Error::forbidden(&at_spec.child("ephemeralContainers"), detail));
    }
    errors
}

/// The template of a workload with a label selector, whose pods run for ever.
///
/// Upstream: pkg/apis/apps/validation/validation.go ValidatePodTemplateSpecForReplicaSet
pub fn validate_workload_template(object: &Value, kind: &str) -> Errors {
    let selector = at(object, "spec.selector").cloned().unwrap_or_default();
    match LabelSelector::from_object(&selector) {
        Ok(selector) => validate_selected_template(object, &selector, kind),
        Err(_) => vec![Error::invalid(&path("spec.selector"), selector, "invalid label selector")],
    }
}

/// The same for a DaemonSet, whose template is looked at even if its selector is none.
///
/// Upstream: pkg/apis/apps/validation/validation.go ValidateDaemonSetSpec
pub fn validate_daemon_template(object: &Value) -> Errors {
    let selector = LabelSelector::from_object(at(object, "spec.selector").unwrap_or(&Value::Null));
    validate_selected_template(object, &selector.unwrap_or_default(), "DaemonSet")
}

/// The same for a selector that is already read.
pub fn validate_selected_template(object: &Value, selector: &LabelSelector, kind: &str) -> Errors {
    let at_template = path("spec.template");
    let template = at(object, "spec.template").unwrap_or(&Value::Null);
    let mut errors = Errors::new();
    if !selector.requirements().is_empty() && !selector.matches_object(template) {
        errors.push(unmatched(template, &at_template));
    }
    errors.extend(validate_template(object, "spec.template", &at_template));
    let policy = text(template, "spec.restartPolicy");
    if policy != "Always" {
        let at = at_template.child("spec").child("restartPolicy");
        errors.push(Error::not_supported(&at, policy, &["Always"]));
    }
    if has(template, "spec.activeDeadlineSeconds") {
        let at = at_template.child("spec").child("activeDeadlineSeconds");
        errors.push(Error::forbidden(&at, format!("activeDeadlineSeconds in {kind} is not Supported")));
    }
    errors
}

/// Whether the selector of an object matches the labels of its template.
pub fn validate_selected(object: &Value, field: &str, at_template: &Path) -> Errors {
    let template = at(object, field).unwrap_or(&Value::Null);
    let selector = at(object, "spec.selector").unwrap_or(&Value::Null);
    match LabelSelector::from_object(selector) {
        Ok(selector) if !selector.matches_object(template) => vec![unmatched(template, at_template)],
        _ => Errors::new(),
    }
}

/// The refusal of a template whose labels its selector does not select.
pub fn unmatched(template: &Value, at_template: &Path) -> Error {
    let value = at(template, "metadata.labels").cloned().unwrap_or_default();
    let detail = "`selector` does not match template `labels`";
    Error::invalid(&at_template.child("metadata").child("labels"), value, detail)
}
