//! What is wrong with the metadata that objects of every kind have: labels, annotations, owners, finalizers.
//!
//! Upstream: apimachinery/pkg/api/validation/objectmeta.go

use serde_json::Value;

use crate::field::{Error, Path};
use crate::names;

const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

/// How finalizers without a domain are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finalizers {
    /// Built-in kinds refuse them.
    Qualified,
    /// Custom kinds take them, with a warning.
    Any,
}

fn entries<'a>(metadata: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    metadata.get(field).and_then(Value::as_object).into_iter().flatten()
}

/// All that is wrong, names excepted, with `metadata` at `path`.
pub fn validate(metadata: &Value, path: &Path, policy: Finalizers) -> Vec<Error> {
    let mut errors = Vec::new();
    if let Some(generation) = metadata.get("generation").and_then(Value::as_i64).filter(|n| *n < 0) {
        let why = "must be greater than or equal to 0";
        errors.push(Error::invalid(&path.child("generation"), generation, why));
    }
    labels(metadata, path, &mut errors);
    annotations(metadata, path, &mut errors);
    owner_references(metadata, path, &mut errors);
    finalizers(metadata, path, &mut errors);
    if policy == Finalizers::Qualified {
        qualified_finalizers(metadata, path, &mut errors);
    }
    errors
}

/// What is checked of the metadata when it changes, besides that some of it must not.
///
/// Upstream: apimachinery/pkg/api/validation/objectmeta.go ValidateObjectMetaAccessorUpdate,
/// pkg/apis/core/validation/validation.go ValidateObjectMetaUpdate
pub fn validate_change(metadata: &Value, path: &Path, policy: Finalizers) -> Vec<Error> {
    let mut errors = Vec::new();
    labels(metadata, path, &mut errors);
    annotations(metadata, path, &mut errors);
    owner_references(metadata, path, &mut errors);
    if policy == Finalizers::Qualified {
        qualified_finalizers(metadata, path, &mut errors);
    }
    errors
}

/// All that is wrong with the metadata in a template of objects that have only labels and annotations.
///
/// Upstream: pkg/apis/core/validation/validation.go ValidateTemplateObjectMeta
pub fn validate_template(metadata: &Value, path: &Path) -> Vec<Error> {
    const REFUSED: &[&str] = &[
        "name",
        "generateName",
        "namespace",
        "selfLink",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "ownerReferences",
        "finalizers",
        "managedFields",
    ];
    let mut errors = Vec::new();
    annotations(metadata, path, &mut errors);
    labels(metadata, path, &mut errors);
    // A number by pointer is there though it is zero.
    let empty = |field: &str, value: &Value| {
        value.is_null() || value == "" || (value == 0 && field != "deletionGracePeriodSeconds")
    };
    let given = REFUSED.iter().filter(|field| metadata.get(*field).is_some_and(|value| !empty(field, value)));
    // Upstream makes this path of the name that its language has for the field.
    let shown = |field: &&'static str| if *field == "uid" { "uID" } else { *field };
    errors.extend(given.map(|field| Error::forbidden(&path.child(shown(field)), "cannot be set")));
    errors
}

/// Upstream: apimachinery/pkg/apis/meta/v1/validation/validation.go ValidateLabels
fn labels(metadata: &Value, path: &Path, errors: &mut Vec<Error>) {
    let labels = path.child("labels");
    for (key, value) in entries(metadata, "labels") {
        let wrong = names::qualified_name(key);
        errors.extend(wrong.into_iter().map(|why| Error::invalid(&labels, key.as_str(), why)));
        let value = value.as_str().unwrap_or_default();
        errors.extend(names::label_value(value).into_iter().map(|why| Error::invalid(&labels, value, why)));
    }
}

fn annotations(metadata: &Value, path: &Path, errors: &mut Vec<Error>) {
    let annotations = path.child("annotations");
    let mut size = 0;
    for (key, value) in entries(metadata, "annotations") {
        let wrong = names::qualified_name(&key.to_ascii_lowercase());
        errors.extend(wrong.into_iter().map(|why| Error::invalid(&annotations, key.as_str(), why)));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_ANNOTATION_BYTES {
        errors.push(Error::too_long(&annotations, MAX_ANNOTATION_BYTES));
    }
}

fn finalizer_names(metadata: &Value) -> Vec<&str> {
    let list = metadata.get("finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

fn finalizers(metadata: &Value, path: &Path, errors: &mut Vec<Error>) {
    let path = path.child("finalizers");
    let list = finalizer_names(metadata);
    for finalizer in &list {
        let wrong = names::qualified_name(finalizer);
        errors.extend(wrong.into_iter().map(|why| Error::invalid(&path, *finalizer, why)));
    }
    if list.contains(&"orphan") && list.contains(&"foregroundDeletion") {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(Error::invalid(&path, Value::from(list), why));
    }
}

/// Upstream: pkg/apis/core/validation/validation.go validateKubeFinalizerName
fn qualified_finalizers(metadata: &Value, path: &Path, errors: &mut Vec<Error>) {
    let path = path.child("finalizers");
    for (index, finalizer) in finalizer_names(metadata).into_iter().enumerate() {
        if !is_qualified_finalizer(finalizer) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(Error::invalid(&path.index(index), finalizer, why));
        }
    }
}

/// Whether a finalizer has a domain, or is one of those that Kubernetes itself knows without.
pub fn is_qualified_finalizer(finalizer: &str) -> bool {
    finalizer.contains('/') || matches!(finalizer, "kubernetes" | "orphan" | "foregroundDeletion")
}

fn owner_references(metadata: &Value, path: &Path, errors: &mut Vec<Error>) {
    let path = path.child("ownerReferences");
    let mut controller: Option<String> = None;
    let owners = metadata.get("ownerReferences").filter(|owners| owners.is_array());
    for owner in owners.and_then(Value::as_array).into_iter().flatten() {
        let text = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or_default();
        for (field, detail) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if text(field).is_empty() {
                errors.push(Error::invalid(&path.child(field), text(field), detail));
            }
        }
        if text("apiVersion") == "v1" && text("kind") == "Event" {
            let detail = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(Error::invalid(&path, owner.clone(), detail));
        }
        if owner.get("controller").and_then(Value::as_bool) == Some(true) {
            let own = [text("kind"), text("name")].join("/");
            if let Some(other) = &controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {other} and {own}"
                );
                errors.push(Error::invalid(&path, owners.cloned().unwrap_or_default(), detail));
            } else {
                controller = Some(own);
            }
        }
    }
}
