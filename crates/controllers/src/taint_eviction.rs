//! Pods leave nodes with NoExecute taints, at once or when the time that they tolerate them for is over.

use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::core::v1::{Node, Pod, Taint, Toleration};
use controller_runtime::{Deletions, Event, EventRecorder, Informer, WorkQueue};
use jiff::Timestamp;

use crate::Error;
use crate::context::Context;
use crate::eviction::{Doomed, remove, status_patch};
use crate::node_lifecycle::index_by_node;
use crate::objects::{is_deleting, is_terminal, node_name};

const WORKERS: usize = 8;

#[derive(Debug, PartialEq)]
pub(crate) enum Decision {
    Keep,
    EvictAfter(Duration),
    Evict,
}

/// Upstream: api/core/v1/toleration.go ToleratesTaint
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "" | "Equal" => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        "Exists" => true,
        _ => false,
    }
}

pub(crate) fn decide(pod: &Pod, taints: &[Taint], now: Timestamp) -> Decision {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut soonest: Option<Duration> = None;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let mut tolerating = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        if tolerating.peek().is_none() {
            return Decision::Evict;
        }
        let Some(seconds) = tolerating.filter_map(|toleration| toleration.toleration_seconds).min() else {
            continue;
        };
        let passed = taint.time_added.as_ref().map_or(0.0, |since| now.duration_since(since.0).as_secs_f64());
        // Input bounds nothing: a time beyond all clocks is never.
        let left = (seconds.clamp(0, i64::from(u32::MAX)) as f64 - passed.max(0.0)).max(0.0);
        let left = Duration::from_secs_f64(left);
        soonest = Some(soonest.map_or(left, |soonest| soonest.min(left)));
    }
    match soonest {
        None => Decision::Keep,
        Some(Duration::ZERO) => Decision::Evict,
        Some(left) => Decision::EvictAfter(left),
    }
}

struct Controller {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    queue: WorkQueue<String>,
    doomed: Doomed,
    removals: Deletions,
    events: EventRecorder,
}

fn evicting(node: &Node) -> Vec<Taint> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        nodes: context.informers.informer(),
        pods: context.informers.informer(),
        queue: WorkQueue::new(),
        doomed: Doomed::default(),
        removals: Deletions::default(),
        events: context.events("taint-eviction-controller"),
        context,
    });
    index_by_node(&controller.pods);
    if !controller.context.synced().await {
        return;
    }
    let this = controller.clone();
    controller.nodes.subscribe(move |event| {
        let (Event::Added(node) | Event::Updated { new: node, .. }) = event else { return };
        let (before, taints) = (event.old().map(|old| evicting(old)).unwrap_or_default(), evicting(node));
        if before != taints {
            this.pods
                .by_index("node", node.name())
                .iter()
                .for_each(|pod| this.queue.add(Object::key(&**pod)));
        }
    });
    let this = controller.clone();
    controller.pods.subscribe(move |event| {
        this.removals.observe(event, is_deleting);
        let (Event::Added(pod) | Event::Updated { new: pod, .. }) = event else {
            this.doomed.remove(event.object());
            return;
        };
        // Not when it is told that it goes.
        // Upstream: pkg/controller/tainteviction/taint_eviction.go PodUpdated
        let tolerations = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.tolerations.clone());
        let same = |old: &Arc<Pod>| node_name(old) == node_name(pod) && tolerations(old) == tolerations(pod);
        let tainted = || this.nodes.get(node_name(pod)).is_some_and(|node| !evicting(&node).is_empty());
        if !event.old().is_some_and(same) && tainted() {
            this.queue.add(Object::key(&**pod));
        }
    });
    controller.context.work(&controller, &controller.queue, WORKERS, Controller::reconcile).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let stays =
            |pod: &Arc<Pod>| !is_deleting(&**pod) && !is_terminal(pod) && !self.removals.contains(pod.uid());
        let Some(pod) = self.pods.get(&key).filter(stays) else { return Ok(()) };
        let Some(node) = self.nodes.get(node_name(&pod)) else { return Ok(()) };
        let now = self.context.clock().now();
        match decide(&pod, &evicting(&node), now) {
            Decision::Keep => {
                if self.doomed.remove(&pod) {
                    let message = format!("Cancelling deletion of Pod {key}");
                    self.events.normal(&*pod, "TaintManagerEviction", message);
                }
            }
            Decision::EvictAfter(left) => {
                self.doomed.insert(&pod);
                self.queue.add_after(key.clone(), left + Duration::from_millis(1));
            }
            Decision::Evict => {
                self.events.normal(&*pod, "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
                let why = ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint");
                let patch = status_patch(&pod, Some(why), None, now);
                remove(&self.context, &self.pods, &self.removals, &pod, patch, None).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use api::meta::Time;

    use super::*;
    use crate::objects::tests::{at, pod};

    #[test]
    fn tolerations_decide() {
        let taint = |key: &str, effect: &str| Taint {
            key: key.into(),
            effect: effect.into(),
            value: None,
            time_added: Some(Time(at(0))),
        };
        let toleration = |key: &str, seconds: Option<i64>| Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            toleration_seconds: seconds,
            ..Default::default()
        };
        let (a, b) = (taint("a", "NoExecute"), taint("b", "NoExecute"));
        let wait = |seconds| Decision::EvictAfter(Duration::from_secs(seconds));
        for (taints, tolerations, expected) in [
            (vec![], vec![], Decision::Keep),
            (vec![taint("a", "NoSchedule")], vec![], Decision::Keep),
            (vec![a.clone()], vec![], Decision::Evict),
            (vec![a.clone()], vec![toleration("b", None)], Decision::Evict),
            (vec![a.clone()], vec![toleration("a", None)], Decision::Keep),
            (vec![a.clone()], vec![toleration("a", Some(300))], wait(290)),
            (
                vec![a.clone(), b.clone()],
                vec![toleration("a", Some(300)), toleration("b", Some(30))],
                wait(20),
            ),
            (vec![a.clone(), b.clone()], vec![toleration("", None)], Decision::Keep),
            (vec![a.clone()], vec![toleration("a", Some(5))], Decision::Evict),
            (vec![a.clone()], vec![toleration("a", Some(-5))], Decision::Evict),
        ] {
            let mut pod = pod("p", "Running", true);
            pod.spec.as_mut().unwrap().tolerations = Some(tolerations);
            assert_eq!(decide(&pod, &taints, at(10)), expected);
        }
    }
}
