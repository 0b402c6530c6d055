//! RoleBinding: who has a role in one namespace.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")
        .columns(super::COLUMNS, super::cells)
        .strategy(Rules {
            validate: |o| super::validate_binding(o, &["Role", "ClusterRole"], true),
            ..super::BINDING
        })
        .build()
}
