//! The phase of a pod, from the states of its containers.

use api::core::v1::{Container, ContainerStatus, Pod, PodStatus};

use crate::pod::{self, containers, init_containers, is_sidecar, should_restart};
use crate::pod_state::{PodState, State};
use crate::restart_all;

#[derive(Default)]
struct Count {
    unknown: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    stopped_for_good: usize,
    succeeded: usize,
    pending_init: usize,
    pending_sidecars: usize,
    failed_init: usize,
}

/// Where a container is, for the phase: its state, or that before the one it waits in.
enum Stage {
    Running,
    Exited(i32),
    /// It waits to run again, after this exit.
    Restarting(i32),
    /// It was removed to begin anew with all others.
    Resetting,
    Waiting,
    Unknown,
}

fn stage(status: &ContainerStatus) -> Stage {
    let Some(state) = &status.state else { return Stage::Unknown };
    if state.running.is_some() {
        return Stage::Running;
    }
    if let Some(terminated) = &state.terminated {
        return Stage::Exited(terminated.exit_code);
    }
    if state.waiting.is_none() {
        return Stage::Unknown;
    }
    if restart_all::waits(status) {
        return Stage::Resetting;
    }
    match status.last_state.as_ref().and_then(|l| l.terminated.as_ref()) {
        Some(last) => Stage::Restarting(last.exit_code),
        None => Stage::Waiting,
    }
}

/// The phase. `terminal` says that no container will be started again.
// Upstream: pkg/kubelet/kubelet_pods.go getPhase
pub fn of(pod: &Pod, status: &PodStatus, terminal: bool, state: &PodState) -> String {
    let find = |c: &Container| pod::all_statuses(status).find(|s| s.name == c.name);
    let mut count = Count::default();
    for container in init_containers(pod) {
        if is_sidecar(container) {
            count_sidecar(find(container), &mut count);
        } else {
            count_init(pod, container, find(container), &mut count);
        }
    }
    for container in containers(pod) {
        count_regular(pod, container, find(container), &mut count);
    }
    let active = |c: &Container| {
        state.containers.iter().any(|s| s.name == c.name && matches!(s.state, State::Running | State::Exited))
    };
    let has_initialized = containers(pod).iter().any(active);
    verdict(&count, terminal && !pod::is_static(pod), has_initialized).to_owned()
}

fn verdict(count: &Count, terminal: bool, has_initialized: bool) -> &'static str {
    if count.failed_init > 0 {
        return "Failed";
    }
    if count.pending_init > 0 || (count.pending_sidecars > 0 && !has_initialized) || count.waiting > 0 {
        return "Pending";
    }
    if count.unknown > 0 {
        return "Pending";
    }
    if count.running > 0 {
        return "Running";
    }
    if count.stopped == 0 {
        return "Pending";
    }
    let restarting = count.stopped != count.stopped_for_good;
    match () {
        () if restarting && !terminal => "Running",
        () if count.stopped == count.succeeded => "Succeeded",
        () => "Failed",
    }
}

fn count_init(pod: &Pod, container: &Container, status: Option<&ContainerStatus>, count: &mut Count) {
    match status.map(stage) {
        Some(Stage::Exited(0) | Stage::Restarting(0)) => {}
        Some(Stage::Exited(code) | Stage::Restarting(code)) => {
            if !should_restart(pod, container, code) {
                count.failed_init += 1;
            } else {
                count.pending_init += 1;
            }
        }
        _ => count.pending_init += 1,
    }
}

fn count_sidecar(status: Option<&ContainerStatus>, count: &mut Count) {
    let Some(status) = status else {
        count.unknown += 1;
        return;
    };
    match stage(status) {
        Stage::Running => {
            count.running += 1;
            if status.started != Some(true) {
                count.pending_sidecars += 1;
            }
        }
        Stage::Exited(_) | Stage::Restarting(_) | Stage::Resetting => {}
        Stage::Waiting => {
            count.pending_sidecars += 1;
            count.waiting += 1;
        }
        Stage::Unknown => {
            count.pending_sidecars += 1;
            count.unknown += 1;
        }
    }
}

fn count_regular(pod: &Pod, container: &Container, status: Option<&ContainerStatus>, count: &mut Count) {
    match status.map(stage) {
        Some(Stage::Running) => count.running += 1,
        Some(Stage::Exited(code)) => {
            count.stopped += 1;
            count.stopped_for_good += usize::from(!should_restart(pod, container, code));
            count.succeeded += usize::from(code == 0);
        }
        Some(Stage::Restarting(code)) => {
            count.stopped += 1;
            count.stopped_for_good += usize::from(!should_restart(pod, container, code));
        }
        Some(Stage::Resetting) => count.stopped += 1,
        Some(Stage::Waiting) => count.waiting += 1,
        Some(Stage::Unknown) | None => count.unknown += 1,
    }
}
