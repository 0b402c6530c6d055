//! Kind and metadata of an object and of the objects embedded in it: their types, unknown fields in them, and what
//! is wrong with them.
//!
//! Upstream: apiextensions-apiserver/pkg/apiserver/schema/objectmeta

use api::tables::{self, Definition};
use apimachinery::field::{Error as FieldError, Path};
use apimachinery::{GroupVersion, names, objectmeta};
use serde_json::{Map, Value};

use super::{Additional, Structural};
use crate::decode::{self, Strictness};
use crate::default;

/// What to do with metadata that has fields of a wrong type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    Refuse,
    /// What old versions stored is not refused when it is read.
    Drop,
}

fn object_meta() -> Option<&'static Definition> {
    tables::definition("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
}

/// Gives metadata its shape. Problems are the unknown fields in it, by their paths below `path`.
fn shape(
    metadata: &mut Value,
    path: &Path,
    malformed: Malformed,
    problems: &mut Vec<String>,
) -> Result<(), String> {
    let Some(definition) = object_meta() else { return Ok(()) };
    let path = path.child("metadata");
    let mut decode = |value: Value| {
        let decoded = decode::value(value, definition, Strictness::Report)?;
        problems.extend(decoded.problems.iter().filter_map(|problem| {
            let field = problem.strip_prefix("unknown field \"")?.strip_suffix('"')?;
            Some(format!("{}.{field}", path.as_str()))
        }));
        Ok::<Value, crate::Error>(decoded.object)
    };
    let whole = match (decode(metadata.clone()), malformed) {
        (Ok(whole), _) => whole,
        (Err(error), Malformed::Refuse) => return Err(error.to_string()),
        (Err(_), Malformed::Drop) => {
            let mut kept = Map::new();
            for (name, value) in metadata.as_object().cloned().unwrap_or_default() {
                let single = Value::Object(Map::from_iter([(name, value)]));
                if let Ok(Value::Object(single)) = decode(single) {
                    kept.extend(single);
                }
            }
            Value::Object(kept)
        }
    };
    *metadata = whole;
    default::apply_declared(metadata, definition);
    Ok(())
}

/// Gives the metadata of an object itself its shape; gives the paths of unknown fields.
pub fn shape_own(object: &mut Value, malformed: Malformed) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    if let Some(metadata) = object.get_mut("metadata") {
        shape(metadata, &Path::root(), malformed, &mut unknown)?;
    }
    Ok(unknown)
}

/// Gives kind and metadata of embedded objects their shape; gives the paths of unknown fields, in order.
pub fn shape_embedded(
    object: &mut Value,
    schema: &Structural,
    malformed: Malformed,
) -> Result<Vec<String>, FieldError> {
    let mut unknown = Vec::new();
    coerce(&Path::root(), object, schema, malformed, &mut unknown)?;
    unknown.sort();
    Ok(unknown)
}

/// Whether the value at `path` itself is of an embedded kind, and everything below it.
pub fn coerce(
    path: &Path,
    value: &mut Value,
    schema: &Structural,
    malformed: Malformed,
    unknown: &mut Vec<String>,
) -> Result<(), FieldError> {
    match value {
        Value::Object(fields) => {
            if schema.embedded {
                for name in ["apiVersion", "kind"] {
                    match fields.get(name) {
                        None | Some(Value::String(_)) => {}
                        Some(_) if malformed == Malformed::Drop => {
                            fields.remove(name);
                        }
                        Some(value) => {
                            let value = value.clone();
                            return Err(FieldError::invalid(&path.child(name), value, "must be a string"));
                        }
                    }
                }
                if let Some(metadata) = fields.get_mut("metadata") {
                    let was = metadata.clone();
                    shape(metadata, path, malformed, unknown)
                        .map_err(|why| FieldError::invalid(&path.child("metadata"), was, why))?;
                }
            }
            for (name, value) in fields.iter_mut() {
                match (schema.properties.get(name), &schema.additional) {
                    (Some(property), _) => coerce(&path.child(name), value, property, malformed, unknown)?,
                    (None, Additional::Schema(schema)) => {
                        coerce(&path.key(name), value, schema, malformed, unknown)?;
                    }
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return Ok(()) };
            for (at, item) in items.iter_mut().enumerate() {
                coerce(&path.index(at), item, schema, malformed, unknown)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// All that is wrong with kinds and metadata of embedded objects.
pub fn validate(path: &Path, value: &Value, schema: &Structural) -> Vec<FieldError> {
    let mut errors = Vec::new();
    walk(path, value, schema, &mut errors);
    errors
}

fn walk(path: &Path, value: &Value, schema: &Structural, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(fields) => {
            if schema.embedded {
                validate_one(path, value, errors);
            }
            for (name, value) in fields {
                match (schema.properties.get(name), &schema.additional) {
                    (Some(property), _) => walk(&path.child(name), value, property, errors),
                    (None, Additional::Schema(schema)) => walk(&path.key(name), value, schema, errors),
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return };
            for (at, item) in items.iter().enumerate() {
                walk(&path.index(at), item, schema, errors);
            }
        }
        _ => {}
    }
}

/// What is wrong with the kind and the metadata of one embedded object.
pub fn validate_one(path: &Path, object: &Value, errors: &mut Vec<FieldError>) {
    for field in ["apiVersion", "kind"] {
        let at = path.child(field);
        match object.get(field) {
            None => errors.push(FieldError::required(&at, "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::invalid(&at, "", "must not be empty"));
            }
            Some(Value::String(text)) if field == "apiVersion" => {
                if GroupVersion::parse(text).is_none() {
                    let detail = format!("unexpected GroupVersion string: {text}");
                    errors.push(FieldError::invalid(&at, text.as_str(), detail));
                }
            }
            Some(Value::String(text)) => {
                let wrong = names::dns1035_label(&text.to_lowercase());
                if !wrong.is_empty() {
                    let detail =
                        format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
                    errors.push(FieldError::invalid(&at, text.as_str(), detail));
                }
            }
            Some(other) => errors.push(FieldError::invalid(&at, other.clone(), "must be a string")),
        }
    }
    let Some(metadata) = object.get("metadata") else { return };
    let at = path.child("metadata");
    for field in ["name", "namespace"] {
        let Some(text) = metadata.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()) else {
            continue;
        };
        let wrong = if field == "name" { names::path_segment(text) } else { names::dns1123_label(text) };
        errors.extend(wrong.into_iter().map(|why| FieldError::invalid(&at.child(field), text, why)));
    }
    errors.extend(objectmeta::validate(metadata, &at, objectmeta::Finalizers::Any));
}
