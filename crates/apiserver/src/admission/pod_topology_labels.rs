//! A pod carries the zone and region of its node as labels: they are copied where the node is decided, into the
//! binding, or into a pod that is made with a node.
//!
//! Upstream: plugin/pkg/admission/podtopologylabels/admission.go

use apimachinery::Status;

use super::tree::{label, map_mut, text};
use super::{Context, Plugin, core, is, is_create};
use crate::seams::AdmissionRequest;

const LABELS: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

pub(super) struct PodTopologyLabels;

impl Plugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn mutate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is(request, "", "pods") || !is_create(request) {
            return Ok(());
        }
        let node = match request.subresource {
            "" => text(request.object, "spec.nodeName"),
            "binding" if text(request.object, "target.kind") == "Node" => text(request.object, "target.name"),
            _ => return Ok(()),
        };
        if node.is_empty() {
            return Ok(());
        }
        let Some(node) = context.lookup.get(&core("nodes"), "", node) else { return Ok(()) };
        for key in LABELS {
            if let Some(value) = label(&node, key)
                && let Some(labels) = map_mut(request.object, "metadata.labels")
            {
                labels.insert(key.to_owned(), value.into());
            }
        }
        Ok(())
    }
}
