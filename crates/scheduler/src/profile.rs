//! [`Profile`]: a scheduler by name, and which plugins it asks where.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{Change, Cluster, Kind};
use crate::framework::{Permit, Plugin, Prepared, Refusal, Score, Write};
use crate::plugins::{Gates, TABLE};
use crate::{NodeInfo, PodInfo};

/// A plugin in a profile, and what of it is in use.
#[derive(Clone)]
pub struct Configured {
    pub plugin: Arc<dyn Plugin>,
    /// How much its scores count; 0 when it does not rank.
    pub weight: i64,
    pub holds_back: bool,
    pub filters: bool,
    pub reserves: bool,
    pub permits: bool,
    /// It is told of bindings.
    pub hears: bool,
}

impl Configured {
    /// The plugin with all that it does.
    pub fn whole(plugin: Arc<dyn Plugin>, weight: i64) -> Self {
        let (holds_back, filters, reserves, permits, hears) = (true, true, true, true, true);
        Configured { plugin, weight, holds_back, filters, reserves, permits, hears }
    }
}

/// How widely preemption looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preemption {
    pub min_candidate_percentage: usize,
    pub min_candidates: usize,
}

impl Default for Preemption {
    /// Upstream: pkg/scheduler/apis/config/v1/defaults.go SetDefaults_DefaultPreemptionArgs
    fn default() -> Self {
        Preemption { min_candidate_percentage: 10, min_candidates: 100 }
    }
}

pub struct Profile {
    /// What pods name as their `schedulerName`.
    pub scheduler_name: String,
    pub plugins: Vec<Configured>,
    /// None: a pod that fits nowhere evicts nobody.
    pub preemption: Option<Preemption>,
    /// How many of the nodes to look at, in per cent; 0 for a share that falls as clusters grow.
    pub percentage_of_nodes: usize,
}

impl Default for Profile {
    /// The default scheduler with its default plugins.
    fn default() -> Self {
        Profile::with(Gates::default())
    }
}

impl Profile {
    /// The same, with what is switched on.
    pub fn with(gates: Gates) -> Self {
        let plugins = TABLE.iter().filter(|row| row.is_usual(gates)).filter_map(|row| {
            let plugin = (row.make?)(None).expect("every plugin can be made without arguments");
            Some(Configured::whole(plugin, row.weight))
        });
        Profile {
            scheduler_name: "default-scheduler".into(),
            plugins: plugins.collect(),
            preemption: Some(Preemption::default()),
            percentage_of_nodes: 0,
        }
    }
}

impl Profile {
    pub fn is_held_back(&self, pod: &PodInfo, cluster: &Cluster) -> bool {
        self.plugins.iter().any(|c| c.holds_back && c.plugin.hold_back(pod, cluster).is_some())
    }

    /// Why no node will do, and which plugin says so.
    pub fn refuse_all(&self, pod: &PodInfo, cluster: &Cluster) -> Option<(&'static str, Refusal)> {
        let mut filters = self.plugins.iter().filter(|c| c.filters);
        filters.find_map(|c| Some((c.plugin.name(), c.plugin.refuse_all(pod, cluster)?)))
    }

    /// Has the cluster count what the plugins will want to know for the pod.
    pub fn ask(&self, pod: &PodInfo, cluster: &mut Cluster) {
        self.plugins.iter().for_each(|configured| configured.plugin.ask(pod, cluster));
    }

    /// The only nodes that can do, and the plugins that say so.
    pub fn narrow(&self, pod: &PodInfo) -> Option<(Vec<String>, Vec<&'static str>)> {
        let mut narrow: Option<(Vec<String>, Vec<&'static str>)> = None;
        for configured in self.plugins.iter().filter(|c| c.filters) {
            let Some(names) = configured.plugin.narrow(pod) else { continue };
            let (all, plugins) = narrow.get_or_insert_with(|| (names.clone(), Vec::new()));
            all.retain(|name| names.contains(name));
            plugins.push(configured.plugin.name());
        }
        narrow
    }

    /// Whether changes of this kind may ever help a pod that the plugin refused.
    pub fn is_concerned(&self, plugin: &str, kind: Kind) -> bool {
        let plugin = self.plugins.iter().find(|configured| configured.plugin.name() == plugin);
        plugin.is_some_and(|configured| configured.plugin.events().contains(&kind))
    }

    /// Whether the change may make a pod fit that these plugins refused.
    pub fn may_help(&self, refused_by: &[&str], pod: &PodInfo, change: &Change) -> bool {
        let kind = change.kind();
        let asked = self.plugins.iter().filter(|c| refused_by.contains(&c.plugin.name()));
        asked.filter(|c| c.plugin.events().contains(&kind)).any(|c| c.plugin.may_help(pod, change))
    }

    /// The plugins that rank these nodes for the pod.
    pub fn scorers<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
        nodes: &[&NodeInfo],
    ) -> Vec<Scorer<'a>> {
        let ranking = self.plugins.iter().filter(|c| c.weight > 0);
        let scorers = ranking.filter_map(|Configured { plugin, weight, .. }| {
            let score = plugin.score(pod, cluster, nodes)?;
            Some(Scorer { plugin: plugin.name(), weight: *weight, score })
        });
        scorers.collect()
    }

    /// How good it is that a group's pods are on these nodes.
    pub fn score_domain(&self, nodes: &[&NodeInfo]) -> i64 {
        let ranking = self.plugins.iter().filter(|c| c.weight > 0);
        ranking.filter_map(|c| Some(c.weight * c.plugin.score_domain(nodes)?)).sum()
    }

    /// All plugins take what the pod needs, or none does.
    pub fn reserve(&self, pod: &PodInfo, node: &str, cluster: &mut Cluster) -> Result<Vec<Write>, String> {
        let mut writes = Vec::new();
        for configured in self.plugins.iter().filter(|c| c.reserves) {
            match configured.plugin.reserve(pod, node, cluster) {
                Ok(more) => writes.extend(more),
                Err(why) => {
                    // Nothing was written yet that would have to be undone.
                    drop(self.unreserve(pod, cluster));
                    return Err(format!("running Reserve plugin {:?}: {why}", configured.plugin.name()));
                }
            }
        }
        Ok(writes)
    }

    /// All plugins give back what they took; what is to be written for it.
    #[must_use]
    pub fn unreserve(&self, pod: &PodInfo, cluster: &mut Cluster) -> Vec<Write> {
        let reserving = self.plugins.iter().rev().filter(|c| c.reserves);
        reserving.flat_map(|c| c.plugin.unreserve(pod, cluster)).collect()
    }

    /// What is to be written so that a refused pod may fit later.
    pub fn relieve(&self, refused_by: &[&str], pod: &PodInfo, cluster: &Cluster) -> Vec<Write> {
        let asked = self.plugins.iter().filter(|c| refused_by.contains(&c.plugin.name()));
        asked.flat_map(|c| c.plugin.relieve(pod, cluster)).collect()
    }

    /// The first plugin that does not allow the binding, or allowance by none.
    ///
    /// Upstream: pkg/scheduler/framework/runtime/framework.go RunPermitPlugins
    pub fn permit(&self, pod: &PodInfo, node: &str, cluster: &Cluster) -> (&'static str, Permit) {
        let mut all = ("", Permit::Allowed);
        for configured in self.plugins.iter().filter(|c| c.permits) {
            match configured.plugin.permit(pod, node, cluster) {
                Permit::Allowed => {}
                Permit::Wait(patience) => match &mut all.1 {
                    Permit::Wait(least) => *least = patience.min(*least),
                    _ => all = (configured.plugin.name(), Permit::Wait(patience)),
                },
                rejected => return (configured.plugin.name(), rejected),
            }
        }
        all
    }

    /// Tells the plugins that the pod is bound.
    pub fn bound(&self, pod: &PodInfo, node: &str) {
        self.plugins.iter().filter(|c| c.hears).for_each(|c| c.plugin.bound(pod, node));
    }

    /// How long what was reserved may take to be there.
    pub fn preparation_timeout(&self) -> Duration {
        self.plugins.iter().filter_map(|c| c.plugin.preparation_timeout()).max().unwrap_or_default()
    }

    /// Ready when all plugins are; failed when one is.
    pub fn prepared(&self, pod: &PodInfo, node: &str, cluster: &Cluster) -> Prepared {
        let mut all = Prepared::Ready;
        for configured in self.plugins.iter().filter(|c| c.reserves) {
            match configured.plugin.prepared(pod, node, cluster) {
                Prepared::Ready => {}
                Prepared::Waiting => all = Prepared::Waiting,
                Prepared::Failed(why) => {
                    return Prepared::Failed(format!(
                        "running PreBind plugin {:?}: {why}",
                        configured.plugin.name()
                    ));
                }
            }
        }
        all
    }
}

/// A plugin that ranks, with what it worked out of the pod.
pub struct Scorer<'a> {
    pub plugin: &'static str,
    weight: i64,
    score: Box<dyn Score + 'a>,
}

/// The plugins' scores of the nodes, weighted, together.
pub fn add_up(scorers: &[Scorer], nodes: &[&NodeInfo]) -> Vec<i64> {
    let mut totals = vec![0_i64; nodes.len()];
    let mut scores = vec![0_i64; nodes.len()];
    for Scorer { weight, score, .. } in scorers {
        for (slot, node) in scores.iter_mut().zip(nodes) {
            *slot = score.score(node);
        }
        score.normalize(nodes, &mut scores);
        for (total, score) in totals.iter_mut().zip(&scores) {
            *total += score * weight;
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::pod_info;

    struct Says(&'static str, Permit);

    impl Plugin for Says {
        fn name(&self) -> &'static str {
            self.0
        }

        fn permit(&self, _pod: &PodInfo, _node: &str, _cluster: &Cluster) -> Permit {
            self.1.clone()
        }
    }

    #[test]
    fn one_plugin_is_enough_to_keep_a_pod_from_its_binding() {
        let wait = |seconds| Permit::Wait(Duration::from_secs(seconds));
        let no = || Permit::Rejected("no".into());
        let pod = pod_info(json!({"metadata": {"name": "p"}, "spec": {"containers": []}}));
        let check = |said: Vec<Permit>, plugin: &str, expected: Permit| {
            let names = ["A", "B", "C"].into_iter();
            let plugins =
                names.zip(said).map(|(name, permit)| Configured::whole(Arc::new(Says(name, permit)), 0));
            let profile = Profile { plugins: plugins.collect(), ..Profile::default() };
            assert_eq!(profile.permit(&pod, "n", &Cluster::default()), (plugin, expected));
        };
        check(vec![Permit::Allowed, Permit::Allowed], "", Permit::Allowed);
        check(vec![Permit::Allowed, wait(5)], "B", wait(5));
        check(vec![wait(9), Permit::Allowed, wait(5)], "A", wait(5));
        check(vec![wait(9), no(), wait(5)], "B", no());
    }
}
