//! A pod takes overhead, node selector and tolerations from its RuntimeClass.
//!
//! Upstream: plugin/pkg/admission/runtimeclass/admission.go

use std::sync::Arc;

use apimachinery::{GroupResource, Status};
use serde_json::Value;

use super::tree::{at, entries, entry, items, list_mut, map_mut, set, text};
use super::{Context, Plugin, forbid, is_create, is_whole};
use crate::seams::AdmissionRequest;
use resources::quota::Quantities;

const RUNTIME_CLASSES: GroupResource = GroupResource::from_static("node.k8s.io", "runtimeclasses");

pub(super) struct RuntimeClass;

fn class_of(context: &Context, request: &AdmissionRequest<'_>) -> Result<Option<Arc<Value>>, Status> {
    if at(request.object, "spec.runtimeClassName").is_none() {
        return Ok(None);
    }
    let name = text(request.object, "spec.runtimeClassName");
    match context.lookup.get(&RUNTIME_CLASSES, "", name) {
        Some(class) => Ok(Some(class)),
        None => Err(forbid(request, format!("pod rejected: RuntimeClass {name:?} not found"))),
    }
}

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn mutate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_whole(request, "", "pods") || !is_create(request) {
            return Ok(());
        }
        let Some(class) = class_of(context, request)? else { return Ok(()) };
        if let Some(overhead) = at(&class, "overhead") {
            let wanted = Quantities::read(overhead, "podFixed");
            let given = Quantities::read(request.object, "spec.overhead");
            if !given.is_empty() && given != wanted {
                return Err(forbid(request, MISMATCH));
            }
            set(request.object, "spec.overhead", at(overhead, "podFixed").cloned().unwrap_or_default());
        }
        for (key, wanted) in entries(&class, "scheduling.nodeSelector") {
            let wanted = wanted.as_str().unwrap_or_default();
            if let Some(given) =
                entry(request.object, "spec.nodeSelector", key).filter(|given| *given != wanted)
            {
                return Err(forbid(
                    request,
                    format!(
                        "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; \
                         pod.spec.nodeSelector[{key}] = {given}"
                    ),
                ));
            }
            if let Some(selector) = map_mut(request.object, "spec.nodeSelector") {
                selector.insert(key.to_owned(), wanted.into());
            }
        }
        let added = items(&class, "scheduling.tolerations");
        if !added.is_empty()
            && let Some(tolerations) = list_mut(request.object, "spec.tolerations")
        {
            for toleration in added {
                if !tolerations.contains(toleration) {
                    tolerations.push(toleration.clone());
                }
            }
        }
        Ok(())
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_whole(request, "", "pods") || !is_create(request) {
            return Ok(());
        }
        let class = class_of(context, request)?;
        let given = Quantities::read(request.object, "spec.overhead");
        match class.as_deref().and_then(|class| at(class, "overhead")) {
            Some(overhead) if given != Quantities::read(overhead, "podFixed") => {
                Err(forbid(request, MISMATCH))
            }
            None if at(request.object, "spec.overhead").is_some() => {
                let why =
                    "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
                Err(forbid(request, why))
            }
            _ => Ok(()),
        }
    }
}
