//! A pod needs room on its node; among nodes with room, the profile's strategy says which are better.
//!
//! Upstream: pkg/scheduler/framework/plugins/noderesources

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;

use crate::cluster::{Change, Cluster, Kind};
use crate::configuration::args::{self, Strategy, Weighted};
use crate::devices::Devices;
use crate::framework::{Filter, LooksAt, MAX_SCORE, Plugin, Refusal, Score};
use crate::node::Load;
use crate::resources::{Resource, Resources};
use crate::{NodeInfo, PodInfo};

pub struct Fit(args::Fit);

impl Fit {
    pub fn make(args: Option<&Value>) -> Result<Arc<dyn Plugin>, String> {
        Ok(Arc::new(Fit(args::fit(args)?)))
    }
}

impl Plugin for Fit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let ignored = self.0.ignored(&pod.requests);
        Some(Box::new(Room { wanted: &pod.requests, ignored, devices: &cluster.devices }))
    }

    fn score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _cluster: &'a Cluster,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let weighted = self.0.resources.iter();
        let weighted = weighted.map(|Weighted { name, weight }| {
            let resource = Resource::named(name);
            (resource, pod.scoring_requests.amount(resource), *weight)
        });
        Some(Box::new(Allocation { weighted: weighted.collect(), strategy: &self.0.strategy }))
    }

    /// Fuller is better, so that what is left elsewhere is in one piece.
    ///
    /// Upstream: resource_allocation.go scorePlacement
    fn score_domain(&self, nodes: &[&NodeInfo]) -> Option<i64> {
        let (mut total, mut weights) = (0, 0);
        for Weighted { name, weight } in &self.0.resources {
            let resource = Resource::named(name);
            let all: i64 = nodes.iter().map(|node| node.allocatable.amount(resource)).sum();
            let used: i64 = nodes.iter().map(|node| node.scoring_requested.amount(resource)).sum();
            if all > 0 {
                total += used.min(all) * MAX_SCORE / all * weight;
                weights += weight;
            }
        }
        Some(if weights == 0 { 0 } else { total / weights })
    }

    fn events(&self) -> &'static [Kind] {
        &[Kind::PodGone, Kind::PodUpdated, Kind::PodItself, Kind::NodeAdded, Kind::NodeUpdated, Kind::Devices]
    }

    // Upstream: fit.go isSchedulableAfterPodEvent, isSchedulableAfterNodeChange
    fn may_help(&self, pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::PodGone(_) | Change::PodItself => true,
            // A pod that was scaled down.
            Change::PodUpdated { old, new } => lacking_less(&pod.requests, &old.requests, &new.requests),
            Change::Devices => !pod.requests.others.is_empty(),
            Change::NodeAdded(node) => {
                // What devices may stand behind is not looked at: one try too many does no harm.
                let ignored: Vec<String> = pod.requests.others.keys().cloned().collect();
                let node = NodeInfo::new(node.clone());
                lacking(&pod.requests, &node, &node.load, &ignored, &Devices::default()).is_none()
            }
            Change::NodeUpdated { old, new } => {
                let allocatable =
                    |node: &api::core::v1::Node| node.status.as_ref().and_then(|s| s.allocatable.clone());
                allocatable(old) != allocatable(new)
            }
            _ => false,
        }
    }
}

impl args::Fit {
    /// Those of the wanted extended resources that somebody else looks after.
    fn ignored(&self, wanted: &Resources) -> Vec<String> {
        if self.ignored.is_empty() && self.ignored_groups.is_empty() {
            return Vec::new();
        }
        let ignored = wanted.others.keys().filter(|name| {
            let group = name.split('/').next().unwrap_or_default();
            self.ignored.contains(name) || self.ignored_groups.iter().any(|ignored| ignored == group)
        });
        ignored.cloned().collect()
    }
}

struct Room<'a> {
    wanted: &'a Resources,
    ignored: Vec<String>,
    devices: &'a Devices,
}

impl Filter for Room<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        self.check_loaded(node, &node.load)
    }

    fn looks_at(&self) -> LooksAt {
        LooksAt::Load
    }

    fn is_steady(&self) -> bool {
        // Behind other resources there may be devices, which come and go without their node.
        self.wanted.others.is_empty()
    }

    fn check_loaded(&self, node: &NodeInfo, load: &Load) -> Result<(), Refusal> {
        lacking(self.wanted, node, load, &self.ignored, self.devices).map_or(Ok(()), Err)
    }
}

/// All that the node has too little of under this load.
///
/// Upstream: pkg/scheduler/framework/plugins/noderesources/fit.go fitsRequest
fn lacking(
    wanted: &Resources,
    node: &NodeInfo,
    load: &Load,
    ignored: &[String],
    devices: &Devices,
) -> Option<Refusal> {
    let (all, used) = (&node.allocatable, &load.requested);
    let mut refusal = None;
    if load.pods as i64 + 1 > all.pods {
        Refusal::add(&mut refusal, "Too many pods");
    }
    let mut compare = |name: &str, want: i64, all: i64, used: i64| {
        if want > 0 && want > all - used {
            let reason: Cow<'static, str> = match name {
                "cpu" => "Insufficient cpu".into(),
                "memory" => "Insufficient memory".into(),
                name => format!("Insufficient {name}").into(),
            };
            Refusal::add(&mut refusal, reason).unresolvable |= want > all;
        }
    };
    compare("cpu", wanted.milli_cpu, all.milli_cpu, used.milli_cpu);
    compare("memory", wanted.memory, all.memory, used.memory);
    let storage = |resources: &Resources| resources.ephemeral_storage;
    compare("ephemeral-storage", storage(wanted), storage(all), storage(used));
    for (name, want) in wanted.others.iter().filter(|(name, _)| !ignored.contains(name)) {
        // What the node does not offer itself its devices may.
        if all.of(name) <= 0 && devices.class_of(name).is_some() {
            continue;
        }
        compare(name, *want, all.of(name), used.of(name));
    }
    refusal
}

/// Whether less of something that is wanted is in use now.
fn lacking_less(wanted: &Resources, old: &Resources, new: &Resources) -> bool {
    let others = wanted.others.keys().map(|name| Resource::Other(name));
    let all = [Resource::Cpu, Resource::Memory, Resource::EphemeralStorage].into_iter().chain(others);
    all.into_iter().any(|r| wanted.amount(r) > 0 && new.amount(r) < old.amount(r))
}

struct Allocation<'a> {
    /// Resources, what of each is wanted, and how much each counts.
    weighted: Vec<(Resource<'a>, i64, i64)>,
    strategy: &'a Strategy,
}

impl Score for Allocation<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let (mut total, mut weights) = (0, 0);
        for (resource, wanted, weight) in &self.weighted {
            let all = node.allocatable.amount(*resource);
            if all == 0 {
                continue;
            }
            let used = node.scoring_requested.amount(*resource) + wanted;
            let score = match self.strategy {
                Strategy::LeastAllocated => (all - used).max(0) * MAX_SCORE / all,
                Strategy::MostAllocated => used.min(all) * MAX_SCORE / all,
                Strategy::RequestedToCapacityRatio(shape) => {
                    let score = shape.at(if used > all { 100 } else { used * 100 / all });
                    if score <= 0 {
                        continue;
                    }
                    score
                }
            };
            total += score * weight;
            weights += weight;
        }
        match self.strategy {
            _ if weights == 0 => 0,
            Strategy::RequestedToCapacityRatio(_) => (total as f64 / weights as f64).round() as i64,
            _ => total / weights,
        }
    }
}

pub struct BalancedAllocation {
    resources: Vec<String>,
}

impl BalancedAllocation {
    pub fn make(args: Option<&Value>) -> Result<Arc<dyn Plugin>, String> {
        Ok(Arc::new(BalancedAllocation { resources: args::balanced(args)? }))
    }
}

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _cluster: &'a Cluster,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let asks = self.resources.iter().any(|name| pod.requests.of(name) > 0);
        let resources = self.resources.iter().map(|name| {
            let resource = Resource::named(name);
            (resource, pod.requests.amount(resource))
        });
        asks.then(|| Box::new(Balanced(resources.collect())) as Box<dyn Score>)
    }
}

/// Resources, and what of each is wanted.
struct Balanced<'a>(Vec<(Resource<'a>, i64)>);

impl Balanced<'_> {
    /// 100 when all resources are used to the same share.
    fn balance(&self, node: &NodeInfo, with: bool) -> i64 {
        let share = |(resource, wanted): &(Resource, i64)| {
            let all = node.allocatable.amount(*resource);
            let used = node.load.requested.amount(*resource) + if with { *wanted } else { 0 };
            (all > 0).then(|| (used as f64 / all as f64).min(1.0))
        };
        // By default there are two; this is done twice for every node that is ranked.
        let (mut first, mut count) = ([0.0; 2], 0);
        for share in self.0.iter().filter_map(share) {
            if let Some(slot) = first.get_mut(count) {
                *slot = share;
            }
            count += 1;
        }
        let deviation = match count {
            0 | 1 => 0.0,
            2 => f64::abs(first[0] - first[1]) / 2.0,
            _ => {
                let shares = || self.0.iter().filter_map(share);
                let mean = shares().sum::<f64>() / count as f64;
                (shares().map(|share| (share - mean).powi(2)).sum::<f64>() / count as f64).sqrt()
            }
        };
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}

impl Score for Balanced<'_> {
    /// How much evener the use becomes: 75 when nothing changes.
    fn score(&self, node: &NodeInfo) -> i64 {
        let (with, without) = (self.balance(node, true), self.balance(node, false));
        MAX_SCORE / 2 + (MAX_SCORE / 2 + with - without) / 2
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{node_info, pod_info};

    fn node() -> NodeInfo {
        let mut node = node_info(json!({"metadata": {"name": "n"},
            "status": {"allocatable": {"cpu": "10", "memory": "10Gi", "pods": "10", "x.io/gpu": "1"}}}));
        node.add_pod(pod("other", json!({"cpu": "4", "memory": "1Gi"})));
        node
    }

    fn pod(name: &str, requests: Value) -> Arc<PodInfo> {
        pod_info(json!({"metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}}))
    }

    #[test]
    fn every_lack_is_told() {
        let lacks = |requests: Value, args: Option<Value>| {
            let fit = Fit::make(args.as_ref()).unwrap();
            let (pod, cluster) = (pod("p", requests), Cluster::default());
            let checked = fit.filter(&pod, &cluster).unwrap().check(&node());
            checked.map_err(|refusal| (refusal.words(), refusal.unresolvable))
        };
        assert_eq!(lacks(json!({"cpu": "6", "memory": "9Gi"}), None), Ok(()));
        assert_eq!(
            lacks(json!({"cpu": "7", "memory": "11Gi"}), None),
            Err(("Insufficient cpu, Insufficient memory".into(), true))
        );
        assert_eq!(lacks(json!({"cpu": "7"}), None), Err(("Insufficient cpu".into(), false)));
        let gpus = json!({"x.io/gpu": "2"});
        assert_eq!(lacks(gpus.clone(), None), Err(("Insufficient x.io/gpu".into(), true)));
        assert_eq!(lacks(gpus, Some(json!({"ignoredResourceGroups": ["x.io"]}))), Ok(()));
    }

    #[test]
    fn strategies_rank_by_what_is_used() {
        let score = |args: Option<Value>| {
            let fit = Fit::make(args.as_ref()).unwrap();
            let (pod, cluster) = (pod("p", json!({"cpu": "1", "memory": "1Gi"})), Cluster::default());
            fit.score(&pod, &cluster, &[]).unwrap().score(&node())
        };
        assert_eq!(score(None), (50 + 80) / 2);
        assert_eq!(score(Some(json!({"scoringStrategy": {"type": "MostAllocated"}}))), (50 + 20) / 2);
        let only_cpu = json!({"scoringStrategy": {"type": "RequestedToCapacityRatio",
            "resources": [{"name": "cpu", "weight": 5}],
            "requestedToCapacityRatio": {"shape": [{"utilization": 0, "score": 0}, {"utilization": 100, "score": 10}]}}});
        assert_eq!(score(Some(only_cpu)), 50);
    }

    #[test]
    fn an_evener_use_is_better() {
        let balanced = BalancedAllocation::make(None).unwrap();
        let score = |requests: Value| {
            let (pod, cluster) = (pod("p", requests), Cluster::default());
            balanced.score(&pod, &cluster, &[]).unwrap().score(&node())
        };
        assert!(score(json!({"memory": "3Gi"})) > 75);
        assert!(score(json!({"cpu": "3"})) < 75);
    }
}
