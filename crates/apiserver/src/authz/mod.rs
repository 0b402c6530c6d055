//! Who may do what. [`Authorizer`] asks, in upstream's order, whether the user is one of `system:masters`, then
//! the [`node`] authorizer, then [`rbac`]. [`escalation`] keeps people from granting what they do not have;
//! [`bootstrap`] holds the roles that a cluster starts with.
//!
//! What always holds: a check reads indexes derived from [`Lookup`] and refreshed when its revision moves; it
//! never waits.

pub mod bootstrap;
pub mod escalation;
mod node;
mod rbac;
mod rule;

use std::sync::Arc;

use apimachinery::{GroupResource, Status};
use serde_json::{Value, json};

pub use bootstrap::bootstrap_objects;
pub(crate) use node::node_identity;
pub use rule::Rule;

use crate::seams::{Attributes, Authorize, Decision, Lookup, UserInfo};

/// Members may do everything, whatever the roles say: the way back in when roles are broken.
pub const SYSTEM_MASTERS: &str = "system:masters";

/// One authorizer, by the name that `--authorization-mode` has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    AlwaysAllow,
    AlwaysDeny,
    Node,
    Rbac,
}

/// The authorizers of the server, in order: the first with an opinion decides.
pub struct Authorizer {
    modes: Vec<Mode>,
    node: node::NodeAuthorizer,
    rbac: rbac::Rbac,
}

impl Authorizer {
    /// Nodes by what they run, everybody else by roles.
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        Self::of_modes(vec![Mode::Node, Mode::Rbac], lookup)
    }

    pub fn of_modes(modes: Vec<Mode>, lookup: Arc<dyn Lookup>) -> Self {
        Authorizer { modes, node: node::NodeAuthorizer::new(lookup.clone()), rbac: rbac::Rbac::new(lookup) }
    }
}

fn is_master(user: &UserInfo) -> bool {
    user.groups.iter().any(|group| group == SYSTEM_MASTERS)
}

impl Authorize for Authorizer {
    /// Upstream: apiserver/pkg/authorization/union/union.go Authorize
    fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        if is_master(user) {
            return Decision::Allow { reason: String::new() };
        }
        let mut reasons: Vec<String> = Vec::new();
        for mode in &self.modes {
            let decision = match mode {
                Mode::AlwaysAllow => Decision::Allow { reason: String::new() },
                Mode::AlwaysDeny => Decision::NoOpinion { reason: "Everything is forbidden.".to_owned() },
                Mode::Node => self.node.authorize(user, attributes),
                Mode::Rbac => self.rbac.authorize(user, attributes),
            };
            match decision {
                Decision::NoOpinion { reason } => reasons.extend(Some(reason).filter(|r| !r.is_empty())),
                decided => return decided,
            }
        }
        Decision::NoOpinion { reason: reasons.join("\n") }
    }

    fn rules(&self, user: &UserInfo, namespace: &str) -> Value {
        let (rules, mut errors) = self.rbac.rules_of(user, namespace);
        let mut resource_rules = Vec::new();
        let mut other_rules = Vec::new();
        if is_master(user) {
            resource_rules.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
            other_rules.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
        }
        for rule in &rules {
            if !rule.resources.is_empty() {
                let mut shown =
                    json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
                if !rule.resource_names.is_empty() {
                    shown["resourceNames"] = json!(rule.resource_names);
                }
                resource_rules.push(shown);
            }
            if !rule.non_resource_urls.is_empty() {
                other_rules.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
            }
        }
        let incomplete = node_identity(user).is_some();
        if incomplete {
            errors.insert(0, "node authorizer does not support user rule resolution".to_owned());
        }
        let mut status = json!({
            "resourceRules": resource_rules,
            "nonResourceRules": other_rules,
            "incomplete": incomplete || !errors.is_empty(),
        });
        if !errors.is_empty() {
            status["evaluationError"] = rbac::aggregate(&errors).into();
        }
        status
    }
}

/// The 403 of a request that no authorizer allowed.
///
/// Upstream: apiserver/pkg/endpoints/handlers/responsewriters/errors.go ForbiddenStatusError
pub fn forbidden(user: &UserInfo, attributes: &Attributes, reason: &str) -> Status {
    let Attributes { verb, namespace, group, resource, subresource, path, .. } = attributes;
    let name = &user.name;
    let message = if !attributes.is_resource {
        format!("User {name:?} cannot {verb} path {path:?}")
    } else {
        let resource =
            if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
        let place = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {namespace:?}")
        };
        format!("User {name:?} cannot {verb} resource {resource:?} in API group {group:?} {place}")
    };
    let mut message = message.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    if !reason.is_empty() {
        message = format!("{message}: {reason}");
    }
    Status::forbidden(&GroupResource::new(group.clone(), resource.clone()), &attributes.name, message)
}

#[cfg(test)]
mod tests;
