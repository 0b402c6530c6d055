//! ClusterRoles made of others: `admin`, `edit` and `view` take in the rules of the roles that are labelled so.

use std::sync::Arc;

use api::Object;
use api::rbac::v1::{ClusterRole, PolicyRule};
use client::PatchType;
use controller_runtime::{Informer, WorkQueue};
use serde_json::json;

use crate::Error;
use crate::context::Context;
use crate::objects::is_deleting;
use crate::selector;

const WORKERS: usize = 1;

/// The rules of all roles that the aggregation rule selects, in the order of their names, each once; `None` for
/// a role that has no such rule.
pub(crate) fn decide(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref().unwrap_or_default();
    let mut rules: Vec<PolicyRule> = Vec::new();
    for other in all.iter().filter(|other| other.name() != role.name()) {
        if !selectors.iter().any(|s| selector::matches(s, other.metadata.labels.as_ref())) {
            continue;
        }
        for rule in other.rules.iter().flatten() {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Some(rules)
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let roles: Informer<ClusterRole> = context.informers.informer();
    let queue = WorkQueue::new();
    if !context.synced().await {
        return;
    }
    let (all, keys) = (roles.clone(), queue.clone());
    roles.subscribe(move |_| {
        // Any role may be a part of any aggregated one; the queue makes one visit of many changes.
        let aggregated = all.list().into_iter().filter(|role| role.aggregation_rule.is_some());
        aggregated.for_each(|role| keys.add(role.name().to_owned()));
    });
    context.work(&Arc::new(roles), &queue, WORKERS, reconcile).await;
}

async fn reconcile(roles: Arc<Informer<ClusterRole>>, name: String) -> Result<(), Error> {
    let Some(role) = roles.get(&name).filter(|role| !is_deleting(&**role)) else { return Ok(()) };
    let Some(rules) = decide(&role, &roles.list()) else { return Ok(()) };
    if role.rules.as_deref().unwrap_or_default() == rules {
        return Ok(());
    }
    let rules = serde_json::to_value(rules).map_err(|e| client::Error::Decode(e.into()))?;
    let patch = json!({"metadata": {"resourceVersion": role.metadata.resource_version}, "rules": rules});
    roles.patch(&role, None, PatchType::Merge, &patch).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::tests::arcs;

    #[test]
    fn labelled_roles_are_taken_in() {
        let role = |name: &str, label: &str, resource: &str| {
            ClusterRole::from_value(json!({
                "metadata": {"name": name, "labels": {label: "true"}},
                "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}],
            }))
            .unwrap()
        };
        let mut view = role("view", "to-edit", "old");
        assert_eq!(decide(&view, &[]), None);
        view.aggregation_rule = Some(
            serde_json::from_value(json!({"clusterRoleSelectors": [{"matchLabels": {"to-view": "true"}}]}))
                .unwrap(),
        );
        let all = arcs([
            role("a", "to-view", "pods"),
            role("b", "other", "secrets"),
            role("c", "to-view", "services"),
            role("d", "to-view", "pods"),
            view.clone(),
        ]);
        let rules = decide(&view, &all).unwrap();
        let resources: Vec<_> = rules.iter().map(|rule| rule.resources.clone().unwrap().join(",")).collect();
        assert_eq!(resources, ["pods", "services"]);
    }
}
