//! Flows that the kernel tracks: found and cut by ctnetlink.
//!
//! A UDP flow whose endpoint has gone keeps its translation for as long as the client goes on sending, so
//! whoever changes the translation must cut the flow.
//!
//! What always holds: everything concerns the network namespace of the calling thread.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use crate::netfilter::{NLM_F_ACK, NLM_F_DUMP, attributes, open, request};

/// One tracked flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub protocol: u8,
    /// The sender of the first packet, and whom it addressed.
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// Who answers: the endpoint, where the destination was translated.
    pub reply_source: SocketAddr,
    /// What the kernel needs to find the flow again, as it sent it.
    identity: Vec<u8>,
    family: u8,
}

const SUBSYSTEM: u16 = 1 << 8; // NFNL_SUBSYS_CTNETLINK
const GET: u16 = SUBSYSTEM | 1; // IPCTNL_MSG_CT_GET
const DELETE: u16 = SUBSYSTEM | 2; // IPCTNL_MSG_CT_DELETE
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

/// Cuts the flows that `is_stale` names and returns how many there were. A flow that ended meanwhile is no error.
pub fn delete(mut is_stale: impl FnMut(&Flow) -> bool) -> io::Result<usize> {
    let socket = open()?;
    let mut stale = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        stale.extend(dump(&socket, family)?.into_iter().filter(|flow| is_stale(flow)));
    }
    let mut cut = 0;
    for flow in &stale {
        match request(&socket, DELETE, NLM_F_ACK, flow.family, &flow.identity, |_| {}) {
            Ok(()) => cut += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(cut)
}

/// Cuts the UDP flows addressed to `address`, or, for port 0, to any port of it.
pub fn delete_udp(address: IpAddr, port: u16) -> io::Result<usize> {
    delete(|flow| {
        flow.protocol == libc::IPPROTO_UDP as u8
            && flow.destination.ip() == address
            && (port == 0 || flow.destination.port() == port)
    })
}

/// Every tracked flow that has ports.
pub fn list() -> io::Result<Vec<Flow>> {
    let socket = open()?;
    let mut flows = dump(&socket, libc::AF_INET as u8)?;
    flows.extend(dump(&socket, libc::AF_INET6 as u8)?);
    Ok(flows)
}

fn dump(socket: &OwnedFd, family: u8) -> io::Result<Vec<Flow>> {
    let mut flows = Vec::new();
    request(socket, GET, NLM_F_DUMP, family, &[], |payload| flows.extend(flow(family, payload)))?;
    Ok(flows)
}

fn flow(family: u8, payload: &[u8]) -> Option<Flow> {
    let (mut original, mut reply, mut identity) = (None, None, Vec::new());
    for (kind, whole, value) in attributes(payload) {
        match kind {
            CTA_TUPLE_ORIG => original = tuple(value),
            CTA_TUPLE_REPLY => reply = tuple(value),
            _ => {}
        }
        if matches!(kind, CTA_TUPLE_ORIG | CTA_ID | CTA_ZONE) {
            identity.extend_from_slice(whole);
        }
    }
    let (protocol, source, destination) = original?;
    let (_, reply_source, _) = reply?;
    Some(Flow { protocol, source, destination, reply_source, identity, family })
}

/// Protocol, source and destination of a CTA_TUPLE.
fn tuple(value: &[u8]) -> Option<(u8, SocketAddr, SocketAddr)> {
    let (mut source, mut destination, mut protocol) = (None, None, None);
    let (mut source_port, mut destination_port) = (None, None);
    for (kind, _, nested) in attributes(value) {
        for (inner, _, value) in attributes(nested) {
            match (kind, inner) {
                (1, 1 | 3) => source = address(value),
                (1, 2 | 4) => destination = address(value),
                (2, 1) => protocol = value.first().copied(),
                (2, 2) => source_port = value.first_chunk().map(|port| u16::from_be_bytes(*port)),
                (2, 3) => destination_port = value.first_chunk().map(|port| u16::from_be_bytes(*port)),
                _ => {}
            }
        }
    }
    let source = SocketAddr::new(source?, source_port?);
    Some((protocol?, source, SocketAddr::new(destination?, destination_port?)))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(IpAddr::from(*value.first_chunk::<4>()?)),
        16 => Some(IpAddr::from(*value.first_chunk::<16>()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::netfilter::next_message;
    use crate::netns::NetNs;

    #[test]
    fn a_udp_flow_is_found_and_cut() {
        let namespace = NetNs::anonymous().expect("making a network namespace needs root");
        namespace
            .run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let netlink = crate::netlink::Netlink::open().unwrap();
                    let lo = netlink.link("lo").await.unwrap().unwrap();
                    netlink.set_up(lo.index).await.unwrap();
                });
                // A rule that needs conntrack makes the kernel track this namespace.
                crate::nft::apply(
                    "table ip t { chain c { type filter hook output priority 0; ct state new counter; }; }",
                )
                .unwrap();
                let server = UdpSocket::bind("127.0.0.1:0").unwrap();
                let client = UdpSocket::bind("127.0.0.1:0").unwrap();
                let address = server.local_addr().unwrap();
                client.send_to(b"hello", address).unwrap();
                let found = list().unwrap();
                assert!(
                    found.iter().any(|f| f.destination == address && f.reply_source == address),
                    "{found:?}"
                );
                assert_eq!(delete_udp("127.0.0.9".parse().unwrap(), 0).unwrap(), 0);
                assert_eq!(delete_udp(address.ip(), address.port()).unwrap(), 1);
                assert!(list().unwrap().is_empty());
            })
            .unwrap();
    }

    #[test]
    fn cut_short_messages_are_read_without_panic() {
        let value = [20, 0, 1, 0, 20, 0, 1, 0x80, 8, 0, 1, 0, 10, 0, 0, 1, 8, 0, 2, 0];
        for end in 0..value.len() {
            assert_eq!(flow(2, &value[..end]), None);
            let mut rest = &value[..end];
            while next_message(&mut rest).is_some_and(|_| !rest.is_empty()) {}
        }
    }
}
