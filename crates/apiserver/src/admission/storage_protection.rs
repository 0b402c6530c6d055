//! Volumes and claims are not removed while in use: a finalizer keeps them.
//!
//! Upstream: plugin/pkg/admission/storage/storageobjectinuseprotection/admission.go

use apimachinery::Status;

use super::tree::list_mut;
use super::{Context, Plugin, is_create};
use crate::seams::AdmissionRequest;

pub(super) struct StorageObjectInUseProtection;

impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn mutate(&self, _context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_create(request) || !request.subresource.is_empty() {
            return Ok(());
        }
        let finalizer = match (&*request.gvr.group, &*request.gvr.resource) {
            ("", "persistentvolumes") => "kubernetes.io/pv-protection",
            ("", "persistentvolumeclaims") => "kubernetes.io/pvc-protection",
            ("storage.k8s.io", "volumeattributesclasses") => "kubernetes.io/vac-protection",
            _ => return Ok(()),
        };
        if let Some(finalizers) = list_mut(request.object, "metadata.finalizers")
            && !finalizers.iter().any(|f| f == finalizer)
        {
            finalizers.push(finalizer.into());
        }
        Ok(())
    }
}
