//! Volumes and the paths in them.
//!
//! Upstream: pkg/apis/core/validation/validation.go ValidateVolumes, validateVolumeSource

use apimachinery::field::{Error, Path};
use apimachinery::{names, objectmeta};
use serde_json::Value;

use super::containers::{validate_pull_policy, validate_resource_ref};
use super::sources;

use crate::get::{self, Errors, at, has, int, list, number, text};
use crate::validate::{dns_label, each, one_of, quantities};

const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// The volumes that are well-formed, and what is wrong with the others.
pub fn validate<'a>(spec: &'a Value, path: &Path) -> (Vec<&'a Value>, Errors) {
    let mut errors = Errors::new();
    let mut good: Vec<&Value> = Vec::new();
    for (volume, at) in get::items(spec, "volumes", path) {
        let name = text(volume, "name");
        let mut own = sources::of_pod(volume, &at, validate_one);
        if name.is_empty() {
            own.push(Error::required(&at.child("name"), ""));
        } else {
            own.extend(dns_label(name, &at.child("name")));
        }
        if good.iter().any(|v| text(v, "name") == name) {
            own.push(Error::duplicate(&at.child("name"), name));
        }
        if own.is_empty() {
            good.push(volume);
        }
        errors.extend(own);
    }
    (good, errors)
}

/// The sources that only pods have, and those that they share with PersistentVolumes.
fn validate_one(source: &Value, kind: &str, path: &Path) -> Errors {
    let mut errors = Errors::new();
    match kind {
        "emptyDir" => {
            let limit = at(source, "sizeLimit").and_then(quantities::read);
            if limit.is_some_and(|q| q.is_negative()) {
                let detail = "SizeLimit field must be a valid resource quantity";
                errors.push(Error::forbidden(&path.child("sizeLimit"), detail));
            }
        }
        "secret" | "configMap" => {
            let name = if kind == "secret" { "secretName" } else { "name" };
            if text(source, name).is_empty() {
                errors.push(Error::required(&path.child(name), ""));
            }
            errors.extend(validate_mode(source, "defaultMode", path));
            for (item, at) in get::items(source, "items", &path.child("items")) {
                errors.extend(validate_key_to_path(item, &at));
            }
        }
        "downwardAPI" => {
            errors.extend(validate_mode(source, "defaultMode", path));
            for file in list(source, "items") {
                errors.extend(validate_downward_file(file, path));
            }
        }
        "projected" => errors.extend(validate_projected(source, path)),
        "ephemeral" => match at(source, "volumeClaimTemplate") {
            None => errors.push(Error::required(&path.child("volumeClaimTemplate"), "")),
            Some(template) => {
                let at_template = path.child("volumeClaimTemplate");
                let metadata = at(template, "metadata").unwrap_or(&Value::Null);
                errors.extend(objectmeta::validate_template(metadata, &at_template.child("metadata")));
                let claims = &crate::kinds::core::persistentvolumeclaims::validate_spec;
                errors.extend(claims(template, &at_template.child("spec")));
            }
        },
        "image" => {
            if text(source, "reference").is_empty() {
                errors.push(Error::required(&path.child("reference"), ""));
            }
            errors.extend(validate_pull_policy(source, "pullPolicy", path));
        }
        shared => return sources::validate(source, shared, path),
    }
    errors
}

fn validate_mode(object: &Value, field: &str, path: &Path) -> Errors {
    match int(object, field) {
        Some(mode) if !(0..=0o777).contains(&mode) => {
            vec![Error::invalid(&path.child(field), mode, FILE_MODE)]
        }
        _ => Errors::new(),
    }
}

fn validate_key_to_path(item: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for field in ["key", "path"] {
        if text(item, field).is_empty() {
            errors.push(Error::required(&path.child(field), ""));
        }
    }
    errors.extend(validate_file_path(text(item, "path"), &path.child("path")));
    errors.extend(validate_mode(item, "mode", path));
    errors
}

/// Files can tell of the labels and annotations as a whole, which variables cannot.
const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

fn validate_downward_file(file: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let name = text(file, "path");
    if name.is_empty() {
        errors.push(Error::required(&path.child("path"), ""));
    }
    errors.extend(validate_file_path(name, &path.child("path")));
    match (at(file, "fieldRef"), at(file, "resourceFieldRef")) {
        (Some(reference), other) => {
            errors.extend(validate_field_ref(reference, FILE_FIELDS, &path.child("fieldRef")));
            if other.is_some() {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(Error::invalid(path, "resource", detail));
            }
        }
        (None, Some(reference)) => {
            errors.extend(validate_resource_ref(reference, true, &path.child("resourceFieldRef")));
        }
        (None, None) => {
            errors.push(Error::required(path, "one of fieldRef and resourceFieldRef is required"));
        }
    }
    errors.extend(validate_mode(file, "mode", path));
    errors
}

/// A field of the pod that its containers may see.
///
/// Upstream: pkg/apis/core/validation/validation.go validateObjectFieldSelector
pub fn validate_field_ref(reference: &Value, supported: &[&str], path: &Path) -> Errors {
    let (version, field) = (text(reference, "apiVersion"), text(reference, "fieldPath"));
    let at_field = path.child("fieldPath");
    if version.is_empty() {
        return vec![Error::required(&path.child("apiVersion"), "")];
    }
    if field.is_empty() {
        return vec![Error::required(&at_field, "")];
    }
    if version != "v1" {
        let detail = format!("error converting fieldPath: unsupported pod version: {version}");
        return vec![Error::invalid(&at_field, field, detail)];
    }
    if let Some((name, key)) = field.strip_suffix("']").and_then(|f| f.split_once("['")) {
        return match name {
            "metadata.annotations" => each(names::qualified_name(&key.to_lowercase()), path, key),
            "metadata.labels" => each(names::qualified_name(key), path, key),
            _ => {
                let detail =
                    format!("error converting fieldPath: field label does not support subscript: {field}");
                vec![Error::invalid(&at_field, field, detail)]
            }
        };
    }
    const KNOWN: &[&str] = &[
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
        "spec.host",
    ];
    if !KNOWN.contains(&field) {
        let detail = format!("error converting fieldPath: field label not supported: {field}");
        return vec![Error::invalid(&at_field, field, detail)];
    }
    one_of(field, &at_field, supported)
}

fn validate_projected(projected: &Value, path: &Path) -> Errors {
    let mut errors = validate_mode(projected, "defaultMode", path);
    let mut seen: Vec<&str> = Vec::new();
    for (source, at_source) in get::items(projected, "sources", &path.child("sources")) {
        let given: Vec<&String> = source
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, _)| name)
            .collect();
        for field in ["secret", "configMap"] {
            let Some(value) = at(source, field) else { continue };
            let at_value = at_source.child(field);
            if text(value, "name").is_empty() {
                errors.push(Error::required(&at_value.child("name"), ""));
            }
            for (item, at) in get::items(value, "items", &at_value.child("items")) {
                errors.extend(validate_key_to_path(item, &at));
                errors.extend(unique_path(text(item, "path"), text(value, "name"), &mut seen, path));
            }
        }
        for file in list(source, "downwardAPI.items") {
            errors.extend(validate_downward_file(file, &at_source.child("downwardAPI")));
            errors.extend(unique_path(text(file, "path"), text(file, "path"), &mut seen, path));
        }
        if let Some(token) = at(source, "serviceAccountToken") {
            errors.extend(validate_token(token, path, &at_source.child("serviceAccountToken")));
        }
        if given.len() > 1 {
            errors.push(Error::forbidden(&at_source, "may not specify more than 1 volume type per source"));
        }
    }
    errors
}

fn unique_path<'a>(name: &'a str, shown: &str, seen: &mut Vec<&'a str>, path: &Path) -> Errors {
    if name.is_empty() {
        return Errors::new();
    }
    if seen.contains(&name) {
        return vec![Error::invalid(path, shown, "conflicting duplicate paths")];
    }
    seen.push(name);
    Errors::new()
}

fn validate_token(token: &Value, path: &Path, at_token: &Path) -> Errors {
    let mut errors = Errors::new();
    let seconds = number(token, "expirationSeconds");
    if seconds < 600 {
        let detail = "may not specify a duration less than 10 minutes";
        errors.push(Error::invalid(&at_token.child("expirationSeconds"), seconds, detail));
    }
    if seconds > 1 << 32 {
        let detail = "may not specify a duration larger than 2^32 seconds";
        errors.push(Error::invalid(&at_token.child("expirationSeconds"), seconds, detail));
    }
    match text(token, "path") {
        "" => errors.push(Error::required(&path.child("path"), "")),
        name => errors.extend(validate_file_path(name, &path.child("path"))),
    }
    errors
}

pub fn no_backsteps(value: &str, path: &Path) -> Errors {
    if value.split('/').any(|part| part == "..") {
        return vec![Error::invalid(path, value, "must not contain '..'")];
    }
    Errors::new()
}

/// A path that does not leave where it starts.
pub fn validate_relative_path(value: &str, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if value.starts_with('/') {
        errors.push(Error::invalid(path, value, "must be a relative path"));
    }
    errors.extend(no_backsteps(value, path));
    errors
}

/// A file's path in a volume: names that start with two dots are the kubelet's.
fn validate_file_path(value: &str, path: &Path) -> Errors {
    let mut errors = validate_relative_path(value, path);
    if value.starts_with("..") && !value.starts_with("../") {
        errors.push(Error::invalid(path, value, "must not start with '..'"));
    }
    errors
}

/// Files of variables are read from an emptyDir of the pod.
pub fn validate_file_keys(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let is_empty_dir = |name: &str| {
        let volume = list(spec, "volumes").iter().find(|v| text(v, "name") == name);
        volume.map(|v| has(v, "emptyDir"))
    };
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        for (container, at) in get::items(spec, field, &path.child(field)) {
            for (variable, at) in get::items(container, "env", &at.child("env")) {
                if !has(variable, "valueFrom.fileKeyRef") {
                    continue;
                }
                let name = text(variable, "valueFrom.fileKeyRef.volumeName");
                let at = at.child("valueFrom").child("fileKeyRef").child("volumeName");
                match (name, is_empty_dir(name)) {
                    (_, Some(true)) => {}
                    (name, None) => errors.push(Error::not_found(&at, name)),
                    (name, Some(false)) => {
                        let detail = "referenced volume must be of type emptyDir";
                        errors.push(Error::invalid(&at, name, detail));
                    }
                }
            }
        }
    }
    errors
}
