//! [`Schema`]: what apply must know of a type, and the tables as one.

use std::borrow::Cow;

use api::tables::{self, Definition, DefinitionId, Field, ListType, Type};
use serde_json::{Map, Value};

use super::set::Element;

/// The keys of the items of a list, by name, and what each is when an item leaves it out.
pub type Keys<'s> = Vec<(Cow<'s, str>, Option<Value>)>;

/// How apply sees a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Owned as a whole, whatever it holds.
    Leaf,
    /// An object of known fields.
    Struct,
    /// An object of any keys, each owned alone.
    Map,
    /// A list of scalars, each owned alone.
    Set,
    /// A list of objects, each named by its keys and owned field by field.
    Keyed,
    /// Of no declared type: objects are maps, lists and scalars are leaves.
    Deduced,
}

/// A type, as server-side apply looks at it. The tables are one; the schema of a custom resource is another.
pub trait Schema: Clone {
    fn shape(&self) -> Shape;
    /// The type of a field of a [`Shape::Struct`]; `None` when there is none such.
    fn field(&self, name: &str) -> Option<Self>;
    /// The type of what a map or a list holds.
    fn element(&self) -> Self;
    /// The keys of a [`Shape::Keyed`] list and their defaults.
    fn keys(&self) -> Keys<'_>;
    /// What the object is before anything is written to it, as upstream's typed objects are: nobody owns what
    /// this holds for having created the object.
    fn zero(&self) -> Value {
        Value::Object(Map::new())
    }
    /// Why the value cannot be of this type, in upstream's words. Looks at this level only.
    fn check(&self, value: &Value) -> Result<(), String>;
}

/// A type of the tables.
#[derive(Clone, Copy, Debug)]
pub struct Typed {
    ty: Type,
    field: Option<&'static Field>,
}

impl Typed {
    pub fn of(definition: &'static Definition) -> Self {
        Typed { ty: Type::Object(tables::id_of(definition)), field: None }
    }

    fn definition(&self) -> Option<DefinitionId> {
        match self.ty {
            Type::Object(id) => Some(id),
            _ => None,
        }
    }
}

impl Schema for Typed {
    fn shape(&self) -> Shape {
        let atomic = self.field.is_some_and(Field::atomic_map);
        let granular = self.field.is_some_and(Field::granular_map);
        match self.ty {
            Type::Object(id) if atomic || (id.get().atomic && !granular) => Shape::Leaf,
            Type::Object(_) => Shape::Struct,
            Type::Map(_) if atomic => Shape::Leaf,
            Type::Map(_) => Shape::Map,
            Type::List(_) | Type::Strings => match self.field.map_or(ListType::Atomic, |f| f.list_type) {
                ListType::Atomic => Shape::Leaf,
                ListType::Set => Shape::Set,
                ListType::Map => Shape::Keyed,
            },
            Type::Raw | Type::Json | Type::FieldsV1 => Shape::Deduced,
            Type::SchemaOrArray | Type::SchemaOrBool | Type::SchemaOrStrings => Shape::Deduced,
            _ => Shape::Leaf,
        }
    }

    fn field(&self, name: &str) -> Option<Self> {
        let field = self.definition()?.get().field(name)?;
        Some(Typed { ty: field.ty, field: Some(field) })
    }

    fn element(&self) -> Self {
        let ty = match self.ty {
            Type::List(of) | Type::Map(of) => *of,
            Type::Strings => Type::String,
            other => other,
        };
        Typed { ty, field: None }
    }

    fn keys(&self) -> Keys<'_> {
        let element = self.element();
        let default = |key: &str| {
            let field = element.definition()?.get().field(key)?;
            if !field.default.is_empty() {
                return serde_json::from_str(field.default).ok();
            }
            // What is written even when it is zero is declared to be zero where it is left out.
            match field.ty {
                _ if field.pointer() || !field.always() => None,
                Type::String => Some("".into()),
                Type::Int32 | Type::Int64 => Some(0.into()),
                _ => None,
            }
        };
        let keys = self.field.map_or(&[][..], |f| f.map_keys);
        keys.iter().map(|key| (Cow::Borrowed(*key), default(key))).collect()
    }

    fn zero(&self) -> Value {
        let mut zero = Value::Object(Map::new());
        if let Some(id) = self.definition() {
            crate::default::fill_always(&mut zero, id.get());
        }
        zero
    }

    fn check(&self, value: &Value) -> Result<(), String> {
        check_kind(
            match self.ty {
                Type::Object(_) | Type::Map(_) => "map",
                Type::List(_) | Type::Strings => "list",
                Type::String | Type::Bytes | Type::Time | Type::MicroTime => "string",
                Type::Bool => "boolean",
                Type::Int32 | Type::Int64 | Type::Double => "numeric",
                Type::Quantity | Type::IntOrString => "scalar",
                _ => "",
            },
            value,
        )
    }
}

/// Why a value is not of that kind, in upstream's words; the empty kind takes all.
///
/// Upstream: structured-merge-diff/typed/validate.go
pub fn check_kind(kind: &str, value: &Value) -> Result<(), String> {
    let fits = match kind {
        "map" => value.is_object(),
        "list" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "numeric" => value.is_number(),
        "scalar" => !value.is_object() && !value.is_array(),
        _ => true,
    };
    if fits || value.is_null() {
        return Ok(());
    }
    Err(match kind {
        "numeric" => format!("expected numeric (int or float), got {}", go_kind(value)),
        "scalar" => format!("expected any scalar, got {}", go_plain(value)),
        "map" | "list" => format!("expected {kind}, got {}", go_plain(value)),
        kind => format!("expected {kind}, got {}", go_value(value)),
    })
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
        _ => "float64",
    }
}

/// As upstream's values print themselves.
fn go_value(value: &Value) -> String {
    match value {
        Value::String(text) => format!("&value.valueUnstructured{{Value:{text:?}}}"),
        other => format!("&value.valueUnstructured{{Value:{other}}}"),
    }
}

fn go_plain(value: &Value) -> String {
    format!("&{{{}}}", crate::strategic::go_value(value))
}

/// The path element that names an item of a list.
pub fn item_element<S: Schema>(
    schema: &S,
    keys: &Keys<'_>,
    item: &Value,
) -> Result<Element<'static>, String> {
    if schema.shape() == Shape::Set {
        return match item {
            Value::Object(_) => Err("associative lists of maps need keys".into()),
            Value::Null | Value::Array(_) => Err("invalid set element".into()),
            scalar => Ok(Element::Value(scalar.to_string().into())),
        };
    }
    let Value::Object(item) = item else {
        if item.is_null() {
            return Err("associative list with keys may not have a null element".into());
        }
        return Err("associative list with keys may not have non-map elements".into());
    };
    let mut named: Vec<(&str, &Value)> = Vec::with_capacity(keys.len());
    for (key, default) in keys {
        match item.get(&**key).filter(|v| !v.is_null()).or(default.as_ref()) {
            Some(value) => named.push((key, value)),
            None if keys.len() == 1 => {
                return Err(format!(
                    "associative list with keys has an element that omits key field {key:?} (and doesn't have default value)"
                ));
            }
            // Of several keys some may be absent, as long as one is there.
            None => {}
        }
    }
    if named.is_empty() {
        let names: Vec<String> = keys.iter().map(|(k, _)| format!("{k:?}")).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
            names.join(" ")
        ));
    }
    named.sort_unstable_by_key(|(key, _)| *key);
    let mut json = String::with_capacity(32);
    for (key, value) in named {
        json.push(if json.is_empty() { '{' } else { ',' });
        write_json(&mut json, &key);
        json.push(':');
        write_json(&mut json, value);
    }
    json.push('}');
    Ok(Element::Key(json.into()))
}

fn write_json(out: &mut String, value: &impl serde::Serialize) {
    out.push_str(&serde_json::to_string(value).unwrap_or_default());
}
