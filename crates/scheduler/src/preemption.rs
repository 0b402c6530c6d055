//! When a pod fits nowhere: whom to evict so that it does.
//!
//! Upstream: pkg/scheduler/framework/preemption/preemption.go, plugins/defaultpreemption/default_preemption.go

use std::sync::Arc;

use api::Object;
use api::policy::v1::PodDisruptionBudget;

use crate::cluster::Cluster;
use crate::cycle::{Filters, Unschedulable};
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
    let enough = min_candidates.max(cluster.nodes().len() * min_candidate_percentage / 100);
    profile.ask(pod, cluster);
    let cluster = &*cluster;
    let mut filters = Filters::new(profile, pod, cluster);
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut no_victims = 0;
    let (before, after) = against.resolvable.split_at(start % against.resolvable.len().max(1));
    for at in after.iter().chain(before) {
        let node = cluster.node_at(*at);
        if !node.pods.iter().any(|other| other.priority < pod.priority) {
            no_victims += 1;
        } else if let Some(candidate) = victims_on(&mut filters, pod, cluster, node, budgets) {
            candidates.push(candidate);
            if candidates.len() >= enough {
                break;
            }
        }
    }
    let helpless = against.nodes - against.resolvable.len();
    let mut reasons = Vec::new();
    if no_victims > 0 {
        reasons.push(format!("{no_victims} No preemption victims found for incoming pod"));
    }
    if helpless > 0 {
        reasons.push(format!("{helpless} Preemption is not helpful for scheduling"));
    }
    if candidates.is_empty() {
        let words = format!("0/{} nodes are available: {}.", against.nodes, reasons.join(", "));
        return Err(Hopeless::NoCandidate(words));
    }
    Ok(candidates)
}

/// The one that does the least harm.
pub fn best(candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by(|a, b| rank(a).cmp(&rank(b)))
}

/// Whom to evict from one node: as few as will do, the least important, and none whose budget forbids it if others
/// will do.
fn victims_on(
    filters: &mut Filters,
    pod: &PodInfo,
    cluster: &Cluster,
    node: &NodeInfo,
    budgets: &[Arc<PodDisruptionBudget>],
) -> Option<Candidate> {
    let mut cleared = node.clone();
    let mut lower: Vec<Arc<PodInfo>> =
        node.pods.iter().filter(|o| o.priority < pod.priority).cloned().collect();
    for other in &lower {
        cleared.remove_pod(&other.key);
        filters.assume(other, node, -1);
    }
    let mut gone: Vec<Arc<PodInfo>> = lower.clone();
    let mut candidate = None;
    if filters.check_with_nominated(pod, cluster, &cleared).is_ok() {
        // The more important are kept first, and of those the ones that budgets protect.
        lower.sort_by(|a, b| more_important(a, b));
        let violating = violations(&lower, budgets);
        let (protected, free): (Vec<_>, Vec<_>) = lower.iter().partition(|p| violating.contains(&p.key));
        let mut victims = Vec::new();
        let mut budget_violations = 0;
        for (others, violates) in [(protected, true), (free, false)] {
            for other in others {
                cleared.add_pod(other.clone());
                filters.assume(other, node, 1);
                if filters.check_with_nominated(pod, cluster, &cleared).is_ok() {
                    gone.retain(|g| g.key != other.key);
                } else {
                    cleared.remove_pod(&other.key);
                    filters.assume(other, node, -1);
                    victims.push(other.clone());
                    budget_violations += usize::from(violates);
                }
            }
        }
        victims.sort_by(|a, b| more_important(a, b));
        candidate = Some(Candidate { node: node.name().to_owned(), victims, budget_violations });
    }
    gone.iter().for_each(|other| filters.assume(other, node, 1));
    candidate.filter(|c| !c.victims.is_empty())
}

fn started(pod: &PodInfo) -> Option<jiff::Timestamp> {
    Some(pod.pod.status.as_ref()?.start_time.as_ref()?.0)
}

/// Higher priority first, then the one that runs longer.
fn more_important(a: &PodInfo, b: &PodInfo) -> std::cmp::Ordering {
    let start = |pod: &PodInfo| started(pod).unwrap_or(jiff::Timestamp::MAX);
    b.priority.cmp(&a.priority).then_with(|| start(a).cmp(&start(b)))
}

/// The pods whose eviction, one after the other, some budget does not allow.
fn violations(pods: &[Arc<PodInfo>], budgets: &[Arc<PodDisruptionBudget>]) -> Vec<String> {
    let mut left: Vec<i32> = budgets
        .iter()
        .map(|b| b.status.as_ref().and_then(|status| status.disruptions_allowed).unwrap_or(0))
        .collect();
    let mut violating = Vec::new();
    for pod in pods {
        for (budget, left) in budgets.iter().zip(&mut left) {
            let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            if budget.namespace() != pod.pod.namespace()
                || !pod::selector(selector).matches_map(pod::labels(&pod.pod))
            {
                continue;
            }
            *left -= 1;
            if *left < 0 && !violating.contains(&pod.key) {
                violating.push(pod.key.clone());
            }
        }
    }
    violating
}

/// Fewest broken budgets, then the least important victims, then the least of them, then the youngest.
fn rank(candidate: &Candidate) -> impl Ord {
    let highest = candidate.victims.first().map_or(i32::MIN, |victim| victim.priority);
    let sum: i64 = candidate.victims.iter().map(|v| i64::from(v.priority) + (1 << 31)).sum();
    let earliest =
        candidate.victims.iter().filter(|v| v.priority == highest).filter_map(|v| started(v)).min();
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
    }

    #[test]
    fn budgets_protect_when_there_is_a_choice() {
        let budget = json!({"metadata": {"name": "b", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "y"}}},
            "status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
        let budget = Arc::new(PodDisruptionBudget::from_value(budget).unwrap());
        check(&[("a", "x", 10, "1"), ("b", "y", 5, "1")], &[budget], "a: x");
    }
}
