//! Events are taken at a pace: of the whole server, of a namespace, of a user, or of a source about an object.
//!
//! Upstream: plugin/pkg/admission/eventratelimit

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use apimachinery::Status;
use apimachinery::field::{Error, Path, aggregate};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::configuration::versioned;
use super::tree::text;
use super::{Context, Plugin, is_create, is_update, join_errors};
use crate::pace::{Pace, Throttle};
use crate::seams::AdmissionRequest;

const GROUP: &str = "eventratelimit.admission.k8s.io";
const USUAL_SIZE: usize = 4096;
const TYPES: [&str; 4] = ["Namespace", "Server", "SourceAndObject", "User"];

pub(super) struct EventRateLimit;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Configuration {
    #[serde(default)]
    limits: Vec<Limit>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
struct Limit {
    r#type: String,
    qps: i32,
    burst: i32,
    cache_size: i32,
}

/// All limits, with what was used of them.
#[derive(Default)]
pub(super) struct EventLimits(Vec<Enforcer>);

struct Enforcer {
    of_type: String,
    throttle: Throttle,
    /// How many paces are kept; those not used for longest make room.
    size: usize,
    paces: Mutex<HashMap<String, Pace>>,
}

pub(super) fn configured(document: Option<&Value>) -> Result<EventLimits, String> {
    let configuration = match document {
        None => Configuration { limits: Vec::new() },
        Some(document) => versioned(document, GROUP, &["v1alpha1"], "Configuration")?,
    };
    let errors = wrong(&configuration.limits);
    if !errors.is_empty() {
        return Err(aggregate(&errors));
    }
    Ok(EventLimits(configuration.limits.into_iter().map(Enforcer::new).collect()))
}

/// Upstream: plugin/pkg/admission/eventratelimit/apis/eventratelimit/validation/validation.go
fn wrong(limits: &[Limit]) -> Vec<Error> {
    let list = Path::new("limits");
    let mut errors = Vec::new();
    if limits.is_empty() {
        errors.push(Error::invalid(&list, Value::Array(Vec::new()), "must not be empty"));
    }
    for (index, limit) in limits.iter().enumerate() {
        let path = list.index(index);
        if !TYPES.contains(&limit.r#type.as_str()) {
            errors.push(Error::not_supported(&path.child("type"), limit.r#type.as_str(), &TYPES));
        }
        for (field, value) in [("burst", limit.burst), ("qps", limit.qps)] {
            if value <= 0 {
                errors.push(Error::invalid(&path.child(field), value, "must be positive"));
            }
        }
        if limit.r#type != "Server" && limit.cache_size < 0 {
            errors.push(Error::invalid(&path.child("cacheSize"), limit.cache_size, "must not be negative"));
        }
    }
    errors
}

impl Enforcer {
    fn new(limit: Limit) -> Self {
        let size = usize::try_from(limit.cache_size).unwrap_or(0);
        Enforcer {
            of_type: limit.r#type,
            throttle: Throttle {
                per_second: f64::from(limit.qps),
                burst: u32::try_from(limit.burst).unwrap_or(0),
            },
            size: if size == 0 { USUAL_SIZE } else { size },
            paces: Mutex::default(),
        }
    }

    fn key(&self, request: &AdmissionRequest<'_>) -> String {
        let of_event = |path: &str| text(request.object, path);
        match self.of_type.as_str() {
            "Namespace" => request.namespace.to_owned(),
            "User" => request.user.name.clone(),
            "SourceAndObject" => [
                of_event("source.component"),
                of_event("source.host"),
                of_event("involvedObject.kind"),
                of_event("involvedObject.namespace"),
                of_event("involvedObject.name"),
                of_event("involvedObject.uid"),
                of_event("involvedObject.apiVersion"),
            ]
            .concat(),
            _ => String::new(),
        }
    }

    fn accept(&self, request: &AdmissionRequest<'_>, now: Instant) -> Result<(), String> {
        let key = self.key(request);
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        if !paces.contains_key(&key) && paces.len() >= self.size {
            let oldest = paces.iter().min_by_key(|(_, pace)| pace.at()).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| paces.remove(&oldest));
        }
        let pace = paces.entry(key.clone()).or_insert_with(|| Pace::new(self.throttle, now));
        match pace.try_take(now) {
            true => Ok(()),
            false => Err(format!("limit reached on type {} for key {key}", self.of_type)),
        }
    }
}

impl Plugin for EventRateLimit {
    fn name(&self) -> &'static str {
        "EventRateLimit"
    }

    fn is_default(&self) -> bool {
        false
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        // Events of the other group are another kind here, as they are upstream.
        let is_event = request.gvk.group.is_empty() && request.gvk.kind == "Event";
        if !is_event || request.dry_run || !(is_create(request) || is_update(request)) {
            return Ok(());
        }
        let now = Instant::now();
        let limits = context.settings.event_limits.0.iter();
        let refusals: Vec<String> = limits.filter_map(|limit| limit.accept(request, now).err()).collect();
        match refusals.is_empty() {
            true => Ok(()),
            false => Err(Status::failure(
                429,
                "TooManyRequests",
                format!("Too many requests: {}", join_errors(&refusals)),
            )),
        }
    }
}
