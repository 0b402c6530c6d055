//! What the scheduler watches, and the keys by which it is told of changes.

use std::collections::HashMap;
use std::sync::Arc;

use api::Object;
use api::apps::v1::{ReplicaSet, StatefulSet};
use api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use api::policy::v1::PodDisruptionBudget;
use api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use api::scheduling::v1alpha2::PodGroup;
use api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use apimachinery::selector::LabelSelector;
use controller_runtime::{Informer, InformerFactory, WorkQueue};

use crate::cluster::{Change, Cluster};
use crate::groups::Owner;
use crate::plugins::Gates;
use crate::pod;

/// What may have changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    Pod(String),
    Node(String),
    Namespace(String),
    /// A Service or a controller, whose selector says which pods belong together.
    Service(String),
    Owner(Owner, String),
    Budgets,
    Claim(String),
    Storage(Storage, String),
    Device(Device, String),
    Group(String),
}

/// The kinds of dynamic resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    Claim,
    Class,
    Slice,
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
    resource_claims: Informer<ResourceClaim>,
    device_classes: Informer<DeviceClass>,
    resource_slices: Informer<ResourceSlice>,
    /// Only when groups of pods are switched on: otherwise nobody serves them.
    pub pod_groups: Option<Informer<PodGroup>>,
}

/// The index of pods by the node that they are on.
pub const BY_NODE: &str = "node";

impl Informers {
    pub fn new(factory: &InformerFactory, keys: &WorkQueue<Key>, gates: Gates) -> Self {
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
            resource_claims: factory.informer(),
            device_classes: factory.informer(),
            resource_slices: factory.informer(),
            pod_groups: gates.pod_groups.then(|| factory.informer()),
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
        tell(&informers.services, keys, |object| Key::Service(object.key()));
        tell(&informers.replica_sets, keys, |object| Key::Owner(Owner::ReplicaSet, object.key()));
        tell(&informers.stateful_sets, keys, |object| Key::Owner(Owner::StatefulSet, object.key()));
        tell(&informers.replication_controllers, keys, |object| {
            Key::Owner(Owner::ReplicationController, object.key())
        });
        tell(&informers.budgets, keys, |_| Key::Budgets);
        tell(&informers.claims, keys, |claim| Key::Claim(claim.key()));
        tell(&informers.volumes, keys, |object| Key::Storage(Storage::Volume, object.key()));
        tell(&informers.classes, keys, |object| Key::Storage(Storage::Class, object.key()));
        tell(&informers.csi_nodes, keys, |object| Key::Storage(Storage::CsiNode, object.key()));
        tell(&informers.csi_drivers, keys, |object| Key::Storage(Storage::CsiDriver, object.key()));
        tell(&informers.capacities, keys, |object| Key::Storage(Storage::Capacity, object.key()));
        tell(&informers.attachments, keys, |object| Key::Storage(Storage::Attachment, object.key()));
        tell(&informers.resource_claims, keys, |object| Key::Device(Device::Claim, object.key()));
        tell(&informers.device_classes, keys, |object| Key::Device(Device::Class, object.key()));
        tell(&informers.resource_slices, keys, |object| Key::Device(Device::Slice, object.key()));
        if let Some(groups) = &informers.pod_groups {
            tell(groups, keys, |group| Key::Group(group.key()));
        }
        informers
    }

    /// Brings what the cluster knows of a Service up to date.
    pub fn observe_service(&self, key: &str, cluster: &mut Cluster) {
        let service = self.services.get(key);
        let selector = service.and_then(|service| service.spec.as_ref()?.selector.clone());
        cluster.groups.set_service(key, selector);
    }

    /// The same for a controller of pods.
    pub fn observe_owner(&self, owner: Owner, key: &str, cluster: &mut Cluster) {
        let selector = match owner {
            Owner::ReplicaSet => self
                .replica_sets
                .get(key)
                .and_then(|set| Some(pod::selector(Some(&set.spec.as_ref()?.selector)))),
            Owner::StatefulSet => self
                .stateful_sets
                .get(key)
                .and_then(|set| Some(pod::selector(Some(&set.spec.as_ref()?.selector)))),
            Owner::ReplicationController => self.replication_controllers.get(key).and_then(|controller| {
                let selector = controller.spec.as_ref()?.selector.clone()?;
                let pairs = selector.iter().map(|(key, value)| (key.as_str(), value.as_str()));
                (!selector.is_empty()).then(|| LabelSelector::from_map(pairs))
            }),
        };
        cluster.groups.set_owner(owner, key, selector);
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

impl Informers {
    /// Brings what the cluster knows of dynamic resources up to date.
    pub fn observe_device(&self, kind: Device, key: &str, cluster: &mut Cluster) -> Change {
        let devices = &mut cluster.devices;
        match kind {
            Device::Claim => devices.set_claim(key, self.resource_claims.get(key)),
            Device::Class => devices.set_class(key, self.device_classes.get(key)),
            Device::Slice => devices.set_slice(key, self.resource_slices.get(key)),
        }
        Change::Devices
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
