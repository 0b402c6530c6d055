//! A bound claim grows only where its storage class says that it may.
//!
//! Upstream: plugin/pkg/admission/storage/persistentvolume/resize/admission.go

use apimachinery::Status;
use resources::quota::{Quantities, class_of};

use super::default_storage_class::STORAGE_CLASSES;
use super::tree::{flag, text};
use super::{Context, Plugin, forbid, is_update, is_whole};
use crate::seams::AdmissionRequest;

pub(super) struct PersistentVolumeClaimResize;

impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(old) = request.old_object else { return Ok(()) };
        if !is_whole(request, "", "persistentvolumeclaims") || !is_update(request) {
            return Ok(());
        }
        let size = |claim| {
            Quantities::read(claim, "spec.resources.requests").get("storage").cloned().unwrap_or_default()
        };
        if size(request.object) <= size(old) {
            return Ok(());
        }
        if text(old, "status.phase") != "Bound" {
            return Err(forbid(request, "Only bound persistent volume claims can be expanded"));
        }
        let class = class_of(request.object);
        let expands = !class.is_empty()
            && class == class_of(old)
            && context
                .lookup
                .get(&STORAGE_CLASSES, "", class)
                .is_some_and(|class| flag(&class, "allowVolumeExpansion") == Some(true));
        if expands {
            return Ok(());
        }
        let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
                   support resize";
        Err(forbid(request, why))
    }
}
