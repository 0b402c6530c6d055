//! The IPAddress objects of Services: each follows the Service that holds the address, whatever happened to either,
//! before or after a restart.
//!
//! Upstream: pkg/registry/core/service/ipallocator/ipallocator.go createIPAddress,
//! pkg/registry/core/service/ipallocator/controller/repairip.go

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::GroupResource;
use client::{Client, DeleteOptions, Resource};
use serde_json::{Value, json};

use super::book::{MANAGED_BY, Owner, Recorded};
use super::range::family;
use crate::handle::ApiServer;

/// When a write failed that is not expected to, it is tried again after this long.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, PartialEq)]
enum Action {
    Create(Owner),
    Delete,
}

/// What to do about an address: an object that somebody else made stays as it is, even if a Service has the
/// address too.
fn decide(owner: Option<Owner>, recorded: Option<&Recorded>) -> Option<Action> {
    match (owner, recorded) {
        (Some(owner), None) => Some(Action::Create(owner)),
        (None, Some(recorded)) if recorded.managed => Some(Action::Delete),
        (Some(owner), Some(recorded)) if recorded.managed && recorded.owner.as_ref() != Some(&owner) => {
            Some(Action::Delete)
        }
        _ => None,
    }
}

fn object(address: IpAddr, (namespace, name): &Owner) -> Value {
    let (label, manager) = MANAGED_BY;
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": address.to_string(),
            "labels": {"ipaddress.kubernetes.io/ip-family": family(address), label: manager},
        },
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": name}},
    })
}

/// Keeps the objects until the server stops.
pub async fn keep(server: Arc<ApiServer>, client: Client) {
    let table = server.registry.table();
    let row = |group, resource| table.stored(&GroupResource::from_static(group, resource)).cloned();
    let (Some(services), Some(addresses)) = (row("", "services"), row("networking.k8s.io", "ipaddresses"))
    else {
        return;
    };
    let (Some(services), Some(cache)) = (&services.cache, &addresses.cache) else { return };
    let (mut services, mut recorded) = (services.subscribe(), cache.subscribe());
    let resource = Resource { gvr: addresses.def.gvr(), namespaced: false };
    loop {
        services.borrow_and_update();
        recorded.borrow_and_update();
        let changed = server.services.book(&server.registry).changed();
        let mut failed = false;
        for (address, owner, record) in changed {
            let Some(action) = decide(owner, record.as_ref()) else { continue };
            if let Err(error) = act(&client, &resource, address, action).await {
                tracing::warn!(%address, error = &error as &dyn std::error::Error, "an IPAddress was not kept");
                server.services.lock().again(address);
                failed = true;
            }
        }
        let retry =
            async { if failed { tokio::time::sleep(RETRY).await } else { std::future::pending().await } };
        tokio::select! {
            () = server.shutdown.cancelled() => return,
            changed = services.changed() => if changed.is_err() { return },
            changed = recorded.changed() => if changed.is_err() { return },
            () = retry => {}
        }
    }
}

async fn act(
    client: &Client,
    resource: &Resource,
    address: IpAddr,
    action: Action,
) -> Result<(), client::Error> {
    match action {
        Action::Create(owner) => {
            match client.create_value(resource, "", None, &object(address, &owner)).await {
                Err(error) if !error.is_already_exists() => Err(error),
                _ => Ok(()),
            }
        }
        Action::Delete => {
            match client.delete_value(resource, "", &address.to_string(), &DeleteOptions::default()).await {
                Err(error) if !error.is_not_found() => Err(error),
                _ => Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_follows_its_service() {
        let owner = |name: &str| ("default".to_owned(), name.to_owned());
        let record = |managed, name: &str| Recorded { managed, owner: Some(owner(name)) };
        let check = |held: Option<&str>, recorded: Option<Recorded>, expected: Option<Action>| {
            assert_eq!(decide(held.map(owner), recorded.as_ref()), expected, "{held:?} {recorded:?}");
        };
        check(Some("a"), None, Some(Action::Create(owner("a"))));
        check(None, Some(record(true, "a")), Some(Action::Delete));
        check(Some("a"), Some(record(true, "b")), Some(Action::Delete));
        check(Some("a"), Some(record(true, "a")), None);
        check(None, Some(record(false, "a")), None);
        check(Some("a"), Some(record(false, "b")), None);
        check(None, None, None);
    }
}
