//! An Ingress that names no class gets the default one.
//!
//! Upstream: plugin/pkg/admission/network/defaultingressclass/admission.go

use apimachinery::{GroupResource, Status};

use super::tree::{annotation, at, set, text};
use super::{Context, Plugin, default_class, is_create, is_whole};
use crate::seams::AdmissionRequest;

const INGRESS_CLASSES: GroupResource = GroupResource::from_static("networking.k8s.io", "ingressclasses");

pub(super) struct DefaultIngressClass;

impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn mutate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_whole(request, "networking.k8s.io", "ingresses") || !is_create(request) {
            return Ok(());
        }
        let chosen = at(request.object, "spec.ingressClassName").is_some()
            || annotation(request.object, "kubernetes.io/ingress.class").is_some();
        let annotations = ["ingressclass.kubernetes.io/is-default-class"];
        if !chosen && let Some(class) = default_class(&*context.lookup, &INGRESS_CLASSES, &annotations) {
            set(request.object, "spec.ingressClassName", text(&class, "metadata.name"));
        }
        Ok(())
    }
}
