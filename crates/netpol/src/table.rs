//! The table's text: what it always has, and what a [`Change`] does to it.
//!
//! Chains of direction `egress` and `ingress` hook into forwarding one after the other; what the first accepts the
//! second still sees. Each leads by a map from a pod's address to `…-pods-N`, which visits the chains of the
//! pod's policies, `…-policy-N`, and drops what none of them accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use linux::nft::{self, Data, Family, Fields, Steps, Verb, elements_text};

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// Whether any chain gets new rules.
    pub has_new_rules: bool,
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
        let mut text = self.added_text();
        write_elements(&mut text, "delete", self.removed_elements());
        write_elements(&mut text, "add", self.added.iter());
        self.write_removed(&mut text);
        text
    }

    /// The same, its elements by netlink where that makes no difference: no packet comes by a chain or set before
    /// an element leads there, but new rules and their elements belong together.
    pub fn steps(&self) -> Steps {
        if self.has_new_rules {
            return Steps::of_text(self.text());
        }
        let mut steps = Steps::of_text(self.added_text());
        let (removed, added) = (by_set(self.removed_elements()), by_set(self.added.iter()));
        for (verb, sets) in [(Verb::Delete, removed), (Verb::Add, added)] {
            for (set, elements) in sets {
                let elements = elements.into_iter().map(kernel_element);
                steps.elements.put(verb, (Family::Inet, TABLE, &set.to_string()), elements);
            }
        }
        self.write_removed(&mut steps.after);
        steps
    }

    fn added_text(&self) -> String {
        let mut text = String::new();
        for (number, kind) in &self.added_sets {
            for ipv6 in [false, true] {
                let keys = match kind {
                    SetKind::Pods => address_type(ipv6).to_owned(),
                    SetKind::Ports => format!("{} . inet_proto . inet_service", address_type(ipv6)),
                };
                let _ = writeln!(
                    text,
                    "add set {ON} {} {{ type {keys}; }}",
                    SetName::Numbered(*kind, ipv6, *number)
                );
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
        text
    }

    /// Without those of a set that goes, which go with it.
    fn removed_elements(&self) -> impl Iterator<Item = (&Element, &Value)> {
        self.removed.iter().filter(|(element, _)| match element {
            Element::Member(set, _) => !self.removed_sets.contains_key(set),
            _ => true,
        })
    }

    fn write_removed(&self, text: &mut String) {
        // Those that refer to others come last in the order of chains.
        for chain in self.removed_chains.iter().rev() {
            let _ = writeln!(text, "delete chain {ON} {chain}");
        }
        for (number, kind) in &self.removed_sets {
            for ipv6 in [false, true] {
                let _ = writeln!(text, "delete set {ON} {}", SetName::Numbered(*kind, ipv6, *number));
            }
        }
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

/// A set or map.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum SetName {
    Numbered(SetKind, bool, u32),
    Fixed(&'static str, bool),
}

impl std::fmt::Display for SetName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SetName::Numbered(SetKind::Pods, ipv6, number) => write!(f, "pods{}-{number}", digit(*ipv6)),
            SetName::Numbered(SetKind::Ports, ipv6, number) => write!(f, "ports{}-{number}", digit(*ipv6)),
            SetName::Fixed(name, ipv6) => write!(f, "{name}{}", digit(*ipv6)),
        }
    }
}

/// The set or map of an element.
fn set_of(element: &Element) -> SetName {
    match element {
        Element::Member(set, Member::Address(one)) => SetName::Numbered(SetKind::Pods, one.is_ipv6(), *set),
        Element::Member(set, Member::Port(one, ..)) => SetName::Numbered(SetKind::Ports, one.is_ipv6(), *set),
        Element::Isolated(direction, one) => SetName::Fixed(direction.name(), one.is_ipv6()),
        Element::Itself(one) => SetName::Fixed("self", one.is_ipv6()),
        Element::Resolves(one, _) => SetName::Fixed("resolves", one.is_ipv6()),
        Element::Resolver(one) => SetName::Fixed("resolvers", one.is_ipv6()),
    }
}

/// The chain that an element leads to.
fn chain_of(element: &Element, value: &Value) -> Option<Chain> {
    match (element, value) {
        (Element::Isolated(direction, _), Value::Chain(number)) => Some(Chain::Pods(*direction, *number)),
        _ => None,
    }
}

/// An element as nft reads it.
fn element_text(element: &Element, value: &Value) -> String {
    let key = match element {
        Element::Member(_, Member::Address(address)) => address.to_string(),
        Element::Member(_, Member::Port(address, protocol, port)) => {
            format!("{address} . {} . {port}", protocol.name())
        }
        Element::Isolated(_, address) | Element::Resolver(address) => address.to_string(),
        Element::Itself(address) => format!("{address} . {address}"),
        Element::Resolves(address, protocol) => format!("{address} . {}", protocol.name()),
    };
    match chain_of(element, value) {
        Some(chain) => format!("{key} : goto {chain}"),
        None => key,
    }
}

/// An element as the kernel holds it.
fn kernel_element((element, value): (&Element, &Value)) -> nft::Element {
    let address = |address: &IpAddr| Fields::default().address(*address);
    let key = match element {
        Element::Member(_, Member::Address(one)) => address(one),
        Element::Member(_, Member::Port(one, protocol, port)) => address(one).protocol(*protocol).port(*port),
        Element::Isolated(_, one) | Element::Resolver(one) => address(one),
        Element::Itself(one) => address(one).address(*one),
        Element::Resolves(one, protocol) => address(one).protocol(*protocol),
    };
    let data = chain_of(element, value).map_or(Data::None, |chain| Data::Goto(chain.to_string()));
    nft::Element { key, last: None, data }
}

/// Elements by the set or map that they are in.
fn by_set<'a>(
    elements: impl Iterator<Item = (&'a Element, &'a Value)>,
) -> BTreeMap<SetName, Vec<(&'a Element, &'a Value)>> {
    let mut sets: BTreeMap<SetName, Vec<_>> = BTreeMap::new();
    for (element, value) in elements {
        sets.entry(set_of(element)).or_default().push((element, value));
    }
    sets
}

fn write_elements<'a>(
    text: &mut String,
    verb: &str,
    elements: impl Iterator<Item = (&'a Element, &'a Value)>,
) {
    let sets = by_set(elements).into_iter().map(|(set, elements)| (set.to_string(), elements));
    for (set, elements) in sets.collect::<BTreeMap<_, _>>() {
        let elements: Vec<String> =
            elements.into_iter().map(|(element, value)| element_text(element, value)).collect();
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
            let set = SetName::Numbered(SetKind::Pods, ipv6, number);
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
            let set = SetName::Numbered(SetKind::Ports, ipv6, number);
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
