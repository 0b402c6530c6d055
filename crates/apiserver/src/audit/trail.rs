//! [`Trail`]: what a request leaves behind on its way, from its first line to the end of its answer. It begins empty,
//! and stays so when nothing is to be noted.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};

use apimachinery::Status;
use bytes::Bytes;
use futures::StreamExt;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use resources::ResourceDef;
use schema::decode::Strictness;
use serde_json::Value;

use super::{AUDIT_ID, AUTHORIZATION_REASON, Annotation, Auditor, Ending, Level, Stage};
use crate::authn::Clock;
use crate::body::{Body, Response};
use crate::handle::{Asked, decode_body};
use crate::negotiate::Forms;
use crate::request::RequestInfo;
use crate::seams::UserInfo;

#[derive(Default)]
pub struct Trail {
    id: Option<HeaderValue>,
    ending: Option<Ending>,
    /// The answer lasts: that it began is noted too.
    is_long: bool,
    verb: String,
    open: Open,
}

/// What a tunnel holds for as long as it is open; the last line of its request is written when it is gone.
#[derive(Clone, Default)]
pub struct Open(Arc<Mutex<Option<Ending>>>);

/// How somebody failed to say who he is.
pub struct Failure {
    pub code: u16,
    pub shows_certificate: bool,
}

impl Trail {
    /// The request's id is the client's choice, or made of random bytes.
    pub fn of(headers: &HeaderMap, random: impl FnOnce() -> [u8; 16]) -> Self {
        let id = headers.get(AUDIT_ID).filter(|id| !id.is_empty()).cloned();
        let id = id.or_else(|| {
            let uuid = uuid::Builder::from_random_bytes(random()).into_uuid();
            let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
            HeaderValue::from_str(uuid.hyphenated().encode_lower(&mut text)).ok()
        });
        Trail { id, ..Default::default() }
    }

    fn id(&self) -> String {
        self.id.as_ref().map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned()).unwrap_or_default()
    }

    /// Begins to note the request, if it is to be noted. No peer means this very process.
    pub async fn begin(
        &mut self,
        auditor: &Auditor,
        parts: &mut Parts,
        info: &RequestInfo,
        user: &UserInfo,
        peer: Option<IpAddr>,
        clock: &Clock,
    ) -> Result<(), Status> {
        let peer = peer.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let Some(record) = auditor.begin(&self.id(), parts, info, Some(user), peer, clock()) else {
            return Ok(());
        };
        self.is_long =
            info.attributes.verb == "watch" || crate::flowcontrol::is_long_running(&info.attributes);
        self.verb.clone_from(&info.attributes.verb);
        parts.extensions.insert(self.open.clone());
        let ending = self.ending.insert(Ending::new(record, clock.clone()));
        match ending.stage(Stage::RequestReceived).await {
            true => Ok(()),
            false => Err(Status::internal("failed to store audit event")),
        }
    }

    /// Notes a request of somebody who could not say who he is.
    pub async fn unauthenticated(
        &mut self,
        auditor: &Auditor,
        parts: &Parts,
        info: &RequestInfo,
        failure: Failure,
        peer: IpAddr,
        now: jiff::Timestamp,
    ) {
        let Some(mut record) = auditor.begin(&self.id(), parts, info, None, peer, now) else { return };
        record.unauthenticated(parts, failure.shows_certificate);
        record.answered(failure.code);
        record.stage(Stage::ResponseStarted, now).await;
    }

    pub fn impersonated(&mut self, user: &UserInfo) {
        if let Some(record) = self.record() {
            record.impersonated(user);
        }
    }

    pub fn authorized(&mut self, decision: &str, reason: &str) {
        if let Some(record) = self.record() {
            record.annotate(Annotation::new("authorization.k8s.io/decision", decision));
            record.annotate(Annotation::new(AUTHORIZATION_REASON, reason));
        }
    }

    pub fn annotate(&mut self, annotations: Vec<Annotation>) {
        if let Some(record) = self.record() {
            annotations.into_iter().for_each(|annotation| record.annotate(annotation));
        }
    }

    fn record(&mut self) -> Option<&mut super::Record> {
        self.ending.as_mut().and_then(Ending::record)
    }

    /// Notes the body of a request, as the server reads it.
    pub fn sent(&mut self, def: &ResourceDef, asked: &Asked, body: &Bytes) {
        let Some(record) = self.record().filter(|_| !body.is_empty()) else { return };
        let verb = asked.info.attributes.verb.as_str();
        if verb == "patch" {
            if record.level() >= Level::Request
                && let Some(patch) = patch(body)
            {
                record.request(patch, true);
            }
            return;
        }
        if let Some(object) = object(def, asked, body) {
            record.request(object, verb.starts_with("delete"));
        }
    }

    pub fn failed(&mut self, status: &Status) {
        if let Some(record) = self.record() {
            record.failed(status);
        }
    }

    /// Notes the answer. One that lasts takes the trail with it.
    pub async fn answered(&mut self, mut response: Response) -> Response {
        if let Some(id) = self.id.take() {
            response.headers_mut().entry(AUDIT_ID).or_insert(id);
        }
        let Some(mut ending) = self.ending.take() else { return response };
        if let Some(record) = ending.record() {
            let level = record.level();
            if level == Level::RequestResponse || self.verb.starts_with("delete") {
                response = whole(response).await;
                if let Some(object) = answered_object(&response) {
                    record.response(object);
                }
            }
            record.answered(response.status().as_u16());
        }
        if self.is_long {
            ending.stage(Stage::ResponseStarted).await;
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            *self.open.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ending);
            return response;
        }
        let (parts, body) = response.into_parts();
        match body {
            Body::Stream(stream) => {
                let held = stream.map(move |block| {
                    let _held = &ending;
                    block
                });
                Response::from_parts(parts, Body::Stream(Box::pin(held)))
            }
            body => {
                ending.complete().await;
                Response::from_parts(parts, body)
            }
        }
    }
}

/// A patch is shown as it was sent; YAML as JSON.
fn patch(body: &Bytes) -> Option<Value> {
    if schema::cbor::is_cbor(body) {
        return schema::cbor::decode(body).ok();
    }
    serde_json::from_slice(body).ok().or_else(|| Some(schema::decode::untyped_yaml(body).ok()?.object))
}

/// The object that was sent, with its defaults. What cannot be read is for others to say.
fn object(def: &ResourceDef, asked: &Asked, body: &Bytes) -> Option<Value> {
    let format = Forms::ALL.content(&asked.parts.headers).ok()?;
    let gvk = match def.subresource(&asked.info.attributes.subresource) {
        Some(subresource) => subresource.kind.clone(),
        None => def.gvk(),
    };
    let definition = api::tables::kind(&gvk.group, &gvk.version, &gvk.kind);
    let deletes = asked.info.attributes.verb.starts_with("delete");
    let definition = definition.filter(|_| !deletes);
    let mut object = decode_body(format, body, definition, Strictness::Ignore).ok()?.object;
    if let Some(definition) = definition {
        schema::default::apply_declared(&mut object, definition);
        if gvk == def.gvk() {
            def.strategy.default(&mut object);
        }
    }
    object.is_object().then_some(object)
}

/// An answer in blocks is put together, to be looked at.
async fn whole(response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let body = match body {
        blocks @ Body::Blocks { .. } => match blocks.collect().await {
            Ok(whole) => Body::Full(whole.to_bytes()),
            Err(error) => {
                // Blocks are made of memory.
                tracing::error!(error, "an answer cannot be put together");
                Body::empty()
            }
        },
        body => body,
    };
    Response::from_parts(parts, body)
}

fn answered_object(response: &Response) -> Option<Value> {
    let Body::Full(bytes) = response.body() else { return None };
    let format = Forms::ALL.content(response.headers()).ok()?;
    Some(decode_body(format, bytes, None, Strictness::Ignore).ok()?.object).filter(Value::is_object)
}
