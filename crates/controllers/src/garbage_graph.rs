//! Who owns whom, and what that means for an object: the garbage collector's decisions, without its acts.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use api::meta::OwnerReference;
use client::Propagation;
use controller_runtime::{ApiResource, Event, Metadata};

pub(crate) const FOREGROUND: &str = "foregroundDeletion";
pub(crate) const ORPHAN: &str = "orphan";

pub(crate) type Uid = String;

/// An object with the resource it is served under.
#[derive(Clone)]
pub(crate) struct Node {
    pub resource: Arc<ApiResource>,
    pub object: Arc<Metadata>,
}

impl Node {
    fn has_finalizer(&self, name: &str) -> bool {
        self.object.finalizers.iter().any(|finalizer| finalizer == name)
    }

    /// Whether it is deleted in the foreground: after its dependents.
    fn waits_for_dependents(&self) -> bool {
        self.object.deleting && self.has_finalizer(FOREGROUND)
    }
}

/// All objects, by uid, with their dependents.
#[derive(Default)]
pub(crate) struct Graph {
    nodes: HashMap<Uid, Node>,
    dependents: HashMap<Uid, HashSet<Uid>>,
}

/// What is known of an owner that the graph does not hold: asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    Gone,
    /// It is there, or cannot be asked for: its dependents are kept.
    Kept,
}

/// What is to be done with an object.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    Nothing,
    /// Look at these again: they may be deletable now.
    Visit(Vec<Uid>),
    Delete(Propagation),
    /// Take these owners out, and keep the object.
    DropOwners(Vec<Uid>),
    /// Owners wait for it while it waits for a dependent that waits too: it no longer blocks them.
    Unblock,
    /// Take the object out of its dependents' owners, then the finalizer off.
    Orphan(Vec<Uid>),
    RemoveFinalizer(&'static str),
    /// The server must be asked about these owners first.
    Ask(Vec<OwnerReference>),
}

impl Graph {
    pub fn node(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// Takes in a change, and returns what it makes worth a visit.
    pub fn observe(&mut self, resource: &Arc<ApiResource>, event: &Event<Metadata>) -> Vec<Uid> {
        let object = event.object();
        let uid = object.uid.clone();
        let old: HashSet<Uid> = self.nodes.get(&uid).map(owners).unwrap_or_default();
        if matches!(event, Event::Deleted(_)) {
            self.nodes.remove(&uid);
            self.unlink(&uid, &old);
            let mut visit: Vec<Uid> = self.dependents.get(&uid).into_iter().flatten().cloned().collect();
            visit.extend(old);
            return visit;
        }
        let node = Node { resource: resource.clone(), object: object.clone() };
        let new = owners(&node);
        self.unlink(&uid, &old.difference(&new).cloned().collect());
        for owner in &new {
            self.dependents.entry(owner.clone()).or_default().insert(uid.clone());
        }
        let finalizing =
            node.object.deleting && (node.has_finalizer(FOREGROUND) || node.has_finalizer(ORPHAN));
        let mut visit: Vec<Uid> = Vec::new();
        if finalizing || !new.is_empty() {
            visit.push(uid.clone());
        }
        // Owners that wait for us may wait no longer.
        visit.extend(
            old.union(&new).filter(|o| self.nodes.get(*o).is_some_and(Node::waits_for_dependents)).cloned(),
        );
        self.nodes.insert(uid, node);
        visit
    }

    fn unlink(&mut self, uid: &str, owners: &HashSet<Uid>) {
        for owner in owners {
            if let Some(dependents) = self.dependents.get_mut(owner) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
    }

    fn dependents_of(&self, uid: &str) -> impl Iterator<Item = &Node> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|dependent| self.nodes.get(dependent))
    }

    /// The owner in the graph, unless it lies in another namespace, where it cannot own.
    fn owner(&self, dependent: &Node, owner: &OwnerReference) -> Option<&Node> {
        let node = self.nodes.get(&owner.uid)?;
        let reachable =
            node.object.namespace.is_empty() || node.object.namespace == dependent.object.namespace;
        (reachable && node.object.name == owner.name).then_some(node)
    }

    /// The first owner of an object that lies in another namespace.
    pub fn misplaced(&self, uid: &str) -> Option<&OwnerReference> {
        let namespace = &self.nodes.get(uid)?.object.namespace;
        self.nodes[uid].object.owner_references.iter().find(|owner| {
            let found = self.nodes.get(&owner.uid).map(|owner| &owner.object.namespace);
            found.is_some_and(|of_owner| !of_owner.is_empty() && of_owner != namespace)
        })
    }

    /// Decides about one object. `absent` is what the server said of owners that the graph does not hold.
    ///
    /// Upstream: pkg/controller/garbagecollector/garbagecollector.go attemptToDeleteItem
    pub fn decide(&self, uid: &str, absent: &HashMap<Uid, Absent>) -> Action {
        let Some(node) = self.nodes.get(uid) else { return Action::Nothing };
        if node.object.deleting && node.has_finalizer(ORPHAN) {
            return Action::Orphan(self.dependents_of(uid).map(|d| d.object.uid.clone()).collect());
        }
        if node.waits_for_dependents() {
            return self.decide_foreground(uid);
        }
        if node.object.deleting || node.object.owner_references.is_empty() {
            return Action::Nothing;
        }
        let (mut solid, mut gone, mut waiting, mut unknown) = (0, Vec::new(), Vec::new(), Vec::new());
        for owner in &node.object.owner_references {
            match (self.owner(node, owner), absent.get(&owner.uid)) {
                (Some(found), _) if found.waits_for_dependents() => waiting.push(owner.uid.clone()),
                (Some(_), _) | (None, Some(Absent::Kept)) => solid += 1,
                (None, Some(Absent::Gone)) => gone.push(owner.uid.clone()),
                (None, None) => unknown.push(owner.clone()),
            }
        }
        if !unknown.is_empty() {
            return Action::Ask(unknown);
        }
        if solid > 0 {
            gone.append(&mut waiting);
            return if gone.is_empty() { Action::Nothing } else { Action::DropOwners(gone) };
        }
        if !waiting.is_empty() && self.dependents_of(uid).next().is_some() {
            let blocks = node.object.owner_references.iter().any(|o| o.block_owner_deletion == Some(true));
            let circle = self.dependents_of(uid).any(Node::waits_for_dependents);
            return if circle && blocks { Action::Unblock } else { Action::Delete(Propagation::Foreground) };
        }
        Action::Delete(match node {
            node if node.has_finalizer(ORPHAN) => Propagation::Orphan,
            node if node.has_finalizer(FOREGROUND) => Propagation::Foreground,
            _ => Propagation::Background,
        })
    }

    /// An object that is deleted after its dependents.
    fn decide_foreground(&self, uid: &str) -> Action {
        let blocks = |dependent: &&Node| {
            let mut owners = dependent.object.owner_references.iter();
            owners.any(|o| o.uid == uid && o.block_owner_deletion == Some(true))
        };
        let blocking: Vec<_> = self.dependents_of(uid).filter(blocks).collect();
        if blocking.is_empty() {
            return Action::RemoveFinalizer(FOREGROUND);
        }
        let idle = self.dependents_of(uid).filter(|dependent| !dependent.object.deleting);
        Action::Visit(idle.map(|dependent| dependent.object.uid.clone()).collect())
    }
}

fn owners(node: &Node) -> HashSet<Uid> {
    node.object.owner_references.iter().map(|owner| owner.uid.clone()).collect()
}

#[cfg(test)]
mod tests {
    use client::Resource;

    use super::*;

    /// `name` with owners `name` (blocking when they end in `!`), and finalizers when it is being deleted.
    fn add(graph: &mut Graph, name: &str, owners: &[&str], deleting: Option<&[&str]>) -> Vec<Uid> {
        let gvr = apimachinery::GroupVersionResource::from_static("", "v1", "things");
        let resource = ApiResource {
            resource: Resource { gvr, namespaced: true },
            kind: "Thing".into(),
            verbs: Vec::new(),
        };
        let owner = |owner: &&str| OwnerReference {
            name: owner.trim_end_matches('!').to_owned(),
            uid: owner.trim_end_matches('!').to_owned(),
            block_owner_deletion: Some(owner.ends_with('!')),
            ..Default::default()
        };
        let object = Metadata {
            namespace: "ns".into(),
            name: name.into(),
            uid: name.into(),
            owner_references: owners.iter().map(owner).collect(),
            finalizers: deleting.unwrap_or_default().iter().map(|f| f.to_string()).collect(),
            deleting: deleting.is_some(),
            ..Default::default()
        };
        graph.observe(&Arc::new(resource), &Event::Added(Arc::new(object)))
    }

    fn remove(graph: &mut Graph, name: &str) -> Vec<Uid> {
        let node = graph.node(name).unwrap().clone();
        graph.observe(&node.resource, &Event::Deleted(node.object))
    }

    fn gone(names: &[&str]) -> HashMap<Uid, Absent> {
        names.iter().map(|name| (name.to_string(), Absent::Gone)).collect()
    }

    #[test]
    fn an_owned_object_lives_and_dies_with_its_owners() {
        let mut graph = Graph::default();
        add(&mut graph, "a", &[], None);
        add(&mut graph, "b", &[], None);
        assert_eq!(add(&mut graph, "c", &["a", "b"], None), ["c"]);
        assert_eq!(graph.decide("c", &gone(&[])), Action::Nothing);
        assert_eq!(remove(&mut graph, "a"), ["c"]);
        assert!(matches!(graph.decide("c", &gone(&[])), Action::Ask(owners) if owners[0].uid == "a"));
        assert_eq!(graph.decide("c", &gone(&["a"])), Action::DropOwners(vec!["a".into()]));
        remove(&mut graph, "b");
        assert_eq!(graph.decide("c", &gone(&["a", "b"])), Action::Delete(Propagation::Background));
        let kept = HashMap::from([("a".to_owned(), Absent::Kept), ("b".to_owned(), Absent::Kept)]);
        assert_eq!(graph.decide("c", &kept), Action::Nothing);
    }

    #[test]
    fn foreground_deletion_waits_for_blocking_dependents() {
        let mut graph = Graph::default();
        add(&mut graph, "owner", &[], Some(&[FOREGROUND]));
        add(&mut graph, "blocking", &["owner!"], None);
        add(&mut graph, "other", &["owner"], None);
        let Action::Visit(mut visit) = graph.decide("owner", &gone(&[])) else {
            panic!("dependents are visited")
        };
        visit.sort();
        assert_eq!(visit, ["blocking", "other"]);
        assert_eq!(graph.decide("blocking", &gone(&[])), Action::Delete(Propagation::Background));
        add(&mut graph, "leaf", &["blocking"], None);
        assert_eq!(graph.decide("blocking", &gone(&[])), Action::Delete(Propagation::Foreground));
        assert!(remove(&mut graph, "blocking").contains(&"owner".to_owned()));
        assert_eq!(graph.decide("owner", &gone(&[])), Action::RemoveFinalizer(FOREGROUND));
    }

    #[test]
    fn a_circle_of_waiting_is_broken() {
        let mut graph = Graph::default();
        add(&mut graph, "a", &["b!"], Some(&[FOREGROUND]));
        add(&mut graph, "b", &["a!"], None);
        assert_eq!(graph.decide("b", &gone(&[])), Action::Unblock);
    }

    #[test]
    fn orphans_are_let_go() {
        let mut graph = Graph::default();
        add(&mut graph, "child", &["owner"], None);
        assert_eq!(add(&mut graph, "owner", &[], Some(&[ORPHAN])), ["owner"]);
        assert_eq!(graph.decide("owner", &gone(&[])), Action::Orphan(vec!["child".into()]));
    }

    #[test]
    fn an_owner_of_another_namespace_is_none() {
        let mut graph = Graph::default();
        add(&mut graph, "owner", &[], None);
        add(&mut graph, "child", &["owner"], None);
        let mut far = graph.node("owner").unwrap().clone();
        Arc::make_mut(&mut far.object).namespace = "far".into();
        graph.nodes.insert("owner".into(), far);
        assert!(matches!(graph.decide("child", &gone(&[])), Action::Ask(_)));
        assert_eq!(graph.misplaced("child").map(|owner| owner.uid.as_str()), Some("owner"));
        assert_eq!(graph.misplaced("owner"), None);
    }
}
