//! The whole table: what all Services want of it, and what makes the kernel's table so: by text, or in [`Steps`] of
//! which elements are one.
//!
//! What always holds: an element that several Services want has the value of the first of them by name
//! ([`Claims`]); elements change in one transaction, so that no packet sees half of a change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use linux::nft::{Batch, Claims, Difference, Family, Steps, Verb};

use crate::element::{Key, NODE_PORT_ADDRESSES, Pick, Value};
use crate::range::{self, Range};

pub const TABLE: &str = "trierarch-proxy";

/// What the chains say beside the elements: all that does not come from Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Where pods are. Traffic from elsewhere to a ClusterIP is masqueraded.
    pub cluster_cidrs: Vec<String>,
    pub node_ports: NodePorts,
}

/// The addresses of the node at which node ports are.
// Upstream: cmd/kube-proxy/app/options.go --nodeport-addresses
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePorts {
    /// All of the node's but loopback.
    #[default]
    All,
    /// Those that the Node object names first, one a family.
    Primary,
    /// Those in these ranges; a family that none is of has them at all its addresses.
    Ranges(Vec<String>),
}

impl NodePorts {
    /// Reads `primary`, or ranges; nothing means what upstream's proxy of this kind means by it.
    // Upstream: cmd/kube-proxy/app/server_linux.go platformApplyDefaults
    pub fn parse(texts: &[String]) -> Result<Self, crate::Error> {
        match texts {
            [] => Ok(NodePorts::Primary),
            [primary] if primary == "primary" => Ok(NodePorts::Primary),
            ranges => match ranges.iter().find(|text| Range::parse(text).is_none()) {
                Some(wrong) => Err(crate::Error::NodePorts(wrong.clone())),
                None => Ok(NodePorts::Ranges(ranges.to_vec())),
            },
        }
    }

    fn ranges(&self, ipv6: bool) -> Vec<Range> {
        let NodePorts::Ranges(texts) = self else { return Vec::new() };
        let ranges = range::apart(texts.iter().filter_map(|text| Range::parse(text)));
        let ranges: Vec<Range> = ranges.into_iter().filter(|range| range.is_ipv6() == ipv6).collect();
        // The whole of a family is as good as nothing said.
        if ranges.iter().any(|range| range.length() == 0) { Vec::new() } else { ranges }
    }

    /// Whether node ports are at this address, one of the node's.
    pub(crate) fn are_at(&self, address: IpAddr, primary: &[IpAddr]) -> bool {
        let ranges = self.ranges(address.is_ipv6());
        match self {
            NodePorts::Primary => primary.contains(&address),
            _ => ranges.is_empty() || ranges.iter().any(|range| range.contains(address)),
        }
    }

    /// What a packet to a node port is told by, but for the port.
    fn destination(&self, ipv6: bool) -> String {
        let (ip, loopback) = if ipv6 { ("ip6", "::1/128") } else { ("ip", "127.0.0.0/8") };
        let ranges = self.ranges(ipv6);
        match self {
            NodePorts::Primary => format!("{ip} daddr @{NODE_PORT_ADDRESSES}"),
            _ if ranges.is_empty() => format!("fib daddr type local {ip} daddr != {loopback}"),
            _ => {
                let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
                format!("fib daddr type local {ip} daddr {{ {} }}", ranges.join(", "))
            }
        }
    }
}

/// Elements and who wants them.
#[derive(Debug, Default)]
pub struct Ruleset {
    frame: Frame,
    /// By Service.
    claims: Claims<Arc<str>, Key, Value>,
    /// How many elements lead to a chain, by family.
    picks: BTreeMap<(bool, Pick), usize>,
}

/// What differs between two states of a [`Ruleset`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    removed: BTreeMap<Key, Value>,
    added: BTreeMap<Key, Value>,
    removed_picks: BTreeSet<(bool, Pick)>,
    added_picks: BTreeSet<(bool, Pick)>,
}

impl Change {
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }

    /// One transaction: first the chains that elements will lead to, last those that none leads to any more.
    pub fn text(&self) -> String {
        let Steps { before: mut text, after, .. } = self.chains();
        elements_text(&mut text, "delete", &self.removed);
        elements_text(&mut text, "add", &self.added);
        text + &after
    }

    /// The same, its elements by netlink: a chain that no element leads to yet, or any more, is nobody's concern.
    pub fn steps(&self) -> Steps {
        let mut steps = self.chains();
        put(&mut steps.elements, Verb::Delete, &self.removed);
        put(&mut steps.elements, Verb::Add, &self.added);
        steps
    }

    fn chains(&self) -> Steps {
        let mut steps = Steps::default();
        for (ipv6, pick) in &self.added_picks {
            add_pick(&mut steps.before, *ipv6, pick);
        }
        for (ipv6, pick) in &self.removed_picks {
            let _ = writeln!(steps.after, "delete chain {} {}", on(*ipv6), pick.chain());
        }
        steps
    }
}

impl Ruleset {
    pub fn new(frame: Frame) -> Self {
        Ruleset { frame, ..Default::default() }
    }

    /// Says which addresses the node has.
    pub fn set_node(&mut self, addresses: &[IpAddr]) {
        if self.frame.node_ports == NodePorts::Primary {
            let elements = addresses.iter().map(|ip| (Key::NodePortAddress(*ip), Value::Present)).collect();
            // No Service has this name.
            self.claims.set(&"".into(), elements);
        }
    }

    /// Says what a Service wants from now on; nothing, when it is gone.
    pub fn set(&mut self, service: &str, elements: BTreeMap<Key, Value>) {
        self.claims.set(&service.into(), elements);
    }

    /// The Services that want anything.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        // The node's own elements are nobody's Service.
        self.claims.owners().map(|owner| &**owner).filter(|owner| !owner.is_empty())
    }

    /// What changed since the last call.
    pub fn settle(&mut self) -> Change {
        let Difference { removed, added } = self.claims.settle();
        let mut change = Change::default();
        for (elements, more) in [(&removed, false), (&added, true)] {
            for (key, value) in elements {
                if let Value::Pick(pick) = value {
                    self.count(&mut change, (key.is_ipv6(), *pick), more);
                }
            }
        }
        Change { removed, added, ..change }
    }

    fn count(&mut self, change: &mut Change, pick: (bool, Pick), more: bool) {
        let count = self.picks.entry(pick).or_default();
        if more {
            *count += 1;
            if *count == 1 && !change.removed_picks.remove(&pick) {
                change.added_picks.insert(pick);
            }
        } else {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.picks.remove(&pick);
                if !change.added_picks.remove(&pick) {
                    change.removed_picks.insert(pick);
                }
            }
        }
    }

    /// The whole table of both families anew, in place of whatever is there.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for ipv6 in [false, true] {
            frame_text(&mut text, &self.frame, ipv6);
        }
        for (ipv6, pick) in self.picks.keys() {
            add_pick(&mut text, *ipv6, pick);
        }
        elements_text(&mut text, "add", self.claims.elements());
        text
    }
}

/// Elements by the set or map that they are in, and by the table's family.
fn by_set<'a>(
    elements: impl IntoIterator<Item = (&'a Key, &'a Value)>,
) -> BTreeMap<(bool, &'static str), Vec<(&'a Key, &'a Value)>> {
    let mut sets: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (key, value) in elements {
        sets.entry((key.is_ipv6(), key.set())).or_default().push((key, value));
    }
    sets
}

fn put<'a>(batch: &mut Batch, verb: Verb, elements: impl IntoIterator<Item = (&'a Key, &'a Value)>) {
    for ((ipv6, set), elements) in by_set(elements) {
        let family = if ipv6 { Family::Ip6 } else { Family::Ip };
        let elements = elements.into_iter().map(|(key, value)| key.element(value));
        batch.put(verb, (family, TABLE, set), elements);
    }
}

/// The family and name of the table.
fn on(ipv6: bool) -> String {
    format!("{} {TABLE}", if ipv6 { "ip6" } else { "ip" })
}

fn elements_text<'a>(
    text: &mut String,
    verb: &str,
    elements: impl IntoIterator<Item = (&'a Key, &'a Value)>,
) {
    for ((ipv6, set), elements) in by_set(elements) {
        let elements: Vec<String> = elements.iter().map(|(key, value)| format!("{key}{value}")).collect();
        linux::nft::elements_text(text, verb, &format!("{} {set}", on(ipv6)), &elements);
    }
}

/// Expressions that differ between node ports and addresses.
struct Lookup {
    key: String,
    prefix: &'static str,
    translate: &'static str,
    ip: &'static str,
}

fn lookup(ipv6: bool, node_port: bool) -> Lookup {
    let ip = if ipv6 { "ip6" } else { "ip" };
    if node_port {
        let key = "meta l4proto . th dport".to_owned();
        Lookup { key, prefix: "node-port-", translate: "translate-port", ip }
    } else {
        Lookup {
            key: format!("{ip} daddr . meta l4proto . th dport"),
            prefix: "",
            translate: "translate",
            ip,
        }
    }
}

/// The chain of a pick. With affinity: a client that came before keeps its endpoint while the endpoint is
/// there. What it kept is forgotten before another is chosen, since an update leaves the value as it was.
fn add_pick(text: &mut String, ipv6: bool, pick: &Pick) {
    let Lookup { key, prefix, translate, ip } = lookup(ipv6, pick.node_port);
    let (on, chain, first) = (on(ipv6), pick.chain(), pick.first_mark());
    let choose = match pick.endpoints {
        1 => format!("meta mark set {first:#x}"),
        count => format!("meta mark set numgen random mod {count} offset {first:#x}"),
    };
    let _ = writeln!(text, "add chain {on} {chain}");
    if pick.sticky_seconds == 0 {
        let _ = writeln!(text, "add rule {on} {chain} {choose} goto {translate}");
        return;
    }
    let client = format!("{ip} saddr . {key}");
    let affinity = format!("{prefix}affinity");
    let keep = format!("update @{affinity} {{ {client} timeout {}s : meta mark }}", pick.sticky_seconds);
    let rules = [
        format!(
            "meta mark set {client} map @{affinity} {keep} dnat {ip} to {key} . meta mark map @{prefix}endpoints"
        ),
        format!("delete @{affinity} {{ {client} : meta mark }}"),
        choose,
        format!("meta mark set {key} . meta mark map @{prefix}slots"),
        keep,
        format!("goto {translate}"),
    ];
    for rule in rules {
        let _ = writeln!(text, "add rule {on} {chain} {rule}");
    }
}

/// The table with its sets, maps and fixed chains, all empty of Services.
fn frame_text(text: &mut String, frame: &Frame, ipv6: bool) {
    let on = on(ipv6);
    let _ = writeln!(text, "add table {on}\ndelete table {on}\nadd table {on}");
    let address = if ipv6 { "ipv6_addr" } else { "ipv4_addr" };
    for (prefix, key) in [
        ("", format!("{address} . inet_proto . inet_service")),
        ("node-port-", "inet_proto . inet_service".into()),
    ] {
        let verdicts = match prefix {
            "" => ["services", "services-from-outside", "refused-services"],
            _ => ["node-ports", "node-ports-from-outside", "refused-node-ports"],
        };
        for map in verdicts {
            let _ = writeln!(text, "add map {on} {map} {{ type {key} : verdict; }}");
        }
        let _ = writeln!(
            text,
            "add map {on} {prefix}endpoints {{ type {key} . mark : {address} . inet_service; }}"
        );
        let _ = writeln!(text, "add map {on} {prefix}slots {{ type {key} . mark : mark; }}");
        let _ = writeln!(
            text,
            "add map {on} {prefix}affinity {{ type {address} . {key} : mark; size 65535; flags dynamic,timeout; timeout 3h; }}"
        );
    }
    let frontend = format!("{address} . inet_proto . inet_service");
    let _ = writeln!(text, "add set {on} cluster-ips {{ type {address}; }}");
    let _ = writeln!(text, "add set {on} hairpin {{ type {address} . {address}; }}");
    let _ = writeln!(text, "add set {on} guarded {{ type {frontend}; }}");
    if frame.node_ports == NodePorts::Primary {
        let _ = writeln!(text, "add set {on} {NODE_PORT_ADDRESSES} {{ type {address}; }}");
    }
    let _ = writeln!(text, "add set {on} allowed {{ type {frontend} . {address}; flags interval; }}");
    for (chain, hook) in CHAINS {
        let body = if hook.is_empty() { String::new() } else { format!(" {{ {hook} }}") };
        let _ = writeln!(text, "add chain {on} {chain}{body}");
    }
    for (chain, rule) in rules(frame, ipv6) {
        let _ = writeln!(text, "add rule {on} {chain} {rule}");
    }
}

/// The fixed chains. Translation is at the usual priority of destination NAT, -100; the guard comes before it,
/// what was not translated is refused after it.
const CHAINS: [(&str, &str); 14] = [
    ("guard", "type filter hook prerouting priority -110;"),
    ("guard-output", "type filter hook output priority -110;"),
    ("prerouting", "type nat hook prerouting priority -100;"),
    ("output", "type nat hook output priority -100;"),
    ("forget-choice", "type filter hook prerouting priority -99;"),
    ("refuse-input", "type filter hook input priority -90;"),
    ("refuse-forward", "type filter hook forward priority -90;"),
    ("refuse-output", "type filter hook output priority -90;"),
    ("postrouting", "type nat hook postrouting priority 100;"),
    ("services", ""),
    ("from-outside", ""),
    ("translate", ""),
    ("translate-port", ""),
    ("refuse", ""),
];

fn rules(frame: &Frame, ipv6: bool) -> Vec<(&'static str, String)> {
    let Lookup { key: to, ip, .. } = lookup(ipv6, false);
    let port = lookup(ipv6, true).key;
    let to_node = format!("{} {port}", frame.node_ports.destination(ipv6));
    let ranges: Vec<&str> =
        frame.cluster_cidrs.iter().map(String::as_str).filter(|range| range.contains(':') == ipv6).collect();
    let from_elsewhere = (!ranges.is_empty()).then(|| format!("{ip} saddr != {{ {} }} ", ranges.join(", ")));
    let from_outside = from_elsewhere.as_deref().unwrap_or_default();

    let guard = format!("ct state new {to} @guarded {to} . {ip} saddr != @allowed drop");
    let mut rules = vec![
        ("guard", guard.clone()),
        ("guard-output", guard),
        ("prerouting", format!("{from_outside}jump from-outside")),
        ("prerouting", "jump services".to_owned()),
        ("output", "jump services".to_owned()),
        ("from-outside", format!("{to} vmap @services-from-outside")),
        ("from-outside", format!("{to_node} vmap @node-ports-from-outside")),
        ("services", format!("{to} vmap @services")),
        ("services", format!("{to_node} vmap @node-ports")),
        ("translate", format!("dnat {ip} to {to} . meta mark map @endpoints")),
        ("translate-port", format!("dnat {ip} to {port} . meta mark map @node-port-endpoints")),
        // Routing must not take the choice for a mark that somebody's rules know.
        ("forget-choice", "ct state new ct status dnat meta mark set meta mark & 0x40000000".to_owned()),
        // An ICMP error would reach a connect() on this very node while it still holds its socket, and be lost.
        ("refuse", "meta l4proto tcp reject with tcp reset".to_owned()),
        ("refuse", "reject".to_owned()),
        ("postrouting", format!("ct status dnat {ip} saddr . {ip} daddr @hairpin masquerade fully-random")),
        ("postrouting", "ct status dnat meta mark & 0x40000000 != 0 masquerade fully-random".to_owned()),
        ("postrouting", "ct status dnat fib saddr type local masquerade fully-random".to_owned()),
    ];
    for chain in ["refuse-input", "refuse-forward", "refuse-output"] {
        rules.push((chain, format!("ct state new {to} vmap @refused-services")));
        rules.push((chain, format!("ct state new {to_node} vmap @refused-node-ports")));
        // A port that the Service does not have.
        rules.push((chain, format!("ct state new {ip} daddr @cluster-ips goto refuse")));
    }
    if let Some(from_elsewhere) = from_elsewhere {
        let masquerade = "masquerade fully-random";
        rules.push((
            "postrouting",
            format!("ct status dnat {from_elsewhere}ct original {ip} daddr @cluster-ips {masquerade}"),
        ));
    }
    rules
}

#[cfg(test)]
mod tests;
