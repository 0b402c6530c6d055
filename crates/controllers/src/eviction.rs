//! Pods that the control plane takes away: they say why before they go, for Jobs' failure policies and for people.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use api::Object;
use api::core::v1::{Pod, PodCondition};
use api::meta::Time;
use client::{DeleteOptions, PatchType};
use controller_runtime::{Deletions, Informer};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Error;
use crate::context::Context;
use crate::objects::condition;

const DISRUPTED: &str = "DisruptionTarget";

/// What is written into the pod's status before it goes; `None` when it says all that already.
pub(crate) fn status_patch(
    pod: &Pod,
    why: Option<(&str, &str)>,
    phase: Option<&str>,
    now: Timestamp,
) -> Option<Value> {
    let mut status = json!({});
    if let Some((reason, message)) = why {
        let said = condition(pod, DISRUPTED).filter(|said| said.status == "True");
        if said.is_none_or(|s| s.reason.as_deref() != Some(reason) || s.message.as_deref() != Some(message)) {
            let since = said.and_then(|said| said.last_transition_time.clone()).unwrap_or(Time(now));
            let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
            conditions.retain(|condition| condition.type_ != DISRUPTED);
            conditions.push(PodCondition {
                type_: DISRUPTED.to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_transition_time: Some(since),
                observed_generation: pod.metadata.generation,
                ..Default::default()
            });
            status["conditions"] = json!(conditions);
        }
    }
    if let Some(phase) = phase {
        status["phase"] = json!(phase);
        status["observedGeneration"] = json!(pod.metadata.generation);
    }
    let empty = status.as_object().is_none_or(|fields| fields.is_empty());
    (!empty).then(|| {
        let metadata = json!({"uid": pod.uid(), "resourceVersion": pod.metadata.resource_version});
        json!({"metadata": metadata, "status": status})
    })
}

/// Writes the patch, if there is one, and deletes the pod. One that is gone is as good as deleted. Callers ask
/// `removals` first, so that what the cache does not show yet is not done again.
pub(crate) async fn remove(
    context: &Context,
    pods: &Informer<Pod>,
    removals: &Deletions,
    pod: &Pod,
    patch: Option<Value>,
    grace_period_seconds: Option<i64>,
) -> Result<(), Error> {
    removals.begin(pod.uid());
    let removed = mark_and_delete(context, pods, pod, patch, grace_period_seconds).await;
    if !matches!(removed, Ok(true)) {
        removals.undo(pod.uid());
    }
    removed.map(drop)
}

/// False when the pod was gone already.
async fn mark_and_delete(
    context: &Context,
    pods: &Informer<Pod>,
    pod: &Pod,
    patch: Option<Value>,
    grace_period_seconds: Option<i64>,
) -> Result<bool, Error> {
    if let Some(patch) = patch {
        match pods.patch(pod, Some("status"), PatchType::Merge, &patch).await {
            Err(error) if error.is_not_found() => return Ok(false),
            patched => patched?,
        };
    }
    let options = DeleteOptions { grace_period_seconds, ..DeleteOptions::uid(pod.uid()) };
    match context.client.delete::<Pod>(pod.namespace(), pod.name(), &options).await {
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(true),
    }
}

/// Pods whose time is running, by uid: it is told when they may stay after all.
#[derive(Default)]
pub(crate) struct Doomed(Mutex<BTreeSet<String>>);

impl Doomed {
    pub fn insert(&self, pod: &Pod) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.uid().to_owned());
    }

    /// Whether the pod's time was running.
    pub fn remove(&self, pod: &Pod) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(pod.uid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::tests::{at, pod};

    #[test]
    fn a_pod_is_told_once_why_it_goes() {
        let why = Some(("Gone", "it goes"));
        let mut pod = pod("p", "Running", true);
        let patch = status_patch(&pod, why, None, at(5)).unwrap();
        let conditions = patch["status"]["conditions"].as_array().unwrap();
        assert_eq!((conditions.len(), &conditions[1]["reason"]), (2, &json!("Gone")));
        assert!(patch["status"].get("phase").is_none());
        let conditions = serde_json::from_value(json!(conditions)).unwrap();
        pod.status.as_mut().unwrap().conditions = Some(conditions);
        assert_eq!(status_patch(&pod, why, None, at(9)), None);
        let failed = status_patch(&pod, why, Some("Failed"), at(9)).unwrap();
        assert_eq!(
            (&failed["status"]["phase"], failed["status"].get("conditions")),
            (&json!("Failed"), None)
        );
        let other = status_patch(&pod, Some(("Other", "it goes")), None, at(9)).unwrap();
        // It is as long as before that it goes.
        assert_eq!(other["status"]["conditions"][1]["lastTransitionTime"], "2026-01-01T00:00:05Z");
        assert_eq!(status_patch(&pod, None, None, at(9)), None);
    }
}
