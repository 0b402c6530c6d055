//! A new node is not ready, and says so by a taint until the node lifecycle controller knows better.
//!
//! Upstream: plugin/pkg/admission/nodetaint/admission.go

use apimachinery::Status;
use serde_json::json;

use super::tree::{list_mut, text};
use super::{Context, Plugin, is_create, is_whole};
use crate::seams::AdmissionRequest;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub(super) struct TaintNodesByCondition;

impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn mutate(&self, _context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_whole(request, "", "nodes") || !is_create(request) {
            return Ok(());
        }
        if let Some(taints) = list_mut(request.object, "spec.taints") {
            let there = |taint| text(taint, "key") == NOT_READY && text(taint, "effect") == "NoSchedule";
            if !taints.iter().any(there) {
                taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
            }
        }
        Ok(())
    }
}
