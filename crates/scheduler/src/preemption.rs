//! When a pod fits nowhere: whom to evict so that it does.
//!
//! Upstream: pkg/scheduler/framework/preemption/preemption.go, plugins/defaultpreemption/default_preemption.go

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Object;
use api::meta::Time;
use api::policy::v1::PodDisruptionBudget;
use apimachinery::selector::LabelSelector;

use crate::cluster::Cluster;
use crate::cycle::{Filters, Unschedulable};
use crate::framework::Refusal;
use crate::profile::{Preemption, Profile};
use crate::{NodeInfo, PodInfo, pod};

/// The node to clear, and of which pods.
#[derive(Clone)]
pub struct Candidate {
    pub node: String,
    pub victims: Vec<Arc<PodInfo>>,
    pub budget_violations: usize,
}

/// Why nobody is evicted.
#[derive(Debug, PartialEq, Eq)]
pub enum Hopeless {
    /// The pod may not evict others, or not now: what it was promised stays.
    NotEligible(&'static str),
    NoCandidate(String),
}

impl std::fmt::Display for Hopeless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Hopeless::NotEligible(why) => f.write_str(why),
            Hopeless::NoCandidate(why) => f.write_str(why),
        }
    }
}

/// Whether somebody leaves already to make room.
///
/// Upstream: plugins/defaultpreemption/default_preemption.go podTerminatingByPreemption
fn makes_room(pod: &PodInfo) -> bool {
    let conditions = pod.pod.status.as_ref().and_then(|status| status.conditions.as_deref());
    let target = conditions.unwrap_or_default().iter().find(|c| c.type_ == "DisruptionTarget");
    pod.is_deleting()
        && target.is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some("PreemptionByScheduler"))
}

/// The ways to make room for the pod, or why there is none. Not all of a large cluster's nodes are looked at;
/// `start` says at which of them to begin.
pub fn candidates(
    profile: &Profile,
    pod: &PodInfo,
    cluster: &mut Cluster,
    against: &Unschedulable,
    budgets: &[Arc<PodDisruptionBudget>],
    start: usize,
) -> Result<Vec<Candidate>, Hopeless> {
    let Some(Preemption { min_candidate_percentage, min_candidates }) = profile.preemption else {
        return Err(Hopeless::NotEligible(""));
    };
    if pod.spec().and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never") {
        return Err(Hopeless::NotEligible("not eligible due to preemptionPolicy=Never."));
    }
    let nominated = cluster.nominated_to(&pod.key).or(pod.nominated_node());
    if let Some(node) = nominated.and_then(|name| cluster.node(name))
        && against.resolvable.contains(&node.index)
        && node.pods.iter().any(|other| other.priority < pod.priority && makes_room(other))
    {
        let words = "not eligible due to a terminating pod on the nominated node.";
        return Err(Hopeless::NotEligible(words));
    }
    let potential = &against.resolvable;
    let enough = min_candidates.max(potential.len() * min_candidate_percentage / 100);
    profile.ask(pod, cluster);
    let cluster = &*cluster;
    let budgets: Vec<Budget> = budgets.iter().filter_map(Budget::new).collect();
    let mut filters = Filters::new(profile, pod, cluster);
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut harmless = false;
    let mut why = Unschedulable { nodes: against.nodes, ..Unschedulable::default() };
    let (before, after) = potential.split_at(start % potential.len().max(1));
    for at in after.iter().chain(before) {
        match victims_on(&mut filters, pod, cluster, cluster.node_at(*at), &budgets) {
            Ok(candidate) => {
                harmless |= candidate.budget_violations == 0;
                candidates.push(candidate);
                if harmless && candidates.len() >= enough {
                    break;
                }
            }
            Err(refusal) => why.count(*at, "", &refusal),
        }
    }
    if !candidates.is_empty() {
        return Ok(candidates);
    }
    if against.nodes > potential.len() {
        why.add(&"Preemption is not helpful for scheduling".into(), against.nodes - potential.len());
    }
    Err(Hopeless::NoCandidate(why.to_string()))
}

/// The one that does the least harm.
pub fn best(candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by(|a, b| rank(a).cmp(&rank(b)))
}

/// A node as it would be without some of its pods.
struct Trial<'t, 'a> {
    filters: &'t mut Filters<'a>,
    node: &'t NodeInfo,
    cleared: NodeInfo,
}

impl Trial<'_, '_> {
    fn leave(&mut self, pod: &Arc<PodInfo>) {
        if let Some(at) = self.cleared.pods.iter().position(|other| Arc::ptr_eq(other, pod)) {
            self.cleared.remove_pod_at(at);
        }
        self.filters.assume(pod, self.node, -1);
    }

    fn come_back(&mut self, pod: &Arc<PodInfo>) {
        self.cleared.add_pod(Arc::clone(pod));
        self.filters.assume(pod, self.node, 1);
    }

    fn fits(&mut self, pod: &PodInfo, cluster: &Cluster) -> Result<(), Refusal> {
        self.filters.check_with_nominated(pod, cluster, &self.cleared).map_err(|(_, refusal)| refusal)
    }
}

/// Whom to evict from one node: as few as will do, the least important, and none whose budget forbids it if others
/// will do. Or why that does not help.
///
/// Upstream: plugins/defaultpreemption/default_preemption.go SelectVictimsOnNode
fn victims_on(
    filters: &mut Filters,
    pod: &PodInfo,
    cluster: &Cluster,
    node: &NodeInfo,
    budgets: &[Budget],
) -> Result<Candidate, Refusal> {
    let mut lower: Vec<Arc<PodInfo>> =
        node.pods.iter().filter(|other| other.priority < pod.priority).cloned().collect();
    if lower.is_empty() {
        return Err(Refusal::unresolvable("No preemption victims found for incoming pod"));
    }
    let mut trial = Trial { filters, node, cleared: node.clone() };
    lower.iter().for_each(|other| trial.leave(other));
    if let Err(refusal) = trial.fits(pod, cluster) {
        lower.iter().for_each(|other| trial.come_back(other));
        return Err(refusal);
    }
    // The more important are kept first, and of those the ones that budgets protect.
    lower.sort_by(|a, b| more_important(a, b));
    let violating = violations(&lower, budgets);
    let mut candidate = Candidate { node: node.name().to_owned(), victims: Vec::new(), budget_violations: 0 };
    for protected in [true, false] {
        for (other, violates) in lower.iter().zip(&violating).filter(|(_, violates)| **violates == protected)
        {
            trial.come_back(other);
            if trial.fits(pod, cluster).is_err() {
                trial.leave(other);
                candidate.victims.push(Arc::clone(other));
                candidate.budget_violations += usize::from(*violates);
            }
        }
    }
    candidate.victims.iter().for_each(|victim| trial.filters.assume(victim, node, 1));
    if candidate.victims.is_empty() {
        return Err(Refusal::new(format!("expected at least one victim pod on node {:?}", node.name())));
    }
    candidate.victims.sort_by(|a, b| more_important(a, b));
    Ok(candidate)
}

/// When the pod began to run; one that did not yet is the youngest.
fn start(pod: &PodInfo) -> jiff::Timestamp {
    let started = pod.pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    started.map_or(jiff::Timestamp::MAX, |time| time.0)
}

/// Higher priority first, then the one that runs longer.
fn more_important(a: &PodInfo, b: &PodInfo) -> std::cmp::Ordering {
    b.priority.cmp(&a.priority).then_with(|| start(a).cmp(&start(b)))
}

/// A budget as evictions are judged by it.
struct Budget<'a> {
    namespace: &'a str,
    selector: LabelSelector,
    allowed: i32,
    /// Pods by name whose eviction was counted already.
    disrupted: Option<&'a BTreeMap<String, Time>>,
}

impl<'a> Budget<'a> {
    /// None for one that protects nothing.
    fn new(budget: &'a Arc<PodDisruptionBudget>) -> Option<Self> {
        let selector = pod::selector(budget.spec.as_ref()?.selector.as_ref());
        let status = budget.status.as_ref();
        (!selector.is_empty() && !selector.is_nothing()).then(|| Budget {
            namespace: budget.namespace(),
            selector,
            allowed: status.and_then(|status| status.disruptions_allowed).unwrap_or(0),
            disrupted: status.and_then(|status| status.disrupted_pods.as_ref()),
        })
    }

    fn protects(&self, pod: &PodInfo) -> bool {
        let labels = pod::labels(&pod.pod);
        self.namespace == pod.pod.namespace()
            && !labels.is_empty()
            && self.selector.matches_map(labels)
            && self.disrupted.is_none_or(|disrupted| !disrupted.contains_key(pod.pod.name()))
    }
}

/// Of which pods the eviction, one after the other, is against some budget.
///
/// Upstream: plugins/defaultpreemption/default_preemption.go filterPodsWithPDBViolation
fn violations(pods: &[Arc<PodInfo>], budgets: &[Budget]) -> Vec<bool> {
    let mut left: Vec<i32> = budgets.iter().map(|budget| budget.allowed).collect();
    let violates = |pod: &Arc<PodInfo>| {
        let mut violates = false;
        for (budget, left) in budgets.iter().zip(&mut left) {
            if budget.protects(pod) {
                *left -= 1;
                violates |= *left < 0;
            }
        }
        violates
    };
    pods.iter().map(violates).collect()
}

/// Fewest broken budgets, then the least important victims, then the least of them, then the youngest.
///
/// Upstream: pkg/scheduler/framework/preemption/preemption.go pickOneNodeForPreemption
fn rank(candidate: &Candidate) -> impl Ord {
    let highest = candidate.victims.first().map_or(i32::MIN, |victim| victim.priority);
    let sum: i64 = candidate.victims.iter().map(|v| i64::from(v.priority) + (1 << 31)).sum();
    let important = candidate.victims.iter().filter(|victim| victim.priority == highest);
    let earliest = important.map(|victim| start(victim)).min();
    (candidate.budget_violations, highest, sum, candidate.victims.len(), std::cmp::Reverse(earliest))
}

#[cfg(test)]
mod tests {
    use api::core::v1::{Node, Pod};
    use serde_json::json;

    use super::*;
    use crate::cycle::Scheduler;

    fn pod(name: &str, priority: i32, cpu: &str) -> Arc<PodInfo> {
        let pod = json!({"metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
            "spec": {"priority": priority,
                "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        Arc::new(PodInfo::new(Pod::from_value(pod).unwrap().into()))
    }

    /// Places `on` as (node, pod, priority, cpu) on two-core nodes and says whom a two-core pod evicts.
    fn check(on: &[(&str, &str, i32, &str)], budgets: &[Arc<PodDisruptionBudget>], expected: &str) {
        let mut cluster = Cluster::default();
        for name in ["a", "b"] {
            let node =
                json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "2", "pods": "9"}}});
            cluster.set_node(Arc::new(Node::from_value(node).unwrap()));
        }
        on.iter().for_each(|(node, name, priority, cpu)| cluster.assume(pod(name, *priority, cpu), node));
        let preemptor = pod("important", 100, "2");
        let profile = Profile::default();
        let against = Scheduler::new(1).place(&profile, &preemptor, &mut cluster).unwrap_err();
        let said = match candidates(&profile, &preemptor, &mut cluster, &against, budgets, 0) {
            Ok(candidates) => {
                let candidate = best(candidates).unwrap();
                let victims: Vec<_> = candidate.victims.iter().map(|v| v.pod.name().to_owned()).collect();
                format!("{}: {}", candidate.node, victims.join(" "))
            }
            Err(why) => why.to_string(),
        };
        assert_eq!(said, expected);
    }

    #[test]
    fn the_least_harm_is_chosen() {
        check(&[("a", "x", 10, "1"), ("b", "y", 5, "1")], &[], "b: y");
        check(&[("a", "x", 5, "1"), ("a", "z", 5, "1"), ("b", "y", 5, "2")], &[], "b: y");
        check(
            &[("a", "x", 200, "1"), ("b", "y", 100, "1")],
            &[],
            "0/2 nodes are available: 2 No preemption victims found for incoming pod.",
        );
        check(
            &[("a", "x", 200, "1"), ("a", "w", 5, "1"), ("b", "y", 100, "2")],
            &[],
            "0/2 nodes are available: 1 Insufficient cpu, 1 No preemption victims found for incoming pod.",
        );
    }

    #[test]
    fn budgets_protect_when_there_is_a_choice() {
        let budget = |selector: serde_json::Value, disrupted: serde_json::Value| {
            let budget = json!({"metadata": {"name": "b", "namespace": "default"}, "spec": {"selector": selector},
                "status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1,
                    "disruptedPods": disrupted}});
            Arc::new(PodDisruptionBudget::from_value(budget).unwrap())
        };
        let on = [("a", "x", 10, "1"), ("b", "y", 5, "1")];
        let of_y = json!({"matchLabels": {"app": "y"}});
        check(&on, &[budget(of_y.clone(), json!({}))], "a: x");
        check(&on, &[budget(json!({}), json!({}))], "b: y");
        // Its eviction was counted already.
        check(&on, &[budget(of_y, json!({"y": "2026-01-01T00:00:00Z"}))], "b: y");
    }
}
