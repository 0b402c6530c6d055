//! From JSON to values, and back.

use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value as Json;

use super::{List, Map, Text, Value};
use crate::decl::{DeclKind, DeclType};
use crate::error::EvalError;
use crate::library::time;
use crate::types::Type;

pub(super) fn untyped(json: &Json) -> Value<'_> {
    match json {
        Json::Null => Value::Null,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => Value::Int(whole),
            None => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(Text::Borrowed(text)),
        Json::Array(items) => Value::List(List::Json(items, None)),
        Json::Object(entries) => Value::Map(Map::Json(entries, None)),
    }
}

pub(super) fn items_of(decl: Option<&DeclType>) -> Option<&DeclType> {
    match decl.map(|decl| &decl.kind) {
        Some(DeclKind::List(items, _)) => Some(items),
        _ => None,
    }
}

pub(super) fn child<'a>(json: &'a Json, decl: Option<&'a DeclType>) -> Result<Value<'a>, EvalError> {
    match decl {
        Some(decl) => typed(json, decl),
        None => Ok(untyped(json)),
    }
}

/// Upstream: apiserver/pkg/cel/common/valuesunstructured.go UnstructuredToVal
pub(super) fn typed<'a>(json: &'a Json, decl: &'a DeclType) -> Result<Value<'a>, EvalError> {
    let wrong = |what: &'static str| Err(EvalError::new(what));
    if json.is_null() {
        return if decl.nullable {
            Ok(Value::Null)
        } else {
            wrong("invalid data, got null for schema with nullable=false")
        };
    }
    match (&decl.kind, json) {
        (DeclKind::IntOrString, Json::String(_)) => Ok(untyped(json)),
        (DeclKind::IntOrString, Json::Number(number)) if number.is_i64() => Ok(untyped(json)),
        (DeclKind::IntOrString, _) => {
            wrong("invalid data, expected XIntOrString value to be either a string or integer")
        }
        (DeclKind::List(..), Json::Array(items)) => Ok(Value::List(List::Json(items, Some(decl)))),
        (DeclKind::List(..), _) => {
            wrong("invalid data, expected an array for the provided schema with type=array")
        }
        (DeclKind::Map(_) | DeclKind::Object(_), Json::Object(entries)) => {
            Ok(Value::Map(Map::Json(entries, Some(decl))))
        }
        (DeclKind::Map(_) | DeclKind::Object(_), _) => {
            wrong("invalid data, expected a map for the provided schema with type=object")
        }
        (DeclKind::Scalar, json) => scalar(json, decl.cel_type()),
    }
}

fn scalar<'a>(json: &'a Json, ty: &Type) -> Result<Value<'a>, EvalError> {
    let wrong = |expected: &str| {
        let got = match json {
            Json::Bool(_) => "bool",
            Json::Number(number) if number.is_i64() => "int64",
            Json::Number(_) => "float64",
            Json::String(_) => "string",
            Json::Array(_) => "[]interface {}",
            _ => "map[string]interface {}",
        };
        EvalError::new(format!("invalid data, expected {expected}, got {got}"))
    };
    match ty {
        Type::Bool => json.as_bool().map(Value::Bool).ok_or_else(|| wrong("bool")),
        Type::Int => json.as_i64().map(Value::Int).ok_or_else(|| wrong("int")),
        Type::Double => json.as_f64().map(Value::Double).ok_or_else(|| wrong("float")),
        _ => {
            let text = json.as_str().ok_or_else(|| wrong("string"))?;
            match ty {
                Type::Duration => time::parse_api_duration(text).map(Value::Duration).ok_or_else(|| {
                    EvalError::new(format!("Invalid duration {text}: unable to parse {text} as duration"))
                }),
                Type::Timestamp => time::parse_api_moment(text)
                    .map(Value::Timestamp)
                    .ok_or_else(|| EvalError::new(format!("Invalid date-time formatted string {text}"))),
                Type::Bytes => STANDARD.decode(text).map(Value::bytes).map_err(|error| {
                    EvalError::new(format!("Invalid byte formatted string {text}: {error}"))
                }),
                _ => Ok(Value::String(Text::Borrowed(text))),
            }
        }
    }
}

/// Upstream: apiserver/pkg/cel/mutation/dynamic/objects.go ConvertToNative
pub(super) fn to_json(value: &Value<'_>) -> Result<Json, EvalError> {
    let list = |items: Vec<Json>| Ok(Json::Array(items));
    match value {
        Value::Null | Value::Optional(None) => Ok(Json::Null),
        Value::Bool(flag) => Ok(Json::Bool(*flag)),
        Value::Int(number) => Ok(Json::from(*number)),
        Value::Uint(number) => Ok(Json::from(*number)),
        Value::Double(number) => Ok(Json::from(*number)),
        Value::String(text) => Ok(Json::from(&**text)),
        Value::Bytes(bytes) => Ok(Json::from(STANDARD.encode(bytes))),
        Value::Duration(_) => Ok(Json::from(time::format_duration(value))),
        Value::Timestamp(moment) => Ok(Json::from(moment.to_string())),
        Value::List(List::Json(items, _)) => list(items.to_vec()),
        Value::List(items) => {
            list(items.iter().map(|item| to_json(&item?)).collect::<Result<Vec<_>, EvalError>>()?)
        }
        Value::Map(Map::Json(entries, _)) => Ok(Json::Object((*entries).clone())),
        Value::Map(Map::Entries(entries)) => {
            let entry = |(key, value): (&super::Key, &Value<'_>)| match key {
                super::Key::String(key) => Ok((key.to_string(), to_json(value)?)),
                other => Err(EvalError::new(format!("map key \"{other}\" is not a string"))),
            };
            Ok(Json::Object(entries.iter().map(entry).collect::<Result<_, EvalError>>()?))
        }
        Value::Optional(Some(held)) => to_json(held),
        Value::Object(object) => {
            let field = |(key, value): (&String, &Value<'_>)| Ok((key.clone(), to_json(value)?));
            Ok(Json::Object(object.fields.iter().map(field).collect::<Result<_, EvalError>>()?))
        }
        Value::Extension(extension) => extension
            .to_text()
            .map(Json::from)
            .ok_or_else(|| EvalError::new(format!("unsupported conversion of {}", extension.type_name()))),
        Value::Type(_) | Value::Dynamic(_) => Err(EvalError::new("unsupported conversion to JSON")),
    }
}

/// A text that is kept beside what it was cut from.
impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Text::Shared(Rc::from(text))
    }
}
