//! What upstream's flags of the controller manager set, with upstream's defaults.

use std::collections::BTreeMap;
use std::time::Duration;

use resources::features::Features;

pub use crate::node_lifecycle::EvictionRates;

#[derive(Clone, Debug)]
pub struct Options {
    /// Keys that a controller works on at once, by its name, where other than by default.
    pub workers: BTreeMap<String, usize>,
    /// How long a node may be silent before it counts as unwell.
    pub node_monitor_grace_period: Duration,
    /// How long a new node may be.
    pub node_startup_grace_period: Duration,
    pub eviction_rates: EvictionRates,
    /// Pods that have ended and are kept; 0 for all.
    pub terminated_pod_gc_threshold: usize,
    /// How long a token that was made by itself may be unused before it goes.
    pub legacy_token_clean_up_period: Duration,
    pub autoscaling: Autoscaling,
    /// What is on that is off by default.
    pub features: Features,
}

/// How the horizontal autoscaler looks at its targets.
#[derive(Clone, Copy, Debug)]
pub struct Autoscaling {
    pub sync_period: Duration,
    /// How far a metric may be off without consequence, as a share.
    pub tolerance: f64,
    pub downscale_stabilization: Duration,
    /// How long the CPU use of a pod that starts is not to be trusted.
    pub cpu_initialization_period: Duration,
    /// How long a pod that becomes ready is only starting.
    pub initial_readiness_delay: Duration,
}

impl Default for Options {
    /// Upstream: pkg/controller/*/config/v1alpha1/defaults.go
    fn default() -> Self {
        Options {
            workers: BTreeMap::new(),
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            eviction_rates: EvictionRates::default(),
            terminated_pod_gc_threshold: 12_500,
            legacy_token_clean_up_period: Duration::from_secs(365 * 24 * 3600),
            autoscaling: Autoscaling {
                sync_period: Duration::from_secs(15),
                tolerance: 0.1,
                downscale_stabilization: Duration::from_secs(300),
                cpu_initialization_period: Duration::from_secs(300),
                initial_readiness_delay: Duration::from_secs(30),
            },
            features: Features::NONE,
        }
    }
}
