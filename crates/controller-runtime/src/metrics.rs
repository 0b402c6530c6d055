//! What is counted of work queues, by upstream's names.
//!
//! Upstream: component-base/metrics/prometheus/workqueue/metrics.go

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// Seconds, from ten nanoseconds on ten times as many each.
const BUCKETS: [f64; 12] = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0];

/// How long something took, so often.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    count: u64,
    sum: f64,
    buckets: [u64; BUCKETS.len() + 1],
}

impl Times {
    pub fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.count += 1;
        self.sum += seconds;
        self.buckets[BUCKETS.partition_point(|bound| *bound < seconds)] += 1;
    }

    fn add(&mut self, other: &Times) {
        self.count += other.count;
        self.sum += other.sum;
        self.buckets.iter_mut().zip(other.buckets).for_each(|(mine, other)| *mine += other);
    }
}

/// What a queue has seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub depth: u64,
    pub adds: u64,
    pub retries: u64,
    /// From when a key was added to when its work began.
    pub waited: Times,
    pub worked: Times,
    /// Seconds of work under way, together and of the longest.
    pub unfinished: f64,
    pub longest: f64,
}

impl Seen {
    fn add(&mut self, other: &Seen) {
        self.depth += other.depth;
        self.adds += other.adds;
        self.retries += other.retries;
        self.waited.add(&other.waited);
        self.worked.add(&other.worked);
        self.unfinished += other.unfinished;
        self.longest = self.longest.max(other.longest);
    }
}

/// What one scrape is answered, of what is registered for it.
pub fn scrape(register: impl FnOnce(&mut Registry)) -> String {
    let mut registry = Registry::default();
    register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).expect("writing to a String cannot fail");
    text
}

/// A queue whatever its keys.
pub(crate) trait Watched: Send + Sync {
    fn seen(&self) -> Seen;
}

/// The queues of a process, for whoever asks how they do. Clones share them.
#[derive(Clone, Default)]
pub struct QueueMetrics(Arc<Mutex<Vec<(&'static str, Weak<dyn Watched>)>>>);

impl std::fmt::Debug for QueueMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueMetrics").finish_non_exhaustive()
    }
}

impl QueueMetrics {
    pub(crate) fn watch(&self, name: &'static str, queue: Weak<dyn Watched>) {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|(_, queue)| queue.strong_count() > 0);
        queues.push((name, queue));
    }

    /// Has the queues told of with all else that a process tells.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    /// All queues, for one scrape.
    pub fn text(&self) -> String {
        scrape(|registry| self.register(registry))
    }

    fn all(&self) -> BTreeMap<&'static str, Seen> {
        let queues = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut all: BTreeMap<_, Seen> = BTreeMap::new();
        for (name, queue) in queues.iter().filter_map(|(name, queue)| Some((*name, queue.upgrade()?))) {
            all.entry(name).or_default().add(&queue.seen());
        }
        all
    }
}

type Number = (&'static str, &'static str, fn(&Seen) -> f64);
type Durations = (&'static str, &'static str, fn(&Seen) -> &Times);

const COUNTERS: [Number; 2] = [
    ("workqueue_adds", "Keys that were added to the queue", |seen| seen.adds as f64),
    ("workqueue_retries", "Keys that came again after a failure", |seen| seen.retries as f64),
];
const GAUGES: [Number; 3] = [
    ("workqueue_depth", "Keys that wait in the queue", |seen| seen.depth as f64),
    ("workqueue_unfinished_work_seconds", "Seconds of all work under way", |seen| seen.unfinished),
    ("workqueue_longest_running_processor_seconds", "Seconds of the longest work under way", |seen| {
        seen.longest
    }),
];
const HISTOGRAMS: [Durations; 2] = [
    ("workqueue_queue_duration_seconds", "How long keys wait in the queue", |seen| &seen.waited),
    ("workqueue_work_duration_seconds", "How long the work on a key takes", |seen| &seen.worked),
];

impl Collector for QueueMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let all = self.all();
        for (numbers, kind) in [(&COUNTERS[..], MetricType::Counter), (&GAUGES[..], MetricType::Gauge)] {
            for (name, help, of) in numbers {
                let mut numbers = encoder.encode_descriptor(name, help, None, kind)?;
                for (queue, seen) in &all {
                    let labels = [("name", *queue)];
                    let mut number = numbers.encode_family(&labels)?;
                    match kind {
                        MetricType::Counter => {
                            number.encode_counter::<NoLabelSet, _, u64>(&(of(seen) as u64), None)?;
                        }
                        _ => number.encode_gauge(&of(seen))?,
                    }
                }
            }
        }
        for (name, help, of) in HISTOGRAMS {
            let mut histograms = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (queue, seen) in &all {
                let labels = [("name", *queue)];
                let times = of(seen);
                let bounds = BUCKETS.into_iter().chain([f64::MAX]);
                let buckets: Vec<(f64, u64)> = bounds.zip(times.buckets).collect();
                let mut family = histograms.encode_family(&labels)?;
                family.encode_histogram::<NoLabelSet>(times.sum, times.count, &buckets, None)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WorkQueue;

    #[tokio::test(start_paused = true)]
    async fn queues_are_told_of_by_upstreams_names() {
        let (metrics, queue, other) = (QueueMetrics::default(), WorkQueue::new(), WorkQueue::<u8>::new());
        queue.watch("deployment", &metrics);
        other.watch("deployment", &metrics);
        queue.add("a");
        queue.add("a");
        queue.add("b");
        other.add(1);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(queue.next().await, Some("a"));
        tokio::time::advance(Duration::from_secs(3)).await;
        queue.add_rate_limited("c");
        let text = metrics.text();
        for line in [
            "workqueue_adds_total{name=\"deployment\"} 3",
            "workqueue_retries_total{name=\"deployment\"} 1",
            "workqueue_depth{name=\"deployment\"} 2",
            "workqueue_unfinished_work_seconds{name=\"deployment\"} 3",
            "workqueue_longest_running_processor_seconds{name=\"deployment\"} 3",
            "workqueue_queue_duration_seconds_sum{name=\"deployment\"} 2",
            "workqueue_work_duration_seconds_count{name=\"deployment\"} 0",
        ] {
            assert!(text.lines().any(|found| found.starts_with(line)), "{line} is not in\n{text}");
        }
        drop((queue, other));
        assert!(metrics.all().is_empty());
    }
}
