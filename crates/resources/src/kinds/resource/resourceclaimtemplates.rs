//! ResourceClaimTemplate: claims that are made for each pod.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("resource.k8s.io/v1", "ResourceClaimTemplate", "resourceclaimtemplates")
        .columns("Name,Age", |o, now| cells![get::name(o), age(o, now)])
        .strategy(Rules {
            default: |o| super::resourceclaims::default_spec(o, "spec.spec"),
            validate_update: |o, old| crate::validate::immutable(o, old, "spec"),
            ..Rules::PLAIN
        })
        .build()
}
