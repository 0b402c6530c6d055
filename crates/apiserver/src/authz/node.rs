//! What a node may do: read what its own pods refer to, and write what is its own.
//!
//! The index is what the pods of each node refer to. It is kept by pod: when the pods' revision moves, only pods
//! that changed are read again.
//!
//! Upstream: plugin/pkg/auth/authorizer/node/node_authorizer.go, graph.go

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use apimachinery::GroupResource;
use serde_json::Value;

use super::rule::Rule;
use crate::admission::pod;
use crate::admission::tree::{at, text};
use crate::seams::{Attributes, Decision, Lookup, UserInfo};

const NODE_PREFIX: &str = "system:node:";
const NODES_GROUP: &str = "system:nodes";
const PODS: GroupResource = GroupResource::from_static("", "pods");
const VOLUMES: GroupResource = GroupResource::from_static("", "persistentvolumes");
const ATTACHMENTS: GroupResource = GroupResource::from_static("storage.k8s.io", "volumeattachments");
const SLICES: GroupResource = GroupResource::from_static("resource.k8s.io", "resourceslices");

/// The name of the node that the user is; empty when it is a node without a name; `None` when it is none.
///
/// Upstream: pkg/auth/nodeidentifier/default.go NodeIdentity
pub(crate) fn node_identity(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix(NODE_PREFIX)?;
    user.groups.iter().any(|group| group == NODES_GROUP).then_some(name)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Pod,
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
    ResourceClaim,
}

/// What a pod refers to: a kind, a namespace and a name.
type Reference = (Kind, Arc<str>, String);

/// What the index knows of a pod that has a node.
struct PodEntry {
    node: String,
    references: Vec<Reference>,
}

#[derive(Default)]
struct PodIndex {
    revision: Option<u64>,
    pods: HashMap<(String, String), PodEntry>,
    /// By node, how many of its pods refer to a thing.
    nodes: HashMap<String, HashMap<Reference, usize>>,
}

fn references(pod: &Value) -> Vec<Reference> {
    let namespace: Arc<str> = text(pod, "metadata.namespace").into();
    let mut all = vec![(Kind::Pod, namespace.clone(), text(pod, "metadata.name").to_owned())];
    // The kubelet reads nothing for a mirror pod.
    if pod::is_mirror(pod) {
        return all;
    }
    let account = text(pod, "spec.serviceAccountName");
    if !account.is_empty() {
        all.push((Kind::ServiceAccount, namespace.clone(), account.to_owned()));
    }
    let mut add = |kind: Kind, names: BTreeSet<String>| {
        all.extend(names.into_iter().map(|name| (kind, namespace.clone(), name)));
    };
    add(Kind::Secret, pod::secret_names(pod));
    add(Kind::ConfigMap, pod::config_map_names(pod));
    add(Kind::Claim, pod::claim_names(pod));
    add(Kind::ResourceClaim, pod::resource_claim_names(pod));
    all
}

impl PodIndex {
    fn refresh(&mut self, lookup: &dyn Lookup) {
        let revision = lookup.revision(&PODS);
        let known = self.revision.replace(revision);
        if known == Some(revision) {
            return;
        }
        let changed = known.and_then(|known| lookup.since(&PODS, known));
        if let Some(changed) = changed {
            for change in changed {
                self.set((change.namespace, change.name), change.object.as_deref());
            }
            return;
        }
        (self.pods, self.nodes) = Default::default();
        for pod in lookup.list(&PODS, None) {
            let key = (text(&pod, "metadata.namespace").to_owned(), text(&pod, "metadata.name").to_owned());
            self.set(key, Some(&pod));
        }
    }

    /// Notes a pod as it is now; `None` when there is none.
    fn set(&mut self, key: (String, String), pod: Option<&Value>) {
        self.remove(&key);
        let Some(pod) = pod else { return };
        let node = text(pod, "spec.nodeName").to_owned();
        if node.is_empty() {
            return;
        }
        let references = references(pod);
        let counts = self.nodes.entry(node.clone()).or_default();
        for reference in &references {
            *counts.entry(reference.clone()).or_default() += 1;
        }
        self.pods.insert(key, PodEntry { node, references });
    }

    fn remove(&mut self, key: &(String, String)) {
        let Some(entry) = self.pods.remove(key) else { return };
        let Some(counts) = self.nodes.get_mut(&entry.node) else { return };
        for reference in &entry.references {
            if let Some(count) = counts.get_mut(reference) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(reference);
                }
            }
        }
        if counts.is_empty() {
            self.nodes.remove(&entry.node);
        }
    }

    fn refers(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let wanted: Reference = (kind, namespace.into(), name.to_owned());
        self.nodes.get(node).is_some_and(|counts| counts.contains_key(&wanted))
    }
}

pub(super) struct NodeAuthorizer {
    lookup: Arc<dyn Lookup>,
    pods: Mutex<PodIndex>,
    /// What `system:node` allows, for what has no rule of its own here.
    rules: Vec<Rule>,
}

fn allow() -> Decision {
    Decision::Allow { reason: String::new() }
}

fn no_opinion(reason: impl Into<String>) -> Decision {
    Decision::NoOpinion { reason: reason.into() }
}

/// Whether a field selector has `field=value`.
fn selects(selector: &str, field: &str, value: &str) -> bool {
    selector.split(',').any(|requirement| {
        let requirement = requirement.trim();
        requirement.split_once("==").or_else(|| requirement.split_once('=')) == Some((field, value))
    })
}

impl NodeAuthorizer {
    pub(super) fn new(lookup: Arc<dyn Lookup>) -> Self {
        let rules = super::bootstrap::default_rules("system:node");
        NodeAuthorizer { lookup, pods: Mutex::default(), rules }
    }

    pub(super) fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        let Some(node) = node_identity(user) else { return no_opinion("") };
        if node.is_empty() {
            return no_opinion(format!("unknown node for user {:?}", user.name));
        }
        if attributes.is_resource {
            let decided = match (&*attributes.group, &*attributes.resource) {
                ("", "secrets") => Some(self.read_namespaced(node, attributes)),
                ("", "configmaps") => Some(self.read_namespaced(node, attributes)),
                ("", "persistentvolumeclaims") if attributes.subresource == "status" => {
                    Some(self.update_claim_status(node, attributes))
                }
                ("", "persistentvolumeclaims") => Some(self.get(node, attributes)),
                ("", "persistentvolumes")
                | ("resource.k8s.io", "resourceclaims")
                | ("storage.k8s.io", "volumeattachments") => Some(self.get(node, attributes)),
                ("", "serviceaccounts") => Some(self.service_account(node, attributes)),
                ("coordination.k8s.io", "leases") => Some(lease(node, attributes)),
                ("storage.k8s.io", "csinodes") => Some(csi_node(node, attributes)),
                ("resource.k8s.io", "resourceslices") => Some(self.resource_slice(node, attributes)),
                ("", "nodes") => Some(own_node(node, attributes)),
                ("", "pods") => Some(self.pod(node, attributes)),
                ("certificates.k8s.io", "podcertificaterequests") => Some(no_opinion("")),
                _ => None,
            };
            if let Some(decision) = decided {
                return decision;
            }
        }
        if self.rules.iter().any(|rule| rule.allows(attributes)) { allow() } else { no_opinion("") }
    }

    fn refers(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.refresh(&*self.lookup);
        pods.refers(node, kind, namespace, name)
    }

    /// Whether the thing asked for is related to the node.
    fn related(&self, node: &str, attributes: &Attributes) -> bool {
        let Attributes { namespace, name, .. } = attributes;
        match &*attributes.resource {
            "pods" => self.refers(node, Kind::Pod, namespace, name),
            "configmaps" => self.refers(node, Kind::ConfigMap, namespace, name),
            "secrets" => {
                self.refers(node, Kind::Secret, namespace, name)
                    || self.secret_of_volume(node, namespace, name)
            }
            "persistentvolumeclaims" => self.refers(node, Kind::Claim, namespace, name),
            "serviceaccounts" => self.refers(node, Kind::ServiceAccount, namespace, name),
            "resourceclaims" => self.refers(node, Kind::ResourceClaim, namespace, name),
            "persistentvolumes" => {
                self.lookup.get(&VOLUMES, "", name).is_some_and(|volume| self.claims(node, &volume))
            }
            "volumeattachments" => {
                self.lookup.get(&ATTACHMENTS, "", name).is_some_and(|a| text(&a, "spec.nodeName") == node)
            }
            "resourceslices" => {
                self.lookup.get(&SLICES, "", name).is_some_and(|slice| text(&slice, "spec.nodeName") == node)
            }
            _ => false,
        }
    }

    /// Whether a pod of the node uses the claim that a volume is bound to.
    fn claims(&self, node: &str, volume: &Value) -> bool {
        let (namespace, name) = (text(volume, "spec.claimRef.namespace"), text(volume, "spec.claimRef.name"));
        !name.is_empty() && self.refers(node, Kind::Claim, namespace, name)
    }

    /// Secrets that a persistent volume names are for the nodes that use the volume.
    ///
    /// Upstream: pkg/api/v1/persistentvolume/util.go VisitPVSecretNames
    fn secret_of_volume(&self, node: &str, namespace: &str, name: &str) -> bool {
        const SOURCES: [&str; 10] = [
            "azureFile",
            "cephfs.secretRef",
            "flexVolume.secretRef",
            "rbd.secretRef",
            "scaleIO.secretRef",
            "iscsi.secretRef",
            "storageos.secretRef",
            "csi.nodePublishSecretRef",
            "csi.nodeStageSecretRef",
            "csi.nodeExpandSecretRef",
        ];
        self.lookup.list(&VOLUMES, None).iter().any(|volume| {
            let names_it =
                SOURCES.iter().filter_map(|source| at(volume, &format!("spec.{source}"))).any(|source| {
                    let first = |a: &'static str, b: &'static str| {
                        Some(text(source, a))
                            .filter(|t| !t.is_empty())
                            .unwrap_or_else(|| text(source, b))
                            .to_owned()
                    };
                    let its_namespace = match first("namespace", "secretNamespace") {
                        empty if empty.is_empty() => text(volume, "spec.claimRef.namespace").to_owned(),
                        given => given,
                    };
                    first("name", "secretName") == name && its_namespace == namespace
                });
            names_it && self.claims(node, volume)
        })
    }

    fn by_relation(&self, node: &str, attributes: &Attributes) -> Decision {
        if attributes.name.is_empty() {
            return no_opinion("No Object name found");
        }
        if self.related(node, attributes) {
            allow()
        } else {
            no_opinion(format!("no relationship found between node '{node}' and this object"))
        }
    }

    fn read_namespaced(&self, node: &str, attributes: &Attributes) -> Decision {
        if !matches!(&*attributes.verb, "get" | "list" | "watch") {
            return no_opinion("can only read resources of this type");
        }
        if !attributes.subresource.is_empty() {
            return no_opinion("cannot read subresource");
        }
        if attributes.namespace.is_empty() {
            return no_opinion("can only read namespaced object of this type");
        }
        self.by_relation(node, attributes)
    }

    fn get(&self, node: &str, attributes: &Attributes) -> Decision {
        if attributes.verb != "get" {
            return no_opinion("can only get individual resources of this type");
        }
        if !attributes.subresource.is_empty() {
            return no_opinion("cannot get subresource");
        }
        self.by_relation(node, attributes)
    }

    fn update_claim_status(&self, node: &str, attributes: &Attributes) -> Decision {
        if !matches!(&*attributes.verb, "update" | "patch") {
            return no_opinion("can only get/update/patch this type");
        }
        self.by_relation(node, attributes)
    }

    fn service_account(&self, node: &str, attributes: &Attributes) -> Decision {
        if attributes.verb == "get" && attributes.subresource.is_empty() {
            return self.read_namespaced(node, attributes);
        }
        if attributes.verb != "create" || attributes.name.is_empty() {
            return no_opinion("can only create tokens for individual service accounts");
        }
        if attributes.subresource != "token" {
            return no_opinion("can only create token subresource of serviceaccount");
        }
        self.by_relation(node, attributes)
    }

    fn resource_slice(&self, node: &str, attributes: &Attributes) -> Decision {
        if !attributes.subresource.is_empty() {
            return no_opinion("cannot authorize ResourceSlice subresources");
        }
        match &*attributes.verb {
            "create" => allow(),
            "get" | "update" | "patch" | "delete" => self.by_relation(node, attributes),
            "watch" | "list" | "deletecollection"
                if selects(&attributes.field_selector, "spec.nodeName", node) =>
            {
                allow()
            }
            "watch" | "list" | "deletecollection" => {
                no_opinion("can only list/watch/deletecollection resourceslices with nodeName field selector")
            }
            _ => no_opinion(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, \
                 delete, deletecollection",
            ),
        }
    }

    fn pod(&self, node: &str, attributes: &Attributes) -> Decision {
        match (&*attributes.subresource, &*attributes.verb) {
            ("", "get") => self.by_relation(node, attributes),
            ("", "list" | "watch") if selects(&attributes.field_selector, "spec.nodeName", node) => allow(),
            ("", "list" | "watch") if !attributes.name.is_empty() => self.by_relation(node, attributes),
            ("", "list" | "watch") => {
                no_opinion("can only list/watch pods with spec.nodeName field selector")
            }
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => allow(),
            _ => no_opinion(""),
        }
    }
}

fn lease(node: &str, attributes: &Attributes) -> Decision {
    if !matches!(&*attributes.verb, "get" | "create" | "update" | "patch" | "delete") {
        return no_opinion("can only get, create, update, patch, or delete a node lease");
    }
    if attributes.namespace != "kube-node-lease" {
        return no_opinion("can only access leases in the \"kube-node-lease\" system namespace");
    }
    // A create has its name in the body only: NodeRestriction looks there.
    if attributes.verb != "create" && attributes.name != node {
        return no_opinion("can only access node lease with the same name as the requesting node");
    }
    allow()
}

fn csi_node(node: &str, attributes: &Attributes) -> Decision {
    if !matches!(&*attributes.verb, "get" | "create" | "update" | "patch" | "delete") {
        return no_opinion("can only get, create, update, patch, or delete a CSINode");
    }
    if !attributes.subresource.is_empty() {
        return no_opinion("cannot authorize CSINode subresources");
    }
    if attributes.verb != "create" && attributes.name != node {
        return no_opinion("can only access CSINode with the same name as the requesting node");
    }
    allow()
}

fn own_node(node: &str, attributes: &Attributes) -> Decision {
    match (&*attributes.subresource, &*attributes.verb) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => allow(),
        ("", "get" | "list" | "watch") if attributes.name == node => allow(),
        ("", "get" | "list" | "watch") if attributes.name.is_empty() => {
            no_opinion(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("", "get" | "list" | "watch") => {
            no_opinion(format!("node '{node}' cannot read '{}', only its own Node object", attributes.name))
        }
        _ => no_opinion(""),
    }
}
