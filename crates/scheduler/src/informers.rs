//! What the scheduler watches, and the keys by which it is told of changes.

use std::collections::HashMap;
use std::sync::Arc;

use api::Object;
use api::apps::v1::{ReplicaSet, StatefulSet};
use api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use api::policy::v1::PodDisruptionBudget;
use api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use apimachinery::selector::LabelSelector;
use controller_runtime::{Informer, InformerFactory, WorkQueue};

use crate::cluster::{Change, Cluster};
use crate::pod;

/// What may have changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    Pod(String),
    Node(String),
    Namespace(String),
    /// The Services and controllers of a namespace, whose selectors say which pods belong together.
    Groups(String),
    Budgets,
    Claim(String),
    Storage(Storage, String),
}

/// The cluster-wide kinds that volumes are judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    Volume,
    Class,
    CsiNode,
    CsiDriver,
    Capacity,
    Attachment,
}

pub struct Informers {
    pub pods: Informer<Pod>,
    pub nodes: Informer<Node>,
    pub namespaces: Informer<Namespace>,
    pub budgets: Informer<PodDisruptionBudget>,
    services: Informer<Service>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    replication_controllers: Informer<ReplicationController>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    csi_nodes: Informer<CSINode>,
    csi_drivers: Informer<CSIDriver>,
    capacities: Informer<CSIStorageCapacity>,
    attachments: Informer<VolumeAttachment>,
}

/// The index of pods by the node that they are on.
pub const BY_NODE: &str = "node";

impl Informers {
    pub fn new(factory: &InformerFactory, keys: &WorkQueue<Key>) -> Self {
        let informers = Informers {
            pods: factory.informer(),
            nodes: factory.informer(),
            namespaces: factory.informer(),
            services: factory.informer(),
            replica_sets: factory.informer(),
            stateful_sets: factory.informer(),
            replication_controllers: factory.informer(),
            budgets: factory.informer(),
            claims: factory.informer(),
            volumes: factory.informer(),
            classes: factory.informer(),
            csi_nodes: factory.informer(),
            csi_drivers: factory.informer(),
            capacities: factory.informer(),
            attachments: factory.informer(),
        };
        informers.pods.add_index(BY_NODE, |pod: &Pod| {
            pod.spec
                .iter()
                .filter_map(|spec| spec.node_name.clone())
                .filter(|name| !name.is_empty())
                .collect()
        });
        tell(&informers.pods, keys, |pod| Key::Pod(pod.key()));
        tell(&informers.nodes, keys, |node| Key::Node(node.key()));
        tell(&informers.namespaces, keys, |namespace| Key::Namespace(namespace.key()));
        tell(&informers.services, keys, |object| Key::Groups(object.namespace().to_owned()));
        tell(&informers.replica_sets, keys, |object| Key::Groups(object.namespace().to_owned()));
        tell(&informers.stateful_sets, keys, |object| Key::Groups(object.namespace().to_owned()));
        tell(&informers.replication_controllers, keys, |object| Key::Groups(object.namespace().to_owned()));
        tell(&informers.budgets, keys, |_| Key::Budgets);
        tell(&informers.claims, keys, |claim| Key::Claim(claim.key()));
        tell(&informers.volumes, keys, |object| Key::Storage(Storage::Volume, object.key()));
        tell(&informers.classes, keys, |object| Key::Storage(Storage::Class, object.key()));
        tell(&informers.csi_nodes, keys, |object| Key::Storage(Storage::CsiNode, object.key()));
        tell(&informers.csi_drivers, keys, |object| Key::Storage(Storage::CsiDriver, object.key()));
        tell(&informers.capacities, keys, |object| Key::Storage(Storage::Capacity, object.key()));
        tell(&informers.attachments, keys, |object| Key::Storage(Storage::Attachment, object.key()));
        informers
    }

    /// The selectors of what groups pods in a namespace.
    pub fn selectors(&self, namespace: &str) -> Vec<LabelSelector> {
        let of_map = |map: Option<&pod::Labels>| {
            let map = map.filter(|map| !map.is_empty())?;
            Some(LabelSelector::from_map(map.iter().map(|(k, v)| (k.as_str(), v.as_str()))))
        };
        let services = self.services.by_namespace(namespace);
        let controllers = self.replication_controllers.by_namespace(namespace);
        let replica_sets = self.replica_sets.by_namespace(namespace);
        let stateful_sets = self.stateful_sets.by_namespace(namespace);
        let services = services.iter().filter_map(|s| of_map(s.spec.as_ref()?.selector.as_ref()));
        let controllers = controllers.iter().filter_map(|c| of_map(c.spec.as_ref()?.selector.as_ref()));
        let replica_sets =
            replica_sets.iter().filter_map(|r| Some(pod::selector(Some(&r.spec.as_ref()?.selector))));
        let stateful_sets =
            stateful_sets.iter().filter_map(|s| Some(pod::selector(Some(&s.spec.as_ref()?.selector))));
        services.chain(controllers).chain(replica_sets).chain(stateful_sets).collect()
    }

    /// Brings what the cluster knows of a claim up to date.
    pub fn observe_claim(&self, key: &str, cluster: &mut Cluster) -> Change {
        cluster.volumes.claims.set(key, self.claims.get(key));
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        Change::Claim { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The same for a kind that is not of a namespace, or is not told apart by it.
    pub fn observe_storage(&self, kind: Storage, key: &str, cluster: &mut Cluster) -> Change {
        let volumes = &mut cluster.volumes;
        match kind {
            Storage::Volume => volumes.volumes.set(key, self.volumes.get(key)),
            Storage::Class => put(&mut volumes.classes, key, self.classes.get(key)),
            Storage::CsiNode => put(&mut volumes.csi_nodes, key, self.csi_nodes.get(key)),
            Storage::CsiDriver => put(&mut volumes.csi_drivers, key, self.csi_drivers.get(key)),
            Storage::Capacity => put(&mut volumes.capacities, key, self.capacities.get(key)),
            Storage::Attachment => put(&mut volumes.attachments, key, self.attachments.get(key)),
        }
        Change::Volumes
    }
}

fn put<T>(map: &mut HashMap<String, Arc<T>>, key: &str, object: Option<Arc<T>>) {
    match object {
        Some(object) => drop(map.insert(key.to_owned(), object)),
        None => drop(map.remove(key)),
    }
}

fn tell<T: Object + controller_runtime::Cached>(
    informer: &Informer<T>,
    keys: &WorkQueue<Key>,
    key: fn(&T) -> Key,
) {
    let keys = keys.clone();
    informer.subscribe(move |event| keys.add(key(event.object())));
}
