//! How a pod comes to the room of others: whom it evicts, and when it is tried again.
//!
//! All victims but one leave side by side, the last one after them, and until it goes the pod is not tried: not each
//! victim's end has it look for another node.
//!
//! Upstream: pkg/scheduler/framework/preemption/executor.go prepareCandidateAsync, IsPodRunningPreemption

use std::sync::Arc;

use controller_runtime::{Deed, EventType, reference};

use super::Loop;
use crate::PodInfo;
use crate::budgets::Budgets;
use crate::cluster::Cluster;
use crate::cycle::Unschedulable;
use crate::informers::Informers;
use crate::preemption::{self, Candidate, Hopeless};
use crate::profile::Profile;
use crate::writes::{Eviction, evict, report};

/// The evictions under way for one pod.
pub struct Evictions {
    /// How many have not ended that are to end before the last begins.
    left: usize,
    /// The last, until it begins.
    last: Option<Eviction>,
    last_victim: Arc<PodInfo>,
}

impl Evictions {
    /// What to begin with; `None` when nobody is to be evicted.
    fn begin(mut all: Vec<Eviction>) -> Option<(Self, Vec<Eviction>)> {
        let last = all.pop()?;
        let last_victim = last.victim.clone();
        if all.is_empty() {
            return Some((Evictions { left: 0, last: None, last_victim }, vec![last]));
        }
        Some((Evictions { left: all.len(), last: Some(last), last_victim }, all))
    }

    /// One has ended well: the last, if it is to begin now.
    fn ended(&mut self) -> Option<Eviction> {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 { self.last.take() } else { None }
    }

    /// Whether the pod is not to be tried yet.
    pub fn hold_back(&self, cluster: &Cluster) -> bool {
        self.last.is_some() || self.victim_is_there(cluster, |victim| !victim.is_deleting())
    }

    fn victim_is_there(&self, cluster: &Cluster, and: impl Fn(&PodInfo) -> bool) -> bool {
        let victim = cluster.pod(&self.last_victim.key);
        victim.is_some_and(|victim| victim.uid() == self.last_victim.uid() && and(victim))
    }
}

impl Loop {
    /// The evictions that would make room for the pod, where they do the least harm; `None` when extenders have
    /// something against each.
    pub(super) async fn room_for(
        &mut self,
        profile: &Profile,
        pod: &PodInfo,
        against: &Unschedulable,
    ) -> Result<Option<Candidate>, Hopeless> {
        let start = self.scheduler.next_random() as usize;
        let memo = &mut self.scheduler.memo;
        let budgets = budgets_of(&mut self.budgets, &self.informers);
        let places = preemption::places(profile, pod, &mut self.cluster, against, budgets, start, memo)?;
        let evictions = |node| preemption::candidate(profile, pod, &self.cluster, node, budgets);
        if !self.extenders.iter().any(|extender| extender.preempts() && extender.is_interested(&pod.pod)) {
            return Ok(preemption::best(&places).and_then(|place| evictions(place.node)));
        }
        let candidates = places.iter().filter_map(|place| evictions(place.node)).collect();
        Ok(preemption::best_candidate(self.allowed(pod, candidates).await))
    }

    /// The candidates that the extenders let pass.
    async fn allowed(&self, pod: &PodInfo, mut candidates: Vec<Candidate>) -> Vec<Candidate> {
        for extender in self.extenders.iter().filter(|e| e.preempts() && e.is_interested(&pod.pod)) {
            candidates = match extender.preempt(pod, candidates.clone()).await {
                Ok(allowed) => allowed,
                Err(error) if extender.is_ignorable() => {
                    tracing::info!(error, "an extender failed and is left out of a preemption");
                    candidates
                }
                Err(error) => {
                    tracing::warn!(error, pod = pod.key, "an extender failed: nobody is preempted");
                    return Vec::new();
                }
            };
        }
        candidates
    }

    pub(super) fn preempt(&mut self, profile: &Profile, pod: &Arc<PodInfo>, candidate: Candidate) {
        // Less important pods that wait for the same room look for another.
        let waiting = self.cluster.nominated(&candidate.node).iter();
        let less: Vec<_> = waiting.filter(|other| other.priority < pod.priority).cloned().collect();
        for other in less {
            self.cluster.withdraw(&other.key);
            let patch = serde_json::json!({"status": {"nominatedNodeName": null}});
            self.queue.activate(&other.key);
            self.writes.spawn(report(self.client.clone(), other, patch));
        }
        let message = format!("Preempted by pod {} on node {}", pod.uid(), candidate.node);
        let evictions = candidate.victims.into_iter().filter(|victim| !victim.is_deleting());
        let evictions = evictions.map(|victim| Eviction {
            victim,
            scheduler_name: profile.scheduler_name.clone(),
            preemptor: pod.clone(),
            message: message.clone(),
        });
        let Some((evictions, first)) = Evictions::begin(evictions.collect()) else { return };
        self.preempting.insert(pod.uid().to_owned(), evictions);
        first.into_iter().for_each(|eviction| self.evict(eviction));
    }

    fn evict(&mut self, eviction: Eviction) {
        self.writes.spawn(evict(self.client.clone(), eviction, self.clock.clone()));
    }

    /// Tells of a victim that it went, or has the pod for which it did not go tried again.
    pub(super) fn evicted(&mut self, eviction: &Eviction, gone: bool) {
        let preemptor = &eviction.preemptor;
        if !gone {
            self.preempting.remove(preemptor.uid());
            self.queue.activate(&preemptor.key);
            return;
        }
        if let Some(events) = self.events.get(&eviction.scheduler_name) {
            let deed = Deed {
                kind: EventType::Normal,
                reason: "Preempted",
                action: "Preempting",
                note: eviction.message.clone(),
            };
            events.tell(reference(&*eviction.victim.pod), Some(reference(&*preemptor.pod)), deed);
        }
        let Some(evictions) = self.preempting.get_mut(preemptor.uid()) else { return };
        if let Some(last) = evictions.ended() {
            self.evict(last);
        } else if evictions.left == 0 {
            // Had the last one gone before its turn nothing more would wake the pod.
            if !evictions.victim_is_there(&self.cluster, |_| true) && self.queue.is_asleep(&preemptor.key) {
                self.queue.activate(&preemptor.key);
            }
            self.preempting.remove(preemptor.uid());
        }
    }
}

/// The budgets, read again if they changed.
fn budgets_of<'a>(known: &'a mut Option<Budgets>, informers: &Informers) -> &'a Budgets {
    known.get_or_insert_with(|| Budgets::new(informers.budgets.list()))
}

#[cfg(test)]
mod tests {
    use api::Object;
    use serde_json::json;

    use super::*;
    use crate::testing::pod_info;

    fn eviction(victim: &str) -> Eviction {
        let pod = |name: &str| {
            let metadata = json!({"name": name, "namespace": "d", "uid": name});
            pod_info(json!({"metadata": metadata, "spec": {"containers": []}}))
        };
        let (victim, preemptor) = (pod(victim), pod("important"));
        Eviction { victim, preemptor, scheduler_name: "s".into(), message: String::new() }
    }

    fn names(evictions: impl IntoIterator<Item = Eviction>) -> String {
        let names = evictions.into_iter().map(|eviction| eviction.victim.pod.name().to_owned());
        names.collect::<Vec<_>>().join(" ")
    }

    /// With these on their node, of whom those of the second list are leaving.
    fn cluster(there: &[&str], deleting: &[&str]) -> Cluster {
        let mut cluster = Cluster::default();
        let node = json!({"metadata": {"name": "n"}});
        cluster.set_node(Arc::new(api::core::v1::Node::from_value(node).unwrap()));
        for name in there {
            let mut metadata = json!({"name": name, "namespace": "d", "uid": name});
            if deleting.contains(name) {
                metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            cluster.set_pod(pod_info(
                json!({"metadata": metadata, "spec": {"nodeName": "n", "containers": []}}),
            ));
        }
        cluster
    }

    #[test]
    fn the_last_victim_goes_after_the_others() {
        assert!(Evictions::begin(Vec::new()).is_none());
        let (mut evictions, first) = Evictions::begin(["a", "b", "c"].map(eviction).into()).unwrap();
        assert_eq!(names(first), "a b");
        assert!(evictions.ended().is_none());
        assert_eq!(names(evictions.ended()), "c");
        assert!(evictions.ended().is_none(), "there is none after it");
        let (mut evictions, first) = Evictions::begin(vec![eviction("a")]).unwrap();
        assert_eq!((names(first).as_str(), names(evictions.ended()).as_str()), ("a", ""));
    }

    #[test]
    fn a_pod_is_held_back_until_its_last_victim_leaves() {
        let (mut evictions, _) = Evictions::begin(["a", "b"].map(eviction).into()).unwrap();
        assert!(evictions.hold_back(&cluster(&[], &[])), "the last has not begun");
        evictions.ended();
        assert!(evictions.hold_back(&cluster(&["a", "b"], &["a"])));
        assert!(!evictions.hold_back(&cluster(&["a", "b"], &["b"])));
        assert!(!evictions.hold_back(&cluster(&["a"], &[])));
    }
}
