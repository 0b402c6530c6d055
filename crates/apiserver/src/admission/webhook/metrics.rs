//! What is counted about webhooks, by upstream's names.
//!
//! Upstream: apiserver/pkg/admission/metrics/metrics.go

use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

type Labels = Vec<(&'static str, String)>;

/// Seconds.
const BUCKETS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
/// Codes above are counted as this one: a webhook says what it likes.
const LARGEST_CODE: u16 = 600;

/// A counter whose name upstream gave no `_total`.
#[derive(Clone, Debug, Default)]
struct Count(Counter);

impl TypedMetric for Count {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for Count {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        encoder.encode_gauge(&i64::try_from(self.0.get()).unwrap_or(i64::MAX))
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

pub(crate) struct Metrics {
    requests: Family<Labels, Counter>,
    durations: Family<Labels, Histogram, fn() -> Histogram>,
    rejections: Family<Labels, Count>,
    failed_open: Family<Labels, Count>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            rejections: Family::default(),
            failed_open: Family::default(),
        }
    }
}

/// What a webhook was asked about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking<'a> {
    pub name: &'a str,
    /// `admit` or `validating`.
    pub kind: &'static str,
    pub operation: &'static str,
}

impl Asking<'_> {
    fn labels(&self) -> Labels {
        let Asking { name, kind, operation } = *self;
        vec![("name", name.to_owned()), ("type", kind.to_owned()), ("operation", operation.to_owned())]
    }
}

impl Metrics {
    /// Counts a question; `rejected` says what of when the answer fails the request.
    pub fn asked(&self, asking: Asking<'_>, time: Duration, code: u16, rejected: Option<&str>) {
        let code = code.min(LARGEST_CODE).to_string();
        let mut labels = asking.labels();
        labels.push(("rejected", rejected.is_some().to_string()));
        self.durations.get_or_create(&labels).observe(time.as_secs_f64());
        labels.push(("code", code.clone()));
        self.requests.get_or_create(&labels).inc();
        if let Some(error) = rejected {
            let mut labels = asking.labels();
            labels.extend([("error_type", error.to_owned()), ("rejection_code", code)]);
            self.rejections.get_or_create(&labels).0.inc();
        }
    }

    pub fn failed_open(&self, name: &str, kind: &str) {
        let labels = vec![("name", name.to_owned()), ("type", kind.to_owned())];
        self.failed_open.get_or_create(&labels).0.inc();
    }

    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "apiserver_admission_webhook_request",
            "Requests that webhooks were asked about",
            self.requests.clone(),
        );
        registry.register(
            "apiserver_admission_webhook_admission_duration_seconds",
            "How long it took to ask webhooks",
            self.durations.clone(),
        );
        registry.register(
            "apiserver_admission_webhook_rejection_count",
            "Requests that a webhook refused, or that failed because of it",
            self.rejections.clone(),
        );
        registry.register(
            "apiserver_admission_webhook_fail_open_count",
            "Webhooks that failed and were passed over",
            self.failed_open.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_told_by_upstreams_names() {
        let metrics = Metrics::default();
        let asking = Asking { name: "w.example", kind: "admit", operation: "CREATE" };
        metrics.asked(asking, Duration::from_millis(30), 200, None);
        metrics.asked(asking, Duration::from_millis(30), 999, Some("no_error"));
        metrics.failed_open("w.example", "admit");
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let of = r#"name="w.example",type="admit""#;
        for line in [
            format!(
                r#"apiserver_admission_webhook_request_total{{{of},operation="CREATE",rejected="false",code="200"}} 1"#
            ),
            format!(
                r#"apiserver_admission_webhook_request_total{{{of},operation="CREATE",rejected="true",code="600"}} 1"#
            ),
            format!(
                r#"apiserver_admission_webhook_admission_duration_seconds_bucket{{le="0.1",{of},operation="CREATE",rejected="true"}} 1"#
            ),
            format!(
                r#"apiserver_admission_webhook_rejection_count{{{of},operation="CREATE",error_type="no_error",rejection_code="600"}} 1"#
            ),
            format!("apiserver_admission_webhook_fail_open_count{{{of}}} 1"),
        ] {
            assert!(text.lines().any(|told| told == line), "{line}\n{text}");
        }
    }
}
