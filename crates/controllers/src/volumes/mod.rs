//! Claims and volumes: who is bound to whom, what is made on demand, grown, attached, and what becomes of it.

pub(crate) mod attach_detach;
pub(crate) mod binder;
mod claim_plan;
pub(crate) mod ephemeral;
pub(crate) mod expand;
pub(crate) mod local_path;
#[cfg(test)]
mod tests;
mod volume_plan;

use api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use api::storage::v1::StorageClass;
use api::{Object, Quantity};
use apimachinery::quantity;

use crate::objects::{annotation, created};

pub(crate) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub(crate) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
pub(crate) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
pub(crate) const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
pub(crate) const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const CLASS_BETA: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_CLASS_BETA: &str = "storageclass.beta.kubernetes.io/is-default-class";

/// Empty when the claim has none.
pub(crate) fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let named = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(claim, CLASS_BETA).or(named).unwrap_or_default()
}

/// Whether the claim says what class it wants, be it none.
fn says_class(claim: &PersistentVolumeClaim) -> bool {
    annotation(claim, CLASS_BETA).is_some()
        || claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name.is_some())
}

fn class_of_volume(volume: &PersistentVolume) -> &str {
    let named = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(volume, CLASS_BETA).or(named).unwrap_or_default()
}

/// The class of claims that name none: the newest of those that say so.
///
/// Upstream: pkg/volume/util/storageclass.go GetDefaultClass
fn default_class<'a>(classes: impl IntoIterator<Item = &'a StorageClass>) -> Option<&'a StorageClass> {
    let is_default = |class: &&StorageClass| {
        [DEFAULT_CLASS, DEFAULT_CLASS_BETA].iter().any(|key| annotation(*class, key) == Some("true"))
    };
    let defaults = classes.into_iter().filter(is_default);
    defaults.min_by_key(|class| (std::cmp::Reverse(created(*class)), class.name().to_owned()))
}

fn amount(quantity: Option<&Quantity>) -> quantity::Quantity {
    let parsed = quantity.and_then(|quantity| quantity::Quantity::parse(&quantity.0).ok());
    parsed.unwrap_or_else(|| quantity::Quantity::from_value_i64(0))
}

fn requested(claim: &PersistentVolumeClaim) -> quantity::Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    amount(resources.and_then(|resources| resources.requests.as_ref()?.get("storage")))
}

fn capacity(volume: &PersistentVolume) -> quantity::Quantity {
    amount(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage")))
}

fn modes_differ(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let mode = |mode: Option<&String>| mode.map_or("Filesystem", String::as_str).to_owned();
    mode(claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref()))
        != mode(volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref()))
}

fn attributes_class_differs(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let of_claim = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let of_volume = volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    of_claim.unwrap_or_default() != of_volume.unwrap_or_default()
}

/// Whether the volume offers all ways of access that the claim wants.
fn offers_access(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let offered = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    let wanted = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    wanted.iter().all(|mode| offered.contains(mode))
}

/// Whether the volume is bound or reserved to the claim.
///
/// Upstream: component-helpers/storage/volume/pv_helpers.go IsVolumeBoundToClaim
fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| {
        let uid = reference.uid.as_deref().unwrap_or_default();
        reference.name.as_deref() == Some(claim.name())
            && reference.namespace.as_deref() == Some(claim.namespace())
            && (uid.is_empty() || uid == claim.uid())
    })
}

pub(crate) fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

pub(crate) fn claim_phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub(crate) fn volume_phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The claims that a pod mounts: by name, or made for it under its own name.
pub(crate) fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let claims = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name(), volume.name)),
        (None, None) => None,
    });
    claims.map(|claim| format!("{}/{claim}", pod.namespace())).collect()
}

/// The index of pods under which their claims are found.
pub(crate) const BY_CLAIM: &str = "claims";
