//! Restarting all containers of a pod in their place, when one of them exits with a code for which it asks so.

use api::core::v1::{Container, ContainerStateTerminated, ContainerStatus, Pod, PodStatus};

use crate::pod::{self, restart_rule};
use crate::pod_state::{ContainerRecord, PodState, State};

const ACTION: &str = "RestartAllContainers";
/// The reason of containers that were removed for it.
// Upstream: pkg/kubelet/kubelet_pods.go RestartingAllContainers
pub const REASON: &str = "RestartingAllContainers";
pub const MESSAGE: &str = "The container is removed because RestartAllContainers in place";
pub const CONDITION: &str = "AllContainersRestarting";

/// A container to remove, so that it can begin anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    pub id: String,
    pub name: String,
    /// It may still run.
    pub kill: bool,
}

fn all(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod::init_containers(pod).iter().chain(pod::containers(pod))
}

/// Whether any container's rules can ask for it.
// Upstream: pkg/api/v1/pod/util.go AllContainersCouldRestart
pub fn is_possible(pod: &Pod) -> bool {
    all(pod).any(|c| c.restart_policy_rules.iter().flatten().any(|rule| rule.action == ACTION))
}

fn asks(container: &Container, record: &ContainerRecord) -> bool {
    record.state == State::Exited
        && restart_rule(container, record.exit_code).is_some_and(|rule| rule.action == ACTION)
}

/// Whether a container has exited that asks for it, and is still there to do so.
// Upstream: pkg/kubelet/container/helpers.go ShouldAllContainersRestart
pub fn is_asked_for(pod: &Pod, state: &PodState) -> bool {
    all(pod).any(|c| state.container(&c.name).is_some_and(|record| asks(c, record)))
}

/// Whether containers are being removed for it, or were just now, as the last status says.
pub fn is_going_on(pod: &Pod, state: &PodState, old: &PodStatus) -> bool {
    let told = old.conditions.iter().flatten().any(|c| c.type_ == CONDITION && c.status == "True");
    is_possible(pod) && (told || is_asked_for(pod, state))
}

/// What to remove, in this order: those who asked for it last, so that their wish outlives a kubelet that is
/// killed half way.
// Upstream: pkg/kubelet/kuberuntime/kuberuntime_manager.go getContainersToReset
pub fn resets(pod: &Pod, state: &PodState) -> Vec<Reset> {
    let of = |containers: &[Container]| -> (Vec<Reset>, Vec<Reset>) {
        let records = containers
            .iter()
            .flat_map(|c| state.containers.iter().filter(|r| r.name == c.name).map(move |r| (c, r)));
        let (sources, targets): (Vec<_>, Vec<_>) = records.partition(|(c, r)| asks(c, r));
        let reset = |(_, record): (&Container, &ContainerRecord)| Reset {
            id: record.id.clone(),
            name: record.name.clone(),
            kill: record.state != State::Exited,
        };
        (sources.into_iter().map(reset).collect(), targets.into_iter().map(reset).collect())
    };
    let (init_sources, init_targets) = of(pod::init_containers(pod));
    let (sources, targets) = of(pod::containers(pod));
    [targets, init_targets, sources, init_sources].concat()
}

/// Whether nothing is left to remove.
pub fn is_cleaned_up(pod: &Pod, state: &PodState) -> bool {
    all(pod).all(|c| state.container(&c.name).is_none())
}

/// How a container that was removed for it ended.
pub fn ended() -> ContainerStateTerminated {
    ContainerStateTerminated {
        reason: Some(REASON.to_owned()),
        message: Some(MESSAGE.to_owned()),
        exit_code: 137,
        ..Default::default()
    }
}

/// Whether the container waits to begin anew after it was removed.
pub fn waits(status: &ContainerStatus) -> bool {
    let last = status.last_state.as_ref().and_then(|l| l.terminated.as_ref());
    let is_waiting = status.state.as_ref().is_some_and(|s| s.waiting.is_some());
    is_waiting && last.is_some_and(|l| l.reason.as_deref() == Some(REASON))
}
