//! How long which pods get when the machine shuts down.

use std::sync::Arc;
use std::time::Duration;

use api::core::v1::Pod;

use crate::backoff::go_duration;

/// Upstream: pkg/apis/scheduling/types.go SystemCriticalPriority
const CRITICAL: i32 = 2_000_000_000;

/// Pods of this priority, and of those up to the next period's, end in this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    pub priority: i32,
    pub seconds: u64,
}

/// What was configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub total: Duration,
    /// The part of the total that only critical pods get.
    pub critical: Duration,
    pub by_priority: Vec<Period>,
}

impl Settings {
    /// Says what is wrong with them.
    // Upstream: pkg/kubelet/apis/config/validation/validation.go ValidateKubeletConfiguration
    pub fn check(self) -> Result<Self, String> {
        let Settings { total, critical, by_priority } = &self;
        let (whole, part) = (go_duration(*total), go_duration(*critical));
        if critical > total {
            return Err(format!(
                "invalid configuration: shutdownGracePeriodCriticalPods {{{part}}} must be <= shutdownGracePeriod {{{whole}}}"
            ));
        }
        for (name, period) in [("shutdownGracePeriod", total), ("shutdownGracePeriodCriticalPods", critical)]
        {
            if !period.is_zero() && *period < Duration::from_secs(1) {
                return Err(format!(
                    "invalid configuration: {name} {{{}}} must be either zero or otherwise >= 1 sec",
                    go_duration(*period)
                ));
            }
        }
        if !(by_priority.is_empty() || total.is_zero() && critical.is_zero()) {
            return Err("invalid configuration: Cannot specify both shutdownGracePeriodByPodPriority and \
                        shutdownGracePeriod at the same time"
                .to_owned());
        }
        Ok(self)
    }

    /// The periods, the lowest priority first; none when nothing was configured.
    // Upstream: pkg/kubelet/nodeshutdown/nodeshutdown_manager.go newPodManager, migrateConfig
    pub fn periods(&self) -> Vec<Period> {
        let mut periods = self.by_priority.clone();
        if periods.is_empty() && !self.total.is_zero() {
            let others = self.total.saturating_sub(self.critical);
            periods = vec![
                Period { priority: 0, seconds: others.as_secs() },
                Period { priority: CRITICAL, seconds: self.critical.as_secs() },
            ];
        }
        periods.sort_by_key(|period| period.priority);
        periods
    }
}

/// The pods that end together.
#[derive(Debug)]
pub struct Group {
    pub priority: i32,
    pub seconds: u64,
    pub pods: Vec<Arc<Pod>>,
}

/// The pods by the periods, which are in order: each goes with the highest that is not above it, or with the lowest.
// Upstream: pkg/kubelet/nodeshutdown/nodeshutdown_manager.go groupByPriority
pub fn groups(periods: &[Period], pods: &[Arc<Pod>]) -> Vec<Group> {
    let empty =
        |period: &Period| Group { priority: period.priority, seconds: period.seconds, pods: Vec::new() };
    let mut groups: Vec<Group> = periods.iter().map(empty).collect();
    for pod in pods {
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let reached = periods.iter().filter(|period| period.priority <= priority).count();
        if let Some(group) = groups.get_mut(reached.saturating_sub(1)) {
            group.pods.push(pod.clone());
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seconds(total: u64, critical: u64) -> Settings {
        let (total, critical) = (Duration::from_secs(total), Duration::from_secs(critical));
        Settings { total, critical, by_priority: Vec::new() }
    }

    #[test]
    fn two_durations_are_two_periods() {
        assert_eq!(seconds(0, 0).periods(), []);
        let two = [Period { priority: 0, seconds: 20 }, Period { priority: CRITICAL, seconds: 10 }];
        assert_eq!(seconds(30, 10).periods(), two);
        let unsorted = vec![two[1], two[0]];
        assert_eq!(Settings { by_priority: unsorted, ..Default::default() }.periods(), two);
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let wrong = |settings: Settings| settings.check().unwrap_err();
        let words = "shutdownGracePeriodCriticalPods {2s} must be <= shutdownGracePeriod {1s}";
        assert!(wrong(seconds(1, 2)).ends_with(words));
        let short = Settings { total: Duration::from_millis(1), ..Default::default() };
        assert!(
            wrong(short).ends_with("shutdownGracePeriod {1ms} must be either zero or otherwise >= 1 sec")
        );
        let both = Settings { by_priority: vec![Period { priority: 0, seconds: 1 }], ..seconds(1, 0) };
        assert!(wrong(both).contains("Cannot specify both"));
        assert!(seconds(30, 10).check().is_ok());
    }

    #[test]
    fn pods_go_with_the_highest_period_that_they_reach() {
        let period = |priority| Period { priority, seconds: 1 };
        let periods = [period(1), period(2), period(4)];
        let pod = |priority: Option<i32>| {
            let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [], "priority": priority}});
            Arc::new(serde_json::from_value::<Pod>(pod).unwrap())
        };
        let pods: Vec<_> = [None, Some(0), Some(1), Some(2), Some(3), Some(4), Some(5)].map(pod).to_vec();
        let groups = groups(&periods, &pods);
        let found: Vec<Vec<Option<i32>>> = groups
            .iter()
            .map(|group| group.pods.iter().map(|pod| pod.spec.as_ref().unwrap().priority).collect())
            .collect();
        assert_eq!(found, [vec![None, Some(0), Some(1)], vec![Some(2), Some(3)], vec![Some(4), Some(5)]]);
    }
}
