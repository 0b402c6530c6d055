//! ValidatingAdmissionPolicyBinding: where a validating policy holds.

use super::policies;
use crate::prelude::*;

const RULES: Rules = Rules {
    default: policies::default_binding,
    validate: policies::validate_validating_binding,
    generation: true,
    unconditional_update: false,
    ..Rules::PLAIN
};

pub fn row() -> Arc<ResourceDef> {
    const KIND: &str = "ValidatingAdmissionPolicyBinding";
    Row::cluster("admissionregistration.k8s.io/v1", KIND, "validatingadmissionpolicybindings")
        .category("api-extensions")
        .columns("Name,PolicyName,ParamRef,Age", policies::binding_cells)
        .strategy(RULES)
        .build()
}
