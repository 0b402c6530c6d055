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

/// How the object of an event is read: typed, or kept as a tree.
type Decode<T> = fn(Value) -> Result<T, Error>;

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
            if let Some(at) = self.buffer[searched..].iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(searched + at + 1);
                searched = 0;
                if line.len() > 1 {
                    return Some(event(&line, self.decode));
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

fn event<T>(line: &[u8], decode: Decode<T>) -> Result<WatchEvent<T>, Error> {
    let wire: Wire = serde_json::from_slice(line).map_err(|e| Error::Decode(e.into()))?;
    match wire.kind.as_str() {
        "ADDED" => decode(wire.object).map(WatchEvent::Added),
        "MODIFIED" => decode(wire.object).map(WatchEvent::Modified),
        "DELETED" => decode(wire.object).map(WatchEvent::Deleted),
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
