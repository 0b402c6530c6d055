//! The task behind aggregation: an APIService for each group version that this server serves itself, the status of
//! all of them, and what other servers say of themselves.
//!
//! Upstream: kube-aggregator/pkg/controllers/autoregister, pkg/controllers/status

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::GroupVersionResource;
use client::{Client, PatchType, Resource};
use serde_json::{Value, json};

use super::availability::{Found, ask, decide};
use super::documents::{Document, read};
use super::{API_SERVICES, is_remote, priorities};
use crate::admission::tree::{label, text};
use crate::bootstrap::loopback_user;
use crate::handle::ApiServer;
use crate::registry::cache::Cache;
use crate::remote::resolve::{SERVICES, SLICES};
use crate::seams::Lookup;

const RESOURCE: Resource = Resource {
    gvr: GroupVersionResource::from_static("apiregistration.k8s.io", "v1", "apiservices"),
    namespaced: false,
};

/// How often a server that answers is asked again.
///
/// Upstream: remote_available_controller.go, by its informer's resync
const HEALTHY_INTERVAL: Duration = Duration::from_secs(30);
/// How soon one that does not is asked again: twice as long each time.
const RETRY: Duration = Duration::from_secs(1);

const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// The row of a group version that this server serves itself.
fn local_service(group: &str, version: &str) -> Value {
    let (group_priority, version_priority, custom) = priorities::of(group, version);
    let managed = if custom { "true" } else { "onstart" };
    let mut spec = json!({
        "version": version, "groupPriorityMinimum": group_priority, "versionPriority": version_priority,
    });
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": format!("{version}.{group}"), "labels": {AUTOMANAGED: managed}},
        "spec": spec,
    })
}

impl ApiServer {
    /// Runs until the shutdown.
    pub(crate) async fn keep_aggregation(self: Arc<Self>) {
        let client = Client::new(self.in_process(loopback_user()), "kube-aggregator");
        let cache =
            |resource| -> Option<Arc<Cache>> { self.registry.table().stored(resource)?.cache.clone() };
        let (Some(own), Some(services), Some(slices)) =
            (cache(&API_SERVICES), cache(&SERVICES), cache(&SLICES))
        else {
            return;
        };
        let (mut own, mut table) = (own.subscribe(), self.registry.table_changes());
        let (mut services, mut slices) = (services.subscribe(), slices.subscribe());
        let mut failures = 0;
        loop {
            self.register(&client).await;
            let remote = self.look(&client).await;
            failures = match remote {
                Some(false) => (failures + 1).min(5),
                _ => 0,
            };
            let pause = match failures {
                0 => HEALTHY_INTERVAL,
                times => RETRY * 2u32.pow(times - 1),
            };
            let has_remote = remote.is_some();
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                changed = own.changed() => if changed.is_err() { return },
                changed = table.changed() => if changed.is_err() { return },
                changed = services.changed(), if has_remote => if changed.is_err() { return },
                changed = slices.changed(), if has_remote => if changed.is_err() { return },
                () = tokio::time::sleep(pause), if has_remote => {}
            }
        }
    }

    /// Makes the rows that are missing, and takes away those of definitions that are gone.
    async fn register(&self, client: &Client) {
        let table = self.registry.table();
        let served: BTreeSet<(String, String)> = table
            .rows()
            .iter()
            .filter(|row| row.def.group != "apiregistration.k8s.io")
            .map(|row| (row.def.group.to_string(), row.def.version.to_string()))
            .collect();
        let names: BTreeSet<String> =
            served.iter().map(|(group, version)| format!("{version}.{group}")).collect();
        let there = |name: &str| Lookup::get(&*self.registry, &API_SERVICES, "", name).is_some();
        let absent = served.iter().filter(|(group, version)| !there(&format!("{version}.{group}")));
        let making = absent.map(|(group, version)| {
            let service = local_service(group, version);
            async move {
                match client.create_value(&RESOURCE, "", None, &service).await {
                    Err(error) if !error.is_already_exists() => {
                        let name = text(&service, "metadata.name");
                        tracing::warn!(error = &error as &dyn std::error::Error, name, "cannot be made");
                    }
                    _ => {}
                }
            }
        });
        futures::future::join_all(making).await;
        for service in Lookup::list(&*self.registry, &API_SERVICES, None) {
            let name = text(&service, "metadata.name");
            let managed = label(&service, AUTOMANAGED) == Some("true") && !is_remote(&service);
            if managed && !names.contains(name) {
                client.delete_value(&RESOURCE, "", name, &Default::default()).await.ok();
            }
        }
    }

    /// Looks at every APIService. Whether all that lead elsewhere are available; `None` when none does.
    async fn look(&self, client: &Client) -> Option<bool> {
        let services = Lookup::list(&*self.registry, &API_SERVICES, None);
        let looking = services.iter().map(|service| self.look_at(client, service));
        let found = futures::future::join_all(looking).await;
        let remote: Vec<(&Arc<Value>, bool)> =
            services.iter().zip(found).filter(|(service, _)| is_remote(service)).collect();
        let is_there = |name: &str| remote.iter().any(|(service, _)| text(service, "metadata.name") == name);
        self.aggregation.documents().retain(is_there);
        (!remote.is_empty()).then(|| remote.iter().all(|(_, available)| *available))
    }

    async fn look_at(&self, client: &Client, service: &Value) -> bool {
        let (found, document) = self.find(service).await;
        if is_remote(service) {
            self.aggregation.documents().put(service, document);
        }
        let now = apimachinery::time::rfc3339(self.now());
        if let Some(condition) = found.condition(service, &now) {
            let name = text(service, "metadata.name");
            let patch = json!({"status": {"conditions": [condition]}});
            let told =
                client.patch_value(&RESOURCE, "", name, Some("status"), PatchType::Merge, &patch).await;
            match told {
                Err(error) if !error.is_not_found() => {
                    tracing::warn!(error = &error as &dyn std::error::Error, name, "cannot be told");
                }
                _ => {}
            }
        }
        found.is_available()
    }

    async fn find(&self, service: &Value) -> (Found, Option<Document>) {
        if let Some(found) = decide(&*self.registry, service) {
            return (found, None);
        }
        let peer = match self.aggregation.peer(service) {
            Ok(peer) => peer,
            Err(message) => {
                return (Found { status: "False", reason: "FailedDiscoveryCheck", message }, None);
            }
        };
        let found = ask(&peer, service).await;
        let document = match found.is_available() {
            true => tokio::time::timeout(super::availability::CHECK_TIMEOUT, read(&peer, service)).await,
            false => Ok(None),
        };
        (found, document.ok().flatten())
    }
}
