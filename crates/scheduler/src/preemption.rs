//! When a pod fits nowhere: whom to evict so that it does.
//!
//! Upstream: pkg/scheduler/framework/preemption/preemption.go, plugins/defaultpreemption/default_preemption.go

use std::cmp::Reverse;
use std::sync::Arc;

use crate::budgets::Budgets;
use crate::cluster::Cluster;
use crate::cycle::{Filters, Unschedulable, expected_before};
use crate::framework::Refusal;
use crate::memo::Memo;
use crate::node::Load;
use crate::profile::{Preemption, Profile};
use crate::{NodeInfo, PodInfo};

/// How bad evictions are: fewest broken budgets first, then the least important victims, then the least of them, then
/// the youngest.
///
/// Upstream: pkg/scheduler/framework/preemption/preemption.go pickOneNodeForPreemption
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Harm {
    budget_violations: usize,
    highest: i32,
    sum: i64,
    victims: usize,
    earliest: Reverse<Option<jiff::Timestamp>>,
}

/// A node, by its index, where evictions help.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub node: usize,
    harm: Harm,
}

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

/// Where there is a way to make room for the pod, or why there is none. Not all of a large cluster's nodes are looked at;
/// `start` says at which of them to begin.
pub fn places(
    profile: &Profile,
    pod: &PodInfo,
    cluster: &mut Cluster,
    against: &Unschedulable,
    budgets: &Budgets,
    start: usize,
    memo: &mut Memo,
) -> Result<Vec<Place>, Hopeless> {
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
    let mut filters = Filters::new(profile, pod, cluster);
    let known = memo.of(&profile.scheduler_name, pod, filters.steady(), cluster.nodes().len());
    let known = known.judged_by(budgets.identity());
    // Where the pod waits for room itself there is more room for it than for others of its kind.
    let own = cluster.nominated_to(&pod.key).and_then(|name| cluster.index_of(name));
    let mut places: Vec<Place> = Vec::new();
    let mut harmless = false;
    let mut refused: Vec<usize> = Vec::new();
    let mut why = Unschedulable { nodes: against.nodes, ..Unschedulable::default() };
    let (before, after) = potential.split_at(start % potential.len().max(1));
    for at in after.iter().copied().chain(before.iter().copied()) {
        let steady = filters.are_steady() && own != Some(at);
        let mut ask = || Ok(harm(&victims_on(&mut filters, pod, cluster, cluster.node_at(at), budgets)?));
        let judged = if steady {
            known.harm(at, cluster.version(at), ask).map_err(|refusal| {
                refused.resize(known.refusals().len(), 0);
                refused[refusal] += 1;
            })
        } else {
            ask().map_err(|refusal| why.count(at, "", &refusal))
        };
        let Ok(harm) = judged else { continue };
        harmless |= harm.budget_violations == 0;
        places.push(Place { node: at, harm });
        if harmless && places.len() >= enough {
            break;
        }
    }
    if !places.is_empty() {
        return Ok(places);
    }
    why.count_known(known, &refused);
    if against.nodes > potential.len() {
        why.add(&"Preemption is not helpful for scheduling".into(), against.nodes - potential.len());
    }
    Err(Hopeless::NoCandidate(why.to_string()))
}

/// The one where the least harm is done.
pub fn best(places: &[Place]) -> Option<Place> {
    places.iter().copied().min_by_key(|place| place.harm)
}

/// Whom to evict from the node, one of the [`places`].
pub fn candidate(
    profile: &Profile,
    pod: &PodInfo,
    cluster: &Cluster,
    node: usize,
    budgets: &Budgets,
) -> Option<Candidate> {
    let mut filters = Filters::new(profile, pod, cluster);
    victims_on(&mut filters, pod, cluster, cluster.node_at(node), budgets).ok()
}

/// The one that does the least harm.
pub fn best_candidate(candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by_key(harm)
}

/// A node as it would be without some of its pods.
struct Trial<'t, 'a> {
    filters: &'t mut Filters<'a>,
    pod: &'a PodInfo,
    cluster: &'a Cluster,
    node: &'a NodeInfo,
    /// What it would bear, with the pods that wait for its room.
    load: Load,
    /// The node itself without these pods, where some filter looks at single pods. Where none does the load says all.
    cleared: Option<NodeInfo>,
}

impl<'t, 'a> Trial<'t, 'a> {
    /// The node without the pods that are less important, and these pods.
    fn new(
        filters: &'t mut Filters<'a>,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
        node: &'a NodeInfo,
    ) -> Result<(Self, Vec<&'a Arc<PodInfo>>), Refusal> {
        let Some(mut load) = node.load_without_less_important(pod.priority) else {
            return Err(Refusal::unresolvable("No preemption victims found for incoming pod"));
        };
        expected_before(pod, cluster, node).for_each(|other| load.add(other));
        // Most nodes on which evictions do not help are seen by this, without a look at their pods.
        filters.check_loaded(node, &load).map_err(|(_, refusal)| refusal)?;
        let less = node.pods.iter().filter(|other| other.priority < pod.priority);
        let less: Vec<&Arc<PodInfo>> = less.collect();
        let mut trial = Trial { filters, pod, cluster, node, load, cleared: None };
        if trial.filters.look_at_pods() {
            let mut cleared = node.clone();
            for at in (0..cleared.pods.len()).rev() {
                if cleared.pods[at].priority < pod.priority {
                    cleared.remove_pod_at(at);
                }
            }
            trial.cleared = Some(cleared);
            less.iter().for_each(|other| trial.filters.assume(other, node, -1));
            if let Err(refusal) = trial.check() {
                trial.end(less);
                return Err(refusal);
            }
        }
        Ok((trial, less))
    }

    /// The filters know again that these pods, which were away, are there.
    fn end<'p>(self, away: impl IntoIterator<Item = &'p Arc<PodInfo>>) {
        if self.cleared.is_some() {
            away.into_iter().for_each(|other| self.filters.assume(other, self.node, 1));
        }
    }

    fn check(&mut self) -> Result<(), Refusal> {
        let Some(cleared) = &self.cleared else { return Ok(()) };
        self.filters.check_with_nominated(self.pod, self.cluster, cleared).map_err(|(_, refusal)| refusal)
    }

    /// Has the pod come back if there is room for it beside the other.
    fn spare(&mut self, other: &Arc<PodInfo>) -> bool {
        self.load.add(other);
        if !self.filters.bear(self.node, &self.load) {
            self.load.sub(other);
            return false;
        }
        let Some(cleared) = &mut self.cleared else { return true };
        cleared.add_pod(Arc::clone(other));
        self.filters.assume(other, self.node, 1);
        if self.check().is_ok() {
            return true;
        }
        self.load.sub(other);
        self.filters.assume(other, self.node, -1);
        if let Some(cleared) = &mut self.cleared {
            cleared.remove_pod_at(cleared.pods.len() - 1);
        }
        false
    }
}

/// Whom to evict from one node: as few as will do, the least important, and none whose budget forbids it if others
/// will do. Or why that does not help.
///
/// Upstream: plugins/defaultpreemption/default_preemption.go SelectVictimsOnNode
fn victims_on<'a>(
    filters: &mut Filters<'a>,
    pod: &'a PodInfo,
    cluster: &'a Cluster,
    node: &'a NodeInfo,
    budgets: &Budgets,
) -> Result<Candidate, Refusal> {
    let (mut trial, mut lower) = Trial::new(filters, pod, cluster, node)?;
    // The more important are kept first, and of those the ones that budgets protect.
    lower.sort_by(|a, b| more_important(a, b));
    let violating = budgets.violations(&lower);
    let mut candidate = Candidate { node: node.name().to_owned(), victims: Vec::new(), budget_violations: 0 };
    for protected in [true, false] {
        for (other, violates) in lower.iter().zip(&violating).filter(|(_, violates)| **violates == protected)
        {
            if !trial.spare(other) {
                candidate.victims.push(Arc::clone(other));
                candidate.budget_violations += usize::from(*violates);
            }
        }
    }
    trial.end(&candidate.victims);
    if candidate.victims.is_empty() {
        return Err(Refusal::new(format!("expected at least one victim pod on node {:?}", node.name())));
    }
    candidate.victims.sort_by(|a, b| more_important(a, b));
    Ok(candidate)
}

/// Higher priority first, then the one that runs longer.
fn more_important(a: &PodInfo, b: &PodInfo) -> std::cmp::Ordering {
    b.priority.cmp(&a.priority).then_with(|| a.started.cmp(&b.started))
}

fn harm(candidate: &Candidate) -> Harm {
    let highest = candidate.victims.first().map_or(i32::MIN, |victim| victim.priority);
    let important = candidate.victims.iter().filter(|victim| victim.priority == highest);
    Harm {
        budget_violations: candidate.budget_violations,
        highest,
        sum: candidate.victims.iter().map(|v| i64::from(v.priority) + (1 << 31)).sum(),
        victims: candidate.victims.len(),
        earliest: Reverse(important.map(|victim| victim.started).min()),
    }
}

#[cfg(test)]
mod tests {
    use api::Object;
    use api::core::v1::{Node, Pod};
    use api::policy::v1::PodDisruptionBudget;
    use serde_json::json;

    use super::*;
    use crate::cycle::Scheduler;
    use crate::framework::{Filter, Plugin};
    use crate::profile::Configured;

    /// Asks for nothing, but has every pod looked at.
    struct Curious;

    impl Plugin for Curious {
        fn name(&self) -> &'static str {
            "Curious"
        }

        fn filter<'a>(&'a self, _pod: &'a PodInfo, _cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
            Some(Box::new(Curious))
        }
    }

    impl Filter for Curious {
        fn check(&self, _node: &NodeInfo) -> Result<(), Refusal> {
            Ok(())
        }
    }

    /// Profiles that must come to the same: by loads alone, pod by pod, and pod by pod before anything else.
    fn profiles() -> [Profile; 3] {
        let curious = || Configured::whole(Arc::new(Curious), 0);
        let mut profiles = [Profile::default(), Profile::default(), Profile::default()];
        profiles[1].plugins.push(curious());
        profiles[2].plugins.insert(0, curious());
        profiles
    }

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
        for profile in profiles() {
            assert_eq!(said(&profile, &mut cluster, &pod("important", 100, "2"), budgets), expected);
        }
    }

    /// Whom the pod evicts, and from where.
    fn said(
        profile: &Profile,
        cluster: &mut Cluster,
        preemptor: &PodInfo,
        budgets: &[Arc<PodDisruptionBudget>],
    ) -> String {
        let mut scheduler = Scheduler::new(1);
        let against = match scheduler.place(profile, preemptor, cluster) {
            Ok(node) => return format!("fits {node}"),
            Err(against) => against,
        };
        let budgets = Budgets::new(budgets.iter().cloned());
        match places(profile, preemptor, cluster, &against, &budgets, 0, &mut scheduler.memo) {
            Ok(places) => {
                let best = best(&places).unwrap();
                let candidate = candidate(profile, preemptor, cluster, best.node, &budgets).unwrap();
                let victims: Vec<_> = candidate.victims.iter().map(|v| v.pod.name().to_owned()).collect();
                format!("{}: {}", candidate.node, victims.join(" "))
            }
            Err(why) => why.to_string(),
        }
    }

    #[test]
    fn loads_say_the_same_as_a_look_at_every_pod() {
        let mut random = Scheduler::new(42);
        let mut below = move |n: u64| random.next_random() % n;
        let mut evictions = 0;
        for round in 0..200 {
            let mut cluster = Cluster::default();
            for node in 0..4 {
                let node = json!({"metadata": {"name": format!("n{node}")},
                    "status": {"allocatable": {"cpu": "8", "pods": "7"}}});
                cluster.set_node(Arc::new(Node::from_value(node).unwrap()));
            }
            for number in 0..24 {
                let cpu = (1 + below(3)).to_string();
                let pod = pod(&format!("p{number}"), below(4) as i32 * 10, &cpu);
                let node = format!("n{}", below(4));
                match below(8) {
                    0 => cluster.nominate(pod, &node),
                    _ => cluster.assume(pod, &node),
                }
            }
            let preemptor = pod("important", below(4) as i32 * 10, &(1 + below(8)).to_string());
            let [by_load, by_pod, first] =
                profiles().map(|profile| said(&profile, &mut cluster, &preemptor, &[]));
            assert_eq!((&by_load, &by_load), (&by_pod, &first), "round {round}");
            evictions += usize::from(by_load.starts_with('n') && by_load.contains(": "));
        }
        assert!(evictions > 40, "{evictions}");
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
