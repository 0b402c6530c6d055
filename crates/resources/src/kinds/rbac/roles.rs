//! Role: what is allowed in one namespace.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("rbac.authorization.k8s.io/v1", "Role", "roles").strategy(super::ROLE).build()
}
