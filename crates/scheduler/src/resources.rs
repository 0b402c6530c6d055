//! Amounts of compute resources, as integers: millicores for CPU, bytes or counts for the rest.

use std::collections::BTreeMap;

use api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use apimachinery::quantity::Quantity;

/// What a container without a request counts as when nodes are scored, so that many such pods spread.
///
/// Upstream: pkg/scheduler/util/pod_resources.go
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

type List = BTreeMap<String, api::Quantity>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// How many pods: only of nodes.
    pub pods: i64,
    /// Extended resources and huge pages, by name.
    pub others: BTreeMap<String, i64>,
}

/// A resource, its name looked at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource<'a> {
    Cpu,
    Memory,
    EphemeralStorage,
    Pods,
    Other(&'a str),
}

impl<'a> Resource<'a> {
    pub fn named(name: &'a str) -> Self {
        match name {
            "cpu" => Resource::Cpu,
            "memory" => Resource::Memory,
            "ephemeral-storage" => Resource::EphemeralStorage,
            "pods" => Resource::Pods,
            name => Resource::Other(name),
        }
    }
}

impl Resources {
    pub fn from_list(list: Option<&List>) -> Self {
        let mut resources = Resources::default();
        for (name, quantity) in list.into_iter().flatten() {
            // The API server lets no malformed quantity in.
            let Ok(quantity) = Quantity::parse(&quantity.0) else { continue };
            match name.as_str() {
                "cpu" => resources.milli_cpu = quantity.milli_value(),
                "memory" => resources.memory = quantity.value(),
                "ephemeral-storage" => resources.ephemeral_storage = quantity.value(),
                "pods" => resources.pods = quantity.value(),
                _ => drop(resources.others.insert(name.clone(), quantity.value())),
            }
        }
        resources
    }

    /// The amount of a resource by its name.
    pub fn of(&self, name: &str) -> i64 {
        self.amount(Resource::named(name))
    }

    pub fn amount(&self, resource: Resource) -> i64 {
        match resource {
            Resource::Cpu => self.milli_cpu,
            Resource::Memory => self.memory,
            Resource::EphemeralStorage => self.ephemeral_storage,
            Resource::Pods => self.pods,
            Resource::Other(name) => self.others.get(name).copied().unwrap_or(0),
        }
    }

    pub fn add(&mut self, other: &Resources) {
        self.combine(other, |a, b| a.saturating_add(b));
    }

    pub fn sub(&mut self, other: &Resources) {
        self.combine(other, |a, b| a.saturating_sub(b));
        self.others.retain(|_, amount| *amount != 0);
    }

    pub fn max(&mut self, other: &Resources) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Resources, with: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = with(self.milli_cpu, other.milli_cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral_storage = with(self.ephemeral_storage, other.ephemeral_storage);
        self.pods = with(self.pods, other.pods);
        for (name, amount) in &other.others {
            match self.others.get_mut(name) {
                Some(mine) => *mine = with(*mine, *amount),
                None => drop(self.others.insert(name.clone(), with(0, *amount))),
            }
        }
    }

    /// Makes the resources that `list` names as they are there.
    fn set(&mut self, list: Option<&List>) {
        let set = Resources::from_list(list);
        for name in list.into_iter().flat_map(BTreeMap::keys) {
            match name.as_str() {
                "cpu" => self.milli_cpu = set.milli_cpu,
                "memory" => self.memory = set.memory,
                "ephemeral-storage" => self.ephemeral_storage = set.ephemeral_storage,
                _ => drop(self.others.insert(name.clone(), set.others.get(name).copied().unwrap_or(0))),
            }
        }
    }
}

/// What a pod asks for: its containers together, or its largest step of initialization if that is more, and its
/// overhead; requests of the pod as a whole take the place of its containers'.
///
/// Upstream: component-helpers/resource/helpers.go PodRequests
pub fn of_pod(pod: &Pod) -> Resources {
    whole(pod, |_, requests| requests)
}

/// The same for scoring: containers that ask for no CPU or memory count as a little of each.
pub fn of_pod_for_scoring(pod: &Pod) -> Resources {
    whole(pod, |container, mut requests| {
        let list = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let has = |name| list.is_some_and(|list| list.contains_key(name));
        if !has("cpu") {
            requests.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !has("memory") {
            requests.memory = DEFAULT_MEMORY;
        }
        requests
    })
}

fn whole(pod: &Pod, adjust: impl Fn(&Container, Resources) -> Resources) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let mut total = of_containers(spec, |container| adjust(container, effective(pod, container)));
    if let Some(whole) = &spec.resources {
        total.set(whole.requests.as_ref());
    }
    total.add(&Resources::from_list(spec.overhead.as_ref()));
    total
}

/// What a container holds: while it is resized the most of what is asked, what was granted and what it has.
///
/// Upstream: component-helpers/resource/helpers.go determineEffectiveRequests
fn effective(pod: &Pod, container: &Container) -> Resources {
    let asked = requests(container.resources.as_ref());
    let Some(status) = &pod.status else { return asked };
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let own = all.into_iter().find(|status| status.name == container.name);
    let Some((own, actual)) = own.and_then(|own| Some((own, own.resources.as_ref()?))) else { return asked };
    let mut held = requests(Some(actual));
    held.max(&Resources::from_list(own.allocated_resources.as_ref()));
    let resizing = status.conditions.iter().flatten().find(|c| c.type_ == "PodResizePending");
    if resizing.is_none_or(|condition| condition.reason.as_deref() != Some("Infeasible")) {
        held.max(&asked);
    }
    held
}

fn requests(resources: Option<&ResourceRequirements>) -> Resources {
    Resources::from_list(resources.and_then(|r| r.requests.as_ref()))
}

fn of_containers(spec: &PodSpec, requests: impl Fn(&Container) -> Resources) -> Resources {
    let mut total = Resources::default();
    spec.containers.iter().for_each(|container| total.add(&requests(container)));
    let mut sidecars = Resources::default();
    let mut initialization = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut step = requests(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&step);
            step = sidecars.clone();
        } else {
            step.add(&sidecars);
        }
        initialization.max(&step);
    }
    total.add(&sidecars);
    total.max(&initialization);
    total
}

#[cfg(test)]
mod tests {
    use api::Object;
    use serde_json::json;

    use super::*;

    fn container(cpu: &str, sidecar: bool) -> serde_json::Value {
        let policy = if sidecar { json!("Always") } else { json!(null) };
        json!({"name": "c", "restartPolicy": policy, "resources": {"requests": {"cpu": cpu}}})
    }

    fn check(init: &[(&str, bool)], containers: &[&str], expected: i64) {
        let init: Vec<_> = init.iter().map(|(cpu, sidecar)| container(cpu, *sidecar)).collect();
        let containers: Vec<_> = containers.iter().map(|cpu| container(cpu, false)).collect();
        let pod =
            json!({"spec": {"initContainers": init, "containers": containers, "overhead": {"cpu": "10m"}}});
        assert_eq!(of_pod(&Pod::from_value(pod).unwrap()).milli_cpu, expected + 10);
    }

    #[test]
    fn a_pod_asks_for_its_widest_moment() {
        check(&[], &["100m", "0.2"], 300);
        check(&[("1", false)], &["100m"], 1000);
        check(&[("1", false), ("50m", false)], &["2"], 2000);
        check(&[("200m", true)], &["100m"], 300);
        check(&[("200m", true), ("1", false)], &["100m"], 1200);
        check(&[("1", false), ("200m", true)], &["100m"], 1000);
    }

    #[test]
    fn a_container_that_is_resized_holds_the_most_of_both() {
        let holds = |reason: &str| {
            let pod = json!({"spec": {"containers": [container("2", false)]}, "status": {
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "allocatedResources": {"cpu": "1"}, "resources": {"requests": {"cpu": "500m"}}}],
                "conditions": [{"type": "PodResizePending", "status": "True", "reason": reason}]}});
            of_pod(&Pod::from_value(pod).unwrap()).milli_cpu
        };
        assert_eq!((holds("Deferred"), holds("Infeasible")), (2000, 1000));
    }

    #[test]
    fn a_container_without_requests_counts_a_little_when_scored() {
        let pod = Pod::from_value(json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}})).unwrap();
        assert_eq!(of_pod(&pod), Resources::default());
        assert_eq!(of_pod_for_scoring(&pod).milli_cpu, 200);
    }
}
