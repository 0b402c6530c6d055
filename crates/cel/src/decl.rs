//! [`DeclType`]: a schema as CEL sees it. It gives the checker a [`Type`], the cost estimate the largest sizes
//! that data of the schema may have, and the evaluator the meaning of JSON.
//!
//! Upstream: apiserver/pkg/cel/common/schemas.go SchemaDeclType, apiserver/pkg/cel/types.go

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::escape;
use crate::types::{ObjectType, Type};

/// The largest request that the server takes, which bounds every size that a schema leaves open.
const MAX_REQUEST_BYTES: u64 = 3 * 1024 * 1024;
const MIN_STRING_BYTES: u64 = 2;
const MIN_BOOL_BYTES: u64 = 4;
const MIN_NUMBER_BYTES: u64 = 1;
const MAX_DURATION_BYTES: u64 = 32;
const MIN_DURATION_BYTES: u64 = 3;
const MAX_DATE_TIME_BYTES: u64 = 32;
const MIN_DATE_TIME_BYTES: u64 = 21;
const DATE_BYTES: u64 = 12;

/// A schema that CEL can see.
#[derive(Clone, Debug)]
pub struct DeclType {
    pub kind: DeclKind,
    /// The most characters, items or entries that a value may have; none for what has no size.
    pub max_elements: u64,
    /// The fewest bytes that a value takes in JSON.
    pub min_serialized_size: u64,
    pub nullable: bool,
    cel_type: Type,
}

/// What a [`DeclType`] is made of.
#[derive(Clone, Debug)]
pub enum DeclKind {
    Scalar,
    /// A text or a whole number; of type dyn.
    IntOrString,
    List(Box<DeclType>, ListKind),
    Map(Box<DeclType>),
    /// Fields by their CEL identifiers.
    Object(BTreeMap<String, DeclField>),
}

/// How items of a list are told apart, which decides what `==` and `+` mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    /// By these properties.
    Map(Vec<String>),
}

/// One field of an object.
#[derive(Clone, Debug)]
pub struct DeclField {
    /// The name in JSON.
    pub name: String,
    pub decl: DeclType,
    pub required: bool,
}

/// How often data of at least this many bytes fits into one request: the cardinality of a rule below an unbounded
/// list or map.
///
/// Upstream: apiextensions-apiserver/pkg/apiserver/schema/cel/compilation.go maxCardinality
pub fn maximum_cardinality(min_serialized_size: u64) -> u64 {
    MAX_REQUEST_BYTES / (min_serialized_size + 1)
}

impl DeclType {
    /// The declaration of an OpenAPI schema (JSON, of a structural schema), or nothing when CEL cannot see it.
    /// `resource_root` is said of the root of a custom resource, where `apiVersion`, `kind` and the names in
    /// `metadata` are always visible.
    pub fn from_schema(schema: &Json, resource_root: bool) -> Option<DeclType> {
        let nullable = flag(schema, "nullable");
        let mut decl = visible(schema, resource_root || flag(schema, "x-kubernetes-embedded-resource"))?;
        decl.nullable = nullable;
        Some(decl)
    }

    /// The same declaration with names for the object types that have none yet: this one for its own type,
    /// `name.field` for the types of its fields.
    ///
    /// Upstream: apiserver/pkg/cel/types.go MaybeAssignTypeName
    pub fn named(mut self, name: &str) -> DeclType {
        self.kind = match self.kind {
            DeclKind::Object(fields) => {
                let fields: BTreeMap<String, DeclField> = fields
                    .into_iter()
                    .map(|(key, field)| {
                        let decl = field.decl.named(&format!("{name}.{key}"));
                        (key, DeclField { decl, ..field })
                    })
                    .collect();
                self.cel_type = object_type(name, &fields);
                DeclKind::Object(fields)
            }
            DeclKind::List(items, kind) => {
                let items = items.named(&format!("{name}.@idx"));
                self.cel_type = Type::list(items.cel_type.clone());
                DeclKind::List(Box::new(items), kind)
            }
            DeclKind::Map(values) => {
                let values = values.named(&format!("{name}.@elem"));
                self.cel_type = Type::map(Type::String, values.cel_type.clone());
                DeclKind::Map(Box::new(values))
            }
            other => other,
        };
        self
    }

    /// What the checker knows of values of it.
    pub fn cel_type(&self) -> &Type {
        &self.cel_type
    }

    fn scalar(cel_type: Type, max_elements: u64, min_serialized_size: u64) -> DeclType {
        DeclType { kind: DeclKind::Scalar, max_elements, min_serialized_size, nullable: false, cel_type }
    }

    fn list(items: DeclType, kind: ListKind, max_elements: u64) -> DeclType {
        let cel_type = Type::list(items.cel_type.clone());
        let kind = DeclKind::List(Box::new(items), kind);
        DeclType { kind, max_elements, min_serialized_size: 2, nullable: false, cel_type }
    }

    fn map(values: DeclType, max_elements: u64) -> DeclType {
        let cel_type = Type::map(Type::String, values.cel_type.clone());
        let kind = DeclKind::Map(Box::new(values));
        DeclType { kind, max_elements, min_serialized_size: 2, nullable: false, cel_type }
    }

    fn object(fields: BTreeMap<String, DeclField>, min_serialized_size: u64) -> DeclType {
        let cel_type = object_type("object", &fields);
        let kind = DeclKind::Object(fields);
        DeclType { kind, max_elements: 0, min_serialized_size, nullable: false, cel_type }
    }

    /// The declaration below this one: a field by its identifier, `@items`, `@values` or `@keys`.
    pub(crate) fn step(&self, step: &str) -> Option<Step<'_>> {
        match (&self.kind, step) {
            (DeclKind::List(items, _), "@items") => Some(Step::Into(items)),
            (DeclKind::Map(values), "@values" | "@items") => Some(Step::Into(values)),
            (DeclKind::Map(_), "@keys") => Some(Step::Keys),
            (DeclKind::Object(fields), name) => fields.get(name).map(|field| Step::Into(&field.decl)),
            _ => None,
        }
    }
}

/// Where one step of a path leads.
pub(crate) enum Step<'a> {
    Into(&'a DeclType),
    /// Keys of a map, whose size is not declared.
    Keys,
}

fn object_type(name: &str, fields: &BTreeMap<String, DeclField>) -> Type {
    let fields = fields.iter().map(|(key, field)| (key.clone(), field.decl.cel_type.clone())).collect();
    Type::Object(Arc::new(ObjectType { name: name.to_owned(), fields, open: false }))
}

fn flag(schema: &Json, key: &str) -> bool {
    schema.get(key).and_then(Json::as_bool).unwrap_or_default()
}

/// A declared limit; what is negative is none at all.
fn limit(schema: &Json, key: &str) -> Option<u64> {
    let number = schema.get(key)?;
    number.as_u64().or_else(|| number.as_i64().map(|_| 0)).or_else(|| number.as_f64().map(|f| f as u64))
}

fn visible(schema: &Json, resource_root: bool) -> Option<DeclType> {
    if flag(schema, "x-kubernetes-int-or-string") {
        let max = limit(schema, "maxLength").map_or(MAX_REQUEST_BYTES - 2, |length| length.saturating_mul(4));
        let scalar = DeclType::scalar(Type::Dyn, max, 1);
        return Some(DeclType { kind: DeclKind::IntOrString, ..scalar });
    }
    match schema.get("type").and_then(Json::as_str)? {
        "array" => array(schema),
        "object" => object(schema, resource_root),
        "string" => Some(string(schema)),
        "boolean" => Some(DeclType::scalar(Type::Bool, 0, MIN_BOOL_BYTES)),
        "number" => Some(DeclType::scalar(Type::Double, 0, MIN_NUMBER_BYTES)),
        "integer" => Some(DeclType::scalar(Type::Int, 0, MIN_NUMBER_BYTES)),
        _ => None,
    }
}

fn array(schema: &Json) -> Option<DeclType> {
    let items = DeclType::from_schema(schema.get("items")?, false)?;
    let max = limit(schema, "maxItems")
        .unwrap_or_else(|| (MAX_REQUEST_BYTES - 2) / (items.min_serialized_size + 1));
    let kind = match schema.get("x-kubernetes-list-type").and_then(Json::as_str) {
        Some("set") => ListKind::Set,
        Some("map") => {
            let keys = schema.get("x-kubernetes-list-map-keys").and_then(Json::as_array);
            ListKind::Map(keys.into_iter().flatten().filter_map(Json::as_str).map(str::to_owned).collect())
        }
        _ => ListKind::Atomic,
    };
    Some(DeclType::list(items, kind, max))
}

fn object(schema: &Json, resource_root: bool) -> Option<DeclType> {
    if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
        let values = DeclType::from_schema(values, false)?;
        let max = limit(schema, "maxProperties")
            .unwrap_or_else(|| (MAX_REQUEST_BYTES - 2) / (values.min_serialized_size + 6));
        return Some(DeclType::map(values, max));
    }
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Json::as_array)
        .into_iter()
        .flatten()
        .filter_map(Json::as_str)
        .collect();
    let mut fields = BTreeMap::new();
    let mut bytes = 2u64;
    for (name, property) in schema.get("properties").and_then(Json::as_object).into_iter().flatten() {
        let Some(decl) = DeclType::from_schema(property, false) else { continue };
        let required = required.contains(&name.as_str());
        if required && property.get("default").is_none() {
            bytes = bytes.saturating_add(name.len() as u64 + decl.min_serialized_size + 4);
        }
        if let Some(identifier) = escape(name) {
            fields.insert(identifier, DeclField { name: name.clone(), decl, required });
        }
    }
    if resource_root {
        add_object_meta(&mut fields);
    }
    Some(DeclType::object(fields, bytes))
}

/// Upstream: apiserver/pkg/cel/common/schemas.go WithTypeAndObjectMeta
fn add_object_meta(fields: &mut BTreeMap<String, DeclField>) {
    let text = |name: &str| {
        let decl = DeclType::scalar(Type::String, MAX_REQUEST_BYTES - 2, MIN_STRING_BYTES);
        (name.to_owned(), DeclField { name: name.to_owned(), decl, required: false })
    };
    let is_text = |fields: &BTreeMap<String, DeclField>, name: &str| {
        fields.get(name).is_some_and(|field| field.decl.cel_type == Type::String)
    };
    let complete = is_text(fields, "kind")
        && is_text(fields, "apiVersion")
        && matches!(fields.get("metadata").map(|field| &field.decl.kind), Some(DeclKind::Object(meta))
            if is_text(meta, "name") && is_text(meta, "generateName"));
    if complete {
        return;
    }
    let metadata = DeclType::object([text("name"), text("generateName")].into(), 2);
    fields.extend([text("kind"), text("apiVersion")]);
    let field = DeclField { name: "metadata".to_owned(), decl: metadata, required: false };
    fields.insert("metadata".to_owned(), field);
}

fn string(schema: &Json) -> DeclType {
    let max_length = limit(schema, "maxLength");
    match schema.get("format").and_then(Json::as_str).unwrap_or_default() {
        "byte" => {
            DeclType::scalar(Type::Bytes, max_length.unwrap_or(MAX_REQUEST_BYTES - 2), MIN_STRING_BYTES)
        }
        "duration" => DeclType::scalar(Type::Duration, MAX_DURATION_BYTES, MIN_DURATION_BYTES),
        "date" => DeclType::scalar(Type::Timestamp, DATE_BYTES, DATE_BYTES),
        "date-time" => DeclType::scalar(Type::Timestamp, MAX_DATE_TIME_BYTES, MIN_DATE_TIME_BYTES),
        _ => {
            let choices = schema.get("enum").and_then(Json::as_array).filter(|choices| !choices.is_empty());
            let longest = choices.map(|all| {
                all.iter().filter_map(Json::as_str).map(|choice| choice.len() as u64).max().unwrap_or(0)
            });
            // A length is told in characters, which may take four bytes each.
            let declared = max_length.map(|length| length.saturating_mul(4)).or(longest);
            DeclType::scalar(Type::String, declared.unwrap_or(MAX_REQUEST_BYTES - 2), MIN_STRING_BYTES)
        }
    }
}
