//! What the zone needs to know of the cluster, and how the API server's state answers it.

use std::net::IpAddr;
use std::sync::Arc;

use api::Object;
use api::core::v1::{Namespace, Service};
use api::discovery::v1::EndpointSlice;
use controller_runtime::{Informer, InformerFactory};

/// The cluster as names see it.
pub trait Cluster: Send + Sync + 'static {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>>;
    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>>;
    fn has_namespace(&self, name: &str) -> bool;
    /// The Services with that ClusterIP.
    fn services_at(&self, address: IpAddr) -> Vec<Arc<Service>>;
    /// The slices with an endpoint at that address.
    fn slices_at(&self, address: IpAddr) -> Vec<Arc<EndpointSlice>>;
}

pub(crate) const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const BY_SERVICE: &str = "service";
const BY_ADDRESS: &str = "address";

/// The API server's state, indexed for questions.
pub struct Informers {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    namespaces: Informer<Namespace>,
}

/// Addresses as text have many forms; indexes hold one.
fn canonical(text: &str) -> Option<String> {
    text.parse::<IpAddr>().ok().map(|address| address.to_string())
}

/// The addresses of a Service; a headless one's `None` is no address.
pub(crate) fn cluster_ips(service: &Service) -> impl Iterator<Item = IpAddr> + '_ {
    let spec = service.spec.as_ref();
    let all = spec.and_then(|spec| spec.cluster_ips.as_deref()).unwrap_or_default();
    // Older clients write the one field only.
    let one = spec.and_then(|spec| spec.cluster_ip.as_ref()).filter(|_| all.is_empty());
    all.iter().chain(one).filter_map(|text| text.parse().ok())
}

impl Informers {
    pub fn new(factory: &InformerFactory) -> Self {
        let services = factory.informer::<Service>();
        services.add_index(BY_ADDRESS, |service| {
            cluster_ips(service).map(|address| address.to_string()).collect()
        });
        let slices = factory.informer::<EndpointSlice>();
        slices.add_index(BY_SERVICE, |slice| owner(slice).into_iter().collect());
        slices.add_index(BY_ADDRESS, |slice| {
            let endpoints = slice.endpoints.iter().flatten();
            endpoints.flat_map(|endpoint| &endpoint.addresses).filter_map(|text| canonical(text)).collect()
        });
        Informers { services, slices, namespaces: factory.informer() }
    }
}

fn owner(slice: &EndpointSlice) -> Option<String> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?;
    Some(format!("{}/{name}", slice.namespace()))
}

impl Cluster for Informers {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get_in(namespace, name)
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_SERVICE, &format!("{namespace}/{service}"))
    }

    fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.get(name).is_some()
    }

    fn services_at(&self, address: IpAddr) -> Vec<Arc<Service>> {
        self.services.by_index(BY_ADDRESS, &address.to_string())
    }

    fn slices_at(&self, address: IpAddr) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_ADDRESS, &address.to_string())
    }
}
