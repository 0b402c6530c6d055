//! The names that a definition asks for, and those that it got.
//!
//! Upstream: apiextensions-apiserver/pkg/apis/apiextensions/validation/validation.go
//! ValidateCustomResourceDefinitionNames

use apimachinery::names::dns1035_label;
use serde_json::Value;

use crate::get::{Errors, items, text};
use crate::prelude::{Error, Path};

pub fn validate(names: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut check = |path: &Path, value: &str, prefix: &str, read: &str| {
        let wrong = dns1035_label(read);
        if !value.is_empty() && !wrong.is_empty() {
            errors.push(Error::invalid(path, value, format!("{prefix}{}", wrong.join(","))));
        }
    };
    for field in ["plural", "singular"] {
        let value = text(names, field);
        check(&path.child(field), value, "", value);
    }
    for field in ["kind", "listKind"] {
        let value = text(names, field);
        let prefix = "may have mixed case, but should otherwise match: ";
        check(&path.child(field), value, prefix, &value.to_lowercase());
    }
    let mut each = |field: &str| {
        for (value, at) in items(names, field, &path.child(field)) {
            let value = value.as_str().unwrap_or_default();
            let wrong = dns1035_label(value);
            if !wrong.is_empty() {
                errors.push(Error::invalid(&at, value, wrong.join(",")));
            }
        }
    };
    each("shortNames");
    each("categories");
    let list_kind = text(names, "listKind");
    if !text(names, "kind").is_empty() && text(names, "kind") == list_kind {
        let detail = "kind and listKind may not be the same";
        errors.push(Error::invalid(&path.child("listKind"), list_kind, detail));
    }
    errors
}
