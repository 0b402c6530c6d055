//! Pods want to be near to, or away from, other pods.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use crate::cluster::{Change, Cluster};
use crate::configuration::args;
use crate::framework::{Filter, MAX_SCORE, Plugin, Refusal, Score};
use crate::pod::AffinityTerm;
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

    fn filter<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let asks = !pod.required_affinity.is_empty() || !pod.required_anti_affinity.is_empty();
        if !asks && !cluster.has_affinity_pods() {
            return None;
        }
        let mut required = Required {
            pod,
            cluster,
            against: Topology::default(),
            near: Topology::default(),
            away: Topology::default(),
        };
        for node in cluster.nodes() {
            for other in node.pods.iter().filter(|other| asks || !other.required_anti_affinity.is_empty()) {
                required.count(other, node, 1);
            }
        }
        Some(Box::new(required))
    }

    fn score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let own_only = self.0.ignore_preferred_terms_of_existing_pods;
        if pod.preferred_affinity.is_empty() && (own_only || !cluster.has_affinity_pods()) {
            return None;
        }
        let mut wanted = Topology::default();
        for node in cluster.nodes() {
            for other in &node.pods {
                for (weight, term) in &pod.preferred_affinity {
                    if matches(term, other, cluster) {
                        wanted.add(term, node, *weight);
                    }
                }
                if own_only {
                    continue;
                }
                for (weight, term) in &other.preferred_affinity {
                    if matches(term, pod, cluster) {
                        wanted.add(term, node, *weight);
                    }
                }
                for term in &other.required_affinity {
                    if matches(term, pod, cluster) {
                        wanted.add(term, node, self.0.hard_pod_affinity_weight);
                    }
                }
            }
        }
        (!wanted.0.is_empty()).then(|| Box::new(wanted) as Box<dyn Score>)
    }

    fn may_help(&self, _pod: &PodInfo, change: &Change) -> bool {
        !matches!(change, Change::NodeUpdated { old, new } if old.metadata.labels == new.metadata.labels)
    }
}

fn matches(term: &AffinityTerm, pod: &PodInfo, cluster: &Cluster) -> bool {
    term.matches(&pod.pod, |namespace| cluster.namespaces.get(namespace))
}

/// A count, or a sum of weights, for each part of each topology.
#[derive(Default)]
struct Topology(HashMap<String, HashMap<String, i64>>);

impl Topology {
    fn add(&mut self, term: &AffinityTerm, node: &NodeInfo, amount: i64) {
        let Some(value) = node.labels().get(&term.topology_key) else { return };
        *self.0.entry(term.topology_key.clone()).or_default().entry(value.clone()).or_default() += amount;
    }

    fn of(&self, key: &str, node: &NodeInfo) -> i64 {
        let parts = self.0.get(key).zip(node.labels().get(key));
        parts.and_then(|(parts, value)| parts.get(value)).copied().unwrap_or(0)
    }

    fn is_empty(&self) -> bool {
        self.0.values().all(|parts| parts.values().all(|count| *count == 0))
    }
}

struct Required<'a> {
    pod: &'a PodInfo,
    cluster: &'a Cluster,
    /// Where pods are that do not want this one near.
    against: Topology,
    /// Where pods are that match all of this pod's affinity.
    near: Topology,
    /// Where pods are that this one does not want near.
    away: Topology,
}

impl Required<'_> {
    fn count(&mut self, other: &PodInfo, node: &NodeInfo, count: i64) {
        for term in &other.required_anti_affinity {
            if matches(term, self.pod, self.cluster) {
                self.against.add(term, node, count);
            }
        }
        let near = &self.pod.required_affinity;
        if !near.is_empty() && near.iter().all(|term| matches(term, other, self.cluster)) {
            near.iter().for_each(|term| self.near.add(term, node, count));
        }
        for term in &self.pod.required_anti_affinity {
            if matches(term, other, self.cluster) {
                self.away.add(term, node, count);
            }
        }
    }

    fn near_enough(&self, node: &NodeInfo) -> bool {
        let terms = &self.pod.required_affinity;
        if !terms.iter().all(|term| node.labels().contains_key(&term.topology_key)) {
            return false;
        }
        if terms.iter().all(|term| self.near.of(&term.topology_key, node) > 0) {
            return true;
        }
        // The first of a group that wants to be together has nobody to be near to.
        self.near.is_empty() && terms.iter().all(|term| matches(term, self.pod, self.cluster))
    }
}

impl Filter for Required<'_> {
    // Upstream: pkg/scheduler/framework/plugins/interpodaffinity/filtering.go Filter
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        if !self.near_enough(node) {
            return Err(Refusal::unresolvable("node(s) didn't match pod affinity rules"));
        }
        if self.pod.required_anti_affinity.iter().any(|term| self.away.of(&term.topology_key, node) > 0) {
            return Err(Refusal::new("node(s) didn't match pod anti-affinity rules"));
        }
        if self.against.0.keys().any(|key| self.against.of(key, node) > 0) {
            return Err(Refusal::new("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }

    fn assume(&mut self, other: &PodInfo, node: &NodeInfo, count: i64) {
        self.count(other, node, count);
    }
}

impl Score for Topology {
    fn score(&self, node: &NodeInfo) -> i64 {
        self.0.keys().map(|key| self.of(key, node)).sum()
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        let min = scores.iter().copied().min().unwrap_or(0);
        let max = scores.iter().copied().max().unwrap_or(0);
        for score in scores {
            *score = if max == min { 0 } else { MAX_SCORE * (*score - min) / (max - min) };
        }
    }
}
