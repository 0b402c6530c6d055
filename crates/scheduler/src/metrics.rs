//! [`Metrics`]: what is counted of scheduling, by upstream's names.
//!
//! Upstream: pkg/scheduler/metrics/metrics.go

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::cycle::Spent;
use crate::plugins::Point;
use crate::queue::Depth;

type Label = (&'static str, String);
type ByResult = [Label; 2];

type ByStep = [Label; 3];

/// A histogram whose buckets begin at `start` and double.
#[derive(Clone, Debug)]
struct Doubling {
    start: f64,
    count: u16,
}

impl MetricConstructor<Histogram> for Doubling {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(self.start, 2.0, self.count))
    }
}

const ATTEMPT: Doubling = Doubling { start: 0.001, count: 15 };
const SINCE_QUEUED: Doubling = Doubling { start: 0.01, count: 20 };
const STEP: Doubling = Doubling { start: 0.0001, count: 12 };
const PREEMPTION: Doubling = Doubling { start: 0.01, count: 20 };
const VICTIMS: Doubling = Doubling { start: 1.0, count: 7 };
const ATTEMPTS: Doubling = Doubling { start: 1.0, count: 5 };

/// How an attempt to schedule a pod ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Scheduled,
    Unschedulable,
    Error,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Outcome::Scheduled => "scheduled",
            Outcome::Unschedulable => "unschedulable",
            Outcome::Error => "error",
        }
    }
}

#[derive(Debug)]
struct Inner {
    attempts: Family<ByResult, Counter>,
    attempt_seconds: Family<ByResult, Histogram, Doubling>,
    algorithm_seconds: Histogram,
    victims: Histogram,
    preemptions: Counter,
    pending: Family<[Label; 1], Gauge>,
    /// Those that are set at every step: active, backoff, unschedulable, gated.
    depths: [Gauge; 4],
    incoming: Family<ByResult, Counter>,
    since_queued: Family<[Label; 1], Histogram, Doubling>,
    tries: Histogram,
    cache: Family<[Label; 1], Gauge>,
    /// The same: nodes, pods, assumed pods.
    sizes: [Gauge; 3],
    under_way: Family<[Label; 1], Gauge>,
    binding: Gauge,
    unschedulable: Family<[Label; 2], Gauge>,
    steps: Family<ByStep, Histogram, Doubling>,
    evaluations: Family<ByStep, Counter>,
    handled: Family<[Label; 1], Histogram, Doubling>,
    permit_waits: Family<[Label; 1], Histogram, Doubling>,
    evictions: Family<[Label; 1], Counter>,
    eviction_seconds: Family<[Label; 1], Histogram, Doubling>,
    overslept: Counter,
    group_attempts: Family<ByResult, Counter>,
    group_attempt_seconds: Family<ByResult, Histogram, Doubling>,
    group_algorithm_seconds: Histogram,
}

/// A handle; clones share what is counted.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

impl Default for Metrics {
    fn default() -> Self {
        let pending = Family::<[Label; 1], Gauge>::default();
        let depth = |queue: &str| pending.get_or_create(&[("queue", queue.to_owned())]).clone();
        let depths = ["active", "backoff", "unschedulable", "gated"].map(depth);
        let cache = Family::<[Label; 1], Gauge>::default();
        let size = |kind: &str| cache.get_or_create(&[("type", kind.to_owned())]).clone();
        let sizes = ["nodes", "pods", "assumed_pods"].map(size);
        let under_way = Family::<[Label; 1], Gauge>::default();
        let binding = under_way.get_or_create(&[("operation", "binding".to_owned())]).clone();
        Metrics(Arc::new(Inner {
            attempts: Family::default(),
            attempt_seconds: Family::new_with_constructor(ATTEMPT),
            algorithm_seconds: ATTEMPT.new_metric(),
            victims: VICTIMS.new_metric(),
            preemptions: Counter::default(),
            pending,
            depths,
            incoming: Family::default(),
            since_queued: Family::new_with_constructor(SINCE_QUEUED),
            tries: ATTEMPTS.new_metric(),
            cache,
            sizes,
            under_way,
            binding,
            unschedulable: Family::default(),
            steps: Family::new_with_constructor(STEP),
            evaluations: Family::default(),
            handled: Family::new_with_constructor(STEP),
            permit_waits: Family::new_with_constructor(ATTEMPT),
            evictions: Family::default(),
            eviction_seconds: Family::new_with_constructor(PREEMPTION),
            overslept: Counter::default(),
            group_attempts: Family::default(),
            group_attempt_seconds: Family::new_with_constructor(ATTEMPT),
            group_algorithm_seconds: ATTEMPT.new_metric(),
        }))
    }
}

impl Metrics {
    /// Everything, for one scrape.
    pub fn text(&self) -> String {
        controller_runtime::scrape(|registry| self.register(registry))
    }

    /// Adds everything to what one scrape tells of the process.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("scheduler");
        let Inner { attempts, attempt_seconds, algorithm_seconds, victims, preemptions, .. } = &*self.0;
        let Inner { pending, incoming, since_queued, tries, cache, under_way, unschedulable, .. } = &*self.0;
        registry.register(
            "schedule_attempts",
            "Attempts to schedule pods, by how they ended",
            attempts.clone(),
        );
        let help = "Seconds of an attempt: choosing a node and binding";
        registry.register("scheduling_attempt_duration_seconds", help, attempt_seconds.clone());
        let help = "Seconds of choosing a node";
        registry.register("scheduling_algorithm_duration_seconds", help, algorithm_seconds.clone());
        registry.register("preemption_victims", "Pods evicted for another at once", victims.clone());
        registry.register("preemption_attempts", "Attempts to make room for a pod", preemptions.clone());
        registry.register("pending_pods", "Pods that wait, by where they do", pending.clone());
        registry.register(
            "queue_incoming_pods",
            "Pods that came to wait, by where and why",
            incoming.clone(),
        );
        let help = "Seconds from when a pod came to wait until it had a node";
        registry.register("pod_scheduling_sli_duration_seconds", help, since_queued.clone());
        registry.register(
            "pod_scheduling_attempts",
            "Attempts that it took to schedule a pod",
            tries.clone(),
        );
        registry.register(
            "cache_size",
            "Nodes, pods and assumed pods that the scheduler knows",
            cache.clone(),
        );
        registry.register("goroutines", "What is under way in the background", under_way.clone());
        let help = "Pods that fit nowhere, by the plugins that refuse them";
        registry.register("unschedulable_pods", help, unschedulable.clone());
        self.register_steps(registry);
    }

    fn register_steps(&self, registry: &mut Registry) {
        let Inner { steps, evaluations, handled, permit_waits, .. } = &*self.0;
        let Inner { evictions, eviction_seconds, overslept, .. } = &*self.0;
        let help = "Seconds of all plugins at one point of scheduling";
        registry.register("framework_extension_point_duration_seconds", help, steps.clone());
        let help = "How often plugins were asked, of a pod or of a node";
        registry.register("plugin_evaluation", help, evaluations.clone());
        let help = "Seconds of taking in what happened";
        registry.register("event_handling_duration_seconds", help, handled.clone());
        let help = "Seconds that a placed pod waited for permission";
        registry.register("permit_wait_duration_seconds", help, permit_waits.clone());
        let help = "Evictions of pods for others";
        registry.register("preemption_goroutines_execution", help, evictions.clone());
        let help = "Seconds of evicting a pod for another";
        registry.register("preemption_goroutines_duration_seconds", help, eviction_seconds.clone());
        let help = "Pods that were scheduled after they had slept so long that they were tried without cause";
        registry.register("pod_scheduled_after_flush", help, overslept.clone());
        let Inner { group_attempts, group_attempt_seconds, group_algorithm_seconds, .. } = &*self.0;
        let help = "Attempts to schedule groups of pods, by how they ended";
        registry.register("podgroup_schedule_attempts", help, group_attempts.clone());
        let help = "Seconds of an attempt with a group of pods";
        registry.register(
            "podgroup_scheduling_attempt_duration_seconds",
            help,
            group_attempt_seconds.clone(),
        );
        let help = "Seconds of choosing nodes for a group of pods";
        let name = "podgroup_scheduling_algorithm_duration_seconds";
        registry.register(name, help, group_algorithm_seconds.clone());
    }

    /// Nodes were chosen for a group of pods.
    pub fn group_algorithm(&self, took: Duration) {
        self.0.group_algorithm_seconds.observe(took.as_secs_f64());
    }

    /// An attempt with a group of pods has ended.
    pub fn group_attempt(&self, result: &str, profile: &str, took: Duration) {
        let labels = [("result", result.to_owned()), ("profile", profile.to_owned())];
        self.0.group_attempts.get_or_create(&labels).inc();
        self.0.group_attempt_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// All plugins were asked at one point.
    pub fn step(&self, point: Point, status: &str, profile: &str, took: Duration) {
        let labels = [
            ("extension_point", format!("{point:?}")),
            ("status", status.to_owned()),
            ("profile", profile.to_owned()),
        ];
        self.0.steps.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// The steps of choosing a node.
    pub fn cycle(&self, profile: &str, spent: &Spent) {
        for (point, status, took) in &spent.steps {
            self.step(*point, status, profile, *took);
        }
        for (point, plugin, times) in &spent.asked {
            let labels = [
                ("plugin", (*plugin).to_owned()),
                ("extension_point", format!("{point:?}")),
                ("profile", profile.to_owned()),
            ];
            self.0.evaluations.get_or_create(&labels).inc_by(*times);
        }
    }

    /// A change was taken in.
    pub fn handled(&self, event: &str, took: Duration) {
        self.0.handled.get_or_create(&[("event", event.to_owned())]).observe(took.as_secs_f64());
    }

    /// A placed pod waits for permission no more.
    pub fn permit_waited(&self, result: &str, took: Duration) {
        self.0.permit_waits.get_or_create(&[("result", result.to_owned())]).observe(took.as_secs_f64());
    }

    /// A pod was asked to leave for another.
    pub fn evicted(&self, gone: bool, took: Duration) {
        let labels = [("result", if gone { "success" } else { "error" }.to_owned())];
        self.0.evictions.get_or_create(&labels).inc();
        self.0.eviction_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub fn attempt(&self, outcome: Outcome, profile: &str, took: Duration) {
        let labels = || [("result", outcome.as_str().to_owned()), ("profile", profile.to_owned())];
        self.0.attempts.get_or_create(&labels()).inc();
        self.0.attempt_seconds.get_or_create(&labels()).observe(took.as_secs_f64());
    }

    pub fn algorithm(&self, took: Duration) {
        self.0.algorithm_seconds.observe(took.as_secs_f64());
    }

    /// An attempt to make room for a pod.
    pub fn preemption(&self) {
        self.0.preemptions.inc();
    }

    /// So many pods are evicted for another.
    pub fn victims(&self, victims: usize) {
        self.0.victims.observe(victims as f64);
    }

    /// A pod is refused by these plugins, or is no more.
    pub fn unschedulable(&self, profile: &str, plugins: &[&'static str], refused: bool) {
        for plugin in plugins {
            let labels = [("plugin", (*plugin).to_owned()), ("profile", profile.to_owned())];
            self.0.unschedulable.get_or_create(&labels).inc_by(if refused { 1 } else { -1 });
        }
    }

    /// A pod has its node after so many attempts.
    pub fn scheduled(&self, attempts: u32, since_queued: Duration, overslept: bool) {
        self.0.overslept.inc_by(u64::from(overslept));
        // Upstream: pkg/scheduler/schedule_one.go getAttemptsLabel
        let label = if attempts >= 15 { "15+".to_owned() } else { attempts.to_string() };
        self.0.since_queued.get_or_create(&[("attempts", label)]).observe(since_queued.as_secs_f64());
        self.0.tries.observe(f64::from(attempts));
    }

    /// So many pods came to wait, by what happened.
    pub fn incoming(&self, queue: &'static str, event: &str, pods: usize) {
        if pods > 0 {
            let labels = [("queue", queue.to_owned()), ("event", event.to_owned())];
            self.0.incoming.get_or_create(&labels).inc_by(pods as u64);
        }
    }

    /// Says once how many pods wait where.
    pub fn waiting(&self, depth: Depth) {
        let Depth { active, backoff, unschedulable, gated } = depth;
        for (gauge, count) in self.0.depths.iter().zip([active, backoff, unschedulable, gated]) {
            gauge.set(count as i64);
        }
    }

    pub fn known(&self, nodes: usize, pods: usize, assumed: usize) {
        for (gauge, count) in self.0.sizes.iter().zip([nodes, pods, assumed]) {
            gauge.set(count as i64);
        }
    }

    /// So many bindings and other writes are under way.
    pub fn under_way(&self, writes: usize) {
        self.0.binding.set(writes as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_upstream_names() {
        let metrics = Metrics::default();
        metrics.attempt(Outcome::Scheduled, "default-scheduler", Duration::from_millis(3));
        metrics.scheduled(1, Duration::from_millis(3), true);
        metrics.step(Point::PreFilter, "Success", "default-scheduler", Duration::from_millis(3));
        metrics.waiting(Depth { active: 2, ..Depth::default() });
        metrics.preemption();
        metrics.victims(2);
        metrics.unschedulable("default-scheduler", &["NodeAffinity", "NodePorts"], true);
        metrics.unschedulable("default-scheduler", &["NodePorts"], false);
        let text = metrics.text();
        for line in [
            r#"scheduler_schedule_attempts_total{result="scheduled",profile="default-scheduler"} 1"#,
            r#"scheduler_pending_pods{queue="active"} 2"#,
            r#"scheduler_pod_scheduling_sli_duration_seconds_count{attempts="1"} 1"#,
            "scheduler_preemption_attempts_total 1",
            "scheduler_pod_scheduled_after_flush_total 1",
            r#"scheduler_framework_extension_point_duration_seconds_bucket{le="0.2048",extension_point="PreFilter",status="Success",profile="default-scheduler"} 1"#,
            "scheduler_preemption_victims_sum 2.0",
            r#"scheduler_unschedulable_pods{plugin="NodeAffinity",profile="default-scheduler"} 1"#,
            r#"scheduler_unschedulable_pods{plugin="NodePorts",profile="default-scheduler"} 0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
