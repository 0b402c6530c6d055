//! Links, addresses, routes and neighbours, by rtnetlink. Start with [`Netlink::open`]; [`Changes`] tells what
//! changes.
//!
//! What always holds: a [`Netlink`] acts in the network namespace of the thread that opened it, wherever it is
//! used. What is already so, and what is already gone, is no error, so that a step can be repeated.

mod changes;
mod tunnel;

pub use changes::{Change, Changes};
pub use tunnel::Vxlan;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressScope};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

/// A connection to the kernel's routing tables in one network namespace.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    driver: tokio::task::JoinHandle<()>,
}

/// A hardware address.
pub type Mac = [u8; 6];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub is_up: bool,
}

/// A veth pair to make: the near end here, the far end in another namespace.
#[derive(Debug)]
pub struct VethPair<'a> {
    pub name: &'a str,
    pub mac: Mac,
    pub peer_name: &'a str,
    pub peer_mac: Mac,
    pub peer_namespace: BorrowedFd<'a>,
    pub mtu: Option<u32>,
}

/// A route through one link, on which the gateway is. Length 0 is the default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub destination: IpAddr,
    pub prefix_length: u8,
    pub gateway: Option<IpAddr>,
    pub link: u32,
}

impl Netlink {
    /// Connects in the namespace of the calling thread. Needs a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Netlink { handle, driver: tokio::spawn(connection) })
    }

    pub async fn links(&self) -> io::Result<Vec<Link>> {
        let messages: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(error)?;
        Ok(messages.iter().map(link).collect())
    }

    /// The link of that name, if there is one.
    pub async fn link(&self, name: &str) -> io::Result<Option<Link>> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await.map_err(error) {
            Ok(message) => Ok(message.as_ref().map(link)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a veth pair in one step; fails if either name is taken.
    pub async fn create_veth(&self, pair: &VethPair<'_>) -> io::Result<()> {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(pair.peer_name)
            .address(pair.peer_mac.to_vec())
            .setns_by_fd(pair.peer_namespace.as_raw_fd());
        let mut near = LinkVeth::new(pair.name, pair.peer_name).address(pair.mac.to_vec()).up();
        if let Some(mtu) = pair.mtu {
            peer = peer.mtu(mtu);
            near = near.mtu(mtu);
        }
        let near = near.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
        self.handle.link().add(near.build()).execute().await.map_err(error)
    }

    /// Makes a bridge, up; one that is there already is no error.
    pub async fn create_bridge(&self, name: &str) -> io::Result<()> {
        match self.handle.link().add(LinkBridge::new(name).up().build()).execute().await.map_err(error) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    }

    /// Makes a link a port of a bridge.
    pub async fn set_bridge(&self, index: u32, bridge: u32) -> io::Result<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).controller(bridge).build();
        self.handle.link().set(message).execute().await.map_err(error)
    }

    pub async fn set_down(&self, index: u32) -> io::Result<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).down().build();
        self.handle.link().set(message).execute().await.map_err(error)
    }

    pub async fn set_up(&self, index: u32) -> io::Result<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
        self.handle.link().set(message).execute().await.map_err(error)
    }

    pub async fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).mtu(mtu).build();
        self.handle.link().set(message).execute().await.map_err(error)
    }

    pub async fn move_to_namespace(&self, index: u32, namespace: BorrowedFd<'_>) -> io::Result<()> {
        let message =
            LinkMessageBuilder::<LinkUnspec>::new().index(index).setns_by_fd(namespace.as_raw_fd()).build();
        self.handle.link().set(message).execute().await.map_err(error)
    }

    /// Deletes a link, and with it its peer, addresses and routes.
    pub async fn delete_link(&self, index: u32) -> io::Result<()> {
        absent_is_fine(self.handle.link().del(index).execute().await)
    }

    /// Gives a link an address at once: no duplicate detection for IPv6.
    pub async fn add_address(&self, index: u32, address: IpAddr, prefix_length: u8) -> io::Result<()> {
        let mut request = self.handle.address().add(index, address, prefix_length).replace();
        if address.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(error)
    }

    /// The addresses of a link, or of all, with their prefix lengths; without those of scope link.
    pub async fn addresses(&self, index: Option<u32>) -> io::Result<Vec<(IpAddr, u8)>> {
        let mut request = self.handle.address().get();
        if let Some(index) = index {
            request = request.set_link_index_filter(index);
        }
        let mut messages = request.execute();
        let mut addresses = Vec::new();
        while let Some(message) = messages.try_next().await.map_err(error)? {
            if message.header.scope == AddressScope::Link {
                continue;
            }
            // On a point-to-point link the local one is ours.
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let any = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            addresses.extend(local.or(any).map(|address| (address, message.header.prefix_len)));
        }
        Ok(addresses)
    }

    /// Adds a route, in place of one to the same destination.
    pub async fn add_route(&self, route: &Route) -> io::Result<()> {
        let message = route_message(route)?;
        self.handle.route().add(message).replace().execute().await.map_err(error)
    }

    pub async fn delete_route(&self, route: &Route) -> io::Result<()> {
        absent_is_fine(self.handle.route().del(route_message(route)?).execute().await)
    }

    /// The routes of one family through some link, of all tables.
    pub async fn routes(&self, ipv6: bool) -> io::Result<Vec<Route>> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let mut messages = self.handle.route().get(filter).execute();
        let mut routes = Vec::new();
        while let Some(message) = messages.try_next().await.map_err(error)? {
            routes.extend(route(&message, ipv6));
        }
        Ok(routes)
    }

    /// Says for good which hardware address answers for `address` on a link.
    pub async fn add_permanent_neighbour(&self, index: u32, address: IpAddr, mac: Mac) -> io::Result<()> {
        let request = self.handle.neighbours().add(index, address).link_layer_address(&mac).replace();
        request.execute().await.map_err(error)
    }

    /// The hardware addresses known on a link.
    pub async fn neighbours(&self, index: u32) -> io::Result<Vec<(IpAddr, Mac)>> {
        self.neighbours_that(|header| header.ifindex == index).await
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        is_up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = Mac::try_from(&bytes[..]).ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    link
}

fn route_message(route: &Route) -> io::Result<RouteMessage> {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(route.destination, route.prefix_length)
        .map_err(io::Error::other)?
        .output_interface(route.link);
    match route.gateway {
        // The link is named: whether the gateway is on it is not for another route to say.
        Some(gateway) => builder = builder.gateway(gateway).map_err(io::Error::other)?.onlink(),
        None => builder = builder.scope(RouteScope::Link),
    }
    Ok(builder.build())
}

fn route(message: &RouteMessage, ipv6: bool) -> Option<Route> {
    let unspecified = if ipv6 { IpAddr::from([0u16; 8]) } else { IpAddr::from([0u8; 4]) };
    let mut route = Route {
        destination: unspecified,
        prefix_length: message.header.destination_prefix_length,
        gateway: None,
        link: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.destination = ip(address)?,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::Oif(index) => route.link = *index,
            _ => {}
        }
    }
    (route.link != 0).then_some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

fn error(error: rtnetlink::Error) -> io::Error {
    match &error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        _ => io::Error::other(error),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ESRCH | libc::ENOENT))
}

fn absent_is_fine(result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    match result.map_err(error) {
        Err(error) if is_absent(&error) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::netns::NetNs;

    #[test]
    fn a_veth_pair_joins_two_namespaces_by_routes() {
        let here = NetNs::anonymous().expect("making a network namespace needs root");
        let there = NetNs::anonymous().unwrap();
        here.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let netlink = Netlink::open().unwrap();
                let pair = VethPair {
                    name: "near",
                    mac: [2, 0, 0, 0, 0, 1],
                    peer_name: "far",
                    peer_mac: [2, 0, 0, 0, 0, 2],
                    peer_namespace: there.as_fd(),
                    mtu: Some(1400),
                };
                netlink.create_veth(&pair).await.unwrap();
                let near = netlink.link("near").await.unwrap().unwrap();
                assert_eq!((near.mac, near.mtu, near.is_up), (Some(pair.mac), 1400, true));
                assert_eq!(netlink.link("far").await.unwrap(), None);
                let taken = netlink.create_veth(&pair).await.unwrap_err();
                assert_eq!(taken.raw_os_error(), Some(libc::EEXIST));

                let pod: IpAddr = "10.1.2.3".parse().unwrap();
                let route = Route { destination: pod, prefix_length: 32, gateway: None, link: near.index };
                netlink.add_route(&route).await.unwrap();
                netlink.add_route(&route).await.unwrap();
                assert!(netlink.routes(false).await.unwrap().contains(&route));
                netlink.add_permanent_neighbour(near.index, pod, pair.peer_mac).await.unwrap();
                assert_eq!(netlink.neighbours(near.index).await.unwrap(), [(pod, pair.peer_mac)]);
                netlink.add_address(near.index, "10.9.9.9".parse().unwrap(), 32).await.unwrap();
                let addresses = netlink.addresses(Some(near.index)).await.unwrap();
                assert_eq!(addresses, [("10.9.9.9".parse().unwrap(), 32)]);
                netlink.delete_route(&route).await.unwrap();
                netlink.delete_route(&route).await.unwrap();
                netlink.set_mtu(near.index, 1300).await.unwrap();
                assert_eq!(netlink.link("near").await.unwrap().unwrap().mtu, 1300);
                netlink.delete_link(near.index).await.unwrap();
                netlink.delete_link(near.index).await.unwrap();
                assert!(netlink.links().await.unwrap().iter().all(|link| link.name == "lo"));
            });
        })
        .unwrap();
    }
}
