//! The core of ReplicaSet and ReplicationController: as many active pods as are asked for.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::core::v1::{Pod, PodTemplateSpec};
use api::meta::{LabelSelector, Time};
use client::DeleteOptions;
use controller_runtime::{Deletions, Event, EventRecorder, Informer, WorkQueue, slow_start};
use jiff::Timestamp;

use crate::Error;
use crate::context::Context;
use crate::objects::{
    annotation, controller_of, created, is_active, is_deleting, is_ready, is_terminal, most_restarts,
    namespace_is_terminating, node_name, phase, pod_from_template, ready_since, until_available,
};
use crate::ownership::{add_index, candidates, claim_all, concerned, controlled};
use crate::pace::Pace;
use crate::selector;

/// Pods that one pass creates or deletes at most.
///
/// Upstream: pkg/controller/replicaset/replica_set.go BurstReplicas
const BURST: usize = 500;
const WORKERS: usize = 5;

/// A status, whichever kind it is of.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub replicas: i32,
    pub fully_labeled: i32,
    pub ready: i32,
    pub available: i32,
    pub terminating: i32,
    pub observed_generation: i64,
    /// Reason and message of the ReplicaFailure condition.
    pub failure: Option<(String, String)>,
}

/// A kind that keeps a number of pods.
pub(crate) trait Replicated: Object {
    /// Of events.
    const COMPONENT: &'static str;
    /// Whether the status counts terminating pods.
    const COUNTS_TERMINATING: bool;

    fn replicas(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn selector(&self) -> LabelSelector;
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn counts(&self) -> Counts;
    fn set_counts(&mut self, counts: Counts, now: Time);
}

/// What is to be done.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub create: usize,
    pub delete: Vec<Arc<Pod>>,
}

/// Decides from the owned active pods. `related` are all pods of the same upper owner, for spreading.
pub(crate) fn decide(replicas: i32, active: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Plan {
    let wanted = usize::try_from(replicas).unwrap_or(0);
    if active.len() <= wanted {
        return Plan { create: (wanted - active.len()).min(BURST), delete: Vec::new() };
    }
    let excess = (active.len() - wanted).min(BURST);
    let mut ranked = active.to_vec();
    if excess < ranked.len() {
        let mut on_node: HashMap<&str, usize> = HashMap::new();
        for pod in related.iter().filter(|pod| is_active(pod)) {
            *on_node.entry(node_name(pod)).or_default() += 1;
        }
        ranked.sort_by_cached_key(|pod| {
            deletion_rank(pod, on_node.get(node_name(pod)).copied().unwrap_or(0), now)
        });
    }
    ranked.truncate(excess);
    Plan { create: 0, delete: ranked }
}

/// Sorts the pods to delete first to the front: unassigned, then by phase, not ready, cheap, doubled up, ready
/// or made lately, often restarted. Ages count by powers of two, so that of about equally old pods any may go.
///
/// Upstream: pkg/controller/controller_utils.go ActivePodsWithRanks
pub(crate) fn deletion_rank(pod: &Pod, doubled: usize, now: Timestamp) -> impl Ord + use<> {
    let phase = match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = annotation(pod, "controller.kubernetes.io/pod-deletion-cost");
    let cost = cost.and_then(|cost| cost.parse::<i32>().ok()).unwrap_or(0);
    let age = |since: Option<Timestamp>| -> i64 {
        let nanos = since.map_or(0, |since| now.duration_since(since).as_nanos());
        if nanos <= 0 { -1 } else { i64::from(nanos.ilog2()) }
    };
    let assigned = !node_name(pod).is_empty();
    let created = Some(created(pod)).filter(|at| *at != Timestamp::MAX);
    let readiness = (is_ready(pod), cost, Reverse(doubled), age(ready_since(pod)));
    (assigned, phase, readiness, Reverse(most_restarts(pod)), age(created), pod.uid().to_owned())
}

/// The status that the pods and the outcome of the last changes mean.
///
/// Upstream: pkg/controller/replicaset/replica_set_utils.go calculateStatus
pub(crate) fn counts<R: Replicated>(
    owner: &R,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<String>,
    now: Timestamp,
) -> Counts {
    let old = owner.counts();
    let count = |test: &dyn Fn(&Pod) -> bool| active.iter().filter(|pod| test(pod)).count() as i32;
    let no_labels = selector::Labels::new();
    let labels = owner.template().and_then(|t| t.metadata.as_ref()?.labels.as_ref()).unwrap_or(&no_labels);
    let reason = if (active.len() as i32) < owner.replicas() { "FailedCreate" } else { "FailedDelete" };
    Counts {
        replicas: active.len() as i32,
        fully_labeled: count(&|pod| selector::contains(pod.metadata.labels.as_ref(), labels)),
        ready: count(&|pod| is_ready(pod)),
        available: count(&|pod| until_available(pod, owner.min_ready_seconds(), now) == Some(Duration::ZERO)),
        terminating: if R::COUNTS_TERMINATING { terminating as i32 } else { 0 },
        observed_generation: owner.metadata().generation.unwrap_or(0),
        failure: failure.map(|message| old.failure.unwrap_or_else(|| (reason.to_owned(), message))),
    }
}

/// The controller of one kind.
struct Replication<R> {
    context: Context,
    owners: Informer<R>,
    pods: Informer<Pod>,
    queue: WorkQueue<String>,
    events: EventRecorder,
    deletions: Deletions,
    pace: Pace,
}

/// Runs the controller of a kind until the shutdown.
pub(crate) async fn run<R: Replicated>(context: Context) {
    let controller = Arc::new(Replication {
        owners: context.informers.informer::<R>(),
        pods: context.informers.informer::<Pod>(),
        queue: WorkQueue::new(),
        events: context.events(R::COMPONENT),
        deletions: Deletions::default(),
        pace: Pace::default(),
        context,
    });
    add_index(&controller.pods);
    add_index(&controller.owners);
    let this = controller.clone();
    controller.owners.subscribe(move |event| this.queue.add(Object::key(&**event.object())));
    let this = controller.clone();
    controller.pods.subscribe(move |event| this.pod_event(event));
    controller.context.work(&controller, &controller.queue, WORKERS, Replication::<R>::reconcile).await;
}

impl<R: Replicated> Replication<R> {
    fn pod_event(&self, event: &Event<Pod>) {
        self.deletions.observe(event, is_deleting);
        let concerned = concerned(event, &self.owners, Replicated::selector);
        concerned.into_iter().for_each(|key| self.queue.add(key));
    }

    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(owner) = self.owners.get(&key) else { return Ok(()) };
        let (client, selector) = (&self.context.client, owner.selector());
        if selector::is_empty(&selector) {
            return Ok(());
        }
        let (done, mut alive): (Vec<_>, Vec<_>) =
            candidates(&self.pods, &*owner).into_iter().partition(|pod| !is_active(pod));
        let terminating = done.iter().filter(|pod| is_deleting(&***pod) && !is_terminal(pod));
        let mut terminating = terminating.filter(|pod| controller_of(&pod.metadata).is_some()).count();
        let before = alive.len();
        alive.retain(|pod| !self.deletions.contains(pod.uid()));
        terminating += before - alive.len();
        let active = claim_all(client, &self.pods, &*owner, &selector, alive).await?;
        let now = self.context.clock().now();
        let mut failure = None;
        if !is_deleting(&*owner) {
            let plan = decide(owner.replicas(), &active, &self.related(&owner), now);
            failure = self.execute(&owner, plan).await.err();
        }
        let message = failure.as_ref().map(ToString::to_string);
        let counts = counts(&*owner, &active, terminating, message, now);
        self.update_status(&owner, counts).await?;
        if let Some(error) = failure {
            return Err(error.into());
        }
        let waits = active.iter().filter_map(|pod| until_available(pod, owner.min_ready_seconds(), now));
        if let Some(next) = waits.filter(|wait| !wait.is_zero()).min() {
            self.queue.add_after(key.clone(), next);
        }
        Ok(())
    }

    /// The pods of all objects with the same controller as this one: of a Deployment's old and new replicas.
    fn related(&self, owner: &R) -> Vec<Arc<Pod>> {
        let siblings = match controller_of(owner.metadata()) {
            Some(upper) => controlled(&self.owners, &upper.uid),
            None => return controlled(&self.pods, owner.uid()),
        };
        siblings.iter().flat_map(|sibling| controlled(&self.pods, sibling.uid())).collect()
    }

    async fn execute(&self, owner: &R, plan: Plan) -> Result<(), client::Error> {
        let Some(template) = owner.template() else { return Ok(()) };
        let pod = pod_from_template(owner, template);
        let create = async |_| match self.pods.create(&pod).await {
            Ok(created) => {
                let message = format!("Created pod: {}", created.name());
                self.events.normal(owner, "SuccessfulCreate", message);
                Ok(())
            }
            // Nothing can be made there any more, and nothing needs to be: the others are not tried.
            Err(error) if namespace_is_terminating(&error) => Err(error),
            Err(error) => {
                self.events.warning(owner, "FailedCreate", format!("Error creating: {error}"));
                Err(error)
            }
        };
        if let (_, Some(error)) = slow_start(plan.create, create).await
            && !namespace_is_terminating(&error)
        {
            return Err(error);
        }
        let deletes = plan.delete.iter().map(|pod| self.delete(owner, pod));
        let outcomes = futures::future::join_all(deletes).await;
        outcomes.into_iter().collect()
    }

    async fn delete(&self, owner: &R, pod: &Pod) -> Result<(), client::Error> {
        self.deletions.begin(pod.uid());
        let options = DeleteOptions::uid(pod.uid());
        match self.context.client.delete::<Pod>(pod.namespace(), pod.name(), &options).await {
            Ok(()) => {
                self.events.normal(owner, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
                Ok(())
            }
            Err(error) => {
                self.deletions.undo(pod.uid());
                if error.is_not_found() {
                    return Ok(());
                }
                self.events.warning(owner, "FailedDelete", format!("Error deleting: {error}"));
                Err(error)
            }
        }
    }

    async fn update_status(&self, owner: &R, counts: Counts) -> Result<(), client::Error> {
        let old = owner.counts();
        if old == counts {
            return Ok(());
        }
        // That somebody was heard, or something goes wrong, is said at once.
        let is_news = old.observed_generation != counts.observed_generation || old.failure != counts.failure;
        if !is_news && let Some(wait) = self.pace.wait(&Object::key(owner)) {
            self.queue.add_after(Object::key(owner), wait);
            return Ok(());
        }
        let mut updated = owner.clone();
        updated.set_counts(counts, self.context.clock().time());
        match self.owners.update_status(&updated).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::tests::{arcs, at, pod};

    fn on(mut pod: Pod, node: &str) -> Pod {
        pod.spec.get_or_insert_default().node_name = Some(node.into());
        pod
    }

    fn aged(mut pod: Pod, created_seconds: i64) -> Pod {
        pod.metadata.creation_timestamp = Some(Time(at(created_seconds)));
        pod
    }

    /// Checks which pod of the two goes first, in whichever order they come.
    fn check(first: Pod, second: Pod) {
        let expected = first.name().to_owned();
        for pods in [arcs([first.clone(), second.clone()]), arcs([second, first])] {
            let plan = decide(1, &pods, &pods, at(100_000));
            assert_eq!(plan.delete.len(), 1);
            assert_eq!(plan.delete[0].name(), expected);
        }
    }

    #[test]
    fn as_many_as_asked() {
        for (have, want, create, delete) in
            [(0, 3, 3, 0), (3, 3, 0, 0), (5, 3, 0, 2), (0, 900, 500, 0), (2, 0, 0, 2)]
        {
            let pods = arcs((0..have).map(|i| pod(&i.to_string(), "Running", true)));
            let plan = decide(want, &pods, &pods, at(0));
            assert_eq!((plan.create, plan.delete.len()), (create, delete));
        }
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        check(pod("z", "Running", true), on(pod("a", "Pending", false), "n"));
        check(on(pod("z", "Pending", false), "n"), on(pod("a", "Running", false), "n"));
        check(on(pod("z", "Running", false), "n"), on(pod("a", "Running", true), "n"));
        let cheap = {
            let mut pod = on(pod("z", "Running", true), "n");
            let cost = ("controller.kubernetes.io/pod-deletion-cost".to_owned(), "-5".to_owned());
            pod.metadata.annotations = Some([cost].into());
            pod
        };
        check(cheap, on(pod("a", "Running", true), "n"));
        check(aged(on(pod("z", "Running", true), "n"), 90_000), aged(on(pod("a", "Running", true), "n"), 0));
    }

    #[test]
    fn doubled_up_pods_go_first() {
        let pods = arcs([
            on(pod("a", "Running", true), "alone"),
            on(pod("b", "Running", true), "shared"),
            on(pod("c", "Running", true), "shared"),
        ]);
        let plan = decide(2, &pods, &pods, at(0));
        assert_eq!(plan.delete[0].name(), "b");
    }
}
