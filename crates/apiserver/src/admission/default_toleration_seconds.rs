//! A pod stays five minutes on a node that is not ready or not heard of, unless it says otherwise.
//!
//! Upstream: plugin/pkg/admission/defaulttolerationseconds/admission.go

use apimachinery::Status;
use serde_json::{Value, json};

use super::tree::{items, list_mut, text};
use super::{Context, Plugin, is_create, is_update, is_whole};
use crate::seams::AdmissionRequest;

const SECONDS: i64 = 300;
const CONDITIONS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

pub(super) struct DefaultTolerationSeconds;

impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn mutate(&self, _context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_whole(request, "", "pods") || !(is_create(request) || is_update(request)) {
            return Ok(());
        }
        let tolerates = |tolerations: &[Value], condition: &str| {
            tolerations.iter().any(|toleration| {
                let (key, effect) = (text(toleration, "key"), text(toleration, "effect"));
                (key.is_empty() || key == condition) && (effect.is_empty() || effect == "NoExecute")
            })
        };
        let present = items(request.object, "spec.tolerations");
        let missing: Vec<Value> = CONDITIONS
            .into_iter()
            .filter(|condition| !tolerates(present, condition))
            .map(|condition| {
                json!({
                    "key": condition, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS,
                })
            })
            .collect();
        if !missing.is_empty()
            && let Some(tolerations) = list_mut(request.object, "spec.tolerations")
        {
            tolerations.extend(missing);
        }
        Ok(())
    }
}
