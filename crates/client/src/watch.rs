//! Watches: newline-separated JSON events, read as they come.

use apimachinery::Status;
use bytes::BytesMut;
use futures::StreamExt;
use serde::Deserialize;
use serde_json::Value;

use crate::{Body, Error};

/// The longest event that is read, so that a peer cannot make a client grow without bound.
const MAX_EVENT_BYTES: usize = 16 << 20;

/// One event of a watch.
#[derive(Clone, Debug)]
pub enum WatchEvent<T> {
    Added(T),
    Modified(T),
    Deleted(T),
    /// Nothing changed up to this resourceVersion. `initial_events_end` closes a streaming list.
    Bookmark {
        resource_version: String,
        initial_events_end: bool,
    },
}

/// An open watch. Dropping it ends it.
pub struct WatchStream<T> {
    body: Body,
    buffer: BytesMut,
    decode: Decode<T>,
}

/// How the object of an event is read. Mostly it is read from its text at once; the tree is for what does not have
/// the usual shape.
pub struct Decode<T> {
    /// None when the text cannot be read so.
    pub text: Box<dyn Fn(&[u8]) -> Option<T> + Send + Sync>,
    pub tree: Box<dyn Fn(Value) -> Result<T, Error> + Send + Sync>,
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

impl<T> WatchStream<T> {
    pub(crate) fn new(body: Body, decode: Decode<T>) -> Self {
        WatchStream { body, buffer: BytesMut::new(), decode }
    }

    /// The next event; `None` when the server ended the watch. An ERROR event is its Status as an error.
    pub async fn next(&mut self) -> Option<Result<WatchEvent<T>, Error>> {
        let mut searched = 0;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[searched..]) {
                let line = self.buffer.split_to(searched + at + 1);
                searched = 0;
                if line.len() > 1 {
                    return Some(event(&line, &self.decode));
                }
                continue;
            }
            searched = self.buffer.len();
            if searched > MAX_EVENT_BYTES {
                return Some(Err(Error::Decode("a watch event is too long".into())));
            }
            let chunk = match &mut self.body {
                Body::Full(bytes) if bytes.is_empty() => return None,
                Body::Full(bytes) => std::mem::take(bytes),
                Body::Stream(chunks) => match chunks.next().await? {
                    Ok(chunk) => chunk,
                    Err(error) => return Some(Err(error)),
                },
            };
            self.buffer.extend_from_slice(&chunk);
        }
    }
}

/// The kind and the object's text of an event that is written as servers write it: nothing else is in it, and the
/// object comes last.
fn usual(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.trim_ascii_end().strip_prefix(br#"{"type":""#)?;
    let end = memchr::memchr(b'"', line)?;
    let object = line[end..].strip_prefix(br#"","object":"#)?.strip_suffix(b"}")?;
    Some((&line[..end], object))
}

fn event<T>(line: &[u8], decode: &Decode<T>) -> Result<WatchEvent<T>, Error> {
    // Were there something behind the object after all, its text could not be read.
    if let Some((kind, object)) = usual(line) {
        let make: Option<fn(T) -> WatchEvent<T>> = match kind {
            b"ADDED" => Some(WatchEvent::Added),
            b"MODIFIED" => Some(WatchEvent::Modified),
            b"DELETED" => Some(WatchEvent::Deleted),
            _ => None,
        };
        if let Some(make) = make
            && let Some(object) = (decode.text)(object)
        {
            return Ok(make(object));
        }
    }
    let wire: Wire = serde_json::from_slice(line).map_err(|e| Error::Decode(e.into()))?;
    match wire.kind.as_str() {
        "ADDED" => (decode.tree)(wire.object).map(WatchEvent::Added),
        "MODIFIED" => (decode.tree)(wire.object).map(WatchEvent::Modified),
        "DELETED" => (decode.tree)(wire.object).map(WatchEvent::Deleted),
        "BOOKMARK" => {
            let metadata = &wire.object["metadata"];
            Ok(WatchEvent::Bookmark {
                resource_version: metadata["resourceVersion"].as_str().unwrap_or_default().to_owned(),
                initial_events_end: metadata["annotations"]["k8s.io/initial-events-end"] == "true",
            })
        }
        "ERROR" => {
            let status: Status = serde_json::from_value(wire.object).map_err(|e| Error::Decode(e.into()))?;
            Err(Error::Api(status))
        }
        other => Err(Error::Decode(format!("unknown watch event type {other:?}").into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> String {
        let decode = Decode {
            text: Box::new(|text| serde_json::from_slice(text).ok().map(|object: Value| ("text", object))),
            tree: Box::new(|object| Ok(("tree", object))),
        };
        match event(line.as_bytes(), &decode) {
            Ok(WatchEvent::Added((how, object))) => format!("added by {how}: {object}"),
            Ok(WatchEvent::Modified((how, object))) => format!("modified by {how}: {object}"),
            Ok(WatchEvent::Deleted((how, object))) => format!("deleted by {how}: {object}"),
            Ok(WatchEvent::Bookmark { resource_version, .. }) => format!("bookmark {resource_version}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn events_are_read_in_whatever_order_they_are_written() {
        assert_eq!(read("{\"type\":\"ADDED\",\"object\":{\"a\":1}}\n"), "added by text: {\"a\":1}");
        assert_eq!(read("{\"object\":{\"a\":1},\"type\":\"DELETED\"}\n"), "deleted by tree: {\"a\":1}");
        let more = "{\"type\":\"MODIFIED\",\"object\":{\"a\":1},\"more\":{}}\n";
        assert_eq!(read(more), "modified by tree: {\"a\":1}");
        let bookmark = "{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resourceVersion\":\"7\"}}}\n";
        assert_eq!(read(bookmark), "bookmark 7");
    }
}
