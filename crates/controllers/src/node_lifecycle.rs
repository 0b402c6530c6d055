//! The health of nodes: a kubelet that stays silent is unknown, what is wrong with a node becomes taints, and the
//! pods of a node that is not ready are not ready.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::Object;
use api::coordination::v1::Lease;
use api::core::v1::{Node, NodeCondition, Pod, Taint};
use api::meta::{MicroTime, Time};
use client::PatchType;
use controller_runtime::{Event, EventRecorder, Filter, Informer, WorkQueue, run_workers};
use jiff::Timestamp;
use serde_json::json;

use crate::Error;
use crate::context::Context;
use crate::objects::{created, is_deleting, is_ready, node_name};

const COMPONENT: &str = "node-controller";
/// Upstream: pkg/controller/nodelifecycle/node_lifecycle_controller.go nodeUpdateWorkerSize
const WORKERS: usize = 8;
/// Upstream: pkg/controller/nodelifecycle/config/v1alpha1/defaults.go
const GRACE: Duration = Duration::from_secs(50);
const STARTUP_GRACE: Duration = Duration::from_secs(60);
const LEASES: &str = "kube-node-lease";

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that are bad when true, and their taints.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
];

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// `True`, `False` or `Unknown`; a node that never said so is unknown.
pub(crate) fn readiness(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |ready| ready.status.as_str())
}

/// The taints that the node's state asks for. `evict` says whether pods may be driven off at all: not when no
/// node is ready, since then the fault is likely ours.
pub(crate) fn taints(node: &Node, evict: bool, now: Timestamp) -> Vec<Taint> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let bad = match readiness(node) {
        "False" => Some(NOT_READY),
        "Unknown" => Some(UNREACHABLE),
        _ => None,
    };
    wanted.extend(bad.map(|key| (key, "NoSchedule")));
    let pressed = |kind: &str| condition(node, kind).is_some_and(|condition| condition.status == "True");
    wanted.extend(PRESSURES.iter().filter(|(kind, _)| pressed(kind)).map(|(_, key)| (*key, "NoSchedule")));
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    wanted.extend(bad.filter(|_| evict).map(|key| (key, "NoExecute")));
    let ours = |taint: &Taint| match taint.effect.as_str() {
        "NoSchedule" => {
            [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str())
                || PRESSURES.iter().any(|(_, key)| *key == taint.key)
        }
        "NoExecute" => [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()),
        _ => false,
    };
    let present = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let mut result: Vec<Taint> = present
        .filter(|taint| !ours(taint) || wanted.contains(&(taint.key.as_str(), taint.effect.as_str())))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !result.iter().any(|taint| taint.key == key && taint.effect == effect) {
            result.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    result
}

/// The conditions of a node whose kubelet went silent.
pub(crate) fn silenced(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let mut conditions =
        node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|condition| condition.type_ == kind) {
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(Time(now));
            }
            Some(_) => {}
            None => conditions.push(NodeCondition {
                type_: kind.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
        }
    }
    conditions
}

/// When a node was last heard of by our own clock: kubelets' clocks are not trusted.
#[derive(Clone, Default)]
struct Heard {
    at: Timestamp,
    heartbeat: Option<Time>,
    renewed: Option<MicroTime>,
}

struct Controller {
    context: Context,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    heard: Mutex<HashMap<String, Heard>>,
    queue: WorkQueue<String>,
    events: EventRecorder,
}

pub(crate) fn index_by_node(pods: &Informer<Pod>) {
    pods.add_index("node", |pod| vec![node_name(pod).to_owned()]);
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        nodes: context.informers.informer(),
        leases: context.informers.filtered(Filter::namespace(LEASES)),
        pods: context.informers.informer(),
        heard: Mutex::default(),
        queue: WorkQueue::new(),
        events: context.events(COMPONENT),
        context,
    });
    index_by_node(&controller.pods);
    let synced =
        [controller.nodes.synced().await, controller.leases.synced().await, controller.pods.synced().await];
    if synced.contains(&false) {
        return;
    }
    let this = controller.clone();
    controller.leases.subscribe(move |event| this.lease_event(event));
    let this = controller.clone();
    controller.nodes.subscribe(move |event| this.node_event(event));
    let (queue, shutdown) = (controller.queue.clone(), controller.context.shutdown.clone());
    run_workers("node-lifecycle-controller", &queue, WORKERS, &shutdown, move |name| {
        let controller = controller.clone();
        async move { controller.reconcile(&name).await }
    })
    .await;
}

impl Controller {
    fn heard(&self) -> MutexGuard<'_, HashMap<String, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease_event(&self, event: &Event<Lease>) {
        let lease = event.object();
        let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
        let mut all = self.heard();
        let heard = all.entry(lease.name().to_owned()).or_default();
        if renewed.is_some() && heard.renewed != renewed {
            heard.at = self.context.clock().now();
            heard.renewed = renewed;
        }
    }

    fn node_event(&self, event: &Event<Node>) {
        let node = event.object();
        let name = node.name();
        let about = |verb: &str| format!("Node {name} event: {verb}");
        match event {
            Event::Added(_) => {
                self.events.normal(
                    &**node,
                    "RegisteredNode",
                    about(&format!("Registered Node {name} in Controller")),
                );
            }
            Event::Deleted(_) => {
                self.events.normal(
                    &**node,
                    "RemovingNode",
                    about(&format!("Removing Node {name} from Controller")),
                );
                self.heard().remove(name);
            }
            Event::Updated { .. } => {}
        }
        let heartbeat = condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.clone());
        if !matches!(event, Event::Deleted(_)) {
            let mut all = self.heard();
            let heard = all.entry(name.to_owned()).or_default();
            if heartbeat.is_none() {
                heard.at = heard.at.max(created(&**node).min(self.context.clock().now()));
            } else if heard.heartbeat != heartbeat {
                heard.at = self.context.clock().now();
                heard.heartbeat = heartbeat;
            }
        }
        // Whether pods may be driven off any node depends on the readiness of all.
        let before = event.old().map(|old| readiness(old).to_owned());
        let now = (!matches!(event, Event::Deleted(_))).then(|| readiness(node).to_owned());
        if before == now {
            self.queue.add(name.to_owned());
        } else {
            self.nodes.list().iter().for_each(|node| self.queue.add(node.name().to_owned()));
        }
    }

    async fn reconcile(&self, name: &str) -> Result<(), Error> {
        let Some(mut node) = self.nodes.get(name) else { return Ok(()) };
        let now = self.context.clock().now();
        let at = self.heard().get(name).map_or(now, |heard| heard.at);
        let grace = if condition(&node, "Ready").is_some() { GRACE } else { STARTUP_GRACE };
        let silence = Duration::try_from(now.duration_since(at)).unwrap_or_default();
        if silence <= grace {
            self.queue.add_after(name.to_owned(), grace - silence + Duration::from_millis(1));
        } else {
            node = self.silence(node, now).await?;
        }
        let evict = self.nodes.list().iter().any(|node| readiness(node) == "True");
        let wanted = taints(&node, evict, now);
        let present = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        if wanted != present {
            let patch = json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"taints": wanted},
            });
            self.nodes.patch(&node, None, PatchType::Merge, &patch).await?;
        }
        if readiness(&node) != "True" && condition(&node, "Ready").is_some() {
            self.mark_pods(&node, now).await?;
        }
        Ok(())
    }

    async fn silence(&self, node: Arc<Node>, now: Timestamp) -> Result<Arc<Node>, Error> {
        let conditions = silenced(&node, now);
        let present = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        if present == Some(&conditions) {
            return Ok(node);
        }
        let was_ready = readiness(&node) == "True";
        let mut updated = (*node).clone();
        updated.status.get_or_insert_default().conditions = Some(conditions);
        let updated = self.nodes.update_status(&updated).await?;
        if was_ready {
            let message = format!("Node {} status is now: NodeNotReady", node.name());
            self.events.normal(&*node, "NodeNotReady", message);
        }
        Ok(updated)
    }

    /// The pods of a node that is not ready serve nobody.
    async fn mark_pods(&self, node: &Node, now: Timestamp) -> Result<(), Error> {
        for pod in self.pods.by_index("node", node.name()) {
            if !is_ready(&pod) || is_deleting(&*pod) {
                continue;
            }
            let mut updated = (*pod).clone();
            let conditions =
                updated.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten());
            for condition in conditions.filter(|condition| condition.type_ == "Ready") {
                condition.status = "False".to_owned();
                condition.last_transition_time = Some(Time(now));
            }
            match self.pods.update_status(&updated).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => self.events.warning(&*pod, "NodeNotReady", "Node is not ready"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::tests::at;

    fn node(ready: &str, extra: &[(&str, &str)], unschedulable: bool, taints: &[(&str, &str)]) -> Node {
        let mut conditions = vec![json!({"type": "Ready", "status": ready})];
        conditions.extend(extra.iter().map(|(kind, status)| json!({"type": kind, "status": status})));
        let taints: Vec<_> =
            taints.iter().map(|(key, effect)| json!({"key": key, "effect": effect})).collect();
        Node::from_value(json!({
            "metadata": {"name": "n"},
            "spec": {"unschedulable": unschedulable, "taints": taints},
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    fn words(taints: &[Taint]) -> String {
        let short = |taint: &Taint| {
            format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect)
        };
        taints.iter().map(short).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn taints_follow_conditions() {
        for (node, evict, expected) in [
            (node("True", &[], false, &[]), true, ""),
            (node("False", &[], false, &[]), true, "not-ready:NoSchedule not-ready:NoExecute"),
            (node("Unknown", &[], false, &[]), true, "unreachable:NoSchedule unreachable:NoExecute"),
            (node("Unknown", &[], false, &[]), false, "unreachable:NoSchedule"),
            (node("True", &[], false, &[(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]), true, ""),
            (
                node("False", &[], false, &[(UNREACHABLE, "NoExecute")]),
                true,
                "not-ready:NoSchedule not-ready:NoExecute",
            ),
            (
                node("True", &[("DiskPressure", "True")], true, &[]),
                true,
                "disk-pressure:NoSchedule unschedulable:NoSchedule",
            ),
            (
                node("True", &[], false, &[("mine", "NoSchedule"), (UNSCHEDULABLE, "NoSchedule")]),
                true,
                "mine:NoSchedule",
            ),
        ] {
            assert_eq!(words(&taints(&node, evict, at(0))), expected);
        }
    }

    #[test]
    fn a_silent_kubelet_is_unknown() {
        let conditions = silenced(&node("True", &[("DiskPressure", "False")], false, &[]), at(5));
        let line = |c: &NodeCondition| format!("{} {} {}", c.type_, c.status, c.reason.as_deref().unwrap());
        let lines: Vec<_> = conditions.iter().map(line).collect();
        assert_eq!(
            lines,
            [
                "Ready Unknown NodeStatusUnknown",
                "DiskPressure Unknown NodeStatusUnknown",
                "MemoryPressure Unknown NodeStatusNeverUpdated",
                "PIDPressure Unknown NodeStatusNeverUpdated",
            ]
        );
    }
}
