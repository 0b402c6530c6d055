//! A NetworkPolicy as its rules, read once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::IntOrString;
use api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use apimachinery::selector::LabelSelector;
use linux::nft::Protocol;

use crate::ranges::{Blocks, Ranges};

pub type Labels = BTreeMap<String, String>;

const LAST_PORT: u128 = u16::MAX as u128;

/// Which way the traffic of a pod goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    pub fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

/// A label selector that can be told from others: two of the same text are the same.
#[derive(Clone, Debug)]
pub struct Selector {
    text: Arc<str>,
    selector: LabelSelector,
}

impl Selector {
    fn new(selector: LabelSelector) -> Self {
        let text = if selector.is_nothing() { "(nothing)".to_owned() } else { selector.to_string() };
        Selector { text: text.into(), selector }
    }

    pub fn everything() -> Self {
        Self::new(LabelSelector::everything())
    }

    /// The API server lets no selector through that cannot be read; one that came anyhow selects nothing.
    fn read(selector: &api::meta::LabelSelector) -> Self {
        let read = serde_json::to_value(selector).map_err(|error| error.to_string());
        Self::new(read.and_then(|value| LabelSelector::from_object(&value)).unwrap_or_else(|error| {
            tracing::warn!(error, "a label selector of a network policy cannot be read and selects nothing");
            LabelSelector::nothing()
        }))
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.selector.matches_map(labels)
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Selector {}

impl PartialOrd for Selector {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Selector {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Namespaces {
    Named(Arc<str>),
    Matching(Selector),
}

/// Pods by their labels and those of their namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term {
    pub namespaces: Namespaces,
    pub pods: Selector,
}

impl Term {
    pub fn all_pods() -> Self {
        Term { namespaces: Namespaces::Matching(Selector::everything()), pods: Selector::everything() }
    }

    pub fn has_namespace(&self, name: &str, labels: &Labels) -> bool {
        match &self.namespaces {
            Namespaces::Named(named) => &**named == name,
            Namespaces::Matching(selector) => selector.matches(labels),
        }
    }
}

/// The other end of traffic: pods that any of the terms selects, and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    pub terms: BTreeSet<Term>,
    pub blocks: Blocks,
}

/// Ports of the destination: numbers, and names that each pod gives to a port of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    pub numbers: BTreeMap<Protocol, Ranges>,
    pub names: BTreeSet<(Protocol, String)>,
}

/// What is let through: by these peers, to these ports. `None` is any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub peers: Option<Peers>,
    pub ports: Option<Ports>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub namespace: Arc<str>,
    /// Whose traffic it rules.
    pub pods: Selector,
    /// `None` where the policy says nothing of that direction; without rules nothing is let through.
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
}

impl Policy {
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    pub fn read(policy: &NetworkPolicy) -> Self {
        let namespace: Arc<str> = policy.metadata.namespace.as_deref().unwrap_or_default().into();
        let spec = policy.spec.clone().unwrap_or_default();
        // Upstream: pkg/apis/networking/v1/defaults.go SetDefaults_NetworkPolicy
        let types = spec.policy_types.unwrap_or_default();
        let egress = spec.egress.unwrap_or_default();
        let has = |name: &str, or: bool| {
            if types.is_empty() { or } else { types.iter().any(|kind| kind == name) }
        };
        let (has_ingress, has_egress) = (has("Ingress", true), has("Egress", !egress.is_empty()));
        let rule = |peers: Option<Vec<NetworkPolicyPeer>>, ports: Option<Vec<NetworkPolicyPort>>| Rule {
            peers: peers.filter(|peers| !peers.is_empty()).map(|peers| read_peers(&namespace, &peers)),
            ports: ports.filter(|ports| !ports.is_empty()).map(|ports| read_ports(&ports)),
        };
        let ingress = spec.ingress.unwrap_or_default().into_iter().map(|r| rule(r.from, r.ports)).collect();
        let egress = egress.into_iter().map(|r| rule(r.to, r.ports)).collect();
        Policy {
            pods: Selector::read(&spec.pod_selector.unwrap_or_default()),
            ingress: has_ingress.then_some(ingress),
            egress: has_egress.then_some(egress),
            namespace,
        }
    }
}

fn read_peers(namespace: &Arc<str>, peers: &[NetworkPolicyPeer]) -> Peers {
    let mut read = Peers::default();
    for peer in peers {
        if let Some(block) = &peer.ip_block {
            read.blocks.add(&block.cidr, block.except.as_deref().unwrap_or_default());
        } else if peer.namespace_selector.is_some() || peer.pod_selector.is_some() {
            read.terms.insert(Term {
                namespaces: match &peer.namespace_selector {
                    Some(selector) => Namespaces::Matching(Selector::read(selector)),
                    None => Namespaces::Named(namespace.clone()),
                },
                pods: peer.pod_selector.as_ref().map_or_else(Selector::everything, Selector::read),
            });
        }
    }
    read
}

fn read_ports(ports: &[NetworkPolicyPort]) -> Ports {
    let mut read = Ports::default();
    for port in ports {
        let protocol = Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"));
        let Some(protocol) = protocol else { continue };
        let number = |number: i32| u128::try_from(number).ok().filter(|number| *number <= LAST_PORT);
        let (first, last) = match &port.port {
            None => (Some(0), Some(LAST_PORT)),
            Some(IntOrString::Int(first)) => (number(*first), number(port.end_port.unwrap_or(*first))),
            Some(IntOrString::String(name)) => {
                read.names.insert((protocol, name.clone()));
                continue;
            }
        };
        if let (Some(first), Some(last)) = (first, last)
            && first <= last
        {
            read.numbers.entry(protocol).or_default().add(first, last);
        }
    }
    read
}

#[cfg(test)]
mod tests {
    use api::Object;
    use serde_json::{Value, json};

    use super::*;

    fn read(spec: Value) -> Policy {
        let policy = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
        Policy::read(&NetworkPolicy::from_value(policy).unwrap())
    }

    #[test]
    fn directions_follow_types_or_what_is_there() {
        for (spec, ingress, egress) in [
            (json!({"podSelector": {}}), true, false),
            (json!({"podSelector": {}, "egress": []}), true, false),
            (json!({"podSelector": {}, "egress": [{}]}), true, true),
            (json!({"podSelector": {}, "policyTypes": ["Egress"]}), false, true),
            (json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": [{}]}), false, true),
            (json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}), true, true),
        ] {
            let policy = read(spec.clone());
            assert_eq!((policy.ingress.is_some(), policy.egress.is_some()), (ingress, egress), "{spec}");
        }
    }

    #[test]
    fn an_absent_part_of_a_rule_is_any_and_an_unreadable_one_none() {
        let policy = read(json!({"podSelector": {}, "ingress": [
            {}, {"from": [], "ports": []}, {"from": [{}]}, {"ports": [{"protocol": "ICMP"}]},
            {"from": [{"ipBlock": {"cidr": "nowhere"}}], "ports": [{"port": 9, "endPort": 8}]},
        ]}));
        let none = Rule { peers: Some(Peers::default()), ports: Some(Ports::default()) };
        let rules = policy.ingress.unwrap();
        assert_eq!(rules[..2], [Rule::default(), Rule::default()]);
        assert_eq!(rules[2], Rule { ports: None, ..none.clone() });
        assert_eq!(rules[3], Rule { peers: None, ..none.clone() });
        assert_eq!(rules[4].peers, none.peers);
        assert!(rules[4].ports.as_ref().unwrap().numbers.is_empty());
    }

    #[test]
    fn peers_without_a_namespace_selector_are_of_the_policys_own() {
        let labels = |text: &str| -> Labels { [("app".to_owned(), text.to_owned())].into() };
        let policy = read(json!({"podSelector": {}, "ingress": [{"from": [
            {"podSelector": {"matchLabels": {"app": "a"}}},
            {"namespaceSelector": {"matchLabels": {"app": "n"}}},
        ]}]}));
        let terms = policy.ingress.unwrap().remove(0).peers.unwrap().terms;
        let selects = |namespace: &str, of_namespace: &str, of_pod: &str| {
            let has = |term: &&Term| term.has_namespace(namespace, &labels(of_namespace));
            terms.iter().filter(has).any(|term| term.pods.matches(&labels(of_pod)))
        };
        assert!(selects("shop", "x", "a"));
        assert!(!selects("other", "x", "a"));
        assert!(!selects("shop", "x", "b"));
        assert!(selects("other", "n", "b"));
    }

    #[test]
    fn ports_are_numbers_ranges_and_names() {
        let policy = read(json!({"podSelector": {}, "ingress": [{"ports": [
            {"port": 80}, {"port": 81, "protocol": "TCP"}, {"port": 90, "endPort": 99},
            {"protocol": "UDP"}, {"port": "web"}, {"port": "dns", "protocol": "UDP"},
        ]}]}));
        let ports = policy.ingress.unwrap().remove(0).ports.unwrap();
        let numbers = |protocol| ports.numbers[&protocol].iter().collect::<Vec<_>>();
        assert_eq!(numbers(Protocol::Tcp), [(80, 81), (90, 99)]);
        assert_eq!(numbers(Protocol::Udp), [(0, LAST_PORT)]);
        assert_eq!(ports.names, [(Protocol::Tcp, "web".into()), (Protocol::Udp, "dns".into())].into());
    }
}
