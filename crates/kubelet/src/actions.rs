//! Decides what to do for one pod: [`compute_pod_actions`], a pure function from what is declared and what the
//! runtime knows to a [`Plan`], which the pod's worker carries out.

use std::collections::HashMap;

use api::core::v1::{Container, Pod};

use crate::pod::{
    self, ContainerKind, container_hash, containers, ephemeral_containers, init_containers, is_sidecar,
    should_restart,
};
use crate::pod_state::{ContainerRecord, PodState, State};
use crate::resize;
use crate::restart_all::{self, Reset};

/// What the probes have said of one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    Success,
    Failure,
}

/// The results of the probes that make containers restart, by container id.
#[derive(Clone, Debug, Default)]
pub struct ProbeResults {
    pub liveness: HashMap<String, ProbeResult>,
    pub startup: HashMap<String, ProbeResult>,
}

/// Why a container is killed; it decides which grace period counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    Other,
    Liveness,
    Startup,
    /// All of the pod begins anew: nobody waits for anything.
    Reset,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    pub id: String,
    pub name: String,
    pub message: String,
    pub reason: KillReason,
}

/// What the worker is to do, in this order: kill, sandbox, ephemeral, init, regular containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Stop all containers and the sandbox: for good unless `create_sandbox`.
    pub kill_pod: bool,
    pub create_sandbox: bool,
    /// The sandbox to use, when none is made.
    pub sandbox_id: String,
    /// The number of the sandbox to make.
    pub attempt: u32,
    /// Containers to remove; nothing else is done then.
    pub reset: Vec<Reset>,
    pub kill: Vec<Kill>,
    /// Indexes into the specification's lists.
    pub start_ephemeral: Vec<usize>,
    pub start_init: Vec<usize>,
    pub start: Vec<usize>,
}

/// Decides. Level-triggered: the same facts give the same plan, whatever happened before.
// Upstream: pkg/kubelet/kuberuntime/kuberuntime_manager.go computePodActions
pub fn compute_pod_actions(pod: &Pod, state: &PodState, probes: &ProbeResults) -> Plan {
    let (create_sandbox, attempt, sandbox_id) = sandbox_changed(pod, state);
    let mut plan =
        Plan { kill_pod: create_sandbox, create_sandbox, sandbox_id, attempt, ..Default::default() };
    if restart_all::is_asked_for(pod, state) {
        return Plan {
            kill_pod: false,
            create_sandbox: false,
            reset: restart_all::resets(pod, state),
            ..plan
        };
    }
    if create_sandbox {
        start_over(pod, state, &mut plan);
        return plan;
    }
    for (index, (container, _)) in ephemeral_containers(pod).iter().enumerate() {
        if state.container(&container.name).is_none() {
            plan.start_ephemeral.push(index);
        }
    }
    let initialized = init_container_actions(pod, state, probes, &mut plan);
    if plan.kill_pod || !initialized {
        return plan;
    }
    let kept = regular_container_actions(pod, state, probes, &mut plan);
    if kept == 0 && plan.start.is_empty() {
        plan.kill_pod = true;
        // Sidecars do not keep a pod alive.
        plan.start_init.clear();
    }
    plan
}

/// Whether the pod needs a new sandbox, its number, and the sandbox that is or was in use.
// Upstream: pkg/kubelet/kuberuntime/util/util.go PodSandboxChanged
pub fn sandbox_changed(pod: &Pod, state: &PodState) -> (bool, u32, String) {
    let Some(newest) = state.sandboxes.first() else { return (true, 0, String::new()) };
    let ready = state.sandboxes.iter().filter(|s| s.ready).count();
    let host_network = pod::host_network(pod);
    if newest.host_network != host_network {
        return (true, newest.attempt + 1, String::new());
    }
    if ready > 1 || !newest.ready || (!host_network && newest.ips.is_empty()) {
        return (true, newest.attempt + 1, newest.id.clone());
    }
    (false, newest.attempt, newest.id.clone())
}

/// The pod has no sandbox to live in: begin anew, unless all its work is done.
fn start_over(pod: &Pod, state: &PodState, plan: &mut Plan) {
    if !restarts(pod) && plan.attempt != 0 && !state.containers.is_empty() {
        plan.create_sandbox = false;
        return;
    }
    let succeeded = |c: &Container| {
        state.container(&c.name).is_some_and(|s| s.state == State::Exited && s.exit_code == 0)
    };
    let run_once =
        |c: &Container| c.restart_policy.as_deref().unwrap_or(pod::restart_policy(pod)) == "OnFailure";
    let start: Vec<usize> = (0..containers(pod).len())
        .filter(|i| !(run_once(&containers(pod)[*i]) && succeeded(&containers(pod)[*i])))
        .collect();
    if start.is_empty() && any_regular_created(pod, state) {
        plan.create_sandbox = false;
        return;
    }
    if init_containers(pod).is_empty() {
        plan.start = start;
    } else {
        plan.start_init = vec![0];
    }
}

/// Whether a container of this pod may be started again at all.
fn restarts(pod: &Pod) -> bool {
    pod::restart_policy(pod) != "Never"
        || containers(pod).iter().any(|c| c.restart_policy.as_deref().is_some_and(|p| p != "Never"))
}

/// Whether any regular container was ever made: then initialisation was complete.
pub fn any_regular_created(pod: &Pod, state: &PodState) -> bool {
    let known = |s: &ContainerRecord| s.state != State::Unknown;
    containers(pod).iter().any(|c| state.container(&c.name).is_some_and(known))
}

/// Whether a container that does not run is to be started, now or after its back-off.
// Upstream: pkg/kubelet/container/helpers.go ShouldContainerBeRestarted
pub fn should_be_started(pod: &Pod, container: &Container, kind: ContainerKind, state: &PodState) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let Some(record) = state.container(&container.name) else { return kind != ContainerKind::Ephemeral };
    match record.state {
        State::Running => false,
        State::Created | State::Unknown => true,
        State::Exited if kind == ContainerKind::Ephemeral => false,
        // A finished init container stays finished, whatever the policy.
        State::Exited if kind == ContainerKind::Init => {
            record.exit_code != 0 && should_restart(pod, container, record.exit_code)
        }
        State::Exited => should_restart(pod, container, record.exit_code),
    }
}

/// Looks from the last init container backwards for the one to run next, and mends sidecars. True when all are
/// done.
// Upstream: pkg/kubelet/kuberuntime/kuberuntime_container.go computeInitContainerActions
fn init_container_actions(pod: &Pod, state: &PodState, probes: &ProbeResults, plan: &mut Plan) -> bool {
    let all = init_containers(pod);
    if all.is_empty() {
        return true;
    }
    let alive = |c: &Container| {
        state.container(&c.name).is_some_and(|s| matches!(s.state, State::Created | State::Running))
    };
    let mut initialized = containers(pod).iter().any(alive);
    let mut later_seen = initialized;
    for index in (0..all.len()).rev() {
        let container = &all[index];
        let Some(record) = state.container(&container.name) else {
            if later_seen && is_sidecar(container) {
                plan.start_init.push(index);
            }
            continue;
        };
        if later_seen && !is_sidecar(container) {
            continue;
        }
        let step = if is_sidecar(container) {
            sidecar_step(pod, container, record, probes)
        } else {
            init_step(pod, container, record)
        };
        match step {
            InitStep::Wait => {}
            InitStep::Fail => {
                plan.kill_pod = true;
                plan.start_init.clear();
                return false;
            }
            InitStep::Start(kill) => {
                plan.kill.extend(kill);
                plan.start_init.push(index);
            }
            InitStep::Done(kill) => {
                if index + 1 == all.len() {
                    initialized = true;
                } else if !later_seen {
                    plan.start_init.push(index + 1);
                }
                if let Some(kill) = kill {
                    plan.kill.push(kill);
                    plan.start_init.push(index);
                }
            }
        }
        later_seen = true;
    }
    if !later_seen {
        plan.start_init.push(0);
    }
    plan.start_init.reverse();
    initialized
}

/// What the state of one init container calls for.
enum InitStep {
    Wait,
    /// The pod has failed.
    Fail,
    /// Start it, after killing what may still run.
    Start(Option<Kill>),
    /// It has done its part: go on to the next. A sidecar may need a restart all the same.
    Done(Option<Kill>),
}

fn init_step(pod: &Pod, container: &Container, record: &ContainerRecord) -> InitStep {
    match record.state {
        State::Created => InitStep::Start(None),
        State::Running => InitStep::Wait,
        State::Exited if record.exit_code == 0 => InitStep::Done(None),
        State::Exited if should_restart(pod, container, record.exit_code) => InitStep::Start(None),
        State::Unknown if restarts(pod) => InitStep::Start(Some(kill_unknown("Init container", record))),
        State::Exited | State::Unknown => InitStep::Fail,
    }
}

fn sidecar_step(
    pod: &Pod,
    container: &Container,
    record: &ContainerRecord,
    probes: &ProbeResults,
) -> InitStep {
    let kill = |what: &str, reason| {
        let message = format!("Init container {} {what}", container.name);
        Kill { id: record.id.clone(), name: container.name.clone(), message, reason }
    };
    match record.state {
        State::Created | State::Exited => InitStep::Start(None),
        State::Unknown => InitStep::Start(Some(kill_unknown("Init container", record))),
        State::Running => {
            if container.startup_probe.is_some() {
                match probes.startup.get(&record.id) {
                    None => return InitStep::Wait,
                    Some(ProbeResult::Failure) => {
                        return InitStep::Start(Some(kill("failed startup probe", KillReason::Startup)));
                    }
                    Some(ProbeResult::Success) => {}
                }
            }
            if changed(container, record) {
                return InitStep::Done(Some(kill("definition changed", KillReason::Other)));
            }
            if resize::requires_restart(pod, container, record) {
                return InitStep::Done(Some(kill("resize requires restart", KillReason::Other)));
            }
            let dead = container.liveness_probe.is_some()
                && probes.liveness.get(&record.id) == Some(&ProbeResult::Failure);
            InitStep::Done(dead.then(|| kill("failed liveness probe", KillReason::Liveness)))
        }
    }
}

fn kill_unknown(what: &str, record: &ContainerRecord) -> Kill {
    Kill {
        id: record.id.clone(),
        name: record.name.clone(),
        message: format!("{what} is in {:?} state, try killing it before restart", record.state.name()),
        reason: KillReason::Other,
    }
}

/// Whether the running container was made from another specification.
fn changed(container: &Container, record: &ContainerRecord) -> bool {
    !record.hash.is_empty() && record.hash != container_hash(container)
}

/// Returns how many running containers are kept.
fn regular_container_actions(pod: &Pod, state: &PodState, probes: &ProbeResults, plan: &mut Plan) -> usize {
    let mut kept = 0;
    for (index, container) in containers(pod).iter().enumerate() {
        let record = match state.container(&container.name) {
            Some(record) if record.state == State::Running => record,
            other => {
                if should_be_started(pod, container, ContainerKind::Regular, state) {
                    plan.start.push(index);
                    plan.kill.extend(
                        other.filter(|r| r.state == State::Unknown).map(|r| kill_unknown("Container", r)),
                    );
                }
                continue;
            }
        };
        let policy = container.restart_policy.as_deref().unwrap_or(pod::restart_policy(pod));
        let mut restart = policy != "Never";
        let (what, reason) = if changed(container, record) {
            restart = true;
            ("definition changed", KillReason::Other)
        } else if probes.liveness.get(&record.id) == Some(&ProbeResult::Failure) {
            ("failed liveness probe", KillReason::Liveness)
        } else if probes.startup.get(&record.id) == Some(&ProbeResult::Failure) {
            ("failed startup probe", KillReason::Startup)
        } else if restart && resize::requires_restart(pod, container, record) {
            ("resize requires restart", KillReason::Other)
        } else {
            kept += 1;
            continue;
        };
        let mut message = format!("Container {} {what}", container.name);
        if restart {
            message.push_str(", will be restarted");
            plan.start.push(index);
        }
        plan.kill.push(Kill { id: record.id.clone(), name: container.name.clone(), message, reason });
    }
    kept
}

#[cfg(test)]
#[path = "actions_tests.rs"]
mod tests;
