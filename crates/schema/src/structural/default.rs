//! Defaults that a schema declares, and nulls that it does not allow.
//!
//! Upstream: apiextensions-apiserver/pkg/apiserver/schema/defaulting

use serde_json::Value;

use super::{Additional, Structural};

/// Sets what is absent, or null where null is not allowed, to its default; defaults within defaults too.
pub fn apply(value: &mut Value, schema: &Structural) {
    match value {
        Value::Object(fields) => {
            for (name, property) in &schema.properties {
                let Some(default) = &property.default else { continue };
                let unset = fields.get(name).is_none_or(|value| value.is_null() && !property.nullable);
                if unset {
                    fields.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in fields.iter_mut() {
                let Some(field) = schema.field(name) else { continue };
                // What has a default of its own was set above.
                if let (true, false, Additional::Schema(_), Some(default)) =
                    (value.is_null(), field.nullable, &schema.additional, &field.default)
                {
                    *value = default.clone();
                }
                apply(value, field);
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return };
            for item in items {
                if let (true, false, Some(default)) = (item.is_null(), schema.nullable, &schema.default) {
                    *item = default.clone();
                }
                apply(item, schema);
            }
        }
        _ => {}
    }
}

/// Takes fields away that are null where null is not allowed, and that no default will fill.
pub fn drop_nulls(value: &mut Value, schema: Option<&Structural>) {
    match value {
        Value::Object(fields) => fields.retain(|name, value| {
            let field = schema.and_then(|schema| schema.field(name));
            if value.is_null() && field.is_some_and(|field| !field.nullable && field.default.is_none()) {
                return false;
            }
            drop_nulls(value, field);
            true
        }),
        Value::Array(items) => {
            let schema = schema.and_then(|schema| schema.items.as_deref());
            items.iter_mut().for_each(|item| drop_nulls(item, schema));
        }
        _ => {}
    }
}
