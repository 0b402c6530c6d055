//! A group that names a topology is placed within one domain of it: each domain is tried as if it were the whole
//! cluster, and of those where enough pods have a place the one is taken where most have, and whose nodes are used
//! most.
//!
//! Upstream: pkg/scheduler/schedule_one_podgroup.go podGroupSchedulingPlacementAlgorithm, and the plugins
//! TopologyPlacementGenerator and PodGroupPodsCount

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Loop;
use super::group::{Tried, UNSCHEDULABLE, Verdict};
use crate::PodInfo;
use crate::cluster::Cluster;
use crate::framework::MAX_SCORE;
use crate::profile::Profile;

const NONE_FEASIBLE: &str = "no feasible placements found";

/// How a group went.
pub(super) struct Outcome {
    /// Pod by pod; none where no domain was there to be tried.
    pub tried: Vec<Tried>,
    /// What the group's status says instead of the usual words.
    pub said: Option<String>,
}

/// The nodes of each domain, in the order of their turns. Pods that have a node already say which domain it has to be.
///
/// Upstream: plugins/topologyaware/topology_placement.go GeneratePlacements
fn domains(cluster: &Cluster, group: &str, key: &str) -> Result<BTreeMap<String, Vec<usize>>, String> {
    let mut only: Option<&str> = None;
    for pod in cluster.pod_groups.placed_keys(group).filter_map(|pod| cluster.pod(pod)) {
        let node = cluster.node_of(&pod.key);
        let Some(domain) = node.and_then(|node| node.labels().get(key)) else {
            return Err(format!("no topology domain found for pod {}", pod.key));
        };
        if let Some(other) = only.filter(|other| *other != domain) {
            return Err(format!("more than 1 domain found for pod group: {other}, {domain}"));
        }
        only = Some(domain);
    }
    let mut domains: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for at in cluster.turns() {
        match cluster.node_at(*at).labels().get(key) {
            Some(domain) if only.is_none_or(|only| only == domain) => {
                domains.entry(domain.clone()).or_default().push(*at);
            }
            _ => {}
        }
    }
    Ok(domains)
}

/// A domain where the group can be.
struct Fit {
    tried: Vec<Tried>,
    /// How many of the group's pods are there.
    pods: usize,
    /// What plugins say of its nodes.
    score: i64,
    /// Decides among equals.
    chance: u64,
}

/// The best of the domains.
///
/// Upstream: plugins/podgrouppodscount/podgroup_pods_count.go NormalizePlacementScore
fn best(fits: Vec<Fit>) -> Option<Vec<Tried>> {
    let most = fits.iter().map(|fit| fit.pods).max().filter(|most| *most > 0)? as i64;
    let total = |fit: &Fit| (fit.score + fit.pods as i64 * MAX_SCORE / most, fit.chance);
    fits.into_iter().max_by_key(total).map(|fit| fit.tried)
}

impl Loop {
    /// Takes places for the pods of a group, where its topology has them be.
    pub(super) async fn try_group(
        &mut self,
        profile: &Profile,
        group: &str,
        pods: &[Arc<PodInfo>],
    ) -> Result<Outcome, String> {
        let key = self.cluster.pod_groups.topology_key(group).filter(|_| self.topologies).map(str::to_owned);
        let Some(key) = key else {
            return Ok(Outcome { tried: self.try_all(profile, pods).await?, said: None });
        };
        self.cluster.take_turns();
        let domains = domains(&self.cluster, group, &key)
            .map_err(|why| format!("cannot determine domain for already scheduled pods: {why}"))?;
        if domains.is_empty() {
            return Ok(Outcome { tried: Vec::new(), said: Some(NONE_FEASIBLE.to_owned()) });
        }
        let (count, mut first, mut fits) = (domains.len(), None, Vec::new());
        for nodes in domains.into_values() {
            self.cluster.confine(Some(nodes));
            let tried = self.try_all(profile, pods).await;
            let fit = tried.map(|tried| self.judge(profile, group, pods, tried));
            self.cluster.confine(None);
            match fit? {
                Ok(fit) => fits.push(fit),
                Err(tried) if first.is_none() => first = Some(tried),
                Err(_) => {}
            }
        }
        if let Some(tried) = best(fits) {
            return Ok(Outcome { tried: self.take_again(profile, pods, tried)?, said: None });
        }
        let said = format!("0/{count} placements are available, first placement status: {UNSCHEDULABLE}");
        Ok(Outcome { tried: first.unwrap_or_default(), said: Some(said) })
    }

    /// Whether the domain to which the cluster is confined will do for the group. Its pods give their places back.
    fn judge(
        &mut self,
        profile: &Profile,
        group: &str,
        pods: &[Arc<PodInfo>],
        tried: Vec<Tried>,
    ) -> Result<Fit, Vec<Tried>> {
        let verdict = self.verdict_of(group, &tried);
        let nodes: Vec<_> = self.cluster.turns().iter().map(|at| self.cluster.node_at(*at)).collect();
        let score = profile.score_domain(&nodes);
        let placed = self.cluster.pod_groups.placed(group);
        self.put_back(profile, pods, &tried);
        match verdict {
            Verdict::Unschedulable => Err(tried),
            Verdict::Scheduled | Verdict::Preempts => {
                Ok(Fit { tried, pods: placed, score, chance: self.scheduler.next_random() })
            }
        }
    }

    /// The pods take the places that they gave back.
    fn take_again(
        &mut self,
        profile: &Profile,
        pods: &[Arc<PodInfo>],
        mut tried: Vec<Tried>,
    ) -> Result<Vec<Tried>, String> {
        for at in 0..tried.len() {
            let Tried::Placed { node, writes } = &mut tried[at] else { continue };
            match profile.reserve(&pods[at], node, &mut self.cluster) {
                Ok(again) => {
                    *writes = again;
                    self.cluster.assume(pods[at].clone(), node);
                }
                Err(why) => {
                    self.put_back(profile, pods, &tried);
                    return Err(why);
                }
            }
        }
        Ok(tried)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{node_info, pod_info};

    fn member(name: &str) -> Arc<PodInfo> {
        pod_info(json!({"metadata": {"name": name, "namespace": "d"},
            "spec": {"containers": [], "schedulingGroup": {"podGroupName": "g"}}}))
    }

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        for (name, labels) in [
            ("a1", json!({"rack": "a"})),
            ("b1", json!({"rack": "b"})),
            ("a2", json!({"rack": "a"})),
            ("n", json!({})),
        ] {
            let node = node_info(json!({"metadata": {"name": name, "labels": labels}}));
            cluster.set_node(node.node.unwrap());
        }
        cluster.take_turns();
        cluster
    }

    fn said(cluster: &Cluster) -> Result<String, String> {
        let words = |(domain, nodes): (String, Vec<usize>)| {
            let names: Vec<&str> = nodes.iter().map(|at| cluster.node_at(*at).name()).collect();
            format!("{domain}: {}", names.join(" "))
        };
        domains(cluster, "d/g", "rack").map(|all| all.into_iter().map(words).collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn placed_pods_say_which_domain_it_is() {
        let mut cluster = cluster();
        assert_eq!(said(&cluster).unwrap(), "a: a1 a2, b: b1");
        cluster.assume(member("p"), "b1");
        assert_eq!(said(&cluster).unwrap(), "b: b1");
        cluster.assume(member("q"), "a1");
        assert!(said(&cluster).unwrap_err().starts_with("more than 1 domain found for pod group: "));
        cluster.forget("d/p");
        cluster.assume(member("q"), "n");
        assert_eq!(said(&cluster).unwrap_err(), "no topology domain found for pod d/q");
    }

    #[test]
    fn more_pods_count_and_then_fuller_nodes() {
        let fit = |name: &str, pods: usize, score: i64| Fit {
            tried: vec![Tried::Placed { node: name.to_owned(), writes: Vec::new() }],
            pods,
            score,
            chance: 0,
        };
        let chosen = |fits: Vec<Fit>| match best(fits).as_deref() {
            Some([Tried::Placed { node, .. }]) => node.clone(),
            _ => String::new(),
        };
        assert_eq!(chosen(vec![fit("a", 4, 10), fit("b", 4, 20), fit("c", 3, 20)]), "b");
        assert_eq!(chosen(vec![fit("a", 4, 10), fit("b", 2, 50)]), "a");
        assert_eq!(chosen(vec![fit("a", 4, 10), fit("b", 3, 50)]), "b");
        assert_eq!(chosen(Vec::new()), "");
    }
}
