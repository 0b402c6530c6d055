//! MutatingAdmissionPolicy: changes to requests, as expressions.

use super::policies;
use crate::prelude::*;

const RULES: Rules = Rules {
    default: policies::default_policy,
    validate: policies::validate_mutating,
    generation: true,
    unconditional_update: false,
    ..Rules::PLAIN
};

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicy", "mutatingadmissionpolicies")
        .category("api-extensions")
        .columns("Name,Mutations:integer,ParamKind,Age", |o, now| {
            cells![get::name(o), get::len(o, "spec.mutations"), policies::param_kind_cell(o), age(o, now)]
        })
        .strategy(RULES)
        .build()
}
