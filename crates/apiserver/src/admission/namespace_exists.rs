//! Nothing is made, changed or removed in a namespace that is not there.
//!
//! Upstream: plugin/pkg/admission/namespace/exists/admission.go

use apimachinery::Status;

use super::{Context, Plugin, core, is};
use crate::seams::{AdmissionRequest, Operation};

pub(super) struct NamespaceExists;

impl Plugin for NamespaceExists {
    fn name(&self) -> &'static str {
        "NamespaceExists"
    }

    fn is_default(&self) -> bool {
        false
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let connects = request.operation == Operation::Connect;
        if connects || request.namespace.is_empty() || is(request, "", "namespaces") {
            return Ok(());
        }
        match context.lookup.get(&core("namespaces"), "", request.namespace) {
            Some(_) => Ok(()),
            None => Err(Status::not_found(&core("namespaces"), request.namespace)),
        }
    }
}
