//! Requests and limits as the kernel wants them: shares, quotas, memory limits, oom scores, and the QoS class.

use std::collections::BTreeMap;

use api::Quantity;
use api::core::v1::{Container, Pod, ResourceRequirements};

use super::{containers, init_containers, is_sidecar};

/// The quality of service of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    /// The class as status words it.
    pub fn name(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// A compute resource in its natural unit: thousandths for `cpu`, whole units for all else.
pub fn amount(resource: &str, quantity: &Quantity) -> i64 {
    let Ok(parsed) = apimachinery::quantity::Quantity::parse(&quantity.0) else { return 0 };
    if resource == "cpu" { parsed.milli_value() } else { parsed.value() }
}

type List = Option<BTreeMap<String, Quantity>>;

fn of(list: &List, resource: &str) -> Option<i64> {
    list.as_ref()?.get(resource).map(|q| amount(resource, q))
}

pub fn request(resources: &Option<ResourceRequirements>, resource: &str) -> Option<i64> {
    resources.as_ref().and_then(|r| of(&r.requests, resource))
}

pub fn limit(resources: &Option<ResourceRequirements>, resource: &str) -> Option<i64> {
    resources.as_ref().and_then(|r| of(&r.limits, resource))
}

/// The QoS class: guaranteed when every container limits cpu and memory and requests as much.
// Upstream: pkg/apis/core/v1/helper/qos/qos.go ComputePodQOS
pub fn class(pod: &Pod) -> Qos {
    let pod_level = pod.spec.as_ref().and_then(|s| s.resources.clone());
    let all: Vec<Option<ResourceRequirements>> = match pod_level {
        Some(resources) => vec![Some(resources)],
        None => init_containers(pod).iter().chain(containers(pod)).map(|c| c.resources.clone()).collect(),
    };
    let positive = |value: Option<i64>| value.filter(|v| *v > 0);
    let mut any = false;
    let mut guaranteed = !all.is_empty();
    for resources in &all {
        for name in ["cpu", "memory"] {
            let request = positive(request(resources, name));
            let limit = positive(limit(resources, name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// What the pod asks of one resource: the regular containers and sidecars together, or the largest moment of
/// initialisation if that is more, and the overhead.
// Upstream: staging/src/k8s.io/component-helpers/resource/helpers.go PodRequests
pub fn pod_request(pod: &Pod, resource: &str) -> i64 {
    let of_container =
        |c: &Container| request(&c.resources, resource).or(limit(&c.resources, resource)).unwrap_or(0);
    pod_total(pod, resource, of_container, |r| request(r, resource))
}

/// The limit of the whole pod; `None` unless every container has one.
pub fn pod_limit(pod: &Pod, resource: &str) -> Option<i64> {
    let whole = pod.spec.as_ref().and_then(|s| limit(&s.resources, resource));
    if whole.is_some() {
        return whole;
    }
    let all_limited =
        init_containers(pod).iter().chain(containers(pod)).all(|c| limit(&c.resources, resource).is_some());
    let of_container = |c: &Container| limit(&c.resources, resource).unwrap_or(0);
    (all_limited && !containers(pod).is_empty()).then(|| pod_total(pod, resource, of_container, |_| None))
}

fn pod_total(
    pod: &Pod,
    resource: &str,
    of_container: impl Fn(&Container) -> i64,
    of_pod: impl Fn(&Option<ResourceRequirements>) -> Option<i64>,
) -> i64 {
    let overhead = pod.spec.as_ref().and_then(|s| of(&s.overhead, resource)).unwrap_or(0);
    if let Some(whole) = pod.spec.as_ref().and_then(|s| of_pod(&s.resources)) {
        return whole + overhead;
    }
    let regular: i64 = containers(pod).iter().map(&of_container).sum();
    let (mut sidecars, mut largest_init) = (0, 0);
    for container in init_containers(pod) {
        if is_sidecar(container) {
            sidecars += of_container(container);
            largest_init = largest_init.max(sidecars);
        } else {
            largest_init = largest_init.max(sidecars + of_container(container));
        }
    }
    (regular + sidecars).max(largest_init) + overhead
}

/// What the container is held to: its own limit, or else the whole pod's.
// Upstream: pkg/kubelet/kuberuntime/kuberuntime_container_linux.go getCPULimit, getMemoryLimit
pub fn container_limit(pod: &Pod, container: &Container, resource: &str) -> Option<i64> {
    let positive = |value: Option<i64>| value.filter(|v| *v > 0);
    let of_pod = || pod.spec.as_ref().and_then(|s| limit(&s.resources, resource));
    positive(limit(&container.resources, resource)).or_else(|| positive(of_pod()))
}

/// The least shares the kernel takes.
pub const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// The period of the CPU quota, in microseconds.
pub const CPU_PERIOD: i64 = 100_000;
const MIN_QUOTA: i64 = 1_000;

/// cpu.shares for so many thousandths of a CPU.
// Upstream: pkg/kubelet/cm/helpers_linux.go MilliCPUToShares
pub fn cpu_shares(milli_cpu: i64) -> i64 {
    if milli_cpu <= 0 { MIN_SHARES } else { (milli_cpu * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES) }
}

/// The CPU quota in microseconds a period; 0 for none.
pub fn cpu_quota(milli_cpu: i64) -> i64 {
    if milli_cpu <= 0 { 0 } else { (milli_cpu * CPU_PERIOD / 1000).max(MIN_QUOTA) }
}

/// How willingly the kernel kills the container when memory runs out.
// Upstream: pkg/kubelet/qos/policy.go GetContainerOOMScoreAdjust
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    const LEAST: i64 = -997;
    let critical =
        pod.spec.as_ref().is_some_and(|s| s.priority_class_name.as_deref() == Some("system-node-critical"));
    let class = class(pod);
    if critical || class == Qos::Guaranteed {
        return LEAST;
    }
    if class == Qos::BestEffort {
        return 1000;
    }
    let of = |c: &Container| request(&c.resources, "memory").unwrap_or(0);
    let unassigned = unassigned_memory(pod);
    let score = |requested: i64| 1000 - (1000 * (requested + unassigned)) / memory_capacity.max(1);
    let mut own = score(of(container));
    if init_containers(pod).iter().any(|c| c.name == container.name && is_sidecar(c)) {
        // A sidecar is not killed before those that it serves.
        own = own.min(score(containers(pod).iter().map(of).min().unwrap_or(0)));
    }
    own.clamp(1000 + LEAST, 999)
}

/// Each container's part of the memory that the pod requests as a whole and no container does.
// Upstream: pkg/kubelet/qos/helpers.go remainingPodMemReqPerContainer
fn unassigned_memory(pod: &Pod) -> i64 {
    let Some(whole) = pod.spec.as_ref().and_then(|s| request(&s.resources, "memory")) else { return 0 };
    let mut bare = pod.clone();
    if let Some(spec) = &mut bare.spec {
        (spec.resources, spec.overhead) = (None, None);
    }
    let count = containers(pod).len() + init_containers(pod).len();
    (whole - pod_request(&bare, "memory")) / i64::try_from(count.max(1)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use api::core::v1::PodSpec;

    use super::*;

    fn container(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
        let list = |pairs: &[(&str, &str)]| {
            Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned()))).collect())
        };
        let resources = ResourceRequirements { requests: list(requests), limits: list(limits), claims: None };
        Container { resources: Some(resources), ..Default::default() }
    }

    fn pod(init: Vec<Container>, containers: Vec<Container>) -> Pod {
        let spec = PodSpec { init_containers: Some(init), containers, ..Default::default() };
        Pod { spec: Some(spec), ..Default::default() }
    }

    #[test]
    fn classes() {
        let full = [("cpu", "1"), ("memory", "1Gi")];
        let cases = [
            (vec![container(&[], &[])], Qos::BestEffort),
            (vec![container(&full, &full)], Qos::Guaranteed),
            (vec![container(&[], &full)], Qos::Guaranteed),
            (vec![container(&full, &[])], Qos::Burstable),
            (vec![container(&full, &full), container(&[], &[])], Qos::Burstable),
            (vec![container(&[("cpu", "0")], &[])], Qos::BestEffort),
            (vec![container(&[("cpu", "500m"), ("memory", "1Gi")], &full)], Qos::Burstable),
        ];
        for (containers, want) in cases {
            assert_eq!(class(&pod(vec![], containers.clone())), want, "{containers:?}");
        }
    }

    #[test]
    fn requests_take_the_larger_of_init_and_running() {
        let mut sidecar = container(&[("cpu", "100m")], &[]);
        sidecar.restart_policy = Some("Always".into());
        let init = container(&[("cpu", "1")], &[]);
        let main = container(&[("cpu", "200m")], &[]);
        assert_eq!(pod_request(&pod(vec![], vec![main.clone(), main.clone()]), "cpu"), 400);
        assert_eq!(pod_request(&pod(vec![sidecar.clone(), init.clone()], vec![main.clone()]), "cpu"), 1100);
        assert_eq!(pod_request(&pod(vec![init, sidecar], vec![main]), "cpu"), 1000);
    }

    #[test]
    fn kernel_numbers() {
        assert_eq!([cpu_shares(0), cpu_shares(1), cpu_shares(250), cpu_shares(1000)], [2, 2, 256, 1024]);
        assert_eq!([cpu_quota(0), cpu_quota(1), cpu_quota(500)], [0, 1000, 50_000]);
        let burstable = pod(vec![], vec![container(&[("memory", "256Mi")], &[])]);
        assert_eq!(oom_score_adj(&burstable, &containers(&burstable)[0], 1 << 30), 750);
        let mut whole = burstable.clone();
        let requests = BTreeMap::from([("memory".to_owned(), Quantity("512Mi".into()))]);
        whole.spec.as_mut().unwrap().resources =
            Some(ResourceRequirements { requests: Some(requests), ..Default::default() });
        assert_eq!(oom_score_adj(&whole, &containers(&whole)[0], 1 << 30), 500);
        let mut sidecar = container(&[], &[]);
        (sidecar.name, sidecar.restart_policy) = ("s".into(), Some("Always".into()));
        let served = pod(vec![sidecar], containers(&burstable).to_vec());
        assert_eq!(oom_score_adj(&served, &init_containers(&served)[0], 1 << 30), 750);
    }

    #[test]
    fn a_container_without_a_limit_is_held_to_the_pods() {
        let mut pod = pod(vec![], vec![container(&[], &[("cpu", "1")])]);
        let limits = [("cpu", "2"), ("memory", "1Gi")].map(|(k, v)| (k.to_owned(), Quantity(v.into())));
        pod.spec.as_mut().unwrap().resources =
            Some(ResourceRequirements { limits: Some(limits.into()), ..Default::default() });
        let of = |resource| container_limit(&pod, &containers(&pod)[0], resource);
        assert_eq!([of("cpu"), of("memory"), of("pods")], [Some(1000), Some(1 << 30), None]);
    }
}
