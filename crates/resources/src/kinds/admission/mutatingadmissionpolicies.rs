//! MutatingAdmissionPolicy: changes to requests, as expressions.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicy", "mutatingadmissionpolicies")
        .category("api-extensions")
        .columns("Name,Mutations:integer,ParamKind,Age", |o, now| {
            cells![get::name(o), get::len(o, "spec.mutations"), super::param_kind(o), age(o, now)]
        })
        .strategy(super::POLICY)
        .build()
}
