//! `/metrics/probes`: how often each probe gave which result, and how long a success took.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::Object;
use api::core::v1::Pod;

use super::ProbeKind;
use super::run::Outcome;
use crate::exposition::{Family, Histogram, Kind, LabelSet};

/// Labels of a probe without its result.
type Name = [(&'static str, String); 5];

#[derive(Default)]
struct Counts {
    /// Of each probe: successful, failed.
    totals: BTreeMap<Name, [u64; 2]>,
    durations: BTreeMap<Name, Histogram>,
    /// How many tasks count under a name: a container that restarts has two for a moment.
    users: HashMap<Name, usize>,
}

/// The counts of all probes of a node.
#[derive(Default)]
pub struct Metrics(Mutex<Counts>);

// Upstream: pkg/kubelet/prober/prober_manager.go probeResultSuccessful, probeResultFailed
const RESULTS: [&str; 2] = ["successful", "failed"];

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where one probe counts, until it is dropped.
    pub(super) fn labels(self: &Arc<Self>, pod: &Pod, container: &str, kind: ProbeKind) -> Labels {
        let name = [
            ("container", container.to_owned()),
            ("namespace", pod.namespace().to_owned()),
            ("pod", pod.name().to_owned()),
            ("pod_uid", pod.uid().to_owned()),
            ("probe_type", kind.name().to_owned()),
        ];
        *self.lock().users.entry(name.clone()).or_default() += 1;
        Labels { metrics: self.clone(), name }
    }

    /// Everything in the text format.
    // Upstream: pkg/kubelet/prober/prober_manager.go ProberResults, ProberDuration
    pub fn text(&self) -> String {
        let counts = self.lock();
        let mut totals = Family::new(
            "prober_probe_total",
            "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.",
            Kind::Counter,
        );
        for (name, by_result) in &counts.totals {
            for (result, count) in RESULTS.into_iter().zip(by_result).filter(|(_, count)| **count > 0) {
                let mut labels: LabelSet = name.to_vec();
                labels.push(("result", result.to_owned()));
                totals.push(labels, *count as f64);
            }
        }
        let mut durations = Family::new(
            "prober_probe_duration_seconds",
            "[ALPHA] Duration in seconds for a probe response.",
            Kind::Histogram,
        );
        for (name, histogram) in &counts.durations {
            let labels: LabelSet = name.iter().filter(|(key, _)| *key != "pod_uid").cloned().collect();
            durations.push_histogram(&labels, histogram);
        }
        crate::exposition::text(&[durations, totals])
    }
}

/// Where one probe counts.
pub(super) struct Labels {
    metrics: Arc<Metrics>,
    name: Name,
}

impl Labels {
    pub(super) fn count(&self, outcome: &Outcome, took: Duration) {
        let index = match outcome {
            Outcome::Success | Outcome::Warning(_) => 0,
            Outcome::Failure(_) => 1,
            // Upstream throws away what an attempt that failed itself might have said.
            Outcome::Unknown(_) => return,
        };
        let mut counts = self.metrics.lock();
        counts.totals.entry(self.name.clone()).or_default()[index] += 1;
        if index == 0 {
            counts.durations.entry(self.name.clone()).or_default().observe(took.as_secs_f64());
        }
    }
}

impl Drop for Labels {
    fn drop(&mut self) {
        let mut counts = self.metrics.lock();
        let Counts { totals, durations, users } = &mut *counts;
        let left = users.get_mut(&self.name).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            users.remove(&self.name);
            totals.remove(&self.name);
            durations.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_live_as_long_as_their_probe() {
        let metrics = Arc::new(Metrics::default());
        let mut pod = Pod::default();
        (pod.metadata.name, pod.metadata.namespace, pod.metadata.uid) =
            (Some("p".into()), Some("n".into()), Some("u".into()));
        let labels = metrics.labels(&pod, "c", ProbeKind::Readiness);
        for outcome in [Outcome::Success, Outcome::Failure(String::new()), Outcome::Failure(String::new())] {
            labels.count(&outcome, Duration::from_millis(20));
        }
        let text = metrics.text();
        let of_failures = "prober_probe_total{container=\"c\",namespace=\"n\",pod=\"p\",pod_uid=\"u\",\
                           probe_type=\"Readiness\",result=\"failed\"} 2\n";
        assert!(text.contains(of_failures), "{text}");
        let of_time = "prober_probe_duration_seconds_bucket{container=\"c\",namespace=\"n\",pod=\"p\",\
                       probe_type=\"Readiness\",le=\"0.025\"} 1\n";
        assert!(text.contains(of_time), "{text}");
        drop(labels);
        assert!(!metrics.text().contains("container="), "{}", metrics.text());
    }
}
