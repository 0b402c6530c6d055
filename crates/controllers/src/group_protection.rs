//! A group of pods is not removed while pods of it are there that have not ended: a finalizer, put on at admission,
//! is taken off when none is left.
//!
//! Upstream: pkg/controller/scheduling/podgroupprotection/podgroup_protection_controller.go

use std::sync::Arc;

use api::Object;
use api::core::v1::Pod;
use api::scheduling::v1alpha2::PodGroup;
use controller_runtime::{Event, Informer, WorkQueue};

use crate::Error;
use crate::context::Context;
use crate::objects::{is_deleting, is_terminal};

const WORKERS: usize = 1;
const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";
/// Pods that have not ended, by the key of their group.
const BY_GROUP: &str = "podgroup";

struct Groups {
    groups: Informer<PodGroup>,
    pods: Informer<Pod>,
}

fn group_of(pod: &Pod) -> Option<String> {
    let group = pod.spec.as_ref()?.scheduling_group.as_ref()?.pod_group_name.as_ref()?;
    Some(format!("{}/{group}", pod.namespace()))
}

fn holds_back(group: &PodGroup) -> bool {
    let finalizers = group.metadata.finalizers.as_deref().unwrap_or_default();
    is_deleting(group) && finalizers.iter().any(|finalizer| finalizer == FINALIZER)
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller =
        Arc::new(Groups { groups: context.informers.informer(), pods: context.informers.informer() });
    controller.pods.add_index(BY_GROUP, |pod: &Pod| match is_terminal(pod) {
        true => Vec::new(),
        false => group_of(pod).into_iter().collect(),
    });
    let queue = WorkQueue::new();
    let groups = queue.clone();
    controller.groups.subscribe(move |event| {
        if holds_back(event.object()) {
            groups.add(event.object().key());
        }
    });
    let pods = queue.clone();
    controller.pods.subscribe(move |event| {
        // What was there before under the same name may have been the last of its group.
        let before = event.old().filter(|old| old.uid() != event.object().uid());
        let ended = matches!(event, Event::Deleted(_)) || is_terminal(event.object());
        let left = before.into_iter().chain(ended.then(|| event.object()));
        left.filter_map(|pod| group_of(pod)).for_each(|key| pods.add(key));
    });
    context.work(&controller, &queue, WORKERS, Groups::reconcile).await;
}

impl Groups {
    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(group) = self.groups.get(&key).filter(|group| holds_back(group)) else { return Ok(()) };
        if !self.pods.by_index(BY_GROUP, &key).is_empty() {
            return Ok(());
        }
        let mut updated = (*group).clone();
        if let Some(finalizers) = &mut updated.metadata.finalizers {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        match self.groups.update(&updated).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }
}
