//! What to do about a claim.
//!
//! Upstream: pkg/controller/volume/persistentvolume/pv_controller.go syncClaim

use api::Object;
use api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use api::storage::v1::StorageClass;
use controller_runtime::EventType;

use super::{
    BIND_COMPLETED, SELECTED_NODE, attributes_class_differs, capacity, class_of_claim, class_of_volume,
    default_class, is_bound_to, modes_differ, offers_access, requested, says_class, volume_name,
    volume_phase,
};
use crate::objects::{annotation, is_deleting};
use crate::selector;

/// An event about the object that is decided on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tell {
    pub kind: EventType,
    pub reason: &'static str,
    pub message: String,
}

impl Tell {
    pub fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Tell { kind: EventType::Normal, reason, message: message.into() }
    }

    pub fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Tell { kind: EventType::Warning, reason, message: message.into() }
    }
}

#[derive(Debug, PartialEq)]
pub(super) enum ClaimPlan {
    /// It waits.
    Pending(Option<Tell>),
    /// It names no class while there is a default one.
    AssignClass(String),
    /// A volume is to be made by this provisioner; the class has been found.
    Provision(String),
    /// There is no such class.
    CannotProvision(Tell),
    Bind(String),
    Lost(Tell),
}

/// All volumes, classes, and the names of the claim's pods that no node has yet.
pub(super) struct View<'a> {
    pub volumes: &'a [&'a PersistentVolume],
    pub classes: &'a [&'a StorageClass],
    pub waiting_pods: &'a [String],
}

impl<'a> View<'a> {
    fn volume(&self, name: &str) -> Option<&'a PersistentVolume> {
        self.volumes.iter().copied().find(|volume| volume.name() == name)
    }

    fn class(&self, name: &str) -> Option<&'a StorageClass> {
        self.classes.iter().copied().find(|class| class.name() == name)
    }
}

pub(super) fn decide(claim: &PersistentVolumeClaim, view: &View<'_>) -> ClaimPlan {
    if annotation(claim, BIND_COMPLETED).is_some() {
        return decide_bound(claim, view);
    }
    match volume_name(claim) {
        "" => decide_free(claim, view),
        name => decide_named(claim, name, view),
    }
}

/// A claim that takes any volume.
fn decide_free(claim: &PersistentVolumeClaim, view: &View<'_>) -> ClaimPlan {
    let class = view.class(class_of_claim(claim));
    let delayed =
        class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    if let Some(volume) = best_match(claim, view.volumes, delayed) {
        return ClaimPlan::Bind(volume.name().to_owned());
    }
    if !says_class(claim)
        && let Some(class) = default_class(view.classes.iter().copied())
    {
        return ClaimPlan::AssignClass(class.name().to_owned());
    }
    if delayed && annotation(claim, SELECTED_NODE).is_none() {
        return ClaimPlan::Pending(Some(waiting(view.waiting_pods)));
    }
    let name = class_of_claim(claim);
    if name.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return ClaimPlan::Pending(Some(Tell::normal("FailedBinding", message)));
    }
    match class {
        // Upstream: pkg/volume/noop_expandable_plugin.go; the class of volumes that are made by hand.
        Some(class) if class.provisioner == "kubernetes.io/no-provisioner" => {
            let message = format!("storageclass.storage.k8s.io {name:?} does not provision");
            ClaimPlan::CannotProvision(Tell::warning("ProvisioningFailed", message))
        }
        Some(class) => ClaimPlan::Provision(class.provisioner.clone()),
        None => {
            let message = format!("storageclass.storage.k8s.io {name:?} not found");
            ClaimPlan::CannotProvision(Tell::warning("ProvisioningFailed", message))
        }
    }
}

/// Upstream: pkg/controller/volume/persistentvolume/pv_controller.go emitEventForUnboundDelayBindingClaim
fn waiting(pods: &[String]) -> Tell {
    match pods {
        [] => Tell::normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
        [pod] => Tell::normal("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
        pods => {
            let message = format!("waiting for pods {} to be scheduled", pods.join(","));
            Tell::normal("WaitForPodScheduled", message)
        }
    }
}

/// The volume that is reserved to the claim, else the one with the fewest ways of access and then the smallest
/// that does for it.
///
/// Upstream: pkg/controller/volume/persistentvolume/index.go findByClaim
fn best_match<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &[&'a PersistentVolume],
    delayed: bool,
) -> Option<&'a PersistentVolume> {
    let wanted = requested(claim);
    let fits = |volume: &&PersistentVolume| {
        let claimed = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some());
        (!claimed || is_bound_to(volume, claim))
            && capacity(volume) >= wanted
            && !modes_differ(claim, volume)
            && !attributes_class_differs(claim, volume)
            && !is_deleting(*volume)
            && offers_access(volume, claim)
    };
    let fitting: Vec<_> = volumes.iter().copied().filter(fits).collect();
    if let Some(reserved) = fitting.iter().find(|volume| is_bound_to(volume, claim)) {
        return Some(reserved);
    }
    if delayed {
        return None;
    }
    let labels = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let free = fitting.into_iter().filter(|volume| {
        volume_phase(volume) == "Available"
            && labels.is_none_or(|wanted| selector::matches(wanted, volume.metadata.labels.as_ref()))
            && class_of_volume(volume) == class_of_claim(claim)
    });
    let modes = |volume: &PersistentVolume| {
        volume.spec.as_ref().and_then(|spec| spec.access_modes.as_ref()).map_or(0, Vec::len)
    };
    free.min_by_key(|volume| (modes(volume), capacity(volume)))
}

/// Why the volume does not do for the claim.
///
/// Upstream: pkg/controller/volume/persistentvolume/pv_controller.go checkVolumeSatisfyClaim
fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    if is_deleting(volume) {
        return Some(format!("the volume is marked for deletion {:?}", volume.name()));
    }
    let faults = [
        (capacity(volume).value() < requested(claim).value(), "requested PV is too small"),
        (class_of_volume(volume) != class_of_claim(claim), "storageClassName does not match"),
        (attributes_class_differs(claim, volume), "volumeAttributesClassName does not match"),
        (modes_differ(claim, volume), "incompatible volumeMode"),
        (!offers_access(volume, claim), "incompatible accessMode"),
    ];
    faults.iter().find(|(is_so, _)| *is_so).map(|(_, why)| (*why).to_owned())
}

/// A claim that names its volume.
fn decide_named(claim: &PersistentVolumeClaim, name: &str, view: &View<'_>) -> ClaimPlan {
    let Some(volume) = view.volume(name) else { return ClaimPlan::Pending(None) };
    if volume.spec.as_ref().is_none_or(|spec| spec.claim_ref.is_none()) {
        return match mismatch(volume, claim) {
            Some(why) => {
                let message = format!("Cannot bind to requested volume {name:?}: {why}");
                ClaimPlan::Pending(Some(Tell::warning("VolumeMismatch", message)))
            }
            None => ClaimPlan::Bind(name.to_owned()),
        };
    }
    if is_bound_to(volume, claim) {
        return ClaimPlan::Bind(name.to_owned());
    }
    let message = format!("volume {name:?} already bound to a different claim.");
    ClaimPlan::Pending(Some(Tell::warning("FailedBinding", message)))
}

/// A claim that was bound already.
///
/// Upstream: pkg/controller/volume/persistentvolume/pv_controller.go syncBoundClaim
fn decide_bound(claim: &PersistentVolumeClaim, view: &View<'_>) -> ClaimPlan {
    let lost = |reason, message: &str| ClaimPlan::Lost(Tell::warning(reason, message));
    let name = volume_name(claim);
    if name.is_empty() {
        let message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return lost("ClaimLost", message);
    }
    let Some(volume) = view.volume(name) else {
        return lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!");
    };
    let claimed_by = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    match claimed_by {
        Some(by) if by.uid.as_deref() != Some(claim.uid()) => {
            lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
        }
        _ => ClaimPlan::Bind(name.to_owned()),
    }
}
