//! The schema of a custom kind as OpenAPI shows it to clients.
//!
//! Upstream: apiextensions-apiserver/pkg/controller/openapi/builder/builder.go buildKubeNative

use serde_json::{Map, Value, json};

use super::{flag, invariants, present, text};
use apimachinery::field::Path;

/// What every object has besides its own fields: the schemas of `apiVersion`, `kind` and `metadata`.
#[derive(Clone, Debug)]
pub struct ObjectFields {
    pub api_version: Value,
    pub kind: Value,
    pub metadata: Value,
}

/// Words of a schema that have no part in its structure.
const UNPUBLISHED: &[&str] = &["example", "externalDocs", "id", "$schema"];

/// The published form of a schema, for version 2 or 3 of OpenAPI.
///
/// A schema that is absent or not structural is shown as any object: clients would refuse fields that a schema
/// does not name.
pub fn published(schema: &Value, v2: bool, own: &ObjectFields) -> Value {
    let any = json!({"type": "object"});
    let structural = text(schema, "type") == "object"
        && invariants::unsupported(schema).is_none()
        && invariants::validate(&Path::root(), schema).is_empty();
    if !structural || (v2 && flag(schema, "x-kubernetes-preserve-unknown-fields")) {
        return any;
    }
    let mut shown = schema.clone();
    unfold(&mut shown);
    if v2 {
        down(&mut shown);
    }
    embed(&mut shown, v2, own);
    if let Value::Object(fields) = &mut shown {
        with_own(fields, own);
    }
    shown
}

fn with_own(fields: &mut Map<String, Value>, own: &ObjectFields) {
    let properties = fields.entry("properties").or_insert_with(|| json!({}));
    if let Value::Object(properties) = properties {
        properties.insert("apiVersion".into(), own.api_version.clone());
        properties.insert("kind".into(), own.kind.clone());
        properties.insert("metadata".into(), own.metadata.clone());
    }
}

fn each_child(fields: &mut Map<String, Value>, visit: &mut impl FnMut(&mut Value)) {
    for (name, value) in fields.iter_mut() {
        match (name.as_str(), value) {
            ("properties", Value::Object(properties)) => properties.values_mut().for_each(&mut *visit),
            ("items" | "additionalProperties", value @ Value::Object(_)) => visit(value),
            _ => {}
        }
    }
}

/// An int-or-string says in standard words, too, that it is one.
fn unfold(schema: &mut Value) {
    let is_int_or_string = flag(schema, "x-kubernetes-int-or-string");
    let Value::Object(fields) = schema else { return };
    UNPUBLISHED.iter().for_each(|word| drop(fields.remove(*word)));
    if is_int_or_string {
        let both = json!([{"type": "integer"}, {"type": "string"}]);
        let said = fields.get("anyOf") == Some(&both)
            || fields.get("allOf").and_then(|all| all.get(0)).and_then(|first| first.get("anyOf"))
                == Some(&both);
        match (said, fields.contains_key("anyOf")) {
            (true, _) => {}
            (false, false) => drop(fields.insert("anyOf".into(), both)),
            (false, true) => {
                let all = fields.entry("allOf").or_insert_with(|| json!([]));
                if let Value::Array(all) = all {
                    all.insert(0, json!({"anyOf": both}));
                }
            }
        }
    }
    each_child(fields, &mut unfold);
}

/// Version 2 lacks some of version 3's words: what holds them becomes untyped.
///
/// Upstream: apiextensions-apiserver/pkg/controller/openapi/v2/conversion.go ToStructuralOpenAPIV2
fn down(schema: &mut Value) {
    let (nullable, preserves) =
        (flag(schema, "nullable"), flag(schema, "x-kubernetes-preserve-unknown-fields"));
    let Value::Object(fields) = schema else { return };
    for word in ["allOf", "anyOf", "oneOf", "not", "nullable"] {
        fields.remove(word);
    }
    if nullable {
        fields.remove("type");
    }
    if nullable || preserves {
        fields.remove("items");
        fields.remove("properties");
    }
    let kind = fields.get("type").and_then(Value::as_str);
    if (kind == Some("array") && !fields.contains_key("items")) || (kind == Some("object") && preserves) {
        fields.remove("type");
    }
    let nullable_field = |name: &str| {
        fields.get("properties").and_then(|p| p.get(name)).is_some_and(|field| flag(field, "nullable"))
    };
    if let Some(Value::Array(required)) = fields.get("required") {
        let any_nullable =
            fields.get("additionalProperties").is_some_and(|additional| flag(additional, "nullable"));
        let kept: Vec<Value> = required
            .iter()
            .filter(|name| !any_nullable && !nullable_field(name.as_str().unwrap_or_default()))
            .cloned()
            .collect();
        match kept.is_empty() {
            true => drop(fields.remove("required")),
            false => drop(fields.insert("required".into(), kept.into())),
        }
    }
    each_child(fields, &mut down);
}

/// Embedded objects have a kind and metadata, whatever their schema names.
fn embed(schema: &mut Value, v2: bool, own: &ObjectFields) {
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let open = v2 && flag(schema, "x-kubernetes-preserve-unknown-fields");
    let Value::Object(fields) = schema else { return };
    each_child(fields, &mut |child| embed(child, v2, own));
    if !embedded || open {
        return;
    }
    with_own(fields, own);
    let required = fields.entry("required").or_insert_with(|| json!([]));
    if let Value::Array(required) = required {
        for name in ["kind", "apiVersion"] {
            if !required.iter().any(|known| known == name) {
                required.push(name.into());
            }
        }
    }
}

/// Whether a schema says anything of its objects.
pub fn is_declared(schema: &Value) -> bool {
    present(schema, "type").is_some()
}
