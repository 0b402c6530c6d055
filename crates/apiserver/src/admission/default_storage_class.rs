//! A claim that names no storage class gets the default one.
//!
//! Upstream: plugin/pkg/admission/storage/storageclass/setdefault/admission.go

use apimachinery::{GroupResource, Status};

use super::tree::{annotation, at, set, text};
use super::{Context, Plugin, default_class, is_create, is_whole};
use crate::seams::AdmissionRequest;

pub(super) const STORAGE_CLASSES: GroupResource =
    GroupResource::from_static("storage.k8s.io", "storageclasses");
const DEFAULT_ANNOTATIONS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
pub(super) const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

pub(super) struct DefaultStorageClass;

impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn mutate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_whole(request, "", "persistentvolumeclaims") || !is_create(request) {
            return Ok(());
        }
        // The empty class is a choice too: it asks for no dynamic provisioning.
        let chosen = at(request.object, "spec.storageClassName").is_some()
            || annotation(request.object, CLASS_ANNOTATION).is_some();
        if !chosen
            && let Some(class) = default_class(&*context.lookup, &STORAGE_CLASSES, &DEFAULT_ANNOTATIONS)
        {
            set(request.object, "spec.storageClassName", text(&class, "metadata.name"));
        }
        Ok(())
    }
}
