//! What is counted about authorization, by upstream's names.
//!
//! Upstream: apiserver/pkg/authorization/metrics/metrics.go, apiserver/plugin/pkg/authorizer/webhook/metrics/metrics.go,
//! apiserver/pkg/server/options/authorizationconfig/metrics/metrics.go

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::remote::review_server::Attempt;

type Labels = Vec<(&'static str, String)>;

/// Seconds, as Prometheus has them where nobody says otherwise.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Counted since the start, whatever authorizers there were in the meantime.
#[derive(Clone)]
pub struct Metrics {
    decisions: Family<Labels, Counter>,
    evaluations: Family<Labels, Counter>,
    durations: Family<Labels, Histogram, fn() -> Histogram>,
    failed_open: Family<Labels, Counter>,
    reloads: Family<Labels, Counter>,
    reloaded: Family<Labels, Gauge<f64, AtomicU64>>,
    configuration: Family<Labels, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            decisions: Family::default(),
            evaluations: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            failed_open: Family::default(),
            reloads: Family::default(),
            reloaded: Family::default(),
            configuration: Family::default(),
        }
    }
}

fn of_webhook(name: &str, attempt: Attempt) -> Labels {
    vec![("name", name.to_owned()), ("result", attempt.as_str().to_owned())]
}

impl Metrics {
    /// Counts what an authorizer allowed and what it denied.
    pub(super) fn decisions(&self, kind: &'static str, name: &str) -> [Counter; 2] {
        ["allowed", "denied"].map(|decision| {
            let labels =
                vec![("type", kind.to_owned()), ("name", name.to_owned()), ("decision", decision.to_owned())];
            self.decisions.get_or_create_owned(&labels)
        })
    }

    pub(super) fn asked(&self, name: &str, attempt: Attempt, time: Duration) {
        let labels = of_webhook(name, attempt);
        self.evaluations.get_or_create(&labels).inc();
        self.durations.get_or_create(&labels).observe(time.as_secs_f64());
    }

    pub(super) fn failed_open(&self, name: &str, attempt: Attempt) {
        self.failed_open.get_or_create(&of_webhook(name, attempt)).inc();
    }

    /// `server` and `hash` tell this server and the configuration, by their digests.
    pub(super) fn configured(&self, server: &str, hash: &str) {
        self.configuration.clear();
        let labels = vec![("apiserver_id_hash", server.to_owned()), ("hash", hash.to_owned())];
        self.configuration.get_or_create(&labels).set(1);
    }

    pub(super) fn reloaded(&self, server: &str, well: bool, now: jiff::Timestamp) {
        let status = if well { "success" } else { "failure" };
        let labels = vec![("status", status.to_owned()), ("apiserver_id_hash", server.to_owned())];
        self.reloads.get_or_create(&labels).inc();
        self.reloaded.get_or_create(&labels).set(now.as_duration().as_secs_f64());
    }

    pub fn register(&self, registry: &mut Registry) {
        for (name, help, counters) in [
            ("apiserver_authorization_decisions", "What authorizers decided", &self.decisions),
            (
                "apiserver_authorization_webhook_evaluations",
                "How often servers were asked who may do what",
                &self.evaluations,
            ),
            (
                "apiserver_authorization_webhook_evaluations_fail_open",
                "Servers that could not be asked and were passed over",
                &self.failed_open,
            ),
            (
                "apiserver_authorization_config_controller_automatic_reloads",
                "How often the authorization configuration was read again",
                &self.reloads,
            ),
        ] {
            registry.register(name, help, counters.clone());
        }
        registry.register(
            "apiserver_authorization_webhook_duration_seconds",
            "How long it took to ask who may do what",
            self.durations.clone(),
        );
        registry.register(
            "apiserver_authorization_config_controller_automatic_reload_last_timestamp_seconds",
            "When the authorization configuration was last read again",
            self.reloaded.clone(),
        );
        registry.register(
            "apiserver_authorization_config_controller_last_config_info",
            "The authorization configuration in use, by its hash",
            self.configuration.clone(),
        );
    }
}
