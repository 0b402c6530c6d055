//! Pods that nobody else will remove: those of nodes that are gone, those deleted before they had a node, and
//! the oldest of too many ended ones.

use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::core::v1::{Node, Pod};
use client::{DeleteOptions, PatchType};
use controller_runtime::{Event, Informer, WorkQueue, run_workers};

use crate::Error;
use crate::context::Context;
use crate::node_lifecycle::index_by_node;
use crate::objects::{created, is_deleting, is_terminal, node_name};
use crate::taint_eviction::disruption_patch;

/// Upstream: pkg/controller/podgc/gc_controller.go quarantineTime
const QUARANTINE: Duration = Duration::from_secs(40);
/// Upstream: pkg/controller/podgc/config/v1alpha1/defaults.go TerminatedPodGCThreshold
const MAX_ENDED: usize = 12_500;
const ENDED: &str = "ended";

struct Controller {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    queue: WorkQueue<String>,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        nodes: context.informers.informer(),
        pods: context.informers.informer(),
        queue: WorkQueue::new(),
        context,
    });
    index_by_node(&controller.pods);
    controller.pods.add_index(ENDED, |pod| if is_terminal(pod) { vec![String::new()] } else { Vec::new() });
    if !(controller.nodes.synced().await && controller.pods.synced().await) {
        return;
    }
    let this = controller.clone();
    controller.pods.subscribe(move |event| this.pod_event(event));
    let this = controller.clone();
    controller.nodes.subscribe(move |event| {
        if let Event::Deleted(node) = event {
            let left = this.pods.by_index("node", node.name());
            left.iter().for_each(|pod| this.queue.add_after(Object::key(&**pod), QUARANTINE));
        }
    });
    let (queue, shutdown) = (controller.queue.clone(), controller.context.shutdown.clone());
    run_workers("pod-garbage-collector-controller", &queue, 4, &shutdown, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    })
    .await;
}

impl Controller {
    fn pod_event(&self, event: &Event<Pod>) {
        let (Event::Added(pod) | Event::Updated { new: pod, .. }) = event else { return };
        let key = Object::key(&**pod);
        if node_name(pod).is_empty() {
            if is_deleting(&**pod) {
                self.queue.add(key);
            }
        } else if self.nodes.get(node_name(pod)).is_none() {
            self.queue.add_after(key, QUARANTINE);
        }
        let newly_ended = is_terminal(pod) && event.old().is_none_or(|old| !is_terminal(old));
        if newly_ended {
            let mut ended = self.pods.by_index(ENDED, "");
            if ended.len() > MAX_ENDED {
                let excess = ended.len() - MAX_ENDED;
                ended.sort_by_cached_key(|pod| created(&**pod));
                ended.iter().take(excess).for_each(|pod| self.queue.add(Object::key(&**pod)));
            }
        }
    }

    async fn reconcile(&self, key: &str) -> Result<(), Error> {
        let Some(pod) = self.pods.get(key) else { return Ok(()) };
        let node = node_name(&pod);
        if node.is_empty() {
            if is_deleting(&*pod) {
                return self.remove(&pod, None).await;
            }
        } else if self.nodes.get(node).is_none() && !self.node_exists(node).await? {
            let why = ("DeletionByPodGC", "PodGC: node no longer exists");
            return self.remove(&pod, Some(why)).await;
        }
        if is_terminal(&pod) && self.pods.by_index(ENDED, "").len() > MAX_ENDED {
            return self.remove(&pod, None).await;
        }
        Ok(())
    }

    async fn node_exists(&self, name: &str) -> Result<bool, Error> {
        match self.context.client.get::<Node>("", name).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes without grace: there is no kubelet to confirm. What had not ended is marked failed first, so that
    /// its owner counts it.
    async fn remove(&self, pod: &Pod, why: Option<(&str, &str)>) -> Result<(), Error> {
        if let Some(why) = why.filter(|_| !is_terminal(pod)) {
            let patch = disruption_patch(pod, why, self.context.clock().now(), Some("Failed"));
            match self.pods.patch(pod, Some("status"), PatchType::Merge, &patch).await {
                Err(error) if error.is_not_found() => return Ok(()),
                patched => patched?,
            };
        }
        let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::uid(pod.uid()) };
        match self.context.client.delete::<Pod>(pod.namespace(), pod.name(), &options).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}
