//! What is to be done for a StatefulSet: pure.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::apps::v1::{RollingUpdateStatefulSetStrategy, StatefulSet, StatefulSetStatus};
use api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use api::meta::OwnerReference;
use jiff::Timestamp;

use super::identity::{
    Owners, REVISION_LABEL, claim_names, claims, corrected, deletes_when_scaled, is_stale, make_pod, ordinal,
    owners,
};
use crate::objects::{is_deleting, is_ready, is_terminal, label, phase, scaled, until_available};

/// A revision by its name, with its template.
pub(crate) struct Revision<'a> {
    pub name: &'a str,
    pub template: &'a PodTemplateSpec,
}

/// What is known when a decision is made.
pub(crate) struct Observed<'a> {
    pub set: &'a StatefulSet,
    /// All that the set owns.
    pub pods: &'a [Arc<Pod>],
    /// The claims of the namespace, by name.
    pub claim: &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
    pub current: Revision<'a>,
    pub update: Revision<'a>,
    pub collisions: i32,
    pub now: Timestamp,
}

/// One thing to do.
#[derive(Debug)]
pub(crate) enum Step {
    /// A pod, after the claims that are missing.
    Create(Box<Pod>, Vec<PersistentVolumeClaim>),
    /// The missing claims of a pod that waits for them.
    CreateClaims(Arc<Pod>, Vec<PersistentVolumeClaim>),
    SetOwners(Arc<PersistentVolumeClaim>, Vec<OwnerReference>),
    Update(Box<Pod>),
    Delete(Arc<Pod>),
}

#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub steps: Vec<Step>,
    /// Claims whose retention policy is ignored because of another controller.
    pub conflicts: Vec<String>,
    pub status: StatefulSetStatus,
    /// When to look again, should nothing happen.
    pub again: Option<Duration>,
}

/// Whether to go on with the next pod.
#[derive(PartialEq)]
enum Flow {
    Next,
    Wait,
}

pub(crate) fn replicas(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1).max(0)
}

fn start(set: &StatefulSet) -> i32 {
    let ordinals = set.spec.as_ref().and_then(|spec| spec.ordinals.as_ref());
    ordinals.and_then(|ordinals| ordinals.start).unwrap_or(0)
}

fn end(set: &StatefulSet) -> i32 {
    start(set).saturating_add(replicas(set))
}

fn is_parallel(set: &StatefulSet) -> bool {
    set.spec.as_ref().and_then(|spec| spec.pod_management_policy.as_deref()) == Some("Parallel")
}

fn rolls(set: &StatefulSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()).is_none_or(|kind| kind == "RollingUpdate")
}

fn rolling(set: &StatefulSet) -> Option<&RollingUpdateStatefulSetStrategy> {
    set.spec.as_ref()?.update_strategy.as_ref()?.rolling_update.as_ref()
}

fn revision(pod: &Pod) -> &str {
    label(pod, REVISION_LABEL).unwrap_or_default()
}

impl Observed<'_> {
    fn wait(&self, pod: &Pod) -> Option<Duration> {
        let seconds = self.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
        until_available(pod, seconds, self.now)
    }

    fn is_unavailable(&self, pod: &Pod) -> bool {
        is_deleting(pod) || self.wait(pod) != Some(Duration::ZERO)
    }

    /// The pod of an ordinal that has none: of the current revision below the partition.
    ///
    /// Upstream: pkg/controller/statefulset/stateful_set_utils.go newVersionedStatefulSetPod
    fn new_pod(&self, ordinal: i32) -> Pod {
        let status = self.set.status.as_ref();
        let kept = match rolling(self.set) {
            Some(rolling) => rolling.partition.unwrap_or(0),
            None if rolls(self.set) => status.and_then(|status| status.current_replicas).unwrap_or(0),
            None => 0,
        };
        let of = if ordinal < start(self.set).saturating_add(kept) { &self.current } else { &self.update };
        make_pod(self.set, of.template, of.name, ordinal)
    }

    fn missing_claims(&self, ordinal: i32) -> Vec<PersistentVolumeClaim> {
        claims(self.set, ordinal).into_iter().filter(|claim| (self.claim)(claim.name()).is_none()).collect()
    }

    /// Whether a claim of the new pod is still that of the last one, and goes with it.
    fn awaits_claims(&self, pod: &Pod, ordinal: i32) -> bool {
        let mut names = claim_names(self.set, ordinal);
        deletes_when_scaled(self.set)
            && names.any(|name| (self.claim)(&name).is_some_and(|claim| is_stale(&claim, pod)))
    }

    fn fix_owners(&self, pod: &Pod, scaled_down: bool, plan: &mut Plan) {
        let Some(ordinal) = ordinal(pod) else { return };
        for claim in claim_names(self.set, ordinal).filter_map(|name| (self.claim)(&name)) {
            match owners(&claim, self.set, pod, scaled_down) {
                Owners::Right => {}
                Owners::Wrong(wanted) => plan.steps.push(Step::SetOwners(claim, wanted)),
                Owners::Conflict(wanted) => {
                    plan.conflicts.push(claim.name().to_owned());
                    plan.steps.extend(wanted.map(|wanted| Step::SetOwners(claim, wanted)));
                }
            }
        }
    }
}

/// Decides the next steps: in order of ordinals and one by one, unless the set is parallel.
///
/// Upstream: pkg/controller/statefulset/stateful_set_control.go updateStatefulSet
pub(crate) fn decide(observed: &Observed<'_>) -> Plan {
    let set = observed.set;
    let mut plan = Plan { status: count(observed), ..Default::default() };
    let waits = observed.pods.iter().filter_map(|pod| observed.wait(pod)).filter(|wait| !wait.is_zero());
    plan.again = waits.min();
    if !is_deleting(set) && establish(observed, &mut plan) == Flow::Next && rolls(set) {
        roll(observed, &mut plan);
    }
    complete(set, &mut plan.status);
    plan
}

fn by_ordinal<'a>(observed: &Observed<'a>) -> BTreeMap<i32, &'a Arc<Pod>> {
    observed.pods.iter().filter_map(|pod| Some((ordinal(pod)?, pod))).collect()
}

/// All pods that are wanted, none that is not.
fn establish(observed: &Observed<'_>, plan: &mut Plan) -> Flow {
    let set = observed.set;
    let (range, parallel) = (start(set)..end(set), is_parallel(set));
    let mut condemned = by_ordinal(observed);
    for ordinal in range.clone() {
        let flow = match condemned.remove(&ordinal) {
            Some(pod) => keep(observed, pod, plan),
            None => create(observed, ordinal, plan),
        };
        if flow == Flow::Wait && !parallel {
            return Flow::Wait;
        }
    }
    for pod in condemned.values() {
        observed.fix_owners(pod, true, plan);
    }
    let present = by_ordinal(observed);
    let all_available =
        range.clone().all(|ordinal| present.get(&ordinal).is_some_and(|pod| !observed.is_unavailable(pod)));
    let first_unavailable =
        condemned.iter().find(|(_, pod)| all_available && observed.is_unavailable(pod)).map(|(at, _)| *at);
    for (at, pod) in condemned.into_iter().rev() {
        if is_deleting(&**pod) {
            if parallel {
                continue;
            }
            return Flow::Wait;
        }
        if !parallel && observed.is_unavailable(pod) && Some(at) != first_unavailable {
            return Flow::Wait;
        }
        plan.steps.push(Step::Delete(pod.clone()));
        if !parallel {
            return Flow::Wait;
        }
    }
    Flow::Next
}

fn create(observed: &Observed<'_>, ordinal: i32, plan: &mut Plan) -> Flow {
    let pod = observed.new_pod(ordinal);
    if !observed.awaits_claims(&pod, ordinal) {
        plan.steps.push(Step::Create(Box::new(pod), observed.missing_claims(ordinal)));
    }
    Flow::Wait
}

/// Upstream: pkg/controller/statefulset/stateful_set_control.go processReplica
fn keep(observed: &Observed<'_>, pod: &Arc<Pod>, plan: &mut Plan) -> Flow {
    if is_terminal(pod) {
        if !is_deleting(&**pod) {
            plan.steps.push(Step::Delete(pod.clone()));
        }
        return Flow::Wait;
    }
    if phase(pod) == "Pending" {
        let missing = observed.missing_claims(ordinal(pod).unwrap_or(0));
        if !missing.is_empty() {
            plan.steps.push(Step::CreateClaims(pod.clone(), missing));
        }
        observed.fix_owners(pod, false, plan);
    }
    if observed.is_unavailable(pod) && !is_parallel(observed.set) {
        return Flow::Wait;
    }
    if phase(pod) != "Pending" {
        observed.fix_owners(pod, false, plan);
    }
    plan.steps.extend(corrected(pod).map(|pod| Step::Update(Box::new(pod))));
    Flow::Next
}

/// Deletes pods of other revisions from the last ordinal to the partition.
fn roll(observed: &Observed<'_>, plan: &mut Plan) {
    let rolling = rolling(observed.set);
    let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or(0);
    let open = start(observed.set).saturating_add(partition)..end(observed.set);
    let max = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
    let gone = match max.and_then(|max| scaled(max, replicas(observed.set), false)) {
        Some(max) => outdated_within(observed, open, max.max(1)),
        None => outdated_last(observed, open).into_iter().collect(),
    };
    for pod in gone {
        if revision(&pod) == observed.current.name {
            let current = plan.status.current_replicas.get_or_insert_default();
            *current = (*current - 1).max(0);
        }
        plan.steps.push(Step::Delete(pod));
    }
}

fn is_outdated(observed: &Observed<'_>, pod: &Pod) -> bool {
    revision(pod) != observed.update.name && !is_deleting(pod)
}

/// The last outdated pod, unless one after it is unavailable: one at a time.
///
/// Upstream: pkg/controller/statefulset/stateful_set_control.go updateStatefulSet
fn outdated_last(observed: &Observed<'_>, open: Range<i32>) -> Option<Arc<Pod>> {
    let present = by_ordinal(observed);
    for ordinal in open.rev() {
        let pod = present.get(&ordinal).filter(|pod| !is_terminal(pod))?;
        if is_outdated(observed, pod) {
            return Some((*pod).clone());
        }
        if observed.is_unavailable(pod) {
            return None;
        }
    }
    None
}

/// As many outdated pods as may be unavailable beside those that are.
///
/// Upstream: pkg/controller/statefulset/stateful_set_control.go updateStatefulSetAfterInvariantEstablished
fn outdated_within(observed: &Observed<'_>, open: Range<i32>, max_unavailable: i32) -> Vec<Arc<Pod>> {
    let present = by_ordinal(observed);
    let available = |ordinal: &i32| present.get(ordinal).is_some_and(|pod| !observed.is_unavailable(pod));
    let unavailable = (start(observed.set)..end(observed.set)).filter(|ordinal| !available(ordinal)).count();
    let budget = usize::try_from(max_unavailable).unwrap_or(1).saturating_sub(unavailable);
    let pods = open.rev().filter_map(|ordinal| present.get(&ordinal).copied());
    pods.filter(|pod| is_outdated(observed, pod) && !is_terminal(pod)).take(budget).cloned().collect()
}

/// Upstream: pkg/controller/statefulset/stateful_set_control.go computeReplicaStatus
fn count(observed: &Observed<'_>) -> StatefulSetStatus {
    let pods = observed.pods.iter().map(|pod| &**pod).filter(|pod| ordinal(pod).is_some());
    let number = |test: &dyn Fn(&Pod) -> bool| pods.clone().filter(|pod| test(pod)).count() as i32;
    let ready = |pod: &Pod| phase(pod) == "Running" && is_ready(pod);
    let of = |name: &str| number(&|pod| !is_deleting(pod) && revision(pod) == name);
    StatefulSetStatus {
        replicas: number(&|_| true),
        ready_replicas: Some(number(&ready)),
        available_replicas: Some(number(&|pod| ready(pod) && observed.wait(pod) == Some(Duration::ZERO))),
        current_replicas: Some(of(observed.current.name)),
        updated_replicas: Some(of(observed.update.name)),
        current_revision: Some(observed.current.name.to_owned()),
        update_revision: Some(observed.update.name.to_owned()),
        collision_count: Some(observed.collisions),
        observed_generation: observed.set.metadata.generation,
        conditions: observed.set.status.as_ref().and_then(|status| status.conditions.clone()),
    }
}

/// Upstream: pkg/controller/statefulset/stateful_set_utils.go completeRollingUpdate
fn complete(set: &StatefulSet, status: &mut StatefulSetStatus) {
    let all = replicas(set);
    let done = [Some(status.replicas), status.ready_replicas, status.updated_replicas];
    if rolls(set) && done.iter().all(|number| *number == Some(all)) {
        status.current_replicas = status.updated_replicas;
        status.current_revision = status.update_revision.clone();
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
