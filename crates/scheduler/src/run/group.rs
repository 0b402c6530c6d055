//! Pods of one group are tried together: as many of them as the group asks for get their nodes at once, or none does.
//!
//! Upstream: pkg/scheduler/schedule_one_podgroup.go

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

use api::scheduling::v1alpha2::PodGroup;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::placements::Outcome;
use super::{Attempt, Loop};
use crate::PodInfo;
use crate::cycle::Unschedulable;
use crate::framework::Write;
use crate::metrics;
use crate::pod_groups::Policy;
use crate::preemption::Candidate;
use crate::profile::Profile;
use crate::writes::{Nomination, report_group};

pub(super) const UNSCHEDULABLE: &str = "pod group is unschedulable";
const WAITING: &str = "waiting for minCount pods from a gang to be scheduled";
/// Upstream: plugins/defaultpreemption/default_preemption.go PostFilter
const NOT_ELIGIBLE: &str = "not eligible due to placement-based pod group scheduling limitation";
const PREEMPTING: &str = "pod group is waiting for preemption to complete";

/// What became of one pod of the group.
pub(super) enum Tried {
    Placed {
        node: String,
        writes: Vec<Write>,
    },
    /// There is a place if others leave it.
    Clears {
        candidate: Candidate,
        against: Box<Unschedulable>,
    },
    Refused(Box<Unschedulable>),
}

/// What becomes of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Scheduled,
    /// There are places for enough pods once others have left.
    Preempts,
    Unschedulable,
}

/// Decides of the group, given its policy, how many of its pods have a place now, whether any got one in this try,
/// and whether others would have to leave for it.
pub(super) fn verdict(policy: Policy, placed: usize, any: bool, clears: bool) -> Verdict {
    let enough = match policy {
        Policy::Unknown => false,
        Policy::Basic => any,
        Policy::Gang(least) => any && placed >= least,
    };
    match (enough, clears) {
        (false, _) => Verdict::Unschedulable,
        (true, true) => Verdict::Preempts,
        (true, false) => Verdict::Scheduled,
    }
}

impl Loop {
    /// Tries all pods of the group that wait, the more important and the older ones first.
    pub(super) async fn schedule_group(&mut self, first: Arc<PodInfo>, group: String) {
        let others: Vec<String> = self.cluster.pod_groups.waiting(&group).cloned().collect();
        let others = others.iter().filter(|key| **key != first.key);
        let mut pods: Vec<Arc<PodInfo>> = others.filter_map(|key| self.queue.take(key)).collect();
        pods.push(first);
        let now = Instant::now();
        pods.sort_by_cached_key(|pod| {
            let since = self.queue.attempts(&pod.key).map_or(now, |(_, since, _)| since);
            (Reverse(pod.priority), since, pod.key.clone())
        });
        let name = pods[0].scheduler_name().to_owned();
        if let Some(other) = pods.iter().find(|pod| pod.scheduler_name() != name) {
            let why = format!(
                "all pods in a single pod group should have the same .spec.schedulerName set, got: {name:?} and {:?}",
                other.scheduler_name()
            );
            return self.give_up_group(&group, &pods, &why);
        }
        let Some(profile) = self.profiles.get(&name).cloned() else { return };
        let begun = Instant::now();
        pods.iter().for_each(|pod| self.begin(pod));
        let Outcome { tried, said } = match self.try_group(&profile, &group, &pods).await {
            Ok(outcome) => outcome,
            Err(why) => {
                self.metrics.group_attempt("error", &name, begun.elapsed());
                return self.give_up_group(&group, &pods, &why);
            }
        };
        self.metrics.group_algorithm(begun.elapsed());
        let verdict = self.verdict_of(&group, &tried);
        if tried.is_empty() {
            self.refuse_all(&profile, &group, &pods, said.as_deref().unwrap_or(UNSCHEDULABLE));
        } else {
            self.finish_group(&profile, &group, pods, tried, verdict, said);
        }
        let result = match verdict {
            Verdict::Scheduled => "scheduled",
            Verdict::Preempts => "waiting_on_preemption",
            Verdict::Unschedulable => "unschedulable",
        };
        self.metrics.group_attempt(result, &name, begun.elapsed());
    }

    pub(super) fn verdict_of(&self, group: &str, tried: &[Tried]) -> Verdict {
        let any = tried.iter().any(|outcome| !matches!(outcome, Tried::Refused(_)));
        let clears = tried.iter().any(|outcome| matches!(outcome, Tried::Clears { .. }));
        let groups = &self.cluster.pod_groups;
        verdict(groups.policy(group), groups.placed(group), any, clears)
    }

    /// Takes a place for each of the pods that can have one.
    pub(super) async fn try_all(
        &mut self,
        profile: &Profile,
        pods: &[Arc<PodInfo>],
    ) -> Result<Vec<Tried>, String> {
        let mut tried: Vec<Tried> = Vec::with_capacity(pods.len());
        for pod in pods {
            match self.try_member(profile, pod).await {
                Ok(outcome) => tried.push(outcome),
                Err(why) => {
                    self.put_back(profile, pods, &tried);
                    return Err(format!("failed to schedule other pod from a pod group: {why}"));
                }
            }
        }
        Ok(tried)
    }

    /// There is no place at which any of the pods could be tried.
    fn refuse_all(&mut self, profile: &Profile, group: &str, pods: &[Arc<PodInfo>], why: &str) {
        for pod in pods {
            self.cluster.withdraw(&pod.key);
            self.tell(profile, pod, why, Nomination::None, "Unschedulable");
            self.ended(metrics::Outcome::Unschedulable, profile, &pod.key);
            // Whatever changes may make one.
            self.queue.refused(&pod.key, Vec::new(), Instant::now());
        }
        self.tell_group(group, "False", "Unschedulable", why);
    }

    /// An attempt to place the pod begins.
    pub(super) fn begin(&mut self, pod: &PodInfo) {
        self.forgive(&pod.key);
        let begun = Instant::now();
        let (number, since, overslept) = self.queue.attempts(&pod.key).unwrap_or((1, begun, false));
        self.attempts.insert(pod.key.clone(), Attempt { begun, number, since, overslept });
    }

    /// Takes a place for one pod. Where others must leave it first it is taken all the same, so that the next pod of
    /// the group does not count on it.
    async fn try_member(&mut self, profile: &Profile, pod: &Arc<PodInfo>) -> Result<Tried, String> {
        let node = match self.place(profile, pod).await? {
            Ok(node) => node,
            Err(mut against) => {
                let group = pod.group.as_deref().filter(|_| self.topologies);
                if group.is_some_and(|group| self.cluster.pod_groups.is_constrained(group)) {
                    against.preemption = Some(NOT_ELIGIBLE.to_owned());
                    return Ok(Tried::Refused(against));
                }
                let Ok(Some(candidate)) = self.room_for(profile, pod, &against).await else {
                    return Ok(Tried::Refused(against));
                };
                self.cluster.assume(pod.clone(), &candidate.node);
                return Ok(Tried::Clears { candidate, against });
            }
        };
        let writes = profile.reserve(pod, &node, &mut self.cluster)?;
        self.cluster.assume(pod.clone(), &node);
        Ok(Tried::Placed { node, writes })
    }

    /// The pods give their places back.
    pub(super) fn put_back(&mut self, profile: &Profile, pods: &[Arc<PodInfo>], tried: &[Tried]) {
        for (pod, outcome) in pods.iter().zip(tried) {
            if let Tried::Placed { .. } = outcome {
                // Nothing was written yet that would have to be undone.
                drop(profile.unreserve(pod, &mut self.cluster));
            }
            self.cluster.forget(&pod.key);
        }
    }

    fn give_up_group(&mut self, group: &str, pods: &[Arc<PodInfo>], why: &str) {
        for pod in pods {
            if let Some(profile) = self.profiles.get(pod.scheduler_name()).cloned() {
                self.give_up(&profile, pod, why);
            }
        }
        self.tell_group(group, "False", "SchedulerError", why);
    }

    fn finish_group(
        &mut self,
        profile: &Arc<Profile>,
        group: &str,
        pods: Vec<Arc<PodInfo>>,
        tried: Vec<Tried>,
        verdict: Verdict,
        said: Option<String>,
    ) {
        if verdict != Verdict::Scheduled {
            self.put_back(profile, &pods, &tried);
        }
        let (message, status) = match verdict {
            Verdict::Scheduled => (String::new(), "True"),
            Verdict::Preempts => (format!("{UNSCHEDULABLE}, {PREEMPTING}"), "False"),
            Verdict::Unschedulable => (said.unwrap_or_else(|| UNSCHEDULABLE.to_owned()), "False"),
        };
        // Two pods of the group may take the place of the same ones.
        let mut leaving: HashSet<String> = HashSet::new();
        let alone = format!("{UNSCHEDULABLE}, {WAITING}");
        for (pod, outcome) in pods.into_iter().zip(tried) {
            match (outcome, verdict) {
                (Tried::Placed { node, writes }, Verdict::Scheduled) => {
                    self.cluster.withdraw(&pod.key);
                    self.placed(profile, pod, node, writes);
                }
                (Tried::Placed { node, .. }, Verdict::Preempts) => {
                    self.cluster.nominate(pod.clone(), &node);
                    self.refuse_member(profile, &pod, &message, Nomination::To(&node));
                }
                (Tried::Clears { mut candidate, against }, Verdict::Preempts) => {
                    candidate.victims.retain(|victim| leaving.insert(victim.key.clone()));
                    let node = candidate.node.clone();
                    self.cluster.nominate(pod.clone(), &node);
                    self.metrics.victims(candidate.victims.len());
                    self.preempt(profile, &pod, candidate);
                    self.refused(profile, &pod, *against, Nomination::To(&node));
                }
                (Tried::Placed { .. } | Tried::Clears { .. }, _) => {
                    self.cluster.withdraw(&pod.key);
                    self.refuse_member(profile, &pod, &alone, Nomination::None);
                }
                (Tried::Refused(against), _) => self.refused(profile, &pod, *against, Nomination::AsItIs),
            }
        }
        let reason = if status == "True" { "Scheduled" } else { "Unschedulable" };
        self.tell_group(group, status, reason, &message);
    }

    /// There would be a place for the pod, but not for enough others.
    fn refuse_member(&mut self, profile: &Profile, pod: &Arc<PodInfo>, why: &str, nomination: Nomination) {
        self.tell(profile, pod, why, nomination, "Unschedulable");
        self.ended(metrics::Outcome::Unschedulable, profile, &pod.key);
        self.queue.refused(&pod.key, vec!["GangScheduling"], Instant::now());
    }

    /// The group's status says how it went. One that was scheduled once stays so.
    fn tell_group(&mut self, key: &str, status: &str, reason: &str, message: &str) {
        let Some(group) = self.cluster.pod_groups.get(key) else { return };
        if let Some(patch) = group_status(group, status, reason, message, json!(self.clock.time())) {
            self.writes.spawn(report_group(self.client.clone(), group.clone(), patch));
        }
    }

    /// Whoever of a group's pods is held back may go on, or may not any more.
    pub(super) fn look_at_group(&mut self, group: &str) {
        let waiting: Vec<String> = self.cluster.pod_groups.waiting(group).cloned().collect();
        for key in waiting {
            let Some(pod) = self.queue.get(&key).cloned() else { continue };
            let Some(profile) = self.profiles.get(pod.scheduler_name()) else { continue };
            let held_back = profile.is_held_back(&pod, &self.cluster);
            self.queue.set(pod, held_back, Instant::now());
        }
    }
}

/// The patch that makes the group's status say how it went; `None` when it says so already.
///
/// Upstream: pkg/scheduler/schedule_one_podgroup.go updatePodGroupCondition
fn group_status(group: &PodGroup, status: &str, reason: &str, message: &str, now: Value) -> Option<Value> {
    const KIND: &str = "PodGroupScheduled";
    let conditions = group.status.as_ref().and_then(|status| status.conditions.as_deref());
    let known = conditions.unwrap_or_default().iter().find(|condition| condition.type_ == KIND);
    if known.is_some_and(|known| known.status == "True" && status != "True") {
        return None;
    }
    let generation = group.metadata.generation;
    let same = known.filter(|known| known.status == status);
    if same.is_some_and(|known| {
        known.reason == reason && known.message == message && known.observed_generation == generation
    }) {
        return None;
    }
    let since = same.map_or(now, |known| json!(known.last_transition_time));
    Some(json!({"status": {"conditions": [{
        "type": KIND, "status": status, "reason": reason, "message": message, "lastTransitionTime": since,
        "observedGeneration": generation,
    }]}}))
}

#[cfg(test)]
mod tests {
    use api::Object;

    use super::*;

    #[test]
    fn a_gang_has_enough_places_or_none() {
        for (policy, placed, any, clears, expected) in [
            (Policy::Gang(3), 3, true, false, Verdict::Scheduled),
            (Policy::Gang(3), 2, true, false, Verdict::Unschedulable),
            (Policy::Gang(3), 3, true, true, Verdict::Preempts),
            (Policy::Gang(3), 2, true, true, Verdict::Unschedulable),
            // Others of it run; no more do.
            (Policy::Gang(3), 3, false, false, Verdict::Unschedulable),
            (Policy::Basic, 1, true, false, Verdict::Scheduled),
            (Policy::Basic, 0, false, false, Verdict::Unschedulable),
            (Policy::Unknown, 1, true, false, Verdict::Unschedulable),
        ] {
            assert_eq!(verdict(policy, placed, any, clears), expected, "{policy:?} {placed} {any} {clears}");
        }
    }

    #[test]
    fn a_group_that_was_scheduled_stays_so() {
        let group = |status: &str| {
            let condition = json!({"type": "PodGroupScheduled", "status": status, "reason": "R", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let group = json!({"metadata": {"name": "g"}, "spec": {"schedulingPolicy": {"basic": {}}},
                "status": {"conditions": [condition]}});
            PodGroup::from_value(group).unwrap()
        };
        let said = |group: &PodGroup, status: &str, message: &str| {
            let patch = group_status(group, status, "R", message, json!("2026-01-01T00:01:00Z"));
            patch.map(|patch| patch["status"]["conditions"][0]["lastTransitionTime"].clone())
        };
        assert_eq!(said(&group("True"), "False", "m"), None);
        assert_eq!(said(&group("False"), "False", "m"), None);
        assert_eq!(said(&group("False"), "False", "other"), Some(json!("2026-01-01T00:00:00Z")));
        assert_eq!(said(&group("False"), "True", "m"), Some(json!("2026-01-01T00:01:00Z")));
    }
}
