//! Granting a resize and giving it to what runs.

use std::sync::{Arc, PoisonError};

use api::Object;
use api::core::v1::{Pod, PodCondition};
use cri::v1 as pb;

use super::Worker;
use super::start::with_causes;
use crate::container::config::pod_resources;
use crate::pod_state::PodState;
use crate::resize::{self, Allocation, Pending};
use crate::runtime::describe;
use crate::{cgroup, pod};

/// Where a worker's resize stands.
pub struct Resize {
    pub allocation: Allocation,
    pending: Option<Pending>,
    /// Granted, and not yet done.
    in_progress: Option<InProgress>,
    /// What the pod's cgroup was set to; `None` when a former kubelet did it.
    pub of_cgroup: Option<pb::LinuxContainerResources>,
}

struct InProgress {
    generation: Option<i64>,
    error: String,
}

impl Resize {
    pub fn new(pod: &Pod) -> Self {
        Resize { allocation: Allocation::remembered(pod), pending: None, in_progress: None, of_cgroup: None }
    }
}

impl Worker {
    /// Takes over what is declared of the pod, but for resources only what the node grants.
    pub(super) fn take_over(&mut self, pod: &Arc<Pod>) {
        if self.resize.allocation.covers(pod) || pod.metadata.deletion_timestamp.is_some() {
            self.resize.pending = None;
        } else {
            self.ask_for_resources(pod);
        }
        self.pod = Arc::new(self.resize.allocation.apply(pod));
        self.core.defer_resize(pod.uid(), self.resize.pending.is_some());
    }

    // Upstream: pkg/kubelet/allocation/allocation_manager.go handlePodResourcesResize
    fn ask_for_resources(&mut self, pod: &Arc<Pod>) {
        let node = self.core.node.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut pods = self.core.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let others = resize::neighbours(pods.values().map(AsRef::as_ref), pod.uid());
        let obstacle = if pod::is_static(pod) {
            let message = "In-place resize of static-pods is not supported".to_owned();
            Some(Pending { reason: "Infeasible", message })
        } else {
            node.and_then(|node| resize::obstacle(pod, &others, &node))
        };
        match obstacle {
            None => self.resize.allocation = Allocation::of_spec(pod),
            Some(_) => {
                // Others are to reckon with what this pod has, not with what it would like.
                if let Some(seen) = pods.get_mut(pod.uid()) {
                    *seen = Arc::new(self.resize.allocation.apply(pod));
                }
            }
        }
        drop(pods);
        match obstacle {
            None => {
                self.resize.pending = None;
                self.resize.in_progress =
                    Some(InProgress { generation: pod.metadata.generation, error: String::new() });
                self.event(false, "ResizeStarted", &resize::event_message("Pod resize started", pod, ""));
            }
            Some(pending) => {
                let known = self.resize.pending.as_ref().is_some_and(|p| p.reason == pending.reason);
                if !known || self.pod.metadata.generation != pod.metadata.generation {
                    let what = format!("Pod resize {}", pending.reason);
                    let message = resize::event_message(&what, pod, &pending.message);
                    self.event(true, &format!("Resize{}", pending.reason), &message);
                }
                self.resize.pending = Some(pending);
            }
        }
    }

    /// The conditions that tell of a resize while there is one.
    pub(super) fn resize_conditions(&self) -> Vec<PodCondition> {
        let pending = self.resize.pending.as_ref().map(|p| {
            resize::condition("PodResizePending", p.reason, &p.message, self.pod.metadata.generation)
        });
        let in_progress = self.resize.in_progress.as_ref().map(|p| {
            let reason = if p.error.is_empty() { "" } else { "Error" };
            resize::condition("PodResizeInProgress", reason, &p.error, p.generation)
        });
        pending.into_iter().chain(in_progress).collect()
    }

    /// Makes room in the pod's cgroup and changes the limits of what is not restarted for it. True when anything
    /// was done.
    pub(super) async fn resize_running(&mut self, state: &PodState) -> Result<bool, ()> {
        let pod = self.pod.clone();
        let wanted = pod_resources(&pod);
        if resize::is_done(&pod, state) && self.resize.of_cgroup.as_ref().is_none_or(|known| *known == wanted)
        {
            return Ok(false);
        }
        // The pod's limits are raised before those of its containers, and lowered after them.
        let roomy = self.resize.of_cgroup.take().map_or_else(Default::default, |now| larger(&now, &wanted));
        self.set_pod_limits(&roomy)?;
        for (container, record) in resize::updates(&pod, state) {
            let update = resize::update_of(&pod, container);
            if let Err(error) = self.core.runtime.update_resources(&record.id, update).await {
                self.resize_failed(&format!(
                    "failed to resize container {}: {}",
                    container.name,
                    describe(&error)
                ));
                return Err(());
            }
        }
        Ok(true)
    }

    /// The containers have what they should: now the pod as a whole is held to it.
    pub(super) fn settle_resize(&mut self) -> Result<(), ()> {
        let wanted = pod_resources(&self.pod);
        if self.resize.of_cgroup.as_ref() == Some(&wanted) {
            return Ok(());
        }
        self.set_pod_limits(&wanted)
    }

    fn set_pod_limits(&mut self, resources: &pb::LinuxContainerResources) -> Result<(), ()> {
        match cgroup::resize(&self.core.config.cgroup_root, &self.pod, resources) {
            Ok(()) => {
                self.resize.of_cgroup = Some(resources.clone());
                Ok(())
            }
            Err(error) => {
                self.resize_failed(&format!("failed to resize the pod's cgroup: {}", with_causes(&error)));
                Err(())
            }
        }
    }

    fn resize_failed(&mut self, message: &str) {
        tracing::warn!(pod = self.pod.name(), error = message, "cannot resize a pod yet");
        let Some(in_progress) = self.resize.in_progress.as_mut() else { return };
        if in_progress.error != message {
            in_progress.error = message.to_owned();
            let message = resize::event_message("Pod resize error", &self.pod, message);
            self.event(true, "ResizeError", &message);
        }
    }

    /// Notes that a resize is done, when it is.
    pub(super) fn note_resize(&mut self, state: &PodState) {
        let settled = self.resize.of_cgroup.as_ref().is_none_or(|known| *known == pod_resources(&self.pod));
        if self.resize.in_progress.is_some() && settled && resize::is_done(&self.pod, state) {
            self.resize.in_progress = None;
            let message = resize::event_message("Pod resize completed", &self.pod, "");
            self.event(false, "ResizeCompleted", &message);
        }
    }
}

/// Limits that hold neither to less than the other; zero is no limit.
fn larger(a: &pb::LinuxContainerResources, b: &pb::LinuxContainerResources) -> pb::LinuxContainerResources {
    let limit = |a: i64, b: i64| if a <= 0 || b <= 0 { 0 } else { a.max(b) };
    pb::LinuxContainerResources {
        cpu_shares: a.cpu_shares.max(b.cpu_shares),
        cpu_quota: limit(a.cpu_quota, b.cpu_quota),
        cpu_period: a.cpu_period.max(b.cpu_period),
        memory_limit_in_bytes: limit(a.memory_limit_in_bytes, b.memory_limit_in_bytes),
        ..Default::default()
    }
}
