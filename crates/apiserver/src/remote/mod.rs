//! What goes on to a kubelet, a pod or a service: logs, exec, attach, port-forward and proxy. [`location`] says
//! where to; [`tunnel`] sends the request there and copies what comes back, upgraded connections byte by byte;
//! [`links`] keeps proxied pages below the proxy; [`log_socket`] has logs for browsers. What the server asks others
//! for itself goes through [`outbound`], and to those an operator names through [`review_server`].

mod links;
mod location;
mod log_socket;
pub mod outbound;
pub mod resolve;
pub mod review_server;
pub(crate) mod tunnel;

use std::sync::Arc;

use apimachinery::Status;
use http::{Method, StatusCode, header};
use serde_json::Value;

use crate::body::{Body, Response};
use crate::handle::{ApiServer, Asked, Notes};
use crate::registry::Resource;
use crate::seams::{Attributes, Operation};

pub async fn handle(
    server: &Arc<ApiServer>,
    resource: &Arc<Resource>,
    mut asked: Asked,
    notes: &mut Notes,
) -> Result<Response, Status> {
    admit(server, resource, &asked, notes).await?;
    let attributes = &asked.info.attributes;
    if attributes.subresource == "log"
        && location::is_log_of_nobody(&*server.registry, attributes, &asked.info)?
    {
        let mut nothing = Response::new(Body::empty());
        *nothing.status_mut() = StatusCode::NO_CONTENT;
        return Ok(nothing);
    }
    let target = location::locate(&*server.registry, attributes, &asked.info)?;
    let streams = matches!(&*attributes.subresource, "exec" | "attach" | "portforward");
    if streams && !asked.parts.headers.contains_key(http::header::UPGRADE) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let reads = matches!(asked.parts.method, Method::GET | Method::HEAD);
    if attributes.subresource == "proxy" && asked.info.rest.is_none() && reads {
        // Upstream: links relative to the proxied page need the slash.
        let query = asked.parts.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
        return tunnel::moved(&format!("{}/{query}", asked.parts.uri.path()));
    }
    let prefix = (attributes.subresource == "proxy").then(|| {
        let path = asked.parts.uri.path();
        let rest = asked.info.rest.as_deref().unwrap_or_default();
        path.strip_suffix(rest).unwrap_or(path).to_owned()
    });
    let socket = match attributes.subresource.as_str() {
        "log" => log_socket::Wanted::of(&asked.parts.headers),
        _ => None,
    };
    let Some(socket) = socket else { return tunnel::forward(server, asked, target, prefix).await };
    // The kubelet is asked for the log as it is.
    let own_side = tunnel::OwnSide::take(&mut asked.parts);
    asked.parts.headers.remove(header::UPGRADE);
    let log = tunnel::forward(server, asked, target, None).await?;
    Ok(socket.answer(server, log, own_side))
}

/// Connecting is an operation of its own to admission; its object is the options.
async fn admit(
    server: &Arc<ApiServer>,
    resource: &Arc<Resource>,
    asked: &Asked,
    notes: &mut Notes,
) -> Result<(), Status> {
    let attributes = &asked.info.attributes;
    if attributes.subresource == "log" {
        return Ok(());
    }
    let mut call = server.call(resource, asked)?;
    let mut options = connect_options(attributes, asked);
    let admitted = match call.mutate(Operation::Connect, &attributes.name, &mut options, None).await {
        Ok(()) => call.validate_admission(Operation::Connect, &attributes.name, &mut options, None).await,
        refused => refused,
    };
    notes.take(&mut call);
    admitted
}

fn connect_options(attributes: &Attributes, asked: &Asked) -> Value {
    let kind = match (attributes.resource.as_str(), attributes.subresource.as_str()) {
        (_, "exec") => "PodExecOptions",
        (_, "attach") => "PodAttachOptions",
        (_, "portforward") => "PodPortForwardOptions",
        ("services", _) => "ServiceProxyOptions",
        ("nodes", _) => "NodeProxyOptions",
        _ => "PodProxyOptions",
    };
    let mut options = serde_json::json!({"kind": kind, "apiVersion": "v1"});
    let query = &asked.info.query;
    if matches!(kind, "PodExecOptions" | "PodAttachOptions") {
        for flag in ["stdin", "stdout", "stderr", "tty"] {
            options[flag] = query.flag(flag).unwrap_or(false).into();
        }
        options["container"] = query.get("container").unwrap_or_default().into();
        options["command"] = query.all("command").collect();
    } else if let Some(path) = asked.info.rest.as_deref() {
        options["path"] = path.into();
    }
    options
}
