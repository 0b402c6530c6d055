//! ClusterRoleBinding: who has a role everywhere.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings")
        .columns(super::COLUMNS, super::cells)
        .strategy(Rules {
            validate: |o| super::validate_binding(o, &["ClusterRole"], false),
            ..super::BINDING
        })
        .build()
}
