//! [`NodeInfo`]: a node, the pods on it, and the room that they leave.

use std::collections::HashMap;
use std::sync::Arc;

use api::Object;
use api::core::v1::{Node, Taint};

use crate::pod::{HostPort, Labels, PodInfo};
use crate::resources::Resources;

/// What pods ask for together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub requested: Resources,
    pub pods: usize,
}

impl Load {
    pub fn add(&mut self, pod: &PodInfo) {
        self.requested.add(&pod.requests);
        self.pods += 1;
    }

    pub fn sub(&mut self, pod: &PodInfo) {
        self.requested.sub(&pod.requests);
        self.pods -= 1;
    }
}

#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// `None` while only pods speak of the node.
    pub node: Option<Arc<Node>>,
    /// Its place in the cluster.
    pub index: usize,
    /// The how many-eth of the nodes that ever came it is.
    pub arrival: u64,
    /// Whether pods wait for its room.
    pub awaited: bool,
    pub pods: Vec<Arc<PodInfo>>,
    pub allocatable: Resources,
    pub load: Load,
    /// The load by the pods' priorities, the least important first: what evictions would leave is known without
    /// looking at the pods.
    by_priority: Vec<(i32, Load)>,
    /// What is requested as scoring counts it.
    pub scoring_requested: Resources,
    pub host_ports: Vec<HostPort>,
    /// Sizes by name of the images that the node has.
    pub images: Arc<HashMap<String, i64>>,
    /// Beside the node itself, since they are looked at for every pod.
    taints: Vec<Taint>,
    unschedulable: bool,
}

static NO_LABELS: Labels = Labels::new();

impl NodeInfo {
    pub fn new(node: Arc<Node>) -> Self {
        let mut info = NodeInfo::default();
        info.set_node(Some(node));
        info
    }

    pub fn set_node(&mut self, node: Option<Arc<Node>>) {
        let status = node.as_ref().and_then(|node| node.status.as_ref());
        self.allocatable = Resources::from_list(status.and_then(|status| status.allocatable.as_ref()));
        let images: HashMap<String, i64> = status
            .and_then(|status| status.images.as_ref())
            .into_iter()
            .flatten()
            .flat_map(|image| {
                let size = image.size_bytes.unwrap_or(0);
                image.names.iter().flatten().map(move |name| (name.clone(), size))
            })
            .collect();
        self.images = Arc::new(images);
        let spec = node.as_ref().and_then(|node| node.spec.as_ref());
        self.taints = spec.and_then(|spec| spec.taints.clone()).unwrap_or_default();
        self.unschedulable = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
        self.node = node;
    }

    pub fn name(&self) -> &str {
        self.node.as_ref().map_or("", |node| node.name())
    }

    pub fn labels(&self) -> &Labels {
        self.node.as_ref().and_then(|node| node.metadata.labels.as_ref()).unwrap_or(&NO_LABELS)
    }

    pub fn taints(&self) -> &[Taint] {
        &self.taints
    }

    pub fn is_unschedulable(&self) -> bool {
        self.unschedulable
    }

    /// The zone that the node is in; equal for two nodes without any.
    ///
    /// Upstream: staging/src/k8s.io/component-helpers/node/topology/helpers.go GetZoneKey
    pub fn zone(&self) -> (&str, &str) {
        let label = |new: &str, old: &str| {
            let labels = self.labels();
            labels.get(old).or_else(|| labels.get(new)).map_or("", String::as_str)
        };
        (
            label("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"),
            label("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"),
        )
    }

    /// The load without the pods that are less important; `None` when there are none.
    pub fn load_without_less_important(&self, than: i32) -> Option<Load> {
        let less = self.by_priority.partition_point(|(priority, _)| *priority < than);
        (less > 0).then(|| {
            let mut load = Load::default();
            for (_, tier) in &self.by_priority[less..] {
                load.requested.add(&tier.requested);
                load.pods += tier.pods;
            }
            load
        })
    }

    pub fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.load.add(&pod);
        let tier = self.by_priority.partition_point(|(priority, _)| *priority < pod.priority);
        if self.by_priority.get(tier).is_none_or(|(priority, _)| *priority != pod.priority) {
            self.by_priority.insert(tier, (pod.priority, Load::default()));
        }
        self.by_priority[tier].1.add(&pod);
        self.scoring_requested.add(&pod.scoring_requests);
        self.host_ports.extend(pod.host_ports.iter().cloned());
        self.pods.push(pod);
    }

    /// Removes the pod at this place; the last one takes it.
    pub fn remove_pod_at(&mut self, at: usize) -> Arc<PodInfo> {
        let pod = self.pods.swap_remove(at);
        self.load.sub(&pod);
        let tier = self.by_priority.partition_point(|(priority, _)| *priority < pod.priority);
        self.by_priority[tier].1.sub(&pod);
        if self.by_priority[tier].1.pods == 0 {
            self.by_priority.remove(tier);
        }
        self.scoring_requested.sub(&pod.scoring_requests);
        for port in &pod.host_ports {
            if let Some(at) = self.host_ports.iter().position(|p| p == port) {
                self.host_ports.swap_remove(at);
            }
        }
        pod
    }
}
