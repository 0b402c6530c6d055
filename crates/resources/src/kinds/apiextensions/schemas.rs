//! What is wrong with the schema of one version: its structure, its words, and its expressions with what they cost.
//!
//! Upstream: apiextensions-apiserver/pkg/apis/apiextensions/validation/validation.go
//! validateCustomResourceDefinitionValidation

use cel::DeclType;
use schema::structural::invariants;
use serde_json::Value;

use super::defaults;
use crate::custom::rules::compile::{Compiled, compile};
use crate::custom::rules::field_path;
use crate::get::{Errors, is_true, list, text, texts};
use crate::prelude::{Error, Path};

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// The most that one rule, and that all rules of a schema, may be estimated to cost.
const RULE_COST_LIMIT: u64 = 10_000_000;
const SCHEMA_COST_LIMIT: u64 = 100_000_000;

/// What may stand at the root of a schema besides the status, by the names that upstream shows.
const ROOT_WORDS: &[(&str, &str)] = &[
    ("description", "Description"),
    ("type", "Type"),
    ("format", "Format"),
    ("title", "Title"),
    ("maximum", "Maximum"),
    ("exclusiveMaximum", "ExclusiveMaximum"),
    ("minimum", "Minimum"),
    ("exclusiveMinimum", "ExclusiveMinimum"),
    ("maxLength", "MaxLength"),
    ("minLength", "MinLength"),
    ("pattern", "Pattern"),
    ("maxItems", "MaxItems"),
    ("minItems", "MinItems"),
    ("uniqueItems", "UniqueItems"),
    ("multipleOf", "MultipleOf"),
    ("required", "Required"),
    ("items", "Items"),
    ("properties", "Properties"),
    ("externalDocs", "ExternalDocs"),
    ("example", "Example"),
    ("x-kubernetes-preserve-unknown-fields", "XPreserveUnknownFields"),
    ("x-kubernetes-validations", "XValidations"),
];

/// What rules cost together, and which contribute most.
#[derive(Default)]
struct Total {
    cost: u64,
    expensive: Vec<(u64, Path)>,
}

impl Total {
    fn add(&mut self, path: Path, cost: u64) {
        self.cost = self.cost.saturating_add(cost);
        if cost >= SCHEMA_COST_LIMIT / 100 {
            self.expensive.push((cost, path));
            self.expensive.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
            self.expensive.truncate(4);
        }
    }
}

/// How the walk came to a schema.
#[derive(Clone)]
struct Place {
    path: Path,
    root: bool,
    inside_meta: bool,
    /// Why defaults are not allowed here.
    no_defaults: Option<String>,
    /// The outermost place where a value cannot be told to be the same as before.
    uncorrelated: Option<Path>,
    /// How often a value may be here; `None` when nothing bounds it.
    cardinality: Option<u64>,
    /// Expressions are looked at: not below junctors, and not in schemas without structure.
    expressions: bool,
}

#[derive(Default)]
struct Found {
    schema: Errors,
    cel: Errors,
}

impl Found {
    fn append(&mut self, other: Found) {
        self.schema.extend(other.schema);
        self.cel.extend(other.cel);
    }
}

struct Walk {
    total: Total,
    /// What single rules cost was accepted before.
    any_cost: bool,
}

pub fn validate(schema: &Value, path: &Path, has_status: bool, unchanged: bool) -> Errors {
    let mut errors = Errors::new();
    if has_status {
        errors.extend(root_words(schema, path));
    }
    if is_true(schema, "nullable") {
        errors.push(Error::forbidden(&path.child("nullable"), "nullable cannot be true at the root"));
    }
    let unsupported = invariants::unsupported(schema);
    let mut structural = unsupported.is_none();
    if structural {
        let mut wrong = invariants::validate(path, schema);
        if wrong.is_empty() {
            wrong = defaults::validate(path, schema);
        }
        structural = wrong.is_empty();
        errors.extend(wrong);
    }
    let place = Place {
        path: path.clone(),
        root: true,
        inside_meta: false,
        no_defaults: None,
        uncorrelated: None,
        cardinality: Some(1),
        expressions: structural,
    };
    let mut walk = Walk { total: Total::default(), any_cost: unchanged };
    let found = walk.schema(schema, &place);
    errors.extend(found.schema);
    errors.extend(found.cel);
    if let (true, Some(why)) = (errors.is_empty(), unsupported) {
        errors.push(Error::invalid(path, "", why));
    }
    if walk.total.cost > SCHEMA_COST_LIMIT {
        for (_, path) in &walk.total.expensive {
            let detail =
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            errors.push(Error::forbidden(path, detail));
        }
        let name = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.push(Error::forbidden(path, too_expensive(name, walk.total.cost, SCHEMA_COST_LIMIT)));
    }
    errors
}

fn root_words(schema: &Value, path: &Path) -> Option<Error> {
    let set = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
    let fields = schema.as_object().into_iter().flatten().filter(|(_, value)| set(value));
    for (name, _) in fields {
        if name == "type" && text(schema, "type") != "object" {
            let detail = "only \"object\" is allowed as the type at the root of the schema if the status subresource \
                          is enabled";
            return Some(Error::invalid(&path.child("type"), text(schema, "type"), detail));
        }
        if !ROOT_WORDS.iter().any(|(known, _)| known == name) {
            let words: Vec<&str> = ROOT_WORDS.iter().map(|(_, shown)| *shown).collect();
            let detail = format!(
                "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
                words.join(" ")
            );
            return Some(Error::invalid(path, schema.clone(), detail));
        }
    }
    None
}

/// Upstream: apiextensions-apiserver/pkg/apis/apiextensions/validation/validation.go getCostErrorMessage
fn too_expensive(name: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{name} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}

/// How many values there are below one value of a schema; `None` when nothing bounds it.
fn max_elements(schema: &Value) -> Option<u64> {
    let limit = |name: &str| schema.get(name).and_then(Value::as_i64).map(|n| u64::try_from(n).unwrap_or(0));
    match text(schema, "type") {
        "object" if schema.get("additionalProperties").is_some() => limit("maxProperties"),
        "array" => limit("maxItems"),
        _ => Some(1),
    }
}

impl Place {
    fn child(&self, path: Path, schema: &Value) -> Place {
        let cardinality = self.cardinality.zip(max_elements(schema)).map(|(a, b)| a.saturating_mul(b));
        Place { path, root: false, cardinality, ..self.clone() }
    }

    fn junctor(&self, path: Path) -> Place {
        Place { path, root: false, expressions: false, ..self.clone() }
    }

    fn uncorrelated(mut self, path: &Path) -> Place {
        self.uncorrelated.get_or_insert_with(|| path.clone());
        self
    }
}

impl Walk {
    fn schema(&mut self, schema: &Value, place: &Place) -> Found {
        let mut found = Found { schema: words(schema, place), cel: Errors::new() };
        let path = &place.path;
        if is_true(schema, "uniqueItems") {
            let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            found.schema.push(Error::forbidden(&path.child("uniqueItems"), detail));
        }
        self.fields(schema, place, &mut found);
        self.junctors(schema, place, &mut found);
        match schema.get("items") {
            Some(Value::Array(items)) => {
                for (at, inner) in items.iter().enumerate() {
                    let child = place.child(path.child("items").index(at), schema).uncorrelated(path);
                    found.append(self.schema(inner, &child));
                }
            }
            Some(items @ Value::Object(_)) => {
                let mut child = place.child(path.child("items"), schema);
                if text(schema, "x-kubernetes-list-type") != "map" {
                    child = child.uncorrelated(path);
                }
                found.append(self.schema(items, &child));
            }
            _ => {}
        }
        extensions(schema, path, &mut found.schema);
        rule_words(schema, path, &mut found.schema);
        let has_rules = !list(schema, "x-kubernetes-validations").is_empty();
        if has_rules && found.schema.is_empty() && place.expressions {
            self.rules(schema, place, &mut found.cel);
        }
        found
    }

    fn fields(&mut self, schema: &Value, place: &Place, found: &mut Found) {
        let path = &place.path;
        let properties = schema.get("properties").and_then(Value::as_object);
        let properties = properties.filter(|properties| !properties.is_empty());
        if let Some(additional) = schema.get("additionalProperties").filter(|a| !a.is_null()) {
            let path = path.child("additionalProperties");
            if properties.is_some() && *additional != Value::Bool(true) {
                let detail = "additionalProperties and properties are mutual exclusive";
                found.schema.push(Error::forbidden(&path, detail));
            }
            if additional.is_object() {
                let mut child = place.child(path, schema);
                if place.inside_meta {
                    let why = "inside additionalProperties applying to object metadata";
                    child.no_defaults = Some(why.to_owned());
                }
                found.append(self.schema(additional, &child));
            }
        }
        let of_object = place.root || is_true(schema, "x-kubernetes-embedded-resource");
        for (name, inner) in properties.into_iter().flatten() {
            let mut child = place.child(path.child("properties").key(name), schema);
            if of_object && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
                child.inside_meta = true;
                if place.root {
                    child.no_defaults = Some(format!("in top-level {name}"));
                }
            }
            found.append(self.schema(inner, &child));
        }
    }

    fn junctors(&mut self, schema: &Value, place: &Place, found: &mut Found) {
        let path = &place.path;
        if let Some(not) = schema.get("not").filter(|not| not.is_object()) {
            found.append(self.schema(not, &place.junctor(path.child("not"))));
        }
        for name in ["allOf", "oneOf", "anyOf"] {
            for (at, inner) in list(schema, name).iter().enumerate() {
                found.append(self.schema(inner, &place.junctor(path.child(name).index(at))));
            }
        }
        for (name, inner) in schema.get("definitions").and_then(Value::as_object).into_iter().flatten() {
            found.append(self.schema(inner, &place.junctor(path.child("definitions").key(name))));
        }
    }

    fn rules(&mut self, schema: &Value, place: &Place, errors: &mut Errors) {
        let path = place.path.child("x-kubernetes-validations");
        let whole = place.root || is_true(schema, "x-kubernetes-embedded-resource");
        let Some(decl) = DeclType::from_schema(schema, whole).map(|decl| decl.named("selfType")) else {
            let why = "internal error: failed to construct type information for x-kubernetes-validations rules: unable \
                       to convert structural schema to CEL declarations";
            errors.push(Error::internal(&path, why));
            return;
        };
        for (at, rule) in list(schema, "x-kubernetes-validations").iter().enumerate() {
            let compiled = compile(rule, schema, Some(&decl));
            self.rule(rule, &compiled, place, &path.index(at), errors);
        }
    }

    fn rule(&mut self, rule: &Value, compiled: &Compiled, place: &Place, path: &Path, errors: &mut Errors) {
        let at = path.child("rule");
        let times = place.cardinality.unwrap_or(compiled.max_cardinality);
        let cost = compiled.max_cost.saturating_mul(times);
        if !self.any_cost && cost > RULE_COST_LIMIT {
            let detail = too_expensive("estimated rule cost", cost, RULE_COST_LIMIT);
            errors.push(Error::forbidden(&at, detail));
        }
        self.total.add(at.clone(), cost);
        if let Err(why) = &compiled.program {
            errors.push(Error::invalid(&at, rule.clone(), why.as_str()));
        }
        let message = path.child("messageExpression");
        match &compiled.message_program {
            Err(why) => errors.push(Error::invalid(&message, rule.clone(), why.as_str())),
            Ok(Some(_)) => {
                let cost = compiled.message_max_cost;
                if !self.any_cost && cost > RULE_COST_LIMIT {
                    let detail = too_expensive("estimated messageExpression cost", cost, RULE_COST_LIMIT);
                    errors.push(Error::forbidden(&message, detail));
                }
                self.total.add(message, cost);
            }
            Ok(None) => {}
        }
        if compiled.uses_old_self {
            if let Some(within) = &place.uncorrelated {
                let detail = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {within}"
                );
                errors.push(Error::invalid(&at, compiled.text.as_str(), detail));
            }
        } else if let Some(optional) = rule.get("optionalOldSelf").filter(|value| !value.is_null()) {
            let detail = "may not be set if oldSelf is not used in rule";
            errors.push(Error::invalid(&path.child("optionalOldSelf"), optional.clone(), detail));
        }
    }
}

/// The words of version 3 that Kubernetes supports.
///
/// Upstream: apiextensions-apiserver/pkg/apis/apiextensions/validation/validation.go specStandardValidatorV3
fn words(schema: &Value, place: &Place) -> Errors {
    let mut errors = Errors::new();
    let path = &place.path;
    let present = |name: &str| schema.get(name).is_some_and(|value| !value.is_null());
    let kind = text(schema, "type");
    if !kind.is_empty() && !TYPES.contains(&kind) {
        errors.push(Error::not_supported(&path.child("type"), kind, &TYPES));
    }
    if let (true, Some(why)) = (present("default"), &place.no_defaults) {
        errors.push(Error::forbidden(&path.child("default"), format!("must not be set {why}")));
    }
    let filled = |name: &str| match schema.get(name) {
        Some(Value::Object(map)) => !map.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        _ => false,
    };
    for (name, unsupported) in [
        ("id", filled("id")),
        ("additionalItems", present("additionalItems")),
        ("patternProperties", filled("patternProperties")),
        ("definitions", filled("definitions")),
        ("dependencies", present("dependencies")),
        ("$ref", present("$ref")),
    ] {
        if unsupported {
            errors.push(Error::forbidden(&path.child(name), format!("{name} is not supported")));
        }
    }
    if kind == "null" {
        let detail = "type cannot be set to null, use nullable as an alternative";
        errors.push(Error::forbidden(&path.child("type"), detail));
    }
    if schema.get("items").is_some_and(Value::is_array) {
        errors.push(Error::forbidden(&path.child("items"), "items must be a schema object and not an array"));
    }
    if place.inside_meta && is_true(schema, "x-kubernetes-embedded-resource") {
        let path = path.child("x-kubernetes-embedded-resource");
        errors.push(Error::forbidden(&path, "must not be used inside of resource meta"));
    }
    errors
}

fn extensions(schema: &Value, path: &Path, errors: &mut Errors) {
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        let path = path.child("x-kubernetes-preserve-unknown-fields");
        errors.push(Error::invalid(&path, false, "must be true or undefined"));
    }
    let kind = text(schema, "type");
    let must_be = |wanted: &str, extension: &str, errors: &mut Errors| {
        let detail = format!("must be {wanted} if {extension} is specified");
        let path = path.child("type");
        errors.push(match kind {
            "" => Error::required(&path, detail),
            kind => Error::invalid(&path, kind, detail),
        });
    };
    let map_type = text(schema, "x-kubernetes-map-type");
    if !map_type.is_empty() {
        if kind != "object" {
            must_be("object", "x-kubernetes-map-type", errors);
        }
        if !matches!(map_type, "atomic" | "granular") {
            let path = path.child("x-kubernetes-map-type");
            errors.push(Error::not_supported(&path, map_type, &["atomic", "granular"]));
        }
    }
    let list_type = text(schema, "x-kubernetes-list-type");
    if !list_type.is_empty() && kind != "array" {
        must_be("array", "x-kubernetes-list-type", errors);
    } else if list_type == "set" {
        set_items(schema, path, errors);
    }
    if !list_type.is_empty() && !matches!(list_type, "atomic" | "set" | "map") {
        let path = path.child("x-kubernetes-list-type");
        errors.push(Error::not_supported(&path, list_type, &["atomic", "set", "map"]));
    }
    let keys = texts(schema, "x-kubernetes-list-map-keys");
    if !keys.is_empty() && list_type != "map" {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        let path = path.child("x-kubernetes-list-type");
        errors.push(match list_type {
            "" => Error::required(&path, detail),
            kind => Error::invalid(&path, kind, detail),
        });
    }
    if list_type == "map" {
        map_items(schema, &keys, path, errors);
    }
    let nullable = schema.get("items").is_some_and(|items| is_true(items, "nullable"));
    if nullable && matches!(list_type, "set" | "map") {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.push(Error::forbidden(&path.child("items").child("nullable"), detail));
    }
    if list_type == "map" {
        map_keys(schema, &keys, path, errors);
    }
}

/// Items of sets are told apart as a whole, and so they must be merged as a whole.
fn set_items(schema: &Value, path: &Path, errors: &mut Errors) {
    let Some(items) = schema.get("items").filter(|items| items.is_object()) else { return };
    let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
    let path = path.child("items");
    let list_type = text(items, "x-kubernetes-list-type");
    match text(items, "type") {
        "array" if !matches!(list_type, "" | "atomic") => {
            errors.push(Error::invalid(&path.child("x-kubernetes-list-type"), list_type, detail));
        }
        "object" if text(items, "x-kubernetes-map-type") != "atomic" => {
            let value = items.get("x-kubernetes-list-type").cloned().unwrap_or_default();
            errors.push(Error::invalid(&path.child("x-kubernetes-map-type"), value, detail));
        }
        _ => {}
    }
}

fn map_items(schema: &Value, keys: &[&str], path: &Path, errors: &mut Errors) {
    let at = path.child("x-kubernetes-list-map-keys");
    if keys.is_empty() {
        errors.push(Error::required(&at, "must not be empty if x-kubernetes-list-type is map"));
    }
    let items = match schema.get("items") {
        Some(items @ Value::Object(_)) => items,
        Some(items @ Value::Array(_)) => {
            let detail = "must only have a single schema if x-kubernetes-list-type is map";
            errors.push(Error::invalid(&path.child("items"), items.clone(), detail));
            return;
        }
        _ => {
            let detail = "must have a schema if x-kubernetes-list-type is map";
            errors.push(Error::required(&path.child("items"), detail));
            return;
        }
    };
    let kind = text(items, "type");
    if kind != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(Error::invalid(&path.child("items").child("type"), kind, detail));
        return;
    }
    for (index, key) in keys.iter().enumerate() {
        match items.get("properties").and_then(|properties| properties.get(*key)) {
            Some(property) if matches!(text(property, "type"), "array" | "object") => {
                let path = path.child("items").child("properties").key(key).child("type");
                let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errors.push(Error::invalid(&path, kind, detail));
            }
            Some(_) => {}
            None => {
                let detail = "entries must all be names of item properties";
                errors.push(Error::invalid(&at, Value::from(keys), detail));
            }
        }
        if keys[..index].contains(key) {
            errors.push(Error::invalid(&at, Value::from(keys), "must not contain duplicate entries"));
        }
    }
}

/// Every item must have its keys.
///
/// Upstream: apiextensions-apiserver/pkg/apis/apiextensions/validation/validation.go validateMapListKeysMapSet
fn map_keys(schema: &Value, keys: &[&str], path: &Path, errors: &mut Errors) {
    let Some(items) = schema.get("items").filter(|items| items.is_object()) else { return };
    let required = texts(items, "required");
    for key in keys {
        let Some(property) = items.get("properties").and_then(|p| p.get(*key)) else { continue };
        let path = path.child("items").child("properties").key(key);
        let default = property.get("default").is_some_and(|default| !default.is_null());
        if !required.contains(key) && !default {
            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required \
                          property";
            errors.push(Error::required(&path.child("default"), detail));
        }
        if is_true(property, "nullable") {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(Error::forbidden(&path.child("nullable"), detail));
        }
    }
}

/// What is wrong with rules before anybody reads their expressions.
fn rule_words(schema: &Value, path: &Path, errors: &mut Errors) {
    let breaks = |text: &str| text.contains(['\n', '\r']);
    for (at, rule) in list(schema, "x-kubernetes-validations").iter().enumerate() {
        let path = path.child("x-kubernetes-validations").index(at);
        let field = |name: &str| (text(rule, name), text(rule, name).trim(), path.child(name));
        let (_, expression, rule_path) = field("rule");
        let (message, trimmed, message_path) = field("message");
        if expression.is_empty() {
            errors.push(Error::required(&rule_path, "rule is not specified"));
        } else if !message.is_empty() && trimmed.is_empty() {
            errors.push(Error::invalid(&message_path, message, "must be non-empty if specified"));
        } else if breaks(trimmed) {
            errors.push(Error::invalid(&message_path, message, "must not contain line breaks"));
        } else if breaks(expression) && trimmed.is_empty() {
            let detail = "message must be specified if rule contains line breaks";
            errors.push(Error::required(&message_path, detail));
        }
        let (made, trimmed, made_path) = field("messageExpression");
        if !made.is_empty() && trimmed.is_empty() {
            errors.push(Error::required(&made_path, "messageExpression must be non-empty if specified"));
        }
        let (reason, _, reason_path) = field("reason");
        if !reason.is_empty() && !REASONS.contains(&reason) {
            errors.push(Error::not_supported(&reason_path, reason, &REASONS));
        }
        let (blamed, trimmed, blamed_path) = field("fieldPath");
        if blamed.is_empty() {
            continue;
        }
        if trimmed.is_empty() {
            errors.push(Error::invalid(&blamed_path, blamed, "must be non-empty if specified"));
        }
        if breaks(blamed) {
            errors.push(Error::invalid(&blamed_path, blamed, "must not contain line breaks"));
        }
        if field_path::parse(blamed, schema, true).is_err() {
            errors.push(Error::invalid(&blamed_path, blamed, "must be a valid path"));
        }
    }
}

/// The formats in a schema that mean nothing, in the order in which they come.
pub fn unrecognized_formats(schema: &Value) -> Vec<String> {
    let mut found = Vec::new();
    invariants::any(schema, &mut |schema| {
        let format = text(schema, "format");
        let known = schema::structural::formats::is_recognized(text(schema, "type"), format);
        if !format.is_empty() && !known {
            found.push(format.to_owned());
        }
        false
    });
    found
}
