//! RuntimeClass: which container runtime a pod wants.

use crate::prelude::*;
use crate::validate::{each, labels, quantities};

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

/// Upstream: pkg/apis/node/validation/validation.go ValidateRuntimeClass
fn validate(class: &Value) -> Errors {
    let handler = text(class, "handler");
    let mut errors = match handler.is_empty() {
        true => vec![Error::required(&path("handler"), "")],
        false => each(names::dns1123_label(handler), &path("handler"), handler),
    };
    if let Some(fixed) = at(class, "overhead.podFixed") {
        errors.extend(quantities::requirements(&json!({"limits": fixed}), &path("overhead")));
    }
    let scheduling = path("scheduling");
    errors.extend(labels(class, "scheduling.nodeSelector", &scheduling.child("nodeSelector")));
    if let Some(body) = at(class, "scheduling") {
        let at = scheduling.child("tolerations");
        errors.extend(crate::podspec::validate_tolerations(body, &at));
        let mut seen: Vec<[&str; 4]> = Vec::new();
        for (toleration, at) in get::items(body, "tolerations", &at) {
            let key = ["key", "operator", "value", "effect"].map(|field| text(toleration, field));
            if seen.contains(&key) {
                errors.push(Error::duplicate(&at, toleration.clone()));
            }
            seen.push(key);
        }
    }
    errors
}
