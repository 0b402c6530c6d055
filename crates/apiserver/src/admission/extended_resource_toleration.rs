//! A pod that asks for a device may run on nodes that are kept for pods with that device.
//!
//! Upstream: plugin/pkg/admission/extendedresourcetoleration/admission.go

use std::collections::BTreeSet;

use apimachinery::Status;
use serde_json::json;

use super::tree::{entries, items, list_mut, text};
use super::{Context, Plugin, is_create, is_update, is_whole};
use crate::seams::AdmissionRequest;

pub(super) struct ExtendedResourceToleration;

impl Plugin for ExtendedResourceToleration {
    fn name(&self) -> &'static str {
        "ExtendedResourceToleration"
    }

    fn is_default(&self) -> bool {
        false
    }

    fn mutate(&self, _context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_whole(request, "", "pods") || !(is_create(request) || is_update(request)) {
            return Ok(());
        }
        let lists = ["spec.containers", "spec.initContainers"];
        let containers = lists.iter().flat_map(|list| items(request.object, list));
        let asked = containers.flat_map(|container| entries(container, "resources.requests"));
        let devices: BTreeSet<String> = asked
            .map(|(name, _)| name)
            .filter(|name| resources::validate::is_extended_resource(name))
            .map(str::to_owned)
            .collect();
        if devices.is_empty() {
            return Ok(());
        }
        let Some(tolerations) = list_mut(request.object, "spec.tolerations") else { return Ok(()) };
        for device in devices {
            let wanted = json!({"key": device, "operator": "Exists", "effect": "NoSchedule"});
            let same = |toleration: &&mut serde_json::Value| {
                ["key", "effect", "operator", "value"]
                    .iter()
                    .all(|field| text(toleration, field) == text(&wanted, field))
            };
            match tolerations.iter_mut().find(same) {
                Some(toleration) => *toleration = wanted,
                None => tolerations.push(wanted),
            }
        }
        Ok(())
    }
}
