//! A pod needs room on its node; among nodes with room, the emptier and the better balanced are better.

use crate::cluster::{Change, Cluster};
use crate::framework::{Filter, MAX_SCORE, Plugin, Refusal, Score};
use crate::resources::Resources;
use crate::{NodeInfo, PodInfo};

pub struct Fit;

impl Plugin for Fit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn filter<'a>(&self, pod: &'a PodInfo, _cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        Some(Box::new(Room(&pod.requests)))
    }

    /// The LeastAllocated strategy over CPU and memory.
    fn score<'a>(
        &self,
        pod: &'a PodInfo,
        _cluster: &'a Cluster,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        Some(Box::new(LeastAllocated(&pod.scoring_requests)))
    }

    fn may_help(&self, pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::PodGone(_) | Change::PodItself => true,
            Change::NodeAdded(node) => lacking(&pod.requests, &NodeInfo::new(node.clone())).is_none(),
            Change::NodeUpdated { old, new } => {
                let allocatable =
                    |node: &api::core::v1::Node| node.status.as_ref().and_then(|s| s.allocatable.clone());
                allocatable(old) != allocatable(new)
            }
            Change::PodPlaced(_) | Change::Other => false,
        }
    }
}

struct Room<'a>(&'a Resources);

impl Filter for Room<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        lacking(self.0, node).map_or(Ok(()), Err)
    }
}

/// Upstream: pkg/scheduler/framework/plugins/noderesources/fit.go
fn lacking(wanted: &Resources, node: &NodeInfo) -> Option<Refusal> {
    let (all, used) = (&node.allocatable, &node.requested);
    if node.pods.len() as i64 + 1 > all.pods {
        return Some(Refusal::new("Too many pods"));
    }
    let refuse = |name: &str, want: i64, all: i64| {
        let reason = match name {
            "cpu" => "Insufficient cpu".into(),
            "memory" => "Insufficient memory".into(),
            name => std::borrow::Cow::Owned(format!("Insufficient {name}")),
        };
        Some(Refusal { reason, unresolvable: want > all })
    };
    let basic = [
        ("cpu", wanted.milli_cpu, all.milli_cpu, used.milli_cpu),
        ("memory", wanted.memory, all.memory, used.memory),
        ("ephemeral-storage", wanted.ephemeral_storage, all.ephemeral_storage, used.ephemeral_storage),
    ];
    for (name, want, all, used) in basic {
        if want > 0 && want > all - used {
            return refuse(name, want, all);
        }
    }
    for (name, want) in &wanted.others {
        let amount = |resources: &Resources| resources.others.get(name).copied().unwrap_or(0);
        if *want > 0 && *want > amount(all) - amount(used) {
            return refuse(name, *want, amount(all));
        }
    }
    None
}

struct LeastAllocated<'a>(&'a Resources);

impl Score for LeastAllocated<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let free =
            |all: i64, used: i64| if all == 0 { None } else { Some((all - used).max(0) * MAX_SCORE / all) };
        let (all, used) = (&node.allocatable, &node.scoring_requested);
        let parts = [
            free(all.milli_cpu, used.milli_cpu + self.0.milli_cpu),
            free(all.memory, used.memory + self.0.memory),
        ];
        let known = parts.iter().flatten().count() as i64;
        if known == 0 { 0 } else { parts.iter().flatten().sum::<i64>() / known }
    }
}

pub struct BalancedAllocation;

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn score<'a>(
        &self,
        pod: &'a PodInfo,
        _cluster: &'a Cluster,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let asks = pod.requests.milli_cpu > 0 || pod.requests.memory > 0;
        asks.then(|| Box::new(Balanced(&pod.requests)) as Box<dyn Score>)
    }

    fn may_help(&self, _pod: &PodInfo, _change: &Change) -> bool {
        false
    }
}

struct Balanced<'a>(&'a Resources);

impl Score for Balanced<'_> {
    /// How much evener the use of CPU and memory becomes: 75 when nothing changes.
    fn score(&self, node: &NodeInfo) -> i64 {
        let (all, used) = (&node.allocatable, &node.requested);
        let balance = |cpu: i64, memory: i64| {
            if all.milli_cpu == 0 || all.memory == 0 {
                return MAX_SCORE;
            }
            let fraction = |used: i64, all: i64| (used as f64 / all as f64).min(1.0);
            let deviation = (fraction(cpu, all.milli_cpu) - fraction(memory, all.memory)).abs() / 2.0;
            ((1.0 - deviation) * MAX_SCORE as f64) as i64
        };
        let with = balance(used.milli_cpu + self.0.milli_cpu, used.memory + self.0.memory);
        let without = balance(used.milli_cpu, used.memory);
        MAX_SCORE / 2 + (MAX_SCORE / 2 + with - without) / 2
    }
}
