//! Pods want to be near to, or away from, other pods.
//!
//! Upstream: pkg/scheduler/framework/plugins/interpodaffinity

use std::sync::Arc;

use api::core::v1::Node;
use serde_json::Value;

use crate::cluster::{Change, Cluster, Kind};
use crate::configuration::args;
use crate::framework::{Filter, MAX_SCORE, Plugin, Refusal, Score};
use crate::pod::AffinityTerm;
use crate::tally::{Count, Namespaces, Wish, owned_id};
use crate::{NodeInfo, PodInfo};

pub struct InterPodAffinity(args::InterPodAffinity);

impl InterPodAffinity {
    pub fn make(args: Option<&Value>) -> Result<Arc<dyn Plugin>, String> {
        Ok(Arc::new(InterPodAffinity(args::inter_pod_affinity(args)?)))
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn ask(&self, pod: &PodInfo, cluster: &mut Cluster) {
        let required = pod.required_affinity.iter().chain(&pod.required_anti_affinity);
        let preferred = pod.preferred_affinity.iter().map(|(_, wanted)| wanted);
        cluster.ask(required.chain(preferred).map(|wanted| &wanted.question));
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let against = cluster.wishes(pod, |wish| wish == Wish::Away);
        let required = Required {
            pod,
            namespaces: cluster.namespaces(),
            against: against.map(|(id, _, count)| (id.to_owned(), count)).collect(),
            near: pod.required_affinity.iter().map(|wanted| cluster.answer(&wanted.question)).collect(),
            away: pod.required_anti_affinity.iter().map(|wanted| cluster.answer(&wanted.question)).collect(),
        };
        // Pods that are still to come to a node may have wishes too.
        let asks = !required.against.is_empty()
            || !required.near.is_empty()
            || !required.away.is_empty()
            || cluster.expects_to_keep_away();
        asks.then(|| Box::new(required) as Box<dyn Filter>)
    }

    fn score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let own = pod.preferred_affinity.iter();
        let mut wanted: Vec<(i64, Count)> =
            own.map(|(weight, wanted)| (*weight, cluster.answer(&wanted.question))).collect();
        if !self.0.ignore_preferred_terms_of_existing_pods || !wanted.is_empty() {
            let others = cluster.wishes(pod, |wish| wish != Wish::Away);
            wanted.extend(others.map(|(_, wish, count)| match wish {
                Wish::Prefers(weight) => (weight, count),
                Wish::Near | Wish::Away => (self.0.hard_pod_affinity_weight, count),
            }));
        }
        wanted.retain(|(weight, count)| *weight != 0 && count.total() != 0);
        (!wanted.is_empty()).then(|| Box::new(Preferred(wanted)) as Box<dyn Score>)
    }

    fn events(&self) -> &'static [Kind] {
        &[
            Kind::NodeAdded,
            Kind::NodeUpdated,
            Kind::PodPlaced,
            Kind::PodUpdated,
            Kind::PodGone,
            Kind::PodItself,
        ]
    }

    // Upstream: plugin.go isSchedulableAfterPodChange, isSchedulableAfterNodeChange
    fn may_help(&self, pod: &PodInfo, change: &Change) -> bool {
        let near = |other: &PodInfo| all_match(pod.required_affinity.iter().map(|w| &*w.term), other);
        let away = |other: &PodInfo| all_match(pod.required_anti_affinity.iter().map(|w| &*w.term), other);
        let mut topologies = pod.required_affinity.iter().chain(&pod.required_anti_affinity);
        match change {
            Change::PodPlaced(other) => near(other),
            Change::PodUpdated { old, new } => (!near(old) && near(new)) || (away(old) && !away(new)),
            Change::PodGone(other) => {
                away(other) || all_match(other.required_anti_affinity.iter().map(|w| &*w.term), pod)
            }
            Change::NodeAdded(node) => {
                topologies.next().is_none() || topologies.any(|w| value(node, &w.term.topology_key).is_some())
            }
            Change::NodeUpdated { old, new } => {
                topologies.any(|w| value(old, &w.term.topology_key) != value(new, &w.term.topology_key))
            }
            change => matches!(change, Change::PodItself),
        }
    }
}

fn value<'a>(node: &'a Node, key: &str) -> Option<&'a String> {
    node.metadata.labels.as_ref()?.get(key)
}

/// Whether there are terms and all of them speak of the pod. Namespaces that a selector selects are not looked at:
/// one try too many does no harm.
fn all_match<'a>(mut terms: impl Iterator<Item = &'a AffinityTerm>, other: &PodInfo) -> bool {
    let matches = |term: &AffinityTerm| {
        use api::Object;
        (term.namespace_selector.is_some() || term.namespaces.contains(other.pod.namespace()))
            && term.selector.matches_map(crate::pod::labels(&other.pod))
    };
    terms.next().is_some_and(|first| matches(first) && terms.all(matches))
}

struct Required<'a> {
    pod: &'a PodInfo,
    namespaces: &'a Namespaces,
    /// Where pods are that do not want this one near, by what they say.
    against: Vec<(String, Count<'a>)>,
    /// Where pods are that match all of this pod's affinity, by the topology of each term.
    near: Vec<Count<'a>>,
    /// Where pods are that this one does not want near.
    away: Vec<Count<'a>>,
}

impl Required<'_> {
    fn near_enough(&self, node: &NodeInfo) -> bool {
        if !self.near.iter().all(|count| count.covers(node)) {
            return false;
        }
        if self.near.iter().all(|count| count.of(node) > 0) {
            return true;
        }
        // The first of a group that wants to be together has nobody to be near to.
        self.near.iter().all(|count| count.total() == 0)
            && self.pod.required_affinity.iter().all(|wanted| self.speaks_of(&wanted.term, self.pod))
    }

    fn speaks_of(&self, term: &AffinityTerm, pod: &PodInfo) -> bool {
        term.matches(&pod.pod, |name| self.namespaces.get(name))
    }
}

impl Filter for Required<'_> {
    // Upstream: filtering.go Filter
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        if !self.near_enough(node) {
            return Err(Refusal::unresolvable("node(s) didn't match pod affinity rules"));
        }
        if self.away.iter().any(|count| count.of(node) > 0) {
            return Err(Refusal::new("node(s) didn't match pod anti-affinity rules"));
        }
        if self.against.iter().any(|(_, count)| count.of(node) > 0) {
            return Err(Refusal::new("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }

    fn assume(&mut self, other: &PodInfo, node: &NodeInfo, by: i64) {
        for wanted in &other.required_anti_affinity {
            if !self.speaks_of(&wanted.term, self.pod) {
                continue;
            }
            let id = owned_id(Wish::Away, &wanted.term);
            let at = self.against.iter().position(|(known, _)| *known == id).unwrap_or_else(|| {
                self.against.push((id, Count::none(&wanted.term.topology_key)));
                self.against.len() - 1
            });
            self.against[at].1.add(node, by);
        }
        let own = &self.pod.required_affinity;
        if !own.is_empty() && own.iter().all(|wanted| self.speaks_of(&wanted.term, other)) {
            self.near.iter_mut().for_each(|count| count.add(node, by));
        }
        for at in 0..self.away.len() {
            if self.speaks_of(&self.pod.required_anti_affinity[at].term, other) {
                self.away[at].add(node, by);
            }
        }
    }
}

struct Preferred<'a>(Vec<(i64, Count<'a>)>);

impl Score for Preferred<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        self.0.iter().map(|(weight, count)| weight * count.of(node)).sum()
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        let min = scores.iter().copied().min().unwrap_or(0);
        let max = scores.iter().copied().max().unwrap_or(0);
        for score in scores {
            let share = if max == min { 0.0 } else { (*score - min) as f64 / (max - min) as f64 };
            *score = (MAX_SCORE as f64 * share) as i64;
        }
    }
}
