//! RuntimeClass: which container runtime a pod wants.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("node.k8s.io/v1", "RuntimeClass", "runtimeclasses")
        .columns("Name,Handler,Age", |o, now| cells![get::name(o), text(o, "handler"), age(o, now)])
        .strategy(Rules {
            validate,
            validate_update: |o, old| crate::validate::immutable(o, old, "handler"),
            create_on_update: true,
            unconditional_update: false,
            ..Rules::PLAIN
        })
        .build()
}

fn validate(class: &Value) -> Errors {
    let handler = text(class, "handler");
    let messages = names::dns1123_label(handler);
    messages.into_iter().map(|m| Error::invalid(&path("handler"), handler, m)).collect()
}
