//! ServiceAccount: who a pod is to the API server.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("v1", "ServiceAccount", "serviceaccounts")
        .short(&["sa"])
        .subresource("token", "authentication.k8s.io/v1", "TokenRequest", &[Verb::Create])
        .columns("Name,Age", |o, now| cells![get::name(o), age(o, now)])
        .strategy(Rules {
            prepare_create: |_, account| keep_names(account),
            prepare_update: |_, account, _| keep_names(account),
            ..Rules::PLAIN
        })
        .build()
}

/// Of the secrets only the names count.
///
/// Upstream: pkg/registry/core/serviceaccount/strategy.go cleanSecretReferences
fn keep_names(account: &mut Value) {
    for secret in get::list_mut(account, "secrets") {
        if let Some(fields) = secret.as_object_mut() {
            fields.retain(|field, _| field == "name");
        }
    }
}
