//! The subresources and kinds that are not served by the table alone: each a short file.

mod binding;
mod component_statuses;
mod eviction;
pub mod part;
pub mod resource_metrics;
mod reviews;
pub mod scale;
mod token;

use std::sync::Arc;

use api::tables;
use apimachinery::{GroupVersionKind, Status};
use bytes::Bytes;
use http::StatusCode;
use schema::decode::Strictness;
use serde_json::{Value, json};

use crate::body::Response;
use crate::encode;
use crate::handle::{ApiServer, Asked, Notes, RequestBody, decode_body, stream};
use crate::negotiate::Format;
use crate::registry::Resource;
use crate::registry::call::Call;
use crate::registry::create::unexpected_kind;

/// Routes that end here, by resource and subresource.
pub async fn handle(
    server: &Arc<ApiServer>,
    resource: &Arc<Resource>,
    asked: Asked,
    notes: &mut Notes,
) -> Result<Response, Status> {
    let subresource = asked.info.attributes.subresource.clone();
    match subresource.as_str() {
        "log" | "exec" | "attach" | "portforward" | "proxy" => {
            return stream(server, resource, asked, notes).await;
        }
        "" if &*resource.def.plural == "componentstatuses" => {
            return component_statuses::handle(server, resource, &asked);
        }
        _ => {}
    }
    let format = server.config.forms.accept(&asked.parts.headers, false)?.format;
    let Asked { info, parts, body, user } = asked;
    let body = body.read().await?;
    let asked = Asked { info, parts, body: RequestBody::Ready(body.clone()), user };
    notes.audit.sent(&resource.def, &asked, &body);
    let mut call = server.call(resource, &asked)?;
    let answered = answer(server, &mut call, &asked, &body).await;
    notes.take(&mut call);
    let (code, answer) = answered?;
    Ok(encode::value(format, code, &answer))
}

async fn answer(
    server: &Arc<ApiServer>,
    call: &mut Call<'_>,
    asked: &Asked,
    body: &Bytes,
) -> Result<(StatusCode, Value), Status> {
    let subresource = asked.info.attributes.subresource.as_str();
    match (&*call.def().plural, subresource) {
        (_, "scale") => scale::handle(call, asked, body).await,
        ("pods", "binding") | ("bindings", "") => binding::handle(server, call, asked, body).await,
        ("pods", "eviction") => eviction::handle(call, asked, body).await,
        ("serviceaccounts", "token") => token::handle(call, asked, body).await,
        ("nodes" | "pods", "") => resource_metrics::handle(server, asked).await,
        (_, "") => reviews::handle(call, asked, body).await,
        _ => Err(Status::page_not_found()),
    }
}

/// A body of a kind that is not the resource's own.
pub fn read(call: &Call<'_>, asked: &Asked, body: &[u8], kind: &GroupVersionKind) -> Result<Value, Status> {
    let format = call.server.config.forms.content(&asked.parts.headers)?;
    let definition = tables::kind(&kind.group, &kind.version, &kind.kind);
    let decoded = decode_body(format, body, definition, Strictness::Ignore).map_err(|error| {
        Status::bad_request(schema::decode::cannot_be_handled(&kind.kind, &kind.version, &error))
    })?;
    let mut object = decoded.object;
    if !object.is_object() {
        return Err(Status::bad_request(format!("the body is not a {}", kind.kind)));
    }
    let expected = [("apiVersion", kind.group_version().to_string()), ("kind", kind.kind.to_string())];
    let given = |field: &str| object.get(field).and_then(Value::as_str).filter(|given| !given.is_empty());
    let beta_eviction = kind.kind == "Eviction" && given("apiVersion") == Some("policy/v1beta1");
    if !beta_eviction
        && expected.iter().any(|(field, expected)| given(field).is_some_and(|given| given != expected))
    {
        for (field, expected) in &expected {
            if given(field).is_none() {
                object[*field] = expected.as_str().into();
                break;
            }
        }
        return Err(unexpected_kind(kind, false, &object));
    }
    for (field, expected) in expected {
        object[field] = expected.into();
    }
    if format != Format::Protobuf && object["metadata"].is_null() {
        object["metadata"] = json!({});
    }
    Ok(object)
}
