//! Pods that nobody else will remove: those of nodes that are gone or out of service, those deleted before they had
//! a node, and the oldest of too many ended ones.
//!
//! Upstream: pkg/controller/podgc/gc_controller.go

use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::core::v1::{Node, Pod};
use controller_runtime::{Deletions, Event, Informer, WorkQueue};
use jiff::Timestamp;

use crate::Error;
use crate::context::Context;
use crate::eviction::{remove, status_patch};
use crate::node_lifecycle::{index_by_node, readiness};
use crate::objects::{created, is_deleting, is_terminal, node_name};

/// Upstream: pkg/controller/podgc/gc_controller.go quarantineTime
const QUARANTINE: Duration = Duration::from_secs(40);
const ENDED: &str = "ended";

struct Controller {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    queue: WorkQueue<String>,
    removals: Deletions,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        nodes: context.informers.informer(),
        pods: context.informers.informer(),
        queue: WorkQueue::new(),
        removals: Deletions::default(),
        context,
    });
    index_by_node(&controller.pods);
    controller.pods.add_index(ENDED, |pod| if is_terminal(pod) { vec![String::new()] } else { Vec::new() });
    if !controller.context.synced().await {
        return;
    }
    let this = controller.clone();
    controller.pods.subscribe(move |event| this.pod_event(event));
    let this = controller.clone();
    controller.nodes.subscribe(move |event| {
        let node = event.object();
        let delay = match event {
            Event::Deleted(_) => QUARANTINE,
            _ if is_out_of_service(node) => Duration::ZERO,
            _ => return,
        };
        let left = this.pods.by_index("node", node.name());
        left.iter().for_each(|pod| this.queue.add_after(Object::key(&**pod), delay));
    });
    controller.context.work(&controller, &controller.queue, 4, Controller::reconcile).await;
}

impl Controller {
    fn pod_event(&self, event: &Event<Pod>) {
        // What is deleted without grace is not seen deleting, but gone.
        self.removals.observe(event, |_| false);
        let (Event::Added(pod) | Event::Updated { new: pod, .. }) = event else { return };
        let key = Object::key(&**pod);
        if node_name(pod).is_empty() {
            if is_deleting(&**pod) {
                self.queue.add(key);
            }
        } else {
            match self.nodes.get(node_name(pod)) {
                None => self.queue.add_after(key, QUARANTINE),
                Some(node) if is_deleting(&**pod) && is_out_of_service(&node) => self.queue.add(key),
                Some(_) => {}
            }
        }
        let newly_ended = is_terminal(pod) && event.old().is_none_or(|old| !is_terminal(old));
        if newly_ended && self.excess() > 0 {
            let mut ended = self.pods.by_index(ENDED, "");
            ended.sort_by_cached_key(|pod| rank(pod));
            ended.iter().take(self.excess()).for_each(|pod| self.queue.add(Object::key(&**pod)));
        }
    }

    /// How many ended pods are too many.
    fn excess(&self) -> usize {
        match self.context.config.options.terminated_pod_gc_threshold {
            0 => 0,
            kept => self.pods.by_index(ENDED, "").len().saturating_sub(kept),
        }
    }

    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let asked = |pod: &Arc<Pod>| self.removals.contains(pod.uid());
        let Some(pod) = self.pods.get(&key).filter(|pod| !asked(pod)) else { return Ok(()) };
        let node = node_name(&pod);
        if node.is_empty() {
            if is_deleting(&*pod) {
                return self.remove(&pod, None).await;
            }
        } else if let Some(node) = self.nodes.get(node) {
            if is_deleting(&*pod) && is_out_of_service(&node) {
                return self.remove(&pod, None).await;
            }
        } else if !self.node_exists(node).await? {
            let why = ("DeletionByPodGC", "PodGC: node no longer exists");
            return self.remove(&pod, Some(why)).await;
        }
        if is_terminal(&pod) && self.excess() > 0 {
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
        let now = self.context.clock().now();
        let patch = if is_terminal(pod) { None } else { status_patch(pod, why, Some("Failed"), now) };
        remove(&self.context, &self.pods, &self.removals, pod, patch, Some(0)).await
    }
}

/// Those that were evicted go first: they are nobody's result.
///
/// Upstream: pkg/controller/podgc/gc_controller.go byEvictionAndCreationTimestamp
fn rank(pod: &Pod) -> (bool, Timestamp, String) {
    let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref());
    (reason != Some("Evicted"), created(pod), pod.name().to_owned())
}

/// Whether somebody vouches that nothing runs on the node any more.
fn is_out_of_service(node: &Node) -> bool {
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    readiness(node) != "True" && taints.any(|taint| taint.key == "node.kubernetes.io/out-of-service")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::tests::{at, pod};

    #[test]
    fn the_evicted_and_the_oldest_go_first() {
        let aged = |name: &str, seconds: i64, reason: Option<&str>| {
            let mut pod = pod(name, "Failed", false);
            pod.metadata.creation_timestamp = Some(api::meta::Time(at(seconds)));
            pod.status.as_mut().unwrap().reason = reason.map(str::to_owned);
            pod
        };
        let mut pods = [
            aged("new", 9, None),
            aged("b", 1, None),
            aged("a", 1, None),
            aged("evicted", 20, Some("Evicted")),
        ];
        pods.sort_by_cached_key(rank);
        assert_eq!(pods.map(|pod| pod.name().to_owned()), ["evicted", "a", "b", "new"]);
    }

    #[test]
    fn a_node_is_out_of_service_when_somebody_says_so_and_it_is_silent() {
        for (ready, key, expected) in [
            ("True", "node.kubernetes.io/out-of-service", false),
            ("Unknown", "node.kubernetes.io/out-of-service", true),
            ("Unknown", "node.kubernetes.io/unreachable", false),
        ] {
            let node = Node::from_value(json!({
                "metadata": {"name": "n"}, "spec": {"taints": [{"key": key, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }));
            assert_eq!(is_out_of_service(&node.unwrap()), expected, "{ready} {key}");
        }
    }
}
