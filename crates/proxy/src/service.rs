//! One Service as elements of the table: the decider of the proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use api::Object;
use api::core::v1::{Service, ServicePort, ServiceSpec};

use crate::element::{Frontend, Key, MARK_MASQUERADE, MARK_SLOT, MAX_ENDPOINTS, Pick, Protocol, Value};
use crate::endpoints::{self, Here, Usable};
use crate::metrics::Starved;
use crate::range::{self, Range};
use crate::slice::Slice;

/// What one Service asks of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub elements: BTreeMap<Key, Value>,
    pub rest: Rest,
}

/// What besides elements of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    /// Where UDP flows of this Service may lead; those that lead elsewhere are cut. A frontend without any
    /// endpoint is not listed: its flows have nowhere better to go.
    pub udp: BTreeMap<Frontend, BTreeSet<SocketAddr>>,
    pub health: Option<Health>,
    /// Ports whose traffic policy is Local, and which have endpoints but none here.
    pub starved: Vec<Starved>,
}

/// The health check that an outside load balancer makes of a Service of external policy Local.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    pub port: u16,
    /// Ready endpoints on this node.
    pub local_endpoints: usize,
}

/// Whether another proxy or nobody takes care of the object.
// Upstream: cmd/kube-proxy/app/server.go: the label selector of the informers.
pub fn is_foreign(labels: Option<&BTreeMap<String, String>>) -> bool {
    let has = |name| labels.is_some_and(|labels| labels.contains_key(name));
    has("service.kubernetes.io/service-proxy-name") || has("service.kubernetes.io/headless")
}

/// The elements of a Service with its EndpointSlices.
pub fn wanted(service: &Service, slices: &[&Slice], here: &Here) -> Wanted {
    let mut wanted = Wanted::default();
    let Some(spec) = service.spec.as_ref().filter(|_| !is_foreign(service.metadata().labels.as_ref())) else {
        return wanted;
    };
    let cluster_ips = cluster_ips(spec);
    if spec.type_.as_deref() == Some("ExternalName") || cluster_ips.is_empty() {
        return wanted;
    }
    let mut local_ready = BTreeSet::new();
    for cluster_ip in cluster_ips {
        wanted.elements.insert(Key::ClusterAddress(cluster_ip), Value::Present);
        for port in spec.ports.iter().flatten() {
            let endpoints = endpoints::of_port(slices.iter().copied(), port, cluster_ip.is_ipv6(), here);
            local_ready.extend(endpoints.iter().filter(|e| e.is_local && e.is_ready).map(|e| e.address.ip()));
            for endpoint in endpoints.iter().filter(|endpoint| endpoint.is_local) {
                wanted.elements.insert(Key::Hairpin(endpoint.address.ip()), Value::Present);
            }
            let serving = endpoints.iter().filter(|e| e.is_serving).map(|e| e.address).collect();
            let usable = endpoints::usable(&endpoints, here);
            if let Some(port) = Port::new(spec, port, cluster_ip, service, &usable) {
                port.add_to(&mut wanted, serving, here);
            }
        }
    }
    if is_external_local(spec) && spec.type_.as_deref() == Some("LoadBalancer") {
        let port =
            spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        wanted.rest.health = port.map(|port| Health { port, local_endpoints: local_ready.len() });
    }
    wanted
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let mut texts: Vec<&String> = spec.cluster_ips.iter().flatten().collect();
    if texts.is_empty() {
        texts.extend(&spec.cluster_ip);
    }
    // `None`, of headless Services, is no address.
    let mut addresses: Vec<IpAddr> = texts.into_iter().filter_map(|text| text.parse().ok()).collect();
    addresses.dedup_by_key(|address| address.is_ipv6());
    addresses
}

// Upstream: pkg/api/v1/service/util.go ExternalPolicyLocal, ExternallyAccessible
fn is_external_local(spec: &ServiceSpec) -> bool {
    let is_external = matches!(spec.type_.as_deref(), Some("LoadBalancer" | "NodePort"))
        || spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    is_external && spec.external_traffic_policy.as_deref() == Some("Local")
}

fn is_internal_local(spec: &ServiceSpec) -> bool {
    spec.internal_traffic_policy.as_deref() == Some("Local")
}

/// The addresses of the load balancer that traffic arrives for; in mode Proxy it arrives for the node.
fn load_balancer_ips(service: &Service) -> impl Iterator<Item = IpAddr> + '_ {
    let ingress =
        service.status.iter().flat_map(|status| &status.load_balancer).flat_map(|lb| &lb.ingress).flatten();
    ingress
        .filter(|ingress| ingress.ip_mode.as_deref().unwrap_or("VIP") == "VIP")
        .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
}

/// One port of a Service in one address family.
struct Port<'a> {
    spec: &'a ServiceSpec,
    protocol: Protocol,
    cluster_ip: IpAddr,
    number: u16,
    node_port: Option<u16>,
    external_ips: Vec<IpAddr>,
    load_balancer_ips: Vec<IpAddr>,
    sticky_seconds: u32,
    usable: &'a Usable,
}

impl<'a> Port<'a> {
    /// `None` for what validation should not have let through.
    fn new(
        spec: &'a ServiceSpec,
        port: &ServicePort,
        cluster_ip: IpAddr,
        service: &Service,
        usable: &'a Usable,
    ) -> Option<Self> {
        let number = |number: i32| u16::try_from(number).ok().filter(|number| *number != 0);
        let is_of_family = |address: &IpAddr| address.is_ipv6() == cluster_ip.is_ipv6();
        let external = spec.external_ips.iter().flatten().filter_map(|text| text.parse().ok());
        let timeout = || spec.session_affinity_config.as_ref()?.client_ip.as_ref()?.timeout_seconds;
        let is_sticky = spec.session_affinity.as_deref() == Some("ClientIP");
        Some(Port {
            spec,
            protocol: Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"))?,
            cluster_ip,
            number: number(port.port)?,
            node_port: port.node_port.and_then(number),
            external_ips: external.filter(is_of_family).collect(),
            load_balancer_ips: load_balancer_ips(service).filter(is_of_family).collect(),
            sticky_seconds: if is_sticky {
                timeout().and_then(|s| u32::try_from(s).ok()).unwrap_or(10_800)
            } else {
                0
            },
            usable,
        })
    }

    fn add_to(&self, wanted: &mut Wanted, serving: BTreeSet<SocketAddr>, here: &Here) {
        let (protocol, port, ipv6) = (self.protocol, self.number, self.cluster_ip.is_ipv6());
        let at = |address: &IpAddr| Frontend::Address { address: *address, protocol, port };
        let cluster = at(&self.cluster_ip);
        let mut external: Vec<Frontend> =
            self.external_ips.iter().chain(&self.load_balancer_ips).map(at).collect();
        external.extend(self.node_port.map(|port| Frontend::NodePort { ipv6, protocol, port }));

        self.add_cluster_ip(&mut wanted.elements, cluster);
        for frontend in &external {
            self.add_external(&mut wanted.elements, *frontend);
        }
        self.add_source_ranges(&mut wanted.elements, here, at);
        if self.usable.has_any && self.usable.local.is_empty() {
            let policies = [(false, is_internal_local(self.spec)), (true, is_external_local(self.spec))];
            let starved = policies.into_iter().filter(|(_, is_local)| *is_local);
            wanted
                .rest
                .starved
                .extend(starved.map(|(is_external, _)| Starved { is_external, is_ipv6: ipv6 }));
        }
        if protocol == Protocol::Udp && !serving.is_empty() {
            wanted
                .rest
                .udp
                .extend(external.into_iter().chain([cluster]).map(|frontend| (frontend, serving.clone())));
        }
    }

    fn add_cluster_ip(&self, elements: &mut BTreeMap<Key, Value>, frontend: Frontend) {
        let is_local = is_internal_local(self.spec);
        let endpoints = if is_local { &self.usable.local } else { &self.usable.cluster };
        if endpoints.is_empty() {
            self.refuse(elements, frontend);
        } else {
            let pick = self.pick(frontend, endpoints, false, false);
            self.choose(elements, Key::Service(frontend), frontend, pick, endpoints);
        }
    }

    /// Policy Cluster: to any endpoint, masqueraded so that the answer comes back this way. Policy Local: from
    /// outside to local endpoints with the source kept, from inside to any.
    fn add_external(&self, elements: &mut BTreeMap<Key, Value>, frontend: Frontend) {
        let is_local = is_external_local(self.spec);
        if !self.usable.cluster.is_empty() {
            let pick = self.pick(frontend, &self.usable.cluster, !is_local, false);
            self.choose(elements, Key::Service(frontend), frontend, pick, &self.usable.cluster);
        }
        if is_local && !self.usable.local.is_empty() {
            let pick = self.pick(frontend, &self.usable.local, false, true);
            self.choose(elements, Key::FromOutside(frontend), frontend, pick, &self.usable.local);
        } else if is_local {
            elements.insert(Key::FromOutside(frontend), Value::Untouched);
            self.refuse(elements, frontend);
        } else if self.usable.cluster.is_empty() {
            self.refuse(elements, frontend);
        }
    }

    /// Nothing anywhere: say so. Nothing here only: be silent, so that a balancer tries another node.
    fn refuse(&self, elements: &mut BTreeMap<Key, Value>, frontend: Frontend) {
        let verdict = if self.usable.has_any { Value::Discard } else { Value::Refuse };
        elements.insert(Key::Refused(frontend), verdict);
    }

    /// Ranges of one family say nothing of the other, as upstream has it.
    fn add_source_ranges(
        &self,
        elements: &mut BTreeMap<Key, Value>,
        here: &Here,
        frontend: impl Fn(&IpAddr) -> Frontend,
    ) {
        let ranges = self.spec.load_balancer_source_ranges.iter().flatten();
        let mut ranges: Vec<Range> = ranges.filter_map(|range| Range::parse(range.trim())).collect();
        ranges.retain(|range| range.is_ipv6() == self.cluster_ip.is_ipv6());
        if ranges.is_empty() {
            return;
        }
        // A node that may come, and has the balancer's address itself, comes from that address.
        if here.addresses.iter().any(|own| ranges.iter().any(|range| range.contains(*own))) {
            ranges.extend(self.load_balancer_ips.iter().copied().map(Range::of));
        }
        let ranges = range::apart(ranges);
        for frontend in self.load_balancer_ips.iter().map(frontend) {
            elements.insert(Key::Guarded(frontend), Value::Present);
            for range in &ranges {
                elements.insert(Key::Allowed(frontend, *range), Value::Present);
            }
        }
    }

    fn pick(&self, frontend: Frontend, endpoints: &[SocketAddr], masquerade: bool, local: bool) -> Pick {
        let count = endpoints.len().min(MAX_ENDPOINTS);
        Pick {
            node_port: frontend.is_node_port(),
            endpoints: u32::try_from(count).expect("at most MAX_ENDPOINTS"),
            masquerade,
            local,
            sticky_seconds: self.sticky_seconds,
        }
    }

    fn choose(
        &self,
        elements: &mut BTreeMap<Key, Value>,
        key: Key,
        frontend: Frontend,
        pick: Pick,
        endpoints: &[SocketAddr],
    ) {
        elements.insert(key, Value::Pick(pick));
        let mut slots = BTreeSet::new();
        for (mark, endpoint) in (pick.first_mark()..).zip(endpoints.iter().take(MAX_ENDPOINTS)) {
            let mut target = mark;
            if pick.sticky_seconds != 0 {
                target = slot(endpoint, pick.first_mark() & MARK_MASQUERADE, &mut slots);
                elements.insert(Key::Slot(frontend, mark), Value::Slot(target));
            }
            elements.insert(Key::Endpoint(frontend, target), Value::Endpoint(*endpoint));
        }
    }
}

/// A mark that an endpoint keeps while others come and go: its hash, and the next free one in the rare case
/// that two endpoints of a Service share it.
fn slot(endpoint: &SocketAddr, bits: u32, taken: &mut BTreeSet<u32>) -> u32 {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in endpoint.to_string().bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    let number = |hash: u32| MARK_SLOT | bits | (hash & !(MARK_SLOT | MARK_MASQUERADE));
    while !taken.insert(number(hash)) {
        hash = hash.wrapping_add(1);
    }
    number(hash)
}
