//! A pod's status: [`generate`] makes it from facts, purely; [`publisher`] writes it to the API.

pub mod conditions;
pub mod containers;
pub mod patch;
pub mod phase;
pub mod publisher;

use std::collections::HashMap;

use api::core::v1::{
    ContainerState, ContainerStateTerminated, HostIP, Pod, PodCondition, PodIP, PodStatus, ResourceStatus,
};
use api::meta::Time;
use jiff::Timestamp;

use crate::pod::{self, qos};
use crate::pod_state::PodState;
use crate::restart_all;

/// Why a container waits: the reason and message of its waiting state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

/// What probes say about readiness, by container id. A container that is not listed has no such probe.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    pub started: HashMap<String, bool>,
    pub ready: HashMap<String, bool>,
}

/// A verdict on the whole pod that does not come from its containers: rejection, eviction, a deadline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub reason: String,
    pub message: String,
    /// The pod is the victim of somebody else's need, and its owner should not count this as its failure.
    pub disrupted: bool,
    /// The longest time that its containers get to end, when that is less than their own.
    pub grace_seconds: Option<i64>,
}

/// All that a status is made of.
pub struct Facts<'a> {
    pub pod: &'a Pod,
    /// What was reported last.
    pub old: &'a PodStatus,
    pub state: &'a PodState,
    /// By container name: why the next start has not happened.
    pub waiting: &'a HashMap<String, Waiting>,
    pub readiness: &'a Readiness,
    /// By container name: the health of its devices.
    pub devices: &'a HashMap<String, Vec<ResourceStatus>>,
    /// The conditions that tell of a resize.
    pub resize: &'a [PodCondition],
    /// No container will be started again.
    pub terminal: bool,
    pub verdict: Option<&'a Verdict>,
    pub runtime_name: &'a str,
    pub host_ips: &'a [String],
    /// Whether the runtime can make mounts read-only all the way down.
    pub recursive_read_only: bool,
    pub now: Timestamp,
}

impl Facts<'_> {
    /// Whether the containers are being restarted all together.
    fn restarts_all(&self) -> bool {
        restart_all::is_going_on(self.pod, self.state, self.old) && !self.terminal
    }
}

/// The status that the facts amount to.
// Upstream: pkg/kubelet/kubelet_pods.go generateAPIPodStatus
pub fn generate(facts: &Facts) -> PodStatus {
    let Facts { pod, old, state, .. } = *facts;
    let mut status = PodStatus {
        init_container_statuses: containers::init(facts),
        container_statuses: Some(containers::regular(facts)),
        ephemeral_container_statuses: containers::ephemeral(facts),
        qos_class: old.qos_class.clone().or_else(|| Some(qos::class(pod).name().to_owned())),
        start_time: old.start_time.clone().or(Some(whole_seconds(facts.now))),
        observed_generation: pod.metadata.generation,
        nominated_node_name: old.nominated_node_name.clone(),
        resource_claim_statuses: old.resource_claim_statuses.clone(),
        resize: old.resize.clone(),
        ..Default::default()
    };
    let mut phase = phase::of(pod, &status, facts.terminal, state);
    let reached = [old.phase.as_deref().unwrap_or_default(), pod::phase(pod)];
    if let Some(terminal) = reached.into_iter().find(|p| pod::is_terminal_phase(p)) {
        phase = terminal.to_owned();
    }
    if old.phase.as_deref() == Some(&phase) {
        // The reason belongs to the phase, whoever gave it.
        status.reason = old.reason.clone();
        status.message = old.message.clone();
    }
    if let Some(verdict) = facts.verdict {
        phase = "Failed".into();
        status.reason = Some(verdict.reason.clone());
        status.message = Some(verdict.message.clone());
    }
    status.phase = Some(phase);
    addresses(facts, &mut status);
    status.conditions = Some(conditions::all(facts, &status));
    status
}

/// Times in the API have no fractions.
fn whole_seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

fn addresses(facts: &Facts, status: &mut PodStatus) {
    let host_ips: Vec<HostIP> = facts.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect();
    status.host_ip = facts.host_ips.first().cloned();
    status.host_ips = (!host_ips.is_empty()).then_some(host_ips);
    let mut ips = facts.state.ips().to_vec();
    if pod::host_network(facts.pod) {
        ips = facts.host_ips.to_vec();
    }
    if ips.is_empty() {
        // A pod goes on showing the address it had until it has another.
        status.pod_ip = facts.old.pod_ip.clone();
        status.pod_ips = facts.old.pod_ips.clone();
        return;
    }
    status.pod_ip = ips.first().cloned();
    status.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
}

/// The status of a pod that this node does not take.
// Upstream: pkg/kubelet/kubelet.go rejectPod
pub fn rejected(pod: &Pod, verdict: &Verdict, now: Timestamp) -> PodStatus {
    let mut status = pod.status.clone().unwrap_or_default();
    status.phase = Some("Failed".into());
    status.reason = Some(verdict.reason.clone());
    status.message = Some(format!("Pod was rejected: {}", verdict.message));
    status.qos_class = Some(qos::class(pod).name().to_owned());
    status.observed_generation = pod.metadata.generation;
    status.start_time = status.start_time.or(Some(whole_seconds(now)));
    status
}

/// Makes a status be that of a pod whose last container has stopped: nothing waits any more, and the phase is
/// final.
// Upstream: pkg/kubelet/status/status_manager.go TerminatePod
pub fn finish(status: &mut PodStatus) {
    let lists = [
        &mut status.init_container_statuses,
        &mut status.container_statuses,
        &mut status.ephemeral_container_statuses,
    ];
    for container in lists.into_iter().flatten().flatten() {
        let ended = container.state.as_ref().is_some_and(|s| s.terminated.is_some());
        let last = container.last_state.take().and_then(|l| l.terminated);
        if ended {
            container.last_state = last.map(|t| ContainerState { terminated: Some(t), ..Default::default() });
            continue;
        }
        let lost = ContainerStateTerminated {
            reason: Some("ContainerStatusUnknown".into()),
            message: Some("The container could not be located when the pod was terminated".into()),
            exit_code: 137,
            ..Default::default()
        };
        // What it last died of says more than that it is not known.
        let terminated = Some(last.unwrap_or(lost));
        container.state = Some(ContainerState { terminated, ..Default::default() });
        container.ready = false;
        container.started = Some(false);
    }
    if !status.phase.as_deref().is_some_and(pod::is_terminal_phase) {
        status.phase = Some("Failed".into());
    }
}

#[cfg(test)]
mod tests;
