//! What is kept of the API server's objects: only what policies look at, for every node holds all pods.

use std::net::IpAddr;
use std::sync::Arc;

use api::Object;
use api::core::v1::{Container, Namespace as ApiNamespace, Pod as ApiPod, PodSpec, Service};
use api::networking::v1::NetworkPolicy;
use controller_runtime::Identity;
use linux::nft::Protocol;

use crate::policy::{Labels, Policy};

/// Set by the kubelet on the API server's copy of a static pod: the uid that the pod has on its node.
// Upstream: pkg/kubelet/types/pod_update.go ConfigMirrorAnnotationKey
const MIRROR: &str = "kubernetes.io/config.mirror";

controller_runtime::cached_by_identity!(Pod, Namespace, StoredPolicy);

/// A port of a container that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    pub name: String,
    pub protocol: Protocol,
    pub number: u16,
}

#[derive(Clone, Debug, Default)]
pub struct Pod {
    pub identity: Identity,
    pub facts: Arc<PodFacts>,
}

/// All of a pod that a change of rules can come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    pub namespace: String,
    pub labels: Labels,
    pub node: String,
    /// The uid that the node knows it by, if it is not the API server's.
    pub uid_on_node: Option<String>,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<NamedPort>,
    /// It has no network of its own: policies neither hold for it nor select it as a peer.
    pub is_host_network: bool,
    /// Nothing of it runs any more, so that its addresses may be another pod's by now.
    pub is_over: bool,
}

impl Pod {
    /// Whether a sandbox that carries this uid is this pod's.
    pub fn has_uid(&self, uid: &str) -> bool {
        self.identity.uid == uid || self.facts.uid_on_node.as_deref() == Some(uid)
    }
}

impl From<ApiPod> for Pod {
    fn from(pod: ApiPod) -> Self {
        let identity = Identity::of(&pod);
        let (spec, status) = (pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
        let annotations = pod.metadata.annotations.unwrap_or_default();
        let all = status.pod_ips.into_iter().flatten().map(|ip| ip.ip).chain(status.pod_ip);
        let mut addresses: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
        addresses.sort();
        addresses.dedup();
        let facts = PodFacts {
            namespace: pod.metadata.namespace.unwrap_or_default(),
            labels: pod.metadata.labels.unwrap_or_default(),
            uid_on_node: annotations.get(MIRROR).cloned(),
            addresses,
            ports: named_ports(&spec),
            is_host_network: spec.host_network.unwrap_or_default(),
            is_over: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            node: spec.node_name.unwrap_or_default(),
        };
        Pod { identity, facts: Arc::new(facts) }
    }
}

/// Upstream: staging/src/k8s.io/endpointslice/utils.go FindPort, which takes sidecars' ports as well
fn named_ports(spec: &PodSpec) -> Vec<NamedPort> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = |container: &Container| container.ports.clone().unwrap_or_default();
    let named = |port: api::core::v1::ContainerPort| {
        Some(NamedPort {
            name: port.name?,
            protocol: Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"))?,
            number: u16::try_from(port.container_port).ok()?,
        })
    };
    spec.containers.iter().chain(sidecars).flat_map(ports).filter_map(named).collect()
}

#[derive(Clone, Debug, Default)]
pub struct Namespace {
    identity: Identity,
    pub labels: Labels,
}

impl From<ApiNamespace> for Namespace {
    fn from(namespace: ApiNamespace) -> Self {
        let identity = Identity::of(&namespace);
        Namespace { identity, labels: namespace.metadata.labels.unwrap_or_default() }
    }
}

#[derive(Clone, Debug)]
pub struct StoredPolicy {
    identity: Identity,
    pub policy: Arc<Policy>,
}

impl From<NetworkPolicy> for StoredPolicy {
    fn from(policy: NetworkPolicy) -> Self {
        StoredPolicy { identity: Identity::of(&policy), policy: Arc::new(Policy::read(&policy)) }
    }
}

/// The cluster's DNS where it runs on nodes and not in pods. Policies are written for pods, so it counts as one:
/// with the labels of its Service, reached at the Service's addresses and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolver {
    pub namespace: String,
    pub labels: Labels,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<NamedPort>,
}

impl Resolver {
    /// `None` for a Service that selects pods: their own labels and ports count then.
    pub fn read(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        if spec.selector.as_ref().is_some_and(|selector| !selector.is_empty()) {
            return None;
        }
        let port = |port: &api::core::v1::ServicePort| {
            Some(NamedPort {
                name: port.name.clone().unwrap_or_default(),
                protocol: Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"))?,
                number: u16::try_from(port.port).ok()?,
            })
        };
        Some(Resolver {
            namespace: service.namespace().to_owned(),
            labels: service.metadata.labels.clone().unwrap_or_default(),
            addresses: spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect(),
            ports: spec.ports.iter().flatten().filter_map(port).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_a_pod_only_what_policies_look_at_is_kept() {
        let pod = json!({
            "metadata": {"name": "a", "namespace": "x", "uid": "1", "labels": {"app": "a"},
                "annotations": {MIRROR: "static"}},
            "spec": {
                "nodeName": "n",
                "containers": [{"name": "c", "ports": [
                    {"name": "web", "containerPort": 80}, {"containerPort": 81},
                    {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                ]}],
                "initContainers": [
                    {"name": "i", "ports": [{"name": "once", "containerPort": 1}]},
                    {"name": "s", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 2}]},
                ],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        });
        let pod = Pod::from(ApiPod::from_value(pod).unwrap());
        let ports: Vec<_> =
            pod.facts.ports.iter().map(|p| (p.name.as_str(), p.protocol.name(), p.number)).collect();
        assert_eq!(ports, [("web", "tcp", 80), ("dns", "udp", 53), ("side", "tcp", 2)]);
        assert_eq!(pod.facts.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert!(pod.has_uid("1") && pod.has_uid("static") && !pod.has_uid("2"));
        assert!(!pod.facts.is_over && !pod.facts.is_host_network);
    }

    #[test]
    fn a_resolver_is_a_service_without_pods() {
        let service = |selector: serde_json::Value| {
            let service = json!({"metadata": {"name": "kube-dns", "namespace": "kube-system"}, "spec": {
                "clusterIPs": ["10.43.0.10"], "selector": selector, "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}],
            }});
            Resolver::read(&Service::from_value(service).unwrap())
        };
        assert!(service(json!({"k8s-app": "kube-dns"})).is_none());
        assert_eq!(service(json!({})).unwrap().ports[0].number, 53);
    }
}
