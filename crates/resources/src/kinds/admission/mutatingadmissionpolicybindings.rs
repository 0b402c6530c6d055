//! MutatingAdmissionPolicyBinding: where a mutating policy holds.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    const KIND: &str = "MutatingAdmissionPolicyBinding";
    Row::cluster("admissionregistration.k8s.io/v1", KIND, "mutatingadmissionpolicybindings")
        .category("api-extensions")
        .columns("Name,PolicyName,ParamRef,Age", super::binding_cells)
        .strategy(super::BINDING)
        .build()
}
