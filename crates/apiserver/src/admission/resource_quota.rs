//! ResourceQuotas: what a request adds is charged to every quota that concerns it, before the object is stored.
//!
//! [`decide`] says what the quotas become or why the request is refused; [`ResourceQuota::charge`] writes them by
//! compare-and-swap and decides again when another write came between. Requests of one namespace queue for it,
//! as upstream's evaluator has them do, because they would only fail each other's swaps.
//!
//! Upstream: apiserver/pkg/admission/plugin/resourcequota/controller.go

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use apimachinery::{GroupResource, GroupVersionResource, Status};
use client::{Client, Resource};
use serde_json::Value;
use tokio::sync::Semaphore;

use resources::quota::{Quantities, concerns, in_scope, unsaid, usage};

use super::tree::{at, set, text};
use super::{core, forbid};
use crate::seams::{AdmissionRequest, Lookup, Operation};

const QUOTAS: GroupResource = core("resourcequotas");

/// Swaps fail against the quota controller only, which writes now and then.
const ATTEMPTS: usize = 4;

#[derive(Default)]
pub(super) struct ResourceQuota {
    client: OnceLock<Client>,
    /// One permit a namespace that has requests now.
    queues: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl ResourceQuota {
    pub(super) fn client(&self) -> &OnceLock<Client> {
        &self.client
    }

    fn queue(&self, namespace: &str) -> Arc<Semaphore> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|_, queue| Arc::strong_count(queue) > 1);
        queues.entry(namespace.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
    }

    pub(super) async fn charge(
        &self,
        lookup: &dyn Lookup,
        request: &AdmissionRequest<'_>,
    ) -> Result<(), Status> {
        let quotas = || lookup.list(&QUOTAS, Some(request.namespace));
        if request.namespace.is_empty() || !handles(request) || quotas().is_empty() {
            return Ok(());
        }
        let queue = self.queue(request.namespace);
        let _turn = queue.acquire().await.map_err(|_| Status::internal("resource quota evaluation ended"))?;
        let resource =
            Resource { gvr: GroupVersionResource::from_static("", "v1", "resourcequotas"), namespaced: true };
        let mut charged: Vec<String> = Vec::new();
        let mut last_conflict = None;
        for _ in 0..ATTEMPTS {
            let uncharged: Vec<Arc<Value>> = quotas()
                .into_iter()
                .filter(|q| !charged.iter().any(|name| name == text(q, "metadata.name")))
                .collect();
            let writes = decide(&uncharged, request)?;
            let Some(client) = self.client.get().filter(|_| !request.dry_run && !writes.is_empty()) else {
                return Ok(());
            };
            last_conflict = None;
            for quota in writes {
                let name = text(&quota, "metadata.name");
                match client.update_value(&resource, request.namespace, name, Some("status"), &quota).await {
                    Ok(_) => charged.push(name.to_owned()),
                    Err(client::Error::Api(status)) if status.is_conflict() => last_conflict = Some(status),
                    // A quota that was deleted limits nothing.
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(Status::internal(error)),
                }
            }
            if last_conflict.is_none() {
                return Ok(());
            }
        }
        last_conflict.map_or(Ok(()), Err)
    }
}

/// Whether the request can change what is used.
fn handles(request: &AdmissionRequest<'_>) -> bool {
    let create = request.operation == Operation::Create;
    let update = request.operation == Operation::Update;
    match (&*request.gvr.group, &*request.gvr.resource, request.subresource) {
        ("", "events", _) => false,
        ("", "pods", "resize") => update,
        ("", "pods", "") => {
            let bounded = |pod: &Value| at(pod, "spec.activeDeadlineSeconds").is_some();
            create
                || (update && request.old_object.is_some_and(|old| bounded(old) != bounded(request.object)))
        }
        ("", "services" | "persistentvolumeclaims", "") => create || update,
        (_, _, "") => create,
        _ => false,
    }
}

/// `a=1,b=2`.
fn show(amounts: &Quantities) -> String {
    amounts.iter().map(|(name, quantity)| format!("{name}={quantity}")).collect::<Vec<_>>().join(",")
}

/// The quotas that change, with their new `status.used`.
fn decide(quotas: &[Arc<Value>], request: &AdmissionRequest<'_>) -> Result<Vec<Value>, Status> {
    let wanted = usage(&request.gvr, request.object);
    let mut writes = Vec::new();
    for quota in quotas {
        let name = text(quota, "metadata.name");
        let hard = Quantities::read(quota, "status.hard");
        let used = Quantities::read(quota, "status.used");
        let names: Vec<&str> =
            hard.iter().map(|(name, _)| name).filter(|n| concerns(&request.gvr, n)).collect();
        if names.is_empty() || !in_scope(quota, &request.gvr, request.object) {
            continue;
        }
        if let Some(unsaid) = unsaid(&request.gvr, request.object, &names) {
            return Err(forbid(request, format!("failed quota: {name}: {unsaid}")));
        }
        if names.iter().any(|name| used.get(name).is_none()) {
            let resources = names.join(",");
            return Err(forbid(request, format!("status unknown for quota: {name}, resources: {resources}")));
        }
        let mut delta = wanted.clone();
        if let Some(old) = request
            .old_object
            .filter(|old| request.operation == Operation::Update && in_scope(quota, &request.gvr, old))
        {
            delta = increase(&wanted, &usage(&request.gvr, old));
        }
        delta.retain(|name, quantity| names.contains(&name) && !quantity.is_zero());
        if delta.is_empty() {
            continue;
        }
        let mut after = used.clone();
        after.add(&delta);
        let exceeded = |name: &str| match (after.get(name), hard.get(name)) {
            (Some(after), Some(hard)) => delta.get(name).is_some() && after > hard,
            _ => false,
        };
        if after.iter().any(|(name, _)| exceeded(name)) {
            let only = |amounts: &Quantities| {
                let mut amounts = amounts.clone();
                amounts.retain(|name, _| exceeded(name));
                show(&amounts)
            };
            return Err(forbid(
                request,
                format!(
                    "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
                    only(&delta),
                    only(&used),
                    only(&hard)
                ),
            ));
        }
        let mut write = Value::clone(quota);
        set(&mut write, "status.used", after.to_value());
        writes.push(write);
    }
    Ok(writes)
}

/// What `new` uses more than `old`; what it uses less is given back by the quota controller.
fn increase(new: &Quantities, old: &Quantities) -> Quantities {
    let mut more = Quantities::default();
    for (name, quantity) in new.iter() {
        let mut quantity = *quantity;
        if let Some(old) = old.get(name) {
            quantity.sub(old);
        }
        if !quantity.is_negative() {
            more.insert(name, quantity);
        }
    }
    more
}
