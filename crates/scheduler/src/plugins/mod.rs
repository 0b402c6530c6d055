//! The plugins of the default profile, in the order in which they are asked.
//!
//! Upstream: pkg/scheduler/apis/config/v1/default_plugins.go

mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources;
mod node_unschedulable;
mod pod_topology_spread;
mod scheduling_gates;
mod taint_toleration;

pub use node_affinity::matches_required as node_affinity_matches;
pub use taint_toleration::untolerated;

use crate::framework::Plugin;

/// The default profile.
pub static DEFAULT: &[&dyn Plugin] = &[
    &scheduling_gates::SchedulingGates,
    &node_unschedulable::NodeUnschedulable,
    &node_name::NodeName,
    &taint_toleration::TaintToleration,
    &node_affinity::NodeAffinity,
    &node_ports::NodePorts,
    &node_resources::Fit,
    &pod_topology_spread::PodTopologySpread,
    &inter_pod_affinity::InterPodAffinity,
    &node_resources::BalancedAllocation,
    &image_locality::ImageLocality,
];
