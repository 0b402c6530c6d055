//! The configurations that CRI takes for a pod's sandbox and for a container.

use std::collections::{BTreeMap, HashMap};

use api::Object;
use api::core::v1::{Container, Pod};
use apimachinery::quantity::Quantity;
use apimachinery::sysctl;
use cri::v1 as pb;

use super::dns::Resolver;
use super::expansion::expand;
use super::security::{self, ImageUser};
use crate::devices::Grants;
use crate::pod::{self, qos};
use crate::pod_state::annotations;
use crate::pressure::is_critical;
use crate::resize;
use crate::runtime::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};

/// What a sandbox is made from, beside the pod.
pub struct SandboxFacts<'a> {
    pub attempt: u32,
    pub hostname: &'a str,
    pub log_directory: &'a str,
    pub resolver: &'a Resolver,
    pub cgroup_parent: &'a str,
    pub users: &'a pb::UserNamespace,
}

// Upstream: pkg/kubelet/kuberuntime/kuberuntime_sandbox.go generatePodSandboxConfig
pub fn sandbox(pod: &Pod, facts: &SandboxFacts) -> pb::PodSandboxConfig {
    let spec = pod.spec.clone().unwrap_or_default();
    let mut labels: HashMap<String, String> =
        pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    labels.extend(identity(pod));
    let port_mappings = if pod::host_network(pod) { Vec::new() } else { port_mappings(pod) };
    let context = spec.security_context.unwrap_or_default();
    let sysctls =
        context.sysctls.unwrap_or_default().into_iter().map(|s| (sysctl::normalize(&s.name), s.value));
    pb::PodSandboxConfig {
        metadata: Some(pb::PodSandboxMetadata {
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            namespace: pod.namespace().to_owned(),
            attempt: facts.attempt,
        }),
        hostname: if pod::host_network(pod) { String::new() } else { facts.hostname.to_owned() },
        log_directory: facts.log_directory.to_owned(),
        dns_config: Some(pb::DnsConfig {
            servers: facts.resolver.servers.clone(),
            searches: facts.resolver.searches.clone(),
            options: facts.resolver.options.clone(),
        }),
        port_mappings,
        labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(pb::LinuxPodSandboxConfig {
            cgroup_parent: facts.cgroup_parent.to_owned(),
            security_context: Some(security::of_sandbox(pod, facts.users)),
            sysctls: sysctls.collect(),
            resources: Some(pod_resources(pod)),
            overhead: Some(overhead(pod)),
        }),
        windows: None,
    }
}

fn identity(pod: &Pod) -> [(String, String); 3] {
    [
        (POD_NAME.to_owned(), pod.name().to_owned()),
        (POD_NAMESPACE.to_owned(), pod.namespace().to_owned()),
        (POD_UID.to_owned(), pod.uid().to_owned()),
    ]
}

fn port_mappings(pod: &Pod) -> Vec<pb::PortMapping> {
    let all =
        pod::containers(pod).iter().chain(pod::init_containers(pod).iter().filter(|c| pod::is_sidecar(c)));
    all.flat_map(|c| c.ports.iter().flatten())
        .map(|port| {
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => pb::Protocol::Udp,
                Some("SCTP") => pb::Protocol::Sctp,
                _ => pb::Protocol::Tcp,
            };
            pb::PortMapping {
                protocol: protocol as i32,
                container_port: port.container_port,
                host_port: port.host_port.unwrap_or(0),
                host_ip: port.host_ip.clone().unwrap_or_default(),
            }
        })
        .collect()
}

/// The limits of a pod's cgroup. A limit that not every container has does not hold for the pod.
pub fn pod_resources(pod: &Pod) -> pb::LinuxContainerResources {
    let quota = qos::pod_limit(pod, "cpu").map(qos::cpu_quota).filter(|q| *q > 0);
    pb::LinuxContainerResources {
        cpu_shares: qos::cpu_shares(qos::pod_request(pod, "cpu")),
        cpu_quota: quota.unwrap_or(0),
        cpu_period: if quota.is_some() { qos::CPU_PERIOD } else { 0 },
        memory_limit_in_bytes: qos::pod_limit(pod, "memory").unwrap_or(0),
        ..Default::default()
    }
}

/// How much a pod may have of huge pages of each size that the kernel has any of. They are not overcommitted, so
/// that what is asked for is the limit.
pub fn huge_pages(pod: &Pod, pools: &BTreeMap<u64, u64>) -> Vec<pb::HugepageLimit> {
    huge_page_limits(pools, |name| Some(qos::pod_request(pod, name)))
}

/// None, where nothing is said.
// Upstream: pkg/kubelet/kuberuntime/kuberuntime_container_linux.go GetHugepageLimitsFromResources
fn huge_page_limits(
    pools: &BTreeMap<u64, u64>,
    limit: impl Fn(&str) -> Option<i64>,
) -> Vec<pb::HugepageLimit> {
    let of = |(size, _): (&u64, &u64)| {
        let bytes = Quantity::from_bytes(i64::try_from(*size).unwrap_or(i64::MAX));
        let limit = limit(&format!("hugepages-{bytes}")).and_then(|limit| u64::try_from(limit).ok());
        pb::HugepageLimit { page_size: page_size(*size), limit: limit.unwrap_or(0) }
    };
    pools.iter().filter(|(_, count)| **count > 0).map(of).collect()
}

/// As cgroups name it.
fn page_size(bytes: u64) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 30) => format!("{}GB", bytes >> 30),
        _ if bytes.is_multiple_of(1 << 20) => format!("{}MB", bytes >> 20),
        _ => format!("{}KB", bytes >> 10),
    }
}

/// What the sandbox itself takes beside its containers.
// Upstream: pkg/kubelet/kuberuntime/kuberuntime_sandbox_linux.go convertOverheadToLinuxResources
fn overhead(pod: &Pod) -> pb::LinuxContainerResources {
    let of = |name: &str| {
        let list = pod.spec.as_ref()?.overhead.as_ref()?;
        list.get(name).map(|quantity| qos::amount(name, quantity))
    };
    let Some(cpu) = of("cpu").or(of("memory").map(|_| 0)) else { return Default::default() };
    pb::LinuxContainerResources {
        cpu_shares: qos::cpu_shares(cpu),
        cpu_quota: qos::cpu_quota(cpu),
        cpu_period: qos::CPU_PERIOD,
        memory_limit_in_bytes: of("memory").unwrap_or(0),
        ..Default::default()
    }
}

/// The limits of a container. Requests that are missing are as large as the limits.
// Upstream: pkg/kubelet/kuberuntime/kuberuntime_container_linux.go generateLinuxContainerResources
pub fn container_resources(pod: &Pod, container: &Container, memory: &Memory) -> pb::LinuxContainerResources {
    let [cpu_shares, cpu_quota, memory_limit_in_bytes] = resize::limits(pod, container);
    pb::LinuxContainerResources {
        cpu_shares,
        cpu_quota,
        cpu_period: qos::CPU_PERIOD,
        memory_limit_in_bytes,
        oom_score_adj: qos::oom_score_adj(pod, container, memory.capacity),
        unified: memory.swap_limit(pod, container).into_iter().collect(),
        hugepage_limits: huge_page_limits(&memory.huge_pages, |name| qos::limit(&container.resources, name)),
        ..Default::default()
    }
}

/// The node's memory, as far as containers are told what they may have of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub capacity: i64,
    /// What there is to swap to.
    pub swap_capacity: i64,
    /// Whether the kernel limits swap, by the files of cgroups of version 2.
    pub swap_is_limited: bool,
    pub swap_behavior: SwapBehavior,
    /// How many huge pages of each size, in bytes, there are.
    pub huge_pages: BTreeMap<u64, u64>,
}

/// Who may use swap.
// Upstream: pkg/kubelet/types/constants.go SwapBehavior
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SwapBehavior {
    #[default]
    NoSwap,
    /// Burstable pods, in proportion to what they request of the memory.
    LimitedSwap,
}

impl Memory {
    /// The file that limits the container's swap, and what goes into it. Upstream bounds swap with memory on
    /// cgroups of version 1; those cannot forbid it.
    // Upstream: pkg/kubelet/kuberuntime/kuberuntime_container_linux.go configureContainerSwapResources
    fn swap_limit(&self, pod: &Pod, container: &Container) -> Option<(String, String)> {
        if !self.swap_is_limited {
            return None;
        }
        let request = qos::request(&container.resources, "memory").unwrap_or(0);
        let limit = qos::limit(&container.resources, "memory").unwrap_or(0);
        let swaps = self.swap_behavior == SwapBehavior::LimitedSwap
            && !is_critical(pod)
            && qos::class(pod) == qos::Qos::Burstable
            && request != limit
            && request <= self.capacity;
        let part = i128::from(request) * i128::from(self.swap_capacity) / i128::from(self.capacity.max(1));
        let bytes = if swaps { part } else { 0 };
        Some(("memory.swap.max".to_owned(), bytes.to_string()))
    }
}

/// What a container is made from, beside the pod.
pub struct ContainerFacts<'a> {
    pub restart_count: i32,
    pub image_ref: &'a str,
    pub image_user: &'a ImageUser,
    pub environment: &'a BTreeMap<String, String>,
    pub mounts: Vec<pb::Mount>,
    /// Devices of its volumes.
    pub devices: Vec<pb::Device>,
    /// What comes with the container's devices.
    pub grants: Grants,
    /// The container whose processes an ephemeral one is to see, by id.
    pub target: Option<&'a str>,
    pub memory: &'a Memory,
    pub users: &'a pb::UserNamespace,
    pub seccomp: security::Profiles<'a>,
}

// Upstream: pkg/kubelet/kuberuntime/kuberuntime_container.go generateContainerConfig
pub fn container(pod: &Pod, container: &Container, mut facts: ContainerFacts) -> pb::ContainerConfig {
    let Grants { envs, annotations, mounts, devices, cdi_devices } = std::mem::take(&mut facts.grants);
    facts.mounts.extend(mounts);
    for mount in &mut facts.mounts {
        mount.uid_mappings.clone_from(&facts.users.uids);
        mount.gid_mappings.clone_from(&facts.users.gids);
    }
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| expand(text, |name| facts.environment.get(name).cloned())).collect()
    };
    let mut labels: HashMap<String, String> = identity(pod).into();
    labels.insert(CONTAINER_NAME.to_owned(), container.name.clone());
    let linux = pb::LinuxContainerConfig {
        resources: Some(container_resources(pod, container, facts.memory)),
        security_context: Some(security::of_container(
            pod,
            container,
            facts.image_user,
            facts.target,
            facts.users,
            facts.seccomp,
        )),
    };
    let image = container.image.clone().unwrap_or_default();
    pb::ContainerConfig {
        metadata: Some(pb::ContainerMetadata {
            name: container.name.clone(),
            attempt: facts.restart_count.max(0) as u32,
        }),
        image: Some(pb::ImageSpec {
            image: facts.image_ref.to_owned(),
            user_specified_image: image,
            ..Default::default()
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: facts
            .environment
            .iter()
            .chain(&envs)
            .map(|(key, value)| pb::KeyValue { key: key.clone(), value: value.clone() })
            .collect(),
        devices: facts.devices.into_iter().chain(devices).collect(),
        cdi_devices,
        mounts: facts.mounts,
        labels,
        annotations: annotations
            .into_iter()
            .chain(container_annotations(pod, container, facts.restart_count))
            .collect(),
        log_path: log_path(&container.name, facts.restart_count),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(linux),
        ..Default::default()
    }
}

/// A container's log below its pod's log directory.
pub fn log_path(container: &str, restart_count: i32) -> String {
    format!("{container}/{restart_count}.log")
}

// Upstream: pkg/kubelet/kuberuntime/labels.go newContainerAnnotations
fn container_annotations(pod: &Pod, container: &Container, restart_count: i32) -> HashMap<String, String> {
    let mut all = HashMap::new();
    let mut set = |key: &str, value: String| all.insert(key.to_owned(), value);
    set(annotations::HASH, pod::container_hash(container));
    set(annotations::RESTART_COUNT, restart_count.to_string());
    set(annotations::TERMINATION_MESSAGE_PATH, termination_message_path(container));
    let policy = container.termination_message_policy.clone().unwrap_or_else(|| "File".into());
    set(annotations::TERMINATION_MESSAGE_POLICY, policy);
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        set(annotations::DELETION_GRACE_PERIOD, seconds.to_string());
    }
    if let Some(seconds) = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds) {
        set(annotations::TERMINATION_GRACE_PERIOD, seconds.to_string());
    }
    let request = qos::request(&container.resources, "memory").unwrap_or(0);
    set(annotations::MEMORY_REQUEST, request.to_string());
    let json = |value: serde_json::Result<String>| value.unwrap_or_default();
    if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) {
        set(annotations::PRE_STOP, json(serde_json::to_string(hook)));
    }
    if let Some(ports) = container.ports.as_ref().filter(|p| !p.is_empty()) {
        set(annotations::PORTS, json(serde_json::to_string(ports)));
    }
    all
}

pub fn termination_message_path(container: &Container) -> String {
    container.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn huge_pages_are_limited_where_there_are_any() {
        let pools = BTreeMap::from([(2 << 20, 8), (1 << 30, 0), (64 << 10, 1)]);
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [
                {"name": "a", "resources": {"requests": {"hugepages-2Mi": "4Mi"}}},
                {"name": "b"},
            ]},
        }))
        .unwrap();
        let told: Vec<_> =
            super::huge_pages(&pod, &pools).into_iter().map(|l| (l.page_size, l.limit)).collect();
        assert_eq!(told, [("64KB".to_owned(), 0), ("2MB".to_owned(), 4 << 20)]);
    }

    #[test]
    fn a_container_and_its_sandbox() {
        let object = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"}},
            "spec": {"containers": [{
                "name": "c", "image": "img", "command": ["sh", "-c", "echo $(A)"],
                "ports": [{"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}],
                "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
            }]},
        });
        let pod: Pod = serde_json::from_value(object).unwrap();
        let facts = SandboxFacts {
            attempt: 1,
            hostname: "p",
            log_directory: "/logs",
            resolver: &Resolver::default(),
            cgroup_parent: "/kubepods/podu",
            users: &pb::UserNamespace::default(),
        };
        let config = sandbox(&pod, &facts);
        assert_eq!(config.port_mappings[0].host_port, 8080);
        assert_eq!(config.port_mappings[0].protocol, pb::Protocol::Udp as i32);
        assert_eq!((config.labels["app"].as_str(), config.labels[POD_UID].as_str()), ("x", "u"));
        assert_eq!(config.linux.unwrap().resources.unwrap().memory_limit_in_bytes, 64 << 20);

        let environment = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        let facts = ContainerFacts {
            restart_count: 2,
            image_ref: "img@sha256:1",
            image_user: &ImageUser::default(),
            environment: &environment,
            mounts: Vec::new(),
            devices: Vec::new(),
            grants: Grants::default(),
            target: None,
            memory: &Memory { capacity: 1 << 30, ..Default::default() },
            users: &pb::UserNamespace::default(),
            seccomp: Default::default(),
        };
        let config = container(&pod, &pod.spec.as_ref().unwrap().containers[0], facts);
        assert_eq!(config.command, ["sh", "-c", "echo 1"]);
        assert_eq!(config.log_path, "c/2.log");
        assert_eq!(config.annotations[annotations::RESTART_COUNT], "2");
        let resources = config.linux.unwrap().resources.unwrap();
        assert_eq!((resources.cpu_shares, resources.cpu_quota, resources.oom_score_adj), (512, 50_000, -997));
    }

    #[test]
    fn swap_is_for_burstable_containers_that_may_have_it() {
        let check = |behavior, requests: &str, limits: &str, want: Option<&str>| {
            let resources = json!({"requests": {"memory": requests}, "limits": {"memory": limits}});
            let object = json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
            let pod: Pod = serde_json::from_value(object).unwrap();
            let memory = Memory {
                capacity: 1 << 30,
                swap_capacity: 1 << 20,
                swap_is_limited: want.is_some(),
                swap_behavior: behavior,
                ..Default::default()
            };
            let limit = memory.swap_limit(&pod, &pod.spec.as_ref().unwrap().containers[0]);
            assert_eq!(limit.as_ref().map(|(_, bytes)| bytes.as_str()), want);
        };
        check(SwapBehavior::LimitedSwap, "256Mi", "512Mi", None);
        check(SwapBehavior::NoSwap, "256Mi", "512Mi", Some("0"));
        check(SwapBehavior::LimitedSwap, "256Mi", "512Mi", Some("262144"));
        check(SwapBehavior::LimitedSwap, "512Mi", "512Mi", Some("0"));
        check(SwapBehavior::LimitedSwap, "0", "0", Some("0"));
    }
}
