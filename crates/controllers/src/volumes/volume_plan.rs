//! What to do about a volume.
//!
//! Upstream: pkg/controller/volume/persistentvolume/pv_controller.go syncVolume

use api::Object;
use api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::claim_plan::Tell;
use super::{BOUND_BY_CONTROLLER, PROVISIONED_BY, modes_differ, volume_name, volume_phase};
use crate::objects::annotation;

#[derive(Debug, PartialEq)]
pub(super) enum VolumePlan {
    /// Nobody's, or reserved to a claim that has not come.
    Available,
    Bound,
    /// The claim is gone.
    Released(Reclaim),
    /// The claim is bound elsewhere: the volume is free again.
    Unbind {
        /// Nothing of the claim is kept; else the volume stays reserved to its name.
        entirely: bool,
    },
    /// The claim's turn: it takes the volume.
    AskClaim,
    /// Volume and claim can never be one.
    Mismatch,
}

#[derive(Debug, PartialEq)]
pub(super) enum Reclaim {
    /// The volume stays as it is.
    Retain,
    /// Whoever made it removes it.
    Delete,
    Recycle,
    Unknown,
}

/// `claim` is the one that the volume names, when it exists with the same uid.
pub(super) fn decide(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumePlan {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if reference.and_then(|reference| reference.uid.as_deref()).unwrap_or_default().is_empty() {
        return VolumePlan::Available;
    }
    let Some(claim) = claim else { return VolumePlan::Released(reclaim(volume)) };
    match volume_name(claim) {
        "" if modes_differ(claim, volume) => VolumePlan::Mismatch,
        "" => VolumePlan::AskClaim,
        name if name == volume.name() => VolumePlan::Bound,
        _ if annotation(volume, PROVISIONED_BY).is_some() && reclaim(volume) == Reclaim::Delete => {
            VolumePlan::Released(Reclaim::Delete)
        }
        _ => VolumePlan::Unbind { entirely: annotation(volume, BOUND_BY_CONTROLLER).is_some() },
    }
}

fn reclaim(volume: &PersistentVolume) -> Reclaim {
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    match policy {
        Some("Retain") => Reclaim::Retain,
        Some("Delete") => Reclaim::Delete,
        Some("Recycle") => Reclaim::Recycle,
        _ => Reclaim::Unknown,
    }
}

/// Why a released volume cannot be reclaimed.
pub(super) fn failure(volume: &PersistentVolume, reclaim: &Reclaim) -> Option<Tell> {
    match reclaim {
        Reclaim::Unknown => Some(Tell::warning(
            "VolumeUnknownReclaimPolicy",
            "Volume has unrecognized PersistentVolumeReclaimPolicy",
        )),
        Reclaim::Recycle => {
            Some(Tell::warning("VolumeFailedRecycle", "No recycler plugin found for the volume!"))
        }
        // What was provisioned is removed by who did it; nobody removes what was made by hand.
        Reclaim::Delete if annotation(volume, PROVISIONED_BY).is_none() && !is_csi(volume) => {
            let message = format!(
                "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
                volume.name()
            );
            Some(Tell::warning("VolumeFailedDelete", message))
        }
        _ => None,
    }
}

fn is_csi(volume: &PersistentVolume) -> bool {
    volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some())
}

/// Failed is for the user to see, and stays.
pub(super) fn is_released(volume: &PersistentVolume) -> bool {
    matches!(volume_phase(volume), "Released" | "Failed")
}
