//! When the node itself runs short of memory, disk or processes: its conditions say so, images that nobody uses
//! go, and then one pod after another, the one first that can best be blamed.
//!
//! [`thresholds`] and [`rank`] decide, purely; [`run`] looks at the machine every ten seconds, as no kernel tells
//! of a disk that fills up, and carries out.

mod observe;
mod rank;
mod thresholds;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Object;
use api::core::v1::Pod;
use controller_runtime::EventType;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::events::PodEvents;
use crate::pod::{self, qos};
use crate::status::Verdict;
use crate::{Error, cgroup, evict, node};
use rank::Candidate;
pub use rank::is_critical;
use thresholds::Watched;
pub use thresholds::{Condition, Statements, Threshold, parse};

/// Upstream: pkg/kubelet/kubelet.go evictionMonitoringPeriod
const LOOK: Duration = Duration::from_secs(10);
/// Upstream: pkg/kubelet/eviction/eviction_manager.go immediateEvictionGracePeriodSeconds
pub const IMMEDIATE_GRACE_SECONDS: i64 = 1;
/// How long to wait for an evicted pod to end before another one goes.
// Upstream: pkg/kubelet/eviction/eviction_manager.go podCleanupTimeout
const CLEANUP: Duration = Duration::from_secs(30);

/// What the rest of the kubelet may know of it.
#[derive(Default)]
pub struct Pressure {
    conditions: Mutex<BTreeSet<Condition>>,
    /// By pod UID: pods that are to go, and why.
    verdicts: Mutex<BTreeMap<String, Verdict>>,
    changed: Notify,
}

impl Pressure {
    pub fn conditions(&self) -> BTreeSet<Condition> {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the conditions are others.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The verdict on a pod, taken once by its worker.
    pub fn take_verdict(&self, pod_uid: &str) -> Option<Verdict> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).remove(pod_uid)
    }

    /// Has the pod's worker end it.
    pub fn condemn(&self, pod_uid: &str, verdict: Verdict) {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).insert(pod_uid.to_owned(), verdict);
    }

    fn set(&self, conditions: BTreeSet<Condition>) {
        let mut known = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != conditions {
            *known = conditions;
            self.changed.notify_one();
        }
    }

    /// The refusal of a pod that would make things worse.
    // Upstream: pkg/kubelet/eviction/eviction_manager.go Admit
    pub fn refusal(&self, pod: &Pod) -> Option<Verdict> {
        let conditions = self.conditions();
        if conditions.is_empty() || rank::is_critical(pod) {
            return None;
        }
        let only_memory = conditions.iter().all(|condition| *condition == Condition::Memory);
        if only_memory && (qos::class(pod) != qos::Qos::BestEffort || tolerates_memory_pressure(pod)) {
            return None;
        }
        let names: Vec<&str> = conditions.into_iter().map(Condition::name).collect();
        let message = format!("The node had condition: [{}]. ", names.join(" "));
        Some(Verdict { reason: "Evicted".into(), message, ..Default::default() })
    }
}

fn tolerates_memory_pressure(pod: &Pod) -> bool {
    let tolerations = pod.spec.iter().flat_map(|s| s.tolerations.iter().flatten());
    tolerations.into_iter().any(|t| {
        let fits = |asked: &Option<String>, value: &str| {
            asked.as_deref().is_none_or(|asked| asked.is_empty() || asked == value)
        };
        let exists = t.operator.as_deref() == Some("Exists");
        fits(&t.key, "node.kubernetes.io/memory-pressure")
            && fits(&t.effect, "NoSchedule")
            && (exists || t.value.as_deref().unwrap_or_default().is_empty())
    })
}

/// Looks until the shutdown.
pub async fn run(core: Arc<Core>, shutdown: CancellationToken) -> Result<(), Error> {
    let mut every = tokio::time::interval(LOOK);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let watched = Watched::default();
    let mut watch = Watch { core, watched, seen: BTreeMap::new(), leaving: None };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = every.tick() => watch.look().await,
        }
    }
}

struct Watch {
    core: Arc<Core>,
    watched: Watched,
    /// When each condition held last.
    seen: BTreeMap<Condition, Instant>,
    /// The pod that was evicted last, and until when to wait for its end.
    leaving: Option<(String, Instant)>,
}

impl Watch {
    // Upstream: pkg/kubelet/eviction/eviction_manager.go synchronize
    async fn look(&mut self) {
        let core = self.core.clone();
        let observed = observe::all(&core).await;
        let now = Instant::now();
        let (met, due) = self.watched.look(&core.config.eviction, &observed, now);
        self.seen.extend(met.iter().map(|threshold| (threshold.signal.condition(), now)));
        self.seen.retain(|_, at| now.duration_since(*at) < core.config.eviction_transition);
        core.pressure.set(self.seen.keys().copied().collect());
        let Some(first) = due.first() else { return };
        if self.is_leaving(now) {
            return;
        }
        let about = node::reference(&core.config.node_name);
        let what = format!("Attempting to reclaim {}", first.signal.resource());
        core.recorder.event_about(about, EventType::Warning, "EvictionThresholdMet", what);
        if first.signal.condition() == Condition::Disk {
            node::free_images(&core).await;
            let observed = observe::all(&core).await;
            if !first.is_met(&observed, true) {
                return;
            }
        }
        self.evict_one(first, &observed).await;
    }

    fn is_leaving(&self, now: Instant) -> bool {
        let Some((uid, until)) = &self.leaving else { return false };
        let pods = self.core.pods.lock().unwrap_or_else(PoisonError::into_inner);
        now < *until && pods.get(uid).is_some_and(|pod| !pod::is_terminal_phase(pod::phase(pod)))
    }

    async fn evict_one(&mut self, threshold: &Threshold, observed: &thresholds::Observations) {
        let core = self.core.clone();
        let condition = threshold.signal.condition();
        let mut candidates = Vec::new();
        for pod in core.alive() {
            let used = usage(&core, &pod, condition).await;
            candidates.push(Candidate { pod, used });
        }
        let Some(chosen) = rank::first(candidates, condition) else {
            tracing::warn!(condition = condition.name(), "the node runs short, and no pod may be evicted");
            return;
        };
        let uid = chosen.pod.uid().to_owned();
        let message = thresholds::message(threshold, observed, &chosen.pod, chosen.used);
        let events = PodEvents { recorder: &core.recorder, pod: &chosen.pod };
        events.warning("", "Evicted", &message);
        let grace = match threshold.is_hard() {
            true => IMMEDIATE_GRACE_SECONDS,
            false => pod::grace_period_seconds(&chosen.pod).min(core.config.eviction_max_pod_grace_seconds),
        };
        let grace_seconds = Some(grace);
        let verdict = Verdict { reason: "Evicted".into(), message, disrupted: true, grace_seconds };
        core.pressure.condemn(&uid, verdict);
        core.wakers.wake(&uid);
        self.leaving = Some((uid, Instant::now() + CLEANUP));
    }
}

/// What a pod uses of that of which there is too little.
async fn usage(core: &Core, pod: &Pod, condition: Condition) -> u64 {
    let of_cgroup = || linux::cgroups::Cgroup::new(&cgroup::path(&core.config.cgroup_root, pod)).usage();
    match condition {
        Condition::Memory => of_cgroup().memory_working_set_bytes,
        Condition::Processes => of_cgroup().pids,
        Condition::Disk => {
            let used = evict::measure(pod, &core.paths, core.runtime.as_ref(), true).await;
            used.map(|used| used.volumes.values().chain(used.containers.values()).sum()).unwrap_or(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_that_would_make_things_worse_are_refused() {
        let pod = |spec: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
        };
        let best_effort = pod(json!({"containers": [{"name": "c"}]}));
        let burstable =
            pod(json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "1Mi"}}}]}));
        let tolerant = pod(json!({
            "containers": [{"name": "c"}],
            "tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}],
        }));
        let critical = pod(json!({"containers": [{"name": "c"}], "priority": 2_000_000_000}));
        let pressure = Pressure::default();
        let refused = |pressure: &Pressure| {
            [&best_effort, &burstable, &tolerant, &critical].map(|pod| pressure.refusal(pod).is_some())
        };
        assert_eq!(refused(&pressure), [false; 4]);
        pressure.set(BTreeSet::from([Condition::Memory]));
        assert_eq!(refused(&pressure), [true, false, false, false]);
        pressure.set(BTreeSet::from([Condition::Memory, Condition::Disk]));
        assert_eq!(refused(&pressure), [true, true, true, false]);
        let message = pressure.refusal(&burstable).map(|verdict| verdict.message);
        assert_eq!(message.as_deref(), Some("The node had condition: [MemoryPressure DiskPressure]. "));
    }
}
