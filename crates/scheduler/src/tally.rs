//! [`Tallies`]: how many pods there are in each part of a topology, kept up to date as pods come and go.
//!
//! What a pod wants of other pods (to be near them, away from them, evenly spread among them) is a question of the
//! form: how many pods of this kind are in each zone, on each node? Pods of one workload ask the same, so each
//! question is counted once, when it is first asked, and from then on with every pod that is placed or leaves. A
//! pod that is scheduled reads the answer, however many pods and nodes there are. The other way round, the terms of
//! placed pods are counted by term, so that a waiting pod is compared with each distinct term once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::Object;
use api::core::v1::PodSpec;
use apimachinery::selector::{LabelSelector, Operator};

use crate::plugins::{node_matches, untolerated_by};
use crate::pod::{self, AffinityTerm, Labels};
use crate::{NodeInfo, PodInfo};

/// So many questions are kept; the one that was not asked for the longest time goes first.
const MAX_QUESTIONS: usize = 512;
/// The part of nodes that do not have the topology's label.
const NOWHERE: u32 = u32::MAX;

pub type Namespaces = BTreeMap<String, Labels>;

/// Which pods are counted, by what topology, on which nodes.
#[derive(Debug)]
pub struct Question {
    /// Equal for equal questions.
    id: Arc<str>,
    topology_key: String,
    who: Who,
    scope: Option<Scope>,
}

#[derive(Debug)]
enum Who {
    /// Pods that all of these terms speak of.
    Matching(Vec<Arc<AffinityTerm>>),
    /// Pods of a namespace that are to stay.
    Group { namespace: String, selector: LabelSelector },
}

/// The nodes that take part in spreading a pod.
#[derive(Clone, Debug)]
pub struct Scope {
    /// What of the pod's spec chooses nodes.
    pub spec: Box<PodSpec>,
    pub honor_affinity: bool,
    pub honor_taints: bool,
    /// Labels that a node must have.
    pub keys: Vec<String>,
}

impl Scope {
    fn includes(&self, info: &NodeInfo) -> bool {
        let Some(node) = &info.node else { return false };
        let tolerations = self.spec.tolerations.as_deref().unwrap_or_default();
        self.keys.iter().all(|key| info.labels().contains_key(key))
            && (!self.honor_affinity || node_matches(&self.spec, node))
            && (!self.honor_taints || untolerated_by(tolerations, info.taints()).is_none())
    }
}

impl Question {
    /// How many pods do all of these terms speak of, by the topology of one of them?
    pub fn matching(terms: Vec<Arc<AffinityTerm>>, topology_key: &str) -> Arc<Self> {
        let ids: Vec<&str> = terms.iter().map(|term| &*term.id).collect();
        let id = format!("{topology_key}|{}", ids.join("&")).into();
        let topology_key = topology_key.to_owned();
        Arc::new(Question { id, topology_key, who: Who::Matching(terms), scope: None })
    }

    /// How many pods of a group are there that stay, on the nodes of a scope?
    pub fn group(namespace: &str, selector: LabelSelector, topology_key: &str, scope: Scope) -> Arc<Self> {
        let spec = serde_json::to_string(&scope.spec).unwrap_or_default();
        let Scope { honor_affinity, honor_taints, keys, .. } = &scope;
        let which = if selector.is_nothing() { "!".into() } else { selector.to_string() };
        let id = format!("{topology_key}|{namespace}|{which}|{honor_affinity}{honor_taints}{keys:?}{spec}");
        Arc::new(Question {
            id: id.into(),
            topology_key: topology_key.to_owned(),
            who: Who::Group { namespace: namespace.to_owned(), selector },
            scope: Some(scope),
        })
    }

    fn counts(&self, pod: &PodInfo, namespaces: &Namespaces) -> bool {
        match &self.who {
            Who::Matching(terms) => {
                terms.iter().all(|term| term.matches(&pod.pod, |name| namespaces.get(name)))
            }
            Who::Group { .. } => self.counts_in_group(pod),
        }
    }

    /// Whether the pod is one of the group that is asked for.
    pub fn counts_in_group(&self, pod: &PodInfo) -> bool {
        let Who::Group { namespace, selector } = &self.who else { return false };
        !pod.is_deleting() && pod.pod.namespace() == namespace && selector.matches_map(pod::labels(&pod.pod))
    }

    /// Whether such labels are meant, whatever else the pod is.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.selector().is_some_and(|selector| selector.matches_map(labels))
    }

    fn selector(&self) -> Option<&LabelSelector> {
        match &self.who {
            Who::Matching(terms) => terms.first().map(|term| &term.selector),
            Who::Group { selector, .. } => Some(selector),
        }
    }

    fn asks_namespaces(&self) -> bool {
        matches!(&self.who, Who::Matching(terms) if terms.iter().any(|t| t.namespace_selector.is_some()))
    }
}

/// The parts of a topology: which value of its label each node has.
#[derive(Default)]
struct Topology {
    /// By the node's index.
    part_of: Vec<u32>,
    parts: HashMap<String, u32>,
    /// How many nodes each part has.
    nodes: Vec<u32>,
    free: Vec<u32>,
    /// How many tallies are by this topology.
    users: usize,
}

impl Topology {
    fn join(&mut self, at: usize, value: Option<&String>) {
        if self.part_of.len() <= at {
            self.part_of.resize(at + 1, NOWHERE);
        }
        self.part_of[at] = match value {
            None => NOWHERE,
            Some(value) => match self.parts.get(value) {
                Some(part) => *part,
                None => {
                    let part = self.free.pop().unwrap_or_else(|| {
                        self.nodes.push(0);
                        (self.nodes.len() - 1) as u32
                    });
                    self.parts.insert(value.clone(), part);
                    part
                }
            },
        };
        if self.part_of[at] != NOWHERE {
            self.nodes[self.part_of[at] as usize] += 1;
        }
    }

    fn leave(&mut self, at: usize, value: Option<&String>) {
        let part = std::mem::replace(&mut self.part_of[at], NOWHERE);
        let Some(value) = value.filter(|_| part != NOWHERE) else { return };
        self.nodes[part as usize] -= 1;
        if self.nodes[part as usize] == 0 {
            self.parts.remove(value);
            self.free.push(part);
        }
    }

    fn part(&self, at: usize) -> u32 {
        self.part_of.get(at).copied().unwrap_or(NOWHERE)
    }
}

/// Counts by part.
#[derive(Default)]
struct Tally {
    counts: Vec<i32>,
    total: i64,
}

impl Tally {
    fn of(&self, part: u32) -> i64 {
        self.counts.get(part as usize).copied().map_or(0, i64::from)
    }

    fn add(&mut self, part: u32, by: i32) {
        if part == NOWHERE {
            return;
        }
        if self.counts.len() <= part as usize {
            self.counts.resize(part as usize + 1, 0);
        }
        self.counts[part as usize] += by;
        self.total += i64::from(by);
    }
}

/// The answer to a question.
struct Answer {
    question: Arc<Question>,
    tally: Tally,
    scoped: Scoped,
    asked: u64,
}

/// What spreading has to know beside the counts.
#[derive(Default)]
struct Scoped {
    /// The nodes of the scope, by index.
    included: Vec<bool>,
    /// How many of them each part has.
    nodes: Vec<u32>,
    /// How many parts have how many pods.
    spread: BTreeMap<i64, usize>,
}

impl Scoped {
    fn includes(&self, at: usize) -> bool {
        self.included.get(at).copied().unwrap_or(false)
    }

    fn has(&self, part: u32) -> bool {
        self.nodes.get(part as usize).is_some_and(|nodes| *nodes > 0)
    }

    fn move_part(&mut self, from: Option<i64>, to: Option<i64>) {
        if let Some(count) = from
            && let Some(parts) = self.spread.get_mut(&count)
        {
            *parts -= 1;
            if *parts == 0 {
                self.spread.remove(&count);
            }
        }
        if let Some(count) = to {
            *self.spread.entry(count).or_default() += 1;
        }
    }
}

impl Answer {
    fn join(&mut self, at: usize, part: u32, info: &NodeInfo) {
        let Some(scope) = &self.question.scope else { return };
        if self.scoped.included.len() <= at {
            self.scoped.included.resize(at + 1, false);
        }
        self.scoped.included[at] = part != NOWHERE && scope.includes(info);
        if !self.scoped.included[at] {
            return;
        }
        if self.scoped.nodes.len() <= part as usize {
            self.scoped.nodes.resize(part as usize + 1, 0);
        }
        self.scoped.nodes[part as usize] += 1;
        if self.scoped.nodes[part as usize] == 1 {
            self.scoped.move_part(None, Some(self.tally.of(part)));
        }
    }

    fn leave(&mut self, at: usize, part: u32) {
        if !self.scoped.includes(at) {
            return;
        }
        self.scoped.included[at] = false;
        self.scoped.nodes[part as usize] -= 1;
        if self.scoped.nodes[part as usize] == 0 {
            self.scoped.move_part(Some(self.tally.of(part)), None);
        }
    }

    fn add(&mut self, at: usize, part: u32, by: i32) {
        if self.question.scope.is_some() {
            if !self.scoped.includes(at) {
                return;
            }
            let count = self.tally.of(part);
            self.scoped.move_part(Some(count), Some(count + i64::from(by)));
        }
        self.tally.add(part, by);
    }
}

/// What a placed pod wants of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wish {
    Away,
    Near,
    /// With a weight, which is negative for staying away.
    Prefers(i64),
}

/// One term, and where the pods are that have it.
struct Owned {
    id: Arc<str>,
    wish: Wish,
    term: Arc<AffinityTerm>,
    tally: Tally,
    owners: usize,
}

/// Numbers of what has a label selector, by one label that it needs.
#[derive(Default)]
struct ByLabel {
    by: HashMap<String, HashMap<String, Vec<usize>>>,
    rest: Vec<usize>,
}

impl ByLabel {
    fn place(&mut self, selector: Option<&LabelSelector>) -> &mut Vec<usize> {
        let equals = |operator| matches!(operator, Operator::Equals | Operator::DoubleEquals | Operator::In);
        let needs = selector.into_iter().flat_map(|selector| selector.requirements());
        let mut needs = needs.filter(|need| equals(need.operator()) && need.values().len() == 1);
        match needs.next() {
            Some(need) => {
                let values = self.by.entry(need.key().to_owned()).or_default();
                values.entry(need.values()[0].clone()).or_default()
            }
            None => &mut self.rest,
        }
    }

    fn insert(&mut self, selector: Option<&LabelSelector>, number: usize) {
        self.place(selector).push(number);
    }

    fn remove(&mut self, selector: Option<&LabelSelector>, number: usize) {
        self.place(selector).retain(|other| *other != number);
        self.by.retain(|_, values| {
            values.retain(|_, numbers| !numbers.is_empty());
            !values.is_empty()
        });
    }

    /// All whose selector may match the labels.
    fn candidates<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = usize> + 'a {
        let by_label = labels.iter().filter_map(|(key, value)| self.by.get(key)?.get(value));
        by_label.flatten().chain(&self.rest).copied()
    }
}

/// Things by number and by id.
struct Slots<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
    numbers: HashMap<Arc<str>, usize>,
    by_label: ByLabel,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots { slots: Vec::new(), free: Vec::new(), numbers: HashMap::new(), by_label: ByLabel::default() }
    }
}

impl<T> Slots<T> {
    fn get(&self, id: &str) -> Option<&T> {
        self.slots[*self.numbers.get(id)?].as_ref()
    }

    fn get_mut(&mut self, id: &str) -> Option<&mut T> {
        self.slots[*self.numbers.get(id)?].as_mut()
    }

    fn insert(&mut self, id: Arc<str>, selector: Option<&LabelSelector>, item: T) {
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.numbers.insert(id, number);
        self.by_label.insert(selector, number);
        self.slots[number] = Some(item);
    }

    fn remove(&mut self, id: &str, selector: Option<&LabelSelector>) {
        let Some(number) = self.numbers.remove(id) else { return };
        self.by_label.remove(selector, number);
        self.slots[number] = None;
        self.free.push(number);
    }

    fn all(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().flatten()
    }
}

#[derive(Default)]
pub struct Tallies {
    topologies: HashMap<String, Topology>,
    answers: Slots<Answer>,
    owned: Slots<Owned>,
    asked: u64,
}

impl Tallies {
    /// Makes sure that the question's answer is there.
    pub fn ask(&mut self, question: &Arc<Question>, nodes: &[NodeInfo], namespaces: &Namespaces) {
        self.asked += 1;
        if let Some(answer) = self.answers.get_mut(&question.id) {
            answer.asked = self.asked;
            return;
        }
        let topology = topology(&mut self.topologies, &question.topology_key, nodes);
        let mut answer = Answer {
            question: question.clone(),
            tally: Tally::default(),
            scoped: Scoped::default(),
            asked: self.asked,
        };
        for (at, node) in nodes.iter().enumerate() {
            answer.join(at, topology.part(at), node);
            let count = node.pods.iter().filter(|pod| question.counts(pod, namespaces)).count();
            if count > 0 {
                answer.add(at, topology.part(at), count as i32);
            }
        }
        self.answers.insert(question.id.clone(), question.selector(), answer);
    }

    /// Forgets the answers that were not asked for in the longest time; those asked for since `since` stay.
    pub fn trim(&mut self, since: u64) {
        while self.answers.numbers.len() > MAX_QUESTIONS {
            let oldest = self.answers.all().filter(|a| a.asked <= since).min_by_key(|answer| answer.asked);
            let Some(question) = oldest.map(|answer| answer.question.clone()) else { return };
            self.forget(&question);
        }
    }

    #[cfg(test)]
    pub fn questions(&self) -> usize {
        self.answers.numbers.len()
    }

    /// How many questions were asked so far, for [`Tallies::trim`].
    pub fn asked(&self) -> u64 {
        self.asked
    }

    fn forget(&mut self, question: &Question) {
        self.answers.remove(&question.id, question.selector());
        release(&mut self.topologies, &question.topology_key);
    }

    /// The labels of a namespace changed: what depends on them is counted anew when it is asked for again.
    pub fn namespace_changed(&mut self) {
        let stale = self.answers.all().filter(|answer| answer.question.asks_namespaces());
        for question in stale.map(|answer| answer.question.clone()).collect::<Vec<_>>() {
            self.forget(&question);
        }
    }

    /// A pod came to a node (`by` 1) or left it (-1).
    pub fn count(&mut self, pod: &PodInfo, at: usize, by: i32, nodes: &[NodeInfo], namespaces: &Namespaces) {
        for number in self.answers.by_label.candidates(pod::labels(&pod.pod)) {
            let Some(answer) = &mut self.answers.slots[number] else { continue };
            if answer.question.counts(pod, namespaces) {
                let part = self.topologies.get(&answer.question.topology_key).map(|t| t.part(at));
                answer.add(at, part.unwrap_or(NOWHERE), by);
            }
        }
        for (wish, term) in pod.wishes() {
            let id = owned_id(wish, term);
            if self.owned.get(&id).is_none() {
                topology(&mut self.topologies, &term.topology_key, nodes);
                let id: Arc<str> = id.as_str().into();
                let owned =
                    Owned { id: id.clone(), wish, term: term.clone(), tally: Tally::default(), owners: 0 };
                self.owned.insert(id, Some(&term.selector), owned);
            }
            let Some(owned) = self.owned.get_mut(&id) else { continue };
            let part = self.topologies.get(&term.topology_key).map(|t| t.part(at));
            owned.tally.add(part.unwrap_or(NOWHERE), by);
            owned.owners = owned.owners.saturating_add_signed(by as isize);
            if owned.owners == 0 {
                self.owned.remove(&id, Some(&term.selector));
                release(&mut self.topologies, &term.topology_key);
            }
        }
    }

    /// A node is there, without its pods.
    pub fn join(&mut self, at: usize, info: &NodeInfo) {
        for (key, topology) in &mut self.topologies {
            topology.join(at, info.labels().get(key));
        }
        for answer in self.answers.slots.iter_mut().flatten() {
            let part = self.topologies.get(&answer.question.topology_key).map(|t| t.part(at));
            answer.join(at, part.unwrap_or(NOWHERE), info);
        }
    }

    /// A node goes, after its pods.
    pub fn leave(&mut self, at: usize, info: &NodeInfo) {
        for answer in self.answers.slots.iter_mut().flatten() {
            let part = self.topologies.get(&answer.question.topology_key).map(|t| t.part(at));
            answer.leave(at, part.unwrap_or(NOWHERE));
        }
        for (key, topology) in &mut self.topologies {
            topology.leave(at, info.labels().get(key));
        }
    }

    /// The last of `nodes` nodes takes the place of one that is gone.
    pub fn swap_remove(&mut self, at: usize, nodes: usize) {
        for topology in self.topologies.values_mut() {
            topology.part_of.resize(nodes, NOWHERE);
            topology.part_of.swap_remove(at);
        }
        for answer in self.answers.slots.iter_mut().flatten().filter(|a| a.question.scope.is_some()) {
            answer.scoped.included.resize(nodes, false);
            answer.scoped.included.swap_remove(at);
        }
    }

    /// The answer to a question that was asked.
    pub fn answer(&self, question: &Question) -> Count<'_> {
        let answer = self.answers.get(&question.id);
        Count {
            key: question.topology_key.clone(),
            topology: self.topologies.get(&question.topology_key),
            tally: answer.map(|answer| &answer.tally),
            scoped: answer.map(|answer| &answer.scoped),
            extra: Vec::new(),
        }
    }

    /// The wishes of placed pods that speak of this one.
    pub fn wishes<'a>(
        &'a self,
        pod: &'a PodInfo,
        namespaces: &'a Namespaces,
        which: impl Fn(Wish) -> bool + 'a,
    ) -> impl Iterator<Item = (&'a str, Wish, Count<'a>)> + 'a {
        let candidates = self.owned.by_label.candidates(pod::labels(&pod.pod));
        let owned = candidates.filter_map(|number| self.owned.slots[number].as_ref());
        let owned = owned.filter(move |owned| {
            which(owned.wish) && owned.term.matches(&pod.pod, |name| namespaces.get(name))
        });
        owned.map(|owned| {
            let count = Count {
                key: owned.term.topology_key.clone(),
                topology: self.topologies.get(&owned.term.topology_key),
                tally: Some(&owned.tally),
                scoped: None,
                extra: Vec::new(),
            };
            (&*owned.id, owned.wish, count)
        })
    }
}

pub fn owned_id(wish: Wish, term: &AffinityTerm) -> String {
    format!("{wish:?}|{}|{}", term.topology_key, term.id)
}

fn topology<'a>(
    topologies: &'a mut HashMap<String, Topology>,
    key: &str,
    nodes: &[NodeInfo],
) -> &'a mut Topology {
    let topology = topologies.entry(key.to_owned()).or_insert_with(|| {
        let mut topology = Topology::default();
        for (at, node) in nodes.iter().enumerate() {
            topology.join(at, node.labels().get(key));
        }
        topology
    });
    topology.users += 1;
    topology
}

fn release(topologies: &mut HashMap<String, Topology>, key: &str) {
    if let Some(topology) = topologies.get_mut(key) {
        topology.users -= 1;
        if topology.users == 0 {
            topologies.remove(key);
        }
    }
}

/// Counts by the parts of a topology, as they are or as they would be.
pub struct Count<'a> {
    key: String,
    topology: Option<&'a Topology>,
    tally: Option<&'a Tally>,
    scoped: Option<&'a Scoped>,
    /// What would be different, by the value of the label.
    extra: Vec<(String, i64)>,
}

impl Count<'_> {
    /// A count of nothing, for what would be.
    pub fn none(key: &str) -> Self {
        Count { key: key.to_owned(), topology: None, tally: None, scoped: None, extra: Vec::new() }
    }

    fn part(&self, node: &NodeInfo) -> u32 {
        self.topology.map_or(NOWHERE, |topology| topology.part(node.index))
    }

    /// Whether the node is in any part of the topology.
    pub fn covers(&self, node: &NodeInfo) -> bool {
        match self.topology {
            Some(topology) => topology.part(node.index) != NOWHERE,
            None => node.labels().contains_key(&self.key),
        }
    }

    /// The count of the part that the node is in.
    pub fn of(&self, node: &NodeInfo) -> i64 {
        let base = self.tally.map_or(0, |tally| tally.of(self.part(node)));
        if self.extra.is_empty() {
            return base;
        }
        let value = node.labels().get(&self.key);
        let extra = self.extra.iter().filter(|(other, _)| Some(other) == value).map(|(_, by)| by);
        base + extra.sum::<i64>()
    }

    /// All parts together.
    pub fn total(&self) -> i64 {
        self.tally.map_or(0, |tally| tally.total) + self.extra.iter().map(|(_, by)| by).sum::<i64>()
    }

    /// What if there were so many more on the node?
    pub fn add(&mut self, node: &NodeInfo, by: i64) {
        let Some(value) = node.labels().get(&self.key) else { return };
        match self.extra.iter_mut().find(|(other, _)| other == value) {
            Some((_, sum)) => *sum += by,
            None => self.extra.push((value.clone(), by)),
        }
        self.extra.retain(|(_, sum)| *sum != 0);
    }

    /// Whether the node takes part in what is counted.
    pub fn includes(&self, node: &NodeInfo) -> bool {
        self.scoped.is_some_and(|scoped| scoped.includes(node.index))
    }

    /// How many parts have nodes of the scope.
    pub fn parts(&self) -> usize {
        self.scoped.map_or(0, |scoped| scoped.spread.values().sum())
    }

    /// The least that any part has that has nodes of the scope.
    pub fn least(&self) -> i64 {
        let Some(scoped) = self.scoped else { return 0 };
        let mut spread = scoped.spread.iter();
        if self.extra.is_empty() {
            return spread.next().map_or(0, |(count, _)| *count);
        }
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for (value, by) in &self.extra {
            let part = self.topology.and_then(|topology| topology.parts.get(value)).copied();
            if let (Some(part), Some(tally)) = (part.filter(|part| scoped.has(*part)), self.tally) {
                gone.push(tally.of(part));
                come.push(tally.of(part) + by);
            }
        }
        let stays = |(count, parts): &(&i64, &usize)| **parts > gone.iter().filter(|g| g == count).count();
        let kept = spread.find(stays).map(|(count, _)| *count);
        kept.into_iter().chain(come).min().unwrap_or(0)
    }

    /// How many different parts these nodes are in; those that are in none count as one.
    pub fn parts_among(&self, nodes: &[&NodeInfo]) -> usize {
        let known = self.topology.map_or(0, |topology| topology.nodes.len());
        let mut seen = vec![false; known + 1];
        nodes.iter().for_each(|node| seen[(self.part(node) as usize).min(known)] = true);
        seen.into_iter().filter(|seen| *seen).count()
    }
}

#[cfg(test)]
mod tests;
