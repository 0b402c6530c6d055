//! [`Cluster`]: nodes and pods as the scheduler knows them, its own unconfirmed placements included.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::Object;
use api::core::v1::{Node, Pod};

use crate::pod::Labels;
use crate::volumes::Volumes;
use crate::{NodeInfo, PodInfo};

/// What became different, for plugins to judge whether a refused pod may now fit.
#[derive(Clone, Debug)]
pub enum Change {
    NodeAdded(Arc<Node>),
    NodeUpdated {
        old: Arc<Node>,
        new: Arc<Node>,
    },
    /// A pod came onto a node, or changed there.
    PodPlaced(Arc<PodInfo>),
    /// A pod left its node, or needs its room no more.
    PodGone(Arc<PodInfo>),
    /// The waiting pod itself.
    PodItself,
    /// A claim of a namespace.
    Claim {
        namespace: String,
        name: String,
    },
    /// A volume, a storage class, or what a CSI driver says of itself.
    Volumes,
    /// Something else that plugins read: a namespace, a disruption budget, a Service.
    Other,
}

#[derive(Default)]
pub struct Cluster {
    /// In a fixed order, so that all nodes get their turn. A node without `node` is known by its pods only.
    nodes: Vec<NodeInfo>,
    index: HashMap<String, usize>,
    /// Where each pod is counted.
    placed: HashMap<String, String>,
    /// Pods that were placed and are not confirmed by the API yet.
    assumed: HashMap<String, String>,
    /// Pods that wait for victims to leave a node.
    nominated: HashMap<String, Vec<Arc<PodInfo>>>,
    /// How many pods of any affinity there are: none makes inter-pod affinity free of cost.
    with_affinity: usize,
    pub namespaces: BTreeMap<String, Labels>,
    /// Selectors of Services and controllers, by namespace, for spreading by default.
    pub groups: Groups,
    pub volumes: Volumes,
}

/// The selectors that say which pods belong together, by namespace.
pub type Groups = HashMap<String, Vec<apimachinery::selector::LabelSelector>>;

impl Cluster {
    /// The nodes that exist.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &NodeInfo> + Clone {
        self.nodes.iter()
    }

    pub fn node_at(&self, index: usize) -> &NodeInfo {
        &self.nodes[index]
    }

    /// For [`Cluster::node_at`].
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.index.get(name).map(|at| &self.nodes[*at])
    }

    pub fn has_affinity_pods(&self) -> bool {
        self.with_affinity > 0
    }

    pub fn nominated(&self, node: &str) -> &[Arc<PodInfo>] {
        self.nominated.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    /// Takes note of a node. Pods that came before it are found by the caller.
    pub fn set_node(&mut self, node: Arc<Node>) -> Option<Change> {
        match self.index.get(node.name()) {
            Some(at) => {
                let info = &mut self.nodes[*at];
                let old = info.node.clone()?;
                if Arc::ptr_eq(&old, &node) {
                    return None;
                }
                info.set_node(Some(node.clone()));
                Some(Change::NodeUpdated { old, new: node })
            }
            None => {
                self.index.insert(node.name().to_owned(), self.nodes.len());
                self.nodes.push(NodeInfo::new(node.clone()));
                Some(Change::NodeAdded(node))
            }
        }
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.index.remove(name) else { return };
        let info = self.nodes.swap_remove(at);
        for pod in &info.pods {
            self.placed.remove(&pod.key);
            self.with_affinity -= usize::from(pod.has_affinity());
        }
        if let Some(moved) = self.nodes.get(at) {
            self.index.insert(moved.name().to_owned(), at);
        }
    }

    /// Counts a pod on its node, in the place of what was known of it. A pod of an unknown node is not counted.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>) -> Option<Change> {
        self.assumed.remove(&pod.key);
        let before = self.take(&pod.key);
        if pod.node_name().is_empty() || pod.is_terminal() {
            return before.map(Change::PodGone);
        }
        let node = pod.node_name().to_owned();
        self.place(pod.clone(), &node);
        Some(Change::PodPlaced(pod))
    }

    pub fn remove_pod(&mut self, key: &str) -> Option<Change> {
        self.assumed.remove(key);
        self.take(key).map(Change::PodGone)
    }

    /// Takes the room of a pod before the API knows of it.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.take(&pod.key);
        self.assumed.insert(pod.key.clone(), node.to_owned());
        self.place(pod, node);
    }

    /// The binding failed: gives the room back.
    pub fn forget(&mut self, key: &str) -> Option<Change> {
        self.assumed.remove(key)?;
        self.take(key).map(Change::PodGone)
    }

    pub fn is_assumed(&self, key: &str) -> bool {
        self.assumed.contains_key(key)
    }

    /// Where the pod is counted, the pod as it was counted.
    pub fn pod(&self, key: &str) -> Option<&Arc<PodInfo>> {
        let node = self.node(self.placed.get(key)?)?;
        node.pods.iter().find(|pod| pod.key == key)
    }

    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.withdraw(&pod.key);
        self.nominated.entry(node.to_owned()).or_default().push(pod);
    }

    pub fn withdraw(&mut self, key: &str) {
        self.nominated.retain(|_, pods| {
            pods.retain(|pod| pod.key != key);
            !pods.is_empty()
        });
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        let Some(at) = self.index.get(node) else { return };
        self.placed.insert(pod.key.clone(), node.to_owned());
        self.with_affinity += usize::from(pod.has_affinity());
        self.nodes[*at].add_pod(pod);
    }

    fn take(&mut self, key: &str) -> Option<Arc<PodInfo>> {
        let node = self.placed.remove(key)?;
        let pod = self.nodes[*self.index.get(&node)?].remove_pod(key)?;
        self.with_affinity -= usize::from(pod.has_affinity());
        Some(pod)
    }
}

/// Whether what the scheduler reads of a node differs.
pub fn node_differs(old: &Node, new: &Node) -> bool {
    let read = |node: &Node| {
        let status = node.status.as_ref();
        (
            node.metadata.labels.clone(),
            node.spec.as_ref().map(|spec| (spec.taints.clone(), spec.unschedulable)),
            status.map(|status| (status.allocatable.clone(), status.images.clone())),
        )
    };
    read(old) != read(new)
}

/// Whether a pod is one that some scheduler has to place.
pub fn is_waiting(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    spec.node_name.as_deref().unwrap_or_default().is_empty()
        && pod.metadata.deletion_timestamp.is_none()
        && !matches!(phase, Some("Succeeded" | "Failed"))
}
