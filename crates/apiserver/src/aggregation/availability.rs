//! Whether an aggregated API server can be asked: what its Service says, and then its own answer.
//!
//! Upstream: kube-aggregator/pkg/controllers/status/remote/remote_available_controller.go

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use super::documents::fetch;
use super::is_remote;
use crate::admission::tree::{integer, items, text};
use crate::remote::outbound::Peer;
use crate::remote::resolve::{SERVICES, slices};
use crate::seams::Lookup;

/// How long the server may take to answer.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// What a look came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub status: &'static str,
    pub reason: &'static str,
    pub message: String,
}

impl Found {
    fn unavailable(reason: &'static str, message: String) -> Self {
        Found { status: "False", reason, message }
    }

    pub fn local() -> Self {
        let message = "Local APIServices are always available".to_owned();
        Found { status: "True", reason: "Local", message }
    }

    fn passed() -> Self {
        Found { status: "True", reason: "Passed", message: "all checks passed".to_owned() }
    }

    pub fn is_available(&self) -> bool {
        self.status == "True"
    }

    /// The condition to write; `None` when it says so already.
    pub fn condition(&self, service: &Value, now: &str) -> Option<Value> {
        let present = items(service, "status.conditions").iter().find(|c| c["type"] == "Available");
        let same = |c: &Value| {
            c["status"] == self.status && c["reason"] == self.reason && c["message"] == self.message.as_str()
        };
        if present.is_some_and(same) {
            return None;
        }
        let since = match present {
            Some(c) if c["status"] == self.status => text(c, "lastTransitionTime"),
            _ => now,
        };
        Some(json!({
            "type": "Available", "status": self.status, "reason": self.reason, "message": self.message,
            "lastTransitionTime": since,
        }))
    }
}

/// What the cluster says of an APIService: that it cannot be available, or that its server is to be asked.
pub fn decide(lookup: &dyn Lookup, api_service: &Value) -> Option<Found> {
    if !is_remote(api_service) {
        return Some(Found::local());
    }
    let namespace = text(api_service, "spec.service.namespace");
    let name = text(api_service, "spec.service.name");
    let place = format!("service/{name} in {namespace:?}");
    let Some(service) = lookup.get(&SERVICES, namespace, name) else {
        return Some(Found::unavailable("ServiceNotFound", format!("{place} is not present")));
    };
    if !matches!(text(&service, "spec.type"), "" | "ClusterIP") {
        return None;
    }
    let port = integer(api_service, "spec.service.port").unwrap_or(443);
    let ports = items(&service, "spec.ports");
    let Some(found) = ports.iter().find(|p| integer(p, "port") == Some(port)) else {
        let message = format!("{place} is not listening on port {port}");
        return Some(Found::unavailable("ServicePortError", message));
    };
    let port_name = text(found, "name");
    let slices = slices(lookup, namespace, name);
    if slices.is_empty() {
        let message = format!("cannot find endpointslices for {place}");
        return Some(Found::unavailable("EndpointsNotFound", message));
    }
    let usable = |slice: &Arc<Value>| {
        let ready = |e: &Value| e["conditions"]["ready"].as_bool().unwrap_or(true);
        items(slice, "endpoints").iter().any(ready)
            && items(slice, "ports").iter().any(|p| text(p, "name") == port_name && !p["port"].is_null())
    };
    if !slices.iter().any(usable) {
        let message = format!("endpointslices for {place} have no addresses with port name {port_name:?}");
        return Some(Found::unavailable("MissingEndpoints", message));
    }
    None
}

/// Asks the server itself, at the page that it must serve.
pub async fn ask(peer: &Peer, api_service: &Value) -> Found {
    let (group, version) = (text(api_service, "spec.group"), text(api_service, "spec.version"));
    let path = match group {
        "" => format!("/api/{version}"),
        group => format!("/apis/{group}/{version}"),
    };
    let url = format!("https://{}{path}", peer.address.authority());
    let failed = |why: String| Found::unavailable("FailedDiscoveryCheck", why);
    match tokio::time::timeout(CHECK_TIMEOUT, fetch(peer, &path, "application/json")).await {
        Err(_) => failed(format!("timed out waiting for {url}")),
        Ok(Err(why)) => failed(format!("failing or missing response from {url}: Get {url:?}: {why}")),
        Ok(Ok(answer)) if answer.code.is_success() || answer.code == StatusCode::NOT_MODIFIED => {
            Found::passed()
        }
        Ok(Ok(answer)) => {
            let code = answer.code.as_u16();
            failed(format!("failing or missing response from {url}: bad status from {url}: {code}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fake::Fake;

    fn service(port: u16) -> Value {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "n"},
               "spec": {"type": "ClusterIP", "ports": [{"port": port, "name": "p"}]}})
    }

    fn slice(ready: bool) -> Value {
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
               "metadata": {"name": "s-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "s"}},
               "ports": [{"name": "p", "port": 8443}],
               "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]})
    }

    #[test]
    fn the_first_thing_that_is_missing_is_told() {
        let api_service = json!({"spec": {"group": "g", "version": "v1",
                                          "service": {"name": "s", "namespace": "n", "port": 443}}});
        for (objects, expected) in [
            (vec![], Some(("ServiceNotFound", r#"service/s in "n" is not present"#))),
            (
                vec![service(80)],
                Some(("ServicePortError", r#"service/s in "n" is not listening on port 443"#)),
            ),
            (
                vec![service(443)],
                Some(("EndpointsNotFound", r#"cannot find endpointslices for service/s in "n""#)),
            ),
            (
                vec![service(443), slice(false)],
                Some((
                    "MissingEndpoints",
                    r#"endpointslices for service/s in "n" have no addresses with port name "p""#,
                )),
            ),
            (vec![service(443), slice(true)], None),
        ] {
            let found = decide(&*Fake::new(objects), &api_service);
            let got = found.as_ref().map(|found| (found.reason, found.message.as_str()));
            assert_eq!(got, expected);
        }
        let local = decide(&*Fake::new([]), &json!({"spec": {}}));
        assert_eq!(local, Some(Found::local()));
    }
}
