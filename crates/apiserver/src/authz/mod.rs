//! Who may do what. [`Authorizer`] asks, in upstream's order, whether the user is one of `system:masters`, then
//! the [`node`] authorizer, then [`rbac`]; or whom [`config`] names, [`webhook`]s and the policies of [`abac`] among
//! them, and [`reload`] names anew. [`escalation`] keeps people from granting what they do not have; [`bootstrap`] holds
//! the roles that a cluster starts with.
//!
//! What always holds: a check reads indexes derived from [`Lookup`] and refreshed when its revision moves; it
//! never waits, but for webhooks where there are any.

mod abac;
pub mod bootstrap;
pub mod config;
pub mod escalation;
mod metrics;
mod node;
mod rbac;
pub mod reload;
mod rule;
mod webhook;

use std::sync::{Arc, PoisonError, RwLock};

use apimachinery::{GroupResource, Status};
use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};

pub use abac::Policies;
pub use bootstrap::{bootstrap_objects, bootstrap_objects_with};
pub use metrics::Metrics;
pub(crate) use node::node_identity;
pub use rule::Rule;
pub use webhook::Webhook;

use crate::encode::escape_markup;
use crate::seams::{Attributes, Authorize, Decided, Decision, Lookup, UserInfo, Verdict};

/// Members may do everything, whatever the roles say: the way back in when roles are broken.
pub const SYSTEM_MASTERS: &str = "system:masters";

/// One authorizer, by the name that `--authorization-mode` has for it.
#[derive(Clone)]
pub enum Mode {
    AlwaysAllow,
    AlwaysDeny,
    Abac(Arc<Policies>),
    Node,
    Rbac,
    Webhook(Arc<Webhook>),
}

impl Mode {
    fn kind(&self) -> &'static str {
        match self {
            Mode::AlwaysAllow => "AlwaysAllow",
            Mode::AlwaysDeny => "AlwaysDeny",
            Mode::Abac(_) => "ABAC",
            Mode::Node => "Node",
            Mode::Rbac => "RBAC",
            Mode::Webhook(_) => "Webhook",
        }
    }
}

/// An authorizer, with how often it decided.
struct Counted {
    mode: Mode,
    allowed: Counter,
    denied: Counter,
}

impl Counted {
    fn new(mode: Mode, metrics: &Metrics) -> Self {
        let name = match &mode {
            Mode::Webhook(webhook) => webhook.name().to_owned(),
            mode => mode.kind().to_ascii_lowercase(),
        };
        let [allowed, denied] = metrics.decisions(mode.kind(), &name);
        Counted { mode, allowed, denied }
    }

    fn count(&self, decided: Decided) -> Decided {
        match decided.decision {
            Decision::Allow { .. } => drop(self.allowed.inc()),
            Decision::Deny { .. } => drop(self.denied.inc()),
            Decision::NoOpinion { .. } => {}
        }
        decided
    }
}

/// The authorizers of the server, in order: the first with an opinion decides.
pub struct Authorizer {
    modes: RwLock<Arc<[Counted]>>,
    metrics: Metrics,
    node: node::NodeAuthorizer,
    rbac: rbac::Rbac,
}

impl Authorizer {
    /// Nodes by what they run, everybody else by roles.
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        Self::of_modes(vec![Mode::Node, Mode::Rbac], lookup)
    }

    pub fn of_modes(modes: Vec<Mode>, lookup: Arc<dyn Lookup>) -> Self {
        Self::counted(modes, lookup, Metrics::default())
    }

    /// The same, counted together with what else is counted there.
    pub fn counted(modes: Vec<Mode>, lookup: Arc<dyn Lookup>, metrics: Metrics) -> Self {
        let authorizer = Authorizer {
            modes: RwLock::new(Arc::new([])),
            metrics,
            node: node::NodeAuthorizer::new(lookup.clone()),
            rbac: rbac::Rbac::new(lookup),
        };
        authorizer.replace(modes);
        authorizer
    }

    /// From now on these are asked; who is being asked just now finishes with those before.
    fn replace(&self, modes: Vec<Mode>) {
        let modes = modes.into_iter().map(|mode| Counted::new(mode, &self.metrics)).collect();
        *self.modes.write().unwrap_or_else(PoisonError::into_inner) = modes;
    }

    fn modes(&self) -> Arc<[Counted]> {
        self.modes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For those who decide without waiting, as admission plugins and expressions do. Where webhooks are asked, the
    /// thread waits for them while others take over its tasks.
    pub fn decide(&self, user: &UserInfo, attributes: &Attributes) -> Decided {
        match self.authorize(user, attributes) {
            Verdict::Now(decided) => decided,
            Verdict::Later(asking) => {
                tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(asking))
            }
        }
    }

    /// Whether the user may, by [`Authorizer::decide`].
    pub fn allows(&self, user: &UserInfo, attributes: &Attributes) -> bool {
        matches!(self.decide(user, attributes).decision, Decision::Allow { .. })
    }

    /// What an authorizer says that asks nobody; `None` of one that does.
    fn known(&self, mode: &Mode, user: &UserInfo, attributes: &Attributes) -> Option<Decision> {
        Some(match mode {
            Mode::AlwaysAllow => Decision::Allow { reason: String::new() },
            Mode::AlwaysDeny => Decision::NoOpinion { reason: "Everything is forbidden.".to_owned() },
            Mode::Abac(policies) => policies.authorize(user, attributes),
            Mode::Node => self.node.authorize(user, attributes),
            Mode::Rbac => self.rbac.authorize(user, attributes),
            Mode::Webhook(_) => return None,
        })
    }

    /// Asks one authorizer after the other.
    async fn ask(&self, modes: Arc<[Counted]>, user: &UserInfo, attributes: &Attributes) -> Decided {
        let mut said = Said::default();
        for counted in &*modes {
            let decided = match (self.known(&counted.mode, user, attributes), &counted.mode) {
                (Some(decision), _) => decision.into(),
                (None, Mode::Webhook(webhook)) => webhook.authorize(user, attributes).await,
                (None, _) => continue,
            };
            if let Some(decided) = said.hear(counted.count(decided)) {
                return decided;
            }
        }
        said.nothing()
    }
}

/// What those said who had no opinion.
#[derive(Default)]
struct Said {
    reasons: Vec<String>,
    errors: Vec<String>,
}

impl Said {
    /// The decision, when this is one.
    fn hear(&mut self, decided: Decided) -> Option<Decided> {
        let Decision::NoOpinion { reason } = decided.decision else { return Some(decided) };
        self.reasons.extend(Some(reason).filter(|reason| !reason.is_empty()));
        self.errors.extend(decided.error);
        None
    }

    fn nothing(self) -> Decided {
        let error = (!self.errors.is_empty()).then(|| crate::admission::join_errors(&self.errors));
        Decided { decision: Decision::NoOpinion { reason: self.reasons.join("\n") }, error }
    }
}

fn is_master(user: &UserInfo) -> bool {
    user.groups.iter().any(|group| group == SYSTEM_MASTERS)
}

impl Authorize for Authorizer {
    /// Upstream: apiserver/pkg/authorization/union/union.go Authorize
    fn authorize<'a>(&'a self, user: &'a UserInfo, attributes: &'a Attributes) -> Verdict<'a> {
        if is_master(user) {
            return Decision::Allow { reason: String::new() }.into();
        }
        let modes = self.modes();
        let mut said = Said::default();
        for counted in &*modes {
            let Some(decision) = self.known(&counted.mode, user, attributes) else {
                // Those before it had no opinion, and are asked again with it.
                return Verdict::Later(Box::pin(self.ask(modes.clone(), user, attributes)));
            };
            if let Some(decided) = said.hear(counted.count(decision.into())) {
                return Verdict::Now(decided);
            }
        }
        Verdict::Now(said.nothing())
    }

    /// Upstream: apiserver/pkg/authorization/union/union.go RulesFor
    fn rules(&self, user: &UserInfo, namespace: &str) -> Value {
        let mut resolved = Resolved::default();
        for counted in &*self.modes() {
            match &counted.mode {
                Mode::AlwaysAllow => resolved.rules.extend(everything()),
                Mode::AlwaysDeny => {}
                Mode::Abac(policies) => resolved.rules.extend(policies.rules_of(user, namespace)),
                Mode::Node if node_identity(user).is_some() => resolved.unresolved("node"),
                Mode::Node => {}
                Mode::Rbac => {
                    let (rules, errors) = self.rbac.rules_of(user, namespace);
                    resolved.rules.extend(rules);
                    resolved.errors.extend(errors);
                }
                Mode::Webhook(_) => resolved.unresolved("webhook"),
            }
        }
        resolved.status()
    }
}

/// What all authorizers say that somebody may do.
#[derive(Default)]
struct Resolved {
    rules: Vec<Rule>,
    errors: Vec<String>,
    incomplete: bool,
}

/// Whatever there is to do.
fn everything() -> [Rule; 2] {
    let all = || vec!["*".to_owned()];
    let resources = Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() };
    [resources, Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() }]
}

impl Resolved {
    fn unresolved(&mut self, kind: &str) {
        self.errors.push(format!("{kind} authorizer does not support user rule resolution"));
        self.incomplete = true;
    }

    fn status(self) -> Value {
        let (mut resource_rules, mut other_rules) = (Vec::new(), Vec::new());
        for rule in &self.rules {
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
        let mut status = json!({
            "resourceRules": resource_rules,
            "nonResourceRules": other_rules,
            "incomplete": self.incomplete,
        });
        if !self.errors.is_empty() {
            status["evaluationError"] = rbac::aggregate(&self.errors).into();
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
    let mut message = escape_markup(&message);
    if !reason.is_empty() {
        message = format!("{message}: {reason}");
    }
    Status::forbidden(&GroupResource::new(group.clone(), resource.clone()), &attributes.name, message)
}

#[cfg(test)]
mod tests;
