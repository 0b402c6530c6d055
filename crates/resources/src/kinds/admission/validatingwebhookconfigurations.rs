//! ValidatingWebhookConfiguration: servers that may refuse requests.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    const KIND: &str = "ValidatingWebhookConfiguration";
    Row::cluster("admissionregistration.k8s.io/v1", KIND, "validatingwebhookconfigurations")
        .category("api-extensions")
        .columns("Name,Webhooks:integer,Age", super::webhooks::cells)
        .strategy(super::webhooks::RULES)
        .build()
}
