//! The health of nodes: a kubelet that stays silent is unknown, what is wrong with a node becomes taints, and the
//! pods of a node that is not ready are not ready. How fast pods are driven off is decided by [`zones`].

mod taints;
mod zones;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::Object;
use api::coordination::v1::Lease;
use api::core::v1::{Node, Pod};
use api::meta::{MicroTime, Time};
use client::PatchType;
use controller_runtime::{Event, EventRecorder, Filter, Informer, WorkQueue};
use jiff::Timestamp;
use serde_json::json;

use crate::Error;
use crate::context::Context;
use crate::objects::{created, is_ready, node_name};
pub(crate) use taints::readiness;
use taints::{Eviction, condition, evicting_key, is_evicting, old_labels, silenced, taints};
pub use zones::EvictionRates;
use zones::{Admission, Shift, Zones, zone_of};

const COMPONENT: &str = "node-controller";
/// Upstream: pkg/controller/nodelifecycle/node_lifecycle_controller.go nodeUpdateWorkerSize
const NODE_WORKERS: usize = 8;
/// Upstream: pkg/controller/nodelifecycle/node_lifecycle_controller.go podUpdateWorkerSize
const POD_WORKERS: usize = 4;
const LEASES: &str = "kube-node-lease";

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
    zones: Mutex<Zones>,
    queue: WorkQueue<String>,
    /// Pods that have come to a node that is not ready.
    newcomers: WorkQueue<String>,
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
        zones: Mutex::new(Zones::new(context.config.options.eviction_rates)),
        queue: WorkQueue::new(),
        newcomers: WorkQueue::new(),
        events: context.events(COMPONENT),
        context,
    });
    index_by_node(&controller.pods);
    if !controller.context.synced().await {
        return;
    }
    let this = controller.clone();
    controller.leases.subscribe(move |event| this.lease_event(event));
    let this = controller.clone();
    controller.nodes.subscribe(move |event| this.node_event(event));
    let this = controller.clone();
    controller.pods.subscribe(move |event| this.pod_event(event));
    let context = &controller.context;
    let nodes = context.work(&controller, &controller.queue, NODE_WORKERS, Controller::reconcile);
    let pods = context.work(&controller, &controller.newcomers, POD_WORKERS, Controller::receive);
    tokio::join!(nodes, pods);
}

impl Controller {
    fn heard(&self) -> MutexGuard<'_, HashMap<String, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn zones(&self) -> MutexGuard<'_, Zones> {
        self.zones.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease_event(&self, event: &Event<Lease>) {
        let lease = event.object();
        let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
        let mut all = self.heard();
        if matches!(event, Event::Deleted(_)) && self.nodes.get(lease.name()).is_none() {
            all.remove(lease.name());
            return;
        }
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
        let now = self.context.clock().now();
        match event {
            Event::Added(_) => {
                let message = about(&format!("Registered Node {name} in Controller"));
                self.events.normal(&**node, "RegisteredNode", message);
            }
            Event::Deleted(_) => {
                let message = about(&format!("Removing Node {name} from Controller"));
                self.events.normal(&**node, "RemovingNode", message);
                self.heard().remove(name);
                self.zones().remove(name);
            }
            Event::Updated { .. } => {}
        }
        if !matches!(event, Event::Deleted(_)) {
            self.zones().set(node, now);
            let heartbeat = condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.clone());
            let mut all = self.heard();
            let heard = all.entry(name.to_owned()).or_default();
            if heartbeat.is_none() {
                heard.at = heard.at.max(created(&**node).min(now));
            } else if heard.heartbeat != heartbeat {
                heard.at = now;
                heard.heartbeat = heartbeat;
            }
        }
        self.queue.add(name.to_owned());
    }

    /// Upstream: pkg/controller/nodelifecycle/node_lifecycle_controller.go podUpdated
    fn pod_event(&self, event: &Event<Pod>) {
        let (Event::Added(pod) | Event::Updated { new: pod, .. }) = event else { return };
        let comes =
            !node_name(pod).is_empty() && event.old().is_none_or(|old| node_name(old) != node_name(pod));
        if comes && is_ready(pod) {
            self.newcomers.add(Object::key(&**pod));
        }
    }

    /// Looks at how all zones are; what changes concerns all nodes.
    fn evaluate(&self, now: Timestamp) {
        let shift = self.zones().evaluate(now);
        if shift == Shift::None {
            return;
        }
        tracing::info!(?shift, "the health of zones has changed");
        if shift == Shift::Recovered {
            // While nobody was heard of the fault was likely ours: every node gets its time anew.
            self.heard().values_mut().for_each(|heard| heard.at = now);
        }
        self.nodes.list().iter().for_each(|node| self.queue.add(node.name().to_owned()));
    }

    async fn reconcile(self: Arc<Self>, name: String) -> Result<(), Error> {
        let now = self.context.clock().now();
        let Some(mut node) = self.nodes.get(&name) else {
            self.evaluate(now);
            return Ok(());
        };
        let at = self.heard().get(&name).map_or(now, |heard| heard.at);
        let options = &self.context.config.options;
        let known = condition(&node, "Ready").is_some();
        let grace = if known { options.node_monitor_grace_period } else { options.node_startup_grace_period };
        let silence = Duration::try_from(now.duration_since(at)).unwrap_or_default();
        if silence <= grace {
            self.queue.add_after(name.clone(), grace - silence + Duration::from_millis(1));
        } else {
            node = self.silence(node, now).await?;
        }
        self.evaluate(now);
        let node = self.taint(node, now).await?;
        let labels = old_labels(&node);
        if !labels.is_empty() {
            let patch = json!({"metadata": {"labels": labels}});
            self.nodes.patch(&node, None, PatchType::Merge, &patch).await?;
        }
        if condition(&node, "Ready").is_some_and(|ready| ready.status == "Unknown") {
            for pod in self.pods.by_index("node", &name) {
                self.mark(&pod, now).await?;
            }
        }
        Ok(())
    }

    /// Whether pods may be driven off the node now, and whether that takes the zone's turn.
    fn eviction(&self, node: &Node, now: Timestamp) -> (Eviction, bool) {
        let mut zones = self.zones();
        if zones.all_down() {
            return (Eviction::Never, false);
        }
        // Changing the reason drives nobody off who is not driven off already.
        if evicting_key(node).is_none() || is_evicting(node) {
            return (Eviction::Allowed, false);
        }
        match zones.admit(&zone_of(node), now) {
            Admission::Now => (Eviction::Allowed, true),
            Admission::Paused => (Eviction::NotYet, false),
            Admission::After(wait) => {
                self.queue.add_after(node.name().to_owned(), wait);
                (Eviction::NotYet, false)
            }
        }
    }

    async fn taint(&self, node: Arc<Node>, now: Timestamp) -> Result<Arc<Node>, Error> {
        let (eviction, took_turn) = self.eviction(&node, now);
        let wanted = taints(&node, eviction, now);
        let present = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        if wanted == present {
            return Ok(node);
        }
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": wanted},
        });
        let patched = self.nodes.patch(&node, None, PatchType::Merge, &patch).await;
        if patched.is_err() && took_turn {
            self.zones().give_back(&zone_of(&node), now);
        }
        Ok(patched?)
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

    /// A pod that says it is ready has come to a node that is not.
    ///
    /// Upstream: pkg/controller/nodelifecycle/node_lifecycle_controller.go processPod
    async fn receive(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(pod) = self.pods.get(&key) else { return Ok(()) };
        let Some(node) = self.nodes.get(node_name(&pod)) else { return Ok(()) };
        if condition(&node, "Ready").is_some_and(|ready| ready.status != "True") {
            self.mark(&pod, self.context.clock().now()).await?;
        }
        Ok(())
    }

    /// The pods of a node that is not ready serve nobody.
    async fn mark(&self, pod: &Pod, now: Timestamp) -> Result<(), Error> {
        if !is_ready(pod) {
            return Ok(());
        }
        let mut updated = pod.clone();
        let conditions = updated.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten());
        for condition in conditions.filter(|condition| condition.type_ == "Ready") {
            condition.status = "False".to_owned();
            condition.last_transition_time = Some(Time(now));
        }
        match self.pods.update_status(&updated).await {
            Err(error) if error.is_not_found() => return Ok(()),
            updated => updated?,
        };
        self.events.warning(pod, "NodeNotReady", "Node is not ready");
        Ok(())
    }
}
