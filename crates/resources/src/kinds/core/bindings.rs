//! Binding: the scheduler's word on where a pod runs. Only ever created, through `pods/binding` as well.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("v1", "Binding", "bindings")
        .verbs(&[Verb::Create])
        .strategy(Rules { validate, ..Rules::PLAIN })
        .build()
}

/// Upstream: pkg/apis/core/validation/validation.go ValidatePodBinding
fn validate(binding: &Value) -> Errors {
    let mut errors = Errors::new();
    let kind = text(binding, "target.kind");
    if !kind.is_empty() && kind != "Node" {
        errors.push(Error::not_supported(&path("target.kind"), kind, &["Node", "<empty>"]));
    }
    if text(binding, "target.name").is_empty() {
        errors.push(Error::required(&path("target.name"), ""));
    }
    errors
}
