//! Who names an owner must be allowed to delete the owned; who lets it hold up the owner's deletion must be allowed to
//! do that to the owner.
//!
//! Upstream: plugin/pkg/admission/gc/gc_admission.go

use apimachinery::{GroupVersion, GroupVersionKind, Status};
use serde_json::Value;

use super::tree::{items, same, text};
use super::{Context, Plugin, forbid, is, is_create, is_update};
use crate::seams::{AdmissionRequest, Attributes, Decision};

const OWNERS: &str = "metadata.ownerReferences";

pub(super) struct OwnerReferencesPermissionEnforcement;

/// Why not, when the user may not.
fn refused(context: &Context, request: &AdmissionRequest<'_>, attributes: &Attributes) -> Option<String> {
    match context.authorizer.decide(request.user, attributes).decision {
        Decision::Allow { .. } => None,
        Decision::Deny { reason } | Decision::NoOpinion { reason } => Some(reason),
    }
}

fn blocks(owner: &Value) -> bool {
    owner["blockOwnerDeletion"] == true
}

/// The owners whose deletion is held up from now on.
fn newly_blocking<'a>(object: &'a Value, old: Option<&Value>) -> Vec<&'a Value> {
    let before = old.map(|old| items(old, OWNERS)).unwrap_or_default();
    let blocked = |uid: &str| before.iter().any(|owner| text(owner, "uid") == uid && blocks(owner));
    items(object, OWNERS).iter().filter(|owner| blocks(owner) && !blocked(text(owner, "uid"))).collect()
}

fn finalizers(group: &str, version: &str, resource: &str, name: &str) -> Attributes {
    Attributes {
        verb: "update".to_owned(),
        group: group.to_owned(),
        version: version.to_owned(),
        resource: resource.to_owned(),
        subresource: "finalizers".to_owned(),
        name: name.to_owned(),
        is_resource: true,
        ..Default::default()
    }
}

impl Plugin for OwnerReferencesPermissionEnforcement {
    fn name(&self) -> &'static str {
        "OwnerReferencesPermissionEnforcement"
    }

    fn is_default(&self) -> bool {
        false
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        // A pod's status and binding cannot change its owners.
        let harmless = is(request, "", "pods") && matches!(request.subresource, "status" | "binding");
        if harmless || !(is_create(request) || is_update(request)) {
            return Ok(());
        }
        let owners = |object: &Value| object["metadata"].get("ownerReferences").cloned();
        let before = request.old_object.and_then(owners);
        if same(owners(request.object).as_ref(), before.as_ref()) {
            return Ok(());
        }
        if is_update(request) {
            let deletes = Attributes {
                verb: "delete".to_owned(),
                namespace: request.namespace.to_owned(),
                group: request.gvr.group.to_string(),
                version: request.gvr.version.to_string(),
                resource: request.gvr.resource.to_string(),
                subresource: request.subresource.to_owned(),
                name: request.name.to_owned(),
                is_resource: true,
                ..Default::default()
            };
            if let Some(why) = refused(context, request, &deletes) {
                let why = format!("cannot set an ownerRef on a resource you can't delete: {why}, <nil>");
                return Err(forbid(request, why));
            }
        }
        let blocking = newly_blocking(request.object, request.old_object);
        if blocking.is_empty() || refused(context, request, &finalizers("*", "*", "*", "*")).is_none() {
            return Ok(());
        }
        for owner in blocking {
            check_owner(context, request, owner)?;
        }
        Ok(())
    }
}

fn check_owner(context: &Context, request: &AdmissionRequest<'_>, owner: &Value) -> Result<(), Status> {
    let (api_version, kind) = (text(owner, "apiVersion"), text(owner, "kind"));
    let gvk = GroupVersion::parse(api_version)
        .map(|GroupVersion { group, version }| GroupVersionKind::new(group, version, kind.to_owned()));
    let found = gvk.as_ref().and_then(|gvk| context.lookup.resource_of(gvk));
    let (Some(gvk), Some((resource, namespaced))) = (gvk, found) else {
        let why = format!(
            "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {api_version} \
             Kind {kind}: no matches for kind {kind:?} in version {api_version:?}"
        );
        return Err(forbid(request, why));
    };
    let mut attributes = finalizers(&resource.group, &gvk.version, &resource.resource, text(owner, "name"));
    if namespaced {
        attributes.namespace = request.namespace.to_owned();
    }
    match refused(context, request, &attributes) {
        None => Ok(()),
        Some(why) => {
            let why = format!(
                "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: \
                 {why}, <nil>"
            );
            Err(forbid(request, why))
        }
    }
}
