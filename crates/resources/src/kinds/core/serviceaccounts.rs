//! ServiceAccount: who a pod is to the API server.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("v1", "ServiceAccount", "serviceaccounts")
        .short(&["sa"])
        .subresource("token", "authentication.k8s.io/v1", "TokenRequest", &[Verb::Create])
        .columns("Name,Age", |o, now| cells![get::name(o), age(o, now)])
        .strategy(Rules::PLAIN)
        .build()
}
