//! ValidatingAdmissionPolicyBinding: where a validating policy holds.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    const KIND: &str = "ValidatingAdmissionPolicyBinding";
    Row::cluster("admissionregistration.k8s.io/v1", KIND, "validatingadmissionpolicybindings")
        .category("api-extensions")
        .columns("Name,PolicyName,ParamRef,Age", super::binding_cells)
        .strategy(super::BINDING)
        .build()
}
