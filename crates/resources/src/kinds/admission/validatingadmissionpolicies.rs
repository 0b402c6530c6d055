//! ValidatingAdmissionPolicy: what requests must satisfy, as expressions.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster(
        "admissionregistration.k8s.io/v1",
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
    )
    .category("api-extensions")
    .status()
    .columns("Name,Validations:integer,ParamKind,Age", |o, now| {
        cells![get::name(o), get::len(o, "spec.validations"), super::param_kind(o), age(o, now)]
    })
    .strategy(super::POLICY)
    .build()
}
