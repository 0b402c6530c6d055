//! ValidatingAdmissionPolicy: what requests must satisfy, as expressions.

use super::{policies, typecheck};
use crate::prelude::*;

const RULES: Rules = Rules {
    default: policies::default_policy,
    prepare_create: typecheck::prepare_create,
    prepare_update: typecheck::prepare_update,
    validate: policies::validate_validating,
    generation: true,
    unconditional_update: false,
    ..Rules::PLAIN
};

pub fn row() -> Arc<ResourceDef> {
    Row::cluster(
        "admissionregistration.k8s.io/v1",
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
    )
    .category("api-extensions")
    .status()
    .columns("Name,Validations:integer,ParamKind,Age", |o, now| {
        cells![get::name(o), get::len(o, "spec.validations"), policies::param_kind_cell(o), age(o, now)]
    })
    .strategy(RULES)
    .build()
}
