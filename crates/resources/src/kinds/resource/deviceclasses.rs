//! DeviceClass: a kind of device that pods can ask for.

use super::devices::{MAX_CONFIG, bounded, configuration, selectors};
use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("resource.k8s.io/v1", "DeviceClass", "deviceclasses")
        .columns("Name,Age", |o, now| cells![get::name(o), age(o, now)])
        .strategy(Rules { validate, generation: true, ..Rules::PLAIN })
        .build()
}

/// Upstream: pkg/apis/resource/validation/validation.go ValidateDeviceClass
fn validate(class: &Value) -> Errors {
    let spec = path("spec");
    let mut errors = selectors(class, "spec.selectors", &spec.child("selectors"));
    errors.extend(bounded(class, "spec.config", MAX_CONFIG, &spec.child("config"), configuration));
    let resource = text(class, "spec.extendedResourceName");
    if has(class, "spec.extendedResourceName") && !crate::validate::is_extended_resource(resource) {
        let detail = "must be a valid extended resource name";
        errors.push(Error::invalid(&spec.child("extendedResourceName"), resource, detail));
    }
    errors
}
