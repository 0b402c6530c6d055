//! A namespace is made when something is to be made in it.
//!
//! Upstream: plugin/pkg/admission/namespace/autoprovision/admission.go

use apimachinery::{GroupVersionResource, Status};
use client::{Client, Resource};
use serde_json::json;

use super::{Plugin, core, forbid, is, is_create};
use crate::seams::{AdmissionRequest, Lookup};

pub(super) const NAME: &str = "NamespaceAutoProvision";

/// Its place among the plugins; what it does is the chain's, which waits for it.
pub(super) struct NamespaceAutoProvision;

impl Plugin for NamespaceAutoProvision {
    fn name(&self) -> &'static str {
        NAME
    }

    fn is_default(&self) -> bool {
        false
    }
}

pub(super) async fn provide(
    client: Option<&Client>,
    lookup: &dyn Lookup,
    request: &AdmissionRequest<'_>,
) -> Result<(), Status> {
    let name = request.namespace;
    let wanted = is_create(request) && !request.dry_run && !name.is_empty() && !is(request, "", "namespaces");
    let Some(client) = client.filter(|_| wanted && lookup.get(&core("namespaces"), "", name).is_none())
    else {
        return Ok(());
    };
    let resource =
        Resource { gvr: GroupVersionResource::from_static("", "v1", "namespaces"), namespaced: false };
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    match client.create_value(&resource, "", None, &namespace).await {
        Ok(_) => Ok(()),
        Err(client::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
        Err(error) => Err(forbid(request, error)),
    }
}
