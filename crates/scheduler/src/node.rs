//! [`NodeInfo`]: a node, the pods on it, and the room that they leave.

use std::collections::HashMap;
use std::sync::Arc;

use api::Object;
use api::core::v1::{Node, Taint};

use crate::pod::{HostPort, Labels, PodInfo};
use crate::resources::Resources;

#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// `None` while only pods speak of the node.
    pub node: Option<Arc<Node>>,
    /// Its place in the cluster.
    pub index: usize,
    pub pods: Vec<Arc<PodInfo>>,
    pub allocatable: Resources,
    pub requested: Resources,
    /// What is requested as scoring counts it.
    pub scoring_requested: Resources,
    pub host_ports: Vec<HostPort>,
    /// Sizes by name of the images that the node has.
    pub images: Arc<HashMap<String, i64>>,
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
        self.node = node;
    }

    pub fn name(&self) -> &str {
        self.node.as_ref().map_or("", |node| node.name())
    }

    pub fn labels(&self) -> &Labels {
        self.node.as_ref().and_then(|node| node.metadata.labels.as_ref()).unwrap_or(&NO_LABELS)
    }

    pub fn taints(&self) -> &[Taint] {
        let spec = self.node.as_ref().and_then(|node| node.spec.as_ref());
        spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
    }

    pub fn is_unschedulable(&self) -> bool {
        let spec = self.node.as_ref().and_then(|node| node.spec.as_ref());
        spec.and_then(|spec| spec.unschedulable).unwrap_or(false)
    }

    pub fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.scoring_requested.add(&pod.scoring_requests);
        self.host_ports.extend(pod.host_ports.iter().cloned());
        self.pods.push(pod);
    }

    pub fn remove_pod(&mut self, key: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|pod| pod.key == key)?;
        Some(self.remove_pod_at(at))
    }

    /// Removes the pod at this place; the last one takes it.
    pub fn remove_pod_at(&mut self, at: usize) -> Arc<PodInfo> {
        let pod = self.pods.swap_remove(at);
        self.requested.sub(&pod.requests);
        self.scoring_requested.sub(&pod.scoring_requests);
        for port in &pod.host_ports {
            if let Some(at) = self.host_ports.iter().position(|p| p == port) {
                self.host_ports.swap_remove(at);
            }
        }
        pod
    }
}
