//! Answers: objects, lists, tables and events in the form that was negotiated. Ready bytes are handed out as they
//! are wherever the form allows.

use std::borrow::Cow;
use std::sync::Arc;

use api::tables::{self, Definition};
use apimachinery::Status;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, StatusCode, header};
use resources::ResourceDef;
use serde_json::{Value, json};
use storage::Revision;

use crate::authn::Clock;
use crate::body::{Body, Response};
use crate::negotiate::{Format, Forms, Negotiated, Shape};
use crate::registry::Resource;
use crate::registry::cache::{self, Event, Form, Kind};
use crate::registry::list::Listing;
use crate::registry::object::{Object, put_decimal};

const BLOCK_BYTES: usize = 64 << 10;
const PARTIAL: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata";

/// The answer of an operation on one object.
pub enum Outcome {
    Stored(Arc<Object>),
    /// Not, or no longer, in the store: a dry run's or a deletion's result, or an object of no resource.
    Tree(Value),
}

/// What a table's rows carry of their objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

/// How to encode the objects of one resource for one request.
#[derive(Clone)]
pub struct Encoder {
    pub resource: Arc<Resource>,
    pub negotiated: Negotiated,
    pub include: Include,
    /// Seconds since the epoch, for the ages in tables.
    pub now: i64,
}

pub fn group_version(def: &ResourceDef) -> String {
    def.gvk().group_version().to_string()
}

/// The schema of a kind, when the tables know it.
pub fn definition(def: &ResourceDef) -> Option<&'static Definition> {
    tables::definition(&def.schema)
}

impl Encoder {
    fn def(&self) -> &ResourceDef {
        &self.resource.def
    }

    /// Whether the stored bytes are what a client of this version wants.
    fn is_native(&self, object: &Object) -> bool {
        object.stored().starts_with(self.resource.head.as_bytes())
    }

    /// The object in the version of the request.
    pub fn tree<'a>(&self, object: &'a Object) -> Cow<'a, Value> {
        if self.is_native(object) {
            return object.open();
        }
        let mut tree = object.decode();
        resources::convert::from_storage(self.def(), &mut tree);
        Cow::Owned(tree)
    }

    /// What all objects begin with, and lists do not repeat. Custom kinds' do: upstream knows no types for them.
    fn item_head(&self) -> &str {
        if self.def().custom.is_some() { "" } else { &self.resource.head }
    }

    /// An object as a list shows it.
    fn item(&self, mut tree: Value) -> Value {
        if let Some(fields) = tree.as_object_mut().filter(|_| !self.item_head().is_empty()) {
            fields.remove("apiVersion");
            fields.remove("kind");
        }
        tree
    }

    fn json(&self, object: &Object) -> Bytes {
        if self.is_native(object) { object.json() } else { self.tree(object).to_string().into() }
    }

    fn write_item(&self, object: &Object, out: &mut BytesMut) {
        if self.is_native(object) {
            object.write_item(self.item_head(), out)
        } else {
            out.extend_from_slice(self.item(self.tree(object).into_owned()).to_string().as_bytes())
        }
    }

    /// The answer of an operation on one object.
    pub fn outcome(&self, code: StatusCode, outcome: &Outcome) -> Result<Response, Status> {
        let plain = self.negotiated.shape == Shape::Object && self.negotiated.format == Format::Json;
        let body = match outcome {
            Outcome::Stored(object) if plain => self.json(object),
            Outcome::Stored(object) if self.is_protobuf_object() => {
                let def = self.def();
                schema::protobuf::envelope(&group_version(def), &def.kind, &self.message(object)?).into()
            }
            Outcome::Stored(object) => self.one(&self.tree(object))?,
            Outcome::Tree(tree) if tree["kind"] == "Status" => {
                return Ok(value(self.negotiated.format, code, tree));
            }
            Outcome::Tree(tree) => {
                let mut tree = tree.clone();
                schema::apply::open_owners(&mut tree);
                if plain { tree.to_string().into() } else { self.one(&tree)? }
            }
        };
        Ok(self.respond(code, Body::Full(body)))
    }

    /// Whether whole objects are asked for, of a kind that is known to protobuf.
    fn is_protobuf_object(&self) -> bool {
        self.negotiated.shape == Shape::Object
            && self.negotiated.format == Format::Protobuf
            && self.resource.definition.is_some()
    }

    fn respond(&self, code: StatusCode, body: Body) -> Response {
        respond(code, self.negotiated.format.content_type(), body)
    }

    fn one(&self, tree: &Value) -> Result<Bytes, Status> {
        match self.negotiated.shape {
            Shape::Object => encode(self.negotiated.format, tree, self.resource.definition),
            Shape::Metadata => encode(self.negotiated.format, &partial(tree), tables::definition(PARTIAL)),
            Shape::Table => {
                let version = tree["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                let table = self.table(std::iter::once(tree), json!({"resourceVersion": version}), true);
                encode(self.negotiated.format, &table, None)
            }
        }
    }

    fn table<'a>(&self, objects: impl Iterator<Item = &'a Value>, metadata: Value, header: bool) -> Value {
        let rows: Vec<Value> = objects.map(|object| self.row(object)).collect();
        let columns = if header { self.columns() } else { Value::Array(Vec::new()) };
        json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            "columnDefinitions": columns, "rows": rows,
        })
    }

    fn columns(&self) -> Value {
        let column = |c: &resources::Column| {
            json!({
                "name": c.name, "type": c.column_type, "format": c.format, "description": c.description,
                "priority": c.priority,
            })
        };
        self.def().columns.iter().map(column).collect()
    }

    fn row(&self, object: &Value) -> Value {
        let mut row = json!({"cells": (self.def().cells)(object, self.now)});
        match self.include {
            Include::None => {}
            Include::Metadata => row["object"] = partial(object),
            Include::Object => row["object"] = object.clone(),
        }
        row
    }

    /// The answer of a list.
    pub fn list(self, listing: Listing) -> Result<Response, Status> {
        let mut metadata = json!({"resourceVersion": listing.revision.to_string()});
        if !listing.continue_token.is_empty() || self.def().custom.is_some() {
            metadata["continue"] = listing.continue_token.as_str().into();
        }
        if let Some(remaining) = listing.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        let kind = self.def().list_kind.to_string();
        let format = self.negotiated.format;
        match (self.negotiated.shape, format) {
            (Shape::Object, Format::Json) => Ok(self.json_list(&kind, &metadata, listing.objects)),
            (Shape::Object, Format::Protobuf) => {
                let items: Vec<Bytes> =
                    listing.objects.iter().map(|object| self.message(object)).collect::<Result<_, _>>()?;
                let message = schema::protobuf::list(&metadata, items.iter().map(|item| &**item));
                let message = message.map_err(Status::internal)?;
                let body = schema::protobuf::envelope(&group_version(self.def()), &kind, &message);
                Ok(self.respond(StatusCode::OK, Body::Full(body.into())))
            }
            (Shape::Object, Format::Yaml | Format::Cbor) => {
                let items: Vec<Value> =
                    listing.objects.iter().map(|object| self.item(self.tree(object).into_owned())).collect();
                let list = json!({"kind": kind, "apiVersion": group_version(self.def()), "metadata": metadata, "items": items});
                // The items of a list without a definition of its own have one still.
                match (format, self.resource.definition) {
                    (Format::Cbor, Some(definition)) => {
                        let body = schema::cbor::encode_list(&list, definition);
                        Ok(self.respond(StatusCode::OK, Body::Full(body.into())))
                    }
                    _ => Ok(value(format, StatusCode::OK, &list)),
                }
            }
            (Shape::Table | Shape::Metadata, _) => {
                let trees: Vec<Cow<'_, Value>> = listing.objects.iter().map(|o| self.tree(o)).collect();
                let trees: Vec<&Value> = trees.iter().map(|tree| &**tree).collect();
                self.shaped(&trees, metadata)
            }
        }
    }

    /// A list of what is not stored.
    pub fn list_of(&self, items: &[Value]) -> Result<Response, Status> {
        if self.negotiated.shape != Shape::Object {
            return self.shaped(&items.iter().collect::<Vec<_>>(), json!({}));
        }
        let items: Vec<Value> = items.iter().map(|item| self.item(item.clone())).collect();
        let list = json!({
            "kind": &*self.def().list_kind, "apiVersion": group_version(self.def()), "metadata": {}, "items": items,
        });
        Ok(value(self.negotiated.format, StatusCode::OK, &list))
    }

    /// A list as a table, or of metadata alone.
    fn shaped(&self, trees: &[&Value], metadata: Value) -> Result<Response, Status> {
        let format = self.negotiated.format;
        if self.negotiated.shape == Shape::Table {
            let table = self.table(trees.iter().copied(), metadata, true);
            return Ok(value(format, StatusCode::OK, &table));
        }
        let partials = trees.iter().map(|tree| partial(tree));
        if format != Format::Protobuf {
            let list = json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                "items": partials.collect::<Vec<Value>>(),
            });
            return Ok(value(format, StatusCode::OK, &list));
        }
        let definition = tables::definition(PARTIAL).ok_or_else(Status::page_not_found)?;
        let items: Vec<Vec<u8>> = partials
            .map(|partial| schema::protobuf::message(&partial, definition))
            .collect::<Result<_, _>>()
            .map_err(Status::internal)?;
        let message = schema::protobuf::list(&metadata, items.iter().map(|item| &**item));
        let message = message.map_err(Status::internal)?;
        let body = schema::protobuf::envelope("meta.k8s.io/v1", "PartialObjectMetadataList", &message);
        Ok(self.respond(StatusCode::OK, Body::Full(body.into())))
    }

    /// The protobuf message of an object, made once for all who ask.
    fn message(&self, object: &Object) -> Result<Bytes, Status> {
        let definition =
            self.resource.definition.ok_or_else(|| Status::not_acceptable(&["application/json"]))?;
        let make = || {
            schema::protobuf::message(&self.tree(object), definition)
                .map(Bytes::from)
                .map_err(Status::internal)
        };
        if self.is_native(object) { object.protobuf(make) } else { make() }
    }

    /// The bytes of the objects one after the other, block by block as they are sent.
    fn json_list(self, kind: &str, metadata: &Value, objects: Vec<Arc<Object>>) -> Response {
        let head = format!(
            r#"{{"kind":"{kind}","apiVersion":"{}","metadata":{metadata},"items":["#,
            group_version(self.def())
        );
        const TAIL: &[u8] = b"]}\n";
        let native = objects.iter().all(|object| self.is_native(object));
        let items: usize = objects.iter().map(|object| object.item_len(self.item_head()) + 1).sum();
        let length = head.len() + items.saturating_sub(1) + TAIL.len();
        if !native || length <= BLOCK_BYTES {
            let mut out = BytesMut::with_capacity(length);
            out.extend_from_slice(head.as_bytes());
            for (at, object) in objects.iter().enumerate() {
                if at > 0 {
                    out.put_u8(b',');
                }
                self.write_item(object, &mut out);
            }
            out.extend_from_slice(TAIL);
            return self.respond(StatusCode::OK, Body::Full(out.freeze()));
        }
        let mut head = Some(head);
        let mut at = 0;
        let next = move || {
            if at > objects.len() {
                return None;
            }
            let mut block = BytesMut::with_capacity(BLOCK_BYTES + 8192);
            if let Some(head) = head.take() {
                block.extend_from_slice(head.as_bytes());
            }
            while block.len() < BLOCK_BYTES {
                let Some(object) = objects.get(at) else {
                    at += 1;
                    block.extend_from_slice(TAIL);
                    break;
                };
                if at > 0 {
                    block.put_u8(b',');
                }
                object.write_item(self.item_head(), &mut block);
                at += 1;
            }
            Some(block.freeze())
        };
        let remaining = u64::try_from(length).unwrap_or(u64::MAX);
        respond(StatusCode::OK, crate::negotiate::JSON, Body::Blocks { next: Box::new(next), remaining })
    }
}

/// The events of one watch in the form that was negotiated.
pub struct EventEncoder {
    pub encoder: Encoder,
    /// Objects grow older while they are watched.
    clock: Clock,
    /// A table's columns are told with its first event only.
    header_sent: bool,
}

impl EventEncoder {
    pub fn new(encoder: Encoder, clock: Clock) -> Self {
        EventEncoder { encoder, clock, header_sent: false }
    }

    pub fn content_type(&self) -> String {
        let negotiated = self.encoder.negotiated;
        let stream =
            if negotiated.stream || negotiated.format == Format::Protobuf { ";stream=watch" } else { "" };
        if negotiated.format == Format::Cbor {
            return crate::negotiate::CBOR_SEQ.to_owned();
        }
        format!("{}{stream}", negotiated.format.content_type())
    }

    fn shares_frames(&self) -> bool {
        self.encoder.negotiated.shape == Shape::Object && self.encoder.negotiated.format == Format::Json
    }

    /// An event as all see it.
    pub fn event(&mut self, kind: Kind, event: &Event) -> Bytes {
        let form = match self.encoder.negotiated.format {
            Format::Json => Form::Json,
            Format::Protobuf => Form::Protobuf,
            _ => return self.object(kind, &event.object),
        };
        if self.encoder.negotiated.shape != Shape::Object || !self.encoder.is_native(&event.object) {
            return self.object(kind, &event.object);
        }
        event.frame(form, kind, || self.object(kind, &event.object)).clone()
    }

    /// An event with an object of its own.
    pub fn object(&mut self, kind: Kind, object: &Object) -> Bytes {
        if self.shares_frames() && self.encoder.is_native(object) {
            return cache::frame(kind, object);
        }
        let negotiated = self.encoder.negotiated;
        if negotiated.format == Format::Protobuf && negotiated.shape == Shape::Object {
            let def = self.encoder.def();
            return match self.encoder.message(object) {
                Ok(message) => {
                    let body = schema::protobuf::envelope(&group_version(def), &def.kind, &message);
                    schema::protobuf::watch_frame(kind.as_str(), &body).into()
                }
                Err(status) => self.error(&status),
            };
        }
        let tree = self.encoder.tree(object).into_owned();
        self.tree(kind.as_str(), &tree)
    }

    fn tree(&mut self, kind: &str, tree: &Value) -> Bytes {
        let (shown, definition) = match self.encoder.negotiated.shape {
            Shape::Object => (tree.clone(), definition(self.encoder.def())),
            Shape::Metadata => (partial(tree), tables::definition(PARTIAL)),
            Shape::Table => {
                self.encoder.now = (self.clock)().as_second();
                let header = !std::mem::replace(&mut self.header_sent, true);
                let version = json!({"resourceVersion": tree["metadata"]["resourceVersion"]});
                (self.encoder.table(std::iter::once(tree), version, header), None)
            }
        };
        self.frame(kind, &shown, definition)
    }

    fn frame(&self, kind: &str, shown: &Value, definition: Option<&'static Definition>) -> Bytes {
        match (self.encoder.negotiated.format, definition) {
            (Format::Protobuf, Some(definition)) => {
                let body = schema::protobuf::encode(shown, definition).unwrap_or_default();
                schema::protobuf::watch_frame(kind, &body).into()
            }
            (Format::Cbor, definition) => {
                let object = schema::cbor::encode(shown, definition);
                schema::cbor::watch_event(kind, &object).into()
            }
            (Format::Yaml, _) => {
                let event = json!({"type": kind, "object": shown});
                format!("---\n{}", to_yaml(&event)).into()
            }
            _ => format!("{{\"type\":\"{kind}\",\"object\":{shown}}}\n").into(),
        }
    }

    /// How far the watch is.
    pub fn bookmark(&mut self, revision: Revision, initial_end: bool) -> Bytes {
        let def = self.encoder.def();
        if self.shares_frames() {
            let mut out = BytesMut::with_capacity(256);
            let head = &self.encoder.resource.head;
            out.extend_from_slice(br#"{"type":"BOOKMARK","object":"#);
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(br#","metadata":{"resourceVersion":""#);
            put_decimal(&mut out, revision);
            out.extend_from_slice(match initial_end {
                true => br#"","annotations":{"k8s.io/initial-events-end":"true"}}}}"#.as_slice(),
                false => br#""}}}"#,
            });
            out.put_u8(b'\n');
            return out.freeze();
        }
        let mut object = json!({
            "apiVersion": group_version(def), "kind": def.kind, "metadata": {"resourceVersion": revision.to_string()},
        });
        if initial_end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        self.tree("BOOKMARK", &object)
    }

    /// The last event of a watch that cannot go on.
    pub fn error(&self, status: &Status) -> Bytes {
        self.frame("ERROR", &Value::from(status), tables::kind("", "v1", "Status"))
    }
}

/// The metadata of an object alone.
pub fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// An object in a form; protobuf needs its definition.
pub fn encode(
    format: Format,
    tree: &Value,
    definition: Option<&'static Definition>,
) -> Result<Bytes, Status> {
    match (format, definition) {
        (Format::Json, _) => Ok(tree.to_string().into()),
        (Format::Yaml, _) => Ok(to_yaml(tree).into()),
        (Format::Cbor, definition) => Ok(schema::cbor::encode(tree, definition).into()),
        (Format::Protobuf, Some(definition)) => {
            schema::protobuf::encode(tree, definition).map(Bytes::from).map_err(Status::internal)
        }
        (Format::Protobuf, None) => Err(Status::not_acceptable(&["application/json", "application/yaml"])),
    }
}

pub fn to_yaml(tree: &Value) -> String {
    serde_saphyr::to_string(tree).unwrap_or_default()
}

pub fn respond(code: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A tree of a kind without a definition; what cannot be protobuf is JSON.
pub fn value(format: Format, code: StatusCode, tree: &Value) -> Response {
    let kind = tree["kind"].as_str().unwrap_or_default();
    let api_version = tree["apiVersion"].as_str().unwrap_or_default();
    let group_version = apimachinery::GroupVersion::parse(api_version).unwrap_or_default();
    let definition = tables::kind(&group_version.group, &group_version.version, kind);
    match encode(format, tree, definition) {
        Ok(bytes) => respond(code, format.content_type(), Body::Full(bytes)),
        Err(_) => respond(code, crate::negotiate::JSON, Body::Full(tree.to_string().into())),
    }
}

/// A refusal, in the form that the client accepts; in JSON when there is none.
pub fn failure(status: &Status, accepted: Option<&HeaderValue>, forms: Forms) -> Response {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let format = accepted.map_or(Format::Json, |accepted| forms.of_failure(accepted));
    let mut response = value(format, code, &Value::from(status));
    let retry = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if retry > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, retry.into());
    }
    response
}

/// The answer where there is nothing.
///
/// Upstream: net/http NotFound, which upstream's mux ends in
pub fn no_page() -> Response {
    let text = Bytes::from_static(b"404 page not found\n");
    plain_text(StatusCode::NOT_FOUND, text)
}

/// The answer to a request when it could not be found out whether it is allowed.
///
/// Upstream: apiserver/pkg/endpoints/handlers/responsewriters/errors.go InternalError
pub fn internal_error(uri: &http::Uri, error: &str) -> Response {
    let shown = uri.path_and_query().map_or("", |path| path.as_str());
    let text = escape_markup(&format!("Internal Server Error: {shown:?}: {error}")) + "\n";
    plain_text(StatusCode::INTERNAL_SERVER_ERROR, text.into())
}

/// As upstream shows a client's own words to browsers.
pub fn escape_markup(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn plain_text(code: StatusCode, text: Bytes) -> Response {
    let mut response = respond(code, "text/plain; charset=utf-8", Body::Full(text));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The answer to a request for which there is no seat.
///
/// Upstream: apiserver/pkg/server/filters/priority-and-fairness.go tooManyRequests
pub fn too_many_requests() -> Response {
    let text = Bytes::from_static(b"Too many requests, please try again later.\n");
    let mut response = plain_text(StatusCode::TOO_MANY_REQUESTS, text);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}
