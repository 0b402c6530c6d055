//! What makes a schema structural, and what is wrong with one that is not.
//!
//! Works on the JSONSchemaProps as they stand, because what is wrong has no place in [`super::Structural`].
//!
//! Upstream: apiextensions-apiserver/pkg/apiserver/schema/validation.go ValidateStructural

use apimachinery::field::{Error, Path};
use serde_json::{Value, json};

use super::{compile_pattern, flag, present, text};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Why a schema has no structure at all, because it uses words that Kubernetes does not support.
pub fn unsupported(schema: &Value) -> Option<String> {
    const WORDS: &[(&str, &str)] = &[
        ("id", "id"),
        ("$schema", "schema"),
        ("$ref", "$ref"),
        ("patternProperties", "patternProperties"),
        ("dependencies", "dependencies"),
        ("additionalItems", "additionalItems"),
        ("definitions", "definitions"),
    ];
    let empty = |value: &Value| match value {
        Value::String(text) => text.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    for (word, name) in WORDS {
        if present(schema, word).is_some_and(|value| !empty(value)) {
            return Some(format!("OpenAPIV3Schema '{name}' is not supported"));
        }
    }
    if schema.get("items").is_some_and(Value::is_array) {
        return Some("OpenAPIV3Schema 'items' must be a schema, but is an array".to_owned());
    }
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        return Some(
            "internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined".to_owned(),
        );
    }
    children(schema).into_iter().find_map(unsupported)
}

/// Every schema directly inside a schema.
pub fn children(schema: &Value) -> Vec<&Value> {
    let mut found: Vec<&Value> = Vec::new();
    for name in ["items", "additionalProperties", "not", "additionalItems"] {
        match schema.get(name) {
            Some(Value::Array(items)) => found.extend(items),
            Some(inner @ Value::Object(_)) => found.push(inner),
            _ => {}
        }
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        found.extend(schema.get(name).and_then(Value::as_array).into_iter().flatten());
    }
    for name in ["properties", "patternProperties", "definitions"] {
        found.extend(schema.get(name).and_then(Value::as_object).into_iter().flat_map(|m| m.values()));
    }
    found
}

/// Whether a schema, or one inside it, fulfils a predicate.
pub fn any(schema: &Value, predicate: &mut impl FnMut(&Value) -> bool) -> bool {
    predicate(schema) || children(schema).into_iter().any(|child| any(child, predicate))
}

/// All that keeps a schema from being structural, in order of the messages.
pub fn validate(path: &Path, schema: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    invariants(path, schema, Level::Root, &mut errors);
    complete(schema, Some(schema), path, path, &mut errors);
    errors.sort_by_cached_key(ToString::to_string);
    errors
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn property<'v>(schema: &'v Value, name: &str) -> Option<&'v Value> {
    schema.get("properties")?.get(name)
}

fn invariants(path: &Path, schema: &Value, level: Level, errors: &mut Vec<Error>) {
    let kind = text(schema, "type");
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let preserves = flag(schema, "x-kubernetes-preserve-unknown-fields");
    let int_or_string = flag(schema, "x-kubernetes-int-or-string");
    match schema.get("items") {
        Some(items) if items.is_object() => invariants(&path.child("items"), items, Level::Item, errors),
        _ if kind == "array" => errors.push(Error::required(&path.child("items"), "must be specified")),
        _ => {}
    }
    for (name, property) in properties(schema) {
        invariants(&path.child("properties").key(name), property, Level::Field, errors);
    }
    let additional = present(schema, "additionalProperties");
    if let Some(additional) = additional {
        let path = path.child("additionalProperties");
        if level == Level::Root {
            errors.push(Error::forbidden(&path, "must not be used at the root"));
        }
        if additional.is_object() {
            invariants(&path, additional, Level::Field, errors);
        }
    }
    if int_or_string && preserves {
        let detail = "must be false if x-kubernetes-int-or-string is true";
        errors.push(Error::invalid(&path.child("x-kubernetes-preserve-unknown-fields"), true, detail));
    }
    if int_or_string && embedded {
        let detail = "must be false if x-kubernetes-int-or-string is true";
        errors.push(Error::invalid(&path.child("x-kubernetes-embedded-resource"), true, detail));
    }
    let skip = Skip { any_of: is_int_or_string(schema.get("anyOf")), first_all_of: first_all_of_is(schema) };
    value_validation(path, schema, skip, errors);
    of_type(path, schema, level, embedded, preserves || int_or_string, errors);
    if embedded && additional.is_some() {
        let detail = "must not be used if x-kubernetes-embedded-resource is set";
        errors.push(Error::forbidden(&path.child("additionalProperties"), detail));
    }
    metadata(path, schema, level, embedded, errors);
    if embedded && !preserves && properties(schema).next().is_none() {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without \
                      x-kubernetes-preserve-unknown-fields";
        errors.push(Error::required(&path.child("properties"), detail));
    }
}

fn of_type(
    path: &Path,
    schema: &Value,
    level: Level,
    embedded: bool,
    may_be_empty: bool,
    errors: &mut Vec<Error>,
) {
    let kind = text(schema, "type");
    let path = path.child("type");
    if embedded && kind != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match kind {
            "" => Error::required(&path, detail),
            kind => Error::invalid(&path, kind, detail),
        });
    } else if kind.is_empty() && !may_be_empty {
        let detail = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(Error::required(&path, detail));
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.push(Error::invalid(&path, kind, "must be object at the root"));
    }
}

/// Schemas of metadata may restrict the name and generateName, and no more.
fn metadata(path: &Path, schema: &Value, level: Level, embedded: bool, errors: &mut Vec<Error>) {
    let checked = level == Level::Root || embedded;
    let path = path.child("properties");
    for name in ["kind", "apiVersion"] {
        if let Some(schema) = property(schema, name).filter(|_| checked) {
            let kind = text(schema, "type");
            if kind != "string" {
                errors.push(Error::invalid(&path.key(name).child("type"), kind, "must be string"));
            }
        }
    }
    let Some(schema) = property(schema, "metadata") else { return };
    let path = path.key("metadata");
    let kind = text(schema, "type");
    if checked && kind != "object" {
        errors.push(Error::invalid(&path.child("type"), kind, "must be object"));
    }
    if level == Level::Root {
        let mut rest = schema.clone();
        if let Some(fields) = rest.as_object_mut() {
            let names_only = properties(schema).all(|(name, _)| name == "name" || name == "generateName");
            if names_only {
                fields.remove("properties");
            }
            fields.remove("type");
            fields.remove("default");
            if !fields.is_empty() {
                let detail = "must not specify anything other than name and generateName, but metadata is \
                              implicitly specified";
                errors.push(Error::forbidden(&path, detail));
            }
        }
    }
}

/// The two forms of an int-or-string that may repeat types.
fn is_int_or_string(any_of: Option<&Value>) -> bool {
    any_of == Some(&json!([{"type": "integer"}, {"type": "string"}]))
}

fn first_all_of_is(schema: &Value) -> bool {
    is_int_or_string(schema.get("allOf").and_then(|all| all.get(0)).and_then(|first| first.get("anyOf")))
}

#[derive(Clone, Copy, Default)]
struct Skip {
    any_of: bool,
    first_all_of: bool,
}

fn listed<'v>(schema: &'v Value, name: &str) -> impl Iterator<Item = (usize, &'v Value)> + use<'v> {
    schema.get(name).and_then(Value::as_array).into_iter().flatten().enumerate()
}

fn value_validation(path: &Path, schema: &Value, skip: Skip, errors: &mut Vec<Error>) {
    if !skip.any_of {
        for (at, inner) in listed(schema, "anyOf") {
            nested(&path.child("anyOf").index(at), inner, Skip::default(), errors);
        }
    }
    for (at, inner) in listed(schema, "allOf") {
        let skip = Skip { any_of: skip.first_all_of && at == 0, first_all_of: false };
        nested(&path.child("allOf").index(at), inner, skip, errors);
    }
    for (at, inner) in listed(schema, "oneOf") {
        nested(&path.child("oneOf").index(at), inner, Skip::default(), errors);
    }
    if let Some(not) = present(schema, "not") {
        nested(&path.child("not"), not, Skip::default(), errors);
    }
    let pattern = text(schema, "pattern");
    if !pattern.is_empty()
        && let Err(why) = compile_pattern(pattern)
    {
        let detail = format!("must be a valid regular expression, but isn't: {why}");
        errors.push(Error::invalid(&path.child("pattern"), pattern, detail));
    }
}

/// A schema below a junctor only restricts values; it has no structure of its own.
fn nested(path: &Path, schema: &Value, skip: Skip, errors: &mut Vec<Error>) {
    value_validation(path, schema, skip, errors);
    if let Some(items) = present(schema, "items") {
        nested(&path.child("items"), items, Skip::default(), errors);
    }
    for (name, property) in properties(schema) {
        nested(&path.child("properties").key(name), property, Skip::default(), errors);
    }
    const FORBIDDEN: &[(&str, &str)] = &[
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        ("x-kubernetes-embedded-resource", "must be false to be structural"),
        ("x-kubernetes-int-or-string", "must be false to be structural"),
        ("x-kubernetes-list-map-keys", "must be empty to be structural"),
        ("x-kubernetes-list-type", "must be undefined to be structural"),
        ("x-kubernetes-map-type", "must be undefined to be structural"),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ];
    for (name, detail) in FORBIDDEN {
        let set = match present(schema, name) {
            None | Some(Value::Bool(false)) => *name == "additionalProperties" && schema.get(*name).is_some(),
            Some(Value::String(text)) => !text.is_empty() || *name == "default",
            Some(Value::Array(items)) => !items.is_empty() || *name == "default",
            Some(_) => true,
        };
        if set {
            errors.push(Error::forbidden(&path.child(name), *detail));
        }
    }
    if property(schema, "metadata").is_some() {
        let path = path.child("properties").key("metadata");
        errors.push(Error::forbidden(&path, "must not be specified in a nested context"));
    }
}

/// What a junctor restricts must be declared outside of it.
fn complete(checks: &Value, schema: Option<&Value>, at: &Path, from: &Path, errors: &mut Vec<Error>) {
    for name in ["allOf", "anyOf", "oneOf"] {
        for (index, inner) in listed(checks, name) {
            nested_complete(inner, schema, at, &from.child(name).index(index), errors);
        }
    }
    if let Some(not) = present(checks, "not") {
        nested_complete(not, schema, at, &from.child("not"), errors);
    }
}

fn nested_complete(checks: &Value, schema: Option<&Value>, at: &Path, from: &Path, errors: &mut Vec<Error>) {
    let Some(schema) = schema else {
        errors.push(Error::required(at, format!("because it is defined in {from}")));
        return;
    };
    complete(checks, Some(schema), at, from, errors);
    if let Some(items) = present(checks, "items") {
        nested_complete(items, present(schema, "items"), &at.child("items"), &from.child("items"), errors);
    }
    for (name, inner) in properties(checks) {
        let (at, from) = (at.child("properties").key(name), from.child("properties").key(name));
        nested_complete(inner, property(schema, name), &at, &from, errors);
    }
}
