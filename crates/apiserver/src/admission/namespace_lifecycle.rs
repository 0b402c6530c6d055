//! Nothing is made in a namespace that is not there or is going away; some namespaces stay.
//!
//! Upstream: apiserver/pkg/admission/plugin/namespace/lifecycle/admission.go

use apimachinery::Status;
use apimachinery::status::Cause;

use super::tree::text;
use super::{Context, Plugin, core, forbid, is};
use crate::seams::{AdmissionRequest, Operation};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) struct NamespaceLifecycle;

impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn mutate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if is(request, "", "namespaces") {
            if request.operation == Operation::Delete && IMMORTAL.contains(&request.name) {
                return Err(Status::forbidden(
                    &core("namespaces"),
                    request.name,
                    "this namespace may not be deleted",
                ));
            }
            return Ok(());
        }
        let review = is(request, "authorization.k8s.io", "localsubjectaccessreviews");
        let changes = matches!(request.operation, Operation::Create | Operation::Update);
        if request.namespace.is_empty() || review || !changes {
            return Ok(());
        }
        let Some(namespace) = context.lookup.get(&core("namespaces"), "", request.namespace) else {
            return Err(Status::not_found(&core("namespaces"), request.namespace));
        };
        if request.operation == Operation::Create && text(&namespace, "status.phase") == "Terminating" {
            let name = request.namespace;
            let why =
                format!("unable to create new content in namespace {name} because it is being terminated");
            let mut status = forbid(request, why);
            if let Some(details) = &mut status.details {
                details.causes.push(Cause {
                    reason: "NamespaceTerminating".to_owned(),
                    message: format!("namespace {name} is being terminated"),
                    field: "metadata.namespace".to_owned(),
                });
            }
            return Err(status);
        }
        Ok(())
    }
}
