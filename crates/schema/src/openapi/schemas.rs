//! The schemas of definitions, gathered as operations refer to them.

use std::collections::BTreeMap;

use api::tables::{self, Definition, Field, ListType, Type};
use serde_json::{Map, Value, json};

use super::{Dialect, Kind};

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const APIEXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

pub struct Schemas {
    pub dialect: Dialect,
    schemas: BTreeMap<String, Value>,
}

impl Schemas {
    pub fn new(dialect: Dialect) -> Self {
        Schemas { dialect, schemas: BTreeMap::new() }
    }

    pub fn finish(self) -> Map<String, Value> {
        self.schemas.into_iter().collect()
    }

    /// A reference to a kind of the tables; any object when they do not know it.
    pub fn kind(&mut self, group: &str, version: &str, kind: &str) -> Value {
        match tables::kind(group, version, kind) {
            Some(definition) => self.definition(definition),
            None => json!({"type": "object"}),
        }
    }

    pub fn meta(&mut self, name: &str) -> Value {
        match tables::definition(&format!("{META}.{name}")) {
            Some(definition) => self.definition(definition),
            None if name == "Patch" => self.plain(format!("{META}.Patch"), json!({"type": "object"})),
            None => json!({"type": "object"}),
        }
    }

    /// References to a served kind and to its list.
    pub fn served(&mut self, kind: &Kind) -> (Value, Value) {
        let Some(schema) = &kind.schema else {
            return (
                self.kind(&kind.group, &kind.version, &kind.kind),
                self.kind(&kind.group, &kind.version, &format!("{}List", kind.kind)),
            );
        };
        let mut reversed: Vec<&str> = kind.group.split('.').collect();
        reversed.reverse();
        let name = format!("{}.{}.{}", reversed.join("."), kind.version, kind.kind);
        let schema = self.custom(kind, schema);
        let item = self.plain(name.clone(), schema);
        let list_meta = self.meta("ListMeta");
        let list_kind = format!("{}List", kind.kind);
        let list = json!({
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": list_meta,
                "items": {"type": "array", "items": item.clone()},
            },
            "x-kubernetes-group-version-kind": [gvk(&kind.group, &kind.version, &list_kind)],
        });
        (item, self.plain(format!("{name}List"), list))
    }

    /// A custom resource's schema with what every object has.
    fn custom(&mut self, kind: &Kind, schema: &Value) -> Value {
        let mut schema = schema.clone();
        let meta = self.meta("ObjectMeta");
        if self.dialect == Dialect::V2 {
            down_to_v2(&mut schema);
        }
        if let Value::Object(schema) = &mut schema {
            schema.insert("type".into(), "object".into());
            schema.insert(
                "x-kubernetes-group-version-kind".into(),
                json!([gvk(&kind.group, &kind.version, &kind.kind)]),
            );
            let properties = schema.entry("properties").or_insert_with(|| json!({}));
            if let Value::Object(properties) = properties {
                properties.insert("apiVersion".into(), json!({"type": "string"}));
                properties.insert("kind".into(), json!({"type": "string"}));
                properties.insert("metadata".into(), meta);
            }
        }
        schema
    }

    fn plain(&mut self, name: String, schema: Value) -> Value {
        let reference = self.reference(&name);
        self.schemas.entry(name).or_insert(schema);
        reference
    }

    fn reference(&self, name: &str) -> Value {
        match self.dialect {
            Dialect::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Dialect::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }

    fn definition(&mut self, definition: &'static Definition) -> Value {
        let reference = self.reference(definition.name);
        if self.schemas.contains_key(definition.name) {
            return reference;
        }
        // The place is taken before the fields are looked at: some types hold themselves.
        self.schemas.insert(definition.name.to_owned(), Value::Null);
        let mut schema = Map::new();
        schema.insert("type".into(), "object".into());
        let properties: Map<String, Value> =
            definition.fields.iter().map(|f| (f.name.to_owned(), self.property(f))).collect();
        if !properties.is_empty() {
            schema.insert("properties".into(), Value::Object(properties));
        }
        let required: Vec<&str> = definition.fields.iter().filter(|f| f.required()).map(|f| f.name).collect();
        if !required.is_empty() {
            schema.insert("required".into(), json!(required));
        }
        if let Some(k) = definition.gvk {
            schema.insert("x-kubernetes-group-version-kind".into(), json!([gvk(k.group, k.version, k.kind)]));
        }
        if definition.atomic {
            schema.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        self.schemas.insert(definition.name.to_owned(), Value::Object(schema));
        reference
    }

    fn property(&mut self, field: &Field) -> Value {
        let mut schema = self.of_type(field.ty);
        let mut extra = Map::new();
        if matches!(field.ty, Type::List(_) | Type::Strings) && field.name != "items" {
            let list_type = match field.list_type {
                ListType::Atomic => "atomic",
                ListType::Set => "set",
                ListType::Map => "map",
            };
            extra.insert("x-kubernetes-list-type".into(), list_type.into());
            if !field.map_keys.is_empty() {
                extra.insert("x-kubernetes-list-map-keys".into(), json!(field.map_keys));
            }
        }
        if field.atomic_map() {
            extra.insert("x-kubernetes-map-type".into(), "atomic".into());
        } else if field.granular_map() {
            extra.insert("x-kubernetes-map-type".into(), "granular".into());
        }
        if !field.patch_strategy.is_empty() {
            extra.insert("x-kubernetes-patch-strategy".into(), field.patch_strategy.into());
        }
        if !field.patch_merge_key.is_empty() {
            extra.insert("x-kubernetes-patch-merge-key".into(), field.patch_merge_key.into());
        }
        // Upstream's version 2 has no defaults.
        if self.dialect == Dialect::V3 {
            if let Ok(default) = serde_json::from_str::<Value>(field.default) {
                extra.insert("default".into(), default);
            } else if matches!(field.ty, Type::Object(_)) && !field.pointer() {
                extra.insert("default".into(), json!({}));
            }
        }
        if extra.is_empty() {
            return schema;
        }
        // In version 3 a reference stands alone.
        if self.dialect == Dialect::V3 && schema.get("$ref").is_some() {
            schema = json!({"allOf": [schema]});
        }
        if let Value::Object(schema) = &mut schema {
            schema.append(&mut extra);
        }
        schema
    }

    fn of_type(&mut self, ty: Type) -> Value {
        let v2 = self.dialect == Dialect::V2;
        match ty {
            Type::String => json!({"type": "string"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::Bool => json!({"type": "boolean"}),
            Type::Int32 => json!({"type": "integer", "format": "int32"}),
            Type::Int64 => json!({"type": "integer", "format": "int64"}),
            Type::Double => json!({"type": "number", "format": "double"}),
            Type::List(of) => json!({"type": "array", "items": self.of_type(*of)}),
            Type::Strings => json!({"type": "array", "items": {"type": "string"}}),
            Type::Map(of) => json!({"type": "object", "additionalProperties": self.of_type(*of)}),
            Type::Object(id) => self.definition(id.get()),
            Type::Quantity if v2 => self.plain(QUANTITY.into(), json!({"type": "string"})),
            Type::Quantity => {
                self.plain(QUANTITY.into(), json!({"oneOf": [{"type": "string"}, {"type": "number"}]}))
            }
            Type::IntOrString if v2 => {
                self.plain(INT_OR_STRING.into(), json!({"type": "string", "format": "int-or-string"}))
            }
            Type::IntOrString => self.plain(
                INT_OR_STRING.into(),
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
            ),
            Type::Time => {
                self.plain(format!("{META}.Time"), json!({"type": "string", "format": "date-time"}))
            }
            Type::MicroTime => {
                self.plain(format!("{META}.MicroTime"), json!({"type": "string", "format": "date-time"}))
            }
            Type::Raw => self.plain(RAW.into(), json!({"type": "object"})),
            Type::FieldsV1 => self.plain(format!("{META}.FieldsV1"), json!({"type": "object"})),
            Type::Json => self.plain(format!("{APIEXTENSIONS}.JSON"), json!({})),
            Type::SchemaOrArray => self.plain(format!("{APIEXTENSIONS}.JSONSchemaPropsOrArray"), json!({})),
            Type::SchemaOrBool => self.plain(format!("{APIEXTENSIONS}.JSONSchemaPropsOrBool"), json!({})),
            Type::SchemaOrStrings => {
                self.plain(format!("{APIEXTENSIONS}.JSONSchemaPropsOrStringArray"), json!({}))
            }
        }
    }
}

pub fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// Version 2 lacks some of version 3's words: what holds them becomes untyped, as upstream makes it.
// Upstream: apiextensions-apiserver/pkg/controller/openapi/v2/conversion.go ToStructuralOpenAPIV2
fn down_to_v2(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    for word in ["allOf", "anyOf", "oneOf", "not", "x-kubernetes-validations", "default"] {
        map.remove(word);
    }
    let flag = |map: &Map<String, Value>, name: &str| map.get(name) == Some(&Value::Bool(true));
    let untyped = flag(map, "nullable")
        || flag(map, "x-kubernetes-int-or-string")
        || flag(map, "x-kubernetes-preserve-unknown-fields");
    if map.remove("nullable").is_some() || untyped {
        map.remove("type");
        map.remove("properties");
        map.remove("items");
    }
    for (name, value) in map.iter_mut() {
        match (name.as_str(), value) {
            ("properties", Value::Object(properties)) => properties.values_mut().for_each(down_to_v2),
            ("items" | "additionalProperties", value) => down_to_v2(value),
            _ => {}
        }
    }
}
