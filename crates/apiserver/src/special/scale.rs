//! `scale`: the replicas of a workload as an object of their own.
//!
//! Upstream: pkg/registry/apps/deployment/storage/storage.go ScaleREST

use api::tables::Definition;
use apimachinery::selector::LabelSelector;
use apimachinery::{GroupVersionKind, Status, field};
use bytes::Bytes;
use http::StatusCode;
use resources::ResourceDef;
use schema::decode::{Decoded, Strictness};
use serde_json::{Value, json};

use super::part::Part;
use super::read;
use crate::encode::{Outcome, group_version};
use crate::handle::Asked;
use crate::negotiate::Patch;
use crate::options::FieldValidation;
use crate::registry::call::Call;
use crate::registry::metadata;
use crate::registry::patch::{Reading, invalid_patch, other_kind, refused};

const SCALE: GroupVersionKind = GroupVersionKind::from_static("autoscaling", "v1", "Scale");

/// Where a kind has its replicas.
fn paths(def: &ResourceDef) -> (Vec<&str>, Vec<&str>) {
    fn texts(path: &[String]) -> Vec<&str> {
        path.iter().map(String::as_str).collect()
    }
    match def.custom.as_ref().and_then(|custom| custom.scale.as_ref()) {
        Some(scale) => (texts(&scale.spec_replicas), texts(&scale.status_replicas)),
        None => (vec!["spec", "replicas"], vec!["status", "replicas"]),
    }
}

fn at<'v>(object: &'v Value, path: &[&str]) -> &'v Value {
    path.iter().fold(object, |value, name| value.get(*name).unwrap_or(&Value::Null))
}

/// Sets the replicas of a workload, with what is missing on the way to them.
pub fn set_replicas(def: &ResourceDef, object: &mut Value, replicas: Value) {
    let mut value = object;
    for name in paths(def).0 {
        if !value.is_object() {
            *value = json!({});
        }
        value = &mut value[name];
    }
    *value = replicas;
}

/// The selector of a workload's pods as text; empty for none.
fn selector(def: &ResourceDef, object: &Value) -> String {
    if let Some(custom) = &def.custom {
        let path = custom.scale.as_ref().and_then(|scale| scale.label_selector.as_ref());
        let path: Vec<&str> = path.into_iter().flatten().map(String::as_str).collect();
        return at(object, &path).as_str().unwrap_or_default().to_owned();
    }
    let selector = &object["spec"]["selector"];
    let text = match selector.as_object() {
        // A ReplicationController's selector is a map of labels.
        Some(map) if object["kind"] == "ReplicationController" => {
            Ok(LabelSelector::from_map(map.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default()))))
        }
        _ => LabelSelector::from_object(selector),
    };
    match text {
        Ok(text) if !text.is_empty() && !text.is_nothing() => text.to_string(),
        _ => String::new(),
    }
}

/// The scale of a workload.
pub fn of(def: &ResourceDef, object: &Value) -> Value {
    let mut shown =
        json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {}, "spec": {}, "status": {}});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            shown["metadata"][field] = value.clone();
        }
    }
    let (spec, status) = paths(def);
    shown["spec"]["replicas"] = at(object, &spec).as_i64().unwrap_or(0).into();
    shown["status"]["replicas"] = at(object, &status).as_i64().unwrap_or(0).into();
    let selector = selector(def, object);
    if !selector.is_empty() {
        shown["status"]["selector"] = selector.into();
    }
    shown
}

/// The workload with the replicas of a scale.
fn with_scale(def: &ResourceDef, object: &Value, scale: &Value) -> Result<Value, Status> {
    let mut changed = object.clone();
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let path = field::Path::new("spec").child("replicas");
        let error = field::Error::invalid(&path, replicas, "must be greater than or equal to 0");
        return Err(Status::invalid(&SCALE.group_kind(), metadata::text(scale, "name"), &[error]));
    }
    set_replicas(def, &mut changed, replicas.into());
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
        let object = call.tree(&object).await?;
        if call.def().custom.is_some() && at(&object, &paths(call.def()).0).is_null() {
            let path = paths(call.def()).0.join(".");
            return Err(Status::internal(format!("the spec replicas field \".{path}\" does not exist")));
        }
        return Ok((StatusCode::OK, of(call.def(), &object)));
    }
    let patch = asked.info.attributes.verb == "patch";
    let strategic = call.resource.definition.is_some();
    let of_patch = || call.server.config.forms.patch(&asked.parts.headers, strategic);
    let kind = patch.then(of_patch).transpose()?;
    if kind == Some(Patch::Apply) {
        return apply(call, &name, body).await;
    }
    let sent = if patch { Value::Null } else { read(call, asked, body, &SCALE)? };
    let def = call.resource.def.clone();
    let namespace = call.namespace().to_owned();
    let (strictness, validation) = (call.strictness(), call.options.field_validation);
    let mut problems = Vec::new();
    let mut change = |old: &Value| {
        let scale = match kind {
            None => sent.clone(),
            Some(kind) => {
                let scale = patched(&of(&def, old), kind, body, strictness)?;
                problems = scale.problems;
                scale.object
            }
        };
        same_object(&scale, &name, &namespace)?;
        with_scale(&def, old, &scale)
    };
    let (outcome, _) = call.update(&name, Part::Whole, false, &mut change).await?;
    if validation == FieldValidation::Warn {
        call.warn(problems);
    }
    shown(call, outcome).await
}

async fn shown(call: &Call<'_>, outcome: Outcome) -> Result<(StatusCode, Value), Status> {
    let object = match outcome {
        Outcome::Stored(object) => Value::clone(&*call.tree(&object).await?),
        Outcome::Tree(tree) => tree,
    };
    Ok((StatusCode::OK, of(call.def(), &object)))
}

/// Who applies a scale owns the replicas of the workload, as who applies the workload does: the fields are the
/// workload's, and so are conflicts.
///
/// Upstream: apimachinery/pkg/util/managedfields/scalehandler.go
async fn apply(call: &mut Call<'_>, name: &str, body: &[u8]) -> Result<(StatusCode, Value), Status> {
    if call.registry().get(call.resource, call.namespace(), name)?.is_none() {
        return Err(call.not_found(name));
    }
    let sent = call.read_apply(body)?;
    let is = |field: &str| sent.get(field).and_then(Value::as_str).unwrap_or_default();
    if is("kind") != SCALE.kind || is("apiVersion") != SCALE.group_version().to_string() {
        return Err(schema::apply::other_type(&sent));
    }
    let decoded = schema::decode::value(sent, definition()?, call.strictness()).map_err(|error| {
        Status::bad_request(schema::decode::cannot_be_handled(&SCALE.kind, &SCALE.version, &error))
    })?;
    call.report(decoded.problems)?;
    let scale = decoded.object;
    let mut wanted =
        json!({"apiVersion": group_version(call.def()), "kind": call.def().kind, "metadata": {}});
    for field in ["name", "namespace", "uid", "resourceVersion"] {
        if let Some(value) = scale["metadata"].get(field) {
            wanted["metadata"][field] = value.clone();
        }
    }
    if let Some(replicas) = scale["spec"].get("replicas") {
        set_replicas(call.def(), &mut wanted, replicas.clone());
    }
    let (outcome, _) = call.patch(Part::Whole, Reading::apply(wanted)).await?;
    shown(call, outcome).await
}

/// The scale is of the object that the URL names.
fn same_object(scale: &Value, name: &str, namespace: &str) -> Result<(), Status> {
    let given = metadata::text(scale, "namespace");
    if !given.is_empty() && given != namespace {
        let why = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Status::bad_request(why));
    }
    metadata::check_name(name, scale)
}

/// What a patch makes of a scale, which must be a scale still.
fn patched(old: &Value, kind: Patch, body: &Bytes, strictness: Strictness) -> Result<Decoded, Status> {
    let definition = definition()?;
    let bad = |error: schema::Error| Status::bad_request(format!("error decoding patch: {error}"));
    let tree = match kind {
        Patch::Json => schema::patch::json_patch(old, body).map_err(refused)?,
        // A Scale has no lists, so that both merges are one.
        Patch::Merge | Patch::Strategic => {
            let patch = schema::decode::untyped_json(body).map_err(bad)?.object;
            schema::patch::merge_patch(old, &patch).map_err(refused)?
        }
        Patch::Apply => return Err(Status::unsupported_media_type(&[])),
    };
    if let Some(why) = other_kind(&SCALE, false, &tree) {
        return Err(invalid_patch(tree.to_string(), why));
    }
    schema::decode::value(tree.clone(), definition, strictness)
        .map_err(|error| invalid_patch(tree.to_string(), error.to_string()))
}

fn definition() -> Result<&'static Definition, Status> {
    api::tables::kind(&SCALE.group, &SCALE.version, &SCALE.kind)
        .ok_or_else(|| Status::internal("the kind Scale is unknown"))
}
