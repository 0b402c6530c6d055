//! The kernel's routes, neighbours and tunnel, brought to what is wanted by difference.

use std::collections::BTreeSet;
use std::net::IpAddr;

use linux::netlink::{Mac, Netlink, Route, Vxlan};

use super::Backend;
use super::decide::{self, Attached, Range, Tunnelled, Wanted};
use crate::Error;

/// The link of the tunnel.
const LINK: &str = "trierarch-vxlan";
/// Tells our packets from those of other tunnels between the same hosts.
const NETWORK_ID: u32 = 0x7472;
/// The port that Linux gives VXLAN by default, as flannel has it.
const PORT: u16 = 8472;
const DEFAULT_MTU: u32 = 1500;

/// What encapsulation adds to a packet: Ethernet, VXLAN, UDP, and IP of the outer family.
fn overhead(local: IpAddr) -> u32 {
    let headers = 14 + 8 + 8;
    headers + if local.is_ipv4() { 20 } else { 40 }
}

/// This node's end of the tunnel.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub local: IpAddr,
    pub mac: Mac,
    pub addresses: Vec<IpAddr>,
}

/// The links of this namespace, by the addresses that they have.
pub(super) async fn attached(netlink: &Netlink) -> std::io::Result<Vec<Attached>> {
    let mut attached = Vec::new();
    for link in netlink.links().await?.into_iter().filter(|link| link.name != LINK && link.is_up) {
        let addresses = netlink.addresses(Some(link.index)).await?;
        attached.extend(addresses.into_iter().map(|(address, prefix_length)| Attached {
            link: link.index,
            mtu: link.mtu,
            address,
            prefix_length,
        }));
    }
    Ok(attached)
}

/// How long packets of pods may be; `None` where that is nobody's decision here.
pub async fn pod_mtu(node_ip: IpAddr, backend: Backend) -> Result<Option<u32>, Error> {
    if backend == Backend::None {
        return Ok(None);
    }
    let netlink = Netlink::open().map_err(Error::Routes)?;
    let outside = mtu_of(&attached(&netlink).await.map_err(Error::Routes)?, node_ip);
    Ok(Some(if backend.tunnels() { outside.saturating_sub(overhead(node_ip)) } else { outside }))
}

fn mtu_of(attached: &[Attached], address: IpAddr) -> u32 {
    attached.iter().find(|attached| attached.address == address).map_or(DEFAULT_MTU, |found| found.mtu)
}

/// What is to be deleted and added, so that `present` becomes `wanted`.
pub(super) fn difference<T: PartialEq + Clone>(present: &[T], wanted: &[T]) -> (Vec<T>, Vec<T>) {
    let without =
        |these: &[T], those: &[T]| these.iter().filter(|one| !those.contains(one)).cloned().collect();
    (without(present, wanted), without(wanted, present))
}

/// Whether a route is one to pods of other nodes.
pub(super) fn is_ours(route: &Route, cluster: &[Range]) -> bool {
    route.gateway.is_some() && cluster.iter().any(|range| range.contains(route.destination))
}

/// Makes it so. Returns the links by which packets leave.
pub(super) async fn bring(
    netlink: &Netlink,
    wanted: &Wanted,
    tunnel: &Tunnel,
    cluster: &[Range],
) -> std::io::Result<BTreeSet<u32>> {
    let mut routes = wanted.direct.clone();
    let mut tunnel_link = None;
    if wanted.tunnelled.is_empty() {
        remove_tunnel(netlink).await?;
    } else {
        let link = keep_tunnel(netlink, tunnel).await?;
        keep_peers(netlink, link, &wanted.tunnelled).await?;
        routes.extend(wanted.tunnelled.iter().map(|peer| Route {
            destination: peer.pods.first(),
            prefix_length: peer.pods.length(),
            gateway: Some(peer.gateway),
            link,
        }));
        tunnel_link = Some(link);
    }
    for ipv6 in [false, true] {
        if !cluster.iter().any(|range| range.is_ipv6() == ipv6) {
            continue;
        }
        let mut present = netlink.routes(ipv6).await?;
        present.retain(|route| is_ours(route, cluster));
        let of_family: Vec<Route> =
            routes.iter().filter(|route| route.destination.is_ipv6() == ipv6).cloned().collect();
        let (stale, missing) = difference(&present, &of_family);
        for route in stale {
            netlink.delete_route(&route).await?;
        }
        for route in missing {
            netlink.add_route(&route).await?;
        }
    }
    Ok(routes.iter().map(|route| route.link).chain(tunnel_link).collect())
}

/// The index of the tunnel's link, which is made anew when it is not as wanted: most of it cannot be changed.
async fn keep_tunnel(netlink: &Netlink, tunnel: &Tunnel) -> std::io::Result<u32> {
    let outside = mtu_of(&attached(netlink).await?, tunnel.local);
    let wanted = Vxlan {
        id: NETWORK_ID,
        port: PORT,
        local: tunnel.local,
        mac: tunnel.mac,
        mtu: outside.saturating_sub(overhead(tunnel.local)),
    };
    let mut addresses = Vec::new();
    let mut found = None;
    if let Some((index, present)) = netlink.vxlan(LINK).await? {
        addresses = netlink.addresses(Some(index)).await?.into_iter().map(|(address, _)| address).collect();
        let is_same = Vxlan { mtu: wanted.mtu, ..present.clone() } == wanted;
        if is_same && addresses.iter().all(|address| tunnel.addresses.contains(address)) {
            if present.mtu != wanted.mtu {
                netlink.set_mtu(index, wanted.mtu).await?;
            }
            netlink.set_up(index).await?;
            found = Some(index);
        }
    }
    let index = match found {
        Some(index) => index,
        None => {
            remove_tunnel(netlink).await?;
            addresses.clear();
            netlink.create_vxlan(LINK, &wanted).await?;
            let made = netlink.link(LINK).await?;
            made.ok_or_else(|| std::io::Error::other("the tunnel is gone again"))?.index
        }
    };
    for address in difference(&addresses, &tunnel.addresses).1 {
        let prefix_length = if address.is_ipv4() { 32 } else { 128 };
        netlink.add_address(index, address, prefix_length).await?;
    }
    Ok(index)
}

/// Who is behind the tunnel, and where.
async fn keep_peers(netlink: &Netlink, link: u32, peers: &[Tunnelled]) -> std::io::Result<()> {
    let wanted: Vec<(Mac, IpAddr)> = peers.iter().map(|peer| (peer.mac, peer.host)).collect();
    let (stale, missing) = difference(&netlink.forwarding(link).await?, &wanted);
    for (mac, host) in stale {
        netlink.delete_forwarding(link, mac, host).await?;
    }
    for (mac, host) in missing {
        netlink.add_forwarding(link, mac, host).await?;
    }
    let wanted: Vec<(IpAddr, Mac)> = peers.iter().map(|peer| (peer.gateway, peer.mac)).collect();
    let (stale, missing) = difference(&netlink.permanent_neighbours(link).await?, &wanted);
    for (address, _) in stale {
        netlink.delete_neighbour(link, address).await?;
    }
    for (address, mac) in missing {
        netlink.add_permanent_neighbour(link, address, mac).await?;
    }
    Ok(())
}

async fn remove_tunnel(netlink: &Netlink) -> std::io::Result<()> {
    match netlink.link(LINK).await? {
        Some(link) => netlink.delete_link(link.index).await,
        None => Ok(()),
    }
}

/// Takes everything that leads to the pods of other nodes away.
pub async fn reset(cluster_cidrs: &[String]) -> Result<(), Error> {
    let cluster = decide::ranges(cluster_cidrs)?;
    let netlink = Netlink::open().map_err(Error::Routes)?;
    let nothing =
        Tunnel { local: std::net::Ipv4Addr::UNSPECIFIED.into(), mac: Mac::default(), addresses: Vec::new() };
    let brought = bring(&netlink, &Wanted::default(), &nothing, &cluster).await;
    brought.map(drop).map_err(Error::Routes)
}
