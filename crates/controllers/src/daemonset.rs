//! DaemonSets: a pod on every node that is fit for it.

mod decision;
mod placement;

use std::sync::{Arc, Mutex, PoisonError};

use api::Object;
use api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use api::core::v1::{Node, Pod};
use api::meta::LabelSelector;
use client::PatchType;
use controller_runtime::{Event, Informer, WorkQueue, slow_start};
use serde_json::json;

use crate::Error;
use crate::context::Context;
use crate::history::{History, data_of, label_values, outlived, sort_out};
use crate::objects::{is_deleting, label, pod_from_template, same};
use crate::ownership::{candidates, claim_all, concerned};
use crate::pace::Pace;
use crate::pod_control::PodControl;
use crate::selector;
use decision::{Backoff, HASH_LABEL, Observed, Plan, decide, status};
use placement::{add_tolerations, tie_to_node};

const COMPONENT: &str = "daemonset-controller";
const WORKERS: usize = 2;
/// Pods that one pass creates or deletes at most.
///
/// Upstream: pkg/controller/daemon/daemon_controller.go BurstReplicas
const BURST: usize = 250;

struct DaemonSets {
    context: Context,
    sets: Informer<DaemonSet>,
    nodes: Informer<Node>,
    history: History,
    pods: PodControl,
    queue: WorkQueue<String>,
    /// Short sections that never wait: a plain lock.
    backoff: Mutex<Backoff>,
    pace: Pace,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(DaemonSets {
        sets: context.informers.informer::<DaemonSet>(),
        nodes: context.informers.informer::<Node>(),
        history: History::new(&context, HASH_LABEL),
        pods: PodControl::new(&context, COMPONENT),
        queue: WorkQueue::new(),
        backoff: Mutex::default(),
        pace: Pace::default(),
        context,
    });
    let this = controller.clone();
    controller.sets.subscribe(move |event| this.queue.add(event.object().key()));
    let this = controller.clone();
    controller.history.revisions.subscribe(move |event| this.enqueue_owner(event));
    let this = controller.clone();
    controller.pods.pods.subscribe(move |event| {
        this.pods.observe(event);
        this.enqueue_owner(event);
    });
    let this = controller.clone();
    controller.nodes.subscribe(move |event| this.node_event(event));
    controller.context.work(&controller, &controller.queue, WORKERS, DaemonSets::reconcile).await;
}

fn selector_of(set: &DaemonSet) -> LabelSelector {
    set.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default()
}

impl DaemonSets {
    /// A pod or a revision has changed: its owner is looked at, or who may adopt it.
    fn enqueue_owner<T: Object>(&self, event: &Event<T>) {
        concerned(event, &self.sets, selector_of).into_iter().for_each(|key| self.queue.add(key));
    }

    /// Heartbeats change nothing here: only labels and taints decide where daemons run.
    ///
    /// Upstream: pkg/controller/daemon/daemon_controller.go shouldIgnoreNodeUpdate
    fn node_event(&self, event: &Event<Node>) {
        let decisive = |node: &Node| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
            (node.metadata.labels.clone().unwrap_or_default(), taints)
        };
        if event.old().is_some_and(|old| decisive(old) == decisive(event.object())) {
            return;
        }
        for set in self.sets.list() {
            self.queue.add(set.key());
        }
    }

    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(set) = self.sets.get(&key).filter(|set| !is_deleting(&**set)) else { return Ok(()) };
        let selector = selector_of(&set);
        if selector::is_empty(&selector) {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.pods.events.warning(&*set, "SelectingAll", message);
            return Ok(());
        }
        let Some(spec) = &set.spec else { return Ok(()) };
        let client = &self.context.client;
        let all = candidates(&self.pods.pods, &*set);
        let pods = claim_all(client, &self.pods.pods, &*set, &selector, all).await?;

        let mut collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let data = data_of(&spec.template);
        let lineage = sort_out(self.history.claim(&*set, &selector).await?, &data);
        let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        let current = self.history.ensure(&*set, &lineage, &labels, &data, &mut collisions).await?;
        let hash = label(&*current, HASH_LABEL).unwrap_or_default();
        let doubled = self.relabel(&pods, &lineage.doubles, hash).await?;

        let now = self.context.clock().now();
        let pods = self.pods.foresee(pods, now);
        let nodes = self.nodes.list();
        let observe = |backoff: &Backoff| {
            let observed = Observed { set: &set, nodes: &nodes, pods: &pods, hash, backoff, now };
            (decide(&observed), status(&observed, collisions))
        };
        let (plan, (status, settles)) = observe(&self.backoff.lock().unwrap_or_else(PoisonError::into_inner));
        let again = plan.again.into_iter().chain(settles).min();
        let failure = if doubled { None } else { self.execute(&set, plan, hash).await.err() };
        let live = label_values(&pods, HASH_LABEL);
        let is_live = |r: &ControllerRevision| label(r, HASH_LABEL).is_some_and(|hash| live.contains(hash));
        let limit = spec.revision_history_limit.unwrap_or(10);
        if failure.is_none() {
            self.history.delete(&outlived(&lineage.old, limit, is_live)).await?;
        }
        self.update_status(&set, status).await?;
        if let Some(delay) = again {
            self.queue.add_after(key.clone(), delay);
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Pods of a revision that says the same as the current one are of the current one. True when some had to
    /// be told so: then their next state is decided from.
    ///
    /// Upstream: pkg/controller/daemon/update.go dedupCurHistories
    async fn relabel(
        &self,
        pods: &[Arc<Pod>],
        doubles: &[Arc<ControllerRevision>],
        hash: &str,
    ) -> Result<bool, client::Error> {
        let patch = json!({"metadata": {"labels": {HASH_LABEL: hash}}});
        for double in doubles {
            let of_double = label(&**double, HASH_LABEL);
            for pod in pods.iter().filter(|pod| label(&***pod, HASH_LABEL) == of_double) {
                self.pods.pods.patch(pod, None, PatchType::Merge, &patch).await?;
            }
        }
        self.history.delete(doubles).await?;
        Ok(!doubles.is_empty())
    }

    async fn execute(&self, set: &DaemonSet, plan: Plan, hash: &str) -> Result<(), client::Error> {
        for (kind, reason, message) in plan.events {
            self.pods.events.event(set, kind, reason, message);
        }
        {
            let mut backoff = self.backoff.lock().unwrap_or_else(PoisonError::into_inner);
            let now = self.context.clock().now();
            plan.failed.iter().for_each(|key| backoff.next(key, now));
        }
        let nodes = &plan.create[..plan.create.len().min(BURST)];
        let create = async |i: usize| match daemon_pod(set, &nodes[i], hash) {
            Some(pod) => self.pods.create(set, &pod).await.map(drop),
            None => Ok(()),
        };
        let (_, refused) = slow_start(nodes.len(), create).await;
        let deletes = plan.delete.iter().take(BURST).map(|pod| self.pods.delete(set, pod));
        let outcomes = futures::future::join_all(deletes).await;
        refused.map_or(Ok(()), Err)?;
        outcomes.into_iter().collect()
    }

    async fn update_status(&self, set: &DaemonSet, status: DaemonSetStatus) -> Result<(), client::Error> {
        if set.status.as_ref().is_some_and(|old| same(old, &status)) {
            return Ok(());
        }
        let heard = set.status.as_ref().and_then(|old| old.observed_generation) == status.observed_generation;
        if heard && let Some(wait) = self.pace.wait(&set.key()) {
            self.queue.add_after(set.key(), wait);
            return Ok(());
        }
        let mut updated = set.clone();
        updated.status = Some(status);
        match self.sets.update_status(&updated).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

/// The pod for a node: not bound, but such that the scheduler can bind it to that node only.
fn daemon_pod(set: &DaemonSet, node: &str, hash: &str) -> Option<Pod> {
    let mut pod = pod_from_template(set, &set.spec.as_ref()?.template);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    let spec = pod.spec.as_mut()?;
    add_tolerations(spec);
    tie_to_node(spec, node);
    Some(pod)
}
