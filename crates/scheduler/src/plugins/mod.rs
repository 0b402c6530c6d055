//! The plugins, and [`TABLE`], which lists them in the order in which they are asked.

mod dynamic_resources;
mod gang_scheduling;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_declared_features;
mod node_name;
mod node_ports;
mod node_resources;
mod node_unschedulable;
mod node_volume_limits;
mod pod_topology_spread;
mod scheduling_gates;
mod taint_toleration;
mod volume_binding;
mod volume_restrictions;
mod volume_zone;

use std::sync::Arc;

use serde_json::Value;

use crate::configuration::args;
use crate::framework::Plugin;

pub use node_affinity::matches_selector as node_selector_matches;
pub use node_affinity::matches_spec as node_matches;
pub use taint_toleration::untolerated_by;

/// Where in a cycle plugins are asked, as a configuration names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    PreEnqueue,
    QueueSort,
    PreFilter,
    Filter,
    PostFilter,
    PreScore,
    Score,
    Reserve,
    Permit,
    PreBind,
    Bind,
    PostBind,
}

/// Makes a plugin from its arguments, or says what is wrong with them.
type Make = fn(Option<&Value>) -> Result<Arc<dyn Plugin>, String>;

/// A plugin of the default profile.
pub struct Row {
    pub name: &'static str,
    pub weight: i64,
    /// Where it has something to say.
    pub points: &'static [Point],
    /// None for what is built into the scheduler and can only be switched off.
    pub make: Option<Make>,
    /// It is there only when gangs are switched on.
    pub of_gangs: bool,
}

/// What is off unless it is switched on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gates {
    /// Pods of a PodGroup are tried together.
    pub pod_groups: bool,
    /// So many of a gang are placed at once, or none is.
    pub gangs: bool,
    /// Pods of a PodGroup are placed within one domain, where the group names a topology.
    pub topologies: bool,
}

impl Row {
    /// Whether a profile has the plugin without naming it.
    pub fn is_usual(&self, gates: Gates) -> bool {
        gates.gangs || !self.of_gangs
    }
}

macro_rules! row {
    ($name:literal, $weight:literal, [$($point:ident),*]) => {
        Row { name: $name, weight: $weight, points: &[$(Point::$point),*], make: None, of_gangs: false }
    };
    ($name:literal, $weight:literal, [$($point:ident),*], $make:expr) => {
        Row { name: $name, weight: $weight, points: &[$(Point::$point),*], make: Some($make), of_gangs: false }
    };
}

/// A plugin without arguments.
macro_rules! plain {
    ($plugin:expr) => {
        |args| args::none(args).map(|()| Arc::new($plugin) as Arc<dyn Plugin>)
    };
}

/// Upstream: pkg/scheduler/apis/config/v1/default_plugins.go
pub static TABLE: &[Row] = &[
    row!("SchedulingGates", 0, [PreEnqueue], plain!(scheduling_gates::SchedulingGates)),
    row!("PrioritySort", 0, [QueueSort]),
    row!("NodeUnschedulable", 0, [Filter], plain!(node_unschedulable::NodeUnschedulable)),
    row!("NodeName", 0, [Filter], plain!(node_name::NodeName)),
    row!("TaintToleration", 3, [Filter, PreScore, Score], plain!(taint_toleration::TaintToleration)),
    row!("NodeAffinity", 2, [PreFilter, Filter, PreScore, Score], node_affinity::NodeAffinity::make),
    row!("NodePorts", 0, [PreFilter, Filter], plain!(node_ports::NodePorts)),
    row!("NodeResourcesFit", 1, [PreFilter, Filter, PreScore, Score], node_resources::Fit::make),
    row!("VolumeRestrictions", 0, [PreFilter, Filter], plain!(volume_restrictions::VolumeRestrictions)),
    row!("NodeVolumeLimits", 0, [PreFilter, Filter], plain!(node_volume_limits::NodeVolumeLimits)),
    row!("VolumeBinding", 0, [PreFilter, Filter, Reserve, PreBind], volume_binding::VolumeBinding::make),
    row!("VolumeZone", 0, [PreFilter, Filter], plain!(volume_zone::VolumeZone)),
    row!(
        "PodTopologySpread",
        2,
        [PreFilter, Filter, PreScore, Score],
        pod_topology_spread::PodTopologySpread::make
    ),
    row!(
        "InterPodAffinity",
        2,
        [PreFilter, Filter, PreScore, Score],
        inter_pod_affinity::InterPodAffinity::make
    ),
    row!(
        "DynamicResources",
        2,
        [PreEnqueue, PreFilter, Filter, PostFilter, Score, Reserve, PreBind],
        dynamic_resources::DynamicResources::make
    ),
    row!("DefaultPreemption", 0, [PostFilter]),
    row!("NodeResourcesBalancedAllocation", 1, [PreScore, Score], node_resources::BalancedAllocation::make),
    row!("ImageLocality", 1, [Score], plain!(image_locality::ImageLocality)),
    row!("DefaultBinder", 0, [Bind]),
    row!(
        "NodeDeclaredFeatures",
        0,
        [PreFilter, Filter],
        plain!(node_declared_features::NodeDeclaredFeatures)
    ),
    Row {
        of_gangs: true,
        ..row!("GangScheduling", 0, [PreEnqueue, Permit], plain!(gang_scheduling::GangScheduling))
    },
];
