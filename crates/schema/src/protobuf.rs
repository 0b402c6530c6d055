//! Objects as protobuf: the messages that the tables describe, inside upstream's envelope.
//!
//! A body is `k8s\0` and a `runtime.Unknown` that names the kind and holds the object's message. [`message`]
//! and [`envelope`] make the two parts, so that a server can keep an object's message and put it into
//! envelopes, lists ([`list`]) and watch frames ([`watch_frame`]) without encoding it again.
//!
//! Upstream: apimachinery/pkg/runtime/serializer/protobuf/protobuf.go

mod decode;
mod encode;
pub(crate) mod wire;

use api::tables::{self, Definition};
use apimachinery::{GroupVersion, GroupVersionKind};
use serde_json::Value;

use crate::Error;
use wire::{Backward, Reader};

/// What every body starts with.
pub const PREFIX: &[u8] = b"k8s\0";

/// The message of an object, without the envelope.
pub fn message(object: &Value, definition: &'static Definition) -> Result<Vec<u8>, Error> {
    let Value::Object(object) = object else {
        return Err(Error::Protobuf(format!("{} is not an object", definition.go_name())));
    };
    let mut out = Backward::default();
    encode::object(&mut out, object, definition)?;
    Ok(out.finish())
}

/// A message in its envelope: a whole body.
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut out = Backward::with_capacity(message.len() + api_version.len() + kind.len() + 32);
    // Upstream always writes the content type and encoding, which are empty.
    out.string(4, "");
    out.string(3, "");
    out.string_bytes(2, message);
    let start = out.len();
    out.string(2, kind);
    out.string(1, api_version);
    out.close(1, start);
    out.raw(PREFIX);
    out.finish()
}

/// A whole body of an object that has its `apiVersion` and `kind`.
pub fn encode(object: &Value, definition: &'static Definition) -> Result<Vec<u8>, Error> {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    Ok(envelope(text("apiVersion"), text("kind"), &message(object, definition)?))
}

/// The message of a list: its metadata, and the messages of its items.
pub fn list<'a>(
    metadata: &Value,
    items: impl DoubleEndedIterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, Error> {
    let mut out = Backward::default();
    for item in items.rev() {
        out.string_bytes(2, item);
    }
    let list_meta = tables::definition("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta");
    let start = out.len();
    if let (Value::Object(metadata), Some(list_meta)) = (metadata, list_meta) {
        encode::object(&mut out, metadata, list_meta)?;
    }
    out.close(1, start);
    Ok(out.finish())
}

/// A frame of a watch stream: its length in four bytes, and a WatchEvent that holds a whole body.
pub fn watch_frame(event_type: &str, body: &[u8]) -> Vec<u8> {
    let mut out = Backward::with_capacity(body.len() + event_type.len() + 32);
    let start = out.len();
    out.string_bytes(1, body);
    out.close(2, start);
    out.string(1, event_type);
    let length = u32::try_from(out.len()).unwrap_or(u32::MAX);
    out.raw(&length.to_be_bytes());
    out.finish()
}

/// The parts of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub message: &'a [u8],
    /// `application/json` when the message is JSON; empty for protobuf.
    pub content_type: &'a str,
}

/// Opens a body.
pub fn open(bytes: &[u8]) -> Result<Envelope<'_>, Error> {
    let Some(unknown) = bytes.strip_prefix(PREFIX) else {
        return Err(Error::Protobuf(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".into(),
        ));
    };
    let mut envelope = Envelope::default();
    let mut reader = Reader::new(unknown);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => {
                let mut meta = Reader::new(field.bytes()?);
                while let Some((number, field)) = meta.next()? {
                    match number {
                        1 => envelope.api_version = field.text()?,
                        2 => envelope.kind = field.text()?,
                        _ => {}
                    }
                }
            }
            2 => envelope.message = field.bytes()?,
            4 => envelope.content_type = field.text()?,
            _ => {}
        }
    }
    Ok(envelope)
}

/// Reads a message: a tree in the shape that [`crate::decode`] gives.
pub fn decode_message(message: &[u8], definition: &'static Definition) -> Result<Value, Error> {
    decode::object(message, definition, 0).map(Value::Object)
}

/// Reads a whole body of a kind that the tables know.
pub fn decode(bytes: &[u8]) -> Result<(GroupVersionKind, Value), Error> {
    decode::body(bytes, 0)
}

/// Reads a watch event, without the length of its frame: its type and object.
pub fn decode_watch_event(event: &[u8]) -> Result<(String, Value), Error> {
    let mut event_type = String::new();
    let mut object = Value::Null;
    let mut reader = Reader::new(event);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => event_type = field.text()?.to_owned(),
            2 => object = decode::extension(field.bytes()?, 0)?,
            _ => {}
        }
    }
    Ok((event_type, object))
}

fn lookup(envelope: &Envelope<'_>) -> Result<(GroupVersionKind, &'static Definition), Error> {
    let version = GroupVersion::parse(envelope.api_version).unwrap_or_default();
    let definition = tables::kind(&version.group, &version.version, envelope.kind).ok_or_else(|| {
        Error::Protobuf(format!(
            "no kind {:?} is registered for version {:?}",
            envelope.kind, envelope.api_version
        ))
    })?;
    let kind = GroupVersionKind {
        group: version.group,
        version: version.version,
        kind: envelope.kind.to_owned().into(),
    };
    Ok((kind, definition))
}

#[cfg(test)]
mod tests;
