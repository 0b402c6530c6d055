//! nfnetlink: the socket and the framing that connection tracking and nftables share.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
/// Set in the type of an attribute that holds attributes.
pub(crate) const NLA_F_NESTED: u16 = 0x8000;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NETLINK_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const NETLINK_CAP_ACK: libc::c_int = 10;
const NETLINK_EXT_ACK: libc::c_int = 11;
const NLMSGERR_ATTR_OFFS: u16 = 2;

pub(crate) fn open() -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(NETFILTER))?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    // The kernel always answers; should it not, an error beats a hang.
    let limit = Some(Duration::from_secs(10));
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, limit)?;
    // A refusal shall say which attribute is meant, and not bring the whole message back: a few long ones overrun
    // the socket, and then none is heard.
    for option in [NETLINK_EXT_ACK, NETLINK_CAP_ACK] {
        switch_on(&socket, option)?;
    }
    Ok(socket)
}

fn switch_on(socket: &OwnedFd, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the value lives through the call and is as long as said.
    let outcome = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), length)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Begins a message and says where, for [`end_message`]. `id` is nfgenmsg's resource id.
pub(crate) fn begin_message(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    id: u16,
) -> usize {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[family, 0]);
    bytes.extend_from_slice(&id.to_be_bytes());
    start
}

pub(crate) fn end_message(bytes: &mut [u8], start: usize) {
    let length = u32::try_from(bytes.len() - start).expect("a message is far shorter than 4 GiB");
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Begins an attribute and says where, for [`end_attribute`].
pub(crate) fn begin_attribute(bytes: &mut Vec<u8>, kind: u16) -> usize {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    start
}

pub(crate) fn end_attribute(bytes: &mut Vec<u8>, start: usize) {
    let length = u16::try_from(bytes.len() - start).expect("writers keep attributes below 64 KiB");
    bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    bytes.resize(start + usize::from(length).next_multiple_of(4), 0);
}

pub(crate) fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let start = begin_attribute(bytes, kind);
    bytes.extend_from_slice(value);
    end_attribute(bytes, start);
}

/// A text with its closing zero.
pub(crate) fn text_attribute(bytes: &mut Vec<u8>, kind: u16, text: &str) {
    let start = begin_attribute(bytes, kind);
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    end_attribute(bytes, start);
}

/// One request and all its answers; `answer` is given what follows the headers.
pub(crate) fn request(
    socket: &OwnedFd,
    kind: u16,
    flags: u16,
    family: u8,
    attributes: &[u8],
    mut answer: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut message = Vec::new();
    let start = begin_message(&mut message, kind, NLM_F_REQUEST | flags, 0, family, 0);
    message.extend_from_slice(attributes);
    end_message(&mut message, start);
    send(socket, &message, SendFlags::empty())?;
    answers(socket, |payload| answer(payload)).map_err(|refused| refused.error)
}

/// What the kernel refused.
pub(crate) struct Refused {
    /// The sequence number of the message that it was.
    pub sequence: u32,
    /// Where in that message the attribute is that it complains of, if it says so.
    pub attribute: Option<usize>,
    pub error: io::Error,
}

impl From<rustix::io::Errno> for Refused {
    fn from(error: rustix::io::Errno) -> Self {
        Refused { sequence: 0, attribute: None, error: error.into() }
    }
}

/// Reads answers until the kernel says that it has done what it was asked, or that it has not.
pub(crate) fn answers(socket: &OwnedFd, mut answer: impl FnMut(&[u8])) -> Result<(), Refused> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        let (received, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..received];
        while let Some((kind, body)) = next_message(&mut rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return verdict(body),
                _ => answer(body.get(4..).unwrap_or_default()),
            }
        }
    }
}

/// Reads nlmsgerr: a code, the header of the message that is answered, and attributes.
fn verdict(body: &[u8]) -> Result<(), Refused> {
    let number = |at: usize| body.get(at..)?.first_chunk().copied();
    let code = number(0).map_or(-libc::EPROTO, i32::from_ne_bytes);
    if code == 0 {
        return Ok(());
    }
    let sequence = number(4 + 8).map_or(0, u32::from_ne_bytes);
    let said = attributes(body.get(4 + NETLINK_HEADER..).unwrap_or_default());
    let attribute = said
        .filter(|(kind, ..)| *kind == NLMSGERR_ATTR_OFFS)
        .find_map(|(_, _, value)| Some(u32::from_ne_bytes(*value.first_chunk()?) as usize));
    Err(Refused { sequence, attribute, error: io::Error::from_raw_os_error(-code) })
}

/// The next netlink message: its type and what follows its header.
pub(crate) fn next_message<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
    let body = rest.get(NETLINK_HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body))
}

/// The attributes of a message: type without its flags, the whole attribute, and its value.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        let whole = rest.get(..length.next_multiple_of(4)).unwrap_or(&rest[..length]);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, whole, value))
    })
}
