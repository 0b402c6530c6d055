//! What is to be done for a DaemonSet: pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::apps::v1::{DaemonSet, DaemonSetStatus};
use api::core::v1::{Node, Pod, PodSpec};
use controller_runtime::EventType;
use jiff::Timestamp;

use super::placement::{should_run, target_node};
use crate::objects::{
    created, is_deleting, is_ready, is_terminal, label, node_name, phase, scaled, until_available,
};

/// The label of pods and revisions that says which template they are of.
pub(crate) const HASH_LABEL: &str = "controller-revision-hash";

/// How long a failed pod is kept on a node before it is replaced, longer each time.
///
/// Upstream: client-go/util/flowcontrol/backoff.go Backoff
#[derive(Debug, Default)]
pub(crate) struct Backoff(HashMap<String, (Duration, Timestamp)>);

const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(15 * 60);

fn age(since: Timestamp, now: Timestamp) -> Duration {
    now.duration_since(since).try_into().unwrap_or_default()
}

impl Backoff {
    /// The delay that a key is in, if it is in one.
    pub fn delay(&self, key: &str, now: Timestamp) -> Option<Duration> {
        let (delay, since) = self.0.get(key)?;
        (age(*since, now) < *delay).then_some(*delay)
    }

    /// Another failure of the key. What has long been quiet is forgotten, so that this stays small.
    pub fn next(&mut self, key: &str, now: Timestamp) {
        self.0.retain(|_, (_, since)| age(*since, now) <= LONGEST_DELAY * 2);
        let delay = self.0.get(key).map_or(FIRST_DELAY, |(delay, _)| (*delay * 2).min(LONGEST_DELAY));
        self.0.insert(key.to_owned(), (delay, now));
    }
}

/// What is known when a decision is made.
pub(crate) struct Observed<'a> {
    pub set: &'a DaemonSet,
    pub nodes: &'a [Arc<Node>],
    /// All that the set owns.
    pub pods: &'a [Arc<Pod>],
    /// Of the present template.
    pub hash: &'a str,
    pub backoff: &'a Backoff,
    pub now: Timestamp,
}

#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Names of nodes that get a pod.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Keys whose failure is to be remembered.
    pub failed: Vec<String>,
    pub events: Vec<(EventType, &'static str, String)>,
    /// When to look again, should nothing happen.
    pub again: Option<Duration>,
}

type OnNodes<'a> = BTreeMap<&'a str, Vec<&'a Arc<Pod>>>;

impl<'a> Observed<'a> {
    fn template(&self) -> Option<&'a PodSpec> {
        self.set.spec.as_ref()?.template.spec.as_ref()
    }

    fn should_run(&self, node: &Node) -> (bool, bool) {
        self.template().map_or((false, false), |template| should_run(template, node))
    }

    /// Pods by node, oldest first, those on the node before those that wait for it. Pods that have ended and go
    /// away concern nobody any more.
    fn on_nodes(&self) -> OnNodes<'a> {
        let mut on_nodes = OnNodes::new();
        for pod in self.pods.iter().filter(|pod| !(is_terminal(pod) && is_deleting(&***pod))) {
            if let Some(node) = target_node(pod) {
                on_nodes.entry(node).or_default().push(pod);
            }
        }
        for pods in on_nodes.values_mut() {
            pods.sort_by_key(|pod| (node_name(pod).is_empty(), created(&***pod), pod.name()));
        }
        on_nodes
    }

    fn min_ready_seconds(&self) -> i32 {
        self.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        until_available(pod, self.min_ready_seconds(), self.now) == Some(Duration::ZERO)
    }

    /// Upstream: pkg/controller/daemon/util/daemonset_util.go IsPodUpdated
    fn is_updated(&self, pod: &Pod) -> bool {
        !self.hash.is_empty() && label(pod, HASH_LABEL) == Some(self.hash)
    }

    /// Surge and unavailability of a rolling update among so many pods.
    fn limits(&self, total: i32) -> (usize, usize) {
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let rolling = rolling.filter(|_| rolls(self.set));
        let of = |value| usize::try_from(scaled(value, total, true).unwrap_or(0)).unwrap_or(0);
        let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref()).map_or(0, of);
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).map_or(1, of);
        if total > 0 && surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
    }
}

fn rolls(set: &DaemonSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()).is_none_or(|kind| kind == "RollingUpdate")
}

/// Pods where there shall be one and none where not; when that is so, the next step of the rolling update.
pub(crate) fn decide(observed: &Observed<'_>) -> Plan {
    let mut on_nodes = observed.on_nodes();
    let mut plan = Plan::default();
    for node in observed.nodes {
        let pods = on_nodes.get(node.name()).map(Vec::as_slice);
        manage_node(observed, node, pods, &mut plan);
    }
    let known: HashMap<&str, &Node> = observed.nodes.iter().map(|node| (node.name(), &**node)).collect();
    // Upstream: pkg/controller/daemon/daemon_controller.go getUnscheduledPodsWithoutNode
    for (_, pods) in on_nodes.iter().filter(|(name, _)| !known.contains_key(*name)) {
        let waiting = pods.iter().filter(|pod| node_name(pod).is_empty() && !is_deleting(&****pod));
        plan.delete.extend(waiting.map(|pod| (*pod).clone()));
    }
    if plan.create.is_empty() && plan.delete.is_empty() && rolls(observed.set) {
        let wanted: Vec<_> = observed.nodes.iter().filter(|node| observed.should_run(node).0).collect();
        for node in &wanted {
            on_nodes.entry(node.name()).or_default();
        }
        let (surge, unavailable) = observed.limits(wanted.len() as i32);
        if surge == 0 {
            replace(observed, &on_nodes, unavailable, &mut plan);
        } else {
            surge_over(observed, (&known, &on_nodes), surge, wanted.len(), &mut plan);
        }
    }
    plan
}

/// Upstream: pkg/controller/daemon/daemon_controller.go podsShouldBeOnNode
fn manage_node(observed: &Observed<'_>, node: &Node, pods: Option<&[&Arc<Pod>]>, plan: &mut Plan) {
    let (should_start, may_stay) = observed.should_run(node);
    let Some(pods) = pods else {
        if should_start {
            plan.create.push(node.name().to_owned());
        }
        return;
    };
    let living = pods.iter().filter(|pod| !is_deleting(&****pod)).copied();
    if !may_stay {
        plan.delete.extend(living.cloned());
        return;
    }
    let running: Vec<_> = living.filter(|pod| !clear_ended(observed, node, pod, plan)).collect();
    if observed.limits(1).0 == 0 {
        plan.delete.extend(running.into_iter().skip(1).cloned());
        return;
    }
    if running.is_empty() && should_start {
        plan.create.push(node.name().to_owned());
    }
    if running.len() < 2 {
        return;
    }
    let (mut new, mut old) = (None, None);
    for pod in running {
        let place = if observed.is_updated(pod) { &mut new } else { &mut old };
        if place.is_none() {
            *place = Some(pod);
        } else {
            plan.delete.push(pod.clone());
        }
    }
    if let (Some(new), Some(old)) = (new, old)
        && (!is_ready(old) || observed.is_available(new))
    {
        plan.delete.push(old.clone());
    }
}

/// Deletes a pod that has ended, and says whether it has.
fn clear_ended(observed: &Observed<'_>, node: &Node, pod: &Arc<Pod>, plan: &mut Plan) -> bool {
    let (kind, reason, verb) = match phase(pod) {
        "Failed" => (EventType::Warning, "FailedDaemonPod", "kill"),
        "Succeeded" => (EventType::Normal, "SucceededDaemonPod", "delete"),
        _ => return false,
    };
    if reason == "FailedDaemonPod" {
        // The kubelet may refuse every pod at once: pods must not come and go without end.
        let generation = observed.set.status.as_ref().and_then(|status| status.observed_generation);
        let key = format!("{}/{}/{}", observed.set.uid(), generation.unwrap_or(0), node.name());
        if let Some(delay) = observed.backoff.delay(&key, observed.now) {
            plan.again = Some(plan.again.map_or(delay, |other| other.min(delay)));
            return true;
        }
        plan.failed.push(key);
    }
    let state = phase(pod).to_lowercase();
    let (namespace, name, node) = (pod.namespace(), pod.name(), node.name());
    let message =
        format!("Found {state} daemon pod {namespace}/{name} on node {node}, will try to {verb} it");
    plan.events.push((kind, reason, message));
    plan.delete.push(pod.clone());
    true
}

type NewAndOld<'a> = (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>);

/// The new and the old pod on a node; `None` when there are more, which is for [`manage_node`] to clear.
fn new_and_old<'a>(observed: &Observed<'_>, pods: &[&'a Arc<Pod>]) -> Option<NewAndOld<'a>> {
    let (mut new, mut old) = (None, None);
    for pod in pods.iter().filter(|pod| !is_deleting(&****pod)) {
        let place = if observed.is_updated(pod) { &mut new } else { &mut old };
        if place.replace(*pod).is_some() {
            return None;
        }
    }
    Some((new, old))
}

/// Deletes as many old pods as may be unavailable at once; others take their place in a later pass.
///
/// Upstream: pkg/controller/daemon/update.go rollingUpdate
fn replace(observed: &Observed<'_>, on_nodes: &OnNodes<'_>, max_unavailable: usize, plan: &mut Plan) {
    let mut unavailable = 0;
    let mut candidates = Vec::new();
    for pods in on_nodes.values() {
        match new_and_old(observed, pods) {
            Some((Some(new), None)) if observed.is_available(new) => {}
            Some((None, Some(old))) if observed.is_available(old) => candidates.push(old.clone()),
            Some((None, Some(old))) => {
                plan.delete.push(old.clone());
                unavailable += 1;
            }
            _ => unavailable += 1,
        }
    }
    candidates.truncate(max_unavailable.saturating_sub(unavailable));
    plan.delete.extend(candidates);
}

/// Starts new pods beside old ones, and deletes the old when the new are available.
///
/// Upstream: pkg/controller/daemon/update.go rollingUpdate
fn surge_over(
    observed: &Observed<'_>,
    (known, on_nodes): (&HashMap<&str, &Node>, &OnNodes<'_>),
    max_surge: usize,
    desired: usize,
    plan: &mut Plan,
) {
    let (mut surging, mut available) = (0, 0);
    let (mut candidates, mut misplaced) = (Vec::new(), Vec::new());
    for (name, pods) in on_nodes {
        let Some((new, old)) = new_and_old(observed, pods) else {
            surging += 1;
            continue;
        };
        available += usize::from(old.or(new).is_some_and(|pod| observed.is_available(pod)));
        let Some(old) = old else { continue };
        if let Some(new) = new {
            if observed.is_available(new) {
                plan.delete.push(old.clone());
            } else {
                surging += 1;
            }
            continue;
        }
        let node = known.get(*name);
        let belongs = node.is_some_and(|node| observed.should_run(node).0);
        match (observed.is_available(old), belongs) {
            (false, false) => plan.delete.push(old.clone()),
            (false, true) => plan.create.push((*name).to_owned()),
            (true, false) => misplaced.push(old.clone()),
            (true, true) => candidates.push((*name).to_owned()),
        }
    }
    // A pod where none belongs any more goes only when enough others are available.
    misplaced.truncate(available.saturating_sub(desired));
    plan.delete.extend(misplaced);
    candidates.truncate(max_surge.saturating_sub(surging));
    plan.create.extend(candidates);
}

/// The status that nodes and pods mean, and when availability changes by the passing of time.
///
/// Upstream: pkg/controller/daemon/daemon_controller.go updateDaemonSetStatus
pub(crate) fn status(
    observed: &Observed<'_>,
    collisions: Option<i32>,
) -> (DaemonSetStatus, Option<Duration>) {
    let on_nodes = observed.on_nodes();
    let old = observed.set.status.as_ref();
    let mut status = DaemonSetStatus {
        collision_count: collisions,
        conditions: old.and_then(|old| old.conditions.clone()),
        observed_generation: observed.set.metadata.generation,
        ..Default::default()
    };
    let (mut available, mut updated) = (0, 0);
    let mut again: Option<Duration> = None;
    for node in observed.nodes {
        let first = on_nodes.get(node.name()).and_then(|pods| pods.first());
        let Some(pod) = first else {
            status.desired_number_scheduled += i32::from(observed.should_run(node).0);
            continue;
        };
        if !observed.should_run(node).0 {
            status.number_misscheduled += 1;
            continue;
        }
        status.desired_number_scheduled += 1;
        status.current_number_scheduled += 1;
        updated += i32::from(observed.is_updated(pod));
        if let Some(wait) = until_available(pod, observed.min_ready_seconds(), observed.now) {
            status.number_ready += 1;
            available += i32::from(wait.is_zero());
            again = again.into_iter().chain(Some(wait).filter(|wait| !wait.is_zero())).min();
        }
    }
    status.updated_number_scheduled = Some(updated);
    status.number_available = Some(available);
    status.number_unavailable = Some(status.desired_number_scheduled - available);
    (status, again)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
