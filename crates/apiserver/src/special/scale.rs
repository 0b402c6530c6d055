//! `scale`: the replicas of a workload as an object of their own.
//!
//! Upstream: pkg/registry/apps/deployment/storage/storage.go ScaleREST

use apimachinery::selector::LabelSelector;
use apimachinery::{GroupVersionKind, Status, field};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::part::Part;
use super::read;
use crate::encode::Outcome;
use crate::handle::Asked;
use crate::negotiate::{self, Patch};
use crate::registry::call::Call;
use crate::registry::metadata;

const SCALE: GroupVersionKind = GroupVersionKind::from_static("autoscaling", "v1", "Scale");

/// The scale of a workload.
fn scale(object: &Value) -> Value {
    let mut shown =
        json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {}, "spec": {}, "status": {}});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            shown["metadata"][field] = value.clone();
        }
    }
    shown["spec"]["replicas"] = object["spec"]["replicas"].as_i64().unwrap_or(0).into();
    shown["status"]["replicas"] = object["status"]["replicas"].as_i64().unwrap_or(0).into();
    let selector = &object["spec"]["selector"];
    let text = match selector.as_object() {
        // A ReplicationController's selector is a map of labels.
        Some(map) if object["kind"] == "ReplicationController" => {
            Ok(LabelSelector::from_map(map.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default()))))
        }
        _ => LabelSelector::from_object(selector),
    };
    if let Ok(text) = text
        && !text.is_empty()
        && !text.is_nothing()
    {
        shown["status"]["selector"] = text.to_string().into();
    }
    shown
}

/// The workload with the replicas of a scale.
fn with_scale(object: &Value, scale: &Value) -> Result<Value, Status> {
    let mut changed = object.clone();
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let path = field::Path::new("spec").child("replicas");
        let error = field::Error::invalid(&path, replicas, "must be greater than or equal to 0");
        return Err(Status::invalid(&SCALE.group_kind(), metadata::text(scale, "name"), &[error]));
    }
    changed["spec"]["replicas"] = replicas.into();
    let version = metadata::text(scale, "resourceVersion");
    match version {
        "" => drop(
            metadata::of(&mut changed)
                .insert("resourceVersion".into(), metadata::text(object, "resourceVersion").into()),
        ),
        version => drop(metadata::of(&mut changed).insert("resourceVersion".into(), version.into())),
    }
    let uid = metadata::text(scale, "uid");
    if !uid.is_empty() {
        metadata::of(&mut changed).insert("uid".into(), uid.into());
    }
    Ok(changed)
}

pub async fn handle(call: &mut Call<'_>, asked: &Asked, body: &Bytes) -> Result<(StatusCode, Value), Status> {
    let name = asked.info.attributes.name.clone();
    if asked.info.attributes.verb == "get" {
        let object = call.registry().get(call.resource, call.namespace(), &name)?;
        let object = object.ok_or_else(|| call.not_found(&name))?;
        return Ok((StatusCode::OK, scale(&call.tree(&object))));
    }
    let patch = asked.info.attributes.verb == "patch";
    let sent = if patch { Value::Null } else { read(asked, body, &SCALE)? };
    let kind = if patch { Some(negotiate::patch(&asked.parts.headers, true)?) } else { None };
    let mut change = |old: &Value| match kind {
        None => with_scale(old, &sent),
        Some(kind) => with_scale(old, &patched(&scale(old), kind, body)?),
    };
    let (outcome, _) = call.update(&name, Part::Whole, false, &mut change).await?;
    let object = match outcome {
        Outcome::Stored(object) => Value::clone(&call.tree(&object)),
        Outcome::Tree(tree) => tree,
    };
    Ok((StatusCode::OK, scale(&object)))
}

fn patched(old: &Value, kind: Patch, body: &Bytes) -> Result<Value, Status> {
    let bad = |error: schema::Error| Status::bad_request(error.to_string());
    match kind {
        Patch::Json => schema::patch::json_patch(old, body).map_err(bad),
        // A Scale has no lists, so that both merges are one.
        Patch::Merge | Patch::Strategic => {
            let patch = schema::decode::untyped_json(body).map_err(bad)?.object;
            schema::patch::merge_patch(old, &patch).map_err(bad)
        }
        Patch::Apply => {
            let patch = schema::decode::untyped_yaml(body).map_err(bad)?.object;
            schema::patch::merge_patch(old, &patch).map_err(bad)
        }
    }
}
