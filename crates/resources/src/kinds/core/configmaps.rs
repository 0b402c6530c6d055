//! ConfigMap: data for pods to read.

use crate::prelude::*;

/// The most that the data of a ConfigMap or Secret may hold.
pub const MAX_DATA_BYTES: usize = 1024 * 1024;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("v1", "ConfigMap", "configmaps")
        .short(&["cm"])
        .columns("Name,Data,Age", |o, now| {
            cells![get::name(o), get::len(o, "data") + get::len(o, "binaryData"), age(o, now)]
        })
        .strategy(Rules { validate, validate_update, ..Rules::PLAIN })
        .build()
}

/// Upstream: pkg/apis/core/validation/validation.go ValidateConfigMap
fn validate(config_map: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut size = 0;
    for (key, value) in get::entries(config_map, "data") {
        for message in names::config_map_key(key) {
            errors.push(Error::invalid(&path("data").key(key), key, message));
        }
        if config_map.get("binaryData").is_some_and(|b| b.get(key).is_some()) {
            errors.push(Error::invalid(
                &path("data").key(key),
                key,
                "duplicate of key present in binaryData",
            ));
        }
        size += value.as_str().map_or(0, str::len);
    }
    for (key, value) in get::entries(config_map, "binaryData") {
        for message in names::config_map_key(key) {
            errors.push(Error::invalid(&path("binaryData").key(key), key, message));
        }
        size += crate::validate::decoded_length(value);
    }
    if size > MAX_DATA_BYTES {
        errors.push(Error::too_long(&Path::root(), MAX_DATA_BYTES));
    }
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go ValidateConfigMapUpdate
fn validate_update(config_map: &Value, old: &Value) -> Errors {
    immutable_data(config_map, old, &["data", "binaryData"])
}

/// Once `immutable` is set, neither it nor the data change.
pub fn immutable_data(object: &Value, old: &Value, fields: &[&str]) -> Errors {
    if !is_true(old, "immutable") {
        return Errors::new();
    }
    let mut errors = Errors::new();
    let detail = "field is immutable when `immutable` is set";
    if !is_true(object, "immutable") {
        errors.push(Error::forbidden(&path("immutable"), detail));
    }
    for field in fields {
        // An absent map and an empty one are the same.
        let data = |value: &Value| at(value, field).filter(|d| **d != json!({})).cloned();
        if data(object) != data(old) {
            errors.push(Error::forbidden(&path(field), detail));
        }
    }
    errors
}
