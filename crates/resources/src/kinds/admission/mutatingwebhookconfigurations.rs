//! MutatingWebhookConfiguration: servers that may change requests.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    const KIND: &str = "MutatingWebhookConfiguration";
    Row::cluster("admissionregistration.k8s.io/v1", KIND, "mutatingwebhookconfigurations")
        .category("api-extensions")
        .columns("Name,Webhooks:integer,Age", super::webhooks::cells)
        .strategy(Rules { default, ..super::webhooks::RULES })
        .build()
}

fn default(configuration: &mut Value) {
    super::webhooks::default(configuration);
    for webhook in get::list_mut(configuration, "webhooks") {
        get::default_absent(webhook, "reinvocationPolicy", "Never");
    }
}
