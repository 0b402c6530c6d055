//! What a node may write: itself, its lease, its mirror pods, the status of its pods, tokens for its pods.
//!
//! Upstream: plugin/pkg/admission/noderestriction/admission.go

use std::collections::BTreeSet;
use std::sync::Arc;

use apimachinery::Status;
use serde_json::Value;

use super::certificate_approval::{GROUP as CERTIFICATES, REQUESTS};
use super::certificate_subject_restriction::subject;
use super::pod::{MIRROR_ANNOTATION, api_reference, is_mirror};
use super::tree::{at, entries, flag, items, same, strings, text};
use super::{Context, Plugin, core, forbid};
use crate::authz::node_identity;
use crate::seams::{AdmissionRequest, Attributes, Operation};

pub(super) struct NodeRestriction;

type Verdict = Result<(), Status>;

impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn mutate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Verdict {
        let Some(node) = node_identity(request.user) else { return Ok(()) };
        if request.operation == Operation::Connect {
            return Ok(());
        }
        if node.is_empty() {
            let why = format!("could not determine node from user {:?}", request.user.name);
            return Err(forbid(request, why));
        }
        match (&*request.gvr.group, &*request.gvr.resource, request.subresource) {
            ("", "pods", "") => admit_pod(context, node, request),
            ("", "pods", "status") => admit_pod_status(node, request),
            ("", "pods", "eviction") => admit_eviction(context, node, request),
            ("", "pods", other) => Err(forbid(
                request,
                format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"),
            )),
            ("", "nodes", _) => admit_node(node, request),
            ("", "persistentvolumeclaims", "status") => admit_claim_status(node, request),
            ("", "persistentvolumeclaims", _) => Err(forbid(request, "may only update PVC status")),
            ("", "serviceaccounts", "token") => admit_token(context, node, request),
            ("coordination.k8s.io", "leases", _) => admit_lease(node, request),
            ("storage.k8s.io", "csinodes", _) if own_name(request) != node => {
                Err(forbid(request, "can only access CSINode with the same name as the requesting node"))
            }
            ("resource.k8s.io", "resourceslices", _) => admit_slice(node, request),
            (CERTIFICATES, REQUESTS, "") => admit_certificate_request(node, request),
            _ => Ok(()),
        }
    }
}

fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// The name of the object; at create it stands only in the object.
fn own_name<'a>(request: &'a AdmissionRequest<'_>) -> &'a str {
    match request.operation {
        Operation::Create => text(request.object, "metadata.name"),
        _ => request.name,
    }
}

fn find_pod(context: &Context, request: &AdmissionRequest<'_>, name: &str) -> Result<Arc<Value>, Status> {
    let pod = context.lookup.get(&core("pods"), request.namespace, name);
    pod.ok_or_else(|| Status::not_found(&core("pods"), name))
}

fn admit_pod(context: &Context, node: &str, request: &AdmissionRequest<'_>) -> Verdict {
    match request.operation {
        Operation::Create => {
            check_mirror_owner(context, node, request)?;
            match api_reference(request.object) {
                Some(what) => {
                    Err(forbid(request, format!("node {node:?} can not create pods that reference {what}")))
                }
                None => Ok(()),
            }
        }
        Operation::Delete => {
            let pod = find_pod(context, request, request.name)?;
            if text(&pod, "spec.nodeName") == node {
                return Ok(());
            }
            Err(forbid(
                request,
                format!("node {node:?} can only delete pods with spec.nodeName set to itself"),
            ))
        }
        other => Err(forbid(
            request,
            format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                operation_name(other)
            ),
        )),
    }
}

fn check_mirror_owner(context: &Context, node: &str, request: &AdmissionRequest<'_>) -> Verdict {
    let pod = &*request.object;
    let refuse = |why: String| Err(forbid(request, why));
    if !is_mirror(pod) {
        return refuse(format!(
            "pod does not have {MIRROR_ANNOTATION:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if text(pod, "spec.nodeName") != node {
        return refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owner = match items(pod, "metadata.ownerReferences") {
        [] => {
            return refuse(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            ));
        }
        [owner] => owner,
        _ => {
            return refuse(format!(
                "node {node:?} can only create pods with a single owner reference set to itself"
            ));
        }
    };
    if text(owner, "apiVersion") != "v1" || text(owner, "kind") != "Node" || text(owner, "name") != node {
        return refuse(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if flag(owner, "controller") != Some(true) {
        return refuse(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        ));
    }
    if flag(owner, "blockOwnerDeletion") == Some(true) {
        return refuse(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let found = context.lookup.get(&core("nodes"), "", node);
    let found = found.ok_or_else(|| Status::not_found(&core("nodes"), node))?;
    let (expected, got) = (text(owner, "uid"), text(&found, "metadata.uid"));
    if expected != got {
        return refuse(format!("node {node} UID mismatch: expected {expected} got {got}"));
    }
    Ok(())
}

fn admit_pod_status(node: &str, request: &AdmissionRequest<'_>) -> Verdict {
    let (Operation::Update, Some(old)) = (request.operation, request.old_object) else {
        return Err(forbid(request, format!("unexpected operation {:?}", operation_name(request.operation))));
    };
    let unchanged = |path| same(at(old, path), at(request.object, path));
    let why = if text(old, "spec.nodeName") != node {
        "can only update pod status for pods with spec.nodeName set to itself"
    } else if !unchanged("metadata.labels") {
        "cannot update labels through pod status"
    } else if !unchanged("status.resourceClaimStatuses") {
        "cannot update resource claim statues"
    } else if !unchanged("status.extendedResourceClaimStatus") {
        "cannot update extended resource claim status"
    } else {
        return Ok(());
    };
    Err(forbid(request, format!("node {node:?} {why}")))
}

fn admit_eviction(context: &Context, node: &str, request: &AdmissionRequest<'_>) -> Verdict {
    if request.operation != Operation::Create {
        return Err(forbid(request, format!("unexpected operation {}", operation_name(request.operation))));
    }
    let named = Some(request.name).filter(|name| !name.is_empty());
    let name = named.unwrap_or_else(|| text(request.object, "metadata.name"));
    if name.is_empty() {
        return Err(forbid(request, "could not determine pod from request data"));
    }
    let pod = find_pod(context, request, name)?;
    if text(&pod, "spec.nodeName") == node {
        return Ok(());
    }
    Err(forbid(request, format!("node {node} can only evict pods with spec.nodeName set to itself")))
}

fn admit_claim_status(node: &str, request: &AdmissionRequest<'_>) -> Verdict {
    let (Operation::Update, Some(old)) = (request.operation, request.old_object) else {
        return Err(forbid(request, format!("unexpected operation {:?}", operation_name(request.operation))));
    };
    let strip = |claim: &Value| {
        let mut claim = claim.clone();
        let mut remove = |part: &str, fields: &[&str]| {
            if let Some(map) = claim.get_mut(part).and_then(Value::as_object_mut) {
                fields.iter().for_each(|field| drop(map.remove(*field)));
            }
        };
        remove("metadata", &["resourceVersion", "managedFields"]);
        remove("status", &["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"]);
        claim
    };
    if same(Some(&strip(old)), Some(&strip(request.object))) {
        return Ok(());
    }
    let why = format!(
        "node {node:?} is not allowed to update fields other than status.quantity and status.conditions"
    );
    Err(forbid(request, why))
}

fn admit_node(node: &str, request: &AdmissionRequest<'_>) -> Verdict {
    let refuse = |why: String| Err(forbid(request, why));
    let requested = if request.name.is_empty() { own_name(request) } else { request.name };
    if requested != node {
        return refuse(format!("node {node:?} is not allowed to modify node {requested:?}"));
    }
    let new = &*request.object;
    match (request.operation, request.old_object) {
        (Operation::Create, _) => {
            if at(new, "spec.configSource").is_some() {
                return refuse(format!(
                    "node {node:?} is not allowed to create pods with a non-nil configSource"
                ));
            }
            let labels = forbidden_labels(new, &Value::Null);
            if !labels.is_empty() {
                let labels = labels.into_iter().collect::<Vec<_>>().join(", ");
                return refuse(format!("node {node:?} is not allowed to set the following labels: {labels}"));
            }
        }
        (Operation::Update, Some(old)) => {
            let unchanged = |path| same(at(old, path), at(new, path));
            if at(new, "spec.configSource").is_some() && !unchanged("spec.configSource") {
                return refuse(format!(
                    "node {node:?} is not allowed to update configSource to a new non-nil configSource"
                ));
            }
            if !unchanged("spec.taints") {
                return refuse(format!("node {node:?} is not allowed to modify taints"));
            }
            if !unchanged("metadata.ownerReferences") {
                return refuse(format!("node {node:?} is not allowed to modify ownerReferences"));
            }
            let labels = forbidden_labels(new, old);
            if !labels.is_empty() {
                let labels = labels.into_iter().collect::<Vec<_>>().join(", ");
                return refuse(format!("is not allowed to modify labels: {labels}"));
            }
        }
        _ => {}
    }
    Ok(())
}

/// The labels that differ and that are not a node's to set.
fn forbidden_labels<'a>(new: &'a Value, old: &'a Value) -> BTreeSet<&'a str> {
    let path = "metadata.labels";
    let differs = |a: &'a Value, b: &'a Value| {
        entries(a, path)
            .filter(move |(key, value)| at(b, path).and_then(|labels| labels.get(*key)) != Some(*value))
    };
    differs(new, old)
        .chain(differs(old, new))
        .map(|(key, _)| key)
        .filter(|key| is_forbidden_label(key))
        .collect()
}

/// Labels of Kubernetes that kubelets set about their own node.
///
/// Upstream: kubelet/pkg/apis/well_known_labels.go
const KUBELET_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];

fn is_forbidden_label(key: &str) -> bool {
    let domain = key.split_once('/').map(|(domain, _)| domain).unwrap_or_default();
    let within = |suffix: &str| {
        domain == suffix || domain.strip_suffix(suffix).is_some_and(|prefix| prefix.ends_with('.'))
    };
    if within("node-restriction.kubernetes.io") {
        return true;
    }
    let kubelet =
        KUBELET_LABELS.contains(&key) || within("kubelet.kubernetes.io") || within("node.kubernetes.io");
    (within("kubernetes.io") || within("k8s.io")) && !kubelet
}

fn admit_token(context: &Context, node: &str, request: &AdmissionRequest<'_>) -> Verdict {
    if request.operation != Operation::Create {
        return Ok(());
    }
    let reference = at(request.object, "spec.boundObjectRef").unwrap_or(&Value::Null);
    let name = text(reference, "name");
    if text(reference, "apiVersion") != "v1" || text(reference, "kind") != "Pod" || name.is_empty() {
        return Err(forbid(request, "node requested token not bound to a pod"));
    }
    let uid = text(reference, "uid");
    if uid.is_empty() {
        return Err(forbid(request, "node requested token with a pod binding without a uid"));
    }
    let pod = find_pod(context, request, name)?;
    if uid != text(&pod, "metadata.uid") {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have \
             been deleted and then recreated"
        );
        return Err(forbid(request, why));
    }
    if text(&pod, "spec.nodeName") != node {
        return Err(forbid(request, "node requested token bound to a pod scheduled on a different node"));
    }
    check_audience(context, request, &pod)
}

/// A node gets a token for an audience that its pod asks for in a volume, or that it is explicitly allowed.
fn check_audience(context: &Context, request: &AdmissionRequest<'_>, pod: &Value) -> Verdict {
    let audiences = strings(request.object, "spec.audiences");
    let audience = match audiences.as_slice() {
        [] => "",
        [one] => one,
        _ => return Err(forbid(request, "node may only request 0 or 1 audiences")),
    };
    if pod_asks_for(context, request.namespace, pod, audience) {
        return Ok(());
    }
    let attributes = Attributes {
        verb: "request-serviceaccounts-token-audience".to_owned(),
        namespace: request.namespace.to_owned(),
        version: "v1".to_owned(),
        resource: audience.to_owned(),
        name: request.name.to_owned(),
        is_resource: true,
        ..Default::default()
    };
    if context.authorizer.allows(request.user, &attributes) {
        return Ok(());
    }
    let user = &request.user.name;
    Err(forbid(
        request,
        format!(
            "audience {audience:?} not found in pod spec volume, {user} is not authorized to request tokens for this \
             audience"
        ),
    ))
}

fn pod_asks_for(context: &Context, namespace: &str, pod: &Value, audience: &str) -> bool {
    let driver_of_claim = |claim: &str| {
        let claim = context.lookup.get(&core("persistentvolumeclaims"), namespace, claim)?;
        let volume = context.lookup.get(&core("persistentvolumes"), "", text(&claim, "spec.volumeName"))?;
        Some(text(&volume, "spec.csi.driver").to_owned())
    };
    items(pod, "spec.volumes").iter().any(|volume| {
        let projected = items(volume, "projected.sources")
            .iter()
            .filter_map(|source| at(source, "serviceAccountToken"))
            .any(|token| text(token, "audience") == audience);
        let driver = if at(volume, "ephemeral.volumeClaimTemplate").is_some() {
            driver_of_claim(&format!("{}-{}", text(pod, "metadata.name"), text(volume, "name")))
        } else if let Some(claim) = at(volume, "persistentVolumeClaim") {
            driver_of_claim(text(claim, "claimName"))
        } else {
            at(volume, "csi").map(|csi| text(csi, "driver").to_owned())
        };
        let by_driver = driver.is_some_and(|driver| {
            let drivers = apimachinery::GroupResource::from_static("storage.k8s.io", "csidrivers");
            context.lookup.get(&drivers, "", &driver).is_some_and(|driver| {
                items(&driver, "spec.tokenRequests").iter().any(|token| text(token, "audience") == audience)
            })
        });
        projected || by_driver
    })
}

fn admit_lease(node: &str, request: &AdmissionRequest<'_>) -> Verdict {
    if request.namespace != "kube-node-lease" {
        return Err(forbid(request, "can only access leases in the \"kube-node-lease\" system namespace"));
    }
    if own_name(request) != node {
        return Err(forbid(request, "can only access node lease with the same name as the requesting node"));
    }
    Ok(())
}

fn admit_slice(node: &str, request: &AdmissionRequest<'_>) -> Verdict {
    let (slice, verb) = match request.operation {
        Operation::Create => (Some(&*request.object), "create"),
        Operation::Delete => (request.old_object, "delete"),
        _ => return Ok(()),
    };
    if slice.is_some_and(|slice| text(slice, "spec.nodeName") == node) {
        return Ok(());
    }
    Err(forbid(
        request,
        format!("can only {verb} ResourceSlice with the same NodeName as the requesting node"),
    ))
}

fn admit_certificate_request(node: &str, request: &AdmissionRequest<'_>) -> Verdict {
    const SIGNERS: [&str; 2] =
        ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"];
    if request.operation != Operation::Create || !SIGNERS.contains(&text(request.object, "spec.signerName")) {
        return Ok(());
    }
    let (name, _) = subject(text(request.object, "spec.request"))
        .map_err(|why| forbid(request, format!("unable to parse csr: {why}")))?;
    if name != format!("system:node:{node}") {
        return Err(forbid(request, format!("can only create a node CSR with CN=system:node:{node}")));
    }
    Ok(())
}
