//! Reviews: questions to the authenticator and the authorizer, asked as objects that are never stored.
//!
//! Upstream: pkg/registry/authentication, pkg/registry/authorization

use std::collections::BTreeMap;

use apimachinery::selector::{FieldSelector, LabelSelector};
use apimachinery::{Status, field};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::read;
use crate::handle::Asked;
use crate::registry::call::Call;
use crate::seams::{Attributes, Decision, UserInfo};

pub async fn handle(call: &mut Call<'_>, asked: &Asked, body: &Bytes) -> Result<(StatusCode, Value), Status> {
    let mut review = read(call, asked, body, &call.def().gvk())?;
    review["status"] = match &*call.def().kind {
        "TokenReview" => token_review(call, &review).await?,
        "SelfSubjectReview" => json!({"userInfo": shown(&asked.user)}),
        "SelfSubjectAccessReview" => access(call, &review, asked.user.clone(), "").await?,
        "SubjectAccessReview" => access(call, &review, named(&review), "").await?,
        "LocalSubjectAccessReview" => {
            access(call, &review, named(&review), asked.info.attributes.namespace.as_str()).await?
        }
        "SelfSubjectRulesReview" => {
            let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
            if namespace.is_empty() {
                return Err(Status::bad_request("no namespace on request"));
            }
            call.server.config.authorize.rules(&asked.user, namespace)
        }
        _ => return Err(Status::page_not_found()),
    };
    Ok((StatusCode::CREATED, review))
}

fn shown(user: &UserInfo) -> Value {
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

async fn token_review(call: &Call<'_>, review: &Value) -> Result<Value, Status> {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences = review["spec"]["audiences"].as_array().into_iter().flatten();
    let audiences: Vec<String> = audiences.filter_map(Value::as_str).map(str::to_owned).collect();
    let found = match &call.server.config.review_token {
        Some(known) => known.authenticate_token(token, &audiences).await,
        None => Ok(None),
    };
    Ok(match found {
        Ok(Some(mut user)) => {
            if !user.groups.iter().any(|g| g == crate::authn::AUTHENTICATED) {
                user.groups.push(crate::authn::AUTHENTICATED.to_owned());
            }
            let mut status = json!({"authenticated": true, "user": shown(&user)});
            if !audiences.is_empty() {
                status["audiences"] = json!(audiences);
            }
            status
        }
        Ok(None) => json!({"user": {}, "error": "invalid bearer token"}),
        Err(error) => json!({"user": {}, "error": error}),
    })
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn named(review: &Value) -> UserInfo {
    let spec = &review["spec"];
    let extra: BTreeMap<String, Vec<String>> = spec["extra"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, values)| (key.to_lowercase(), strings(values)))
        .collect();
    UserInfo {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: strings(&spec["groups"]),
        extra,
    }
}

/// What is asked about; errors as upstream words them.
///
/// Upstream: pkg/apis/authorization/validation/validation.go
fn attributes(kind: &apimachinery::GroupKind, review: &Value, local: &str) -> Result<Attributes, Status> {
    let spec = &review["spec"];
    let path = field::Path::new("spec");
    let mut errors = Vec::new();
    let (resource, other) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    match (resource.is_object(), other.is_object()) {
        (true, true) => errors.push(field::Error::invalid(
            &path.child("nonResourceAttributes"),
            other.clone(),
            "cannot be specified in combination with resourceAttributes",
        )),
        (false, false) => errors.push(field::Error::invalid(
            &path.child("resourceAttributes"),
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    if !kind.kind.starts_with("Self")
        && spec["user"].as_str().unwrap_or_default().is_empty()
        && strings(&spec["groups"]).is_empty()
    {
        errors.push(field::Error::invalid(
            &path.child("user"),
            "",
            "at least one of user or group must be specified",
        ));
    }
    if !errors.is_empty() {
        return Err(Status::invalid(kind, "", &errors));
    }
    let namespace = resource["namespace"].as_str().unwrap_or_default();
    if !local.is_empty() && namespace != local {
        return Err(Status::bad_request(format!(
            "spec.resourceAttributes.namespace must match namespace: {local}"
        )));
    }
    let text = |from: &Value, field: &str| from[field].as_str().unwrap_or_default().to_owned();
    if other.is_object() {
        return Ok(Attributes { verb: text(other, "verb"), path: text(other, "path"), ..Default::default() });
    }
    Ok(Attributes {
        verb: text(resource, "verb"),
        namespace: namespace.to_owned(),
        group: text(resource, "group"),
        version: match text(resource, "version") {
            version if version.is_empty() => "*".to_owned(),
            version => version,
        },
        resource: text(resource, "resource"),
        subresource: text(resource, "subresource"),
        name: text(resource, "name"),
        is_resource: true,
        path: String::new(),
        field_selector: selector(&resource["fieldSelector"], |s| FieldSelector::parse(s).is_ok()),
        label_selector: selector(&resource["labelSelector"], |s| LabelSelector::parse(s).is_ok()),
    })
}

/// A selector that cannot be read selects everything, which is the wider question.
fn selector(value: &Value, valid: impl Fn(&str) -> bool) -> String {
    let raw = value["rawSelector"].as_str().unwrap_or_default();
    if valid(raw) { raw.to_owned() } else { String::new() }
}

async fn access(call: &Call<'_>, review: &Value, user: UserInfo, local: &str) -> Result<Value, Status> {
    let attributes = attributes(&call.def().group_kind(), review, local)?;
    let mut status = json!({"allowed": false});
    let decided = call.server.config.authorize.authorize(&user, &attributes).decided().await;
    if let Some(error) = decided.error {
        status["evaluationError"] = error.into();
    }
    let reason = match decided.decision {
        Decision::Allow { reason } => {
            status["allowed"] = true.into();
            reason
        }
        Decision::Deny { reason } => {
            status["denied"] = true.into();
            reason
        }
        Decision::NoOpinion { reason } => reason,
    };
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    Ok(status)
}
