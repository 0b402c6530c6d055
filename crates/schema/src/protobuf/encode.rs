//! A tree to its message. Everything is written from the last field to the first.

use api::tables::{self, Definition, Type, Wire};
use apimachinery::time;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::wire::Backward;
use crate::Error;

pub fn object(
    out: &mut Backward,
    object: &Map<String, Value>,
    definition: &'static Definition,
) -> Result<(), Error> {
    for wire in definition.wire.iter().rev() {
        match wire {
            Wire::Field(at) => {
                let field = &definition.fields[usize::from(*at)];
                match object.get(field.name) {
                    None | Some(Value::Null) => {}
                    Some(value) => encode(out, field.number, value, field.ty)
                        .map_err(|e| in_field(e, definition.go_name(), field.name))?,
                }
            }
            Wire::Inline { number, definition } => {
                let start = out.len();
                self::object(out, object, definition.get())?;
                out.close(*number, start);
            }
        }
    }
    Ok(())
}

fn in_field(error: Error, definition: &str, field: &str) -> Error {
    match error {
        Error::Type(found) => Error::Protobuf(format!("{definition}.{field}: {found}")),
        other => other,
    }
}

fn misfit(value: &Value, ty: Type) -> Error {
    Error::Type(format!("cannot write {value} as {ty:?}"))
}

fn encode(out: &mut Backward, number: u32, value: &Value, ty: Type) -> Result<(), Error> {
    let bad = || misfit(value, ty);
    match (ty, value) {
        (Type::String, Value::String(text)) => out.string(number, text),
        (Type::Bytes, Value::String(text)) => {
            out.string_bytes(number, &STANDARD.decode(text).map_err(|_| bad())?);
        }
        (Type::Bool, Value::Bool(b)) => out.int(number, i64::from(*b)),
        (Type::Int32 | Type::Int64, Value::Number(n)) => out.int(number, n.as_i64().ok_or_else(bad)?),
        (Type::Double, Value::Number(n)) => out.double(number, n.as_f64().ok_or_else(bad)?),
        (Type::Quantity, Value::String(text)) => nested(out, number, |out| {
            out.string(1, text);
            Ok(())
        })?,
        (Type::IntOrString, _) => int_or_string(out, number, value)?,
        (Type::Time, Value::String(text)) => {
            let at = time::parse(text).ok_or_else(bad)?;
            timestamp(out, number, at.as_second(), 0);
        }
        (Type::MicroTime, Value::String(text)) => {
            let at = time::parse(text).ok_or_else(bad)?;
            let nanos = at.subsec_nanosecond();
            timestamp(out, number, at.as_second(), i64::from(nanos - nanos % 1000));
        }
        // Only maps and lists hold nulls: Go's zero times, and extensions without content.
        (Type::Time | Type::MicroTime | Type::Raw | Type::Json, Value::Null) => {
            nested(out, number, |_| Ok(()))?
        }
        (Type::Object(id), Value::Object(map)) => nested(out, number, |out| object(out, map, id.get()))?,
        (Type::List(of), Value::Array(items)) => {
            for item in items.iter().rev() {
                encode(out, number, item, *of)?;
            }
        }
        (Type::Strings, Value::Array(items)) => nested(out, number, |out| {
            items.iter().rev().try_for_each(|item| encode(out, 1, item, Type::String))
        })?,
        (Type::Map(of), Value::Object(map)) => {
            for (key, value) in map.iter().rev() {
                nested(out, number, |out| {
                    encode(out, 2, value, *of)?;
                    out.string(1, key);
                    Ok(())
                })?;
            }
        }
        (Type::Raw | Type::Json | Type::FieldsV1, _) => {
            let json = serde_json::to_vec(value).map_err(|_| bad())?;
            nested(out, number, |out| {
                out.string_bytes(1, &json);
                Ok(())
            })?;
        }
        (Type::SchemaOrArray | Type::SchemaOrBool | Type::SchemaOrStrings, _) => {
            schema_or(out, number, value, ty)?
        }
        _ => return Err(bad()),
    }
    Ok(())
}

fn nested(
    out: &mut Backward,
    number: u32,
    write: impl FnOnce(&mut Backward) -> Result<(), Error>,
) -> Result<(), Error> {
    let start = out.len();
    write(out)?;
    out.close(number, start);
    Ok(())
}

fn timestamp(out: &mut Backward, number: u32, seconds: i64, nanos: i64) {
    let start = out.len();
    out.int(2, nanos);
    out.int(1, seconds);
    out.close(number, start);
}

fn int_or_string(out: &mut Backward, number: u32, value: &Value) -> Result<(), Error> {
    let (kind, int, text) = match value {
        Value::Number(n) => (0, n.as_i64().ok_or_else(|| misfit(value, Type::IntOrString))?, ""),
        Value::String(text) => (1, 0, text.as_str()),
        _ => return Err(misfit(value, Type::IntOrString)),
    };
    nested(out, number, |out| {
        out.string(3, text);
        out.int(2, int);
        out.int(1, kind);
        Ok(())
    })
}

fn schema_or(out: &mut Backward, number: u32, value: &Value, ty: Type) -> Result<(), Error> {
    let schema = |out: &mut Backward, number, map| {
        nested(out, number, |out| object(out, map, tables::json_schema_props()))
    };
    nested(out, number, |out| match (ty, value) {
        (Type::SchemaOrBool, Value::Bool(allows)) => {
            out.int(1, i64::from(*allows));
            Ok(())
        }
        (Type::SchemaOrBool, Value::Object(map)) => {
            schema(out, 2, map)?;
            out.int(1, 1);
            Ok(())
        }
        (_, Value::Object(map)) => schema(out, 1, map),
        (Type::SchemaOrArray, Value::Array(items)) => items.iter().rev().try_for_each(|item| match item {
            Value::Object(map) => schema(out, 2, map),
            _ => Err(misfit(item, ty)),
        }),
        (Type::SchemaOrStrings, Value::Array(items)) => {
            items.iter().rev().try_for_each(|item| encode(out, 2, item, Type::String))
        }
        _ => Err(misfit(value, ty)),
    })
}
