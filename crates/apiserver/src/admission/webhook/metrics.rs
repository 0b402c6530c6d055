//! What is counted about webhooks, by upstream's names.
//!
//! Upstream: apiserver/pkg/admission/metrics/metrics.go

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

type Labels = Vec<(&'static str, String)>;

#[derive(Default)]
pub(crate) struct Metrics {
    rejections: Family<Labels, Counter>,
    failed_open: Family<Labels, Counter>,
}

impl Metrics {
    pub fn rejected(&self, name: &str, kind: &str, operation: &str, error: &str, code: u16) {
        let labels = vec![
            ("name", name.to_owned()),
            ("type", kind.to_owned()),
            ("operation", operation.to_owned()),
            ("error_type", error.to_owned()),
            ("rejection_code", code.to_string()),
        ];
        self.rejections.get_or_create(&labels).inc();
    }

    pub fn failed_open(&self, name: &str, kind: &str) {
        let labels = vec![("name", name.to_owned()), ("type", kind.to_owned())];
        self.failed_open.get_or_create(&labels).inc();
    }

    pub fn register(&self, registry: &mut Registry) {
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
