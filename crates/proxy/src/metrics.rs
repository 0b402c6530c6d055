//! [`Metrics`]: what is counted of the proxy, by upstream's names.
//!
//! Upstream: pkg/proxy/metrics/metrics.go. One transaction brings both families up to date here, so what is told of it
//! is told of each.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type Label = (&'static str, &'static str);
type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;
type Durations = Family<[Label; 1], Histogram, fn() -> Histogram>;

const FAMILIES: [Label; 2] = [("ip_family", "IPv4"), ("ip_family", "IPv6")];

fn from_a_millisecond() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

fn durations() -> Durations {
    Durations::new_with_constructor(from_a_millisecond)
}

/// What a proxy watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    Service,
    Endpoints,
}

/// A traffic policy Local without a local endpoint, of one port of a Service in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Starved {
    pub is_external: bool,
    pub is_ipv6: bool,
}

#[derive(Debug)]
struct Inner {
    syncs: Durations,
    full_syncs: Durations,
    partial_syncs: Durations,
    last_sync: Family<[Label; 1], Seconds>,
    last_queued: Family<[Label; 1], Seconds>,
    failures: Family<[Label; 1], Counter>,
    /// Of Services and of endpoints.
    changes: [Counter; 2],
    pending: [Gauge; 2],
    starved: Family<[Label; 2], Gauge>,
    healthz: Family<[(&'static str, String); 1], Counter>,
    livez: Family<[(&'static str, String); 1], Counter>,
    flow_seconds: Durations,
    flows_cut: Family<[Label; 1], Counter>,
}

/// A handle; clones share what is counted.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

impl Default for Metrics {
    fn default() -> Self {
        Metrics(Arc::new(Inner {
            syncs: durations(),
            full_syncs: durations(),
            partial_syncs: durations(),
            last_sync: Family::default(),
            last_queued: Family::default(),
            failures: Family::default(),
            changes: Default::default(),
            pending: Default::default(),
            starved: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
            flow_seconds: durations(),
            flows_cut: Family::default(),
        }))
    }
}

impl Metrics {
    pub(crate) fn changed(&self, what: Watched) {
        self.0.changes[what as usize].inc();
        self.0.pending[what as usize].inc();
    }

    pub(crate) fn queued(&self, now: Timestamp) {
        for family in FAMILIES {
            self.0.last_queued.get_or_create(&[family]).set(now.as_millisecond() as f64 / 1e3);
        }
    }

    /// The table is as wanted, or, if that failed, is to be written whole.
    pub(crate) fn synced(&self, took: Duration, is_full: bool, is_good: bool, now: Timestamp) {
        let of_kind = if is_full { &self.0.full_syncs } else { &self.0.partial_syncs };
        for family in FAMILIES {
            for durations in [&self.0.syncs, of_kind] {
                durations.get_or_create(&[family]).observe(took.as_secs_f64());
            }
            let failures = self.0.failures.get_or_create(&[family]);
            if is_good {
                self.0.last_sync.get_or_create(&[family]).set(now.as_millisecond() as f64 / 1e3);
            } else {
                failures.inc();
            }
        }
        if is_good {
            for pending in &self.0.pending {
                pending.set(0);
            }
        }
    }

    pub(crate) fn starved(&self, starved: Starved, count: usize) {
        let policy = ("traffic_policy", if starved.is_external { "external" } else { "internal" });
        let family = FAMILIES[usize::from(starved.is_ipv6)];
        self.0.starved.get_or_create(&[policy, family]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn probed(&self, path: &str, status: StatusCode) {
        let probes = match path {
            "/healthz" => &self.0.healthz,
            "/livez" => &self.0.livez,
            _ => return,
        };
        probes.get_or_create(&[("code", status.as_u16().to_string())]).inc();
    }

    /// Flows of UDP were looked through, and so many of a family cut.
    pub(crate) fn cut(&self, took: Duration, is_ipv6: bool, count: usize) {
        let family = [FAMILIES[usize::from(is_ipv6)]];
        self.0.flow_seconds.get_or_create(&family).observe(took.as_secs_f64());
        self.0.flows_cut.get_or_create(&family).inc_by(count as u64);
    }

    /// Has the proxy told of with all else that a process tells.
    pub fn register(&self, registry: &mut Registry) {
        let Inner {
            syncs,
            full_syncs,
            partial_syncs,
            last_sync,
            last_queued,
            failures,
            changes: [service_changes, endpoint_changes],
            pending: [services_pending, endpoints_pending],
            starved,
            healthz,
            livez,
            flow_seconds,
            flows_cut,
        } = &*self.0;
        let registry = registry.sub_registry_with_prefix("kubeproxy");
        let help = "How long bringing the rules up to date takes";
        registry.register("sync_proxy_rules_duration_seconds", help, syncs.clone());
        registry.register("sync_full_proxy_rules_duration_seconds", help, full_syncs.clone());
        registry.register("sync_partial_proxy_rules_duration_seconds", help, partial_syncs.clone());
        let help = "When the rules last were as wanted";
        registry.register("sync_proxy_rules_last_timestamp_seconds", help, last_sync.clone());
        let help = "When a change of the rules was last wanted";
        registry.register("sync_proxy_rules_last_queued_timestamp_seconds", help, last_queued.clone());
        let help = "Transactions that the kernel refused";
        registry.register("sync_proxy_rules_nftables_sync_failures", help, failures.clone());
        let help = "Changes that were heard of";
        registry.register("sync_proxy_rules_service_changes", help, service_changes.clone());
        registry.register("sync_proxy_rules_endpoint_changes", help, endpoint_changes.clone());
        let help = "Changes that are not in force yet";
        registry.register("sync_proxy_rules_service_changes_pending", help, services_pending.clone());
        registry.register("sync_proxy_rules_endpoint_changes_pending", help, endpoints_pending.clone());
        let help = "Ports of Services of traffic policy Local without an endpoint here";
        registry.register("sync_proxy_rules_no_local_endpoints_total", help, starved.clone());
        registry.register("proxy_healthz", "Answers of /healthz", healthz.clone());
        registry.register("proxy_livez", "Answers of /livez", livez.clone());
        let help = "How long looking through the tracked flows takes";
        registry.register("conntrack_reconciler_sync_duration_seconds", help, flow_seconds.clone());
        let help = "Tracked flows that were cut because their endpoint is gone";
        registry.register("conntrack_reconciler_deleted_entries", help, flows_cut.clone());
    }

    /// All of it, for one scrape.
    pub fn text(&self) -> String {
        controller_runtime::scrape(|registry| self.register(registry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_is_told_of_by_upstreams_names() {
        let metrics = Metrics::default();
        let second = |second| Timestamp::from_second(second).unwrap();
        metrics.changed(Watched::Service);
        metrics.changed(Watched::Endpoints);
        metrics.changed(Watched::Endpoints);
        metrics.queued(second(7));
        metrics.synced(Duration::from_millis(3), true, false, second(8));
        let text = metrics.text();
        let has = |text: &str, line: &str| {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        };
        has(&text, "kubeproxy_sync_proxy_rules_endpoint_changes_pending 2");
        has(&text, "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv6\"} 1");
        metrics.synced(Duration::from_millis(3), false, true, second(9));
        metrics.starved(Starved { is_external: true, is_ipv6: false }, 4);
        metrics.probed("/healthz", StatusCode::OK);
        metrics.probed("/livez", StatusCode::SERVICE_UNAVAILABLE);
        metrics.probed("/elsewhere", StatusCode::OK);
        metrics.cut(Duration::from_millis(1), false, 5);
        let text = metrics.text();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} 7.0",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 9.0",
            "kubeproxy_sync_proxy_rules_service_changes_total 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 2",
            "kubeproxy_sync_proxy_rules_service_changes_pending 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv4\"} 4",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "kubeproxy_proxy_livez_total{code=\"503\"} 1",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 5",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"} 1",
        ] {
            has(&text, line);
        }
        assert_eq!(text.matches("# TYPE").count(), 15);
    }
}
