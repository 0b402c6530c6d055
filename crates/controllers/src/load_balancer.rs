//! Services of type LoadBalancer without a class: the nodes themselves are the balancer. A Service gets the addresses
//! of the nodes that may carry its traffic, and the proxy of every node takes it from there.
//!
//! What always holds: a port of a node's address belongs to one Service only, that which had it first; what listens
//! on the node by itself, as far as the cluster knows of it, is never taken. Services of a class are somebody else's.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use api::Object;
use api::core::v1::{
    LoadBalancerIngress, LoadBalancerStatus, Node, NodeStatus, Service, ServiceSpec, ServiceStatus,
};
use api::discovery::v1::EndpointSlice;
use client::PatchType;
use controller_runtime::{Event, EventRecorder, Informer, WorkQueue};
use serde_json::json;

use crate::Error;
use crate::context::Context;
use crate::endpointslice::SERVICE_NAME;
use crate::objects::{created, is_deleting, label};

/// Upstream: staging/src/k8s.io/cloud-provider/controllers/service/controller.go
const COMPONENT: &str = "service-controller";
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// Where the proxy of every node answers health checks.
const PROXY_HEALTH_PORT: u16 = 10256;
/// All Services are decided on together, since they take ports from each other.
const ALL: &str = "all";

/// A port of an address, by protocol.
type Place = (IpAddr, String, u16);

/// What a Service gets.
#[derive(Debug, Default, PartialEq, Eq)]
struct Share {
    addresses: BTreeSet<IpAddr>,
    /// Addresses that it would have got, had nobody its ports there.
    taken: BTreeSet<IpAddr>,
}

fn spec(service: &Service) -> ServiceSpec {
    service.spec.clone().unwrap_or_default()
}

fn is_balanced(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"))
}

/// Whether it is this controller that serves it.
///
/// Upstream: staging/src/k8s.io/cloud-provider/controllers/service/controller.go wantsLoadBalancer
fn is_ours(service: &Service) -> bool {
    is_balanced(service)
        && !is_deleting(service)
        && spec(service).load_balancer_class.is_none_or(|class| class.is_empty())
}

fn ingress(service: &Service) -> &[LoadBalancerIngress] {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default()
}

fn present(service: &Service) -> BTreeSet<IpAddr> {
    ingress(service).iter().filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect()
}

/// Upstream: staging/src/k8s.io/cloud-provider/controllers/service/controller.go stableNodeSetPredicates; a node that
/// is not Ready is left out too, for no balancer stands before it that would notice.
fn may_carry(node: &Node) -> bool {
    let status = node.status.clone().unwrap_or_default();
    let mut conditions = status.conditions.into_iter().flatten();
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
        && label(node, EXCLUDED).is_none()
        && !is_deleting(node)
        && !taints.into_iter().any(|taint| taint.key == TO_BE_DELETED)
}

/// The node's addresses towards the world, and those among the nodes.
fn addresses(node: &Node) -> [Vec<IpAddr>; 2] {
    ["ExternalIP", "InternalIP"].map(|kind| {
        let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        all.filter(|address| address.type_ == kind).filter_map(|a| a.address.parse().ok()).collect()
    })
}

/// A node that may carry traffic of Services.
struct Able<'a> {
    name: &'a str,
    addresses: [Vec<IpAddr>; 2],
}

impl Able<'_> {
    /// The addresses that are handed out by themselves; others only who asks for them gets.
    fn usual(&self) -> &[IpAddr] {
        let [outer, inner] = &self.addresses;
        if outer.is_empty() { inner } else { outer }
    }
}

/// The Service that a slice belongs to.
fn owner(slice: &EndpointSlice) -> Option<String> {
    label(slice, SERVICE_NAME).map(|name| format!("{}/{name}", slice.namespace()))
}

/// The nodes with ready endpoints, by Service.
fn nodes_with_endpoints(slices: &[Arc<EndpointSlice>]) -> HashMap<String, HashSet<&str>> {
    let mut nodes: HashMap<String, HashSet<&str>> = HashMap::new();
    for slice in slices {
        let Some(service) = owner(slice) else { continue };
        let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
            endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready.unwrap_or(true))
        });
        nodes.entry(service).or_default().extend(ready.filter_map(|endpoint| endpoint.node_name.as_deref()));
    }
    nodes
}

/// The ports of nodes' addresses that something listens on: kubelets, proxies, and what is an endpoint of some
/// Service. By whose Service, if by one: it may lead to itself.
fn listening(nodes: &[Arc<Node>], slices: &[Arc<EndpointSlice>]) -> BTreeMap<Place, Option<String>> {
    let mut places = BTreeMap::new();
    let mut of_nodes = BTreeSet::new();
    for node in nodes {
        let kubelet = |status: &NodeStatus| {
            let endpoint = status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?;
            u16::try_from(endpoint.port).ok()
        };
        let kubelet = node.status.as_ref().and_then(kubelet);
        for address in addresses(node).concat() {
            of_nodes.insert(address);
            for port in kubelet.into_iter().chain([PROXY_HEALTH_PORT]) {
                places.insert((address, "TCP".to_owned(), port), None);
            }
        }
    }
    for slice in slices {
        let service = owner(slice);
        let endpoints = slice.endpoints.iter().flatten().flat_map(|endpoint| &endpoint.addresses);
        let local = endpoints.filter_map(|text| text.parse().ok()).filter(|ip| of_nodes.contains(ip));
        for address in local.collect::<Vec<IpAddr>>() {
            for port in slice.ports.iter().flatten() {
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                let Some(number) = port.port.and_then(|port| u16::try_from(port).ok()) else { continue };
                places.entry((address, protocol, number)).or_insert_with(|| service.clone());
            }
        }
    }
    places
}

/// Shares the nodes' addresses out among the Services. Who has an address keeps it, then the older come first.
fn decide(
    services: &[Arc<Service>],
    nodes: &[Arc<Node>],
    slices: &[Arc<EndpointSlice>],
) -> BTreeMap<String, Share> {
    let mut places = listening(nodes, slices);
    let able = nodes.iter().filter(|node| may_carry(node));
    let able: Vec<Able> = able.map(|node| Able { name: node.name(), addresses: addresses(node) }).collect();
    let of_nodes: BTreeSet<IpAddr> = nodes.iter().flat_map(|node| addresses(node).concat()).collect();
    let mut ours: Vec<&Arc<Service>> = services.iter().filter(|service| is_ours(service)).collect();
    ours.sort_by_cached_key(|service| (created(&***service), service.key()));
    let nodes_of = nodes_with_endpoints(slices);
    let mut shares: BTreeMap<String, Share> = BTreeMap::new();
    for keeps in [true, false] {
        for service in &ours {
            let share = shares.entry(service.key()).or_default();
            let had = present(service);
            let asked = asked(service).filter(|address| of_nodes.contains(address));
            for address in candidates(service, &able, nodes_of.get(&service.key()), asked) {
                if had.contains(&address) == keeps {
                    take(service, address, &mut places, share);
                }
            }
        }
    }
    shares
}

/// The address that a Service asks for. One that no node has is nothing that we could give, and is ignored as the
/// field's definition has it.
fn asked(service: &Service) -> Option<IpAddr> {
    service.spec.as_ref()?.load_balancer_ip.as_ref()?.parse().ok()
}

/// The addresses that a Service could have: of the family of the one that it asks for, that one.
fn candidates(
    service: &Service,
    able: &[Able],
    nodes_with_endpoints: Option<&HashSet<&str>>,
    asked: Option<IpAddr>,
) -> Vec<IpAddr> {
    let spec = spec(service);
    let is_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let has_endpoints = |node: &str| nodes_with_endpoints.is_some_and(|nodes| nodes.contains(node));
    let has_family = |address: &IpAddr| {
        let family = if address.is_ipv6() { "IPv6" } else { "IPv4" };
        spec.ip_families.as_ref().is_none_or(|families| families.iter().any(|one| one == family))
    };
    let nodes: Vec<&Able> = able.iter().filter(|node| !is_local || has_endpoints(node.name)).collect();
    let is_other = |address: &&IpAddr| asked.is_none_or(|asked| asked.is_ipv6() != address.is_ipv6());
    let usual = nodes.iter().flat_map(|node| node.usual()).filter(is_other);
    let all = nodes.iter().flat_map(|node| node.addresses.iter().flatten());
    let asked = all.filter(|address| asked == Some(**address));
    usual.chain(asked).copied().filter(has_family).collect()
}

/// Gives an address to a Service, all of its ports or none.
fn take(service: &Service, address: IpAddr, places: &mut BTreeMap<Place, Option<String>>, share: &mut Share) {
    let key = service.key();
    let wanted: Vec<Place> = spec(service)
        .ports
        .into_iter()
        .flatten()
        .filter_map(|port| {
            let protocol = port.protocol.unwrap_or_else(|| "TCP".to_owned());
            Some((address, protocol, u16::try_from(port.port).ok()?))
        })
        .collect();
    if wanted.iter().any(|place| places.get(place).is_some_and(|owner| owner.as_ref() != Some(&key))) {
        share.taken.insert(address);
        return;
    }
    places.extend(wanted.into_iter().map(|place| (place, Some(key.clone()))));
    share.addresses.insert(address);
}

struct Controller {
    context: Context,
    services: Informer<Service>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    events: EventRecorder,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        services: context.informers.informer(),
        nodes: context.informers.informer(),
        slices: context.informers.informer(),
        events: context.events(COMPONENT),
        context,
    });
    let queue = WorkQueue::new();
    controller.subscribe(&queue);
    queue.add(ALL);
    let reconcile = |controller: Arc<Controller>, _| async move { controller.reconcile().await };
    controller.context.work(&controller, &queue, 1, reconcile).await;
}

impl Controller {
    fn subscribe(self: &Arc<Self>, queue: &WorkQueue<&'static str>) {
        let services = queue.clone();
        self.services.subscribe(move |event| {
            let concerns = |service: &Arc<Service>| is_balanced(service) || !ingress(service).is_empty();
            if [Some(event.object()), event.old()].into_iter().flatten().any(concerns) {
                services.add(ALL);
            }
        });
        let (nodes, this) = (queue.clone(), self.clone());
        self.nodes.subscribe(move |event| {
            let seen = |node: &Arc<Node>| (may_carry(node), addresses(node));
            let same = matches!(event, Event::Updated { old, new } if seen(old) == seen(new));
            if !same && this.has_any() {
                nodes.add(ALL);
            }
        });
        let (slices, this) = (queue.clone(), self.clone());
        self.slices.subscribe(move |event| {
            let slice = event.object();
            let name = label(&**slice, SERVICE_NAME).unwrap_or_default();
            let service = this.services.get_in(slice.namespace(), name);
            let is_local =
                |service: &Service| spec(service).external_traffic_policy.as_deref() == Some("Local");
            if service.is_some_and(|service| is_balanced(&service) && is_local(&service)) {
                slices.add(ALL);
            }
        });
    }

    fn has_any(&self) -> bool {
        self.services.list().iter().any(|service| is_balanced(service))
    }

    async fn reconcile(&self) -> Result<(), Error> {
        let services = self.services.list();
        let shares = decide(&services, &self.nodes.list(), &self.slices.list());
        let mut failed = None;
        for service in &services {
            let wrote = match shares.get(&service.key()) {
                Some(share) => self.settle(service, share).await,
                // What it had as a balancer goes with the type.
                None if !is_balanced(service) && !ingress(service).is_empty() => {
                    self.settle(service, &Share::default()).await
                }
                None => Ok(()),
            };
            failed = failed.or(wrote.err());
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    async fn settle(&self, service: &Arc<Service>, share: &Share) -> Result<(), client::Error> {
        let wanted: Vec<LoadBalancerIngress> = share
            .addresses
            .iter()
            .map(|address| LoadBalancerIngress {
                ip: Some(address.to_string()),
                ip_mode: Some("VIP".to_owned()),
                ..Default::default()
            })
            .collect();
        if wanted == ingress(service) {
            return Ok(());
        }
        let status = ServiceStatus {
            load_balancer: Some(LoadBalancerStatus { ingress: Some(wanted.clone()) }),
            conditions: None,
        };
        let patch = json!({
            "metadata": {"uid": service.uid(), "resourceVersion": service.metadata.resource_version},
            "status": status,
        });
        match self.services.patch(service, Some("status"), PatchType::Merge, &patch).await {
            Err(error) if error.is_not_found() => return Ok(()),
            written => written.map(drop)?,
        }
        if !wanted.is_empty() {
            self.events.normal(&**service, "EnsuredLoadBalancer", "Ensured load balancer");
        } else if !share.taken.is_empty() {
            let message = "Error syncing load balancer: a port of the Service is in use on every node";
            self.events.warning(&**service, "SyncLoadBalancerFailed", message);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
