//! Structural schemas: what a CustomResourceDefinition says of its objects, and what follows from it.
//!
//! [`Structural`] is a schema as it is used on every request, parsed once from the definition. [`invariants`] says
//! what is wrong with a schema; [`prune`], [`default`] and [`embedded`] give an object its shape; [`values`] and
//! [`lists`] say what is wrong with an object; [`apply`] lets server-side apply walk it, and [`publish`] shows it
//! to clients in OpenAPI.
//!
//! What always holds: schemas and objects came through a JSON decoder that bounds their depth, so walking both by
//! recursion is safe; nothing here panics on any schema, structural or not.
//!
//! Upstream: apiextensions-apiserver/pkg/apiserver/schema

pub mod apply;
pub mod default;
pub mod embedded;
pub mod formats;
pub mod invariants;
pub mod lists;
pub mod prune;
pub mod publish;
pub mod values;

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use formats::Format;

/// How large a compiled pattern may become: a schema is a user's.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// The declared type of a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// None is declared.
    #[default]
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl Kind {
    fn of(text: &str) -> Self {
        match text {
            "object" => Kind::Object,
            "array" => Kind::Array,
            "string" => Kind::String,
            "integer" => Kind::Integer,
            "number" => Kind::Number,
            "boolean" => Kind::Boolean,
            _ => Kind::Any,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Any => "",
            Kind::Object => "object",
            Kind::Array => "array",
            Kind::String => "string",
            Kind::Integer => "integer",
            Kind::Number => "number",
            Kind::Boolean => "boolean",
        }
    }
}

/// How a list is merged, and what must be unique in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListKind {
    #[default]
    Atomic,
    Set,
    Map,
}

/// What fields an object may have besides its properties.
#[derive(Clone, Debug, Default)]
pub enum Additional {
    /// Nothing is said: others are pruned.
    #[default]
    None,
    /// `additionalProperties: true` or `false`.
    Any(bool),
    Schema(Box<Structural>),
}

/// The schema of a value.
#[derive(Clone, Debug, Default)]
pub struct Structural {
    pub kind: Kind,
    pub nullable: bool,
    pub default: Option<Value>,
    pub properties: BTreeMap<String, Structural>,
    pub additional: Additional,
    pub items: Option<Box<Structural>>,
    /// The value is a whole object with a kind and metadata.
    pub embedded: bool,
    pub int_or_string: bool,
    pub preserve_unknown: bool,
    pub list_kind: ListKind,
    pub list_map_keys: Vec<String>,
    /// The object is owned as a whole.
    pub atomic_map: bool,
    pub checks: Checks,
}

/// What a value of the right type must still fulfil.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    pub format: Option<Format>,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub multiple_of: Option<f64>,
    pub max_length: Option<usize>,
    pub min_length: Option<usize>,
    pub pattern: Option<Pattern>,
    pub max_items: Option<usize>,
    pub min_items: Option<usize>,
    pub unique_items: bool,
    pub max_properties: Option<usize>,
    pub min_properties: Option<usize>,
    pub required: Vec<String>,
    pub one_of_values: Vec<Value>,
    pub all_of: Vec<Structural>,
    pub any_of: Vec<Structural>,
    pub one_of: Vec<Structural>,
    pub not: Option<Box<Structural>>,
}

/// A regular expression with its text, which messages show.
#[derive(Clone, Debug)]
pub struct Pattern {
    pub text: String,
    /// Why it cannot be used, when it cannot.
    pub regex: Result<Regex, String>,
}

/// Compiles a pattern as upstream's engine reads it.
pub fn compile_pattern(text: &str) -> Result<Regex, String> {
    regex::RegexBuilder::new(text)
        .size_limit(MAX_PATTERN_BYTES)
        .build()
        .map_err(|error| format!("error parsing regexp: {error}"))
}

fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool) == Some(true)
}

fn text<'v>(schema: &'v Value, name: &str) -> &'v str {
    schema.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn texts(schema: &Value, name: &str) -> Vec<String> {
    let list = schema.get(name).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn count(schema: &Value, name: &str) -> Option<usize> {
    schema.get(name).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok())
}

fn schemas(schema: &Value, name: &str) -> Vec<Structural> {
    let list = schema.get(name).and_then(Value::as_array);
    list.into_iter().flatten().map(Structural::of).collect()
}

/// Something that is there and is not null.
pub(crate) fn present<'v>(schema: &'v Value, name: &str) -> Option<&'v Value> {
    schema.get(name).filter(|value| !value.is_null())
}

impl Structural {
    /// Reads a JSONSchemaProps. What is not structural in it has no effect.
    pub fn of(schema: &Value) -> Self {
        let int_or_string = flag(schema, "x-kubernetes-int-or-string");
        let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        Structural {
            kind: if int_or_string { Kind::Any } else { Kind::of(text(schema, "type")) },
            nullable: flag(schema, "nullable"),
            default: present(schema, "default").cloned(),
            properties: properties.map(|(name, value)| (name.clone(), Structural::of(value))).collect(),
            additional: match schema.get("additionalProperties") {
                Some(Value::Bool(allows)) => Additional::Any(*allows),
                Some(Value::Object(_)) => {
                    Additional::Schema(Box::new(Structural::of(&schema["additionalProperties"])))
                }
                _ => Additional::None,
            },
            items: schema.get("items").filter(|i| i.is_object()).map(|i| Box::new(Structural::of(i))),
            embedded: flag(schema, "x-kubernetes-embedded-resource"),
            int_or_string,
            preserve_unknown: flag(schema, "x-kubernetes-preserve-unknown-fields"),
            list_kind: match text(schema, "x-kubernetes-list-type") {
                "set" => ListKind::Set,
                "map" => ListKind::Map,
                _ => ListKind::Atomic,
            },
            list_map_keys: texts(schema, "x-kubernetes-list-map-keys"),
            atomic_map: text(schema, "x-kubernetes-map-type") == "atomic",
            checks: Checks::of(schema),
        }
    }

    /// The schema of a field, its own or that of any.
    pub fn field(&self, name: &str) -> Option<&Structural> {
        self.properties.get(name).or(match &self.additional {
            Additional::Schema(schema) => Some(schema),
            _ => None,
        })
    }
}

impl Checks {
    fn of(schema: &Value) -> Self {
        let number = |name: &str| schema.get(name).and_then(Value::as_f64);
        let pattern = Some(text(schema, "pattern")).filter(|text| !text.is_empty());
        Checks {
            format: Format::of(text(schema, "type"), text(schema, "format")),
            maximum: number("maximum"),
            exclusive_maximum: flag(schema, "exclusiveMaximum"),
            minimum: number("minimum"),
            exclusive_minimum: flag(schema, "exclusiveMinimum"),
            multiple_of: number("multipleOf"),
            max_length: count(schema, "maxLength"),
            min_length: count(schema, "minLength"),
            pattern: pattern
                .map(|pattern| Pattern { text: pattern.to_owned(), regex: compile_pattern(pattern) }),
            max_items: count(schema, "maxItems"),
            min_items: count(schema, "minItems"),
            unique_items: flag(schema, "uniqueItems"),
            max_properties: count(schema, "maxProperties"),
            min_properties: count(schema, "minProperties"),
            required: texts(schema, "required"),
            one_of_values: schema.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            all_of: schemas(schema, "allOf"),
            any_of: schemas(schema, "anyOf"),
            one_of: schemas(schema, "oneOf"),
            not: present(schema, "not").map(|not| Box::new(Structural::of(not))),
        }
    }
}

#[cfg(test)]
mod tests;
