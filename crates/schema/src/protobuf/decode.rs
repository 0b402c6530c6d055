//! A message to its tree.

use api::tables::{self, Definition, Field, Type, Wire};
use apimachinery::{GroupVersionKind, time};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value};

use super::wire::{Raw, Reader};
use super::{PREFIX, lookup, open};
use crate::Error;
use crate::decode::{canonical_quantity, is_dropped};

const MAX_DEPTH: usize = 128;

pub fn body(bytes: &[u8], depth: usize) -> Result<(GroupVersionKind, Value), Error> {
    let envelope = open(bytes)?;
    let (kind, definition) = lookup(&envelope)?;
    let mut object = object(envelope.message, definition, depth)?;
    object.insert("apiVersion".into(), envelope.api_version.into());
    object.insert("kind".into(), envelope.kind.into());
    Ok((kind, Value::Object(object)))
}

pub fn object(
    message: &[u8],
    definition: &'static Definition,
    depth: usize,
) -> Result<Map<String, Value>, Error> {
    let mut object = Map::new();
    fill(&mut object, message, definition, depth)?;
    Ok(object)
}

fn fill(
    object: &mut Map<String, Value>,
    message: &[u8],
    definition: &'static Definition,
    depth: usize,
) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::Protobuf("exceeded max depth".into()));
    }
    let mut reader = Reader::new(message);
    while let Some((number, raw)) = reader.next()? {
        let entry = definition.wire.binary_search_by_key(&number, |w| match w {
            Wire::Field(at) => definition.fields[usize::from(*at)].number,
            Wire::Inline { number, .. } => *number,
        });
        // Newer clients may know more fields than we do.
        let Ok(entry) = entry else { continue };
        match definition.wire[entry] {
            Wire::Field(at) => member(object, &definition.fields[usize::from(at)], raw, depth)?,
            Wire::Inline { definition, .. } => fill(object, raw.bytes()?, definition.get(), depth + 1)?,
        }
    }
    Ok(())
}

fn member(
    object: &mut Map<String, Value>,
    field: &'static Field,
    raw: Raw<'_>,
    depth: usize,
) -> Result<(), Error> {
    match field.ty {
        Type::List(of) => {
            let item = value(raw, *of, depth)?;
            match object.get_mut(field.name) {
                Some(Value::Array(items)) => items.push(item),
                _ => drop(object.insert(field.name.to_owned(), Value::Array(vec![item]))),
            }
        }
        Type::Map(of) => {
            let (key, item) = map_entry(raw.bytes()?, *of, depth)?;
            match object.get_mut(field.name) {
                Some(Value::Object(map)) => map.insert(key, item),
                _ => object.insert(field.name.to_owned(), Value::Object(Map::from_iter([(key, item)]))),
            };
        }
        ty => {
            let value = value(raw, ty, depth)?;
            if is_dropped(field, &value) {
                object.remove(field.name);
            } else {
                object.insert(field.name.to_owned(), value);
            }
        }
    }
    Ok(())
}

fn map_entry(entry: &[u8], of: Type, depth: usize) -> Result<(String, Value), Error> {
    let mut key = String::new();
    let mut item = None;
    let mut reader = Reader::new(entry);
    while let Some((number, raw)) = reader.next()? {
        match number {
            1 => key = raw.text()?.to_owned(),
            2 => item = Some(value(raw, of, depth)?),
            _ => {}
        }
    }
    let item = match item {
        Some(item) => item,
        None if of == Type::String => "".into(),
        None => value(Raw::Bytes(&[]), of, depth)?,
    };
    Ok((key, item))
}

fn value(raw: Raw<'_>, ty: Type, depth: usize) -> Result<Value, Error> {
    Ok(match ty {
        Type::String => raw.text()?.into(),
        Type::Bytes => STANDARD.encode(raw.bytes()?).into(),
        Type::Bool => (raw.int()? != 0).into(),
        // Go keeps the low 32 bits.
        Type::Int32 => (raw.int()? as i32).into(),
        Type::Int64 => raw.int()?.into(),
        Type::Double => Number::from_f64(raw.double()?).map_or(Value::Null, Value::Number),
        Type::Quantity => quantity(raw.bytes()?)?,
        Type::IntOrString => int_or_string(raw.bytes()?)?,
        Type::Time => match timestamp(raw.bytes()?)? {
            None => Value::Null,
            Some((seconds, _)) => time::rfc3339(seconds).into(),
        },
        Type::MicroTime => match timestamp(raw.bytes()?)? {
            None => Value::Null,
            Some((seconds, nanos)) => time::rfc3339_micro(seconds, nanos).into(),
        },
        Type::Object(id) => Value::Object(object(raw.bytes()?, id.get(), depth + 1)?),
        Type::Strings => {
            let mut items = Vec::new();
            each(raw.bytes()?, |number, raw| {
                if number == 1 {
                    items.push(raw.text()?.into());
                }
                Ok(())
            })?;
            Value::Array(items)
        }
        Type::Raw | Type::Json | Type::FieldsV1 => extension(raw.bytes()?, depth)?,
        Type::SchemaOrArray | Type::SchemaOrBool | Type::SchemaOrStrings => {
            schema_or(raw.bytes()?, ty, depth)?
        }
        Type::List(_) | Type::Map(_) => {
            return Err(Error::Protobuf("lists of lists are not supported".into()));
        }
    })
}

fn each<'a>(
    message: &'a [u8],
    mut visit: impl FnMut(u32, Raw<'a>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut reader = Reader::new(message);
    while let Some((number, raw)) = reader.next()? {
        visit(number, raw)?;
    }
    Ok(())
}

/// The content of a RawExtension, or of the like message for any JSON.
pub fn extension(message: &[u8], depth: usize) -> Result<Value, Error> {
    let mut json = Value::Null;
    each(message, |number, raw| {
        if number == 1 {
            json = content(raw.bytes()?, depth + 1)?;
        }
        Ok(())
    })?;
    Ok(json)
}

/// What a RawExtension holds: JSON, or a whole body.
fn content(bytes: &[u8], depth: usize) -> Result<Value, Error> {
    if depth > MAX_DEPTH {
        return Err(Error::Protobuf("exceeded max depth".into()));
    }
    if bytes.starts_with(PREFIX) {
        return body(bytes, depth + 1).map(|(_, object)| object);
    }
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes).map_err(|e| Error::Protobuf(format!("json: {e}")))
}

fn quantity(message: &[u8]) -> Result<Value, Error> {
    let mut text = "";
    each(message, |number, raw| {
        if number == 1 {
            text = raw.text()?;
        }
        Ok(())
    })?;
    let text = if text.is_empty() { "0" } else { text };
    canonical_quantity(text).map(Value::String).map_err(Error::Protobuf)
}

fn int_or_string(message: &[u8]) -> Result<Value, Error> {
    let (mut is_text, mut int, mut text) = (false, 0, "");
    each(message, |number, raw| {
        match number {
            1 => is_text = raw.int()? == 1,
            2 => int = raw.int()? as i32,
            3 => text = raw.text()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(if is_text { text.into() } else { int.into() })
}

/// Seconds and nanoseconds; `None` for Go's zero time, which is an empty message.
fn timestamp(message: &[u8]) -> Result<Option<(i64, i32)>, Error> {
    let (mut seconds, mut nanos) = (0, 0);
    each(message, |number, raw| {
        match number {
            1 => seconds = raw.int()?,
            2 => nanos = raw.int()? as i32,
            _ => {}
        }
        Ok(())
    })?;
    Ok((seconds != 0 || nanos != 0).then_some((seconds, nanos.clamp(0, 999_999_999))))
}

fn schema_or(message: &[u8], ty: Type, depth: usize) -> Result<Value, Error> {
    let mut allows = false;
    let mut schema = None;
    let mut items = Vec::new();
    let props = |bytes| object(bytes, tables::json_schema_props(), depth + 1).map(Value::Object);
    each(message, |number, raw| {
        match (ty, number) {
            (Type::SchemaOrBool, 1) => allows = raw.int()? != 0,
            (Type::SchemaOrBool, 2) | (_, 1) => schema = Some(props(raw.bytes()?)?),
            (Type::SchemaOrArray, 2) => items.push(props(raw.bytes()?)?),
            (Type::SchemaOrStrings, 2) => items.push(raw.text()?.into()),
            _ => {}
        }
        Ok(())
    })?;
    Ok(match (schema, ty) {
        (Some(schema), _) => schema,
        (None, Type::SchemaOrBool) => allows.into(),
        (None, _) => Value::Array(items),
    })
}
