//! The cluster's names: the decider of the server. Start with [`Zone::answer`].
//!
//! The names are those of the Kubernetes DNS specification 1.1.0, and, where it is silent, CoreDNS's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;

use api::Object;
use api::core::v1::{Service, ServicePort};
use api::discovery::v1::{Endpoint, EndpointSlice};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::cluster::{SERVICE_LABEL, cluster_ips};
use crate::{Cluster, Error};

/// Seconds for which a name of the cluster may be kept.
pub const TTL: u32 = 5;
/// The version of the DNS specification.
const SPECIFICATION: &str = "1.1.0";

/// The answer to one question.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The name and records of the type; `additional` spares the asker further questions.
    Records {
        records: Vec<Record>,
        additional: Vec<Record>,
    },
    /// The name is there, records of the type are not.
    NoData,
    NoSuchName,
    /// The name is another name: an ExternalName Service.
    Alias {
        record: Box<Record>,
        target: Name,
    },
    /// Not a name of the cluster.
    Elsewhere,
}

/// The cluster's domain.
#[derive(Clone, Debug)]
pub struct Zone {
    origin: Name,
}

/// What `something.in.the.domain` is, without looking.
enum Place<'a> {
    Apex,
    Version,
    NameServer,
    /// `svc`, `pod`.
    Branch,
    Namespace(&'a str),
    Service {
        namespace: &'a str,
        service: &'a str,
    },
    Endpoint {
        namespace: &'a str,
        service: &'a str,
        hostname: &'a str,
    },
    Port {
        namespace: &'a str,
        service: &'a str,
        port: &'a str,
        protocol: &'a str,
    },
    Pod {
        namespace: &'a str,
        address: &'a str,
    },
    Nowhere,
}

fn place<'a>(labels: &[&'a str]) -> Place<'a> {
    match *labels {
        [] => Place::Apex,
        ["dns-version"] => Place::Version,
        ["dns"] => Place::Branch,
        ["ns", "dns"] => Place::NameServer,
        ["svc" | "pod"] => Place::Branch,
        [namespace, "svc" | "pod"] => Place::Namespace(namespace),
        [service, namespace, "svc"] => Place::Service { namespace, service },
        [address, namespace, "pod"] => Place::Pod { namespace, address },
        [hostname, service, namespace, "svc"] => Place::Endpoint { namespace, service, hostname },
        [port, protocol, service, namespace, "svc"] if port.starts_with('_') && protocol.starts_with('_') => {
            Place::Port { namespace, service, port: &port[1..], protocol: &protocol[1..] }
        }
        _ => Place::Nowhere,
    }
}

impl Zone {
    pub fn new(cluster_domain: &str) -> Result<Self, Error> {
        let wrong = || Error::Domain(cluster_domain.to_owned());
        let mut origin = Name::from_str(cluster_domain).map_err(|_| wrong())?.to_lowercase();
        origin.set_fqdn(true);
        if origin.is_root() { Err(wrong()) } else { Ok(Zone { origin }) }
    }

    /// The cluster's domain.
    pub fn origin(&self) -> &Name {
        &self.origin
    }

    pub fn contains(&self, name: &Name) -> bool {
        self.origin.zone_of(name)
    }

    /// Sent with every answer that something is not there, so that it is not remembered for long.
    pub fn soa(&self) -> Record {
        let server = self.name(&["ns", "dns"]);
        let mailbox = self.name(&["hostmaster"]);
        let data = RData::SOA(SOA::new(server, mailbox, 1, 7200, 1800, 86400, TTL));
        Record::from_rdata(self.origin.clone(), TTL, data)
    }

    /// Answers from what the cluster has now. `name` is repeated in the answer as it was asked.
    pub fn answer(&self, cluster: &dyn Cluster, name: &Name, kind: RecordType) -> Answer {
        if let Some(address) = reverse(name) {
            return self.reverse(cluster, name, address, kind);
        }
        if !self.contains(name) {
            return Answer::Elsewhere;
        }
        let count = usize::from(name.num_labels() - self.origin.num_labels());
        let labels: Option<Vec<String>> = name
            .iter()
            .take(count)
            .map(|label| std::str::from_utf8(label).ok().map(str::to_ascii_lowercase))
            .collect();
        let Some(labels) = labels else { return Answer::NoSuchName };
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let ask = Question { zone: self, cluster, name, kind };
        ask.answer(place(&labels))
    }

    /// Not finding an address is no proof of anything: the rest of the reverse tree belongs to others.
    fn reverse(&self, cluster: &dyn Cluster, name: &Name, address: IpAddr, kind: RecordType) -> Answer {
        let mut targets: Vec<Name> = Vec::new();
        for service in cluster.services_at(address) {
            targets.extend(self.try_name(&[service.name(), service.namespace(), "svc"]));
        }
        for slice in cluster.slices_at(address) {
            let Some(service) = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL))
            else {
                continue;
            };
            let is_headless =
                cluster.service(slice.namespace(), service).is_some_and(|service| is_headless(&service));
            for (endpoint, found) in endpoints(&slice) {
                if found == address && (is_headless || endpoint.hostname.is_some()) {
                    let host = host(endpoint, found);
                    targets.extend(self.try_name(&[&host, service, slice.namespace(), "svc"]));
                }
            }
        }
        targets.sort();
        targets.dedup();
        if targets.is_empty() {
            return Answer::Elsewhere;
        }
        let records = targets.into_iter().map(|target| RData::PTR(PTR(target)));
        records_or_none(name, kind, RecordType::PTR, records.collect(), Vec::new())
    }

    /// A name in the zone whose labels are known to be good.
    fn name(&self, labels: &[&str]) -> Name {
        self.try_name(labels).expect("fixed labels are valid")
    }

    fn try_name(&self, labels: &[&str]) -> Option<Name> {
        let mut name = Name::from_labels(labels.iter().map(|label| label.as_bytes()))
            .ok()?
            .append_domain(&self.origin)
            .ok()?;
        name.set_fqdn(true);
        Some(name)
    }
}

fn records_or_none(
    name: &Name,
    asked: RecordType,
    kind: RecordType,
    data: Vec<RData>,
    additional: Vec<Record>,
) -> Answer {
    if asked != kind && asked != RecordType::ANY || data.is_empty() {
        return Answer::NoData;
    }
    let records = data.into_iter().map(|data| Record::from_rdata(name.clone(), TTL, data)).collect();
    Answer::Records { records, additional }
}

fn addresses(name: &Name, kind: RecordType, addresses: impl IntoIterator<Item = IpAddr>) -> Answer {
    let data: BTreeSet<IpAddr> = addresses.into_iter().collect();
    let is_wanted = |address: &IpAddr| match kind {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    let records: Vec<Record> = data.into_iter().filter(is_wanted).map(|a| address_record(name, a)).collect();
    if records.is_empty() { Answer::NoData } else { Answer::Records { records, additional: Vec::new() } }
}

fn address_record(name: &Name, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(name.clone(), TTL, data)
}

/// The address that a name of the reverse trees stands for.
fn reverse(name: &Name) -> Option<IpAddr> {
    let labels: Vec<&str> = name.iter().map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
    let ends_in = |end: &str| {
        labels.last().is_some_and(|label| label.eq_ignore_ascii_case("arpa"))
            && labels.get(labels.len().wrapping_sub(2)).is_some_and(|label| label.eq_ignore_ascii_case(end))
    };
    if labels.len() == 6 && ends_in("in-addr") {
        let numbers: Vec<&str> = labels[..4].iter().rev().copied().collect();
        return numbers.join(".").parse().ok().map(IpAddr::V4);
    }
    if labels.len() == 34 && ends_in("ip6") {
        let mut bits = 0u128;
        for label in labels[..32].iter().rev() {
            let digit = u128::from_str_radix(label, 16).ok().filter(|_| label.len() == 1)?;
            bits = bits << 4 | digit;
        }
        return Some(IpAddr::V6(bits.into()));
    }
    None
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

/// The endpoints of a slice that have a name: those that are ready, which under `publishNotReadyAddresses` the
/// slice says of all.
fn endpoints(slice: &EndpointSlice) -> impl Iterator<Item = (&Endpoint, IpAddr)> {
    slice
        .endpoints
        .iter()
        .flatten()
        .filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        })
        .flat_map(|endpoint| {
            let parsed = endpoint.addresses.iter().filter_map(|text| text.parse().ok());
            parsed.map(move |address| (endpoint, address))
        })
}

/// The label that an endpoint has below its Service: its hostname, or its address with dashes.
fn host(endpoint: &Endpoint, address: IpAddr) -> String {
    match &endpoint.hostname {
        Some(hostname) if !hostname.is_empty() => hostname.to_ascii_lowercase(),
        _ => address.to_string().replace(['.', ':'], "-"),
    }
}

/// The address in a pod's name: `10-42-0-5`, `fd00--5`.
fn dashed_address(label: &str) -> Option<IpAddr> {
    let ipv4 = label.replace('-', ".").parse().ok().map(IpAddr::V4);
    ipv4.or_else(|| label.replace('-', ":").parse().ok().map(IpAddr::V6))
}

/// One question while it is answered.
struct Question<'a> {
    zone: &'a Zone,
    cluster: &'a dyn Cluster,
    name: &'a Name,
    kind: RecordType,
}

impl Question<'_> {
    fn answer(&self, place: Place<'_>) -> Answer {
        match place {
            Place::Apex => match self.kind {
                RecordType::SOA => Answer::Records { records: vec![self.zone.soa()], additional: Vec::new() },
                kind => {
                    let server = RData::NS(NS(self.zone.name(&["ns", "dns"])));
                    records_or_none(self.name, kind, RecordType::NS, vec![server], Vec::new())
                }
            },
            Place::Version => {
                let text = RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]));
                records_or_none(self.name, self.kind, RecordType::TXT, vec![text], Vec::new())
            }
            Place::NameServer => {
                let service = self.cluster.service("kube-system", "kube-dns");
                addresses(self.name, self.kind, service.iter().flat_map(|service| cluster_ips(service)))
            }
            Place::Branch => Answer::NoData,
            Place::Namespace(namespace) if self.cluster.has_namespace(namespace) => Answer::NoData,
            Place::Pod { namespace, address } if self.cluster.has_namespace(namespace) => {
                match dashed_address(address) {
                    Some(address) => addresses(self.name, self.kind, [address]),
                    None => Answer::NoSuchName,
                }
            }
            Place::Service { namespace, service } => self.service(namespace, service),
            Place::Endpoint { namespace, service, hostname } => self.endpoint(namespace, service, hostname),
            Place::Port { namespace, service, port, protocol } => {
                self.port(namespace, service, port, protocol)
            }
            Place::Namespace(_) | Place::Pod { .. } | Place::Nowhere => Answer::NoSuchName,
        }
    }

    fn service(&self, namespace: &str, name: &str) -> Answer {
        let Some(service) = self.cluster.service(namespace, name) else { return Answer::NoSuchName };
        let spec = service.spec.clone().unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            return self.alias(spec.external_name.as_deref().unwrap_or_default());
        }
        if self.kind == RecordType::SRV {
            return self.srv(&service, |_| true);
        }
        if !is_headless(&service) {
            return addresses(self.name, self.kind, cluster_ips(&service));
        }
        let slices = self.cluster.slices(namespace, name);
        let ready: Vec<IpAddr> =
            slices.iter().flat_map(|slice| endpoints(slice)).map(|(_, address)| address).collect();
        // Upstream's DNS says of a headless Service without endpoints that there is no such name.
        if ready.is_empty() { Answer::NoSuchName } else { addresses(self.name, self.kind, ready) }
    }

    fn alias(&self, external_name: &str) -> Answer {
        let Ok(mut target) = Name::from_str(external_name) else { return Answer::NoData };
        if external_name.is_empty() {
            return Answer::NoData;
        }
        target.set_fqdn(true);
        // An address is no name, though nothing stops people from writing one there.
        if external_name.parse::<IpAddr>().is_ok() {
            return Answer::NoData;
        }
        let record = Record::from_rdata(self.name.clone(), TTL, RData::CNAME(CNAME(target.clone())));
        Answer::Alias { record: Box::new(record), target }
    }

    fn endpoint(&self, namespace: &str, service: &str, hostname: &str) -> Answer {
        if hostname.starts_with('_') {
            // `_tcp.service…` is there as long as the Service is: names below it are.
            let exists = matches!(hostname, "_tcp" | "_udp" | "_sctp")
                && self.cluster.service(namespace, service).is_some();
            return if exists { Answer::NoData } else { Answer::NoSuchName };
        }
        if self.cluster.service(namespace, service).is_none() {
            return Answer::NoSuchName;
        }
        let slices = self.cluster.slices(namespace, service);
        let named = slices
            .iter()
            .flat_map(|slice| endpoints(slice))
            .filter(|(e, address)| host(e, *address) == hostname);
        let found: Vec<IpAddr> = named.map(|(_, address)| address).collect();
        if found.is_empty() { Answer::NoSuchName } else { addresses(self.name, self.kind, found) }
    }

    fn port(&self, namespace: &str, service: &str, port: &str, protocol: &str) -> Answer {
        let Some(service) = self.cluster.service(namespace, service) else { return Answer::NoSuchName };
        let spec_protocol = |p: &ServicePort| p.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
        self.srv(&service, |p| p.name.as_deref().unwrap_or_default() == port && spec_protocol(p) == protocol)
    }

    /// Ports of a Service with the names that lead to them: the Service itself, or each endpoint when headless.
    fn srv(&self, service: &Service, is_wanted: impl Fn(&ServicePort) -> bool) -> Answer {
        let (name, namespace) = (service.name(), service.namespace());
        let spec = service.spec.as_ref();
        let ports: Vec<&ServicePort> = spec
            .and_then(|s| s.ports.as_ref())
            .into_iter()
            .flatten()
            .filter(|port| is_wanted(port))
            .collect();
        let mut targets: BTreeMap<(Name, u16), BTreeSet<IpAddr>> = BTreeMap::new();
        if is_headless(service) {
            for slice in self.cluster.slices(namespace, name) {
                for number in ports.iter().filter_map(|port| slice_port(&slice, port)) {
                    for (endpoint, address) in endpoints(&slice) {
                        let target = self.zone.try_name(&[&host(endpoint, address), name, namespace, "svc"]);
                        if let Some(target) = target {
                            targets.entry((target, number)).or_default().insert(address);
                        }
                    }
                }
            }
        } else if let Some(target) = self.zone.try_name(&[name, namespace, "svc"]) {
            for number in ports.iter().filter_map(|port| u16::try_from(port.port).ok()) {
                targets.insert((target.clone(), number), cluster_ips(service).collect());
            }
        }
        if targets.is_empty() {
            return Answer::NoSuchName;
        }
        let weight = u16::try_from(100 / targets.len().max(1)).unwrap_or(0).max(1);
        let data = targets
            .keys()
            .map(|(target, port)| RData::SRV(SRV::new(0, weight, *port, target.clone())))
            .collect();
        let mut glue: BTreeMap<&Name, BTreeSet<IpAddr>> = BTreeMap::new();
        for ((target, _), addresses) in &targets {
            glue.entry(target).or_default().extend(addresses);
        }
        let additional = glue.into_iter().flat_map(|(target, addresses)| {
            addresses.into_iter().map(|address| address_record(target, address)).collect::<Vec<_>>()
        });
        records_or_none(self.name, self.kind, RecordType::SRV, data, additional.collect())
    }
}

/// The number behind a named port in a slice.
fn slice_port(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let name = port.name.as_deref().unwrap_or_default();
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let found = slice.ports.iter().flatten().find(|candidate| {
        candidate.name.as_deref().unwrap_or_default() == name
            && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
    });
    u16::try_from(found?.port?).ok()
}

#[cfg(test)]
mod tests;
