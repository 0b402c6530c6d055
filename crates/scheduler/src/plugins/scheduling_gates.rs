//! A pod with scheduling gates is not tried until all are gone.

use crate::PodInfo;
use crate::cluster::{Change, Cluster};
use crate::framework::Plugin;

pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    // Upstream: pkg/scheduler/framework/plugins/schedulinggates/scheduling_gates.go PreEnqueue
    fn hold_back(&self, pod: &PodInfo, _cluster: &Cluster) -> Option<String> {
        let gates = pod.spec()?.scheduling_gates.as_ref().filter(|gates| !gates.is_empty())?;
        let names: Vec<&str> = gates.iter().map(|gate| gate.name.as_str()).collect();
        Some(format!("waiting for scheduling gates: [{}]", names.join(" ")))
    }

    fn may_help(&self, _pod: &PodInfo, change: &Change) -> bool {
        matches!(change, Change::PodItself)
    }
}
