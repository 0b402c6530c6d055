//! LimitRanges: defaults for containers that say nothing, and bounds for what they say.
//!
//! Upstream: plugin/pkg/admission/limitranger/admission.go

use std::sync::Arc;

use apimachinery::Status;
use apimachinery::quantity::Quantity;
use serde_json::Value;

use super::tree::{at, items, list_mut, map_mut, text};
use super::{Context, Plugin, core, forbid, is, is_create, is_update, join_errors};
use crate::seams::AdmissionRequest;
use resources::quota::{Quantities, of_pod};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub(super) struct LimitRanger;

/// Whether the plugin looks at the request: new pods and claims, resized pods, changed claims.
fn applies(request: &AdmissionRequest<'_>) -> bool {
    let pods = is(request, "", "pods");
    match request.subresource {
        "resize" => pods && is_update(request),
        "" if pods => is_create(request),
        "" => is(request, "", "persistentvolumeclaims") && (is_create(request) || is_update(request)),
        _ => false,
    }
}

fn ranges(context: &Context, request: &AdmissionRequest<'_>) -> Vec<Arc<Value>> {
    // What is going away is not held up.
    let deleted = is_update(request)
        && request.old_object.is_some_and(|old| at(old, "metadata.deletionTimestamp").is_some());
    match applies(request) && !deleted {
        true => context.lookup.list(&core("limitranges"), Some(request.namespace)),
        false => Vec::new(),
    }
}

impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn mutate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if is(request, "", "pods") {
            for range in ranges(context, request) {
                default_pod(&range, request.object);
            }
        }
        Ok(())
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let mut errors = Vec::new();
        for range in ranges(context, request) {
            for limit in items(&range, "spec.limits") {
                match is(request, "", "pods") {
                    true => check_pod(limit, request.object, &mut errors),
                    false => check_claim(limit, request.object, &mut errors),
                }
            }
            if !errors.is_empty() {
                return Err(forbid(request, join_errors(&errors)));
            }
        }
        Ok(())
    }
}

/// Gives every container the defaults it lacks, and says so in an annotation.
fn default_pod(range: &Value, pod: &mut Value) {
    let mut requests = Quantities::default();
    let mut limits = Quantities::default();
    for limit in items(range, "spec.limits").iter().filter(|limit| text(limit, "type") == "Container") {
        Quantities::read(limit, "defaultRequest").iter().for_each(|(k, v)| requests.insert(k, *v));
        Quantities::read(limit, "default").iter().for_each(|(k, v)| limits.insert(k, *v));
    }
    let mut said = Vec::new();
    for (list, kind) in [("spec.containers", "container"), ("spec.initContainers", "init container")] {
        if items(pod, list).is_empty() {
            continue;
        }
        for container in list_mut(pod, list).into_iter().flatten() {
            let name = text(container, "name").to_owned();
            for (field, word, defaults) in [("requests", "request", &requests), ("limits", "limit", &limits)]
            {
                let path = format!("resources.{field}");
                let present = Quantities::read(container, &path);
                let missing: Vec<_> = defaults.iter().filter(|(key, _)| present.get(key).is_none()).collect();
                if missing.is_empty() {
                    continue;
                }
                let keys: Vec<&str> = missing.iter().map(|(key, _)| *key).collect();
                said.push(format!("{} {word} for {kind} {name}", keys.join(", ")));
                if let Some(map) = map_mut(container, &path) {
                    map.extend(
                        missing.iter().map(|(key, value)| ((*key).to_owned(), value.to_string().into())),
                    );
                }
            }
        }
    }
    if !said.is_empty()
        && let Some(annotations) = map_mut(pod, "metadata.annotations")
    {
        annotations
            .insert(ANNOTATION.to_owned(), format!("LimitRanger plugin set: {}", said.join("; ")).into());
    }
}

fn check_claim(limit: &Value, claim: &Value, errors: &mut Vec<String>) {
    if text(limit, "type") != "PersistentVolumeClaim" {
        return;
    }
    let requests = Quantities::read(claim, "spec.resources.requests");
    let bounds =
        Bounds { kind: "PersistentVolumeClaim", requests: &requests, limits: &Quantities::default() };
    for (name, enforced) in Quantities::read(limit, "min").iter() {
        errors.extend(bounds.min(name, enforced));
    }
    for (name, enforced) in Quantities::read(limit, "max").iter() {
        errors.extend(bounds.max_request(name, enforced));
    }
}

fn check_pod(limit: &Value, pod: &Value, errors: &mut Vec<String>) {
    let mut check = |kind: &str, requests: &Quantities, limits: &Quantities| {
        let bounds = Bounds { kind, requests, limits };
        for (name, enforced) in Quantities::read(limit, "min").iter() {
            errors.extend(bounds.min(name, enforced));
        }
        for (name, enforced) in Quantities::read(limit, "max").iter() {
            errors.extend(bounds.max(name, enforced));
        }
        for (name, enforced) in Quantities::read(limit, "maxLimitRequestRatio").iter() {
            errors.extend(bounds.ratio(name, enforced));
        }
    };
    match text(limit, "type") {
        "Container" => {
            for container in items(pod, "spec.containers").iter().chain(items(pod, "spec.initContainers")) {
                let read = |which| Quantities::read(container, which);
                check("Container", &read("resources.requests"), &read("resources.limits"));
            }
        }
        "Pod" => check("Pod", &of_pod(pod, "requests"), &of_pod(pod, "limits")),
        _ => {}
    }
}

/// What one container, pod or claim asks for, to be held against one bound.
struct Bounds<'a> {
    kind: &'a str,
    requests: &'a Quantities,
    limits: &'a Quantities,
}

impl Bounds<'_> {
    fn min(&self, name: &str, enforced: &Quantity) -> Option<String> {
        let said = format!("minimum {name} usage per {} is {enforced}", self.kind);
        let Some(request) = self.requests.get(name) else {
            return Some(format!("{said}.  No request is specified"));
        };
        if request < enforced {
            return Some(format!("{said}, but request is {request}"));
        }
        let limit = self.limits.get(name).filter(|limit| *limit < enforced)?;
        Some(format!("{said}, but limit is {limit}"))
    }

    fn max_request(&self, name: &str, enforced: &Quantity) -> Option<String> {
        let said = format!("maximum {name} usage per {} is {enforced}", self.kind);
        match self.requests.get(name) {
            None => Some(format!("{said}.  No request is specified")),
            Some(request) if request > enforced => Some(format!("{said}, but request is {request}")),
            Some(_) => None,
        }
    }

    fn max(&self, name: &str, enforced: &Quantity) -> Option<String> {
        let said = format!("maximum {name} usage per {} is {enforced}", self.kind);
        let Some(limit) = self.limits.get(name) else {
            return Some(format!("{said}.  No limit is specified"));
        };
        if limit > enforced {
            return Some(format!("{said}, but limit is {limit}"));
        }
        let request = self.requests.get(name).filter(|request| *request > enforced)?;
        Some(format!("{said}, but request is {request}"))
    }

    fn ratio(&self, name: &str, enforced: &Quantity) -> Option<String> {
        let said = format!("{name} max limit to request ratio per {} is {enforced}", self.kind);
        let Some(request) = self.requests.get(name).filter(|request| !request.is_zero()) else {
            return Some(format!("{said}, but no request is specified or request is 0"));
        };
        let Some(limit) = self.limits.get(name).filter(|limit| !limit.is_zero()) else {
            return Some(format!("{said}, but no limit is specified or limit is 0"));
        };
        let ratio = limit.as_f64() / request.as_f64();
        (ratio > enforced.as_f64()).then(|| format!("{said}, but provided ratio is {ratio:.6}"))
    }
}
