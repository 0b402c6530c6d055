//! A pod's wiring: a veth pair, addresses, routes and neighbours on both sides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use linux::netlink::{Mac, Netlink, Route, VethPair};
use linux::netns::NetNs;

use crate::Error;
use crate::config::Attachment;

/// The pod's gateways. No interface has them; permanent neighbour entries lead to the host's end of the veth.
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

pub(crate) fn gateway(address: IpAddr) -> IpAddr {
    if address.is_ipv6() { GATEWAY_V6 } else { GATEWAY_V4 }
}

pub(crate) fn full_length(address: IpAddr) -> u8 {
    if address.is_ipv6() { 128 } else { 32 }
}

fn unspecified(address: IpAddr) -> IpAddr {
    if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

/// A runtime on this thread: in whatever namespace the thread is.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(Error::io("start a runtime"))
}

/// Wires an attachment to its namespace. Whatever an earlier attempt left is replaced.
pub(crate) fn add(
    attachment: &Attachment,
    namespace: &NetNs,
    addresses: &[IpAddr],
    mtu: Option<u32>,
) -> Result<(), Error> {
    let (host_mac, pod_mac) = (attachment.mac("host"), attachment.mac("pod"));
    let link_name = attachment.host_link();
    let host = runtime()?;
    host.block_on(async {
        let netlink = open()?;
        delete(&netlink, &link_name).await?;
        let pair = VethPair {
            name: &link_name,
            mac: host_mac,
            peer_name: attachment.interface(),
            peer_mac: pod_mac,
            peer_namespace: namespace.as_fd(),
            mtu,
        };
        netlink.create_veth(&pair).await.map_err(Error::io(format!("make the veth {link_name}")))
    })?;
    let inside = || runtime()?.block_on(wire_pod(attachment.interface(), host_mac, addresses));
    namespace.run(inside).map_err(Error::io("enter the pod's network namespace"))??;
    // The host's routes come last: only now would an answer from the pod find its way.
    host.block_on(wire_host(&link_name, pod_mac, addresses))
}

async fn wire_host(link_name: &str, pod_mac: Mac, addresses: &[IpAddr]) -> Result<(), Error> {
    let netlink = open()?;
    let index = index(&netlink, link_name).await?;
    for address in addresses {
        let route =
            Route { destination: *address, prefix_length: full_length(*address), gateway: None, link: index };
        let failed = || Error::io(format!("route {address} to {link_name}"));
        netlink.add_permanent_neighbour(index, *address, pod_mac).await.map_err(failed())?;
        netlink.add_route(&route).await.map_err(failed())?;
    }
    Ok(())
}

async fn wire_pod(interface: &str, host_mac: Mac, addresses: &[IpAddr]) -> Result<(), Error> {
    let netlink = open()?;
    let loopback = index(&netlink, "lo").await?;
    netlink.set_up(loopback).await.map_err(Error::io("set lo up"))?;
    let index = index(&netlink, interface).await?;
    for address in addresses {
        let added = netlink.add_address(index, *address, full_length(*address)).await;
        added.map_err(Error::io(format!("give {interface} the address {address}")))?;
    }
    netlink.set_up(index).await.map_err(Error::io(format!("set {interface} up")))?;
    for address in addresses {
        let gateway = gateway(*address);
        let failed = || Error::io(format!("route {interface} to {gateway}"));
        netlink.add_permanent_neighbour(index, gateway, host_mac).await.map_err(failed())?;
        let to_gateway =
            Route { destination: gateway, prefix_length: full_length(gateway), gateway: None, link: index };
        netlink.add_route(&to_gateway).await.map_err(failed())?;
        let default = Route {
            destination: unspecified(*address),
            prefix_length: 0,
            gateway: Some(gateway),
            link: index,
        };
        netlink.add_route(&default).await.map_err(failed())?;
    }
    Ok(())
}

/// Deletes the host's end, and so the pod's end and all routes.
pub(crate) async fn delete_link(attachment: &Attachment) -> Result<(), Error> {
    delete(&open()?, &attachment.host_link()).await
}

/// Says what of the wiring is missing, if anything.
pub(crate) fn check(attachment: &Attachment, namespace: &NetNs, addresses: &[IpAddr]) -> Result<(), Error> {
    let changed = |what: String| Error::Changed { container: attachment.container_id().to_owned(), what };
    let failed = || Error::io("look at the pod's network");
    let link_name = attachment.host_link();
    let routes = runtime()?.block_on(async {
        let netlink = open()?;
        if netlink.link(&link_name).await.map_err(failed())?.is_none() {
            return Err(changed(format!("the link {link_name} is gone")));
        }
        let mut routes = netlink.routes(false).await.map_err(failed())?;
        routes.extend(netlink.routes(true).await.map_err(failed())?);
        Ok(routes)
    })?;
    let interface = attachment.interface();
    let inside = || {
        runtime()?.block_on(async {
            let netlink = open()?;
            let link = netlink.link(interface).await.map_err(failed())?;
            let link = link.ok_or_else(|| changed(format!("the interface {interface} is gone")))?;
            netlink.addresses(Some(link.index)).await.map_err(failed())
        })
    };
    let present = namespace.run(inside).map_err(Error::io("enter the pod's network namespace"))??;
    for address in addresses {
        if !present.contains(&(*address, full_length(*address))) {
            return Err(changed(format!("{interface} has lost its address {address}")));
        }
        if !routes.iter().any(|r| r.destination == *address && r.prefix_length == full_length(*address)) {
            return Err(changed(format!("the route to {address} is gone")));
        }
    }
    Ok(())
}

fn open() -> Result<Netlink, Error> {
    Netlink::open().map_err(Error::io("open a netlink socket"))
}

async fn index(netlink: &Netlink, name: &str) -> Result<u32, Error> {
    let failed = || Error::io(format!("find the interface {name}"));
    let link = netlink.link(name).await.map_err(failed())?;
    link.map(|link| link.index).ok_or_else(|| failed()(std::io::ErrorKind::NotFound.into()))
}

async fn delete(netlink: &Netlink, name: &str) -> Result<(), Error> {
    let failed = || Error::io(format!("delete the link {name}"));
    match netlink.link(name).await.map_err(failed())? {
        Some(link) => netlink.delete_link(link.index).await.map_err(failed()),
        None => Ok(()),
    }
}
