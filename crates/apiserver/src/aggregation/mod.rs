//! Other API servers: APIServices say which group versions they serve, and requests for those go on to them.
//!
//! [`proxy`] sends a request on, as a front proxy that names its user; [`availability`] looks whether a server can
//! be asked; [`documents`] has what they say of themselves, for discovery and OpenAPI; [`keeper`] is the task that
//! keeps all this up to date, and a row for each group version that this server serves itself.
//!
//! What always holds: without an APIService that leads elsewhere, a request pays for one comparison of revisions,
//! and nothing is looked at again and again.
//!
//! Upstream: kube-aggregator/pkg/apiserver

mod availability;
mod documents;
mod keeper;
pub(crate) mod priorities;
mod proxy;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use apimachinery::GroupResource;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::admission::tree::{flag, integer, items, text};
use crate::remote::outbound::{Address, Peer, PeerConfig, PeerTrust, Peers};
use crate::seams::{Attributes, Lookup};

pub use proxy::forward;

pub(crate) const API_SERVICES: GroupResource =
    GroupResource::from_static("apiregistration.k8s.io", "apiservices");

/// What is known of other API servers.
pub struct Aggregation {
    peers: Arc<Peers>,
    routes: RwLock<Arc<Routes>>,
    documents: Mutex<documents::Documents>,
}

/// The APIServices that lead elsewhere, by group and version.
struct Routes {
    revision: u64,
    remote: HashMap<String, Arc<Value>>,
}

impl Routes {
    fn read(lookup: &dyn Lookup) -> Self {
        let revision = lookup.revision(&API_SERVICES);
        let remote = lookup.list(&API_SERVICES, None).into_iter().filter(|service| is_remote(service));
        Routes {
            revision,
            remote: remote.map(|service| (text(&service, "metadata.name").to_owned(), service)).collect(),
        }
    }
}

fn is_remote(service: &Value) -> bool {
    service["spec"]["service"].is_object()
}

/// Whether the last look found that the server can be asked.
fn is_available(service: &Value) -> bool {
    let conditions = items(service, "status.conditions");
    conditions.iter().any(|c| c["type"] == "Available" && c["status"] == "True")
}

/// Who serves an APIService.
fn peer_config(service: &Value) -> Result<PeerConfig, String> {
    let port = integer(service, "spec.service.port").unwrap_or(443);
    let address = Address::Service {
        namespace: text(service, "spec.service.namespace").to_owned(),
        name: text(service, "spec.service.name").to_owned(),
        port: u16::try_from(port).map_err(|_| format!("port {port} is out of range"))?,
    };
    let bundle = STANDARD.decode(text(service, "spec.caBundle")).map_err(|error| error.to_string())?;
    let trust = match flag(service, "spec.insecureSkipTLSVerify") {
        Some(true) => PeerTrust::Anyone,
        _ => PeerTrust::Bundle(bundle),
    };
    Ok(PeerConfig { address, trust, front_proxy: true })
}

impl Aggregation {
    pub fn new(peers: Arc<Peers>) -> Self {
        Aggregation {
            peers,
            routes: RwLock::new(Arc::new(Routes { revision: u64::MAX, remote: HashMap::new() })),
            documents: Mutex::default(),
        }
    }

    fn routes(&self, lookup: &dyn Lookup) -> Arc<Routes> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner).clone();
        if routes.revision == lookup.revision(&API_SERVICES) {
            return routes;
        }
        let routes = Arc::new(Routes::read(lookup));
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = routes.clone();
        routes
    }

    /// The APIService that a request goes to, when it leads elsewhere.
    pub fn service_for(&self, lookup: &dyn Lookup, attributes: &Attributes) -> Option<Arc<Value>> {
        let routes = self.routes(lookup);
        if routes.remote.is_empty() {
            return None;
        }
        let (group, version) = match attributes.is_resource {
            true => (attributes.group.as_str(), attributes.version.as_str()),
            false => group_version(&attributes.path)?,
        };
        routes.remote.get(&format!("{version}.{group}")).cloned()
    }

    fn peer(&self, service: &Value) -> Result<Arc<Peer>, String> {
        self.peers.get(&peer_config(service)?)
    }

    fn documents(&self) -> std::sync::MutexGuard<'_, documents::Documents> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The group and version of `/apis/GROUP/VERSION` and of its OpenAPI document.
fn group_version(path: &str) -> Option<(&str, &str)> {
    let path = path.strip_prefix("/openapi/v3").unwrap_or(path);
    let mut parts = path.strip_prefix("/apis/")?.split('/');
    Some((parts.next()?, parts.next().filter(|version| !version.is_empty())?))
}

#[cfg(test)]
mod tests;
