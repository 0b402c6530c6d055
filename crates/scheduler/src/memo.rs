//! [`Memo`]: what filters said of nodes, and what evictions there would do, kept for the next pod that is alike.
//!
//! Replicas come by the hundred, and a refused one comes again, while few nodes change between two tries. An answer is
//! kept with the version of its node, and no answer is used for another version: what is decided with a memo is what
//! would be decided without.
//!
//! Upstream: pkg/scheduler/framework/runtime/batch.go, feature OpportunisticBatching: the same for pods of one signature

use std::sync::Arc;

use api::core::v1::{NodeAffinity, Pod, Toleration};

use crate::PodInfo;
use crate::framework::Refusal;
use crate::pod::Labels;
use crate::preemption::Harm;
use crate::resources::Resources;

/// For so many kinds of pods answers are kept.
const KINDS: usize = 8;
/// A kind that is refused for more reasons than this begins anew.
const REFUSALS: usize = 1_000;

/// The kinds of pods that were tried last, the latest first.
#[derive(Default)]
pub struct Memo {
    kinds: Vec<Known>,
}

impl Memo {
    /// What is known of `nodes` nodes for pods like this one, of a profile that asks these steady filters.
    pub fn of(
        &mut self,
        profile: &str,
        pod: &PodInfo,
        filters: Vec<&'static str>,
        nodes: usize,
    ) -> &mut Known {
        let found = self.kinds.iter().position(|known| {
            known.profile == profile && known.filters == filters && known.kind.includes(pod)
        });
        let at = found.unwrap_or_else(|| {
            self.kinds.truncate(KINDS - 1);
            self.kinds.push(Known::new(profile, pod, filters));
            self.kinds.len() - 1
        });
        self.kinds[..=at].rotate_right(1);
        let known = &mut self.kinds[0];
        if known.refusals.len() > REFUSALS {
            known.forget();
        }
        known.verdicts.resize(nodes, (0, FITS));
        known
    }
}

/// Pods that steady filters cannot tell apart.
struct Kind {
    sample: Arc<Pod>,
    priority: i32,
    requests: Resources,
}

impl Kind {
    fn of(pod: &PodInfo) -> Self {
        Kind { sample: pod.pod.clone(), priority: pod.priority, requests: pod.requests.clone() }
    }

    fn includes(&self, pod: &PodInfo) -> bool {
        self.priority == pod.priority
            && self.requests == pod.requests
            && choice(&self.sample) == choice(&pod.pod)
    }
}

/// What of a pod chooses among nodes, beside what it asks for.
fn choice(
    pod: &Pod,
) -> Option<(Option<&str>, Option<&Labels>, Option<&[Toleration]>, Option<&NodeAffinity>)> {
    let spec = pod.spec.as_ref()?;
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    Some((spec.node_name.as_deref(), spec.node_selector.as_ref(), spec.tolerations.as_deref(), affinity))
}

/// Which of the known refusals.
pub type Refused = usize;

/// No refusal has this number.
const FITS: u32 = u32::MAX;

/// What is known of nodes, by their index, for one kind of pods.
pub struct Known {
    profile: String,
    filters: Vec<&'static str>,
    kind: Kind,
    /// Why nodes are refused, and by which plugin; told once for all nodes.
    refusals: Vec<(&'static str, Refusal)>,
    /// The version of the node, and its refusal if it has one.
    verdicts: Vec<(u64, u32)>,
    /// The same of evictions; empty until there is need of any.
    harms: Vec<(u64, Result<Harm, u32>)>,
    /// The budgets by which harm was judged.
    budgets: Option<Arc<()>>,
}

impl Known {
    fn new(profile: &str, pod: &PodInfo, filters: Vec<&'static str>) -> Self {
        Known {
            profile: profile.to_owned(),
            filters,
            kind: Kind::of(pod),
            refusals: Vec::new(),
            verdicts: Vec::new(),
            harms: Vec::new(),
            budgets: None,
        }
    }

    fn forget(&mut self) {
        self.refusals.clear();
        self.verdicts.clear();
        self.harms.clear();
    }

    pub fn refusals(&self) -> &[(&'static str, Refusal)] {
        &self.refusals
    }

    fn number(&mut self, plugin: &'static str, refusal: Refusal) -> u32 {
        let known = self.refusals.iter().position(|known| known.0 == plugin && known.1 == refusal);
        let at = known.unwrap_or_else(|| {
            self.refusals.push((plugin, refusal));
            self.refusals.len() - 1
        });
        u32::try_from(at).expect("there are never so many")
    }

    /// Whether the node, of this version, is refused; asks if that is not known.
    pub fn verdict(
        &mut self,
        node: usize,
        version: u64,
        ask: impl FnOnce() -> Result<(), (&'static str, Refusal)>,
    ) -> Option<Refused> {
        let (known, refused) = self.verdicts[node];
        let refused = if known == version {
            refused
        } else {
            let refused = ask().map_or_else(|(plugin, refusal)| self.number(plugin, refusal), |()| FITS);
            self.verdicts[node] = (version, refused);
            refused
        };
        (refused != FITS).then_some(refused as usize)
    }

    /// What harm is known, judged by these budgets; none if others were in force.
    pub fn judged_by(&mut self, budgets: Option<&Arc<()>>) -> &mut Self {
        let same = match (&self.budgets, budgets) {
            (None, None) => true,
            (Some(known), Some(budgets)) => Arc::ptr_eq(known, budgets),
            _ => false,
        };
        if !same {
            self.harms.clear();
            self.budgets = budgets.cloned();
        }
        self.harms.resize(self.verdicts.len(), (0, Err(FITS)));
        self
    }

    /// What evictions from the node, of this version, would do, or why they do not help; asks if that is not known.
    pub fn harm(
        &mut self,
        node: usize,
        version: u64,
        ask: impl FnOnce() -> Result<Harm, Refusal>,
    ) -> Result<Harm, Refused> {
        let (known, harm) = self.harms[node];
        let harm = if known == version {
            harm
        } else {
            let harm = ask().map_err(|refusal| self.number("", refusal));
            self.harms[node] = (version, harm);
            harm
        };
        harm.map_err(|refused| refused as usize)
    }
}

#[cfg(test)]
mod tests {
    use api::Object;
    use api::core::v1::Node;
    use serde_json::{Value, json};

    use crate::Profile;
    use crate::budgets::Budgets;
    use crate::cluster::Cluster;
    use crate::cycle::Scheduler;
    use crate::preemption;
    use crate::testing::pod_info;

    use super::*;

    fn pod(name: &str, kind: u64) -> Arc<PodInfo> {
        let spec: Value = match kind {
            0 => json!({"priority": 10, "nodeSelector": {"disk": "1"}}),
            1 => json!({"priority": 20, "tolerations": [{"key": "t", "operator": "Exists"}]}),
            2 => json!({"priority": 10}),
            3 => {
                json!({"priority": 10, "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                [{"topologyKey": "name", "labelSelector": {"matchLabels": {"app": "a"}}}]}}})
            }
            4 => json!({"priority": 20}),
            _ => json!({"priority": 0}),
        };
        let mut pod = json!({"metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "a"}},
            "spec": spec});
        let cpu = (1 + kind % 3).to_string();
        let port = if kind == 4 { json!([{"containerPort": 80, "hostPort": 80}]) } else { json!([]) };
        pod["spec"]["containers"] =
            json!([{"name": "c", "resources": {"requests": {"cpu": cpu}}, "ports": port}]);
        pod_info(pod)
    }

    fn node(name: &str, kind: u64) -> Arc<Node> {
        let taints = if kind == 0 { json!([{"key": "t", "effect": "NoSchedule"}]) } else { json!([]) };
        let node = json!({"metadata": {"name": name, "labels": {"name": name, "disk": (kind % 2).to_string()}},
            "spec": {"taints": taints, "unschedulable": kind == 5},
            "status": {"allocatable": {"cpu": (2 + kind).to_string(), "pods": "4"}}});
        Node::from_value(node).unwrap().into()
    }

    /// What becomes of the pod: its node, whom it evicts from where, or why it waits.
    fn decide(
        scheduler: &mut Scheduler,
        pod: &PodInfo,
        cluster: &mut Cluster,
    ) -> (String, Option<(String, Vec<String>)>) {
        let profile = Profile::default();
        let against = match scheduler.place(&profile, pod, cluster) {
            Ok(node) => return (node, None),
            Err(against) => against,
        };
        let start = scheduler.next_random() as usize;
        let budgets = Budgets::default();
        let places =
            preemption::places(&profile, pod, cluster, &against, &budgets, start, &mut scheduler.memo);
        match places.map(|places| preemption::best(&places)) {
            Ok(best) => {
                let best = best.expect("there is one");
                let candidate = preemption::candidate(&profile, pod, cluster, best.node, &budgets).unwrap();
                let victims = candidate.victims.iter().map(|victim| victim.key.clone()).collect();
                (against.to_string(), Some((candidate.node, victims)))
            }
            Err(why) => (format!("{against} {why}"), None),
        }
    }

    #[test]
    fn decisions_with_a_memo_are_those_without() {
        let mut random = Scheduler::new(11);
        let mut below = move |n: u64| random.next_random() % n;
        let (mut placed, mut evicted, mut hopeless) = (0, 0, 0);
        for round in 0..20 {
            let mut cluster = Cluster::default();
            (0..8).for_each(|n| drop(cluster.set_node(node(&format!("n{n}"), below(6)))));
            let mut scheduler = Scheduler::new(round + 1);
            for step in 0..150 {
                let pod = pod(&format!("p{}", below(40)), below(6));
                let name = format!("n{}", below(10));
                match below(12) {
                    0 => drop(cluster.set_node(node(&name, below(6)))),
                    1 => drop(cluster.remove_node(&name)),
                    2..5 => drop(cluster.remove_pod(&pod.key)),
                    5 => drop(cluster.withdraw(&pod.key)),
                    6 => cluster.nominate(pod, &name),
                    _ if cluster.pod(&pod.key).is_some() => {}
                    _ => {
                        let mut forgetful = scheduler.without_memo();
                        let decided = decide(&mut scheduler, &pod, &mut cluster);
                        assert_eq!(
                            decided,
                            decide(&mut forgetful, &pod, &mut cluster),
                            "round {round}, step {step}"
                        );
                        match decided {
                            (_, Some((node, victims))) => {
                                evicted += 1;
                                victims.iter().for_each(|victim| drop(cluster.remove_pod(victim)));
                                cluster.nominate(pod, &node);
                            }
                            (node, None) if cluster.node(&node).is_some() => {
                                placed += 1;
                                cluster.withdraw(&pod.key);
                                cluster.assume(pod, &node);
                            }
                            _ => hopeless += 1,
                        }
                    }
                }
            }
        }
        assert!(placed > 50 && evicted > 50 && hopeless > 50, "{placed} {evicted} {hopeless}");
    }

    #[test]
    fn only_the_last_kinds_are_remembered() {
        let mut memo = Memo::default();
        let of = |cpu: usize| {
            pod_info(json!({"metadata": {"name": "p"}, "spec": {"containers":
                [{"name": "c", "resources": {"requests": {"cpu": cpu.to_string()}}}]}}))
        };
        let asks = |memo: &mut Memo, cpu: usize| {
            let mut asked = false;
            memo.of("s", &of(cpu), vec!["A"], 1).verdict(0, 7, || {
                asked = true;
                Ok(())
            });
            asked
        };
        assert!((0..KINDS).all(|cpu| asks(&mut memo, cpu)));
        assert!(!asks(&mut memo, 0) && asks(&mut memo, KINDS) && !asks(&mut memo, 0));
        assert!(asks(&mut memo, 1), "it was the one that was not used for longest");
        assert!(
            memo.of("s", &of(0), vec!["B"], 1).verdicts[0].0 == 0,
            "other filters are asked other things"
        );
    }
}
