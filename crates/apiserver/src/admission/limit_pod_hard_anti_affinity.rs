//! Pods may keep others away from their own node, and from nothing larger.
//!
//! Upstream: plugin/pkg/admission/antiaffinity/admission.go

use apimachinery::Status;

use super::tree::{items, text};
use super::{Context, Plugin, core, is_create, is_update, is_whole};
use crate::seams::AdmissionRequest;

const HOSTNAME: &str = "kubernetes.io/hostname";
const TERMS: &str = "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution";

pub(super) struct LimitPodHardAntiAffinityTopology;

impl Plugin for LimitPodHardAntiAffinityTopology {
    fn name(&self) -> &'static str {
        "LimitPodHardAntiAffinityTopology"
    }

    fn is_default(&self) -> bool {
        false
    }

    fn validate(&self, _context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_whole(request, "", "pods") || !(is_create(request) || is_update(request)) {
            return Ok(());
        }
        let keys = items(request.object, TERMS).iter().map(|term| text(term, "topologyKey"));
        let Some(key) = keys.into_iter().find(|key| *key != HOSTNAME) else { return Ok(()) };
        let why = format!(
            "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key {HOSTNAME} is allowed"
        );
        Err(Status::forbidden(&core("pods"), text(request.object, "metadata.name"), why))
    }
}
