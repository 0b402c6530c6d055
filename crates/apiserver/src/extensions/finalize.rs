//! Deleting all objects of a definition that is being deleted.
//!
//! Upstream: apiextensions-apiserver/pkg/controller/finalizer/crd_finalizer.go

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::{GroupResource, Status};
use http::Method;
use resources::custom::is_true_condition;
use resources::custom::status::set_condition;
use serde_json::{Value, json};

use super::{DEFINITIONS, FINALIZER, request, write_status};
use crate::handle::ApiServer;
use crate::registry::metadata::{self, finalizers, text};
use crate::seams::Lookup;

/// How long to wait before trying again what failed.
const RETRY: Duration = Duration::from_secs(1);

/// Works until the definition is gone, or the server ends.
pub async fn run(server: Arc<ApiServer>, definition: Arc<Value>) {
    let name = text(&definition, "name");
    loop {
        match attempt(&server, name).await {
            Ok(()) => return,
            Err(status) if status.is_not_found() => return,
            Err(status) => {
                tracing::warn!(%status.message, name, "the objects of a definition could not be deleted yet");
            }
        }
        tokio::select! {
            () = server.shutdown.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Changes the definition as it stands, again when others change it too. Done when there is nothing to change.
async fn change(
    server: &Arc<ApiServer>,
    name: &str,
    mut changed: impl FnMut(&mut Value, &str),
) -> Result<(), Status> {
    loop {
        let definition = server.registry.get_tree(&DEFINITIONS, name);
        let Some(mut definition) = definition.map(|definition| Value::clone(&definition)) else {
            return Ok(());
        };
        if !finalizers(&definition).contains(&FINALIZER) {
            return Ok(());
        }
        changed(&mut definition, &apimachinery::time::rfc3339(server.now()));
        match write_status(server, &definition).await {
            Ok(_) => return Ok(()),
            Err(status) if status.is_conflict() => {}
            Err(status) => return Err(status),
        }
    }
}

fn terminating(definition: &mut Value, now: &str, value: &str, reason: &str, message: &str) {
    set_condition(&mut definition["status"], now, "Terminating", value, reason, message);
}

async fn attempt(server: &Arc<ApiServer>, name: &str) -> Result<(), Status> {
    change(server, name, |definition, now| {
        let message = "CustomResource deletion is in progress";
        terminating(definition, now, "True", "InstanceDeletionInProgress", message);
    })
    .await?;
    let Some(definition) = server.registry.get_tree(&DEFINITIONS, name) else { return Ok(()) };
    let established = is_true_condition(&definition, "Established");
    if established && let Err(status) = delete_objects(server, &definition).await {
        let message = format!("could not issue all deletes: {}", status.message);
        change(server, name, |definition, now| {
            terminating(definition, now, "True", "InstanceDeletionFailed", &message);
        })
        .await?;
        return Err(status);
    }
    let (reason, message) = match established {
        true => ("InstanceDeletionCompleted", "removed all instances"),
        false => ("NeverEstablished", "resource was never established"),
    };
    change(server, name, |definition, now| {
        terminating(definition, now, "False", reason, message);
        let kept: Vec<String> = finalizers(definition)
            .into_iter()
            .filter(|finalizer| *finalizer != FINALIZER)
            .map(str::to_owned)
            .collect();
        metadata::of(definition).insert("finalizers".into(), json!(kept));
    })
    .await
}

/// Deletes all objects, and waits until those that have finalizers are gone too.
async fn delete_objects(server: &Arc<ApiServer>, definition: &Value) -> Result<(), Status> {
    let group = definition["spec"]["group"].as_str().unwrap_or_default().to_owned();
    let plural = definition["status"]["acceptedNames"]["plural"].as_str().unwrap_or_default().to_owned();
    let resource = GroupResource::new(group.clone(), plural.clone());
    let table = server.registry.table();
    let Some(row) = table.stored(&resource).cloned() else { return Ok(()) };
    drop(table);
    let cache = row.cache()?;
    let mut changed = cache.subscribe();
    let objects = Lookup::list(&*server.registry, &resource, None);
    let namespaces: BTreeSet<&str> = objects.iter().map(|object| text(object, "namespace")).collect();
    for namespace in namespaces {
        let within = if namespace.is_empty() { String::new() } else { format!("namespaces/{namespace}/") };
        let path = format!("/apis/{group}/{}/{within}{plural}", row.def.version);
        request(server, Method::DELETE, &path, &Value::Null).await?;
    }
    loop {
        changed.borrow_and_update();
        if cache.read().count() == 0 {
            return Ok(());
        }
        tokio::select! {
            () = server.shutdown.cancelled() => return Err(Status::service_unavailable("the server is shutting down")),
            ended = changed.changed() => if ended.is_err() {
                return Ok(());
            },
        }
    }
}
