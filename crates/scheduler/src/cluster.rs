//! [`Cluster`]: nodes and pods as the scheduler knows them, its own unconfirmed placements included.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use api::Object;
use api::core::v1::{Node, Pod};

use crate::devices::Devices;
use crate::groups::Groups;
use crate::pod::Labels;
use crate::pod_groups::PodGroups;
use crate::tally::{Count, Namespaces, Question, Tallies, Wish};
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
    NodeGone(Arc<Node>),
    /// A pod came onto a node.
    PodPlaced(Arc<PodInfo>),
    /// A pod changed on its node.
    PodUpdated {
        old: Arc<PodInfo>,
        new: Arc<PodInfo>,
    },
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
    /// Something of dynamic resources: claims, slices, device classes.
    Devices,
    /// A group of pods, by its key: it came, or one more pod of it did.
    Group(String),
    /// Something else that plugins read: a namespace, a disruption budget, a Service.
    Other,
}

/// The kinds of changes, by which plugins say what may ever help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    NodeAdded,
    NodeUpdated,
    NodeGone,
    PodPlaced,
    PodUpdated,
    PodGone,
    PodItself,
    Claim,
    Volumes,
    Devices,
    Group,
    Other,
}

impl Kind {
    /// What upstream calls it.
    ///
    /// Upstream: pkg/scheduler/framework/events.go
    pub fn event(self) -> &'static str {
        match self {
            Kind::NodeAdded => "NodeAdd",
            Kind::NodeUpdated => "NodeUpdate",
            Kind::NodeGone => "NodeDelete",
            Kind::PodPlaced => "AssignedPodAdd",
            Kind::PodUpdated => "AssignedPodUpdate",
            Kind::PodGone => "AssignedPodDelete",
            Kind::PodItself => "UnscheduledPodUpdate",
            Kind::Claim => "PersistentVolumeClaimUpdate",
            Kind::Volumes => "PersistentVolumeUpdate",
            Kind::Devices => "ResourceClaimUpdate",
            Kind::Group => "PodGroupAdd",
            Kind::Other => "WildCardEvent",
        }
    }
}

impl Change {
    pub fn kind(&self) -> Kind {
        match self {
            Change::NodeAdded(_) => Kind::NodeAdded,
            Change::NodeUpdated { .. } => Kind::NodeUpdated,
            Change::NodeGone(_) => Kind::NodeGone,
            Change::PodPlaced(_) => Kind::PodPlaced,
            Change::PodUpdated { .. } => Kind::PodUpdated,
            Change::PodGone(_) => Kind::PodGone,
            Change::PodItself => Kind::PodItself,
            Change::Claim { .. } => Kind::Claim,
            Change::Volumes => Kind::Volumes,
            Change::Devices => Kind::Devices,
            Change::Group(_) => Kind::Group,
            Change::Other => Kind::Other,
        }
    }
}

/// Where a pod is counted.
struct Placed {
    node: String,
    /// Its place among the node's pods.
    at: usize,
}

#[derive(Default)]
pub struct Cluster {
    nodes: Vec<NodeInfo>,
    /// By node: a number that is never used again once something of the node changes, its pods and those that wait
    /// for its room included. Beside the nodes, since thousands are compared at a time.
    versions: Vec<u64>,
    /// The last of these numbers.
    version: u64,
    index: HashMap<String, usize>,
    /// How many nodes ever came.
    arrivals: u64,
    /// The nodes by index, as they get their turn; empty when it has to be found out again.
    turns: Vec<usize>,
    /// The only nodes that are looked at while a group is tried within a part of the cluster, in the same order.
    confined: Option<Vec<usize>>,
    /// How many nodes have each image.
    images: HashMap<String, usize>,
    placed: HashMap<String, Placed>,
    /// Pods that were placed and are not confirmed by the API yet.
    assumed: HashSet<String>,
    /// Pods that wait for victims to leave a node.
    nominated: HashMap<String, Vec<Arc<PodInfo>>>,
    nominated_to: HashMap<String, String>,
    /// How many of those keep other pods away.
    nominated_away: usize,
    tallies: Tallies,
    namespaces: Namespaces,
    pub groups: Groups,
    pub pod_groups: PodGroups,
    pub volumes: Volumes,
    pub devices: Devices,
}

impl Cluster {
    /// The nodes that exist.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &NodeInfo> + Clone {
        self.nodes.iter()
    }

    /// How many nodes, pods on them, and assumed pods there are.
    pub fn size(&self) -> (usize, usize, usize) {
        (self.nodes.len(), self.placed.len(), self.assumed.len())
    }

    pub fn node_at(&self, index: usize) -> &NodeInfo {
        &self.nodes[index]
    }

    /// Puts the nodes in the order in which they get their turn: one of each zone after the other, so that a part of
    /// them is of all zones.
    ///
    /// Upstream: pkg/scheduler/backend/cache/node_tree.go list
    pub fn take_turns(&mut self) {
        if self.turns.len() != self.nodes.len() {
            self.turns = take_turns(&self.nodes);
        }
    }

    /// The nodes that are looked at, by index and in the order of their turns, after [`Cluster::take_turns`].
    pub fn turns(&self) -> &[usize] {
        self.confined.as_ref().unwrap_or(&self.turns)
    }

    /// Has only these nodes looked at, given as [`Cluster::turns`] has them, or all.
    pub fn confine(&mut self, nodes: Option<Vec<usize>>) {
        self.confined = nodes;
    }

    /// Whether the node is looked at.
    pub fn is_within(&self, node: usize) -> bool {
        self.confined.as_ref().is_none_or(|nodes| nodes.contains(&node))
    }

    /// Changes whenever anything of the node does.
    pub fn version(&self, node: usize) -> u64 {
        self.versions[node]
    }

    fn touch(&mut self, node: usize) {
        self.version += 1;
        self.versions[node] = self.version;
    }

    /// How many nodes have the image.
    pub fn nodes_with_image(&self, name: &str) -> usize {
        self.images.get(name).copied().unwrap_or(0)
    }

    /// For [`Cluster::node_at`].
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.index.get(name).map(|at| &self.nodes[*at])
    }

    /// The pods that wait for the room of a node.
    pub fn nominated(&self, node: &str) -> &[Arc<PodInfo>] {
        self.nominated.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether a pod that waits for victims to leave wants others away from it.
    pub fn expects_to_keep_away(&self) -> bool {
        self.nominated_away > 0
    }

    /// Where the pod waits for room, if it does.
    pub fn nominated_to(&self, key: &str) -> Option<&str> {
        self.nominated_to.get(key).map(String::as_str)
    }

    /// Has these questions counted, so that they can be answered.
    pub fn ask<'a>(&mut self, questions: impl IntoIterator<Item = &'a Arc<Question>>) {
        let before = self.tallies.asked();
        for question in questions {
            self.tallies.ask(question, &self.nodes, &self.namespaces);
        }
        self.tallies.trim(before);
    }

    /// The answer to a question that was asked before.
    pub fn answer(&self, question: &Question) -> Count<'_> {
        self.tallies.answer(question)
    }

    #[cfg(test)]
    pub fn questions(&self) -> usize {
        self.tallies.questions()
    }

    /// What placed pods want of this one.
    pub fn wishes<'a>(
        &'a self,
        pod: &'a PodInfo,
        which: impl Fn(Wish) -> bool + 'a,
    ) -> impl Iterator<Item = (&'a str, Wish, Count<'a>)> + 'a {
        self.tallies.wishes(pod, &self.namespaces, which)
    }

    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Takes note of a namespace's labels; `None` when it is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        match labels {
            Some(labels) => drop(self.namespaces.insert(name.to_owned(), labels)),
            None => drop(self.namespaces.remove(name)),
        }
        self.tallies.namespace_changed();
    }

    /// Takes note of a node. Pods that came before it are found by the caller.
    pub fn set_node(&mut self, node: Arc<Node>) -> Option<Change> {
        let Some(at) = self.index.get(node.name()).copied() else {
            let at = self.nodes.len();
            self.index.insert(node.name().to_owned(), at);
            let mut info = NodeInfo::new(node.clone());
            info.index = at;
            info.awaited = self.nominated.contains_key(node.name());
            info.arrival = self.arrivals;
            self.arrivals += 1;
            self.tallies.join(at, &info);
            count_images(&mut self.images, &info, true);
            self.nodes.push(info);
            self.versions.push(0);
            self.touch(at);
            self.turns.clear();
            return Some(Change::NodeAdded(node));
        };
        let old = self.nodes[at].node.clone()?;
        if Arc::ptr_eq(&old, &node) {
            return None;
        }
        let choices = |node: &Node| {
            (node.metadata.labels.clone(), node.spec.as_ref().and_then(|spec| spec.taints.clone()))
        };
        let moves = choices(&old) != choices(&node);
        if moves {
            self.leave(at);
            self.turns.clear();
        }
        count_images(&mut self.images, &self.nodes[at], false);
        self.nodes[at].set_node(Some(node.clone()));
        self.touch(at);
        count_images(&mut self.images, &self.nodes[at], true);
        if moves {
            self.tallies.join(at, &self.nodes[at]);
            let Cluster { nodes, tallies, namespaces, .. } = self;
            nodes[at].pods.iter().for_each(|pod| tallies.count(pod, at, 1, nodes, namespaces));
        }
        Some(Change::NodeUpdated { old, new: node })
    }

    /// The node's pods, and the node, are counted no more.
    fn leave(&mut self, at: usize) {
        let Cluster { nodes, tallies, namespaces, .. } = self;
        nodes[at].pods.iter().for_each(|pod| tallies.count(pod, at, -1, nodes, namespaces));
        tallies.leave(at, &nodes[at]);
    }

    pub fn remove_node(&mut self, name: &str) -> Option<Change> {
        let at = self.index.remove(name)?;
        self.leave(at);
        self.tallies.swap_remove(at, self.nodes.len());
        let info = self.nodes.swap_remove(at);
        self.versions.swap_remove(at);
        self.turns.clear();
        count_images(&mut self.images, &info, false);
        for pod in &info.pods {
            self.placed.remove(&pod.key);
            self.assumed.remove(&pod.key);
        }
        if let Some(moved) = self.nodes.get_mut(at) {
            moved.index = at;
            self.index.insert(moved.name().to_owned(), at);
        }
        info.node.map(Change::NodeGone)
    }

    /// Counts a pod on its node, in the place of what was known of it. A pod of an unknown node is not counted.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>) -> Option<Change> {
        let assumed = self.assumed.remove(&pod.key);
        let before = self.take(&pod.key);
        if pod.node_name().is_empty() || pod.is_terminal() {
            return before.map(Change::PodGone);
        }
        let node = pod.node_name().to_owned();
        self.place(pod.clone(), &node);
        Some(match before {
            Some(old) if !assumed && old.uid() == pod.uid() => Change::PodUpdated { old, new: pod },
            _ => Change::PodPlaced(pod),
        })
    }

    /// The API shows a pod as it was assumed: there is nothing to count anew. False when that is not so.
    pub fn confirm(&mut self, key: &str, pod: &Arc<Pod>) -> Option<Arc<PodInfo>> {
        if !self.assumed.contains(key) {
            return None;
        }
        let Placed { node, at } = self.placed.get(key)?;
        let info = &mut self.nodes[*self.index.get(node)?];
        let assumed = info.pods.get_mut(*at)?;
        let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let same = bound == Some(node)
            && assumed.uid() == pod.uid()
            && assumed.pod.metadata.labels == pod.metadata.labels
            && assumed.pod.metadata.generation == pod.metadata.generation
            && pod.metadata.deletion_timestamp.is_none()
            && !is_terminal(pod);
        if !same {
            return None;
        }
        self.assumed.remove(key);
        Some(assumed.clone())
    }

    pub fn remove_pod(&mut self, key: &str) -> Option<Change> {
        self.assumed.remove(key);
        self.take(key).map(Change::PodGone)
    }

    /// Takes the room of a pod before the API knows of it.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.take(&pod.key);
        self.assumed.insert(pod.key.clone());
        self.place(pod, node);
    }

    /// The binding failed: gives the room back.
    pub fn forget(&mut self, key: &str) -> Option<Change> {
        if !self.assumed.remove(key) {
            return None;
        }
        let pod = self.take(key)?;
        self.pod_groups.wait(&pod);
        Some(Change::PodGone(pod))
    }

    pub fn is_assumed(&self, key: &str) -> bool {
        self.assumed.contains(key)
    }

    /// Where the pod is counted, the pod as it was counted.
    pub fn pod(&self, key: &str) -> Option<&Arc<PodInfo>> {
        self.node_of(key)?.pods.get(self.placed.get(key)?.at)
    }

    /// The node that the pod is counted on.
    pub fn node_of(&self, key: &str) -> Option<&NodeInfo> {
        self.node(&self.placed.get(key)?.node)
    }

    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.withdraw(&pod.key);
        if let Some(at) = self.index.get(node).copied() {
            self.nodes[at].awaited = true;
            self.touch(at);
        }
        self.nominated_to.insert(pod.key.clone(), node.to_owned());
        self.nominated_away += usize::from(!pod.required_anti_affinity.is_empty());
        self.nominated.entry(node.to_owned()).or_default().push(pod);
    }

    /// True when the pod was nominated.
    pub fn withdraw(&mut self, key: &str) -> bool {
        let Some(node) = self.nominated_to.remove(key) else { return false };
        if let Some(pods) = self.nominated.get_mut(&node) {
            if let Some(at) = pods.iter().position(|pod| pod.key == key) {
                let pod = pods.swap_remove(at);
                self.nominated_away -= usize::from(!pod.required_anti_affinity.is_empty());
            }
            if pods.is_empty() {
                self.nominated.remove(&node);
            }
        }
        if let Some(at) = self.index.get(&node).copied() {
            self.nodes[at].awaited = self.nominated.contains_key(&node);
            self.touch(at);
        }
        true
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        let Some(index) = self.index.get(node).copied() else { return };
        let at = self.nodes[index].pods.len();
        self.placed.insert(pod.key.clone(), Placed { node: node.to_owned(), at });
        self.tallies.count(&pod, index, 1, &self.nodes, &self.namespaces);
        self.pod_groups.place(&pod);
        self.nodes[index].add_pod(pod);
        self.touch(index);
    }

    fn take(&mut self, key: &str) -> Option<Arc<PodInfo>> {
        let Placed { node, at } = self.placed.remove(key)?;
        let index = *self.index.get(&node)?;
        let info = &mut self.nodes[index];
        let pod = info.remove_pod_at(at);
        if let Some(moved) = info.pods.get(at)
            && let Some(placed) = self.placed.get_mut(&moved.key)
        {
            placed.at = at;
        }
        self.touch(index);
        self.tallies.count(&pod, index, -1, &self.nodes, &self.namespaces);
        self.pod_groups.take(&pod);
        Some(pod)
    }
}

/// One node of each zone after the other; zones, and the nodes of each, in the order in which they came.
fn take_turns(nodes: &[NodeInfo]) -> Vec<usize> {
    let mut by_arrival: Vec<usize> = (0..nodes.len()).collect();
    by_arrival.sort_unstable_by_key(|at| nodes[*at].arrival);
    let mut numbers: HashMap<(&str, &str), usize> = HashMap::new();
    let mut zones: Vec<Vec<usize>> = Vec::new();
    for at in by_arrival {
        let zone = *numbers.entry(nodes[at].zone()).or_insert_with(|| {
            zones.push(Vec::new());
            zones.len() - 1
        });
        zones[zone].push(at);
    }
    let longest = zones.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest).flat_map(|nth| zones.iter().filter_map(move |zone| zone.get(nth).copied())).collect()
}

fn count_images(images: &mut HashMap<String, usize>, info: &NodeInfo, comes: bool) {
    for name in info.images.keys() {
        match images.get_mut(name) {
            Some(nodes) if comes => *nodes += 1,
            Some(nodes) if *nodes > 1 => *nodes -= 1,
            Some(_) => drop(images.remove(name)),
            None if comes => drop(images.insert(name.clone(), 1)),
            None => {}
        }
    }
}

/// Succeeded or failed: takes no room any more.
pub fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether what the scheduler reads of a node differs.
pub fn node_differs(old: &Node, new: &Node) -> bool {
    let read = |node: &Node| {
        let status = node.status.as_ref();
        (
            node.metadata.labels.clone(),
            node.spec.as_ref().map(|spec| (spec.taints.clone(), spec.unschedulable)),
            status.map(|status| {
                (status.allocatable.clone(), status.images.clone(), status.declared_features.clone())
            }),
        )
    };
    read(old) != read(new)
}

/// Whether a pod is one that some scheduler has to place.
pub fn is_waiting(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.node_name.as_deref().unwrap_or_default().is_empty()
        && pod.metadata.deletion_timestamp.is_none()
        && !is_terminal(pod)
}
