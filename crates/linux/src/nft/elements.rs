//! Elements of sets and maps by netlink: what `nft` does for `add element` and `delete element`, without a process and
//! without text. Ten thousand elements take some ten milliseconds, and one takes less than one.

use std::net::IpAddr;

use rustix::net::{SendFlags, send, sockopt};

use super::{Error, Protocol};
use crate::netfilter::{
    NLA_F_NESTED, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, Refused, answers, attribute, attributes,
    begin_attribute, begin_message, end_attribute, end_message, next_message, open, request, text_attribute,
};

const SUBSYSTEM: u16 = 10; // NFNL_SUBSYS_NFTABLES
const GET_TABLE: u16 = SUBSYSTEM << 8 | 1; // NFT_MSG_GETTABLE
const ADD: u16 = SUBSYSTEM << 8 | 12; // NFT_MSG_NEWSETELEM
const DELETE: u16 = SUBSYSTEM << 8 | 14; // NFT_MSG_DELSETELEM
const BATCH_BEGIN: u16 = 16; // NFNL_MSG_BATCH_BEGIN
const BATCH_END: u16 = 17; // NFNL_MSG_BATCH_END
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFT_GOTO: i32 = -4;

/// The most that the kernel takes as a key or as data: NFT_DATA_VALUE_MAXLEN.
const MAX_FIELDS: usize = 64;
/// How long a list of elements may get before a new message begins; an attribute ends at 64 KiB.
const MAX_LIST: usize = 60 << 10;

/// A table's family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    Ip,
    Ip6,
    Inet,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Family::Ip => 2,   // NFPROTO_IPV4
            Family::Ip6 => 10, // NFPROTO_IPV6
            Family::Inet => 1, // NFPROTO_INET
        }
    }
}

/// A key, or data, as the kernel's registers hold it: fields one after the other, each filled up to four bytes.
#[derive(Clone, Copy, Debug)]
pub struct Fields {
    bytes: [u8; MAX_FIELDS],
    length: usize,
}

impl Default for Fields {
    fn default() -> Self {
        Fields { bytes: [0; MAX_FIELDS], length: 0 }
    }
}

impl Fields {
    pub fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.push(&address.octets()),
            IpAddr::V6(address) => self.push(&address.octets()),
        }
    }

    pub fn protocol(self, protocol: Protocol) -> Self {
        self.push(&[match protocol {
            Protocol::Tcp => libc::IPPROTO_TCP as u8,
            Protocol::Udp => libc::IPPROTO_UDP as u8,
            Protocol::Sctp => libc::IPPROTO_SCTP as u8,
        }])
    }

    pub fn port(self, port: u16) -> Self {
        self.push(&port.to_be_bytes())
    }

    /// Marks are numbers of the machine, not of the network.
    pub fn mark(self, mark: u32) -> Self {
        self.push(&mark.to_ne_bytes())
    }

    fn push(mut self, field: &[u8]) -> Self {
        self.bytes[self.length..self.length + field.len()].copy_from_slice(field);
        self.length += field.len().next_multiple_of(4);
        self
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// What a map leads to.
#[derive(Clone, Debug)]
pub enum Data {
    /// Nothing: an element of a set.
    None,
    Fields(Fields),
    Goto(String),
    Accept,
    Drop,
}

#[derive(Clone, Debug)]
pub struct Element {
    pub key: Fields,
    /// The last key, in sets of intervals.
    pub last: Option<Fields>,
    pub data: Data,
}

impl Element {
    fn write(&self, bytes: &mut Vec<u8>, verb: Verb) {
        let element = begin_attribute(bytes, NFTA_LIST_ELEM | NLA_F_NESTED);
        value(bytes, NFTA_SET_ELEM_KEY, &self.key);
        if let Some(last) = &self.last {
            value(bytes, NFTA_SET_ELEM_KEY_END, last);
        }
        if verb == Verb::Add {
            match &self.data {
                Data::None => {}
                Data::Fields(fields) => value(bytes, NFTA_SET_ELEM_DATA, fields),
                Data::Goto(chain) => verdict(bytes, NFT_GOTO, Some(chain)),
                Data::Accept => verdict(bytes, libc::NF_ACCEPT, None),
                Data::Drop => verdict(bytes, libc::NF_DROP, None),
            }
        }
        end_attribute(bytes, element);
    }
}

fn value(bytes: &mut Vec<u8>, kind: u16, fields: &Fields) {
    let nested = begin_attribute(bytes, kind | NLA_F_NESTED);
    attribute(bytes, NFTA_DATA_VALUE, fields.as_bytes());
    end_attribute(bytes, nested);
}

fn verdict(bytes: &mut Vec<u8>, code: i32, chain: Option<&str>) {
    let data = begin_attribute(bytes, NFTA_SET_ELEM_DATA | NLA_F_NESTED);
    let nested = begin_attribute(bytes, NFTA_DATA_VERDICT | NLA_F_NESTED);
    attribute(bytes, NFTA_VERDICT_CODE, &code.to_be_bytes());
    if let Some(chain) = chain {
        text_attribute(bytes, NFTA_VERDICT_CHAIN, chain);
    }
    end_attribute(bytes, nested);
    end_attribute(bytes, data);
}

/// What becomes of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Add,
    /// Whatever they lead to.
    Delete,
}

/// Elements that come and go together, in sets and maps that are there.
#[derive(Debug, Default)]
pub struct Batch {
    /// From the one that begins the batch.
    bytes: Vec<u8>,
    /// Where each message about elements begins.
    messages: Vec<usize>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Adds elements to a set or map, or deletes them from it.
    pub fn put(
        &mut self,
        verb: Verb,
        (family, table, set): (Family, &str, &str),
        elements: impl IntoIterator<Item = Element>,
    ) {
        let (kind, flags) = match verb {
            Verb::Add => (ADD, NLM_F_REQUEST | NLM_F_CREATE),
            Verb::Delete => (DELETE, NLM_F_REQUEST),
        };
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let bytes = &mut self.bytes;
            if bytes.is_empty() {
                frame(bytes, BATCH_BEGIN);
            }
            self.messages.push(bytes.len());
            let sequence = u32::try_from(self.messages.len()).expect("messages are counted in thousands");
            let message = begin_message(bytes, kind, flags, sequence, family.number(), 0);
            text_attribute(bytes, NFTA_SET_ELEM_LIST_TABLE, table);
            text_attribute(bytes, NFTA_SET_ELEM_LIST_SET, set);
            let list = begin_attribute(bytes, NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED);
            while bytes.len() - list < MAX_LIST
                && let Some(element) = elements.next()
            {
                element.write(bytes, verb);
            }
            end_attribute(bytes, list);
            end_message(bytes, message);
        }
    }

    /// Carries out all of it, or nothing.
    pub fn commit(mut self) -> Result<(), Error> {
        let Some(last) = self.messages.last() else { return Ok(()) };
        // The kernel says that all is done where it acknowledges the last message.
        let flags = &mut self.bytes[last + 6..last + 8];
        let with_ack = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
        flags.copy_from_slice(&with_ack.to_ne_bytes());
        frame(&mut self.bytes, BATCH_END);

        let failed = |error: rustix::io::Errno| Error::Netlink(error.into());
        let socket = open().map_err(Error::Netlink)?;
        // A transaction is one datagram, however long.
        sockopt::set_socket_send_buffer_size_force(&socket, self.bytes.len()).map_err(failed)?;
        send(&socket, &self.bytes, SendFlags::empty()).map_err(failed)?;
        answers(&socket, |_| {}).map_err(|refused| {
            let subject = self.subject(&refused).unwrap_or_else(|| "commit elements".to_owned());
            Error::Refused(format!("cannot {subject}: {}", refused.error))
        })
    }

    /// What the kernel refused, in words: the message, and the element if it names one.
    fn subject(&self, refused: &Refused) -> Option<String> {
        let begin = *self.messages.get((refused.sequence as usize).checked_sub(1)?)?;
        let mut message = &self.bytes[begin..];
        let whole = message;
        let (kind, body) = next_message(&mut message)?;
        let part = |kind: u16| attributes(body.get(4..)?).find(|(found, ..)| *found == kind);
        let text = |kind: u16| Some(String::from_utf8_lossy(part(kind)?.2.strip_suffix(&[0])?).into_owned());
        let (table, set) = (text(NFTA_SET_ELEM_LIST_TABLE)?, text(NFTA_SET_ELEM_LIST_SET)?);
        let (verb, to) = if kind == ADD { ("add", "to") } else { ("delete", "from") };
        // The list is the last in its message.
        let list = whole.len() - message.len() - part(NFTA_SET_ELEM_LIST_ELEMENTS)?.1.len();
        let element = refused.attribute.filter(|at| *at > list).and_then(|at| key_text(whole.get(at..)?));
        let element = element.map_or("elements".to_owned(), |key| format!("element {key}"));
        Some(format!("{verb} {element} {to} {set} of {table}"))
    }
}

/// The key of the element that begins here, field by field as the kernel holds them: only the set knows the types.
fn key_text(bytes: &[u8]) -> Option<String> {
    let inner = |bytes, kind| attributes(bytes).find(|(found, ..)| *found == kind).map(|(_, _, value)| value);
    let key = inner(inner(inner(bytes, NFTA_LIST_ELEM)?, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
    let fields =
        key.chunks(4).map(|field| field.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    Some(fields.collect::<Vec<_>>().join("."))
}

fn frame(bytes: &mut Vec<u8>, kind: u16) {
    let start = begin_message(bytes, kind, NLM_F_REQUEST, 0, 0, SUBSYSTEM);
    end_message(bytes, start);
}

/// Whether a table is there.
pub fn has_table(family: Family, table: &str) -> Result<bool, Error> {
    let mut name = Vec::new();
    text_attribute(&mut name, NFTA_TABLE_NAME, table);
    let asked =
        open().and_then(|socket| request(&socket, GET_TABLE, NLM_F_ACK, family.number(), &name, |_| {}));
    match asked {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(Error::Netlink(error)),
    }
}

/// A change of a table in three transactions, of which the middle one is what packets notice: before it comes what
/// elements will lead to, after it goes what none leads to any more.
#[derive(Debug, Default)]
pub struct Steps {
    pub before: String,
    pub elements: Batch,
    pub after: String,
}

impl Steps {
    /// One transaction, by nft's text.
    pub fn of_text(text: String) -> Self {
        Steps { before: text, ..Steps::default() }
    }

    /// What fails leaves the steps before it in force.
    pub fn apply(self) -> Result<(), Error> {
        if !self.before.is_empty() {
            super::apply(&self.before)?;
        }
        self.elements.commit()?;
        if !self.after.is_empty() {
            super::apply(&self.after)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::NetNs;

    const TABLE: &str = "mine";

    fn key(address: &str, port: u16) -> Fields {
        Fields::default().address(address.parse().unwrap()).protocol(Protocol::Udp).port(port)
    }

    fn element(key: Fields, data: Data) -> Element {
        Element { key, last: None, data }
    }

    fn in_table(text: &str, test: impl FnOnce() + Send) {
        let namespace = NetNs::anonymous().expect("making a network namespace needs root");
        let body = format!("add table ip {TABLE}\n{text}");
        namespace
            .run(|| {
                super::super::apply(&body).unwrap();
                test();
            })
            .unwrap();
    }

    fn listed() -> String {
        let text = super::super::list_table_text("ip", TABLE).unwrap();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn put(batch: &mut Batch, verb: Verb, set: &str, elements: impl IntoIterator<Item = Element>) {
        batch.put(verb, (Family::Ip, TABLE, set), elements);
    }

    #[test]
    fn elements_are_those_that_nft_reads() {
        let text = "add chain ip mine there
            add set ip mine plain { type ipv4_addr; }
            add map ip mine verdicts { type ipv4_addr . inet_proto . inet_service : verdict; }
            add map ip mine targets { type inet_proto . inet_service . mark : ipv4_addr . inet_service; }
            add map ip mine marks { type ipv4_addr : mark; }
            add set ip mine ranges { type inet_service . ipv4_addr; flags interval; }";
        in_table(text, || {
            let mut batch = Batch::default();
            let address = |text: &str| Fields::default().address(text.parse().unwrap());
            let plain = || element(address("10.0.0.1"), Data::None);
            put(&mut batch, Verb::Add, "plain", [plain()]);
            let verdicts = [
                element(key("10.0.0.1", 53), Data::Goto("there".to_owned())),
                element(key("10.0.0.2", 53), Data::Accept),
                element(key("10.0.0.3", 53), Data::Drop),
            ];
            put(&mut batch, Verb::Add, "verdicts", verdicts);
            let choice = Fields::default().protocol(Protocol::Tcp).port(80).mark(0x4000_0001);
            let target = Data::Fields(address("10.42.0.7").port(8080));
            put(&mut batch, Verb::Add, "targets", [element(choice, target)]);
            let mark = Data::Fields(Fields::default().mark(7));
            put(&mut batch, Verb::Add, "marks", [element(address("10.0.0.1"), mark)]);
            let at = |last: &str| Fields::default().port(80).address(last.parse().unwrap());
            let range = Element { key: at("10.8.0.0"), last: Some(at("10.8.255.255")), data: Data::None };
            put(&mut batch, Verb::Add, "ranges", [range.clone()]);
            batch.commit().unwrap();
            let text = listed();
            for expected in [
                "elements = { 10.0.0.1 }",
                "10.0.0.1 . udp . 53 : goto there",
                "10.0.0.2 . udp . 53 : accept",
                "10.0.0.3 . udp . 53 : drop",
                "elements = { tcp . 80 . 0x40000001 : 10.42.0.7 . 8080 }",
                "elements = { 10.0.0.1 : 0x00000007 }",
                "elements = { 80 . 10.8.0.0/16 }",
            ] {
                assert!(text.contains(expected), "{expected}: {text}");
            }
            let mut batch = Batch::default();
            put(&mut batch, Verb::Delete, "plain", [plain()]);
            put(&mut batch, Verb::Delete, "ranges", [range]);
            put(&mut batch, Verb::Delete, "verdicts", [element(key("10.0.0.2", 53), Data::Accept)]);
            put(&mut batch, Verb::Add, "verdicts", [element(key("10.0.0.2", 53), Data::Drop)]);
            batch.commit().unwrap();
            let text = listed();
            assert!(!text.contains("10.8.0.0") && !text.contains("{ 10.0.0.1 }"), "{text}");
            assert!(text.contains("10.0.0.2 . udp . 53 : drop"), "{text}");
        });
    }

    fn numbered(numbers: std::ops::Range<u32>) -> impl Iterator<Item = Element> {
        numbers.map(|n| element(Fields::default().address(IpAddr::from(n.to_be_bytes())), Data::None))
    }

    #[test]
    fn many_elements_are_one_transaction() {
        in_table("add set ip mine many { type ipv4_addr; }", || {
            let mut batch = Batch::default();
            put(&mut batch, Verb::Add, "many", numbered(0..20_000));
            batch.commit().unwrap();
            assert_eq!(listed().matches(", ").count(), 19_999);
            Batch::default().commit().unwrap();
            let mut batch = Batch::default();
            put(&mut batch, Verb::Add, "many", numbered(0..0));
            batch.commit().unwrap();
            assert!(has_table(Family::Ip, TABLE).unwrap());
            assert!(!has_table(Family::Ip6, TABLE).unwrap());
            assert!(!has_table(Family::Ip, "other").unwrap());
        });
    }

    #[test]
    fn a_refused_batch_leaves_nothing_and_names_what_was_refused() {
        in_table("add set ip mine many { type ipv4_addr; }", || {
            let refused = |verb: Verb, set: &str, numbers: std::ops::Range<u32>| {
                let mut batch = Batch::default();
                put(&mut batch, Verb::Add, "many", numbered(0..20_000));
                put(&mut batch, verb, set, numbers.rev().flat_map(|n| numbered(n..n + 1)));
                put(&mut batch, Verb::Add, "many", numbered(90_000..90_001));
                let refused = batch.commit().unwrap_err();
                assert!(refused.is_not_found() && !listed().contains("elements"), "{refused}");
                refused.to_string()
            };
            let why = refused(Verb::Add, "missing", 0..1);
            assert!(why.contains("cannot add elements to missing of mine: "), "{why}");
            // Of many that are missing, in several messages, the first is named.
            let why = refused(Verb::Delete, "many", 10_000..30_000);
            assert!(why.contains("cannot delete element 0000752f from many of mine: "), "{why}");
        });
    }
}
