//! MutatingWebhookConfiguration: servers that may change requests.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    const KIND: &str = "MutatingWebhookConfiguration";
    Row::cluster("admissionregistration.k8s.io/v1", KIND, "mutatingwebhookconfigurations")
        .category("api-extensions")
        .columns("Name,Webhooks:integer,Age", super::webhook_cells)
        .strategy(Rules { default, ..super::WEBHOOKS })
        .build()
}

fn default(configuration: &mut Value) {
    super::default_webhooks(configuration);
    for webhook in get::list_mut(configuration, "webhooks") {
        get::default(webhook, "reinvocationPolicy", "Never");
    }
}
