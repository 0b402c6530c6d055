//! Objects as CBOR: the deterministic encoding of RFC 8949, after the tag that says what it is.
//!
//! Text is written as byte strings, bytes (base64 in JSON) as byte strings that say so by tag 22. What comes in
//! may be text in either form, of definite or indefinite length; nothing is allocated on the word of a length.
//!
//! Upstream: apimachinery/pkg/runtime/serializer/cbor/internal/modes/{encode,decode}.go

use api::tables::{Definition, DefinitionId, Type, id_of};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minicbor::data::{Tag, Type as Item};
use minicbor::{Decoder, Encoder};
use serde_json::{Map, Number, Value};

use crate::Error;

/// `55799`: what follows is CBOR.
const SELF_DESCRIBED: &[u8] = &[0xd9, 0xd9, 0xf7];
/// Bytes that JSON holds as base64.
const BASE64: u64 = 22;
/// As deep as an object may be in any form.
const MAX_DEPTH: usize = 200;

/// Whether bytes say of themselves that they are CBOR.
pub fn is_cbor(bytes: &[u8]) -> bool {
    bytes.starts_with(SELF_DESCRIBED)
}

/// An object, or what there is no definition for.
pub fn encode(value: &Value, definition: Option<&'static Definition>) -> Vec<u8> {
    let mut out = SELF_DESCRIBED.to_vec();
    write(&mut out, value, definition.map(|definition| Type::Object(id_of(definition))));
    out
}

/// A list whose items have a definition, whether or not the list has one.
pub fn encode_list(list: &Value, of: &'static Definition) -> Vec<u8> {
    let mut out = SELF_DESCRIBED.to_vec();
    let item = Type::Object(id_of(of));
    let Value::Object(fields) = list else { return encode(list, None) };
    put(&mut out, |e| drop(e.map(fields.len() as u64)));
    for name in in_order(fields) {
        put(&mut out, |e| drop(e.bytes(name.as_bytes())));
        match &fields[name] {
            Value::Array(items) => {
                put(&mut out, |e| drop(e.array(items.len() as u64)));
                items.iter().for_each(|value| write(&mut out, value, Some(item)));
            }
            other => write(&mut out, other, None),
        }
    }
    out
}

/// An event of a watch around an encoded object.
pub fn watch_event(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut out = SELF_DESCRIBED.to_vec();
    put(&mut out, |e| drop(e.map(2).and_then(|e| e.bytes(b"type")).and_then(|e| e.bytes(kind.as_bytes()))));
    put(&mut out, |e| drop(e.bytes(b"object")));
    out.extend_from_slice(object);
    out
}

/// The names in the bytewise order of their encoding: the shorter first, for their length stands before them.
fn in_order(fields: &Map<String, Value>) -> Vec<&String> {
    let mut names: Vec<&String> = fields.keys().collect();
    names.sort_by(|a, b| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
    names
}

/// Writing to memory cannot fail.
fn put(out: &mut Vec<u8>, write: impl FnOnce(&mut Encoder<&mut Vec<u8>>)) {
    write(&mut Encoder::new(out));
}

fn write(out: &mut Vec<u8>, value: &Value, ty: Option<Type>) {
    match value {
        Value::Null => put(out, |e| drop(e.null())),
        Value::Bool(flag) => put(out, |e| drop(e.bool(*flag))),
        Value::Number(number) => write_number(out, number),
        Value::String(text) => match (ty, STANDARD.decode(text)) {
            (Some(Type::Bytes), Ok(bytes)) => {
                put(out, |e| drop(e.tag(Tag::new(BASE64)).and_then(|e| e.bytes(&bytes))));
            }
            _ => put(out, |e| drop(e.bytes(text.as_bytes()))),
        },
        Value::Array(items) => {
            let of = match ty {
                Some(Type::List(of)) => Some(*of),
                _ => None,
            };
            put(out, |e| drop(e.array(items.len() as u64)));
            items.iter().for_each(|item| write(out, item, of));
        }
        Value::Object(fields) => {
            put(out, |e| drop(e.map(fields.len() as u64)));
            for name in in_order(fields) {
                put(out, |e| drop(e.bytes(name.as_bytes())));
                write(out, &fields[name], field_type(ty, name));
            }
        }
    }
}

fn field_type(ty: Option<Type>, name: &str) -> Option<Type> {
    match ty? {
        Type::Object(id) => DefinitionId::get(id).field(name).map(|field| field.ty),
        Type::Map(of) => Some(*of),
        _ => None,
    }
}

fn write_number(out: &mut Vec<u8>, number: &Number) {
    if let Some(whole) = number.as_i64() {
        return put(out, |e| drop(e.i64(whole)));
    }
    if let Some(whole) = number.as_u64() {
        return put(out, |e| drop(e.u64(whole)));
    }
    let double = number.as_f64().unwrap_or_default();
    // The narrowest float that holds the number.
    #[expect(clippy::cast_possible_truncation, reason = "checked by the way back")]
    let single = double as f32;
    if f64::from(single) != double {
        return put(out, |e| drop(e.f64(double)));
    }
    let mut half = Vec::new();
    put(&mut half, |e| drop(e.f16(single)));
    if Decoder::new(&half).f16().is_ok_and(|back| back == single) {
        out.extend_from_slice(&half);
    } else {
        put(out, |e| drop(e.f32(single)));
    }
}

/// Any object. Keys that come twice are an error, as every decoder of upstream's has it.
pub fn decode(bytes: &[u8]) -> Result<Value, Error> {
    let mut decoder = Decoder::new(bytes);
    let value = read(&mut decoder, 0).map_err(|problem| Error::Syntax(problem.to_string()))?;
    if decoder.position() < bytes.len() {
        let extra = bytes.len() - decoder.position();
        return Err(Error::Syntax(format!(
            "cbor: {extra} bytes of extraneous data starting at index {}",
            decoder.position()
        )));
    }
    Ok(value)
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("cbor: {0}")]
    Codec(#[from] minicbor::decode::Error),
    #[error("cbor: {0}")]
    Other(String),
}

fn refuse<T>(why: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::Other(why.into()))
}

fn read(decoder: &mut Decoder<'_>, depth: usize) -> Result<Value, Problem> {
    if depth > MAX_DEPTH {
        return refuse(format!("exceeded max nested level {MAX_DEPTH}"));
    }
    Ok(match decoder.datatype()? {
        Item::Null => {
            decoder.null()?;
            Value::Null
        }
        Item::Bool => decoder.bool()?.into(),
        Item::U8 | Item::U16 | Item::U32 | Item::U64 | Item::I8 | Item::I16 | Item::I32 | Item::I64 => {
            decoder.i64()?.into()
        }
        Item::F16 => double(f64::from(decoder.f16()?))?,
        Item::F32 => double(f64::from(decoder.f32()?))?,
        Item::F64 => double(decoder.f64()?)?,
        Item::Bytes | Item::BytesIndef | Item::String | Item::StringIndef => text(decoder)?.into(),
        Item::Array | Item::ArrayIndef => {
            let length = decoder.array()?;
            let mut items = Vec::new();
            while more(decoder, length, items.len())? {
                items.push(read(decoder, depth + 1)?);
            }
            Value::Array(items)
        }
        Item::Map | Item::MapIndef => {
            let length = decoder.map()?;
            let mut fields = Map::new();
            while more(decoder, length, fields.len())? {
                let name = text(decoder)?;
                let value = read(decoder, depth + 1)?;
                if fields.contains_key(&name) {
                    return refuse(format!(
                        "found duplicate map key {name:?} at map element index {}",
                        fields.len()
                    ));
                }
                fields.insert(name, value);
            }
            Value::Object(fields)
        }
        Item::Tag => match decoder.tag()?.as_u64() {
            BASE64 => match decoder.datatype()? {
                Item::Bytes | Item::BytesIndef => STANDARD.encode(bytes(decoder)?).into(),
                _ => return refuse("tag 22 encloses something that is no byte string"),
            },
            2 | 3 => return refuse("bignum cannot be decoded"),
            _ => read(decoder, depth + 1)?,
        },
        other => return refuse(format!("{other} is not supported")),
    })
}

/// Whether another item follows: by the length that was told, or until the break.
fn more(decoder: &mut Decoder<'_>, length: Option<u64>, read: usize) -> Result<bool, Problem> {
    match length {
        Some(length) => Ok((read as u64) < length),
        None if decoder.datatype()? == Item::Break => {
            decoder.skip()?;
            Ok(false)
        }
        None => Ok(true),
    }
}

fn double(value: f64) -> Result<Value, Problem> {
    match Number::from_f64(value) {
        Some(number) => Ok(Value::Number(number)),
        None => refuse("floating-point NaN or infinity is not allowed"),
    }
}

fn bytes(decoder: &mut Decoder<'_>) -> Result<Vec<u8>, Problem> {
    let mut all = Vec::new();
    for chunk in decoder.bytes_iter()? {
        all.extend_from_slice(chunk?);
    }
    Ok(all)
}

fn text(decoder: &mut Decoder<'_>) -> Result<String, Problem> {
    match decoder.datatype()? {
        Item::Bytes | Item::BytesIndef => match String::from_utf8(bytes(decoder)?) {
            Ok(text) => Ok(text),
            Err(_) => refuse("invalid UTF-8 string"),
        },
        Item::String | Item::StringIndef => {
            let mut all = String::new();
            for chunk in decoder.str_iter()? {
                all.push_str(chunk?);
            }
            Ok(all)
        }
        other => refuse(format!("cannot unmarshal {other} into a string")),
    }
}

#[cfg(test)]
mod tests {
    use api::tables;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_encoding_is_the_shortest_and_sorted() {
        let value = json!({"bb": 1, "a": [true, null, -1, 1.5, 100_000.0, 0.1], "c": "x"});
        let mut expected = SELF_DESCRIBED.to_vec();
        expected.extend_from_slice(b"\xa3\x41a\x86\xf5\xf6\x20\xf9\x3e\x00\xfa\x47\xc3\x50\x00");
        expected.extend_from_slice(b"\xfb\x3f\xb9\x99\x99\x99\x99\x99\x9a\x41c\x41x\x42bb\x01");
        assert_eq!(encode(&value, None), expected);
        assert_eq!(decode(&expected).unwrap(), value);
    }

    #[test]
    fn bytes_are_base64_only_in_json() {
        let secret = json!({"data": {"k": "AQID"}, "type": "Opaque"});
        let encoded = encode(&secret, tables::kind("", "v1", "Secret"));
        assert!(encoded.windows(5).any(|part| part == b"\xd6\x43\x01\x02\x03"));
        assert_eq!(decode(&encoded).unwrap(), secret);
    }

    #[test]
    fn what_cannot_be_is_refused_at_once() {
        let check = |bytes: &[u8], why: &str| {
            let error = decode(bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{bytes:x?}: {error}");
        };
        check(b"\xa2\x41a\x01\x61a\x02", "duplicate map key \"a\"");
        check(&[0x81; 10_000], "exceeded max nested level");
        check(b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff", "cbor: ");
        check(b"\xf9\x7e\x00", "NaN");
        check(b"\xc2\x41\x01", "bignum");
        check(b"\x01\x01", "extraneous");
        check(b"\x41\xff", "UTF-8");
        assert_eq!(decode(b"\xbf\x7f\x61a\x61b\xff\x9f\x01\xff\xff").unwrap(), json!({"ab": [1]}));
    }
}
