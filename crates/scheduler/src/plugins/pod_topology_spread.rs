//! Pods that belong together are spread over the parts of a topology: zones, nodes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::Object;
use api::core::v1::TopologySpreadConstraint;
use apimachinery::selector::LabelSelector;
use serde_json::Value;

use crate::cluster::{Change, Cluster};
use crate::configuration::args;
use crate::framework::{Filter, MAX_SCORE, Plugin, Refusal, Score};
use crate::plugins::{node_affinity_matches, untolerated};
use crate::pod::{self, Labels};
use crate::{NodeInfo, PodInfo};

const MISMATCH: &str = "node(s) didn't match pod topology spread constraints";
const MISSING_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";
const HOSTNAME: &str = "kubernetes.io/hostname";

pub struct PodTopologySpread {
    /// What pods without constraints of their own are spread by; `None` for upstream's own two.
    defaults: Option<Vec<TopologySpreadConstraint>>,
}

impl PodTopologySpread {
    pub fn make(args: Option<&Value>) -> Result<Arc<dyn Plugin>, String> {
        let defaults = args::pod_topology_spread(args)?.defaults();
        Ok(Arc::new(PodTopologySpread { defaults }))
    }

    /// The constraints of one kind that the pod is spread by. Pods without any are spread all the same, by the
    /// Services and controllers that select them.
    ///
    /// Upstream: pkg/scheduler/framework/plugins/podtopologyspread/plugin.go systemDefaultConstraints
    fn constraints(&self, pod: &PodInfo, cluster: &Cluster, action: &str) -> Vec<Constraint> {
        if let Some(own) = own_constraints(pod) {
            return own
                .iter()
                .filter(|c| c.when_unsatisfiable == action)
                .map(|c| constraint(c, pod))
                .collect();
        }
        let groups = cluster.groups.get(pod.pod.namespace()).map(Vec::as_slice).unwrap_or_default();
        let mut selectors = groups.iter().filter(|selector| selector.matches_map(pod::labels(&pod.pod)));
        let Some(selector) = selectors.next() else { return Vec::new() };
        if let Some(given) = &self.defaults {
            let given = given.iter().filter(|c| c.when_unsatisfiable == action);
            let with = given.map(|c| Constraint { selector: selector.clone(), ..constraint(c, pod) });
            return with.collect();
        }
        let default = |key: &str, max_skew| Constraint {
            topology_key: key.to_owned(),
            selector: selector.clone(),
            max_skew,
            min_domains: 1,
            honor_affinity: true,
            honor_taints: false,
        };
        match action {
            "ScheduleAnyway" => vec![default(HOSTNAME, 3), default("topology.kubernetes.io/zone", 5)],
            _ => Vec::new(),
        }
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let constraints = self.constraints(pod, cluster, "DoNotSchedule");
        if constraints.is_empty() {
            return None;
        }
        let counts = constraints.into_iter().map(|c| Domains::count(c, pod, cluster.nodes())).collect();
        Some(Box::new(Hard { pod, counts }))
    }

    fn score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
        nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let constraints = self.constraints(pod, cluster, "ScheduleAnyway");
        if constraints.is_empty() {
            return None;
        }
        let given = own_constraints(pod).is_some() || self.defaults.is_some();
        let counts = constraints.into_iter().map(|c| {
            // A node counts for itself, whatever topology the others have.
            let domains = if c.topology_key == HOSTNAME {
                nodes.len()
            } else {
                let values = nodes.iter().filter_map(|n| n.labels().get(&c.topology_key));
                values.collect::<std::collections::HashSet<_>>().len()
            };
            (Domains::count(c, pod, cluster.nodes()), (domains as f64 + 2.0).ln())
        });
        Some(Box::new(Soft { counts: counts.collect(), need_all_labels: given }))
    }

    fn may_help(&self, pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeAdded(_) | Change::NodeUpdated { .. } | Change::PodItself => true,
            Change::PodPlaced(other) | Change::PodGone(other) => other.pod.namespace() == pod.pod.namespace(),
            _ => false,
        }
    }
}

struct Constraint {
    topology_key: String,
    selector: LabelSelector,
    max_skew: i64,
    min_domains: i64,
    honor_affinity: bool,
    honor_taints: bool,
}

fn own_constraints(pod: &PodInfo) -> Option<&[TopologySpreadConstraint]> {
    pod.spec()?.topology_spread_constraints.as_deref().filter(|constraints| !constraints.is_empty())
}

fn constraint(c: &TopologySpreadConstraint, pod: &PodInfo) -> Constraint {
    let mut object = c.label_selector.clone().unwrap_or_default();
    let labels = pod::labels(&pod.pod);
    for key in c.match_label_keys.iter().flatten() {
        if let Some(value) = labels.get(key) {
            object.match_labels.get_or_insert_default().insert(key.clone(), value.clone());
        }
    }
    Constraint {
        topology_key: c.topology_key.clone(),
        selector: pod::selector(c.label_selector.is_some().then_some(&object)),
        max_skew: i64::from(c.max_skew),
        min_domains: i64::from(c.min_domains.unwrap_or(1)),
        honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
    }
}

/// How many matching pods each part of the topology has.
struct Domains {
    constraint: Constraint,
    namespace: String,
    matching: HashMap<String, i64>,
}

impl Domains {
    fn count<'a>(constraint: Constraint, pod: &PodInfo, nodes: impl Iterator<Item = &'a NodeInfo>) -> Self {
        let mut domains =
            Domains { constraint, namespace: pod.pod.namespace().to_owned(), matching: HashMap::new() };
        for node in nodes {
            let Some(value) = node.labels().get(&domains.constraint.topology_key) else { continue };
            if !domains.includes(pod, node) {
                continue;
            }
            let count = node.pods.iter().filter(|other| domains.counts(other)).count() as i64;
            match domains.matching.get_mut(value) {
                Some(total) => *total += count,
                None => drop(domains.matching.insert(value.clone(), count)),
            }
        }
        domains
    }

    /// Whether the node takes part at all.
    fn includes(&self, pod: &PodInfo, info: &NodeInfo) -> bool {
        let Some(node) = &info.node else { return false };
        (!self.constraint.honor_affinity || node_affinity_matches(pod, node))
            && (!self.constraint.honor_taints || untolerated(pod, info.taints()).is_none())
    }

    fn counts(&self, other: &PodInfo) -> bool {
        !other.is_deleting()
            && other.pod.namespace() == self.namespace
            && self.constraint.selector.matches_map(pod::labels(&other.pod))
    }

    /// The least that any part has; none when there are fewer parts than there should be.
    fn least(&self) -> i64 {
        if (self.matching.len() as i64) < self.constraint.min_domains {
            return 0;
        }
        self.matching.values().copied().min().unwrap_or(0)
    }

    fn of(&self, labels: &Labels) -> Option<i64> {
        Some(self.matching.get(labels.get(&self.constraint.topology_key)?).copied().unwrap_or(0))
    }
}

struct Hard<'a> {
    pod: &'a PodInfo,
    counts: Vec<Domains>,
}

impl Filter for Hard<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        for domains in &self.counts {
            let Some(count) = domains.of(node.labels()) else {
                return Err(Refusal::unresolvable(MISSING_LABEL));
            };
            let itself = i64::from(domains.constraint.selector.matches_map(pod::labels(&self.pod.pod)));
            if count + itself - domains.least() > domains.constraint.max_skew {
                return Err(Refusal::new(MISMATCH));
            }
        }
        Ok(())
    }

    fn assume(&mut self, other: &PodInfo, node: &NodeInfo, count: i64) {
        for domains in &mut self.counts {
            if domains.includes(self.pod, node)
                && domains.counts(other)
                && let Some(value) = node.labels().get(&domains.constraint.topology_key)
            {
                *domains.matching.entry(value.clone()).or_default() += count;
            }
        }
    }
}

struct Soft {
    /// With the weight of each topology.
    counts: Vec<(Domains, f64)>,
    /// A node without one of the labels is out; default constraints do not ask that.
    need_all_labels: bool,
}

const OUT: i64 = -1;

impl Score for Soft {
    fn score(&self, node: &NodeInfo) -> i64 {
        let mut score = 0.0;
        for (domains, weight) in &self.counts {
            match domains.of(node.labels()) {
                Some(count) => score += count as f64 * weight + (domains.constraint.max_skew - 1) as f64,
                None if self.need_all_labels => return OUT,
                None => {}
            }
        }
        score.round() as i64
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        let kept: BTreeMap<usize, i64> =
            scores.iter().copied().enumerate().filter(|(_, s)| *s != OUT).collect();
        let min = kept.values().copied().min().unwrap_or(0);
        let max = kept.values().copied().max().unwrap_or(0);
        for score in scores {
            *score = match *score {
                OUT => 0,
                _ if max == 0 => MAX_SCORE,
                score => MAX_SCORE * (max + min - score) / max,
            };
        }
    }
}
