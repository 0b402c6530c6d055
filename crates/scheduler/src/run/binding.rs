//! From a pod's place to its binding: what must allow it, and what must be there first.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Loop;
use crate::PodInfo;
use crate::cluster::Change;
use crate::cycle::Unschedulable;
use crate::framework::{Permit, Prepared, Refusal, Write};
use crate::metrics::Outcome;
use crate::plugins::Point;
use crate::profile::Profile;
use crate::writes::{Nomination, bind, prepare, release, report};

/// A pod that has a node and is not bound yet.
pub struct Pending {
    pod: Arc<PodInfo>,
    node: String,
    stage: Stage,
}

enum Stage {
    /// Some plugin has yet to allow it; then this is to be written.
    Permit { writes: Vec<Write>, plugin: &'static str, since: Instant, patience: Duration },
    /// What it needs is being asked for.
    Writing,
    /// It waits for what was asked for, so long.
    Preparing { deadline: Instant },
}

/// What comes next for a pending pod.
enum Next {
    GoOn,
    Bind,
    /// A plugin does not allow it.
    Reject(&'static str, String),
    Fail(String),
}

impl Pending {
    /// When it is given up.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Permit { since, patience, .. } => Some(*since + *patience),
            Stage::Writing => None,
            Stage::Preparing { deadline } => Some(*deadline),
        }
    }

    pub fn waits_for_permit(&self) -> bool {
        matches!(self.stage, Stage::Permit { .. })
    }

    fn next(&self, this: &Loop, profile: &Profile, now: Instant) -> Option<Next> {
        let late = self.deadline().is_some_and(|deadline| deadline <= now);
        match &self.stage {
            Stage::Writing => None,
            Stage::Permit { patience, plugin: waits_for, .. } => {
                match profile.permit(&self.pod, &self.node, &this.cluster) {
                    (_, Permit::Allowed) => Some(Next::GoOn),
                    (plugin, Permit::Rejected(why)) => Some(Next::Reject(plugin, why)),
                    // Upstream: pkg/scheduler/framework/runtime/waiting_pods_map.go newWaitingPod
                    (_, Permit::Wait(_)) => late.then(|| {
                        let why = format!(
                            "rejected due to timeout after waiting {patience:?} at plugin {waits_for}"
                        );
                        Next::Reject(waits_for, why)
                    }),
                }
            }
            Stage::Preparing { .. } => match profile.prepared(&self.pod, &self.node, &this.cluster) {
                Prepared::Ready => Some(Next::Bind),
                Prepared::Failed(why) => Some(Next::Fail(why)),
                Prepared::Waiting => {
                    late.then(|| Next::Fail("binding volumes: context deadline exceeded".into()))
                }
            },
        }
    }
}

impl Loop {
    /// A pod has its place, and what it needs there is reserved.
    pub(super) fn placed(&mut self, profile: &Profile, pod: Arc<PodInfo>, node: String, writes: Vec<Write>) {
        let begun = Instant::now();
        let permit = profile.permit(&pod, &node, &self.cluster);
        let status = match &permit.1 {
            Permit::Allowed => "Success",
            Permit::Rejected(_) => "Unschedulable",
            Permit::Wait(_) => "Wait",
        };
        self.metrics.step(Point::Permit, status, &profile.scheduler_name, begun.elapsed());
        match permit {
            (_, Permit::Allowed) => self.prepare(profile, pod, node, writes),
            (plugin, Permit::Rejected(why)) => self.reject(&pod, plugin, &why),
            (plugin, Permit::Wait(patience)) => {
                let stage = Stage::Permit { writes, plugin, since: Instant::now(), patience };
                self.pending.insert(pod.key.clone(), Pending { pod, node, stage });
            }
        }
    }

    /// Asks for what the pod needs before its binding, if it needs anything.
    fn prepare(&mut self, profile: &Profile, pod: Arc<PodInfo>, node: String, writes: Vec<Write>) {
        if writes.is_empty() && profile.prepared(&pod, &node, &self.cluster) == Prepared::Ready {
            self.bind(pod, node);
            return;
        }
        // Others see where the pod is about to go while it waits.
        //
        // Upstream: feature NominatedNodeNameForExpectation
        if !writes.is_empty() && pod.nominated_node() != Some(&*node) {
            let patch = serde_json::json!({"status": {"nominatedNodeName": node}});
            self.writes.spawn(report(self.client.clone(), pod.clone(), patch));
        }
        let key = pod.key.clone();
        self.pending.insert(key.clone(), Pending { pod, node, stage: Stage::Writing });
        self.writes.spawn(prepare(self.client.clone(), key, writes, self.clock.clone()));
    }

    /// What a pod needs was asked for.
    pub(super) fn prepared(&mut self, key: &str, outcome: Result<(), client::Error>) {
        let Some(pending) = self.pending.get_mut(key) else { return };
        let timeout = self.profiles.get(pending.pod.scheduler_name()).map(|p| p.preparation_timeout());
        pending.stage = Stage::Preparing { deadline: Instant::now() + timeout.unwrap_or_default() };
        match outcome {
            Ok(()) => self.advance(),
            Err(error) => {
                let Some(Pending { pod, .. }) = self.pending.remove(key) else { return };
                self.unplace(&pod, &error.to_string());
            }
        }
    }

    /// Goes on with the pods that may, and gives up on those that never will.
    pub(super) fn advance(&mut self) {
        let now = Instant::now();
        let next = self.pending.iter().filter_map(|(key, pending)| {
            let profile = self.profiles.get(pending.pod.scheduler_name())?;
            Some((key.clone(), profile.clone(), pending.next(self, profile, now)?))
        });
        for (key, profile, next) in next.collect::<Vec<_>>() {
            let Some(Pending { pod, node, stage }) = self.pending.remove(&key) else { continue };
            match (next, stage) {
                (Next::GoOn, Stage::Permit { writes, since, .. }) => {
                    self.metrics.permit_waited("Success", since.elapsed());
                    self.prepare(&profile, pod, node, writes);
                }
                (Next::Reject(plugin, why), Stage::Permit { since, .. }) => {
                    self.metrics.permit_waited("Unschedulable", since.elapsed());
                    self.reject(&pod, plugin, &why);
                }
                (Next::Bind | Next::GoOn, _) => self.bind(pod, node),
                (Next::Reject(plugin, why), _) => self.reject(&pod, plugin, &why),
                (Next::Fail(why), _) => self.unplace(&pod, &why),
            }
        }
    }

    fn bind(&mut self, pod: Arc<PodInfo>, node: String) {
        let binder = |extender: &usize| {
            let extender = &self.extenders[*extender];
            extender.binds() && extender.is_interested(&pod.pod)
        };
        let binder = (0..self.extenders.len()).find(binder);
        let extenders = binder.map(|at| (self.extenders.clone(), at));
        self.writes.spawn(bind(self.client.clone(), extenders, pod, node));
    }

    /// The pod waits for nothing any more.
    pub(super) fn abandon(&mut self, key: &str) {
        if let Some(Pending { pod, .. }) = self.pending.remove(key)
            && let Some(profile) = self.profiles.get(pod.scheduler_name())
        {
            let writes = profile.unreserve(&pod, &mut self.cluster);
            self.release(writes);
        }
    }

    pub(super) fn release(&mut self, writes: Vec<Write>) {
        if !writes.is_empty() {
            self.writes.spawn(release(self.client.clone(), writes, self.clock.clone()));
        }
    }

    /// A placed pod gives back all that it has.
    fn give_back(&mut self, pod: &PodInfo) -> Option<(Arc<Profile>, Option<Change>)> {
        let profile = self.profiles.get(pod.scheduler_name()).cloned()?;
        let writes = profile.unreserve(pod, &mut self.cluster);
        self.release(writes);
        Some((profile, self.cluster.forget(&pod.key)))
    }

    /// A placed pod cannot have what it needs: it gives everything back and is tried again.
    fn unplace(&mut self, pod: &Arc<PodInfo>, why: &str) {
        let Some((profile, change)) = self.give_back(pod) else { return };
        self.give_up(&profile, pod, why);
        change.iter().for_each(|change| self.wake(change));
    }

    /// A plugin does not let a placed pod go on: it gives everything back and waits until that may be different.
    fn reject(&mut self, pod: &Arc<PodInfo>, plugin: &'static str, why: &str) {
        let Some((profile, change)) = self.give_back(pod) else { return };
        let mut against = Unschedulable { nodes: 1, ..Unschedulable::default() };
        against.count(0, plugin, &Refusal::new(why.to_owned()));
        self.tell(&profile, pod, &against.to_string(), Nomination::AsItIs, "Unschedulable");
        self.ended(Outcome::Unschedulable, &profile, &pod.key);
        self.queue.refused(&pod.key, against.refused_by, Instant::now());
        // It is no help to the pod itself.
        change.iter().for_each(|change| self.wake(change));
    }
}
