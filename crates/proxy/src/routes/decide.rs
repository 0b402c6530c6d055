//! Which way leads to the pods of which node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use api::Object;
use api::core::v1::Node;
use linux::netlink::{Mac, Route};
use serde::{Deserialize, Serialize};

use super::Backend;
use crate::Error;
pub(super) use crate::range::Range;

/// The annotation of a Node that says where its end of the tunnel is: a [`Vtep`] as JSON.
pub(super) const VTEP: &str = "trierarch.io/vtep";

/// The end of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Vtep {
    /// Where encapsulated packets are sent.
    address: IpAddr,
    /// The hardware address that is there, as `02:00:00:00:00:01`.
    mac: String,
}

/// The address that a node itself has in a range of its pods: none of them gets the first two.
fn of_node(range: &Range) -> IpAddr {
    match range.first() {
        IpAddr::V4(first) => Ipv4Addr::from(u32::from(first) | 1).into(),
        IpAddr::V6(first) => Ipv6Addr::from(u128::from(first) | 1).into(),
    }
}

pub(super) fn ranges(texts: &[String]) -> Result<Vec<Range>, Error> {
    texts.iter().map(|text| Range::parse(text).ok_or_else(|| Error::ClusterCidr(text.clone()))).collect()
}

/// A link with an address of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    pub link: u32,
    pub mtu: u32,
    pub address: IpAddr,
    pub prefix_length: u8,
}

/// The node that decides.
pub(super) struct Own<'a> {
    pub name: &'a str,
    pub node_ip: IpAddr,
    pub backend: Backend,
    pub attached: &'a [Attached],
}

/// Everything that leads to the pods of other nodes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub direct: Vec<Route>,
    pub tunnelled: Vec<Tunnelled>,
}

/// Pods of another node, behind a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tunnelled {
    pub pods: Range,
    /// The node's address inside the tunnel.
    pub gateway: IpAddr,
    pub mac: Mac,
    /// The node's address outside.
    pub host: IpAddr,
}

/// The way to the pods of all other nodes, as far as there is one.
///
/// Upstream: k8s.io/cloud-provider's route controller does the plain part for clouds; flannel calls that `host-gw`,
/// and both together `vxlan` with `DirectRouting`
pub(super) fn wanted(nodes: &[Arc<Node>], own: &Own<'_>) -> Wanted {
    let mut wanted = Wanted::default();
    for node in nodes.iter().filter(|node| node.name() != own.name) {
        for pods in pod_ranges(node) {
            if own.backend != Backend::VxlanOnly
                && let Some(route) = direct(node, pods, own)
            {
                wanted.direct.push(route);
            } else if own.backend.tunnels()
                && let Some(tunnelled) = tunnelled(node, pods, own)
            {
                wanted.tunnelled.push(tunnelled);
            }
        }
    }
    wanted
}

fn direct(node: &Node, pods: Range, own: &Own<'_>) -> Option<Route> {
    let gateway = internal_addresses(node).find(|address| address.is_ipv4() == pods.first().is_ipv4())?;
    let link = own.attached.iter().find(|attached| {
        let subnet = Range::around(attached.address, attached.prefix_length);
        attached.address != gateway && subnet.is_some_and(|subnet| subnet.contains(gateway))
    })?;
    Some(Route {
        destination: pods.first(),
        prefix_length: pods.length(),
        gateway: Some(gateway),
        link: link.link,
    })
}

fn tunnelled(node: &Node, pods: Range, own: &Own<'_>) -> Option<Tunnelled> {
    let vtep = vtep(node)?;
    let (host, mac) = (vtep.address, parse_mac(&vtep.mac)?);
    // A link of the kernel's carries packets of one family only, and two nodes of one address are a mistake.
    let reachable = host.is_ipv4() == own.node_ip.is_ipv4() && host != own.node_ip;
    reachable.then(|| Tunnelled { pods, gateway: of_node(&pods), mac, host })
}

fn vtep(node: &Node) -> Option<Vtep> {
    serde_json::from_str(node.metadata.annotations.as_ref()?.get(VTEP)?).ok()
}

fn internal_addresses(node: &Node) -> impl Iterator<Item = IpAddr> + '_ {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
}

pub(super) fn pod_ranges(node: &Node) -> Vec<Range> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all: Vec<&String> = match &spec.pod_cidrs {
        Some(ranges) if !ranges.is_empty() => ranges.iter().collect(),
        _ => spec.pod_cidr.iter().collect(),
    };
    all.into_iter().filter_map(|text| Range::parse(text)).collect()
}

/// Whether a change of a node can change the way to its pods.
pub(super) fn differs(old: &Node, new: &Node) -> bool {
    let vtep = |node: &Node| node.metadata.annotations.as_ref().and_then(|all| all.get(VTEP).cloned());
    pod_ranges(old) != pod_ranges(new)
        || !internal_addresses(old).eq(internal_addresses(new))
        || vtep(old) != vtep(new)
}

/// What a node's end of the tunnel is called: the same after every start, and never that of another node.
pub(super) fn mac(node_name: &str) -> Mac {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let hash = node_name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv).to_be_bytes();
    [0x02, hash[1], hash[2], hash[3], hash[4], hash[5]]
}

fn parse_mac(text: &str) -> Option<Mac> {
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok());
    let mut mac = Mac::default();
    for byte in &mut mac {
        *byte = bytes.next()??;
    }
    // A group address would be flooded, and the kernel takes none.
    (bytes.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}

/// The annotation of this node.
pub(super) fn own_vtep(node_name: &str, node_ip: IpAddr) -> String {
    let mac = mac(node_name).map(|byte| format!("{byte:02x}")).join(":");
    serde_json::to_string(&Vtep { address: node_ip, mac }).expect("an address and a text are JSON")
}

/// The addresses that this node has inside the tunnel: what it sends to pods of other nodes comes from there, so
/// that the answer takes the same way.
pub(super) fn tunnel_addresses(nodes: &[Arc<Node>], own_name: &str) -> Vec<IpAddr> {
    let own = nodes.iter().filter(|node| node.name() == own_name);
    own.flat_map(|node| pod_ranges(node)).map(|range| of_node(&range)).collect()
}
