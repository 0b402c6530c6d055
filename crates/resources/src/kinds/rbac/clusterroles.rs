//! ClusterRole: what is allowed, in a namespace or in all.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles")
        .strategy(Rules { validate, ..super::ROLE })
        .build()
}

/// Upstream: pkg/apis/rbac/validation/validation.go ValidateClusterRole
fn validate(role: &Value) -> Errors {
    let mut errors = super::validate_rules(role, false);
    if let Some(aggregation) = at(role, "aggregationRule") {
        let at = path("aggregationRule.clusterRoleSelectors");
        if list(aggregation, "clusterRoleSelectors").is_empty() {
            let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.push(Error::required(&at, detail));
        }
        for (selector, at) in get::items(aggregation, "clusterRoleSelectors", &at) {
            errors.extend(crate::validate::selector(selector, &at));
        }
    }
    errors
}
