//! Audit: what was asked, by whom, and what came of it, as a line for each stage of a request.
//!
//! The [`policy`] says of which requests how much is noted; a [`Record`] gathers it on the request's way; [`event`]
//! is what is written of it, [`log`] the file that it is written to, and [`webhook`] the way to a server. [`Trail`] is
//! what the request carries.
//!
//! What always holds: without a policy a request pays nothing; with one, a request whose answer was sent has had
//! its lines handed to the log first, unless the log was told to gather them.
//!
//! Upstream: apiserver/pkg/audit, apiserver/pkg/endpoints/filters/{audit,authn_audit}.go

pub mod event;
pub mod log;
pub mod policy;
mod trail;
pub mod webhook;

use std::net::IpAddr;
use std::sync::Arc;

use apimachinery::Status;
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::HeaderMap;
use http::request::Parts;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::event::{Event, ObjectReference};
use self::policy::{Applied, Policy};
use crate::authn::Clock;
use crate::request::RequestInfo;
use crate::seams::UserInfo;

pub use trail::{Failure, Open, Trail};

/// By it a request is known in the answer's header and in the log. A client may choose it.
pub const AUDIT_ID: http::HeaderName = http::HeaderName::from_static("audit-id");

/// The annotation that says why a request was allowed, or not.
pub const AUTHORIZATION_REASON: &str = "authorization.k8s.io/reason";

/// How much is noted of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    pub const ALL: [Level; 4] = [Level::None, Level::Metadata, Level::Request, Level::RequestResponse];

    pub fn as_str(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Level::ALL.into_iter().find(|level| level.as_str() == name)
    }
}

/// When a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    pub const ALL: [Stage; 4] =
        [Stage::RequestReceived, Stage::ResponseStarted, Stage::ResponseComplete, Stage::Panic];

    pub fn as_str(self) -> &'static str {
        match self {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Stage::ALL.into_iter().find(|stage| stage.as_str() == name)
    }
}

/// Where events go.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Takes an event. False when it is lost and the request must not go on.
    async fn write(&self, event: &Event) -> bool;

    /// As [`Sink::write`], for one whose request has gone and who cannot wait.
    fn write_late(&self, event: &Event);

    /// What has to run beside the requests, once, until it has delivered everything after the shutdown.
    fn background(&self, _shutdown: CancellationToken) -> Option<BoxFuture<'static, ()>> {
        None
    }
}

/// Several places that events go to.
pub struct Sinks(pub Vec<Arc<dyn Sink>>);

#[async_trait]
impl Sink for Sinks {
    async fn write(&self, event: &Event) -> bool {
        let mut well = true;
        for sink in &self.0 {
            well &= sink.write(event).await;
        }
        well
    }

    fn write_late(&self, event: &Event) {
        self.0.iter().for_each(|sink| sink.write_late(event));
    }

    fn background(&self, shutdown: CancellationToken) -> Option<BoxFuture<'static, ()>> {
        let all: Vec<_> = self.0.iter().filter_map(|sink| sink.background(shutdown.clone())).collect();
        (!all.is_empty()).then(|| futures::future::join_all(all).map(drop).boxed())
    }
}

/// What is noted, and where.
#[derive(Clone)]
pub struct Auditor {
    pub policy: Arc<Policy>,
    pub sink: Arc<dyn Sink>,
}

/// What others than the request itself have to say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    pub key: String,
    pub value: String,
    /// It is noted from this level on.
    pub from: Level,
}

impl Annotation {
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Annotation { key: key.into(), value: value.into(), from: Level::Metadata }
    }
}

/// What is gathered of one request.
pub struct Record {
    applied: Applied,
    sink: Arc<dyn Sink>,
    event: Event,
}

impl Auditor {
    /// Begins the record of a request; `None` when nothing is to be noted of it.
    pub fn begin(
        &self,
        id: &str,
        parts: &Parts,
        info: &RequestInfo,
        user: Option<&UserInfo>,
        peer: IpAddr,
        now: jiff::Timestamp,
    ) -> Option<Record> {
        let attributes = &info.attributes;
        let applied = self.policy.applied(user, attributes);
        if applied.level == Level::None {
            return None;
        }
        let object = attributes.is_resource.then(|| ObjectReference {
            resource: attributes.resource.clone(),
            namespace: attributes.namespace.clone(),
            name: attributes.name.clone(),
            api_group: attributes.group.clone(),
            api_version: attributes.version.clone(),
            subresource: attributes.subresource.clone(),
            ..Default::default()
        });
        let event = Event {
            level: applied.level.as_str(),
            audit_id: id.to_owned(),
            request_uri: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            verb: attributes.verb.clone(),
            user: event::User::of(user),
            source_ips: source_ips(&parts.headers, peer),
            user_agent: user_agent(&parts.headers),
            object_ref: object,
            request_received_timestamp: event::micro(now),
            ..Default::default()
        };
        Some(Record { applied: applied.clone(), sink: self.sink.clone(), event })
    }
}

impl Record {
    pub fn level(&self) -> Level {
        self.applied.level
    }

    pub fn annotate(&mut self, annotation: Annotation) {
        if annotation.from > self.level() {
            return;
        }
        if self.event.annotations.contains_key(&annotation.key) {
            tracing::warn!(key = annotation.key, "an audit annotation is there already and stays as it is");
            return;
        }
        self.event.annotations.insert(annotation.key, annotation.value);
    }

    pub fn impersonated(&mut self, user: &UserInfo) {
        self.event.impersonated_user = Some(event::User::of(Some(user)));
    }

    /// The object, or the patch, that was sent.
    pub fn request(&mut self, mut object: Value, is_patch: bool) {
        if !is_patch {
            if let (Some(reference), Some(metadata)) = (&mut self.event.object_ref, object.get("metadata")) {
                reference.complete(metadata);
            }
            self.without_managed_fields(&mut object);
        }
        if self.level() >= Level::Request {
            self.event.request_object = Some(object);
        }
    }

    /// The object that is answered.
    pub fn response(&mut self, mut object: Value) {
        if object["kind"] == "Status" && object["apiVersion"] == "v1" {
            self.event.response_status = Some(event::ResponseStatus::of_object(&object));
        }
        if self.level() >= Level::RequestResponse {
            self.without_managed_fields(&mut object);
            self.event.response_object = Some(object);
        }
    }

    pub fn failed(&mut self, status: &Status) {
        let Ok(mut object) = serde_json::to_value(status) else { return };
        for (field, value) in
            [("kind", "Status".into()), ("apiVersion", "v1".into()), ("metadata", json!({}))]
        {
            object[field] = value;
        }
        self.response(object);
    }

    /// What authentication failed with, which the answer does not tell.
    pub fn unauthenticated(&mut self, parts: &Parts, shows_certificate: bool) {
        let message = authentication_attempted(parts, shows_certificate);
        self.event.response_status = Some(event::ResponseStatus { message, ..Default::default() });
    }

    pub fn answered(&mut self, code: u16) {
        self.event.response_status.get_or_insert_default().code = code;
    }

    fn without_managed_fields(&self, object: &mut Value) {
        if !self.applied.omit_managed_fields {
            return;
        }
        let drop_fields = |object: &mut Value| {
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
        };
        drop_fields(object);
        for (list, within) in [("items", ""), ("rows", "object")] {
            let items = object.get_mut(list).and_then(Value::as_array_mut);
            for item in items.into_iter().flatten() {
                if within.is_empty() {
                    drop_fields(item);
                } else if let Some(inner) = item.get_mut(within) {
                    drop_fields(inner);
                }
            }
        }
    }

    /// Prepares the line of a stage; false when it is left out.
    fn reach(&mut self, stage: Stage, now: jiff::Timestamp) -> bool {
        self.event.stage = stage.as_str();
        self.event.stage_timestamp = event::micro(now);
        !self.applied.omit_stages.contains(&stage)
    }

    /// Writes the line of a stage. False when it is lost and the request must not go on.
    pub async fn stage(&mut self, stage: Stage, now: jiff::Timestamp) -> bool {
        !self.reach(stage, now) || self.sink.write(&self.event).await
    }

    /// Writes the line of a stage whose request has gone.
    pub fn stage_late(&mut self, stage: Stage, now: jiff::Timestamp) {
        if self.reach(stage, now) {
            self.sink.write_late(&self.event);
        }
    }
}

/// Writes the last line of a request when its answer has been sent, or nobody takes it any longer.
struct Ending {
    /// `None` when it is written.
    record: Option<Box<Record>>,
    clock: Clock,
}

impl Ending {
    fn new(record: Record, clock: Clock) -> Self {
        Ending { record: Some(Box::new(record)), clock }
    }

    fn record(&mut self) -> Option<&mut Record> {
        self.record.as_deref_mut()
    }

    async fn stage(&mut self, stage: Stage) -> bool {
        let now = (self.clock)();
        match self.record() {
            Some(record) => record.stage(stage, now).await,
            None => true,
        }
    }

    async fn complete(mut self) {
        self.stage(Stage::ResponseComplete).await;
        self.record = None;
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else { return };
        record.event.response_status.get_or_insert_with(event::ResponseStatus::closed_early);
        record.stage_late(Stage::ResponseComplete, (self.clock)());
    }
}

/// Upstream: apimachinery/pkg/util/net/http.go SourceIPs
fn source_ips(headers: &HeaderMap, peer: IpAddr) -> Vec<String> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let forwarded = header("x-forwarded-for").unwrap_or_default().split(',');
    let mut ips: Vec<IpAddr> = forwarded.filter_map(|ip| ip.trim().parse().ok()).collect();
    if ips.is_empty() {
        ips.extend(header("x-real-ip").and_then(|ip| ip.trim().parse::<IpAddr>().ok()));
    }
    if ips.last() != Some(&peer) {
        ips.push(peer);
    }
    ips.iter().map(ToString::to_string).collect()
}

/// Upstream: apiserver/pkg/audit/request.go maybeTruncateUserAgent
fn user_agent(headers: &HeaderMap) -> String {
    const LONGEST: usize = 1024;
    let agent = headers.get(http::header::USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let agent = agent.unwrap_or_default();
    match agent.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...TRUNCATED", &agent[..end]),
        None => agent.into_owned(),
    }
}

/// Upstream: apiserver/pkg/endpoints/filters/authn_audit.go getAuthMethods
fn authentication_attempted(parts: &Parts, shows_certificate: bool) -> String {
    let header = parts.headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let mut words = header.unwrap_or_default().split_whitespace();
    let (scheme, rest) = (words.next().unwrap_or_default(), words.next());
    let query = crate::request::Query::parse(parts.uri.query());
    let tried: Vec<&str> = [
        (scheme.eq_ignore_ascii_case("basic") && rest.is_some(), "basic"),
        (scheme.eq_ignore_ascii_case("bearer") && rest.is_some(), "bearer"),
        (query.get("access_token").is_some_and(|token| !token.trim().is_empty()), "access_token"),
        (shows_certificate, "x509"),
    ]
    .into_iter()
    .filter_map(|(tried, name)| tried.then_some(name))
    .collect();
    match tried.is_empty() {
        true => "Authentication failed, no credentials provided".to_owned(),
        false => format!("Authentication failed, attempted: {}", tried.join(", ")),
    }
}

#[cfg(test)]
mod tests;
