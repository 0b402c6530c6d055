//! The decider: what pods, namespaces and policies there are, to the chains, sets and elements that the table needs.
//!
//! [`Cluster`] is told what is there and [`settles`](Cluster::settle) what that changes. The path: policies that
//! select pods of this node ([`isolation`](Cluster::isolation_of)) are in use; their rules name sets; sets select
//! pods; pods put elements into sets and maps. Each step is a function of what is known, taken anew only for what
//! a change touches, so that one pod of ten thousand costs its own elements.
//!
//! What always holds: the outcome depends on what is there, not on the way there, but for the numbers in names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use linux::nft::{Claims, Protocol, Steps};

use crate::object::{NamedPort, PodFacts, Resolver};
use crate::policy::{Direction, Labels, Policy, Rule, Selector, Term};
use crate::table::{self, Chain, Change, SetKind};

/// A pod as policies see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `None` when nobody knows any more what it was, while its network is still there: nothing is let through.
    pub facts: Option<Arc<PodFacts>>,
    pub addresses: Vec<IpAddr>,
    /// It is on this node: policies that select it hold here.
    pub is_subject: bool,
    /// Rules that select it let it through.
    pub is_peer: bool,
}

/// What a set holds: the same for all policies that mean the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// Addresses of pods.
    Pods(BTreeSet<Term>),
    /// Addresses of pods, each with its ports of those names.
    Ports { of: BTreeSet<Term>, names: BTreeSet<(Protocol, String)>, only_subjects: bool },
}

impl Set {
    fn terms(&self) -> &BTreeSet<Term> {
        match self {
            Set::Pods(terms) | Set::Ports { of: terms, .. } => terms,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    Address(IpAddr),
    Port(IpAddr, Protocol, u16),
}

/// Something in a set or map of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// In a [`Set`], by its number.
    Member(u32, Member),
    /// Policies hold for this address: to a [`Value::Chain`].
    Isolated(Direction, IpAddr),
    /// A pod reaches itself, whatever policies say.
    Itself(IpAddr),
    /// The pod's policies let it ask the cluster's DNS.
    Resolves(IpAddr, Protocol),
    /// The cluster's DNS.
    Resolver(IpAddr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    Present,
    /// The number of the chain that the pods of the same policies share.
    Chain(u32),
}

/// Numbers for what has long names. A number is not given again.
#[derive(Debug)]
struct Numbers<K> {
    given: BTreeMap<K, u32>,
    last: u32,
}

impl<K> Default for Numbers<K> {
    fn default() -> Self {
        Numbers { given: BTreeMap::new(), last: 0 }
    }
}

impl<K: Ord + Clone> Numbers<K> {
    fn of(&mut self, key: &K) -> u32 {
        if let Some(number) = self.given.get(key) {
            return *number;
        }
        self.last += 1;
        self.given.insert(key.clone(), self.last);
        self.last
    }

    fn release(&mut self, key: &K) -> Option<u32> {
        self.given.remove(key)
    }
}

/// The numbers of the policies that select a pod, in each direction; `None` where none does.
type Isolation = [Option<Vec<u32>>; 2];

/// A policy's chain in one direction.
#[derive(Debug, PartialEq, Eq)]
struct Compiled {
    body: Arc<table::Body>,
    sets: BTreeSet<Set>,
}

#[derive(Debug, Default)]
struct Dirty {
    /// Whose elements may have changed.
    pods: BTreeSet<u32>,
    /// Whose policies may have changed.
    subjects: BTreeSet<u32>,
    policies: BTreeSet<u32>,
}

/// The owner of the elements that are no pod's.
const NOBODY: u32 = 0;

#[derive(Debug, Default)]
pub struct Cluster {
    namespaces: BTreeMap<String, Labels>,
    pod_numbers: Numbers<String>,
    pods: BTreeMap<u32, Pod>,
    pods_of: BTreeMap<String, BTreeSet<u32>>,
    policy_numbers: Numbers<String>,
    /// With their names.
    policies: BTreeMap<u32, (String, Arc<Policy>)>,
    policies_of: BTreeMap<String, BTreeSet<u32>>,
    resolver: Option<Resolver>,

    isolation: BTreeMap<u32, Isolation>,
    /// How many pods lead to each chain of pods, and its number.
    profiles: BTreeMap<(Direction, Vec<u32>), (usize, u32)>,
    last_profile: u32,
    compiled: BTreeMap<(Direction, u32), Compiled>,
    set_numbers: Numbers<Set>,
    /// The sets in use, by number.
    sets: BTreeMap<u32, Set>,
    /// By namespace: the sets that may hold pods of it, and which pods those are.
    candidates: BTreeMap<String, BTreeMap<u32, Vec<Selector>>>,
    claims: Claims<u32, Element, Value>,
    chains: BTreeMap<Chain, Arc<table::Body>>,
    dirty: Dirty,
}

impl Cluster {
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        let before = match labels {
            Some(labels) if self.namespaces.get(name) == Some(&labels) => return,
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
        if before.as_ref() == self.namespaces.get(name) {
            return;
        }
        self.candidates.remove(name);
        self.dirty.pods.extend(self.pods_of.get(name).into_iter().flatten());
        if self.resolver.as_ref().is_some_and(|resolver| resolver.namespace == name) {
            self.dirty.pods.extend(self.isolation.keys());
        }
    }

    /// `name` tells the pod from all others, whatever it is.
    pub fn set_pod(&mut self, name: &str, pod: Option<Pod>) {
        let name = name.to_owned();
        let Some(pod) = pod else {
            if let Some(number) = self.pod_numbers.release(&name) {
                self.forget_pod(number);
            }
            return;
        };
        let number = self.pod_numbers.of(&name);
        if self.pods.get(&number) == Some(&pod) {
            return;
        }
        self.forget_pod(number);
        if let Some(facts) = &pod.facts {
            self.pods_of.entry(facts.namespace.clone()).or_default().insert(number);
        }
        self.pods.insert(number, pod);
    }

    fn forget_pod(&mut self, number: u32) {
        if let Some(pod) = self.pods.remove(&number)
            && let Some(facts) = &pod.facts
        {
            remove_from(&mut self.pods_of, &facts.namespace, number);
        }
        self.dirty.pods.insert(number);
        self.dirty.subjects.insert(number);
    }

    pub fn set_policy(&mut self, name: &str, policy: Option<Arc<Policy>>) {
        let name = name.to_owned();
        let number = match &policy {
            Some(_) => self.policy_numbers.of(&name),
            None => match self.policy_numbers.release(&name) {
                Some(number) => number,
                None => return,
            },
        };
        if let Some((_, before)) = self.policies.remove(&number) {
            remove_from(&mut self.policies_of, &before.namespace, number);
            self.dirty.subjects.extend(self.pods_of.get(&*before.namespace).into_iter().flatten());
        }
        if let Some(policy) = policy {
            self.policies_of.entry(policy.namespace.to_string()).or_default().insert(number);
            self.dirty.subjects.extend(self.pods_of.get(&*policy.namespace).into_iter().flatten());
            self.policies.insert(number, (name, policy));
        }
        self.dirty.policies.insert(number);
    }

    pub fn set_resolver(&mut self, resolver: Option<Resolver>) {
        if self.resolver != resolver {
            let addresses = resolver.iter().flat_map(|resolver| resolver.addresses.clone());
            let elements = addresses.map(|address| (Element::Resolver(address), Value::Present)).collect();
            self.claims.set(&NOBODY, elements);
            self.resolver = resolver;
            self.dirty.pods.extend(self.isolation.keys());
        }
    }

    /// How many pods of this node policies hold for.
    pub fn isolated(&self) -> usize {
        self.isolation.len()
    }

    /// What all that was said since the last call changes in the table.
    pub fn settle(&mut self) -> Change {
        let mut dirty = std::mem::take(&mut self.dirty);
        self.settle_isolation(&mut dirty);
        let chains = std::mem::take(&mut self.chains);
        self.settle_policies(&dirty.policies);
        let (added_sets, removed_sets) = self.settle_sets(&mut dirty.pods);
        for number in dirty.pods {
            let elements = self.elements_of(number);
            self.claims.set(&number, elements);
        }
        self.chains = self.chains();
        let added_chains = self.chains.iter().filter(|(chain, body)| chains.get(chain) != Some(body));
        let added_chains: BTreeMap<_, _> = added_chains.map(|(chain, body)| (*chain, body.clone())).collect();
        let difference = self.claims.settle();
        Change {
            has_new_rules: added_chains.keys().any(|chain| chains.contains_key(chain)),
            added_sets,
            added_chains,
            removed: difference.removed,
            added: difference.added,
            removed_chains: chains.into_keys().filter(|chain| !self.chains.contains_key(chain)).collect(),
            removed_sets,
        }
    }

    /// The whole table anew, in place of whatever is there.
    pub fn text(&self) -> String {
        table::frame() + &self.whole().text()
    }

    /// The same where no table is yet: until the elements come, no policy holds either way.
    pub fn steps(&self) -> Steps {
        let steps = self.whole().steps();
        Steps { before: table::frame() + &steps.before, ..steps }
    }

    fn whole(&self) -> Change {
        Change {
            added_sets: self.sets.iter().map(|(number, set)| (*number, set.into())).collect(),
            added_chains: self.chains.clone(),
            added: self.claims.elements().map(|(element, value)| (*element, *value)).collect(),
            ..Change::default()
        }
    }

    fn settle_isolation(&mut self, dirty: &mut Dirty) {
        for number in &dirty.subjects {
            let after = self.isolation_of(*number);
            let before = self.isolation.get(number).cloned().unwrap_or_default();
            // A policy that changed may let the pod ask the DNS, or no longer, and otherwise is a matter of its chain.
            let is_ruled_anew =
                after.iter().flatten().flatten().any(|policy| dirty.policies.contains(policy));
            if before != after || is_ruled_anew {
                dirty.pods.insert(*number);
            }
            if before == after {
                continue;
            }
            for (direction, policies) in profiles(after.clone()) {
                let number = &mut self.last_profile;
                let profile = self.profiles.entry((direction, policies)).or_insert_with(|| {
                    *number += 1;
                    (0, *number)
                });
                profile.0 += 1;
            }
            for profile in profiles(before) {
                if let Some((users, _)) = self.profiles.get_mut(&profile) {
                    *users -= 1;
                    if *users == 0 {
                        self.profiles.remove(&profile);
                    }
                }
            }
            match after {
                [None, None] => drop(self.isolation.remove(number)),
                after => drop(self.isolation.insert(*number, after)),
            }
        }
    }

    fn isolation_of(&self, number: u32) -> Isolation {
        let Some(pod) = self.pods.get(&number).filter(|pod| pod.is_subject) else { return [None, None] };
        let Some(facts) = &pod.facts else { return [Some(Vec::new()), Some(Vec::new())] };
        let policies = self.policies_of.get(&facts.namespace).into_iter().flatten();
        let selects = |number: &&u32| self.policies[number].1.pods.matches(&facts.labels);
        let selecting: Vec<u32> = policies.filter(selects).copied().collect();
        Direction::BOTH.map(|direction| {
            let rules = |number: &&u32| self.policies[number].1.rules(direction).is_some();
            let of_direction: Vec<u32> = selecting.iter().filter(rules).copied().collect();
            (!of_direction.is_empty()).then_some(of_direction)
        })
    }

    /// Compiles the policies that came into use or changed, and forgets those out of use.
    fn settle_policies(&mut self, changed: &BTreeSet<u32>) {
        let used: BTreeSet<(Direction, u32)> = self
            .profiles
            .keys()
            .flat_map(|(direction, policies)| policies.iter().map(|policy| (*direction, *policy)))
            .collect();
        self.compiled.retain(|key, _| used.contains(key) && !changed.contains(&key.1));
        for key in used {
            if self.compiled.contains_key(&key) {
                continue;
            }
            let Some((name, policy)) = self.policies.get(&key.1) else { continue };
            let mut sets = BTreeSet::new();
            let rules = table::rules(policy, key.0, &mut |set| {
                let number = self.set_numbers.of(&set);
                sets.insert(set);
                number
            });
            let body = Arc::new(table::Body { comment: name.clone(), rules });
            self.compiled.insert(key, Compiled { body, sets });
        }
    }

    /// Brings the sets to what the compiled policies name. Pods that come into new sets or were in removed ones
    /// are added to `dirty`.
    fn settle_sets(&mut self, dirty: &mut BTreeSet<u32>) -> (BTreeMap<u32, SetKind>, BTreeMap<u32, SetKind>) {
        let named = self.compiled.values().flat_map(|compiled| &compiled.sets);
        let wanted: BTreeMap<u32, &Set> = named.map(|set| (self.set_numbers.given[set], set)).collect();
        let gone = self.sets.iter().filter(|(number, _)| !wanted.contains_key(number));
        let gone: BTreeMap<u32, SetKind> = gone.map(|(number, set)| (*number, set.into())).collect();
        let new: BTreeMap<u32, Set> = wanted
            .into_iter()
            .filter(|(number, _)| !self.sets.contains_key(number))
            .map(|(number, set)| (number, set.clone()))
            .collect();
        for number in gone.keys() {
            let first = Element::Member(*number, Member::Address(IpAddr::from([0, 0, 0, 0])));
            let end = Element::Member(number + 1, Member::Address(IpAddr::from([0, 0, 0, 0])));
            dirty.extend(self.claims.owners_in(first..end));
            if let Some(set) = self.sets.remove(number) {
                self.set_numbers.release(&set);
            }
            self.candidates.values_mut().for_each(|sets| drop(sets.remove(number)));
        }
        for (namespace, pods) in &self.pods_of {
            if new.is_empty() {
                break;
            }
            let labels = self.namespaces.get(namespace);
            for (number, set) in &new {
                let Some(selectors) = selectors(set, namespace, labels) else { continue };
                let is_in = |pod: &&u32| has_pod(&selectors, &self.pods[pod]);
                dirty.extend(pods.iter().filter(is_in));
                if let Some(sets) = self.candidates.get_mut(namespace) {
                    sets.insert(*number, selectors);
                }
            }
        }
        // A namespace that has no pods now is looked at when it gets some.
        self.candidates.retain(|namespace, _| self.pods_of.contains_key(namespace));
        let added = new.iter().map(|(number, set)| (*number, set.into())).collect();
        self.sets.extend(new);
        (added, gone)
    }

    fn elements_of(&mut self, number: u32) -> BTreeMap<Element, Value> {
        let mut elements = BTreeMap::new();
        let Some(pod) = self.pods.get(&number) else { return elements };
        if let Some(facts) = &pod.facts {
            let (sets, namespaces) = (&self.sets, &self.namespaces);
            let candidates = self.candidates.entry(facts.namespace.clone()).or_insert_with(|| {
                let labels = namespaces.get(&facts.namespace);
                let of =
                    |(number, set): (&u32, &Set)| Some((*number, selectors(set, &facts.namespace, labels)?));
                sets.iter().filter_map(of).collect()
            });
            for (set, _) in candidates.iter().filter(|(_, selectors)| has_pod(selectors, pod)) {
                let members = members(&sets[set], pod, facts);
                elements.extend(members.map(|member| (Element::Member(*set, member), Value::Present)));
            }
        }
        let isolation = self.isolation.get(&number).cloned().unwrap_or_default();
        for (direction, policies) in profiles(isolation) {
            let resolved = match direction {
                Direction::Egress => self.resolved(&policies),
                Direction::Ingress => BTreeSet::new(),
            };
            let Some((_, chain)) = self.profiles.get(&(direction, policies)) else { continue };
            for address in &pod.addresses {
                elements.insert(Element::Isolated(direction, *address), Value::Chain(*chain));
                elements.insert(Element::Itself(*address), Value::Present);
                for protocol in &resolved {
                    elements.insert(Element::Resolves(*address, *protocol), Value::Present);
                }
            }
        }
        elements
    }

    /// By which protocols these policies let a pod reach the cluster's DNS.
    fn resolved(&self, policies: &[u32]) -> BTreeSet<Protocol> {
        let Some(resolver) = &self.resolver else { return BTreeSet::new() };
        let rules = policies
            .iter()
            .filter_map(|number| self.policies.get(number)?.1.rules(Direction::Egress))
            .flatten();
        let rules: Vec<&Rule> = rules.filter(|rule| self.has_resolver(rule, resolver)).collect();
        let is_open = |port: &&NamedPort| rules.iter().any(|rule| has_port(rule, port));
        resolver.ports.iter().filter(is_open).map(|port| port.protocol).collect()
    }

    fn has_resolver(&self, rule: &Rule, resolver: &Resolver) -> bool {
        let labels = self.namespaces.get(&resolver.namespace).cloned().unwrap_or_default();
        rule.peers.as_ref().is_none_or(|peers| {
            let selects = |term: &Term| {
                term.has_namespace(&resolver.namespace, &labels) && term.pods.matches(&resolver.labels)
            };
            peers.terms.iter().any(selects)
                || resolver.addresses.iter().any(|address| peers.blocks.contains(*address))
        })
    }

    fn chains(&self) -> BTreeMap<Chain, Arc<table::Body>> {
        let mut chains: BTreeMap<Chain, Arc<table::Body>> = BTreeMap::new();
        for ((direction, policy), compiled) in &self.compiled {
            chains.insert(Chain::Policy(*direction, *policy), compiled.body.clone());
        }
        for ((direction, policies), (_, number)) in &self.profiles {
            chains.insert(Chain::Pods(*direction, *number), Arc::new(table::pods_body(*direction, policies)));
        }
        chains
    }
}

fn has_port(rule: &Rule, port: &NamedPort) -> bool {
    rule.ports.as_ref().is_none_or(|ports| {
        let numbers = ports.numbers.get(&port.protocol);
        numbers.is_some_and(|ranges| ranges.contains(port.number.into()))
            || ports.names.contains(&(port.protocol, port.name.clone()))
    })
}

fn remove_from(of: &mut BTreeMap<String, BTreeSet<u32>>, namespace: &str, number: u32) {
    if let Some(numbers) = of.get_mut(namespace) {
        numbers.remove(&number);
        if numbers.is_empty() {
            of.remove(namespace);
        }
    }
}

fn profiles(isolation: Isolation) -> impl Iterator<Item = (Direction, Vec<u32>)> {
    Direction::BOTH
        .into_iter()
        .zip(isolation)
        .filter_map(|(direction, policies)| Some((direction, policies?)))
}

/// Which pods of a namespace are in a set; `None` when none can be.
fn selectors(set: &Set, namespace: &str, labels: Option<&Labels>) -> Option<Vec<Selector>> {
    let nothing = Labels::new();
    let labels = labels.unwrap_or(&nothing);
    let terms = set.terms().iter().filter(|term| term.has_namespace(namespace, labels));
    let selectors: Vec<Selector> = terms.map(|term| term.pods.clone()).collect();
    (!selectors.is_empty()).then_some(selectors)
}

fn has_pod(selectors: &[Selector], pod: &Pod) -> bool {
    pod.facts.as_ref().is_some_and(|facts| selectors.iter().any(|selector| selector.matches(&facts.labels)))
}

/// What a pod puts into a set that selects it.
fn members<'a>(set: &'a Set, pod: &'a Pod, facts: &'a PodFacts) -> Box<dyn Iterator<Item = Member> + 'a> {
    match set {
        Set::Pods(_) if pod.is_peer => {
            Box::new(pod.addresses.iter().map(|address| Member::Address(*address)))
        }
        Set::Ports { names, only_subjects, .. }
            if if *only_subjects { pod.is_subject } else { pod.is_peer } =>
        {
            let has_name = |port: &&NamedPort| names.contains(&(port.protocol, port.name.clone()));
            let ports = facts.ports.iter().filter(has_name);
            Box::new(ports.flat_map(|port| {
                pod.addresses.iter().map(|address| Member::Port(*address, port.protocol, port.number))
            }))
        }
        _ => Box::new(std::iter::empty()),
    }
}

#[cfg(test)]
mod tests;
