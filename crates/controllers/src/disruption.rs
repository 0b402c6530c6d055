//! PodDisruptionBudgets: how many of a set of pods may be evicted now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use api::core::v1::{Pod, PodCondition, ReplicationController};
use api::meta::{Condition, OwnerReference, Time};
use api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use controller_runtime::{Event, EventRecorder, Informer, WorkQueue};
use jiff::Timestamp;

use crate::Error;
use crate::context::Context;
use crate::objects::{condition, controller_of, is_active, is_deleting, is_ready, is_terminal, scaled};
use crate::scale::{self, Missing};
use crate::selector;

const WORKERS: usize = 4;
/// How long an eviction that was let through may take to show as a deletion.
///
/// Upstream: pkg/controller/disruption/disruption.go DeletionTimeout
const DELETION_TIMEOUT: Duration = Duration::from_secs(120);
/// How long somebody may mean to evict a pod before that is forgotten.
///
/// Upstream: pkg/controller/disruption/disruption.go stalePodDisruptionTimeout
const STALE: Duration = Duration::from_secs(120);
const DISRUPTED: &str = "DisruptionTarget";

/// What is known of the pods that a budget selects.
pub(crate) struct Selected {
    pub pods: Vec<Arc<Pod>>,
    /// How many pods their controllers want together; an error where a controller is of no scalable kind.
    pub wanted: Result<i32, String>,
}

/// Decides a budget's status, and when an unfinished eviction is given up.
///
/// Upstream: pkg/controller/disruption/disruption.go trySync
pub(crate) fn decide(
    budget: &PodDisruptionBudget,
    selected: &Selected,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Duration>) {
    let old = budget.status.clone().unwrap_or_default();
    let (expected, desired) = match expectations(budget, selected) {
        Ok(numbers) => numbers,
        Err(message) => {
            let mut status = PodDisruptionBudgetStatus { disruptions_allowed: Some(0), ..old };
            status.observed_generation = budget.metadata.generation;
            set_condition(&mut status, ("False", "SyncFailed", message), now);
            return (status, None);
        }
    };
    let (disrupted, again) = disrupted(&old, &selected.pods, now);
    let healthy = selected.pods.iter().filter(|pod| is_active(pod) && is_ready(pod));
    let healthy = healthy.filter(|pod| !disrupted.contains_key(pod.name())).count() as i32;
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    let mut status = PodDisruptionBudgetStatus {
        observed_generation: budget.metadata.generation,
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(disrupted).filter(|pods| !pods.is_empty()),
        conditions: old.conditions,
    };
    let condition = match allowed {
        0 => ("False", "InsufficientPods", String::new()),
        _ => ("True", "SufficientPods", String::new()),
    };
    set_condition(&mut status, condition, now);
    (status, again)
}

/// The number of pods, and how many of them must stay healthy.
fn expectations(budget: &PodDisruptionBudget, selected: &Selected) -> Result<(i32, i32), String> {
    let Some(spec) = &budget.spec else { return Ok((0, 0)) };
    let wrong = || "the budget is neither a number nor a percentage".to_owned();
    if let Some(unavailable) = &spec.max_unavailable {
        let expected = selected.wanted.clone()?;
        let unavailable = scaled(unavailable, expected, true).ok_or_else(wrong)?;
        return Ok((expected, (expected - unavailable).max(0)));
    }
    match &spec.min_available {
        // A plain number needs no controllers: bare pods count as well.
        Some(api::IntOrString::Int(least)) => Ok((selected.pods.len() as i32, *least)),
        Some(percent) => {
            let expected = selected.wanted.clone()?;
            Ok((expected, scaled(percent, expected, true).ok_or_else(wrong)?))
        }
        None => Ok((selected.pods.len() as i32, 0)),
    }
}

/// Whether the budget is about what the pods' controllers want.
fn counts_controllers(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.as_ref();
    spec.is_some_and(|spec| {
        spec.max_unavailable.is_some() || matches!(spec.min_available, Some(api::IntOrString::String(_)))
    })
}

/// How long until an intention to evict the pod is forgotten; `None` when nobody has one. A kubelet may take as long
/// as it likes.
///
/// Upstream: pkg/controller/disruption/disruption.go nonTerminatingPodHasStaleDisruptionCondition
fn until_stale(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let meant = condition(pod, DISRUPTED).filter(|meant| meant.status == "True")?;
    if is_deleting(pod) || is_terminal(pod) || meant.reason.as_deref() == Some("TerminationByKubelet") {
        return None;
    }
    let since = meant.last_transition_time.as_ref().map_or(now, |since| since.0);
    Some(STALE.saturating_sub(now.duration_since(since).try_into().unwrap_or(Duration::ZERO)))
}

/// Evictions that were let through and came to nothing.
fn lapsed<'a>(budget: &'a PodDisruptionBudget, pods: &[Arc<Pod>], now: Timestamp) -> Vec<&'a str> {
    let disrupted = budget.status.iter().flat_map(|status| status.disrupted_pods.iter().flatten());
    let lapsed = disrupted.filter(|(name, since)| {
        let stays = pods.iter().any(|pod| pod.name() == *name && !is_deleting(&**pod));
        stays && Duration::try_from(now.duration_since(since.0)).unwrap_or_default() >= DELETION_TIMEOUT
    });
    lapsed.map(|(name, _)| name.as_str()).collect()
}

/// Evictions that the API server let through and whose pods are not yet marked deleted.
fn disrupted(
    old: &PodDisruptionBudgetStatus,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Duration>) {
    let mut again: Option<Duration> = None;
    let mut kept = BTreeMap::new();
    for (name, since) in old.disrupted_pods.iter().flatten() {
        let waits = pods.iter().any(|pod| pod.name() == name && !is_deleting(&**pod));
        let passed = Duration::try_from(now.duration_since(since.0)).unwrap_or_default();
        if waits && passed < DELETION_TIMEOUT {
            let left = DELETION_TIMEOUT - passed;
            again = Some(again.map_or(left, |again| again.min(left)));
            kept.insert(name.clone(), since.clone());
        }
    }
    (kept, again)
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    (value, reason, message): (&str, &str, String),
    now: Timestamp,
) {
    const KIND: &str = "DisruptionAllowed";
    let generation = status.observed_generation;
    let conditions = status.conditions.get_or_insert_default();
    let at = conditions.iter().position(|condition| condition.type_ == KIND);
    let since = at.map(|at| &conditions[at]).filter(|old| old.status == value);
    let since = since.map_or(Time(now), |old| old.last_transition_time.clone());
    let condition = Condition {
        type_: KIND.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: since,
    };
    match at {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

struct Controller {
    context: Context,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    replications: Informer<ReplicationController>,
    stateful: Informer<StatefulSet>,
    queue: WorkQueue<String>,
    /// Pods that somebody meant to evict.
    meant: WorkQueue<String>,
    events: EventRecorder,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        budgets: context.informers.informer(),
        pods: context.informers.informer(),
        deployments: context.informers.informer(),
        sets: context.informers.informer(),
        replications: context.informers.informer(),
        stateful: context.informers.informer(),
        queue: WorkQueue::new(),
        meant: WorkQueue::new(),
        events: context.events("controllermanager"),
        context,
    });
    let queue = controller.queue.clone();
    controller.budgets.subscribe(move |event| queue.add(Object::key(&**event.object())));
    let this = controller.clone();
    controller.pods.subscribe(move |event| this.pod_event(event));
    controller.follow(&controller.deployments);
    controller.follow(&controller.sets);
    controller.follow(&controller.replications);
    controller.follow(&controller.stateful);
    let context = &controller.context;
    let budgets = context.work(&controller, &controller.queue, WORKERS, Controller::reconcile);
    let pods = context.work(&controller, &controller.meant, 1, Controller::clear);
    tokio::join!(budgets, pods);
}

fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selector::matches(selector, pod.metadata.labels.as_ref()))
}

impl Controller {
    fn pod_event(&self, event: &Event<Pod>) {
        let pod = event.object();
        if !matches!(event, Event::Deleted(_))
            && let Some(wait) = until_stale(pod, self.context.clock().now())
        {
            self.meant.add_after(Object::key(&**pod), wait);
        }
        let over = |pod: &Pod| {
            let mut budgets = self.budgets.by_namespace(pod.namespace());
            budgets.retain(|budget| selects(budget, pod));
            budgets
        };
        let now = over(pod);
        let labels = |pod: &Arc<Pod>| pod.metadata.labels.clone();
        if let [first, _, ..] = now.as_slice()
            && !matches!(event, Event::Deleted(_))
            && event.old().is_none_or(|old| labels(old) != labels(pod))
        {
            // Upstream: pkg/controller/disruption/disruption.go getPdbForPod
            let message = format!(
                "Pod {:?}/{:?} matches multiple PodDisruptionBudgets.  Chose {:?} arbitrarily.",
                pod.namespace(),
                pod.name(),
                first.name()
            );
            self.events.warning(&**pod, "MultiplePodDisruptionBudgets", message);
        }
        let before = event.old().map(|old| over(old)).unwrap_or_default();
        for budget in now.into_iter().chain(before) {
            self.queue.add(Object::key(&*budget));
        }
    }

    /// What a controller wants changes the budgets over its pods.
    fn follow<T: Object>(self: &Arc<Self>, informer: &Informer<T>) {
        let this = self.clone();
        informer.subscribe(move |event| {
            let generation = |object: &Arc<T>| object.metadata().generation;
            if event.old().is_none_or(|old| generation(old) != generation(event.object())) {
                let budgets = this.budgets.by_namespace(event.object().namespace());
                budgets.iter().for_each(|budget| this.queue.add(Object::key(&**budget)));
            }
        });
    }

    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(budget) = self.budgets.get(&key).filter(|budget| !is_deleting(&**budget)) else {
            return Ok(());
        };
        let mut pods = self.pods.by_namespace(budget.namespace());
        pods.retain(|pod| selects(&budget, pod));
        if pods.is_empty() {
            self.events.normal(&*budget, "NoPods", "No matching pods found");
        }
        let wanted = if counts_controllers(&budget) { self.wanted(&pods).await } else { Ok(0) };
        let selected = Selected { wanted, pods };
        self.tell(&budget, &selected);
        let now = self.context.clock().now();
        let (status, again) = decide(&budget, &selected, now);
        for name in lapsed(&budget, &selected.pods, now) {
            if let Some(pod) = self.pods.get_in(budget.namespace(), name) {
                let message = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
                self.events.warning(&*pod, "NotDeleted", message);
            }
        }
        if let Some(again) = again {
            self.queue.add_after(key.clone(), again);
        }
        if budget.status.as_ref() != Some(&status) {
            let mut updated = (*budget).clone();
            updated.status = Some(status);
            self.budgets.update_status(&updated).await?;
        }
        // What a controller wants may be known a moment later.
        selected.wanted.map(drop).map_err(Error::Unfinished)
    }

    fn tell(&self, budget: &PodDisruptionBudget, selected: &Selected) {
        if let Err(message) = &selected.wanted {
            let message = format!("Failed to calculate the number of expected pods: {message}");
            self.events.warning(budget, "CalculateExpectedPodCountFailed", message);
        } else if counts_controllers(budget)
            && selected.pods.iter().any(|pod| controller_of(&pod.metadata).is_none())
        {
            let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            let selector = selector::as_go(selector);
            let message = format!(
                "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a \
                 result, the status of the PDB cannot be calculated correctly, which may result in undefined \
                 behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an \
                 integer value."
            );
            self.events.warning(budget, "UnmanagedPods", message);
        }
    }

    /// A pod that was to be evicted and is not: nobody means it any more.
    ///
    /// Upstream: pkg/controller/disruption/disruption.go syncStalePodDisruption
    async fn clear(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(pod) = self.pods.get(&key) else { return Ok(()) };
        let now = self.context.clock().now();
        match until_stale(&pod, now) {
            None => return Ok(()),
            Some(wait) if !wait.is_zero() => {
                self.meant.add_after(key.clone(), wait);
                return Ok(());
            }
            Some(_) => {}
        }
        let mut updated = (*pod).clone();
        let conditions = updated.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten());
        for condition in conditions.into_iter().filter(|condition| condition.type_ == DISRUPTED) {
            *condition = PodCondition {
                type_: DISRUPTED.to_owned(),
                status: "False".to_owned(),
                observed_generation: pod.metadata.generation,
                last_transition_time: Some(Time(now)),
                ..Default::default()
            };
        }
        match self.pods.update_status(&updated).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The sizes of the pods' controllers, each counted once. A ReplicaSet of a Deployment stands for that.
    async fn wanted(&self, pods: &[Arc<Pod>]) -> Result<i32, String> {
        let mut sizes: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            let Some(owner) = controller_of(&pod.metadata) else { continue };
            if sizes.contains_key(&owner.uid) {
                continue;
            }
            let known = self.size(pod.namespace(), owner);
            let found = match known {
                Some(found) => Some(found),
                None => self.scale(pod.namespace(), owner).await?,
            };
            let (uid, size) =
                found.ok_or_else(|| format!("found no controllers for pod {:?}", pod.name()))?;
            sizes.insert(uid, size);
        }
        Ok(sizes.values().fold(0i32, |sum, size| sum.saturating_add(*size)))
    }

    /// The size of a controller that the caches hold.
    fn size(&self, namespace: &str, owner: &OwnerReference) -> Option<(String, i32)> {
        fn of<T: Object>(informer: &Informer<T>, namespace: &str, owner: &OwnerReference) -> Option<Arc<T>> {
            let is_it = owner.kind == T::KIND && owner.api_version == T::api_version();
            informer.get_in(namespace, &owner.name).filter(|found| is_it && found.uid() == owner.uid)
        }
        let replicas = if let Some(set) = of(&self.sets, namespace, owner) {
            if let Some(upper) = controller_of(&set.metadata).filter(|upper| upper.kind == "Deployment") {
                return self.size(namespace, upper);
            }
            set.spec.as_ref()?.replicas
        } else if let Some(deployment) = of(&self.deployments, namespace, owner) {
            deployment.spec.as_ref()?.replicas
        } else if let Some(replication) = of(&self.replications, namespace, owner) {
            replication.spec.as_ref()?.replicas
        } else {
            of(&self.stateful, namespace, owner)?.spec.as_ref()?.replicas
        };
        Some((owner.uid.clone(), replicas.unwrap_or(1)))
    }

    /// The size of a controller of any kind, asked of the server.
    ///
    /// Upstream: pkg/controller/disruption/disruption.go getScaleController
    async fn scale(&self, namespace: &str, owner: &OwnerReference) -> Result<Option<(String, i32)>, String> {
        let reference = (owner.api_version.as_str(), owner.kind.as_str(), owner.name.as_str());
        match scale::of(&self.context, namespace, reference).await {
            Ok(scale) => Ok((scale.uid() == owner.uid).then(|| (owner.uid.clone(), scale.wanted()))),
            Err(Missing::NoKind) => {
                Err(format!("no matches for kind {:?} in version {:?}", owner.kind, owner.api_version))
            }
            Err(Missing::Refused(resource, error)) if error.is_not_found() => {
                match scale::is_served(&self.context, &resource).await {
                    Ok(true) => Ok(None),
                    Ok(false) => Err(format!(
                        "{} does not implement the scale subresource",
                        resource.gvr.group_resource()
                    )),
                    Err(error) => Err(error.to_string()),
                }
            }
            Err(Missing::Refused(_, error)) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::tests::{arcs, at, pod};

    #[test]
    fn budgets_allow_what_they_can() {
        // budget, wanted, healthy of pods; desired, allowed
        for (spec, wanted, healthy, pods, desired, allowed) in [
            (json!({"minAvailable": 2}), 3, 3, 3, 2, 1),
            (json!({"minAvailable": 3}), 3, 3, 3, 3, 0),
            (json!({"minAvailable": "50%"}), 5, 5, 5, 3, 2),
            (json!({"maxUnavailable": 1}), 3, 3, 3, 2, 1),
            (json!({"maxUnavailable": 1}), 3, 2, 3, 2, 0),
            (json!({"maxUnavailable": "30%"}), 10, 10, 10, 7, 3),
            (json!({"maxUnavailable": 1}), 0, 0, 0, 0, 0),
        ] {
            let budget =
                PodDisruptionBudget::from_value(json!({"metadata": {"name": "b"}, "spec": spec})).unwrap();
            let pods = arcs((0..pods).map(|i| pod(&i.to_string(), "Running", i < healthy)));
            let (status, _) = decide(&budget, &Selected { pods, wanted: Ok(wanted) }, at(0));
            assert_eq!(
                (status.desired_healthy, status.disruptions_allowed),
                (Some(desired), Some(allowed)),
                "{spec}"
            );
        }
    }

    #[test]
    fn an_eviction_under_way_is_counted_until_it_shows_or_lapses() {
        let mut budget = PodDisruptionBudget::from_value(json!({"spec": {"minAvailable": 1}})).unwrap();
        let evicted = json!({"disruptedPods": {"0": at(0).to_string()}, "currentHealthy": 0, "desiredHealthy": 0,
            "disruptionsAllowed": 0, "expectedPods": 0});
        budget.status = Some(serde_json::from_value(evicted).unwrap());
        let selected =
            || Selected { pods: arcs([pod("0", "Running", true), pod("1", "Running", true)]), wanted: Ok(2) };
        let (status, again) = decide(&budget, &selected(), at(20));
        assert_eq!((status.disruptions_allowed, again), (Some(0), Some(Duration::from_secs(100))));
        let (status, again) = decide(&budget, &selected(), at(121));
        assert_eq!((status.disruptions_allowed, again), (Some(1), None));
    }

    #[test]
    fn pods_of_unknown_controllers_allow_nothing() {
        let budget = PodDisruptionBudget::from_value(json!({"spec": {"maxUnavailable": 1}})).unwrap();
        let (status, _) = decide(&budget, &Selected { pods: Vec::new(), wanted: Err("why".into()) }, at(0));
        assert_eq!(status.disruptions_allowed, Some(0));
        assert_eq!(status.conditions.unwrap()[0].reason, "SyncFailed");
    }

    #[test]
    fn an_intention_to_evict_is_forgotten() {
        let meant = |reason: &str, status: &str, phase: &str| {
            let mut pod = pod("p", phase, true);
            let conditions = pod.status.as_mut().unwrap().conditions.as_mut().unwrap();
            conditions.push(PodCondition {
                type_: DISRUPTED.into(),
                status: status.into(),
                reason: Some(reason.into()),
                last_transition_time: Some(Time(at(0))),
                ..Default::default()
            });
            pod
        };
        for (pod, now, expected) in [
            (meant("EvictionByEvictionAPI", "True", "Running"), 20, Some(100)),
            (meant("EvictionByEvictionAPI", "True", "Running"), 500, Some(0)),
            (meant("EvictionByEvictionAPI", "False", "Running"), 500, None),
            (meant("EvictionByEvictionAPI", "True", "Failed"), 500, None),
            (meant("TerminationByKubelet", "True", "Running"), 500, None),
            (pod("p", "Running", true), 500, None),
        ] {
            assert_eq!(until_stale(&pod, at(now)), expected.map(Duration::from_secs));
        }
    }

    #[test]
    fn evictions_that_came_to_nothing_are_told_of() {
        let mut budget = PodDisruptionBudget::from_value(json!({"spec": {"minAvailable": 1}})).unwrap();
        let since = at(0).to_string();
        let evicted = json!({"disruptedPods": {"stays": since, "gone": since, "young": at(100).to_string()}});
        budget.status = Some(serde_json::from_value(evicted).unwrap());
        let pods = arcs([pod("stays", "Running", true), pod("young", "Running", true)]);
        assert_eq!(lapsed(&budget, &pods, at(130)), ["stays"]);
        assert!(lapsed(&budget, &pods, at(110)).is_empty());
    }
}
