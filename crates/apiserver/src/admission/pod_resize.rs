//! A pod is not given more than its node has, nor other resources than what can be changed where it runs.
//!
//! Upstream: plugin/pkg/admission/{podresize,nodedeclaredfeatures}/admission.go

use std::sync::Arc;

use apimachinery::Status;
use apimachinery::quantity::Quantity;
use apimachinery::status::Cause;
use resources::quota::{Quantities, of_pod};
use serde_json::Value;

use super::tree::{at, items, label, same, strings, text};
use super::{Context, Plugin, core, forbid, is, is_update};
use crate::seams::AdmissionRequest;

pub(super) struct PodResizeValidator;

pub(super) struct NodeDeclaredFeatureValidator;

/// The node of a pod whose spec changes by one of these subresources.
fn node(
    context: &Context,
    request: &AdmissionRequest<'_>,
    subresources: &[&str],
) -> Result<Option<Arc<Value>>, Status> {
    let name = text(request.object, "spec.nodeName");
    let concerned =
        is(request, "", "pods") && is_update(request) && subresources.contains(&request.subresource);
    let changes = request
        .old_object
        .is_some_and(|old| old["metadata"]["generation"] != request.object["metadata"]["generation"]);
    if !concerned || name.is_empty() || !changes {
        return Ok(None);
    }
    let node = context.lookup.get(&core("nodes"), "", name);
    node.map(Some).ok_or_else(|| forbid(request, format!("node {name:?} not found")))
}

fn refused(request: &AdmissionRequest<'_>, why: String, cause: &str) -> Status {
    let mut status = forbid(request, why);
    let mut details = status.details.take().unwrap_or_default();
    details.causes.push(Cause { reason: cause.to_owned(), ..Cause::default() });
    status.details = Some(details);
    status
}

impl Plugin for PodResizeValidator {
    fn name(&self) -> &'static str {
        "PodResizeValidator"
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(node) = node(context, request, &["resize"])? else { return Ok(()) };
        if let Some(system) = label(&node, "kubernetes.io/os").filter(|system| *system != "linux") {
            let name = text(&node, "metadata.name");
            let why = format!("pod resize is only supported on linux nodes, node {name:?} is {system:?}");
            return Err(refused(request, why, "UnsupportedPlatform"));
        }
        let wanted = of_pod(request.object, "requests");
        let has = Quantities::read(&node, "status.allocatable");
        type Shown = fn(&Quantity) -> i64;
        let lacking: Vec<String> = [("cpu", Quantity::milli_value as Shown), ("memory", Quantity::value)]
            .into_iter()
            .filter_map(|(name, shown)| {
                let none = Quantity::default();
                let (wanted, has) = (wanted.get(name).unwrap_or(&none), has.get(name).unwrap_or(&none));
                let (asked, there) = (shown(wanted), shown(has));
                (wanted > has).then(|| format!("{name}, requested: {asked}, allocatable: {there}"))
            })
            .collect();
        if lacking.is_empty() {
            return Ok(());
        }
        let why = format!("node didn't have enough allocatable resources: {}", lacking.join("; "));
        Err(refused(request, why, "NodeCapacity"))
    }
}

/// The features that a change of a pod needs of its node.
///
/// Upstream: component-helpers/nodedeclaredfeatures/features InferForUpdate
fn needed(old: &Value, new: &Value) -> Vec<&'static str> {
    let mut needed = Vec::new();
    if !same(at(old, "spec.resources"), at(new, "spec.resources")) {
        needed.push("InPlacePodLevelResourcesVerticalScaling");
    }
    let (before, after) = (items(old, "spec.initContainers"), items(new, "spec.initContainers"));
    let resized = before.iter().zip(after).any(|(before, after)| {
        text(before, "restartPolicy") != "Always" && !same(before.get("resources"), after.get("resources"))
    });
    if resized {
        needed.push("InPlacePodVerticalScalingInitContainers");
    }
    needed
}

impl Plugin for NodeDeclaredFeatureValidator {
    fn name(&self) -> &'static str {
        "NodeDeclaredFeatureValidator"
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let mut needed = request.old_object.map(|old| needed(old, request.object)).unwrap_or_default();
        if needed.is_empty() {
            return Ok(());
        }
        let Some(node) = node(context, request, &["", "resize"])? else { return Ok(()) };
        let declared = strings(&node, "status.declaredFeatures");
        needed.retain(|feature| !declared.iter().any(|declared| declared == feature));
        if needed.is_empty() {
            return Ok(());
        }
        let (features, name) = (needed.join(", "), text(&node, "metadata.name"));
        let why = format!("pod update requires features {features} which are not available on node {name:?}");
        Err(forbid(request, why))
    }
}
