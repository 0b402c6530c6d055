//! Which pod goes first: those that use more than they asked for, then the less important, then the greedier.

use std::cmp::Reverse;
use std::sync::Arc;

use api::core::v1::Pod;

use super::Condition;
use crate::pod::{self, qos};

/// Pods of this priority and above are not evicted.
// Upstream: pkg/apis/scheduling/types.go SystemCriticalPriority
const CRITICAL: i32 = 2_000_000_000;

/// A pod and what it uses of that of which there is too little.
#[derive(Debug)]
pub struct Candidate {
    pub pod: Arc<Pod>,
    pub used: u64,
}

// Upstream: pkg/kubelet/types/pod_update.go IsCriticalPod
pub fn is_critical(pod: &Pod) -> bool {
    pod::is_static(pod) || pod::is_mirror(pod) || priority(pod) >= CRITICAL
}

fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
}

/// What the pod asked for of that.
pub fn requested(pod: &Pod, condition: Condition) -> u64 {
    let resource = match condition {
        Condition::Memory => "memory",
        Condition::Disk => "ephemeral-storage",
        // Nobody asks for processes, so nobody uses more of them than he asked for.
        Condition::Processes => return u64::MAX,
    };
    u64::try_from(qos::pod_request(pod, resource)).unwrap_or(0)
}

/// The first to go.
// Upstream: pkg/kubelet/eviction/helpers.go rankMemoryPressure, rankDiskPressureFunc, rankPIDPressure
pub fn first(mut candidates: Vec<Candidate>, condition: Condition) -> Option<Candidate> {
    candidates.retain(|candidate| !is_critical(&candidate.pod));
    candidates.into_iter().min_by_key(|candidate| {
        let requested = requested(&candidate.pod, condition);
        let beyond = match condition {
            Condition::Processes => i128::from(candidate.used),
            _ => i128::from(candidate.used) - i128::from(requested),
        };
        (candidate.used <= requested, priority(&candidate.pod), Reverse(beyond))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn candidate(name: &str, priority: i32, request: &str, used: u64) -> Candidate {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": {
                "memory": request, "ephemeral-storage": request}}}]},
        });
        Candidate { pod: Arc::new(serde_json::from_value(pod).unwrap()), used }
    }

    #[test]
    fn the_first_to_go() {
        let check = |condition, candidates: Vec<Candidate>, want: Option<&str>| {
            let chosen = first(candidates, condition);
            assert_eq!(chosen.as_ref().and_then(|c| c.pod.metadata.name.as_deref()), want);
        };
        use Condition::{Disk, Memory, Processes};
        check(Memory, vec![], None);
        check(Memory, vec![candidate("critical", CRITICAL, "0", 9)], None);
        // Beyond its request before within it, whatever the priority.
        check(
            Memory,
            vec![candidate("within", 0, "100", 90), candidate("beyond", 5, "10", 20)],
            Some("beyond"),
        );
        check(Memory, vec![candidate("low", 0, "0", 1), candidate("high", 5, "0", 99)], Some("low"));
        check(Disk, vec![candidate("big", 0, "90", 100), candidate("greedy", 0, "10", 50)], Some("greedy"));
        check(Processes, vec![candidate("few", 0, "0", 3), candidate("many", 0, "0", 30)], Some("many"));
    }
}
