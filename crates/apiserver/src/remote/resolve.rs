//! Which endpoint answers for a Service: this server has no cluster network of its own to rely on, so it asks the
//! EndpointSlices.
//!
//! Upstream: apiserver/pkg/util/proxy/proxy.go ResolveEndpoint, and ResolveCluster for names of others

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use apimachinery::{GroupResource, Status};
use serde_json::Value;

use crate::seams::Lookup;

pub const SERVICES: GroupResource = GroupResource::from_static("", "services");
pub const SLICES: GroupResource = GroupResource::from_static("discovery.k8s.io", "endpointslices");

/// Resolves Services, a different ready endpoint each time.
#[derive(Clone)]
pub struct Resolver {
    lookup: Arc<dyn Lookup>,
    turn: Arc<AtomicUsize>,
}

impl Resolver {
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        Resolver { lookup, turn: Arc::default() }
    }

    pub fn lookup(&self) -> &Arc<dyn Lookup> {
        &self.lookup
    }

    /// The address and port that stand behind a Service's port number.
    pub fn endpoint(&self, namespace: &str, name: &str, port: u16) -> Result<(String, u16), Status> {
        let service = self.lookup.get(&SERVICES, namespace, name);
        let service = service.ok_or_else(|| Status::not_found(&SERVICES, name))?;
        let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP");
        if kind == "ExternalName" {
            let host = service["spec"]["externalName"].as_str().unwrap_or_default();
            return Ok((host.to_owned(), port));
        }
        if !matches!(kind, "ClusterIP" | "LoadBalancer" | "NodePort") {
            return Err(Status::internal(format!("unsupported service type {kind:?}")));
        }
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let found = ports.into_iter().find(|p| p["port"].as_u64() == Some(u64::from(port)));
        let Some(found) = found else {
            return Err(Status::service_unavailable(format!(
                "no service port {port} found for service {name:?}"
            )));
        };
        let port_name = found["name"].as_str().unwrap_or_default();
        let family = service["spec"]["ipFamilies"][0].as_str().unwrap_or("IPv4");
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let endpoint = ready_endpoint(&*self.lookup, namespace, name, port_name, family, turn);
        endpoint.ok_or_else(|| {
            Status::service_unavailable(format!("no endpoints available for service {name:?}"))
        })
    }
}

/// The slices of a Service.
pub fn slices(lookup: &dyn Lookup, namespace: &str, service: &str) -> Vec<Arc<Value>> {
    let mut slices = lookup.list(&SLICES, Some(namespace));
    slices.retain(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service);
    slices
}

/// A ready endpoint that has the named port, the `turn`th of those in the first slice that has any; slices of the
/// wanted address family come first.
pub fn ready_endpoint(
    lookup: &dyn Lookup,
    namespace: &str,
    service: &str,
    port_name: &str,
    family: &str,
    turn: usize,
) -> Option<(String, u16)> {
    let mut slices = slices(lookup, namespace, service);
    slices.sort_by_key(|slice| slice["addressType"] != family);
    slices.iter().find_map(|slice| {
        let ports = slice["ports"].as_array()?;
        let port = ports.iter().find(|p| p["name"].as_str().unwrap_or_default() == port_name)?;
        let port = u16::try_from(port["port"].as_u64()?).ok()?;
        let ready = |e: &&Value| e["conditions"]["ready"].as_bool().unwrap_or(true);
        let ready: Vec<&Value> = slice["endpoints"].as_array()?.iter().filter(ready).collect();
        let endpoint = ready.get(turn.checked_rem(ready.len())?)?;
        Some((endpoint["addresses"][0].as_str()?.to_owned(), port))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::fake::Fake;

    #[test]
    fn a_service_is_resolved_to_each_of_its_ready_endpoints_in_turn() {
        let resolver = Resolver::new(Fake::new([
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "n"},
                   "spec": {"type": "ClusterIP", "ports": [{"port": 443, "name": "web"}]}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "e", "namespace": "n"},
                   "spec": {"type": "ExternalName", "externalName": "other.example"}}),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "s-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "s"}},
            "ports": [{"name": "web", "port": 8443}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
                {"addresses": ["10.0.0.3"]},
            ]}),
        ]));
        let ask = |name: &str, port| match resolver.endpoint("n", name, port) {
            Ok((host, port)) => format!("{host}:{port}"),
            Err(status) => status.message,
        };
        assert_eq!([ask("s", 443), ask("s", 443)], ["10.0.0.1:8443", "10.0.0.3:8443"]);
        assert_eq!(ask("s", 80), r#"no service port 80 found for service "s""#);
        assert_eq!(ask("x", 443), r#"services "x" not found"#);
        assert_eq!(ask("e", 443), "other.example:443");
    }
}
