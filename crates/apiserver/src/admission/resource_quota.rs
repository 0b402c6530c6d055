//! ResourceQuotas: what a request adds is charged to every quota that concerns it, before the object is stored.
//!
//! [`decide`] says what the quotas become or why the request is refused; [`ResourceQuota::charge`] writes them by
//! compare-and-swap and decides again when another write came between. Requests of one namespace queue for it,
//! as upstream's evaluator has them do, because they would only fail each other's swaps.
//!
//! Upstream: apiserver/pkg/admission/plugin/resourcequota/controller.go

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use apimachinery::quantity::Quantity;
use apimachinery::{GroupResource, GroupVersionResource, Status};
use client::{Client, Resource};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use resources::quota::{Quantities, concerns, in_scope, unsaid, usage};

use super::configuration::versioned;
use super::tree::{at, items, set, strings, text};
use super::{core, forbid};
use crate::seams::{AdmissionRequest, Lookup, Operation};

const QUOTAS: GroupResource = core("resourcequotas");

/// Swaps fail against the quota controller only, which writes now and then.
const ATTEMPTS: usize = 4;

/// What is not to be used without a quota that limits it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct LimitedResources {
    limited_resources: Vec<LimitedResource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LimitedResource {
    #[serde(default)]
    api_group: String,
    resource: String,
    /// What the names of amounts contain.
    #[serde(default)]
    match_contains: Vec<String>,
    #[serde(default)]
    match_scopes: Vec<Value>,
}

pub(super) fn configured(document: Option<&Value>) -> Result<LimitedResources, String> {
    let Some(document) = document else { return Ok(LimitedResources::default()) };
    let (group, versions) = match text(document, "apiVersion").split_once('/') {
        Some(("resourcequota.admission.k8s.io", _)) => {
            ("resourcequota.admission.k8s.io", &["v1alpha1", "v1beta1"][..])
        }
        _ => ("apiserver.config.k8s.io", &["v1"][..]),
    };
    let kind =
        if group == "apiserver.config.k8s.io" { "ResourceQuotaConfiguration" } else { "Configuration" };
    versioned(document, group, versions, kind)
}

impl LimitedResources {
    /// The amounts of the request that a quota must limit.
    ///
    /// Upstream: limitedByDefault
    fn names(&self, request: &AdmissionRequest<'_>, used: &Quantities) -> BTreeSet<String> {
        let (group, resource) = (&*request.gvr.group, &*request.gvr.resource);
        let own = |limited: &&LimitedResource| limited.api_group == group && limited.resource == resource;
        let is_used = |quantity: &Quantity| !quantity.is_zero() && !quantity.is_negative();
        let mut names = BTreeSet::new();
        for limited in self.limited_resources.iter().filter(own) {
            let matches = |name: &str| limited.match_contains.iter().any(|part| name.contains(part.as_str()));
            let found = used.iter().filter(|(name, quantity)| is_used(quantity) && matches(name));
            names.extend(found.map(|(name, _)| name.to_owned()));
        }
        names
    }

    /// The scopes that hold for the request and that a quota must have.
    fn scopes<'s>(&'s self, request: &AdmissionRequest<'_>) -> Vec<&'s Value> {
        let all = self.limited_resources.iter().flat_map(|limited| &limited.match_scopes);
        all.filter(|scope| scope_holds(scope, request)).collect()
    }
}

/// Whether one scope holds for the request's object.
fn scope_holds(scope: &Value, request: &AdmissionRequest<'_>) -> bool {
    let quota = json!({"spec": {"scopeSelector": {"matchExpressions": [scope]}}});
    in_scope(&quota, &request.gvr, request.object)
}

/// The names of a quota's scopes that hold for the request's object.
fn held_scopes(quota: &Value, request: &AdmissionRequest<'_>) -> Vec<String> {
    let plain = strings(quota, "spec.scopes").into_iter();
    let plain = plain.map(|name| json!({"scopeName": name, "operator": "Exists"}));
    let all = plain.chain(items(quota, "spec.scopeSelector.matchExpressions").iter().cloned());
    all.filter(|scope| scope_holds(scope, request))
        .map(|scope| text(&scope, "scopeName").to_owned())
        .collect()
}

/// As Go prints a list of scopes.
fn show_scopes(scopes: &[&Value]) -> String {
    let shown = scopes.iter().map(|scope| {
        let values = strings(scope, "values").join(" ");
        format!("{{{} {} [{values}]}}", text(scope, "scopeName"), text(scope, "operator"))
    });
    format!("[{}]", shown.collect::<Vec<_>>().join(" "))
}

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
        limited: &LimitedResources,
        request: &AdmissionRequest<'_>,
    ) -> Result<(), Status> {
        let quotas = || lookup.list(&QUOTAS, Some(request.namespace));
        let unlimited = limited.limited_resources.is_empty();
        if request.namespace.is_empty() || !handles(request) || (unlimited && quotas().is_empty()) {
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
            // What was charged already has covered what it limits.
            let limited = if charged.is_empty() { limited } else { &LimitedResources::default() };
            let writes = decide(&uncharged, limited, request)?;
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
fn decide(
    quotas: &[Arc<Value>],
    limited: &LimitedResources,
    request: &AdmissionRequest<'_>,
) -> Result<Vec<Value>, Status> {
    let wanted = usage(&request.gvr, request.object);
    check_covered(quotas, limited, request, &wanted)?;
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

/// Whether there is a quota for everything that must not be used without one.
///
/// Upstream: apiserver/pkg/admission/plugin/resourcequota/controller.go CheckRequest
fn check_covered(
    quotas: &[Arc<Value>],
    limited: &LimitedResources,
    request: &AdmissionRequest<'_>,
    wanted: &Quantities,
) -> Result<(), Status> {
    if limited.limited_resources.is_empty() {
        return Ok(());
    }
    let before = request.old_object.filter(|_| request.operation == Operation::Update);
    let mut more = before.map_or_else(|| wanted.clone(), |old| increase(wanted, &usage(&request.gvr, old)));
    more.retain(|_, quantity| !quantity.is_zero());
    if more.is_empty() {
        return Ok(());
    }
    let mut names = limited.names(request, wanted);
    let mut scopes = limited.scopes(request);
    for quota in quotas {
        let held = held_scopes(quota, request);
        scopes.retain(|scope| !held.iter().any(|name| name == text(scope, "scopeName")));
        if in_scope(quota, &request.gvr, request.object) {
            let hard = Quantities::read(quota, "status.hard");
            names.retain(|name| hard.get(name).is_none());
        }
    }
    if !names.is_empty() {
        let names = names.into_iter().collect::<Vec<_>>().join(",");
        return Err(forbid(request, format!("insufficient quota to consume: {names}")));
    }
    match scopes.is_empty() {
        true => Ok(()),
        false => {
            let why = format!("insufficient quota to match these scopes: {}", show_scopes(&scopes));
            Err(Status::failure(500, "", why))
        }
    }
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
