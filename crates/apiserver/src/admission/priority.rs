//! A pod's priority comes from its PriorityClass, never from the pod's author.
//!
//! Upstream: plugin/pkg/admission/priority/admission.go

use std::sync::Arc;

use apimachinery::{GroupResource, Status};
use serde_json::Value;

use super::tree::{at, flag, integer, set, text};
use super::{Context, Plugin, forbid, is_create, is_update, is_whole};
use crate::seams::AdmissionRequest;

const PRIORITY_CLASSES: GroupResource = GroupResource::from_static("scheduling.k8s.io", "priorityclasses");

pub(super) struct Priority;

/// The default class; of several the least.
fn default_class(context: &Context) -> Option<Arc<Value>> {
    let classes = context.lookup.list(&PRIORITY_CLASSES, None);
    let defaults = classes.into_iter().filter(|class| flag(class, "globalDefault") == Some(true));
    defaults.min_by_key(|class| integer(class, "value").unwrap_or_default())
}

impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn mutate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_whole(request, "", "pods") {
            return Ok(());
        }
        if is_create(request) {
            return set_priority(context, request);
        }
        // A manifest applied again lacks what was computed at creation.
        if is_update(request)
            && let Some(old) = request.old_object
        {
            for path in ["spec.priority", "spec.preemptionPolicy"] {
                if at(request.object, path).is_none()
                    && let Some(value) = at(old, path)
                {
                    set(request.object, path, value.clone());
                }
            }
        }
        Ok(())
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_whole(request, "scheduling.k8s.io", "priorityclasses")
            || !(is_create(request) || is_update(request))
            || flag(request.object, "globalDefault") != Some(true)
        {
            return Ok(());
        }
        let Some(present) = default_class(context) else { return Ok(()) };
        let name = text(&present, "metadata.name");
        if is_create(request) || name != text(request.object, "metadata.name") {
            let why =
                format!("PriorityClass {name} is already marked as default. Only one default can exist");
            return Err(forbid(request, why));
        }
        Ok(())
    }
}

fn set_priority(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    let asked = text(request.object, "spec.priorityClassName").to_owned();
    let class = match asked.is_empty() {
        true => default_class(context),
        false => {
            let class = context.lookup.get(&PRIORITY_CLASSES, "", &asked);
            let why = || forbid(request, format!("no PriorityClass with name {asked} was found"));
            Some(class.ok_or_else(why)?)
        }
    };
    let (priority, policy) = match &class {
        Some(class) => (integer(class, "value").unwrap_or_default(), text(class, "preemptionPolicy")),
        None => (0, "PreemptLowerPriority"),
    };
    if let Some(given) = integer(request.object, "spec.priority").filter(|given| *given != priority) {
        return Err(forbid(
            request,
            format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission \
                 controller computed {priority} from the given PriorityClass name"
            ),
        ));
    }
    let given = text(request.object, "spec.preemptionPolicy");
    if !given.is_empty() && !policy.is_empty() && given != policy {
        return Err(forbid(
            request,
            format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
                 controller computed {policy} from the given PriorityClass name"
            ),
        ));
    }
    if let Some(class) = &class {
        set(request.object, "spec.priorityClassName", text(class, "metadata.name"));
    }
    set(request.object, "spec.priority", priority);
    if !policy.is_empty() {
        set(request.object, "spec.preemptionPolicy", policy);
    }
    Ok(())
}
