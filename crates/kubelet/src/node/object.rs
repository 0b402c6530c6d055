//! The Node object and its status, made from facts.

use std::collections::BTreeMap;

use api::Quantity;
use api::coordination::v1::{Lease, LeaseSpec};
use api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec,
    NodeStatus, NodeSystemInfo, ObjectReference,
};
use api::meta::{MicroTime, OwnerReference, Time};
use cri::v1 as pb;

use super::allocatable::{self, Resources};
use super::machine::architecture;
use crate::core::Core;
use crate::pressure::Condition;
use crate::runtime::{self, describe};

const VERSION: &str = "v1.36.2";
/// What the node can do that not every kubelet can, so that pods that need it come here. Sorted.
///
/// Upstream: staging/src/k8s.io/component-helpers/nodedeclaredfeatures/features/registry.go AllFeatures
const FEATURES: [&str; 3] = [
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScalingInitContainers",
    "RestartAllContainersOnContainerExits",
];

/// What events about the node name: upstream puts the node's name where its UID would be.
pub fn reference(name: &str) -> ObjectReference {
    ObjectReference {
        kind: Some("Node".into()),
        name: Some(name.to_owned()),
        uid: Some(name.to_owned()),
        ..Default::default()
    }
}

/// The node as it registers.
pub fn initial(core: &Core) -> Node {
    let config = &core.config;
    let mut labels = config.node_labels.clone();
    let own = [
        ("kubernetes.io/hostname", config.hostname.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ];
    labels.extend(own.map(|(k, v)| (k.to_owned(), v.to_owned())));
    let mut annotations = config.node_annotations.clone();
    annotations.insert("volumes.kubernetes.io/controller-managed-attach-detach".into(), "true".into());
    let spec = NodeSpec {
        provider_id: config.provider_id.clone(),
        taints: (!config.taints.is_empty()).then(|| config.taints.clone()),
        ..Default::default()
    };
    let mut node = Node { spec: Some(spec), ..Default::default() };
    node.metadata.name = Some(config.node_name.clone());
    node.metadata.labels = Some(labels);
    node.metadata.annotations = Some(annotations);
    node.status = Some(status(core, None, &["container runtime is starting".to_owned()], &[]));
    node
}

/// What keeps the runtime from running pods.
// Upstream: pkg/kubelet/runtime.go
pub fn problems(health: &runtime::Result<pb::StatusResponse>) -> Vec<String> {
    let status = match health {
        Ok(answer) => answer.status.clone().unwrap_or_default(),
        Err(error) => {
            return vec![format!(
                "container runtime status check may not have completed yet: {}",
                describe(error)
            )];
        }
    };
    let find = |kind: &str| status.conditions.iter().find(|c| c.r#type == kind);
    ["RuntimeReady", "NetworkReady"]
        .into_iter()
        .filter_map(|kind| {
            let what = if kind == "NetworkReady" {
                "container runtime network not ready"
            } else {
                "container runtime not ready"
            };
            match find(kind) {
                Some(c) if c.status => None,
                Some(c) => Some(format!("{what}: {kind}=false reason:{} message:{}", c.reason, c.message)),
                None => Some(format!("{what}: {kind}=false reason: message:")),
            }
        })
        .collect()
}

pub fn is_ready(status: &NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The status. Resources that others have added to `old` stay.
// Upstream: pkg/kubelet/kubelet_node_status.go defaultNodeStatusFuncs
pub fn status(
    core: &Core,
    old: Option<&NodeStatus>,
    problems: &[String],
    images: &[pb::Image],
) -> NodeStatus {
    let config = &core.config;
    let machine = &core.machine;
    let own = allocatable::capacity(machine, config.max_pods);
    let free = core.allocatable();
    let devices = core.devices.counts();
    let with_others =
        |old: Option<&BTreeMap<String, Quantity>>, own: &Resources, of: fn(&(usize, usize)) -> usize| {
            let mut all = old.cloned().unwrap_or_default();
            all.extend(own.iter().map(|(name, amount)| (name.clone(), Quantity(amount.to_string()))));
            all.extend(devices.iter().map(|(name, counts)| (name.clone(), Quantity(of(counts).to_string()))));
            all
        };
    let address = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    let mut addresses: Vec<NodeAddress> =
        config.node_ips.iter().map(|ip| address("InternalIP", ip.to_string())).collect();
    addresses.push(address("Hostname", config.hostname.clone()));
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(with_others(old.and_then(|o| o.capacity.as_ref()), &own, |(all, _)| *all)),
        allocatable: Some(with_others(old.and_then(|o| o.allocatable.as_ref()), &free, |(_, free)| *free)),
        conditions: Some(conditions(core, old, problems)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.port) }),
        }),
        images: Some(list_images(images, config.max_images)),
        volumes_in_use: Some(core.volumes.csi.in_use()),
        declared_features: Some(FEATURES.map(str::to_owned).to_vec()),
        node_info: Some(NodeSystemInfo {
            architecture: architecture().to_owned(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: format!("{}://{}", core.runtime_name, core.runtime_version),
            kernel_version: machine.kernel_version.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: VERSION.to_owned(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.system_uuid.clone(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn conditions(core: &Core, old: Option<&NodeStatus>, problems: &[String]) -> Vec<NodeCondition> {
    let now = Time(jiff::Timestamp::from_second(core.config.clock.now().as_second()).unwrap_or_default());
    let ready = problems.is_empty();
    let ready_message = match problems {
        [] => "kubelet is posting ready status".to_owned(),
        // Upstream: k8s.io/apimachinery/pkg/util/errors Aggregate
        [only] => only.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    let under = core.pressure.conditions();
    // Upstream: pkg/kubelet/nodestatus/setters.go
    let of_pressure = |kind: Condition, held: (&str, &'static str), free: (&str, &'static str)| {
        let holds = under.contains(&kind);
        let (message, reason) = if holds { held } else { free };
        (kind.name(), holds, reason, message.to_owned())
    };
    let rows: [(&str, bool, &str, String); 4] = [
        of_pressure(
            Condition::Memory,
            ("kubelet has insufficient memory available", "KubeletHasInsufficientMemory"),
            ("kubelet has sufficient memory available", "KubeletHasSufficientMemory"),
        ),
        of_pressure(
            Condition::Disk,
            ("kubelet has disk pressure", "KubeletHasDiskPressure"),
            ("kubelet has no disk pressure", "KubeletHasNoDiskPressure"),
        ),
        of_pressure(
            Condition::Processes,
            ("kubelet has insufficient PID available", "KubeletHasInsufficientPID"),
            ("kubelet has sufficient PID available", "KubeletHasSufficientPID"),
        ),
        ("Ready", ready, if ready { "KubeletReady" } else { "KubeletNotReady" }, ready_message),
    ];
    let before =
        |kind: &str| old.and_then(|o| o.conditions.as_ref()).into_iter().flatten().find(|c| c.type_ == kind);
    rows.into_iter()
        .map(|(kind, holds, reason, message)| {
            let status = if holds { "True" } else { "False" };
            let kept =
                before(kind).filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
            NodeCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_heartbeat_time: Some(now.clone()),
                last_transition_time: kept.or_else(|| Some(now.clone())),
            }
        })
        .collect()
}

/// The largest images, with all their names.
fn list_images(images: &[pb::Image], most: usize) -> Vec<ContainerImage> {
    let mut images: Vec<&pb::Image> = images.iter().collect();
    images.sort_by_key(|i| std::cmp::Reverse((i.size, i.id.clone())));
    let named = |image: &pb::Image| {
        let names: Vec<String> = image.repo_digests.iter().chain(&image.repo_tags).take(5).cloned().collect();
        ContainerImage { names: Some(names), size_bytes: i64::try_from(image.size).ok() }
    };
    images.into_iter().take(most).map(named).collect()
}

/// Whether the status has changed in more than the time of its heartbeats.
pub fn differs(old: Option<&NodeStatus>, new: &NodeStatus) -> bool {
    let quiet = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status.conditions.iter_mut().for_each(|all| {
            all.retain(|c| {
                ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"].contains(&c.type_.as_str())
            });
        });
        let images = status.images.filter(|i| !i.is_empty());
        let volumes = status.volumes_in_use.unwrap_or_default();
        let resources = (status.capacity, status.allocatable);
        (
            status.addresses,
            resources,
            status.conditions,
            images,
            volumes,
            status.node_info,
            status.declared_features,
        )
    };
    old.is_none_or(|old| quiet(old) != quiet(new))
}

/// The node's lease, owned by the node so that it goes with it.
pub fn lease(name: &str, node: Option<&Node>, now: MicroTime, namespace: &str, seconds: i32) -> Lease {
    let mut lease = Lease::default();
    lease.metadata.name = Some(name.to_owned());
    lease.metadata.namespace = Some(namespace.to_owned());
    lease.metadata.owner_references = node.and_then(|n| n.metadata.uid.clone()).map(|uid| {
        vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.to_owned(),
            uid,
            ..Default::default()
        }]
    });
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(name.to_owned()),
        lease_duration_seconds: Some(seconds),
        renew_time: Some(now),
        ..Default::default()
    });
    lease
}
