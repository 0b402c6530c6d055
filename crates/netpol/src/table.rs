//! The table's text: what it always has, and what a [`Change`] does to it.
//!
//! Chains of direction `egress` and `ingress` hook into forwarding one after the other; what the first accepts the
//! second still sees. Each leads by a map from a pod's address to `…-pods-N`, which visits the chains of the
//! pod's policies, `…-policy-N`, and drops what none of them accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use linux::nft::elements_text;

use crate::cluster::{Element, Member, Set, Value};
use crate::policy::{Direction, Namespaces, Policy, Rule, Term};
use crate::ranges::{Ranges, address};

pub const TABLE: &str = "trierarch-netpol";
pub const FAMILY: &str = "inet";
/// Family and name, as every command begins.
const ON: &str = "inet trierarch-netpol";

/// The longest comment that nft takes is 128 bytes with its end.
const MAX_COMMENT_BYTES: usize = 127;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    /// A policy's rules, by its number.
    Policy(Direction, u32),
    /// Where packets of pods that have the same policies go.
    Pods(Direction, u32),
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Chain::Policy(direction, number) => write!(f, "{}-policy-{number}", direction.name()),
            Chain::Pods(direction, number) => write!(f, "{}-pods-{number}", direction.name()),
        }
    }
}

/// A chain's rules, and what it is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    pub comment: String,
    pub rules: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKind {
    Pods,
    Ports,
}

impl From<&Set> for SetKind {
    fn from(set: &Set) -> Self {
        match set {
            Set::Pods(_) => SetKind::Pods,
            Set::Ports { .. } => SetKind::Ports,
        }
    }
}

/// What differs between two states of the table. A chain that is there already and is added gets new rules.
#[derive(Debug, Default)]
pub struct Change {
    pub added_sets: BTreeMap<u32, SetKind>,
    pub added_chains: BTreeMap<Chain, Arc<Body>>,
    pub removed: BTreeMap<Element, Value>,
    pub added: BTreeMap<Element, Value>,
    pub removed_chains: BTreeSet<Chain>,
    pub removed_sets: BTreeMap<u32, SetKind>,
}

impl Change {
    pub fn is_empty(&self) -> bool {
        self.added_sets.is_empty()
            && self.added_chains.is_empty()
            && self.removed.is_empty()
            && self.added.is_empty()
            && self.removed_chains.is_empty()
            && self.removed_sets.is_empty()
    }

    /// One transaction: first what others will refer to, last what none refers to any more.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (number, kind) in &self.added_sets {
            for ipv6 in [false, true] {
                let keys = match kind {
                    SetKind::Pods => address_type(ipv6).to_owned(),
                    SetKind::Ports => format!("{} . inet_proto . inet_service", address_type(ipv6)),
                };
                let _ = writeln!(text, "add set {ON} {} {{ type {keys}; }}", set_name(*kind, ipv6, *number));
            }
        }
        for (chain, body) in &self.added_chains {
            let mut end = body.comment.len().min(MAX_COMMENT_BYTES);
            while !body.comment.is_char_boundary(end) {
                end -= 1;
            }
            let comment = &body.comment[..end];
            let _ = match comment {
                "" => writeln!(text, "add chain {ON} {chain}"),
                _ => writeln!(text, "add chain {ON} {chain} {{ comment \"{comment}\"; }}"),
            };
        }
        for (chain, body) in &self.added_chains {
            let _ = writeln!(text, "flush chain {ON} {chain}");
            for rule in &body.rules {
                let _ = writeln!(text, "add rule {ON} {chain} {rule}");
            }
        }
        // Elements of a set that goes go with it.
        let stays = |(element, _): &(&Element, &Value)| match element {
            Element::Member(set, _) => !self.removed_sets.contains_key(set),
            _ => true,
        };
        write_elements(&mut text, "delete", self.removed.iter().filter(stays));
        write_elements(&mut text, "add", self.added.iter());
        // Those that refer to others come last in the order of chains.
        for chain in self.removed_chains.iter().rev() {
            let _ = writeln!(text, "delete chain {ON} {chain}");
        }
        for (number, kind) in &self.removed_sets {
            for ipv6 in [false, true] {
                let _ = writeln!(text, "delete set {ON} {}", set_name(*kind, ipv6, *number));
            }
        }
        text
    }
}

fn address_type(ipv6: bool) -> &'static str {
    if ipv6 { "ipv6_addr" } else { "ipv4_addr" }
}

fn ip(ipv6: bool) -> &'static str {
    if ipv6 { "ip6" } else { "ip" }
}

fn digit(ipv6: bool) -> char {
    if ipv6 { '6' } else { '4' }
}

fn set_name(kind: SetKind, ipv6: bool, number: u32) -> String {
    let kind = match kind {
        SetKind::Pods => "pods",
        SetKind::Ports => "ports",
    };
    format!("{kind}{}-{number}", digit(ipv6))
}

/// The set or map of an element, and the element as nft reads it.
fn element_text(element: &Element, value: &Value) -> (String, String) {
    let of = |name: &str, address: &std::net::IpAddr| format!("{name}{}", digit(address.is_ipv6()));
    let (set, key, direction) = match element {
        Element::Member(set, Member::Address(address)) => {
            (set_name(SetKind::Pods, address.is_ipv6(), *set), address.to_string(), None)
        }
        Element::Member(set, Member::Port(address, protocol, port)) => {
            let key = format!("{address} . {} . {port}", protocol.name());
            (set_name(SetKind::Ports, address.is_ipv6(), *set), key, None)
        }
        Element::Isolated(direction, address) => {
            (of(direction.name(), address), address.to_string(), Some(*direction))
        }
        Element::Itself(address) => (of("self", address), format!("{address} . {address}"), None),
        Element::Resolves(address, protocol) => {
            (of("resolves", address), format!("{address} . {}", protocol.name()), None)
        }
        Element::Resolver(address) => (of("resolvers", address), address.to_string(), None),
    };
    match (value, direction) {
        (Value::Chain(number), Some(direction)) => {
            (set, format!("{key} : goto {}", Chain::Pods(direction, *number)))
        }
        _ => (set, key),
    }
}

fn write_elements<'a>(
    text: &mut String,
    verb: &str,
    elements: impl Iterator<Item = (&'a Element, &'a Value)>,
) {
    let mut sets: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (element, value) in elements {
        let (set, element) = element_text(element, value);
        sets.entry(set).or_default().push(element);
    }
    for (set, elements) in sets {
        elements_text(text, verb, &format!("{ON} {set}"), &elements);
    }
}

/// The table without policies, in place of whatever is there.
pub fn frame() -> String {
    let mut text = format!("add table {ON}\ndelete table {ON}\nadd table {ON}\n");
    for ipv6 in [false, true] {
        let (digit, address) = (digit(ipv6), address_type(ipv6));
        for (kind, name, keys) in [
            ("map", "ingress", format!("{address} : verdict")),
            ("map", "egress", format!("{address} : verdict")),
            ("set", "self", format!("{address} . {address}")),
            ("set", "resolvers", address.to_owned()),
            ("set", "resolves", format!("{address} . inet_proto")),
        ] {
            let _ = writeln!(text, "add {kind} {ON} {name}{digit} {{ type {keys}; }}");
        }
    }
    // After translation and what the Service proxy refuses; egress first, as the packet goes.
    for (direction, priority) in [(Direction::Egress, 0), (Direction::Ingress, 1)] {
        let chain = direction.name();
        let _ = writeln!(text, "add chain {ON} {chain} {{ type filter hook forward priority {priority}; }}");
        for rule in base_rules(direction) {
            let _ = writeln!(text, "add rule {ON} {chain} {rule}");
        }
    }
    text
}

fn base_rules(direction: Direction) -> Vec<String> {
    let mut rules = vec!["ct state established,related accept".to_owned()];
    for ipv6 in [false, true] {
        let (ip, digit) = (ip(ipv6), digit(ipv6));
        rules.push(format!("{ip} saddr . {ip} daddr @self{digit} accept"));
        let subject = match direction {
            Direction::Ingress => "daddr",
            Direction::Egress => "saddr",
        };
        if direction == Direction::Egress {
            // The DNS is on a node and seen there at another port: what counts is whom the pod asked.
            rules.push(format!(
                "ct original {ip} daddr @resolvers{digit} {ip} saddr . meta l4proto @resolves{digit} accept"
            ));
        }
        rules.push(format!("{ip} {subject} vmap @{}{digit}", direction.name()));
    }
    rules
}

/// The chain of pods that have these policies: whatever none of them accepts ends here.
pub fn pods_body(direction: Direction, policies: &[u32]) -> Body {
    let jump = |policy: &u32| format!("jump {}", Chain::Policy(direction, *policy));
    let rules = policies.iter().map(jump).chain(["drop".to_owned()]).collect();
    Body { comment: String::new(), rules }
}

/// A condition of a rule, and the family that it is about if it is about one.
type Condition = (Option<bool>, String);

/// A policy's rules in one direction. `number_of` tells the number of a set.
pub fn rules(policy: &Policy, direction: Direction, number_of: &mut dyn FnMut(Set) -> u32) -> Vec<String> {
    let mut texts = Vec::new();
    for rule in policy.rules(direction).unwrap_or_default() {
        let peers = peer_conditions(rule, direction, number_of);
        let ports = port_conditions(policy, rule, direction, number_of);
        let both = peers.iter().flat_map(|peer| ports.iter().map(move |port| (peer, port)));
        for ((peer_family, peer), (port_family, port)) in both {
            if peer_family.is_none() || port_family.is_none() || peer_family == port_family {
                texts.push(format!("{peer}{port}accept"));
            }
        }
    }
    texts
}

fn peer_conditions(
    rule: &Rule,
    direction: Direction,
    number_of: &mut dyn FnMut(Set) -> u32,
) -> Vec<Condition> {
    let Some(peers) = &rule.peers else { return vec![(None, String::new())] };
    let side = match direction {
        Direction::Ingress => "saddr",
        Direction::Egress => "daddr",
    };
    let mut conditions = Vec::new();
    if !peers.terms.is_empty() {
        let number = number_of(Set::Pods(peers.terms.clone()));
        conditions.extend([false, true].map(|ipv6| {
            let set = set_name(SetKind::Pods, ipv6, number);
            (Some(ipv6), format!("{} {side} @{set} ", ip(ipv6)))
        }));
    }
    for ipv6 in [false, true] {
        let blocks = peers.blocks.of(ipv6);
        if !blocks.is_empty() {
            let ranges = ranges_text(blocks, |number| address(ipv6, number).to_string());
            conditions.push((Some(ipv6), format!("{} {side} {ranges} ", ip(ipv6))));
        }
    }
    conditions
}

fn port_conditions(
    policy: &Policy,
    rule: &Rule,
    direction: Direction,
    number_of: &mut dyn FnMut(Set) -> u32,
) -> Vec<Condition> {
    let Some(ports) = &rule.ports else { return vec![(None, String::new())] };
    let mut conditions = Vec::new();
    for (protocol, ranges) in &ports.numbers {
        let ranges = ranges_text(ranges, |number| number.to_string());
        conditions.push((None, format!("{} dport {ranges} ", protocol.name())));
    }
    if !ports.names.is_empty() {
        let of = named_of(policy, direction, rule);
        let only_subjects = direction == Direction::Ingress;
        let number = number_of(Set::Ports { of, names: ports.names.clone(), only_subjects });
        conditions.extend([false, true].map(|ipv6| {
            let set = set_name(SetKind::Ports, ipv6, number);
            (Some(ipv6), format!("{} daddr . meta l4proto . th dport @{set} ", ip(ipv6)))
        }));
    }
    conditions
}

/// Whose ports a rule names: always those of the destination.
fn named_of(policy: &Policy, direction: Direction, rule: &Rule) -> BTreeSet<Term> {
    match (direction, &rule.peers) {
        (Direction::Ingress, _) => {
            let namespaces = Namespaces::Named(policy.namespace.clone());
            [Term { namespaces, pods: policy.pods.clone() }].into()
        }
        (Direction::Egress, Some(peers)) if peers.blocks == Default::default() => peers.terms.clone(),
        (Direction::Egress, _) => [Term::all_pods()].into(),
    }
}

fn ranges_text(ranges: &Ranges, text: impl Fn(u128) -> String) -> String {
    let range = |(first, last): (u128, u128)| match first == last {
        true => text(first),
        false => format!("{}-{}", text(first), text(last)),
    };
    let texts: Vec<String> = ranges.iter().map(range).collect();
    match texts.as_slice() {
        [one] => one.clone(),
        many => format!("{{ {} }}", many.join(", ")),
    }
}
