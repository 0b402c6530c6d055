//! VXLAN links without learning, and what is told them: which host has which hardware address.

use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::LinkVxlan;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage, NeighbourState,
};

use super::{Mac, Netlink, absent_is_fine, error, is_absent, link};

/// A VXLAN link. It learns nothing and floods nothing: a hardware address that no forwarding entry names is
/// unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    pub id: u32,
    pub port: u16,
    /// The address that encapsulated packets come from. Hosts of the other family cannot be reached.
    pub local: IpAddr,
    pub mac: Mac,
    pub mtu: u32,
}

impl Netlink {
    /// Makes a VXLAN link, up; fails if the name is taken.
    pub async fn create_vxlan(&self, name: &str, vxlan: &Vxlan) -> io::Result<()> {
        let builder = LinkVxlan::new(name, vxlan.id).port(vxlan.port).learning(false);
        let builder = match vxlan.local {
            IpAddr::V4(local) => builder.local(local),
            IpAddr::V6(local) => builder.local6(local),
        };
        let message = builder.address(vxlan.mac.to_vec()).mtu(vxlan.mtu).up().build();
        self.handle.link().add(message).execute().await.map_err(error)
    }

    /// The VXLAN link of that name with its index; `None` when there is none, or the link is something else.
    pub async fn vxlan(&self, name: &str) -> io::Result<Option<(u32, Vxlan)>> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await.map_err(error) {
            Ok(message) => Ok(message.as_ref().and_then(vxlan)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says for good which host has a hardware address.
    pub async fn add_forwarding(&self, index: u32, mac: Mac, host: IpAddr) -> io::Result<()> {
        let request = self.handle.neighbours().add_bridge(index, &mac).destination(host);
        request.flags(NeighbourFlags::Own).replace().execute().await.map_err(error)
    }

    pub async fn delete_forwarding(&self, index: u32, mac: Mac, host: IpAddr) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = index;
        message.header.flags = NeighbourFlags::Own;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        message.attributes.push(NeighbourAttribute::Destination(host.into()));
        absent_is_fine(self.handle.neighbours().del(message).execute().await)
    }

    /// The forwarding entries of a link that name a host.
    pub async fn forwarding(&self, index: u32) -> io::Result<Vec<(Mac, IpAddr)>> {
        let mut messages = self.handle.neighbours().get().set_address_family(AddressFamily::Bridge).execute();
        let mut entries = Vec::new();
        while let Some(message) = messages.try_next().await.map_err(error)? {
            if message.header.ifindex == index {
                entries.extend(entry(&message).map(|(host, mac)| (mac, host)));
            }
        }
        Ok(entries)
    }

    /// The neighbours of a link that were told for good.
    pub async fn permanent_neighbours(&self, index: u32) -> io::Result<Vec<(IpAddr, Mac)>> {
        let permanent = NeighbourState::Permanent;
        self.neighbours_that(|header| header.ifindex == index && header.state == permanent).await
    }

    pub(super) async fn neighbours_that(
        &self,
        are_meant: impl Fn(&NeighbourHeader) -> bool,
    ) -> io::Result<Vec<(IpAddr, Mac)>> {
        let mut messages = self.handle.neighbours().get().execute();
        let mut neighbours = Vec::new();
        while let Some(message) = messages.try_next().await.map_err(error)? {
            if are_meant(&message.header) {
                neighbours.extend(entry(&message));
            }
        }
        Ok(neighbours)
    }

    pub async fn delete_neighbour(&self, index: u32, address: IpAddr) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.ifindex = index;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        absent_is_fine(self.handle.neighbours().del(message).execute().await)
    }
}

fn vxlan(message: &LinkMessage) -> Option<(u32, Vxlan)> {
    let (mut id, mut port, mut local) = (None, None, None);
    for attribute in &message.attributes {
        let LinkAttribute::LinkInfo(infos) = attribute else { continue };
        for info in infos {
            let LinkInfo::Data(InfoData::Vxlan(values)) = info else { continue };
            for value in values {
                match value {
                    InfoVxlan::Id(value) => id = Some(*value),
                    InfoVxlan::Port(value) => port = Some(*value),
                    InfoVxlan::Local(address) => local = Some(IpAddr::V4(*address)),
                    InfoVxlan::Local6(address) => local = Some(IpAddr::V6(*address)),
                    _ => {}
                }
            }
        }
    }
    let link = link(message);
    let vxlan = Vxlan { id: id?, port: port?, local: local?, mac: link.mac?, mtu: link.mtu };
    Some((link.index, vxlan))
}

/// The address and the hardware address of an entry.
fn entry(message: &NeighbourMessage) -> Option<(IpAddr, Mac)> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            // The entry of a VXLAN link is of the bridge's family; how long the address is tells its own.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                address = match bytes.len() {
                    4 => bytes.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
                    16 => bytes.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
                    _ => None,
                }
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(&bytes[..]).ok(),
            _ => {}
        }
    }
    Some((address?, mac?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::NetNs;

    #[test]
    fn a_tunnel_is_told_who_is_where() {
        for local in ["192.0.2.1", "2001:db8::1"] {
            let namespace = NetNs::anonymous().expect("making a network namespace needs root");
            let run = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(tell(local.parse().unwrap()));
            };
            namespace.run(run).unwrap();
        }
    }

    async fn tell(local: IpAddr) {
        let netlink = Netlink::open().unwrap();
        assert_eq!(netlink.vxlan("tunnel").await.unwrap(), None);
        assert_eq!(netlink.vxlan("lo").await.unwrap(), None);
        let vxlan = Vxlan { id: 7, port: 8472, local, mac: [2, 0, 0, 0, 0, 1], mtu: 1400 };
        netlink.create_vxlan("tunnel", &vxlan).await.unwrap();
        let (index, made) = netlink.vxlan("tunnel").await.unwrap().unwrap();
        assert_eq!(made, vxlan);

        let (mac, host): (Mac, IpAddr) = ([2, 0, 0, 0, 0, 9], local);
        netlink.add_forwarding(index, mac, host).await.unwrap();
        netlink.add_forwarding(index, mac, host).await.unwrap();
        assert_eq!(netlink.forwarding(index).await.unwrap(), [(mac, host)]);
        netlink.delete_forwarding(index, mac, host).await.unwrap();
        netlink.delete_forwarding(index, mac, host).await.unwrap();
        assert_eq!(netlink.forwarding(index).await.unwrap(), []);

        for inner in ["10.42.1.1", "fd42:0:0:1::1"] {
            let inner: IpAddr = inner.parse().unwrap();
            netlink.add_permanent_neighbour(index, inner, mac).await.unwrap();
            assert_eq!(netlink.permanent_neighbours(index).await.unwrap(), [(inner, mac)]);
            netlink.delete_neighbour(index, inner).await.unwrap();
            netlink.delete_neighbour(index, inner).await.unwrap();
            assert_eq!(netlink.permanent_neighbours(index).await.unwrap(), []);
        }
    }
}
