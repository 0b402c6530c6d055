//! [`PodGroups`]: groups of pods that are scheduled together, and who of them is where.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use api::Object;
use api::core::v1::Pod;
use api::scheduling::v1alpha2::PodGroup;

use crate::PodInfo;

/// The key of the group that a pod belongs to.
pub fn group_of(pod: &Pod) -> Option<String> {
    let group = pod.spec.as_ref()?.scheduling_group.as_ref()?.pod_group_name.as_ref()?;
    Some(format!("{}/{group}", pod.namespace()))
}

/// Who belongs to a group, by keys.
#[derive(Default)]
struct Members {
    waiting: BTreeSet<String>,
    placed: BTreeSet<String>,
}

#[derive(Default)]
pub struct PodGroups {
    groups: HashMap<String, Arc<PodGroup>>,
    members: HashMap<String, Members>,
}

/// What a pod's group asks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The group is not there yet.
    Unknown,
    /// Each pod for itself.
    Basic,
    /// So many at once.
    Gang(usize),
}

impl PodGroups {
    /// Takes note of a group; `None` when it is gone.
    pub fn set(&mut self, key: &str, group: Option<Arc<PodGroup>>) {
        match group {
            Some(group) => drop(self.groups.insert(key.to_owned(), group)),
            None => drop(self.groups.remove(key)),
        }
    }

    pub fn get(&self, group: &str) -> Option<&Arc<PodGroup>> {
        self.groups.get(group)
    }

    pub fn policy(&self, group: &str) -> Policy {
        let Some(group) = self.groups.get(group) else { return Policy::Unknown };
        match &group.spec.scheduling_policy.gang {
            None => Policy::Basic,
            Some(gang) => Policy::Gang(usize::try_from(gang.min_count).unwrap_or(0)),
        }
    }

    /// The label within whose values, one of them, all pods of the group are to be.
    pub fn topology_key(&self, group: &str) -> Option<&str> {
        let constraints = self.groups.get(group)?.spec.scheduling_constraints.as_ref()?;
        constraints.topology.as_ref()?.first().map(|constraint| constraint.key.as_str())
    }

    /// Whether the group says anything of where its pods are to be.
    pub fn is_constrained(&self, group: &str) -> bool {
        self.groups.get(group).is_some_and(|group| group.spec.scheduling_constraints.is_some())
    }

    /// A pod without a node came, or changed.
    pub fn wait(&mut self, pod: &PodInfo) {
        if let Some(group) = &pod.group {
            let members = self.members.entry(group.clone()).or_default();
            members.placed.remove(&pod.key);
            members.waiting.insert(pod.key.clone());
        }
    }

    /// A pod has a node, by the API or by assumption.
    pub fn place(&mut self, pod: &PodInfo) {
        if let Some(group) = &pod.group {
            let members = self.members.entry(group.clone()).or_default();
            members.waiting.remove(&pod.key);
            members.placed.insert(pod.key.clone());
        }
    }

    /// A pod lost its place; it may wait again.
    pub fn take(&mut self, pod: &PodInfo) {
        if let Some(members) = pod.group.as_ref().and_then(|group| self.members.get_mut(group)) {
            members.placed.remove(&pod.key);
        }
        self.forget_empty(pod);
    }

    /// A pod waits no more.
    pub fn leave(&mut self, pod: &PodInfo) {
        if let Some(members) = pod.group.as_ref().and_then(|group| self.members.get_mut(group)) {
            members.waiting.remove(&pod.key);
        }
        self.forget_empty(pod);
    }

    fn forget_empty(&mut self, pod: &PodInfo) {
        if let Some(group) = &pod.group
            && self.members.get(group).is_some_and(|m| m.waiting.is_empty() && m.placed.is_empty())
        {
            self.members.remove(group);
        }
    }

    /// The pods of a group that have no node.
    pub fn waiting(&self, group: &str) -> impl Iterator<Item = &String> {
        self.members.get(group).into_iter().flat_map(|members| &members.waiting)
    }

    /// Those that have one.
    pub fn placed_keys(&self, group: &str) -> impl Iterator<Item = &String> {
        self.members.get(group).into_iter().flat_map(|members| &members.placed)
    }

    /// How many pods of a group there are.
    pub fn all(&self, group: &str) -> usize {
        self.members.get(group).map_or(0, |members| members.waiting.len() + members.placed.len())
    }

    /// How many have a node.
    pub fn placed(&self, group: &str) -> usize {
        self.members.get(group).map_or(0, |members| members.placed.len())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::pod_info;

    #[test]
    fn members_are_counted_once() {
        let pod = |name: &str| {
            pod_info(json!({"metadata": {"name": name, "namespace": "ns"},
                "spec": {"containers": [], "schedulingGroup": {"podGroupName": "g"}}}))
        };
        let mut groups = PodGroups::default();
        let (a, b) = (pod("a"), pod("b"));
        groups.wait(&a);
        groups.wait(&a);
        groups.wait(&b);
        groups.place(&a);
        assert_eq!((groups.all("ns/g"), groups.placed("ns/g")), (2, 1));
        assert_eq!(groups.waiting("ns/g").collect::<Vec<_>>(), ["ns/b"]);
        groups.take(&a);
        groups.leave(&b);
        assert!(groups.members.is_empty());
    }

    #[test]
    fn a_group_says_how_many_are_placed_at_once() {
        let group = |policy: serde_json::Value| {
            PodGroup::from_value(json!({"metadata": {"name": "g"}, "spec": {"schedulingPolicy": policy}}))
                .unwrap()
        };
        let mut groups = PodGroups::default();
        assert_eq!(groups.policy("ns/g"), Policy::Unknown);
        groups.set("ns/g", Some(group(json!({"gang": {"minCount": 3}})).into()));
        assert_eq!(groups.policy("ns/g"), Policy::Gang(3));
        groups.set("ns/g", Some(group(json!({"basic": {}})).into()));
        assert_eq!(groups.policy("ns/g"), Policy::Basic);
        groups.set("ns/g", None);
        assert_eq!(groups.policy("ns/g"), Policy::Unknown);
    }
}
