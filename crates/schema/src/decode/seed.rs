//! The serde visitor that a type of the tables directs.

use std::fmt;

use api::tables::{self, Definition, Field, Type, Wire};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::Strictness;
use super::scalar::{Misfit, Scalar, convert, go_type, is_dropped, zero};
use crate::apply::text_of_map;

const MAX_PROBLEMS: usize = 100;
/// serde_json stops at 128 itself; trees and YAML that come another way stop here.
const MAX_DEPTH: usize = 200;

/// Where the visitor is and what it found.
pub struct Context {
    report: bool,
    /// What managers own is left as JSON text: see [`crate::apply::open_owners`].
    pub owned_as_text: bool,
    path: Vec<Step>,
    /// The object types around the value, innermost last.
    structs: Vec<&'static Definition>,
    pub problems: Vec<String>,
    pub type_error: Option<String>,
}

enum Step {
    /// Of a definition.
    Field(&'static Definition, &'static Field),
    Key(String),
    Index(usize),
}

impl Context {
    pub fn new(strictness: Strictness) -> Self {
        Context {
            report: strictness == Strictness::Report,
            owned_as_text: false,
            path: Vec::new(),
            structs: Vec::new(),
            problems: Vec::new(),
            type_error: None,
        }
    }

    fn problem(&mut self, what: &str, field: &str) {
        if !self.report || self.problems.len() >= MAX_PROBLEMS {
            return;
        }
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Index(at) => path.push_str(&format!("[{at}]")),
                Step::Field(_, field) => join(&mut path, field.name),
                Step::Key(name) => join(&mut path, name),
            }
        }
        join(&mut path, field);
        let problem = format!("{what} field {path:?}");
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Records the error in Go's words; serde's own error only stops the parse.
    fn type_error<E: serde::de::Error>(&mut self, misfit: Misfit, ty: &str) -> E {
        let message = match misfit {
            Misfit::Message(message) => message,
            Misfit::Found(found) => {
                let mut fields: Vec<&str> = Vec::new();
                for step in &self.path {
                    if let Step::Field(definition, field) = step {
                        fields.extend(embedded(definition, field.name));
                        fields.push(field.name);
                    }
                }
                match self.structs.last() {
                    Some(of) if !fields.is_empty() => format!(
                        "json: cannot unmarshal {found} into Go struct field {}.{} of type {ty}",
                        of.go_name(),
                        fields.join(".")
                    ),
                    _ => format!("json: cannot unmarshal {found} into Go value of type {ty}"),
                }
            }
        };
        self.type_error.get_or_insert(message);
        E::custom("wrong type")
    }
}

/// The structs inside the definition's own, outermost first, in which Go has the field.
fn embedded(definition: &Definition, name: &str) -> Vec<&'static str> {
    let number = |of: &Definition| of.field(name).map(|field| field.number);
    if number(definition) != Some(0) {
        return Vec::new();
    }
    let inlined = definition.wire.iter().filter_map(|wire| match wire {
        Wire::Inline { definition, .. } => Some(definition.get()),
        Wire::Field(_) => None,
    });
    let Some(inner) = inlined.into_iter().find(|inner| number(inner).is_some()) else { return Vec::new() };
    [vec![inner.go_name()], embedded(inner, name)].concat()
}

fn join(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

/// Reads one value of a type. Gives `None` for null.
pub struct Seed<'c> {
    context: &'c mut Context,
    ty: Type,
    /// The root has no [`Type`], nor has a schema inside a `SchemaOr…`.
    root: Option<&'static Definition>,
    go_type: &'static str,
}

impl<'c> Seed<'c> {
    pub fn root(definition: &'static Definition, context: &'c mut Context) -> Self {
        Seed { context, ty: Type::Json, root: Some(definition), go_type: "" }
    }

    fn go_type(&self) -> String {
        match self.root {
            Some(definition) => definition.go_type().to_owned(),
            None if !self.go_type.is_empty() => self.go_type.to_owned(),
            None => go_type(self.ty),
        }
    }

    fn scalar<E: serde::de::Error>(self, scalar: Scalar<'_>) -> Result<Option<Value>, E> {
        let go_type = if self.root.is_some() { Some(self.go_type()) } else { None };
        if let Some(go_type) = go_type {
            let found = match scalar {
                Scalar::Bool(_) => "bool",
                Scalar::Text(_) => "string",
                _ => "number",
            };
            return Err(self.context.type_error(Misfit::Found(found.into()), &go_type));
        }
        match convert(self.ty, scalar) {
            Ok(value) => Ok(Some(value)),
            Err(misfit) => {
                let ty = self.go_type();
                Err(self.context.type_error(misfit, &ty))
            }
        }
    }

    fn misfit<E: serde::de::Error>(self, found: &str) -> E {
        let ty = self.go_type();
        self.context.type_error(Misfit::Found(found.into()), &ty)
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        if self.context.path.len() > MAX_DEPTH {
            self.context.type_error = Some("exceeded max depth".into());
            return Err(D::Error::custom("too deep"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.go_type())
    }

    fn visit_bool<E: serde::de::Error>(self, b: bool) -> Result<Option<Value>, E> {
        self.scalar(Scalar::Bool(b))
    }

    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Option<Value>, E> {
        self.scalar(Scalar::Int(n))
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Option<Value>, E> {
        self.scalar(i64::try_from(n).map_or(Scalar::Uint(n), Scalar::Int))
    }

    fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<Option<Value>, E> {
        self.scalar(Scalar::Float(n))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Option<Value>, E> {
        self.scalar(Scalar::Text(text))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Option<Value>, A::Error> {
        let of = match (self.root, self.ty) {
            (Some(_), _) => return Err(self.misfit("array")),
            (None, Type::List(of)) => *of,
            (None, Type::Strings | Type::SchemaOrStrings) => Type::String,
            (None, Type::Json | Type::Raw | Type::FieldsV1) => return untyped_seq(access).map(Some),
            (None, Type::SchemaOrArray) => return lenient(self.context, |c| schemas(c, access)).map(Some),
            _ => return Err(self.misfit("array")),
        };
        let element_go_type = if of == Type::String { self.go_type } else { "" };
        let mut items = Vec::new();
        loop {
            self.context.path.push(Step::Index(items.len()));
            let seed = Seed { context: self.context, ty: of, root: None, go_type: element_go_type };
            let item = access.next_element_seed(seed)?;
            self.context.path.pop();
            match item {
                None => return Ok(Some(Value::Array(items))),
                Some(item) => items.push(item.or_else(|| zero(of)).unwrap_or_default()),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Option<Value>, A::Error> {
        if let Some(definition) = self.root {
            return object(self.context, definition, access).map(Some);
        }
        match self.ty {
            Type::Object(id) => object(self.context, id.get(), access),
            Type::Map(of) => map(self.context, *of, access),
            Type::FieldsV1 if self.context.owned_as_text => text_of_map(access),
            Type::Json | Type::Raw | Type::FieldsV1 => untyped_map(access),
            Type::SchemaOrArray | Type::SchemaOrBool | Type::SchemaOrStrings => {
                lenient(self.context, |c| object(c, tables::json_schema_props(), access))
            }
            Type::Quantity | Type::Time | Type::MicroTime | Type::IntOrString => {
                let message = "json: cannot unmarshal object into Go value of type string".to_owned();
                Err(self.context.type_error(Misfit::Message(message), ""))
            }
            _ => Err(self.misfit("object")),
        }
        .map(Some)
    }
}

/// Types that decode themselves in Go do not tell of unknown fields inside them.
fn lenient<T, E>(context: &mut Context, read: impl FnOnce(&mut Context) -> Result<T, E>) -> Result<T, E> {
    let report = std::mem::replace(&mut context.report, false);
    let result = read(context);
    context.report = report;
    result
}

fn schemas<'de, A: SeqAccess<'de>>(context: &mut Context, mut access: A) -> Result<Value, A::Error> {
    let mut items = Vec::new();
    while let Some(item) = access.next_element_seed(Seed::root(tables::json_schema_props(), context))? {
        items.push(item.unwrap_or_else(|| Value::Object(Map::new())));
    }
    Ok(Value::Array(items))
}

fn object<'de, A: MapAccess<'de>>(
    context: &mut Context,
    definition: &'static Definition,
    mut access: A,
) -> Result<Value, A::Error> {
    let mut object = Map::new();
    let mut seen = 0u128;
    context.structs.push(definition);
    while let Some(key) = access.next_key_seed(FieldSeed { definition })? {
        let (at, field) = match key {
            FieldKey::Known(at) => (at, &definition.fields[at]),
            FieldKey::Unknown(name) => {
                context.problem("unknown", &name);
                access.next_value::<serde::de::IgnoredAny>()?;
                continue;
            }
        };
        let bit = 1u128.checked_shl(u32::try_from(at).unwrap_or(u32::MAX)).unwrap_or(0);
        if seen & bit != 0 {
            context.problem("duplicate", field.name);
        }
        seen |= bit;
        member(context, definition, field, &mut object, &mut access)?;
    }
    context.structs.pop();
    Ok(Value::Object(object))
}

fn member<'de, A: MapAccess<'de>>(
    context: &mut Context,
    definition: &'static Definition,
    field: &'static Field,
    object: &mut Map<String, Value>,
    access: &mut A,
) -> Result<(), A::Error> {
    context.path.push(Step::Field(definition, field));
    let seed = Seed { context, ty: field.ty, root: None, go_type: field.go_type };
    let value = access.next_value_seed(seed)?;
    context.path.pop();
    match value {
        Some(value) if !is_dropped(field, &value) => {
            object.insert(field.name.to_owned(), value);
        }
        // A null leaves what an earlier duplicate set, as Go does for most types.
        None => {}
        Some(_) => {
            object.remove(field.name);
        }
    }
    Ok(())
}

fn map<'de, A: MapAccess<'de>>(context: &mut Context, of: Type, mut access: A) -> Result<Value, A::Error> {
    let mut map = Map::new();
    while let Some(key) = access.next_key::<String>()? {
        if map.contains_key(&key) {
            context.problem("duplicate", &key);
        }
        context.path.push(Step::Key(key));
        let value = access.next_value_seed(Seed { context, ty: of, root: None, go_type: "" })?;
        if let Some(Step::Key(key)) = context.path.pop() {
            map.insert(key, value.or_else(|| zero(of)).unwrap_or_default());
        }
    }
    Ok(Value::Object(map))
}

fn untyped_map<'de, A: MapAccess<'de>>(mut access: A) -> Result<Value, A::Error> {
    let mut map = Map::new();
    while let Some((key, value)) = access.next_entry::<String, Value>()? {
        map.insert(key, value);
    }
    Ok(Value::Object(map))
}

fn untyped_seq<'de, A: SeqAccess<'de>>(mut access: A) -> Result<Value, A::Error> {
    let mut items = Vec::new();
    while let Some(item) = access.next_element::<Value>()? {
        items.push(item);
    }
    Ok(Value::Array(items))
}

/// Finds a key among the fields without keeping its text.
struct FieldSeed {
    definition: &'static Definition,
}

enum FieldKey {
    Known(usize),
    Unknown(String),
}

impl<'de> DeserializeSeed<'de> for FieldSeed {
    type Value = FieldKey;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<FieldKey, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldSeed {
    type Value = FieldKey;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<FieldKey, E> {
        Ok(match self.definition.position(name) {
            Some(at) => FieldKey::Known(at),
            None => FieldKey::Unknown(name.to_owned()),
        })
    }
}

/// Reads any value as it stands, looking for duplicate keys.
pub struct Untyped<'c> {
    pub context: &'c mut Context,
}

impl<'de> DeserializeSeed<'de> for Untyped<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.context.path.len() > MAX_DEPTH {
            return Err(D::Error::custom("recursion limit exceeded"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Untyped<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: serde::de::Error>(self, b: bool) -> Result<Value, E> {
        Ok(b.into())
    }

    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Value, E> {
        Ok(n.into())
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Value, E> {
        Ok(n.into())
    }

    fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<Value, E> {
        Ok(Scalar::Float(n).into_value())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            self.context.path.push(Step::Index(items.len()));
            let item = access.next_element_seed(Untyped { context: self.context })?;
            self.context.path.pop();
            match item {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                self.context.problem("duplicate", &key);
            }
            self.context.path.push(Step::Key(key));
            let value = access.next_value_seed(Untyped { context: self.context })?;
            if let Some(Step::Key(key)) = self.context.path.pop() {
                map.insert(key, value);
            }
        }
        Ok(Value::Object(map))
    }
}
