//! Pods that belong together are spread over the parts of a topology: zones, nodes.
//!
//! Upstream: pkg/scheduler/framework/plugins/podtopologyspread

use std::sync::{Arc, PoisonError};

use api::core::v1::{Node, TopologySpreadConstraint};
use serde_json::Value;

use crate::cluster::{Change, Cluster, Kind};
use crate::configuration::args;
use crate::framework::{Filter, MAX_SCORE, Plugin, Refusal, Score};
use crate::pod::{self, SpreadConstraint};
use crate::tally::{Count, Question};
use crate::{NodeInfo, PodInfo};

const MISMATCH: &str = "node(s) didn't match pod topology spread constraints";
const MISSING_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";
const HOSTNAME: &str = "kubernetes.io/hostname";

pub struct PodTopologySpread {
    /// What pods without constraints of their own are spread by.
    defaults: Vec<TopologySpreadConstraint>,
    /// Whether these are upstream's own, which ask nothing of nodes.
    system: bool,
}

impl PodTopologySpread {
    pub fn make(args: Option<&Value>) -> Result<Arc<dyn Plugin>, String> {
        let given = args::pod_topology_spread(args)?.defaults();
        let system = given.is_none();
        Ok(Arc::new(PodTopologySpread { defaults: given.unwrap_or_else(system_defaults), system }))
    }

    /// The constraints that the pod is spread by. Pods without any are spread all the same, by the Services and
    /// controllers that select them.
    fn constraints<'a>(&self, pod: &'a PodInfo, cluster: &Cluster) -> Constraints<'a> {
        if !pod.spread.is_empty() {
            return Constraints::Own(&pod.spread);
        }
        // They are asked for several times in one cycle, and again when the pod is tried again.
        let version = cluster.groups.version();
        let mut known = pod.spread_by_group.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((of, constraints)) if *of == version => Constraints::OfGroup(constraints.clone()),
            _ => {
                let constraints: Arc<[SpreadConstraint]> = self.of_group(pod, cluster).into();
                *known = Some((version, constraints.clone()));
                Constraints::OfGroup(constraints)
            }
        }
    }

    fn of_group(&self, pod: &PodInfo, cluster: &Cluster) -> Vec<SpreadConstraint> {
        let Some(selector) = cluster.groups.selector_of(&pod.pod) else { return Vec::new() };
        let keys = |required: bool| match self.system {
            true => Vec::new(),
            false => self
                .defaults
                .iter()
                .filter(|c| (c.when_unsatisfiable == "DoNotSchedule") == required)
                .map(|c| c.topology_key.clone())
                .collect(),
        };
        let made = self.defaults.iter().map(|c| {
            let keys = keys(c.when_unsatisfiable == "DoNotSchedule");
            SpreadConstraint::new(c, selector.clone(), keys, &pod.pod)
        });
        made.collect()
    }
}

/// Upstream: plugin.go systemDefaultConstraints
fn system_defaults() -> Vec<TopologySpreadConstraint> {
    let default = |key: &str, max_skew| TopologySpreadConstraint {
        topology_key: key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".into(),
        max_skew,
        ..Default::default()
    };
    vec![default(HOSTNAME, 3), default("topology.kubernetes.io/zone", 5)]
}

enum Constraints<'a> {
    Own(&'a [SpreadConstraint]),
    OfGroup(Arc<[SpreadConstraint]>),
}

impl std::ops::Deref for Constraints<'_> {
    type Target = [SpreadConstraint];

    fn deref(&self) -> &[SpreadConstraint] {
        match self {
            Constraints::Own(own) => own,
            Constraints::OfGroup(constraints) => constraints,
        }
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn ask(&self, pod: &PodInfo, cluster: &mut Cluster) {
        let constraints = self.constraints(pod, cluster);
        cluster.ask(constraints.iter().map(|constraint| &constraint.question));
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let constraints = self.constraints(pod, cluster);
        let hard = constraints.iter().filter(|constraint| constraint.required).map(|constraint| {
            let counts = cluster.answer(&constraint.question);
            let mut domain = Domain {
                least: 0,
                counts,
                question: constraint.question.clone(),
                itself: i64::from(constraint.counts_itself),
                min_domains: constraint.min_domains,
                max_skew: constraint.max_skew,
            };
            domain.least = domain.least();
            domain
        });
        let hard: Vec<Domain> = hard.collect();
        (!hard.is_empty()).then(|| Box::new(Hard(hard)) as Box<dyn Filter>)
    }

    fn score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
        nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let constraints = self.constraints(pod, cluster);
        let soft = constraints.iter().filter(|constraint| !constraint.required);
        let soft: Vec<(Count, &SpreadConstraint)> =
            soft.map(|constraint| (cluster.answer(&constraint.question), constraint)).collect();
        if soft.is_empty() {
            return None;
        }
        let need_all_labels = !pod.spread.is_empty() || !self.system;
        let takes_part = |node: &&&NodeInfo| !need_all_labels || soft.iter().all(|(c, _)| c.covers(node));
        let part: Vec<&NodeInfo> = nodes.iter().filter(takes_part).copied().collect();
        let counts = soft.into_iter().map(|(counts, constraint)| {
            // A node counts for itself, whatever topology the others have.
            let parts = match constraint.topology_key == HOSTNAME {
                true => part.len(),
                false => counts.parts_among(&part),
            };
            (counts, (parts as f64 + 2.0).ln(), (constraint.max_skew - 1) as f64)
        });
        Some(Box::new(Soft { counts: counts.collect(), need_all_labels }))
    }

    fn events(&self) -> &'static [Kind] {
        &[
            Kind::NodeAdded,
            Kind::NodeUpdated,
            Kind::NodeGone,
            Kind::PodPlaced,
            Kind::PodUpdated,
            Kind::PodGone,
            Kind::PodItself,
        ]
    }

    // Upstream: plugin.go isSchedulableAfterPodChange, isSchedulableAfterNodeChange
    fn may_help(&self, pod: &PodInfo, change: &Change) -> bool {
        use api::Object;
        // Constraints by default may be of any group: what is not known of them is worth a try.
        let hard = || pod.spread.iter().filter(|constraint| constraint.required);
        let counted = |c: &SpreadConstraint, other: &PodInfo| c.question.selects(pod::labels(&other.pod));
        let near = |other: &PodInfo| other.pod.namespace() == pod.pod.namespace();
        let covers = |node: &Node| {
            let labels = node.metadata.labels.as_ref();
            hard().all(|c| labels.is_some_and(|labels| labels.contains_key(&c.topology_key)))
        };
        match change {
            Change::PodItself => true,
            Change::PodPlaced(other) | Change::PodGone(other) => {
                near(other) && hard().all(|c| counted(c, other))
            }
            Change::PodUpdated { old, new } => {
                let stays = |pod: &PodInfo| !pod.is_deleting();
                near(new) && (stays(old) != stays(new) || hard().any(|c| counted(c, old) != counted(c, new)))
            }
            Change::NodeAdded(node) | Change::NodeGone(node) => covers(node),
            Change::NodeUpdated { old, new } => {
                covers(old) != covers(new)
                    || (covers(new)
                        && (old.metadata.labels != new.metadata.labels
                            || old.spec.as_ref().map(|s| &s.taints) != new.spec.as_ref().map(|s| &s.taints)))
            }
            _ => false,
        }
    }
}

struct Domain<'a> {
    question: Arc<Question>,
    counts: Count<'a>,
    least: i64,
    /// One if the pod is one of those that are counted.
    itself: i64,
    min_domains: i64,
    max_skew: i64,
}

impl Domain<'_> {
    /// The least that any part has; none when there are fewer parts than there should be.
    fn least(&self) -> i64 {
        if (self.counts.parts() as i64) < self.min_domains { 0 } else { self.counts.least() }
    }
}

struct Hard<'a>(Vec<Domain<'a>>);

impl Filter for Hard<'_> {
    // Upstream: filtering.go Filter
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        for Domain { counts, least, itself, max_skew, .. } in &self.0 {
            if !counts.covers(node) {
                return Err(Refusal::unresolvable(MISSING_LABEL));
            }
            if counts.of(node) + itself - least > *max_skew {
                return Err(Refusal::new(MISMATCH));
            }
        }
        Ok(())
    }

    fn assume(&mut self, other: &PodInfo, node: &NodeInfo, by: i64) {
        for domain in &mut self.0 {
            if domain.counts.includes(node) && domain.question.counts_in_group(other) {
                domain.counts.add(node, by);
                domain.least = domain.least();
            }
        }
    }
}

struct Soft<'a> {
    /// With the weight of each topology, and what a skew may be.
    counts: Vec<(Count<'a>, f64, f64)>,
    /// A node without one of the labels is out; upstream's default constraints do not ask that.
    need_all_labels: bool,
}

const OUT: i64 = -1;

impl Score for Soft<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let mut score = 0.0;
        for (counts, weight, skew) in &self.counts {
            if counts.covers(node) {
                score += counts.of(node) as f64 * weight + skew;
            } else if self.need_all_labels {
                return OUT;
            }
        }
        score.round() as i64
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        let kept = || scores.iter().copied().filter(|score| *score != OUT);
        let (min, max) = (kept().min().unwrap_or(0), kept().max().unwrap_or(0));
        for score in scores {
            *score = match *score {
                OUT => 0,
                _ if max == 0 => MAX_SCORE,
                score => MAX_SCORE * (max + min - score) / max,
            };
        }
    }
}
