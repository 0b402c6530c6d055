//! CustomResourceDefinitions at work: one loop that follows them, gives each its names, puts its rows into the
//! table and takes them out again.
//!
//! What a definition's status should say is decided in [`resources::custom::status`]; the loop here carries it
//! out: first the rows are served, then the status says so. [`finalize`] deletes the objects of a definition that
//! is being deleted, [`convert`] asks webhooks for other versions, and [`admit`] gives objects of custom kinds
//! their shape as they come in.
//!
//! What always holds: a definition that says it is established is served, also after a restart: the rows of stored
//! definitions are in the table before the first request.

pub mod admit;
pub mod convert;
mod finalize;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use apimachinery::{GroupResource, Status};
use bytes::Bytes;
use http::{Method, Request};
use resources::custom::status::{Taken, decide};
use resources::custom::{essence, is_served, is_true_condition, rows};
use serde_json::Value;

use crate::handle::{ApiServer, Peer, RequestBody};
use crate::registry::metadata::{finalizers, is_terminating, text};
use crate::seams::{Lookup, UserInfo};

/// Keeps a definition until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

const DEFINITIONS: GroupResource =
    GroupResource::from_static("apiextensions.k8s.io", "customresourcedefinitions");

/// What is served for a definition.
struct Served {
    /// What its rows were made of.
    essence: Value,
    versions: Option<Arc<resources::custom::Versions>>,
}

/// The definitions that are known, by name.
#[derive(Default)]
struct Loop {
    served: HashMap<String, Served>,
    /// Those whose objects are being deleted.
    finalizing: HashSet<String>,
}

/// Follows the definitions until the shutdown.
pub async fn run(server: Arc<ApiServer>) {
    let table = server.registry.table();
    let Some(definitions) = table.stored(&DEFINITIONS).and_then(|row| row.cache.clone()) else { return };
    drop(table);
    let mut changed = definitions.subscribe();
    let mut known = Loop::default();
    loop {
        changed.borrow_and_update();
        known.step(&server).await;
        tokio::select! {
            () = server.shutdown.cancelled() => return,
            changed = changed.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

impl Loop {
    /// Brings the table and every status up to date with the definitions as they are.
    async fn step(&mut self, server: &Arc<ApiServer>) {
        let definitions = Lookup::list(&*server.registry, &DEFINITIONS, None);
        let names: HashSet<&str> = definitions.iter().map(|definition| text(definition, "name")).collect();
        let gone: Vec<String> =
            self.served.keys().filter(|name| !names.contains(name.as_str())).cloned().collect();
        for name in gone {
            replace(server, &name, Vec::new()).await;
            self.served.remove(&name);
            self.finalizing.remove(&name);
        }
        for definition in &definitions {
            self.define(server, definition, &definitions).await;
        }
    }

    async fn define(&mut self, server: &Arc<ApiServer>, definition: &Arc<Value>, all: &[Arc<Value>]) {
        let group = definition["spec"]["group"].as_str().unwrap_or_default();
        let taken = Taken::of(group, all.iter().map(|definition| &**definition));
        let now = apimachinery::time::rfc3339(server.now());
        let status = decide(definition, &taken, &now);
        let mut decided = Value::clone(definition);
        decided["status"] = status;
        self.serve(server, &decided).await;
        if decided["status"] != definition["status"]
            && let Err(status) = write_status(server, &decided).await
        {
            // Somebody was faster; their change wakes the loop again.
            tracing::debug!(%status.message, name = text(definition, "name"), "a definition's status was not written");
        }
        let name = text(definition, "name");
        if is_terminating(definition)
            && finalizers(definition).contains(&FINALIZER)
            && self.finalizing.insert(name.to_owned())
        {
            server.tasks.spawn(finalize::run(server.clone(), definition.clone()));
        }
    }

    /// Puts the rows of a definition into the table, when they are others than before.
    async fn serve(&mut self, server: &Arc<ApiServer>, definition: &Value) {
        let name = text(definition, "name");
        let terminating = is_true_condition(definition, "Terminating");
        let essence = if is_served(definition) { essence(definition) } else { Value::Null };
        if let Some(served) = self.served.get(name).filter(|served| served.essence == essence) {
            if let Some(versions) = &served.versions {
                versions.set_terminating(terminating);
            }
            return;
        }
        let rows = if essence.is_null() { Vec::new() } else { rows(definition) };
        let custom = rows.first().and_then(|row| row.custom.as_ref());
        let versions = custom.map(|custom| custom.versions.clone());
        if !essence.is_null() || self.served.contains_key(name) {
            replace(server, name, rows).await;
        }
        self.served.insert(name.to_owned(), Served { essence, versions });
    }
}

async fn replace(server: &Arc<ApiServer>, name: &str, rows: Vec<Arc<resources::ResourceDef>>) {
    if let Err(error) = server.registry.set_custom(name, rows).await {
        tracing::error!(error = &error as &dyn std::error::Error, name, "a custom kind cannot be served");
    }
}

/// The server itself, which may do everything.
fn own_user() -> UserInfo {
    UserInfo {
        name: "system:apiserver".into(),
        groups: vec!["system:masters".into(), "system:authenticated".into()],
        ..Default::default()
    }
}

/// Sends a request to the server in whose process this runs. Gives the object, or the Status of a failure.
async fn request(server: &Arc<ApiServer>, method: Method, path: &str, body: &Value) -> Result<Value, Status> {
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::USER_AGENT, "kube-apiserver")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(RequestBody::Ready(body))
        .map_err(Status::internal)?;
    // The answer is a future of its own: a write of a definition ends in this very loop.
    let response = Box::pin(server.handle(request, Peer::Local(own_user()))).await;
    let code = response.status();
    let bytes =
        http_body_util::BodyExt::collect(response.into_body()).await.map_err(Status::internal)?.to_bytes();
    let value: Value = serde_json::from_slice(&bytes).map_err(Status::internal)?;
    if code.is_success() {
        return Ok(value);
    }
    let message = value["message"].as_str().unwrap_or_default();
    Err(Status::failure(code.as_u16(), value["reason"].as_str().unwrap_or_default(), message))
}

/// Writes a definition's status; its metadata goes along, finalizers included.
async fn write_status(server: &Arc<ApiServer>, definition: &Value) -> Result<Value, Status> {
    let name = text(definition, "name");
    let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}/status");
    request(server, Method::PUT, &path, definition).await
}
