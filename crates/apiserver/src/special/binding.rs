//! `pods/binding`: the scheduler's way to give a pod a node.
//!
//! Upstream: pkg/registry/core/pod/storage/storage.go BindingREST

use std::sync::Arc;

use apimachinery::{GroupResource, GroupVersionKind, Status, field};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::part::Part;
use super::read;
use crate::handle::{ApiServer, Asked};
use crate::registry::call::Call;
use crate::registry::metadata;
use crate::seams::{Attributes, Operation};

const BINDING: GroupVersionKind = GroupVersionKind::from_static("", "v1", "Binding");

pub async fn handle(
    server: &Arc<ApiServer>,
    call: &mut Call<'_>,
    asked: &Asked,
    body: &Bytes,
) -> Result<(StatusCode, Value), Status> {
    let mut binding = read(call, asked, body, &BINDING)?;
    let attributes = &asked.info.attributes;
    let name = match attributes.name.as_str() {
        "" => metadata::text(&binding, "name").to_owned(),
        name => name.to_owned(),
    };
    check(&binding, &name)?;
    metadata::of(&mut binding).insert("name".into(), name.as_str().into());
    metadata::of(&mut binding).entry("namespace").or_insert_with(|| attributes.namespace.as_str().into());
    call.mutate(Operation::Create, &name, &mut binding, None).await?;
    call.validate_admission(Operation::Create, &name, &mut binding, None).await?;

    let table = server.registry.table();
    let pods = table.find("", "v1", "pods").ok_or_else(Status::page_not_found)?;
    let attributes =
        Attributes { resource: "pods".into(), subresource: "binding".into(), ..attributes.clone() };
    let mut pod_call = Call {
        server,
        resource: pods,
        attributes: &attributes,
        user: &asked.user,
        options: call.options.clone(),
        options_value: call.options_value.clone(),
        manager: call.manager.clone(),
        warnings: Vec::new(),
        annotations: Vec::new(),
        applied: false,
        versioned: false,
    };
    pod_call.bind(&name, &binding).await?;
    Ok((
        StatusCode::CREATED,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

fn check(binding: &Value, name: &str) -> Result<(), Status> {
    let mut errors = Vec::new();
    let target = field::Path::new("target");
    let kind = binding["target"]["kind"].as_str().unwrap_or_default();
    if !matches!(kind, "" | "Node") {
        errors.push(field::Error::not_supported(&target.child("kind"), kind, &["Node", "<empty>"]));
    }
    if binding["target"]["name"].as_str().unwrap_or_default().is_empty() {
        errors.push(field::Error::required(&target.child("name"), ""));
    }
    let given = metadata::text(binding, "name");
    if given != name && !given.is_empty() {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    // Upstream hands its list of errors on as the one error that no handler knows.
    if errors.is_empty() { Ok(()) } else { Err(Status::unknown_error(field::aggregate(&errors))) }
}

impl Call<'_> {
    /// Sets the node of a pod that has none.
    async fn bind(&mut self, name: &str, binding: &Value) -> Result<(), Status> {
        let resource = GroupResource::from_static("", "pods/binding");
        let now = apimachinery::time::rfc3339(self.server.now());
        let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
        let refuse = |why: String| Err(Status::conflict(&resource, name, why));
        let mut change = |old: &Value| {
            let uid = metadata::text(binding, "uid");
            if !uid.is_empty() && uid != metadata::text(old, "uid") {
                let was = metadata::text(old, "uid");
                return refuse(format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {was}"
                ));
            }
            if metadata::is_terminating(old) {
                return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
            }
            if let Some(assigned) = old["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
                return refuse(format!("pod {name} is already assigned to node {assigned:?}"));
            }
            if old["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
                return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
            }
            Ok(bound(old, binding, &node, &now))
        };
        self.update(name, Part::Binding, false, &mut change).await.map(drop)
    }
}

fn bound(old: &Value, binding: &Value, node: &str, now: &str) -> Value {
    let mut pod = old.clone();
    pod["spec"]["nodeName"] = node.into();
    for field in ["annotations", "labels"] {
        for (key, value) in binding["metadata"][field].as_object().into_iter().flatten() {
            pod["metadata"][field][key] = value.clone();
        }
    }
    // Where it was expected to go is history.
    if let Some(status) = pod["status"].as_object_mut() {
        status.remove("nominatedNodeName");
    }
    let condition =
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    if let Some(conditions) = pod["status"]["conditions"].as_array_mut() {
        match conditions.iter_mut().find(|c| c["type"] == "PodScheduled") {
            Some(present) => *present = condition,
            None => conditions.push(condition),
        }
    }
    pod
}
