//! A pod's worker: one task that makes one pod be as declared, from its first sight to its end.

mod mounts;
mod resize;
mod start;
mod terminate;

pub use mounts::recursive_read_only;
pub use start::with_causes;
pub use terminate::remove_orphan;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use api::Object;
use api::core::v1::{Pod, PodStatus, ResourceHealth, ResourceStatus};
use jiff::SignedDuration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::actions::{KillReason, Plan, compute_pod_actions};
use crate::core::Core;
use crate::events::PodEvents;
use crate::evict;
use crate::pod;
use crate::pod_state::{self, PodState, State};
use crate::probe::Probes;
use crate::runtime::describe;
use crate::status::{self, Facts, Verdict, Waiting};

/// What is wanted of a pod.
#[derive(Clone)]
pub struct Desired {
    pub pod: Arc<Pod>,
    /// Its object is gone: end it and forget it.
    pub removed: bool,
    /// This node does not take it.
    pub rejected: Option<Verdict>,
}

/// How often the use of local storage is measured, where it is bounded.
const MEASURE: Duration = Duration::from_secs(10);

/// How long to wait before what failed is tried again, at most.
const RETRY: Duration = Duration::from_secs(10);

pub struct Worker {
    core: Arc<Core>,
    desired: watch::Receiver<Desired>,
    waker: Arc<Notify>,
    probes: Probes,
    pod: Arc<Pod>,
    /// The status that was reported last.
    status: PodStatus,
    waiting: HashMap<String, Waiting>,
    verdict: Option<Verdict>,
    /// When to look again although nothing happens.
    next: Option<Instant>,
    failures: u32,
    /// Nothing of the pod runs any more.
    finished: bool,
    /// It has the devices that it asks for.
    equipped: bool,
    resize: resize::Resize,
    /// When the pod's use of local storage was measured last.
    measured: Option<Instant>,
    /// Since when volumes are waited for.
    volumes_awaited: Option<Instant>,
}

impl Worker {
    pub fn new(core: Arc<Core>, desired: watch::Receiver<Desired>) -> Self {
        let pod = desired.borrow().pod.clone();
        let waker = core.wakers.add(pod.uid());
        let mut probes = Probes::new(core.probe_tools(), waker.clone());
        probes.adopt(&pod);
        let resize = resize::Resize::new(&pod);
        Worker {
            status: pod.status.clone().unwrap_or_default(),
            core,
            desired,
            waker,
            probes,
            pod,
            waiting: HashMap::new(),
            verdict: None,
            next: None,
            failures: 0,
            finished: false,
            equipped: false,
            resize,
            measured: None,
            volumes_awaited: None,
        }
    }

    /// Works until the pod is gone or the kubelet stops. Returns the pod's UID.
    pub async fn run(mut self, shutdown: CancellationToken) -> String {
        let uid = self.pod.uid().to_owned();
        loop {
            let desired = self.desired.borrow_and_update().clone();
            self.take_over(&desired.pod);
            self.next = None;
            tokio::select! {
                gone = self.step(&desired) => if gone { return uid },
                // What is half done is found half done by the next kubelet, which goes on from there.
                () = shutdown.cancelled() => return uid,
            }
            let next = self.next;
            let deadline = async move {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return uid,
                changed = self.desired.changed() => if changed.is_err() { return uid },
                () = self.waker.notified() => {}
                () = deadline => {}
            }
        }
    }

    /// One look at the pod. True when it is gone for good.
    async fn step(&mut self, desired: &Desired) -> bool {
        if let Some(verdict) = &desired.rejected
            && !self.finished
        {
            self.status = status::rejected(&self.pod, verdict, self.core.config.clock.now());
            self.publish(false);
            self.finished = true;
        }
        let deleted = self.pod.metadata.deletion_timestamp.is_some();
        if !self.finished && !self.equipped && !deleted && !desired.removed {
            self.equip().await;
        }
        if !self.finished {
            let terminal = pod::is_terminal_phase(pod::phase(&self.pod));
            if desired.removed || deleted || terminal {
                self.terminate().await;
            } else {
                self.sync().await;
            }
        }
        if self.finished {
            self.core.shutdown.left(self.pod.uid());
        }
        if self.finished && desired.removed {
            return self.forget().await;
        }
        if self.finished && deleted {
            self.publish(true);
        }
        false
    }

    /// Has the pod's devices chosen, which a new pod must have and one that runs has already.
    // Upstream: pkg/kubelet/cm/container_manager_linux.go AllocateResources
    async fn equip(&mut self) {
        self.equipped = true;
        if pod::is_terminal_phase(pod::phase(&self.pod)) || pod::phase(&self.pod) == "Running" {
            return;
        }
        let Err(why) = self.core.devices.allocate(&self.pod).await else { return };
        let verdict = Verdict {
            reason: "UnexpectedAdmissionError".into(),
            message: format!("Allocate failed due to {why}, which is unexpected"),
            ..Default::default()
        };
        self.core.devices.release(self.pod.uid());
        self.event(true, &verdict.reason, &verdict.message);
        self.status = status::rejected(&self.pod, &verdict, self.core.config.clock.now());
        self.publish(false);
        self.finished = true;
    }

    /// Looks again after `delay`, or sooner if something else asks for it.
    fn look_again(&mut self, delay: Duration) {
        let at = Instant::now() + delay;
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// Looks again after ever longer waits.
    fn failed(&mut self) {
        let delay = Duration::from_millis(500) * 2u32.saturating_pow(self.failures.min(8));
        self.failures += 1;
        self.look_again(delay.min(RETRY));
    }

    fn publish(&self, delete: bool) {
        self.core.publisher.publish(&self.pod, &self.status, delete);
    }

    fn event(&self, warning: bool, reason: &str, message: &str) {
        let events = PodEvents { recorder: &self.core.recorder, pod: &self.pod };
        if warning { events.warning("", reason, message) } else { events.normal("", reason, message) }
    }

    /// Makes the status from what is, and reports it.
    fn report(&mut self, state: &PodState, terminal: bool) {
        let readiness = self.probes.readiness(&self.pod, state);
        let resize = self.resize_conditions();
        let devices = self.device_health();
        let facts = Facts {
            pod: &self.pod,
            old: &self.status,
            state,
            waiting: &self.waiting,
            readiness: &readiness,
            devices: &devices,
            resize: &resize,
            terminal,
            verdict: self.verdict.as_ref(),
            runtime_name: &self.core.runtime_name,
            host_ips: &self.core.host_ips(),
            recursive_read_only: self.core.recursive_read_only(),
            now: self.core.config.clock.now(),
        };
        self.status = status::generate(&facts);
    }

    /// How the devices of each container are.
    fn device_health(&self) -> HashMap<String, Vec<ResourceStatus>> {
        let all = pod::init_containers(&self.pod).iter().chain(pod::containers(&self.pod));
        let of = |name: &str| {
            let resources = self.core.devices.health(self.pod.uid(), name).into_iter();
            let resources = resources.map(|(name, devices)| ResourceStatus {
                name,
                resources: Some(
                    devices
                        .into_iter()
                        .map(|(resource_id, health)| ResourceHealth {
                            resource_id,
                            health: Some(health.to_owned()),
                            ..Default::default()
                        })
                        .collect(),
                ),
            });
            resources.collect::<Vec<_>>()
        };
        all.map(|c| (c.name.clone(), of(&c.name))).filter(|(_, all)| !all.is_empty()).collect()
    }

    /// Reads what is, decides, reports and acts.
    // Upstream: pkg/kubelet/kubelet.go SyncPod
    async fn sync(&mut self) {
        let state = match pod_state::read(self.core.runtime.as_ref(), self.pod.uid()).await {
            Ok(state) => state,
            Err(error) => {
                tracing::warn!(pod = self.pod.name(), error = %describe(&error), "cannot read a pod's containers");
                return self.failed();
            }
        };
        self.probes.sync(&self.pod, &state, false);
        self.check_deadline();
        if let Some(verdict) = self.core.pressure.take_verdict(self.pod.uid()) {
            self.verdict.get_or_insert(verdict);
        }
        self.check_storage().await;
        self.note_resize(&state);
        let plan = compute_pod_actions(&self.pod, &state, &self.probes.results());
        self.report(&state, false);
        let over = plan.kill_pod && !plan.create_sandbox;
        if self.verdict.is_some()
            || over
            || pod::is_terminal_phase(self.status.phase.as_deref().unwrap_or_default())
        {
            return self.terminate().await;
        }
        self.publish(false);
        match self.carry_out(&plan, &state).await {
            Ok(acted) => {
                self.failures = 0;
                if acted {
                    self.look_after_acting().await;
                }
            }
            Err(()) => {
                self.failed();
                self.look_after_acting().await;
            }
        }
    }

    /// Reports what acting has changed, without waiting for the runtime's events.
    async fn look_after_acting(&mut self) {
        let Ok(state) = pod_state::read(self.core.runtime.as_ref(), self.pod.uid()).await else { return };
        self.probes.sync(&self.pod, &state, false);
        self.note_resize(&state);
        self.report(&state, false);
        self.publish(false);
        self.prune(&state).await;
        // A container may have come and gone meanwhile.
        let again = compute_pod_actions(&self.pod, &state, &self.probes.results());
        let to_start = again.start.len() + again.start_init.len() + again.start_ephemeral.len();
        if to_start > 0 && self.next.is_none() {
            self.waker.notify_one();
        }
    }

    // Upstream: pkg/kubelet/active_deadline.go
    fn check_deadline(&mut self) {
        let Some(seconds) = self.pod.spec.as_ref().and_then(|s| s.active_deadline_seconds) else { return };
        let Some(start) = self.status.start_time.as_ref().map(|t| t.0) else { return };
        let now = self.core.config.clock.now();
        let left = SignedDuration::from_secs(seconds) - now.duration_since(start);
        if left.is_positive() {
            self.look_again(Duration::try_from(left).unwrap_or(RETRY));
            return;
        }
        let message = "Pod was active on the node longer than the specified deadline";
        self.event(false, "DeadlineExceeded", message);
        self.verdict = Some(Verdict {
            reason: "DeadlineExceeded".into(),
            message: message.into(),
            ..Default::default()
        });
    }

    /// Looks from time to time whether the pod uses more of the disk than it may: the kernel tells nobody.
    // Upstream: pkg/kubelet/eviction/eviction_manager.go synchronize
    async fn check_storage(&mut self) {
        if !evict::is_limited(&self.pod) || self.verdict.is_some() {
            return;
        }
        let due = self.measured.map(|at| at + MEASURE);
        if let Some(left) =
            due.and_then(|due| due.checked_duration_since(Instant::now())).filter(|d| !d.is_zero())
        {
            return self.look_again(left);
        }
        self.measured = Some(Instant::now());
        self.look_again(MEASURE);
        let Ok(used) = evict::measure(&self.pod, &self.core.paths, self.core.runtime.as_ref(), false).await
        else {
            return;
        };
        if let Some(verdict) = evict::verdict(&self.pod, &used) {
            self.event(true, &verdict.reason, &verdict.message);
            self.verdict = Some(verdict);
        }
    }

    /// Removes all but the newest dead container of each name, and sandboxes that hold nothing.
    async fn prune(&self, state: &PodState) {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for record in &state.containers {
            let count = seen.entry(&record.name).or_default();
            *count += 1;
            // The newest is the present one, the second its predecessor, whose end is still told.
            if *count > 2 && record.state != State::Running {
                self.quietly(self.core.runtime.remove_container(&record.id).await);
                let name = crate::container::config::log_path(&record.name, record.restart_count);
                let _ = std::fs::remove_file(self.core.paths.pod_logs(&self.pod).join(name));
            }
        }
        for sandbox in state.sandboxes.iter().skip(1).filter(|s| !s.ready) {
            if !state.containers.iter().any(|c| c.sandbox_id == sandbox.id) {
                self.quietly(self.core.runtime.remove_sandbox(&sandbox.id).await);
            }
        }
    }

    fn quietly(&self, result: crate::runtime::Result<()>) {
        if let Err(error) = result
            && !crate::runtime::is_not_found(&error)
        {
            tracing::warn!(pod = self.pod.name(), error = %describe(&error), "cannot clean up after a container");
        }
    }

    fn restarts(&self) -> std::sync::MutexGuard<'_, crate::backoff::Backoff> {
        self.core.restarts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes containers that are to begin anew. Their logs stay.
    async fn reset(&self, plan: &Plan, state: &PodState) -> Result<bool, ()> {
        for reset in &plan.reset {
            if let Some(record) = state.containers.iter().find(|c| c.id == reset.id && reset.kill) {
                self.kill(record, "killing", KillReason::Reset, None).await.map_err(drop)?;
            }
            match self.core.runtime.remove_container(&reset.id).await {
                Err(error) if !crate::runtime::is_not_found(&error) => {
                    tracing::warn!(pod = self.pod.name(), error = %describe(&error), "cannot remove a container");
                    return Err(());
                }
                _ => {}
            }
        }
        Ok(true)
    }

    /// Carries the plan out. `Ok(true)` when anything was done, `Err` when it has to be tried again.
    async fn carry_out(&mut self, plan: &Plan, state: &PodState) -> Result<bool, ()> {
        if !plan.reset.is_empty() {
            return self.reset(plan, state).await;
        }
        let refreshed = self.prepare(state).await?;
        if plan.kill_pod {
            self.leave_sandbox(plan, state).await?;
        }
        let resized = !plan.kill_pod && self.resize_running(state).await?;
        for kill in &plan.kill {
            if let Some(record) = state.containers.iter().find(|c| c.id == kill.id) {
                self.kill(record, &kill.message, kill.reason, None).await.map_err(drop)?;
            }
        }
        let starts =
            !(plan.start.is_empty() && plan.start_init.is_empty() && plan.start_ephemeral.is_empty());
        if !plan.create_sandbox && !starts {
            if resized {
                self.settle_resize()?;
            }
            return Ok(resized || !plan.kill.is_empty());
        }
        self.start_all(plan, state, refreshed).await?;
        self.settle_resize().map(|()| true)
    }
}

#[cfg(test)]
pub mod tests;
