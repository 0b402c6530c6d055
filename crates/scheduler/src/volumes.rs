//! [`Volumes`]: claims, volumes and what CSI drivers say, with the scheduler's own unconfirmed changes on top.
//!
//! A change that the scheduler is about to write counts at once, so that the next pod does not take the same
//! volume; it is forgotten when the object is seen in a newer version, or when the write fails.

use std::collections::HashMap;
use std::sync::Arc;

use api::Object;
use api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use apimachinery::quantity::Quantity;

use crate::plugins::node_selector_matches;

/// Upstream: component-helpers/storage/volume/helpers.go
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// Objects by key, some in a version that is still to be written.
pub struct Assumable<T> {
    known: HashMap<String, Arc<T>>,
    assumed: HashMap<String, Arc<T>>,
}

impl<T> Default for Assumable<T> {
    fn default() -> Self {
        Assumable { known: HashMap::new(), assumed: HashMap::new() }
    }
}

impl<T: Object> Assumable<T> {
    pub fn get(&self, key: &str) -> Option<&Arc<T>> {
        self.assumed.get(key).or_else(|| self.known.get(key))
    }

    /// As the API server last showed it.
    pub fn confirmed(&self, key: &str) -> Option<&Arc<T>> {
        self.known.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.known.iter().map(|(key, object)| self.assumed.get(key).unwrap_or(object))
    }

    /// What the API server shows now.
    pub fn set(&mut self, key: &str, object: Option<Arc<T>>) {
        let Some(object) = object else {
            self.known.remove(key);
            self.assumed.remove(key);
            return;
        };
        if self.assumed.get(key).is_some_and(|assumed| version(&**assumed) < version(&*object)) {
            self.assumed.remove(key);
        }
        self.known.insert(key.to_owned(), object);
    }

    /// The same, while what is assumed still goes.
    pub fn show(&mut self, key: &str, object: Arc<T>) {
        self.known.insert(key.to_owned(), object);
    }

    pub fn assumed(&self, key: &str) -> Option<&Arc<T>> {
        self.assumed.get(key)
    }

    pub fn assume(&mut self, key: String, object: T) {
        self.assumed.insert(key, Arc::new(object));
    }

    pub fn restore(&mut self, key: &str) {
        self.assumed.remove(key);
    }
}

fn version<T: Object>(object: &T) -> u64 {
    object.metadata().resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[derive(Default)]
pub struct Volumes {
    pub claims: Assumable<PersistentVolumeClaim>,
    pub volumes: Assumable<PersistentVolume>,
    pub classes: HashMap<String, Arc<StorageClass>>,
    pub csi_nodes: HashMap<String, Arc<CSINode>>,
    pub csi_drivers: HashMap<String, Arc<CSIDriver>>,
    pub capacities: HashMap<String, Arc<CSIStorageCapacity>>,
    pub attachments: HashMap<String, Arc<VolumeAttachment>>,
}

impl Volumes {
    pub fn claim(&self, namespace: &str, name: &str) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(&format!("{namespace}/{name}"))
    }

    /// The claim that a volume of a pod names, and whether it is the pod's own, made from a template.
    pub fn claim_name(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
        if let Some(source) = &volume.persistent_volume_claim {
            return Some((source.claim_name.clone(), false));
        }
        volume.ephemeral.as_ref().map(|_| (format!("{}-{}", pod.name(), volume.name), true))
    }

    /// The driver and the handle of the volume that a claim has, or will have.
    ///
    /// Upstream: pkg/scheduler/framework/plugins/nodevolumelimits/csi.go getCSIDriverInfo
    pub fn csi_of(&self, claim: &PersistentVolumeClaim) -> Option<(String, String)> {
        let bound = claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty());
        if let Some(volume) = bound.and_then(|name| self.volumes.get(name)) {
            let csi = volume.spec.as_ref()?.csi.as_ref()?;
            return Some((csi.driver.clone(), csi.volume_handle.clone()));
        }
        let class = self.classes.get(class_of(claim))?;
        Some((class.provisioner.clone(), claim.key()))
    }

    /// Whether only the scheduler's choice of a node lets the claim be bound.
    pub fn waits_for_consumer(&self, claim: &PersistentVolumeClaim) -> Option<bool> {
        let class = class_of(claim);
        if class.is_empty() {
            return Some(false);
        }
        let mode = self.classes.get(class)?.volume_binding_mode.as_deref();
        Some(mode == Some("WaitForFirstConsumer"))
    }
}

/// Whether the claim belongs to the pod.
pub fn is_owned(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().any(|owner| owner.controller == Some(true) && owner.uid == pod.uid())
}

/// The claim's storage class, empty for none.
pub fn class_of(claim: &PersistentVolumeClaim) -> &str {
    let annotation = claim.metadata.annotations.as_ref().and_then(|map| map.get(BETA_CLASS));
    let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    annotation.or(class).map(String::as_str).unwrap_or_default()
}

pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let annotation = volume.metadata.annotations.as_ref().and_then(|map| map.get(BETA_CLASS));
    let class = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    annotation.or(class).map(String::as_str).unwrap_or_default()
}

pub fn is_fully_bound(claim: &PersistentVolumeClaim) -> bool {
    let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
    let annotations = claim.metadata.annotations.as_ref();
    named.is_some_and(|name| !name.is_empty())
        && annotations.is_some_and(|annotations| annotations.contains_key(BIND_COMPLETED))
}

/// How much storage a claim asks for, in bytes.
pub fn requested(claim: &PersistentVolumeClaim) -> i64 {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    storage(resources.and_then(|resources| resources.requests.as_ref()))
}

pub fn storage(list: Option<&std::collections::BTreeMap<String, api::Quantity>>) -> i64 {
    list.and_then(|list| list.get("storage")).and_then(bytes).unwrap_or(0)
}

pub fn bytes(quantity: &api::Quantity) -> Option<i64> {
    // The API server lets no malformed quantity in.
    Quantity::parse(&quantity.0).ok().map(|quantity| quantity.value())
}

/// Whether the volume can be used on the node.
pub fn is_reachable(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    affinity.and_then(|affinity| affinity.required.as_ref()).is_none_or(|r| node_selector_matches(r, node))
}

/// The smallest available volume that serves the claim on the node; the one that names the claim before all.
///
/// Upstream: component-helpers/storage/volume/pv_helpers.go FindMatchingVolume
pub fn find_matching<'a>(
    claim: &PersistentVolumeClaim,
    volumes: impl Iterator<Item = &'a Arc<PersistentVolume>>,
    node: &Node,
    taken: &[String],
) -> Option<&'a Arc<PersistentVolume>> {
    let claimed = claim.spec.as_ref()?;
    let selector = claimed.selector.as_ref().map(|selector| crate::pod::selector(Some(selector)));
    let wanted = requested(claim);
    let mut smallest: Option<(i64, &Arc<PersistentVolume>)> = None;
    for volume in volumes.filter(|volume| !taken.iter().any(|name| name == volume.name())) {
        let Some(spec) = &volume.spec else { continue };
        let mine = spec.claim_ref.as_ref().map(|reference| {
            reference.name.as_deref() == Some(claim.name())
                && reference.namespace.as_deref() == Some(claim.namespace())
                && reference.uid.as_deref().is_none_or(|uid| uid.is_empty() || uid == claim.uid())
        });
        let size = storage(spec.capacity.as_ref());
        let mode = |mode: Option<&String>| mode.map_or("Filesystem", String::as_str).to_owned();
        let attributes = |class: Option<&String>| class.map(String::as_str).unwrap_or_default().to_owned();
        if mine == Some(false)
            || size < wanted
            || mode(claimed.volume_mode.as_ref()) != mode(spec.volume_mode.as_ref())
            || attributes(claimed.volume_attributes_class_name.as_ref())
                != attributes(spec.volume_attributes_class_name.as_ref())
            || volume.metadata.deletion_timestamp.is_some()
        {
            continue;
        }
        if mine == Some(true) {
            return is_reachable(volume, node).then_some(volume);
        }
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        let labels = volume.metadata.labels.clone().unwrap_or_default();
        let modes = spec.access_modes.as_deref().unwrap_or_default();
        let fits = phase == Some("Available")
            && selector.as_ref().is_none_or(|selector| selector.matches_map(&labels))
            && class_of_volume(volume) == class_of(claim)
            && claimed.access_modes.iter().flatten().all(|mode| modes.contains(mode))
            && is_reachable(volume, node);
        if fits && smallest.is_none_or(|(least, _)| size < least) {
            smallest = Some((size, volume));
        }
    }
    smallest.map(|(_, volume)| volume)
}
