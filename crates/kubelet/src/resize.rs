//! In-place resize, as decisions: which resources of a pod this node has granted, whether it can grant what is
//! now wanted, and which running containers have other limits than they should.

use std::collections::BTreeMap;

use api::Object;
use api::core::v1::{Container, Node, Pod, PodCondition, ResourceRequirements};
use cri::v1 as pb;
use serde_json::{Value, json};

use crate::pod::{self, qos};
use crate::pod_state::{ContainerRecord, PodState, State};

const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// The resources that were granted, by container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allocation {
    containers: BTreeMap<String, Option<ResourceRequirements>>,
    pod: Option<ResourceRequirements>,
}

impl Allocation {
    /// All that the pod asks for.
    pub fn of_spec(pod: &Pod) -> Self {
        let all = pod::init_containers(pod).iter().chain(pod::containers(pod));
        Allocation {
            containers: all.map(|c| (c.name.clone(), c.resources.clone())).collect(),
            pod: pod.spec.as_ref().and_then(|s| s.resources.clone()),
        }
    }

    /// What a former kubelet granted, which it told in the status; else what the pod asks for.
    pub fn remembered(pod: &Pod) -> Self {
        let mut allocation = Self::of_spec(pod);
        for status in pod.status.iter().flat_map(pod::all_statuses).filter(|s| s.resources.is_some()) {
            if let Some(resources) = allocation.containers.get_mut(&status.name) {
                resources.clone_from(&status.resources);
            }
        }
        allocation
    }

    /// The pod with what was granted in place of what it asks for.
    pub fn apply(&self, pod: &Pod) -> Pod {
        let mut granted = pod.clone();
        if let Some(spec) = granted.spec.as_mut() {
            spec.resources.clone_from(&self.pod);
            for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
                if let Some(resources) = self.containers.get(&container.name) {
                    container.resources.clone_from(resources);
                }
            }
        }
        granted
    }

    /// Whether the pod asks for exactly this, in whatever notation.
    pub fn covers(&self, pod: &Pod) -> bool {
        let wanted = Self::of_spec(pod);
        let none = None;
        same_amounts(&self.pod, &wanted.pod)
            && wanted
                .containers
                .iter()
                .all(|(name, resources)| same_amounts(self.containers.get(name).unwrap_or(&none), resources))
    }
}

fn same_amounts(a: &Option<ResourceRequirements>, b: &Option<ResourceRequirements>) -> bool {
    RESIZABLE.iter().all(|name| {
        qos::request(a, name) == qos::request(b, name) && qos::limit(a, name) == qos::limit(b, name)
    })
}

/// Why a resize has to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// `Deferred` until others make room, or `Infeasible` on this node.
    pub reason: &'static str,
    pub message: String,
}

/// What keeps the node from granting what the pod asks for beside `others`.
// Upstream: pkg/kubelet/allocation/allocation_manager.go handlePodResourcesResize
pub fn obstacle(pod: &Pod, others: &[&Pod], node: &Node) -> Option<Pending> {
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.clone()).unwrap_or_default();
    let mut deferred = None;
    for name in RESIZABLE {
        let Some(capacity) = allocatable.get(name).map(|q| qos::amount(name, q)) else { continue };
        let requested = qos::pod_request(pod, name);
        let used: i64 = others.iter().map(|p| qos::pod_request(p, name)).sum();
        if requested > capacity {
            let message = format!(
                "Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}"
            );
            return Some(Pending { reason: "Infeasible", message });
        }
        if requested > 0 && used + requested > capacity && deferred.is_none() {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
            );
            deferred = Some(Pending { reason: "Deferred", message });
        }
    }
    deferred
}

/// The limits that the kernel is to hold a container to; zero where there is none.
pub fn limits(pod: &Pod, container: &Container) -> [i64; 3] {
    let limit = |resource| qos::container_limit(pod, container, resource);
    let request = qos::request(&container.resources, "cpu").or(limit("cpu")).unwrap_or(0);
    [qos::cpu_shares(request), limit("cpu").map_or(0, qos::cpu_quota), limit("memory").unwrap_or(0)]
}

/// Which resources of a running container are not as they should be: `cpu` and `memory`. What the runtime does
/// not tell is taken to be right.
fn differences(pod: &Pod, container: &Container, record: &ContainerRecord) -> [bool; 2] {
    let Some(actual) = record.resources.as_ref().filter(|r| r.cpu_shares > 0) else { return [false; 2] };
    let [shares, quota, memory] = limits(pod, container);
    let asked = qos::request(&container.resources, "memory").unwrap_or(0);
    let cpu = shares != actual.cpu_shares || quota != actual.cpu_quota.max(0);
    let memory = memory != actual.memory_limit_in_bytes.max(0);
    [cpu, memory || (restarts_for(container, "memory") && record.memory_request.is_some_and(|r| r != asked))]
}

fn restarts_for(container: &Container, resource: &str) -> bool {
    container
        .resize_policy
        .iter()
        .flatten()
        .any(|p| p.resource_name == resource && p.restart_policy == "RestartContainer")
}

/// Whether the running container can only be given its resources by a restart.
// Upstream: pkg/kubelet/kuberuntime/kuberuntime_manager.go computePodResizeAction
pub fn requires_restart(pod: &Pod, container: &Container, record: &ContainerRecord) -> bool {
    let differs = differences(pod, container, record);
    RESIZABLE.iter().zip(differs).any(|(name, differs)| differs && restarts_for(container, name))
}

/// The running containers whose limits are to be changed where they run.
pub fn updates<'a>(pod: &'a Pod, state: &'a PodState) -> Vec<(&'a Container, &'a ContainerRecord)> {
    running(pod, state)
        .filter(|(c, r)| differences(pod, c, r).contains(&true) && !requires_restart(pod, c, r))
        .collect()
}

/// Whether every running container has the resources that it should have.
pub fn is_done(pod: &Pod, state: &PodState) -> bool {
    running(pod, state).all(|(container, record)| differences(pod, container, record) == [false; 2])
}

fn running<'a>(
    pod: &'a Pod,
    state: &'a PodState,
) -> impl Iterator<Item = (&'a Container, &'a ContainerRecord)> {
    let all = pod::init_containers(pod).iter().chain(pod::containers(pod));
    all.filter_map(|c| Some((c, state.container(&c.name).filter(|r| r.state == State::Running)?)))
}

/// An update to what the container should have; what has no limit is freed of the one it had.
pub fn update_of(pod: &Pod, container: &Container) -> pb::LinuxContainerResources {
    let [shares, quota, memory] = limits(pod, container);
    let free = |value: i64| if value > 0 { value } else { -1 };
    pb::LinuxContainerResources {
        cpu_shares: shares,
        cpu_quota: free(quota),
        cpu_period: qos::CPU_PERIOD,
        memory_limit_in_bytes: free(memory),
        ..Default::default()
    }
}

/// A condition of the pod's resize.
pub fn condition(kind: &str, reason: &str, message: &str, generation: Option<i64>) -> PodCondition {
    let some = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
    PodCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: some(reason),
        message: some(message),
        observed_generation: generation,
        ..Default::default()
    }
}

/// The words of an event about a resize: what happened, and the resources that it is about.
// Upstream: pkg/kubelet/events/resize.go podResizeMessage
pub fn event_message(what: &str, pod: &Pod, error: &str) -> String {
    let list = |containers: &[Container]| -> Vec<Value> {
        containers.iter().map(|c| json!({"name": c.name, "resources": c.resources})).collect()
    };
    let mut summary = json!({"generation": pod.metadata.generation});
    for (key, containers) in
        [("initContainers", pod::init_containers(pod)), ("containers", pod::containers(pod))]
    {
        if !containers.is_empty() {
            summary[key] = list(containers).into();
        }
    }
    if !error.is_empty() {
        summary["error"] = error.into();
    }
    format!("{what}: {summary}")
}

/// Of `pods`, those that hold resources beside the pod of that UID.
pub fn neighbours<'a>(pods: impl Iterator<Item = &'a Pod>, uid: &str) -> Vec<&'a Pod> {
    pods.filter(|p| p.uid() != uid && !pod::is_terminal_phase(pod::phase(p))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(cpu: &str, memory: &str) -> Pod {
        let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        let resources = json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu, "memory": memory}});
        serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": cpu, "generation": 2},
            "spec": {"containers": [{"name": "c", "resizePolicy": policy, "resources": resources}]},
        }))
        .unwrap()
    }

    fn running(pod: &Pod) -> PodState {
        let container = &pod::containers(pod)[0];
        let record = ContainerRecord {
            name: "c".into(),
            state: State::Running,
            resources: Some(update_of(pod, container)),
            ..Default::default()
        };
        PodState { containers: vec![record], ..Default::default() }
    }

    #[test]
    fn what_a_resize_does_to_a_running_container() {
        let state = running(&pod("500m", "64Mi"));
        // Wanted, updated in place, restarted.
        let cases = [
            (pod("500m", "64Mi"), false, false),
            (pod("0.5", "65536Ki"), false, false),
            (pod("250m", "64Mi"), true, false),
            (pod("500m", "32Mi"), false, true),
            (pod("250m", "32Mi"), false, true),
        ];
        for (wanted, updated, restarted) in cases {
            let container = &pod::containers(&wanted)[0];
            assert_eq!(!updates(&wanted, &state).is_empty(), updated, "{wanted:?}");
            assert_eq!(requires_restart(&wanted, container, &state.containers[0]), restarted, "{wanted:?}");
            assert_eq!(is_done(&wanted, &state), !updated && !restarted, "{wanted:?}");
        }
    }

    #[test]
    fn what_the_node_can_grant() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "2", "memory": "1Gi"}},
        }))
        .unwrap();
        let other = pod("1", "1Mi");
        let reason = |wanted: &str| obstacle(&pod(wanted, "1Mi"), &[&other], &node).map(|p| p.reason);
        assert_eq!(reason("1"), None);
        assert_eq!(reason("1500m"), Some("Deferred"));
        assert_eq!(reason("3"), Some("Infeasible"));
    }

    #[test]
    fn a_grant_stands_until_another_is_made() {
        let (old, new) = (pod("500m", "64Mi"), pod("1", "64Mi"));
        let allocation = Allocation::of_spec(&old);
        assert!(allocation.covers(&pod("0.5", "64Mi")));
        assert!(!allocation.covers(&new));
        assert_eq!(pod::containers(&allocation.apply(&new)), pod::containers(&old));
        let mut restarted = new.clone();
        let resources = pod::containers(&old)[0].resources.clone();
        restarted.status = serde_json::from_value(json!({"containerStatuses": [{
            "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0, "resources": resources}]}))
        .unwrap();
        assert!(Allocation::remembered(&restarted).covers(&old));
    }
}
