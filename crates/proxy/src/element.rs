//! The elements that a Service puts into the sets and maps of the table: [`Key`] and [`Value`].
//!
//! The table's chains do not name Services; a packet finds its way by looking up its destination. The first
//! look-up yields a [`Pick`], a chain that chooses one of so many endpoints and notes the choice in the packet
//! mark; the second takes destination and mark to the endpoint.

use std::net::{IpAddr, SocketAddr};

pub use linux::nft::Protocol;
use linux::nft::{Data, Element, Fields};

use crate::range::Range;

/// Set in a mark: masquerade the connection.
pub const MARK_MASQUERADE: u32 = 0x4000_0000;
/// Set in a mark: the choice is among the local endpoints.
pub const MARK_LOCAL: u32 = 0x0001_0000;
/// Set in a mark: it names an endpoint for as long as the endpoint is there, for session affinity.
pub const MARK_SLOT: u32 = 0x8000_0000;
/// More endpoints of one port than this are left out, so that a choice fits its bits of the mark.
pub const MAX_ENDPOINTS: usize = 0xffff;

/// The chain that answers with an error.
pub(crate) const REFUSE: &str = "refuse";
/// The set of the node's addresses at which node ports are, where not all are.
pub(crate) const NODE_PORT_ADDRESSES: &str = "node-port-addresses";

/// Where a Service is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    /// A ClusterIP, an external IP, an address of a load balancer.
    Address { address: IpAddr, protocol: Protocol, port: u16 },
    /// A port of every address of the node.
    NodePort { ipv6: bool, protocol: Protocol, port: u16 },
}

impl Frontend {
    pub fn is_ipv6(&self) -> bool {
        match self {
            Frontend::Address { address, .. } => address.is_ipv6(),
            Frontend::NodePort { ipv6, .. } => *ipv6,
        }
    }

    pub fn is_node_port(&self) -> bool {
        matches!(self, Frontend::NodePort { .. })
    }

    pub fn protocol(&self) -> Protocol {
        match self {
            Frontend::Address { protocol, .. } | Frontend::NodePort { protocol, .. } => *protocol,
        }
    }

    fn fields(&self) -> Fields {
        match self {
            Frontend::Address { address, protocol, port } => {
                Fields::default().address(*address).protocol(*protocol).port(*port)
            }
            Frontend::NodePort { protocol, port, .. } => Fields::default().protocol(*protocol).port(*port),
        }
    }
}

impl std::fmt::Display for Frontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Frontend::Address { address, protocol, port } => {
                write!(f, "{address} . {} . {port}", protocol.name())
            }
            Frontend::NodePort { protocol, port, .. } => write!(f, "{} . {port}", protocol.name()),
        }
    }
}

/// A chain that chooses among so many endpoints. There is one for each way of choosing that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pick {
    pub node_port: bool,
    pub endpoints: u32,
    pub masquerade: bool,
    pub local: bool,
    /// Session affinity by client address, for so many seconds; 0 for none.
    pub sticky_seconds: u32,
}

impl Pick {
    /// The mark of the first choice; the others follow it.
    pub fn first_mark(&self) -> u32 {
        (if self.masquerade { MARK_MASQUERADE } else { 0 }) | (if self.local { MARK_LOCAL } else { 0 })
    }

    pub fn chain(&self) -> String {
        let mut name = format!("{}-{}", if self.node_port { "pick-port" } else { "pick" }, self.endpoints);
        if self.masquerade {
            name.push_str("-masquerade");
        }
        if self.local {
            name.push_str("-local");
        }
        if self.sticky_seconds != 0 {
            name = format!("{name}-sticky-{}", self.sticky_seconds);
        }
        name
    }
}

/// What an element is found by, and in which set or map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Traffic to a Service: to a [`Value::Pick`].
    Service(Frontend),
    /// Traffic from outside the cluster to a Service of external policy Local; looked up before `Service`.
    FromOutside(Frontend),
    /// Traffic that nothing translated.
    Refused(Frontend),
    /// A choice: to a [`Value::Endpoint`].
    Endpoint(Frontend, u32),
    /// A choice by number: to the [`Value::Slot`] that affinity remembers.
    Slot(Frontend, u32),
    /// A ClusterIP, whatever its ports.
    ClusterAddress(IpAddr),
    /// An endpoint on this node, which may reach itself through a Service.
    Hairpin(IpAddr),
    /// A frontend that only some sources may use.
    Guarded(Frontend),
    /// A source range that may use a guarded frontend.
    Allowed(Frontend, Range),
    /// An address of the node at which node ports are.
    NodePortAddress(IpAddr),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// The key is all there is: an element of a set.
    Present,
    Pick(Pick),
    Endpoint(SocketAddr),
    Slot(u32),
    /// Leave untranslated.
    Untouched,
    /// Answer with an ICMP error.
    Refuse,
    /// Say nothing.
    Discard,
}

impl Key {
    pub fn is_ipv6(&self) -> bool {
        match self {
            Key::Service(frontend) | Key::FromOutside(frontend) | Key::Refused(frontend) => {
                frontend.is_ipv6()
            }
            Key::Endpoint(frontend, _) | Key::Slot(frontend, _) => frontend.is_ipv6(),
            Key::Guarded(frontend) | Key::Allowed(frontend, _) => frontend.is_ipv6(),
            Key::ClusterAddress(address) | Key::Hairpin(address) | Key::NodePortAddress(address) => {
                address.is_ipv6()
            }
        }
    }

    /// The set or map that holds the element.
    pub fn set(&self) -> &'static str {
        let of = |frontend: &Frontend, address, port| if frontend.is_node_port() { port } else { address };
        match self {
            Key::Service(frontend) => of(frontend, "services", "node-ports"),
            Key::FromOutside(frontend) => of(frontend, "services-from-outside", "node-ports-from-outside"),
            Key::Refused(frontend) => of(frontend, "refused-services", "refused-node-ports"),
            Key::Endpoint(frontend, _) => of(frontend, "endpoints", "node-port-endpoints"),
            Key::Slot(frontend, _) => of(frontend, "slots", "node-port-slots"),
            Key::ClusterAddress(_) => "cluster-ips",
            Key::Hairpin(_) => "hairpin",
            Key::Guarded(_) => "guarded",
            Key::Allowed(..) => "allowed",
            Key::NodePortAddress(_) => NODE_PORT_ADDRESSES,
        }
    }

    /// The element as the kernel holds it; its text is what `Display` of both writes.
    pub(crate) fn element(&self, value: &Value) -> Element {
        let address = |address: &IpAddr| Fields::default().address(*address);
        let (key, last) = match self {
            Key::Service(frontend)
            | Key::FromOutside(frontend)
            | Key::Refused(frontend)
            | Key::Guarded(frontend) => (frontend.fields(), None),
            Key::Endpoint(frontend, mark) | Key::Slot(frontend, mark) => {
                (frontend.fields().mark(*mark), None)
            }
            Key::ClusterAddress(one) | Key::NodePortAddress(one) => (address(one), None),
            Key::Hairpin(one) => (address(one).address(*one), None),
            Key::Allowed(frontend, range) => {
                let with = |address| frontend.fields().address(address);
                (with(range.first()), Some(with(range.last())))
            }
        };
        let data = match value {
            Value::Present => Data::None,
            Value::Pick(pick) => Data::Goto(pick.chain()),
            Value::Endpoint(to) => Data::Fields(address(&to.ip()).port(to.port())),
            Value::Slot(mark) => Data::Fields(Fields::default().mark(*mark)),
            Value::Untouched => Data::Accept,
            Value::Refuse => Data::Goto(REFUSE.to_owned()),
            Value::Discard => Data::Drop,
        };
        Element { key, last, data }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Service(frontend)
            | Key::FromOutside(frontend)
            | Key::Refused(frontend)
            | Key::Guarded(frontend) => frontend.fmt(f),
            Key::Endpoint(frontend, mark) | Key::Slot(frontend, mark) => write!(f, "{frontend} . {mark:#x}"),
            Key::ClusterAddress(address) | Key::NodePortAddress(address) => address.fmt(f),
            Key::Hairpin(address) => write!(f, "{address} . {address}"),
            Key::Allowed(frontend, range) => write!(f, "{frontend} . {range}"),
        }
    }
}

impl std::fmt::Display for Value {
    /// With the colon that parts it from its key; nothing for elements of sets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Present => Ok(()),
            Value::Pick(pick) => write!(f, " : goto {}", pick.chain()),
            Value::Endpoint(address) => write!(f, " : {} . {}", address.ip(), address.port()),
            Value::Slot(mark) => write!(f, " : {mark:#x}"),
            Value::Untouched => f.write_str(" : accept"),
            Value::Refuse => write!(f, " : goto {REFUSE}"),
            Value::Discard => f.write_str(" : drop"),
        }
    }
}
