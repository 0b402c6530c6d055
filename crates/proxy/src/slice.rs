//! [`Slice`]: what the proxy keeps of an EndpointSlice, a tenth of its size.

use std::net::IpAddr;

use api::Object;
use api::discovery::v1::EndpointSlice;
use controller_runtime::Identity;

use crate::service;

/// An EndpointSlice, read once.
#[derive(Debug)]
pub struct Slice {
    identity: Identity,
    /// `namespace/name` of the Service that it belongs to, if this proxy is to serve it.
    pub(crate) service: Option<Box<str>>,
    pub(crate) is_ipv6: bool,
    pub(crate) ports: Box<[SlicePort]>,
    pub(crate) members: Box<[Member]>,
}

#[derive(Debug)]
pub(crate) struct SlicePort {
    pub name: Box<str>,
    pub protocol: Box<str>,
    pub number: u16,
}

/// One endpoint, whatever its ports.
#[derive(Debug)]
pub(crate) struct Member {
    pub address: IpAddr,
    pub node: Option<Box<str>>,
    pub is_ready: bool,
    pub is_serving: bool,
    pub is_terminating: bool,
    pub zone_hints: Vec<String>,
    pub node_hints: Vec<String>,
}

impl From<EndpointSlice> for Slice {
    fn from(slice: EndpointSlice) -> Self {
        let identity = Identity::of(&slice);
        let labels = slice.metadata.labels.as_ref().filter(|labels| !service::is_foreign(Some(labels)));
        let service = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
        let service = service.map(|name| format!("{}/{name}", slice.namespace()).into());
        let is_ipv6 = slice.address_type == "IPv6";
        // Names are nothing that packets can be sent to.
        let is_of_addresses = is_ipv6 || slice.address_type == "IPv4";
        let members = slice.endpoints.into_iter().flatten().filter(|_| is_of_addresses);
        let members = members.filter_map(Member::new).filter(|member| member.address.is_ipv6() == is_ipv6);
        let ports = slice.ports.into_iter().flatten();
        Slice {
            identity,
            service,
            is_ipv6,
            ports: ports
                .filter_map(|port| {
                    Some(SlicePort {
                        name: port.name.unwrap_or_default().into(),
                        protocol: port.protocol.as_deref().unwrap_or("TCP").into(),
                        number: u16::try_from(port.port?).ok().filter(|number| *number != 0)?,
                    })
                })
                .collect(),
            members: members.collect(),
        }
    }
}

impl Member {
    // Upstream: pkg/proxy/endpointslicecache.go: the first address is the endpoint, the others are not used.
    fn new(endpoint: api::discovery::v1::Endpoint) -> Option<Self> {
        let conditions = endpoint.conditions.unwrap_or_default();
        let hints = endpoint.hints.unwrap_or_default();
        Some(Member {
            address: endpoint.addresses.first()?.parse().ok()?,
            node: endpoint.node_name.map(Into::into),
            is_ready: conditions.ready.unwrap_or(true),
            is_serving: conditions.serving.unwrap_or(true),
            is_terminating: conditions.terminating.unwrap_or(false),
            zone_hints: hints.for_zones.unwrap_or_default().into_iter().map(|zone| zone.name).collect(),
            node_hints: hints.for_nodes.unwrap_or_default().into_iter().map(|node| node.name).collect(),
        })
    }
}

controller_runtime::cached_by_identity!(Slice);
