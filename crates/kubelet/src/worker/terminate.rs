//! Ending a pod: hooks, signals, the grace period, and then every trace of it.

use std::time::Duration;

use api::Object;
use tokio::time::Instant;

use super::Worker;
use super::start::with_causes;
use crate::actions::KillReason;
use crate::cgroup;
use crate::events::PodEvents;
use crate::lifecycle;
use crate::pod::{self, ContainerKind, find_container};
use crate::pod_state::{self, ContainerRecord, PodState, annotations};
use crate::runtime::{self, describe};
use crate::status;

/// Containers always get this long, so that none is killed for want of a moment.
const MIN_GRACE_SECONDS: i64 = 2;

impl Worker {
    /// Stops everything and reports the end. Sets `finished` when nothing is left running.
    // Upstream: pkg/kubelet/kubelet.go SyncTerminatingPod, SyncTerminatedPod
    pub(super) async fn terminate(&mut self) {
        let runtime = self.core.runtime.clone();
        let Ok(state) = pod_state::read(runtime.as_ref(), self.pod.uid()).await else { return self.failed() };
        self.probes.sync(&self.pod, &state, true);
        self.report(&state, false);
        self.publish(false);
        if let Err(error) = self.kill_all(&state).await {
            self.event(true, "FailedKillPod", &format!("error killing pod: {}", describe(&error)));
            return self.failed();
        }
        for sandbox in &state.sandboxes {
            if let Err(error) = runtime.stop_sandbox(&sandbox.id).await
                && !runtime::is_not_found(&error)
            {
                self.event(true, "FailedKillPod", &format!("error killing pod: {}", describe(&error)));
                return self.failed();
            }
        }
        let Ok(state) = pod_state::read(runtime.as_ref(), self.pod.uid()).await else { return self.failed() };
        if state.running().next().is_some() {
            return self.failed();
        }
        self.probes.sync(&self.pod, &state, true);
        let desired_gone = self.pod.metadata.deletion_timestamp.is_some() || self.desired.borrow().removed;
        self.report(&state, true);
        if desired_gone || pod::is_terminal_phase(self.status.phase.as_deref().unwrap_or_default()) {
            status::finish(&mut self.status);
        }
        if let Err(error) = self.core.volumes.teardown(self.pod.uid()).await {
            tracing::warn!(pod = self.pod.name(), %error, "cannot take a pod's volumes away yet");
            return self.failed();
        }
        if let Err(error) = cgroup::remove(&self.core.config.cgroup_root, self.pod.uid()) {
            tracing::warn!(
                pod = self.pod.name(),
                error = with_causes(&error),
                "cannot remove a pod's cgroup yet"
            );
            return self.failed();
        }
        if let Err(why) = self.core.dra.release(self.pod.uid()).await {
            tracing::warn!(pod = self.pod.name(), why, "a pod's devices cannot be taken back yet");
            return self.failed();
        }
        self.core.devices.release(self.pod.uid());
        if self.status.reason.as_deref() == Some("Evicted") {
            self.free_disk(&state).await;
        }
        self.waiting.clear();
        self.finished = true;
        self.publish(false);
    }

    /// Removes the containers of an evicted pod and what they logged: the node may need the room sooner than anybody
    /// deletes the pod.
    // Upstream: pkg/kubelet/kubelet.go cleanUpContainersInPod
    async fn free_disk(&self, state: &PodState) {
        for record in &state.containers {
            self.quietly(self.core.runtime.remove_container(&record.id).await);
        }
        let _ = std::fs::remove_dir_all(self.core.paths.pod_logs(&self.pod));
    }

    /// Kills all containers at once, sidecars after the rest, in the grace period of the moment: a deletion that
    /// is hurried shortens it.
    async fn kill_all(&mut self, state: &PodState) -> runtime::Result<()> {
        let mut desired = self.desired.clone();
        let mut pod = desired.borrow_and_update().pod.clone();
        if let Some(most) = self.verdict.as_ref().and_then(|v| v.grace_seconds) {
            let mut hurried = (*pod).clone();
            let grace = pod::grace_period_seconds(&hurried).min(most);
            hurried.metadata.deletion_grace_period_seconds = Some(grace);
            pod = std::sync::Arc::new(hurried);
        }
        loop {
            let grace = pod::grace_period_seconds(&pod);
            self.pod = std::sync::Arc::new(self.resize.allocation.apply(&pod));
            let killing = kill_in_order(self, state);
            tokio::pin!(killing);
            let hurried = loop {
                tokio::select! {
                    result = &mut killing => return result,
                    changed = desired.changed() => {
                        if changed.is_err() {
                            break None;
                        }
                        let next = desired.borrow_and_update().clone();
                        let shorter = pod::grace_period_seconds(&next.pod) < grace;
                        if next.removed || shorter {
                            break Some(next);
                        }
                    }
                }
            };
            match hurried {
                Some(next) => {
                    let mut hurried = (*next.pod).clone();
                    if next.removed {
                        hurried.metadata.deletion_grace_period_seconds = Some(0);
                    }
                    pod = std::sync::Arc::new(hurried);
                }
                None => return killing.await,
            }
        }
    }

    /// Kills one container: event, preStop hook, signal, grace period, end.
    // Upstream: pkg/kubelet/kuberuntime/kuberuntime_container.go killContainer
    pub(super) async fn kill(
        &self,
        record: &ContainerRecord,
        message: &str,
        reason: KillReason,
        before: Option<Instant>,
    ) -> runtime::Result<()> {
        let spec = find_container(&self.pod, &record.name).map(|(c, _)| c).unwrap_or_default();
        let of_probe = match reason {
            KillReason::Liveness => {
                spec.liveness_probe.as_ref().and_then(|p| p.termination_grace_period_seconds)
            }
            KillReason::Startup => {
                spec.startup_probe.as_ref().and_then(|p| p.termination_grace_period_seconds)
            }
            KillReason::Other | KillReason::Reset => None,
        };
        let deleted = self.pod.metadata.deletion_grace_period_seconds;
        let mut grace = deleted.or(of_probe).unwrap_or_else(|| pod::grace_period_seconds(&self.pod));
        if reason == KillReason::Reset {
            grace = 0;
        }
        let events = PodEvents { recorder: &self.core.recorder, pod: &self.pod };
        let default = format!("Stopping container {}", record.name);
        events.normal(&record.name, "Killing", if message.is_empty() { &default } else { message });
        let begun = before.unwrap_or_else(Instant::now);
        if let Some(hook) = spec.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()).filter(|_| grace > 0) {
            let runtime = self.core.runtime.as_ref();
            let name = pod::display(&self.pod);
            let pod_ip = self.status.pod_ip.clone().unwrap_or_default();
            let hook = lifecycle::run(runtime, hook, &spec, &record.id, &name, &pod_ip);
            let limit = Duration::from_secs(grace.unsigned_abs());
            match tokio::time::timeout(limit, hook).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => {
                    tracing::debug!(container = record.name, why, "a preStop hook failed");
                    events.warning(&record.name, "FailedPreStopHook", "PreStopHook failed");
                }
                Err(_) => {
                    tracing::debug!(container = record.name, "a preStop hook took all the grace period")
                }
            }
        }
        let used = i64::try_from(begun.elapsed().as_secs()).unwrap_or(grace);
        if reason != KillReason::Reset {
            grace = (grace - used).max(MIN_GRACE_SECONDS);
        }
        match self.core.runtime.stop_container(&record.id, grace).await {
            Err(error) if !runtime::is_not_found(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes away what is left of a pod whose object is gone. True when all is.
    pub(super) async fn forget(&mut self) -> bool {
        let uid = self.pod.uid().to_owned();
        if let Err(error) = remove(&self.core, &uid).await {
            tracing::warn!(pod = self.pod.name(), error, "cannot take a pod away yet");
            self.failed();
            return false;
        }
        let _ = std::fs::remove_dir_all(self.core.paths.pod_logs(&self.pod));
        self.core.images.forget(&uid);
        self.restarts().forget(&uid);
        self.core.publisher.forget(&uid);
        self.core.wakers.remove(&uid);
        true
    }
}

/// Regular containers and the like first; then sidecars, the last to start being the first to go.
async fn kill_in_order(worker: &Worker, state: &PodState) -> runtime::Result<()> {
    let begun = Instant::now();
    let is_sidecar = |r: &&ContainerRecord| {
        find_container(&worker.pod, &r.name).is_some_and(|(_, kind)| kind == ContainerKind::Sidecar)
    };
    let (sidecars, others): (Vec<_>, Vec<_>) = state.running().partition(is_sidecar);
    let kill = |record| worker.kill(record, "", KillReason::Other, Some(begun));
    futures::future::try_join_all(others.into_iter().map(kill)).await?;
    let place =
        |r: &&ContainerRecord| pod::init_containers(&worker.pod).iter().position(|c| c.name == r.name);
    let mut sidecars = sidecars;
    sidecars.sort_by_key(|r| std::cmp::Reverse(place(r)));
    for record in sidecars {
        kill(record).await?;
    }
    Ok(())
}

/// Removes containers, sandboxes, mounts, directories and cgroups of a pod.
async fn remove(core: &crate::core::Core, uid: &str) -> Result<(), String> {
    let runtime = core.runtime.as_ref();
    let state = pod_state::read(runtime, uid).await.map_err(|e| describe(&e))?;
    let fine = |result: runtime::Result<()>| match result {
        Err(error) if !runtime::is_not_found(&error) => Err(describe(&error)),
        _ => Ok(()),
    };
    for record in &state.containers {
        fine(runtime.remove_container(&record.id).await)?;
    }
    for sandbox in &state.sandboxes {
        fine(runtime.stop_sandbox(&sandbox.id).await)?;
        fine(runtime.remove_sandbox(&sandbox.id).await)?;
    }
    core.volumes.teardown(uid).await.map_err(|e| e.to_string())?;
    linux::mounts::remove_tree(&core.paths.pod(uid)).map_err(|e| with_causes(&e))?;
    core.dra.release(uid).await?;
    core.user_namespaces.release(uid);
    core.devices.release(uid);
    cgroup::remove(&core.config.cgroup_root, uid).map_err(|e| with_causes(&e))
}

/// Ends what runs under the UID of a pod that nobody wants any more, and takes it away.
pub async fn remove_orphan(core: &crate::core::Core, uid: &str) -> Result<(), String> {
    let runtime = core.runtime.as_ref();
    let statuses = runtime.containers(Some(uid)).await.map_err(|e| describe(&e))?;
    let grace = |annotation: &str| {
        let of = |c: &cri::v1::Container| c.annotations.get(annotation).and_then(|v| v.parse::<i64>().ok());
        statuses.iter().find_map(of)
    };
    let grace =
        grace(annotations::DELETION_GRACE_PERIOD).or_else(|| grace(annotations::TERMINATION_GRACE_PERIOD));
    let stops = statuses
        .iter()
        .filter(|c| c.state() == cri::v1::ContainerState::ContainerRunning)
        .map(|c| runtime.stop_container(&c.id, grace.unwrap_or(30).max(MIN_GRACE_SECONDS)));
    for stopped in futures::future::join_all(stops).await {
        if let Err(error) = stopped
            && !runtime::is_not_found(&error)
        {
            return Err(describe(&error));
        }
    }
    remove(core, uid).await
}
