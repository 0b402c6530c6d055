//! [`Value`]: what an expression computes. Lists, maps and objects of JSON stay where they are and are read as
//! their [`DeclType`] says, or as they come where there is none.

mod equality;
mod json;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value as Json;

use crate::decl::{DeclKind, DeclType, ListKind};
use crate::error::EvalError;
use crate::library::Extension;
use crate::types::{OPTIONAL, Type};

pub(crate) use equality::{contains, equal};

/// A value, which may borrow from the data that it was read from.
#[derive(Clone)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Rc<[u8]>),
    /// In nanoseconds.
    Duration(i64),
    Timestamp(Timestamp),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Rc<Value<'a>>>),
    Type(Type),
    /// `Object{…}` or `JSONPatch{…}`.
    Object(Rc<ObjectValue<'a>>),
    /// Fields that are computed when they are asked for.
    Dynamic(Rc<dyn Dynamic<'a> + 'a>),
    /// A value of a library: a quantity, an address, an authorizer.
    Extension(Extension<'a>),
}

/// An object whose fields are computed when they are asked for, such as the `variables` of a policy.
pub trait Dynamic<'a> {
    /// The field, or nothing when there is none of this name.
    fn field(&self, name: &str) -> Option<Result<Value<'a>, EvalError>>;
}

/// A text.
#[derive(Clone)]
pub enum Text<'a> {
    Borrowed(&'a str),
    Shared(Rc<str>),
    /// A literal of an expression, which outlives its evaluation.
    Literal(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Text::Borrowed(text) => text,
            Text::Shared(text) => text,
            Text::Literal(text) => text,
        }
    }
}

/// A list: JSON where it lies, or values that were computed.
#[derive(Clone)]
pub enum List<'a> {
    Json(&'a [Json], Option<&'a DeclType>),
    Values(Rc<Vec<Value<'a>>>),
    /// Computed, of a list declared as a set or a map.
    Declared(Rc<Vec<Value<'a>>>, &'a DeclType),
    /// One list after another, and how long both are. How deep these lie in each other is bounded by the
    /// expression.
    Concat(Rc<(List<'a>, List<'a>)>, usize),
}

/// How many items are copied to the end of a list that nobody else holds.
const COPIED: usize = 64;

/// A map or an object: JSON where it lies, or entries that were computed.
#[derive(Clone)]
pub enum Map<'a> {
    Json(&'a serde_json::Map<String, Json>, Option<&'a DeclType>),
    Entries(Rc<BTreeMap<Key, Value<'a>>>),
}

/// A key of a map. Signed and unsigned numbers that are equal are one key.
#[derive(Clone)]
pub enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Rc<str>),
}

/// An object that an expression constructed.
pub struct ObjectValue<'a> {
    pub name: Rc<str>,
    pub fields: BTreeMap<String, Value<'a>>,
}

impl Text<'_> {
    pub fn to_shared(&self) -> Rc<str> {
        match self {
            Text::Shared(text) => text.clone(),
            other => Rc::from(&**other),
        }
    }
}

impl<'a> Value<'a> {
    /// JSON without a schema.
    pub fn json(json: &'a Json) -> Self {
        json::untyped(json)
    }

    /// JSON of a declared type. A null becomes null and a wrong value an error where it is read.
    pub fn typed(json: &'a Json, decl: &'a DeclType) -> Result<Self, EvalError> {
        json::typed(json, decl)
    }

    pub fn string(text: impl Into<Rc<str>>) -> Self {
        Value::String(Text::Shared(text.into()))
    }

    pub fn bytes(bytes: impl Into<Rc<[u8]>>) -> Self {
        Value::Bytes(bytes.into())
    }

    pub fn list(items: Vec<Value<'a>>) -> Self {
        Value::List(List::Values(Rc::new(items)))
    }

    pub fn some(value: Value<'a>) -> Self {
        Value::Optional(Some(Rc::new(value)))
    }

    pub fn none() -> Self {
        Value::Optional(None)
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// The value as JSON, for what an expression computed to be written into an object.
    pub fn to_json(&self) -> Result<Json, EvalError> {
        json::to_json(self)
    }

    /// The type as `type(value)` tells it; parameters of lists and maps are not told.
    pub fn type_of(&self) -> Type {
        match self {
            Value::Null => Type::Null,
            Value::Bool(_) => Type::Bool,
            Value::Int(_) => Type::Int,
            Value::Uint(_) => Type::Uint,
            Value::Double(_) => Type::Double,
            Value::String(_) => Type::String,
            Value::Bytes(_) => Type::Bytes,
            Value::Duration(_) => Type::Duration,
            Value::Timestamp(_) => Type::Timestamp,
            Value::List(_) => Type::list(Type::Dyn),
            Value::Map(_) | Value::Dynamic(_) => Type::map(Type::Dyn, Type::Dyn),
            Value::Optional(_) => Type::Opaque(OPTIONAL, vec![Type::Dyn]),
            Value::Type(_) => Type::Type(None),
            Value::Object(object) => Type::object(&object.name, []),
            Value::Extension(extension) => Type::Opaque(extension.type_name(), Vec::new()),
        }
    }

    /// The number of characters, bytes, items or entries; one of what has no size.
    pub fn size(&self) -> u64 {
        match self {
            Value::String(text) => text.chars().count() as u64,
            Value::Bytes(bytes) => bytes.len() as u64,
            Value::List(list) => list.len() as u64,
            Value::Map(map) => map.len() as u64,
            Value::Extension(extension) => extension.size(),
            Value::Optional(Some(held)) => held.size(),
            _ => 1,
        }
    }

    /// Whether it is the zero value of its type, which `optional.ofNonZeroValue` leaves out.
    pub(crate) fn is_zero(&self) -> bool {
        match self {
            Value::Null | Value::Optional(None) => true,
            Value::Bool(flag) => !flag,
            Value::Int(number) => *number == 0,
            Value::Uint(number) => *number == 0,
            Value::Double(number) => *number == 0.0,
            Value::String(text) => text.is_empty(),
            Value::Bytes(bytes) => bytes.is_empty(),
            Value::Duration(nanoseconds) => *nanoseconds == 0,
            Value::List(list) => list.is_empty(),
            Value::Map(map) => map.is_empty(),
            Value::Object(object) => object.fields.is_empty(),
            _ => false,
        }
    }

    /// The order of two values, if there is one. Numbers of all types compare by amount.
    pub(crate) fn compare(&self, other: &Value<'_>) -> Option<Ordering> {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            (Value::String(a), Value::String(b)) => Some((**a).cmp(&**b)),
            (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
            (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
            (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
            _ => equality::compare_numbers(self, other),
        }
    }
}

impl<'a> List<'a> {
    pub fn len(&self) -> usize {
        match self {
            List::Json(items, _) => items.len(),
            List::Values(items) | List::Declared(items, _) => items.len(),
            List::Concat(_, length) => *length,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, index: usize) -> Option<Result<Value<'a>, EvalError>> {
        match self {
            List::Json(items, decl) => items.get(index).map(|item| json::child(item, json::items_of(*decl))),
            List::Values(items) | List::Declared(items, _) => items.get(index).cloned().map(Ok),
            List::Concat(both, _) => match index.checked_sub(both.0.len()) {
                None => both.0.get(index),
                Some(index) => both.1.get(index),
            },
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Result<Value<'a>, EvalError>> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// The list's declaration when it is one of a set or a map.
    pub(crate) fn declaration(&self) -> Option<&'a DeclType> {
        match self {
            List::Json(_, decl) => *decl,
            List::Values(_) | List::Concat(..) => None,
            List::Declared(_, decl) => Some(decl),
        }
    }

    /// This list and then the other: a union of sets, a merge of lists by key.
    pub(crate) fn concat(self, other: &List<'a>) -> Result<List<'a>, EvalError> {
        let kind = self.declaration().map(|decl| (decl, &decl.kind));
        if let Some((decl, DeclKind::List(_, kind))) = kind
            && *kind != ListKind::Atomic
        {
            return equality::merge(&self, other, kind).map(|items| List::Declared(Rc::new(items), decl));
        }
        let length = self.len().saturating_add(other.len());
        if let List::Values(mut items) = self {
            if let (Some(items), true) = (Rc::get_mut(&mut items), other.len() <= COPIED) {
                for item in other.iter() {
                    items.push(item?);
                }
            } else {
                return Ok(List::Concat(Rc::new((List::Values(items), other.clone())), length));
            }
            return Ok(List::Values(items));
        }
        Ok(List::Concat(Rc::new((self, other.clone())), length))
    }
}

impl<'a> Map<'a> {
    pub fn len(&self) -> usize {
        match self {
            Map::Json(entries, _) => entries.len(),
            Map::Entries(entries) => entries.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a key. The key of an object with declared fields is the field's identifier.
    pub fn get(&self, key: &Key) -> Option<Result<Value<'a>, EvalError>> {
        match self {
            Map::Json(entries, decl) => {
                let Key::String(key) = key else { return None };
                match decl.map(|decl| &decl.kind) {
                    None => entries.get(&**key).map(|value| Ok(json::untyped(value))),
                    Some(DeclKind::Object(fields)) => {
                        let field = fields.get(&**key)?;
                        let value = entries.get(&field.name).filter(|value| !value.is_null())?;
                        Some(json::typed(value, &field.decl))
                    }
                    Some(DeclKind::Map(values)) => {
                        entries.get(&**key).map(|value| json::typed(value, values))
                    }
                    Some(_) => None,
                }
            }
            Map::Entries(entries) => entries.get(key).cloned().map(Ok),
        }
    }

    pub fn keys(&self) -> Vec<Key> {
        match self {
            Map::Json(entries, Some(DeclType { kind: DeclKind::Object(fields), .. })) => fields
                .iter()
                .filter(|(_, field)| entries.contains_key(&field.name))
                .map(|(key, _)| Key::String(Rc::from(key.as_str())))
                .collect(),
            Map::Json(entries, _) => entries.keys().map(|key| Key::String(Rc::from(key.as_str()))).collect(),
            Map::Entries(entries) => entries.keys().cloned().collect(),
        }
    }
}

impl Key {
    /// The key that a value makes, if it may be one.
    pub fn from_value(value: &Value<'_>) -> Option<Self> {
        match value {
            Value::Bool(flag) => Some(Key::Bool(*flag)),
            Value::Int(number) => Some(Key::Int(*number)),
            Value::Uint(number) => Some(Key::Uint(*number)),
            Value::String(text) => Some(Key::String(text.to_shared())),
            // A double finds the whole number that it equals.
            Value::Double(number) if number.fract() == 0.0 && number.abs() < 9.2e18 => {
                Some(Key::Int(*number as i64))
            }
            _ => None,
        }
    }

    pub fn to_value<'a>(&self) -> Value<'a> {
        match self {
            Key::Bool(flag) => Value::Bool(*flag),
            Key::Int(number) => Value::Int(*number),
            Key::Uint(number) => Value::Uint(*number),
            Key::String(text) => Value::String(Text::Shared(text.clone())),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Bool(flag) => write!(f, "{flag}"),
            Key::Int(number) => write!(f, "{number}"),
            Key::Uint(number) => write!(f, "{number}"),
            Key::String(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Optional(None) => f.write_str("optional.none()"),
            Value::Optional(Some(held)) => write!(f, "optional.of({held:?})"),
            Value::String(text) => write!(f, "{:?}", &**text),
            Value::Uint(number) => write!(f, "{number}u"),
            Value::Double(number) => write!(f, "{number:?}"),
            Value::Bytes(bytes) => write!(f, "b{:?}", String::from_utf8_lossy(bytes)),
            Value::Duration(_) => f.write_str(&crate::library::time::format_duration(self)),
            Value::Timestamp(moment) => write!(f, "{moment}"),
            Value::Type(ty) => write!(f, "type({})", ty.runtime_name()),
            Value::List(list) => {
                f.debug_list().entries(list.iter().map(|item| item.unwrap_or(Value::Null))).finish()
            }
            Value::Map(map) => {
                let entry = |key: Key| (key.to_string(), map.get(&key).and_then(Result::ok));
                f.debug_map()
                    .entries(map.keys().into_iter().map(entry).filter_map(|(key, value)| Some((key, value?))))
                    .finish()
            }
            Value::Object(object) => write!(f, "{}{:?}", object.name, object.fields),
            Value::Dynamic(_) => f.write_str("{…}"),
            Value::Extension(extension) => write!(f, "{extension:?}"),
            other => write!(f, "{}", other.to_json().unwrap_or_default()),
        }
    }
}
