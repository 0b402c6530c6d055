//! What changes in a network namespace, as it changes.

use std::io;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressScope;
use rtnetlink::sys::SocketAddr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A link has one address more or less, not counting those of scope link.
    Address,
    /// A link of this index came, went, or is not what it was.
    Link(u32),
}

/// Changes in the network namespace of the thread that asked for them.
pub struct Changes {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    driver: tokio::task::JoinHandle<()>,
}

impl Changes {
    /// Listens from now on. Needs a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
        Ok(Changes { messages, driver: tokio::spawn(connection) })
    }

    /// The next change; `None` when the kernel tells no more.
    pub async fn next(&mut self) -> Option<Change> {
        loop {
            let (message, _) = self.messages.next().await?;
            if let NetlinkPayload::InnerMessage(message) = &message.payload
                && let Some(change) = change(message)
            {
                return Some(change);
            }
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn change(message: &RouteNetlinkMessage) -> Option<Change> {
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            Some(Change::Link(link.header.index))
        }
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            (address.header.scope != AddressScope::Link).then_some(Change::Address)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Netlink;
    use crate::netns::NetNs;

    #[test]
    fn addresses_and_links_are_told() {
        let namespace = NetNs::anonymous().expect("making a network namespace needs root");
        let listen = async || {
            let netlink = Netlink::open().unwrap();
            let lo = netlink.link("lo").await.unwrap().unwrap().index;
            let mut changes = Changes::open().unwrap();
            netlink.set_up(lo).await.unwrap();
            assert_eq!(changes.next().await, Some(Change::Link(lo)));
            netlink.add_address(lo, "192.0.2.1".parse().unwrap(), 32).await.unwrap();
            while changes.next().await != Some(Change::Address) {}
        };
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        namespace.run(|| runtime().block_on(listen())).unwrap();
    }
}
