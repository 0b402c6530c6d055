//! Hosts as network namespaces with real addresses, joined to a node as the built-in CNI plugin joins pods: a veth,
//! a route and permanent neighbours, no bridge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use linux::netlink::{Netlink, Route, VethPair};
use linux::netns::NetNs;

/// A namespace with a veth to the node, and its addresses there.
pub struct Host {
    pub namespace: NetNs,
    pub addresses: Vec<IpAddr>,
}

/// Runs work to its end on a runtime of its own, in whatever namespace the thread is.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn up(netlink: &Netlink, name: &str) -> u32 {
    let index = netlink.link(name).await.unwrap().unwrap().index;
    netlink.set_up(index).await.unwrap();
    index
}

fn full_length(address: IpAddr) -> u8 {
    if address.is_ipv6() { 128 } else { 32 }
}

fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::new(169, 254, 1, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// A node that forwards, with these addresses of its own.
pub fn node(addresses: &[IpAddr]) -> NetNs {
    let namespace = NetNs::anonymous().expect("making a network namespace needs root");
    let make = || {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        accept_addresses_at_once();
        block_on(async {
            let netlink = Netlink::open().unwrap();
            let lo = up(&netlink, "lo").await;
            for address in addresses {
                netlink.add_address(lo, *address, full_length(*address)).await.unwrap();
            }
        });
    };
    namespace.run(make).unwrap();
    namespace
}

/// Nobody else could have an address here, and looking for one takes a second.
fn accept_addresses_at_once() {
    std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
}

/// A host behind the node's link `vethN`.
pub fn join(node: &NetNs, number: u8, addresses: &[IpAddr]) -> Host {
    let host = Host { namespace: NetNs::anonymous().unwrap(), addresses: addresses.to_vec() };
    let name = format!("veth{number}");
    let (near_mac, far_mac) = ([2, 0, 0, 0, 1, number], [2, 0, 0, 0, 2, number]);
    host.namespace.run(accept_addresses_at_once).unwrap();
    let make = async {
        let netlink = Netlink::open().unwrap();
        let peer_namespace = host.namespace.as_fd();
        let (mac, peer_mac) = (near_mac, far_mac);
        let pair = VethPair { name: &name, mac, peer_name: "eth0", peer_mac, peer_namespace, mtu: None };
        netlink.create_veth(&pair).await.unwrap();
    };
    node.run(|| block_on(make)).unwrap();
    let inside = async {
        let netlink = Netlink::open().unwrap();
        up(&netlink, "lo").await;
        let link = up(&netlink, "eth0").await;
        for address in addresses {
            netlink.add_address(link, *address, full_length(*address)).await.unwrap();
            let gateway = gateway(*address);
            netlink.add_permanent_neighbour(link, gateway, near_mac).await.unwrap();
            let to_gateway =
                Route { destination: gateway, prefix_length: full_length(gateway), gateway: None, link };
            netlink.add_route(&to_gateway).await.unwrap();
            let everywhere: IpAddr =
                if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
            let default = Route { destination: everywhere, prefix_length: 0, gateway: Some(gateway), link };
            netlink.add_route(&default).await.unwrap();
        }
    };
    host.namespace.run(|| block_on(inside)).unwrap();
    // The peer is up by now, and so is the link.
    let outside = async {
        let netlink = Netlink::open().unwrap();
        let link = up(&netlink, &name).await;
        for address in addresses {
            let route =
                Route { destination: *address, prefix_length: full_length(*address), gateway: None, link };
            netlink.add_permanent_neighbour(link, *address, far_mac).await.unwrap();
            netlink.add_route(&route).await.unwrap();
        }
    };
    node.run(|| block_on(outside)).unwrap();
    host
}

/// What `nft list` said, in an order that does not depend on the kernel's of elements.
pub fn sorted_rules(listed: &str) -> Vec<String> {
    let listed = listed.replace("elements = {", ",");
    let words = listed.split([',', '\n']).map(|word| word.trim_matches([' ', '\t', '}']).to_owned());
    let mut words: Vec<String> = words.filter(|word| !word.is_empty()).collect();
    words.sort();
    words
}
