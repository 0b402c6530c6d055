//! Secret: confidential data for pods to read.

use crate::kinds::core::configmaps::{MAX_DATA_BYTES, immutable_data};
use crate::prelude::*;
use crate::validate::{decode_base64, decoded_length, immutable};

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("v1", "Secret", "secrets")
        .columns("Name,Type,Data,Age", |o, now| {
            cells![get::name(o), text(o, "type"), get::len(o, "data"), age(o, now)]
        })
        .fields(&["type"])
        .strategy(Rules { default, validate, validate_update, prepare_update, ..Rules::PLAIN })
        .build()
}

/// Besides the type, `stringData` becomes `data`: it is a way to write only.
///
/// Upstream: pkg/apis/core/v1/{defaults,conversion}.go
fn default(secret: &mut Value) {
    get::default(secret, "type", "Opaque");
    if let Some(Value::Object(plain)) = get::remove(secret, "stringData") {
        for (key, value) in plain {
            let encoded = crate::validate::encode_base64(value.as_str().unwrap_or_default());
            if let Some(data) = get::fields_mut(secret, "data") {
                data.insert(key, encoded.into());
            }
        }
    }
}

/// An update that leaves the type out keeps it.
fn prepare_update(_context: &crate::Context, secret: &mut Value, old: &Value) {
    if text(secret, "type").is_empty() {
        set(secret, "type", text(old, "type"));
    }
}

/// Upstream: pkg/apis/core/validation/validation.go ValidateSecret
fn validate(secret: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut size = 0;
    for (key, value) in get::entries(secret, "data") {
        for message in names::config_map_key(key) {
            errors.push(Error::invalid(&path("data").key(key), key, message));
        }
        size += decoded_length(value);
    }
    if size > MAX_DATA_BYTES {
        errors.push(Error::too_long(&path("data"), MAX_DATA_BYTES));
    }
    let data = |key: &str| secret.get("data").and_then(|d| d.get(key));
    let mut require = |key: &str| {
        if data(key).is_none() {
            errors.push(Error::required(&path("data").key(key), ""));
        }
    };
    match text(secret, "type") {
        "kubernetes.io/service-account-token" => {
            let account = secret
                .get("metadata")
                .and_then(|m| m.get("annotations"))
                .and_then(|a| a.get("kubernetes.io/service-account.name"))
                .and_then(Value::as_str);
            if account.unwrap_or_default().is_empty() {
                let at = path("metadata.annotations").key("kubernetes.io/service-account.name");
                errors.push(Error::required(&at, ""));
            }
        }
        "kubernetes.io/dockercfg" => {
            require(".dockercfg");
            errors.extend(json_data(data(".dockercfg"), ".dockercfg"));
        }
        "kubernetes.io/dockerconfigjson" => {
            require(".dockerconfigjson");
            errors.extend(json_data(data(".dockerconfigjson"), ".dockerconfigjson"));
        }
        "kubernetes.io/basic-auth" if data("username").is_none() && data("password").is_none() => {
            require("username");
            require("password");
        }
        "kubernetes.io/ssh-auth"
            if data("ssh-privatekey").and_then(Value::as_str).unwrap_or("").is_empty() =>
        {
            errors.push(Error::required(&path("data").key("ssh-privatekey"), ""));
        }
        "kubernetes.io/tls" => {
            require("tls.crt");
            require("tls.key");
        }
        _ => {}
    }
    errors
}

/// A registry's credentials must be JSON. Their value is confidential, so that the message does not show it.
fn json_data(value: Option<&Value>, key: &str) -> Errors {
    let Some(bytes) = value.and_then(decode_base64) else { return Errors::new() };
    match serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes) {
        Ok(_) => Errors::new(),
        Err(why) => {
            vec![Error::invalid(&path("data").key(key), "<secret contents redacted>", why.to_string())]
        }
    }
}

/// Upstream: pkg/apis/core/validation/validation.go ValidateSecretUpdate
fn validate_update(secret: &Value, old: &Value) -> Errors {
    let mut errors = immutable(secret, old, "type");
    errors.extend(immutable_data(secret, old, &["data"]));
    errors
}
