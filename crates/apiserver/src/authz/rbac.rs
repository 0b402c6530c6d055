//! RBAC: roles and bindings compiled into an index by subject.
//!
//! What always holds: the four parts of the index are rebuilt one by one, each when the revision of its own
//! resource has moved, so that a check that follows no change costs four comparisons and a few map reads.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use apimachinery::GroupResource;
use serde_json::Value;

use super::rule::Rule;
use crate::admission::tree::{items, text};
use crate::seams::{Attributes, Decision, Lookup, UserInfo};

pub(super) const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
pub(super) const CLUSTER_ROLES: GroupResource = GroupResource::from_static(RBAC_GROUP, "clusterroles");
pub(super) const ROLES: GroupResource = GroupResource::from_static(RBAC_GROUP, "roles");
const CLUSTER_ROLE_BINDINGS: GroupResource = GroupResource::from_static(RBAC_GROUP, "clusterrolebindings");
const ROLE_BINDINGS: GroupResource = GroupResource::from_static(RBAC_GROUP, "rolebindings");

type ClusterRoles = HashMap<String, Arc<[Rule]>>;
type Roles = HashMap<String, HashMap<String, Arc<[Rule]>>>;

/// One subject of one binding.
struct Grant {
    binding: String,
    role_kind: String,
    role_name: String,
    /// `User "x"`, for the reason of an allowance.
    subject: String,
}

/// The bindings of the cluster or of one namespace, by whom they apply to. Numbers are places in `grants`.
#[derive(Default)]
struct Bindings {
    grants: Vec<Grant>,
    users: HashMap<String, Vec<usize>>,
    groups: HashMap<String, Vec<usize>>,
}

impl Bindings {
    /// `namespace` is empty for cluster role bindings: there a ServiceAccount subject must name its own.
    fn add(&mut self, binding: &Value, namespace: &str) {
        for subject in items(binding, "subjects") {
            let name = text(subject, "name");
            let kind = text(subject, "kind");
            let own_namespace =
                Some(text(subject, "namespace")).filter(|n| !n.is_empty()).unwrap_or(namespace);
            let place = self.grants.len();
            let described = match kind {
                "User" => {
                    self.users.entry(name.to_owned()).or_default().push(place);
                    format!("{kind} {name:?}")
                }
                "Group" => {
                    self.groups.entry(name.to_owned()).or_default().push(place);
                    format!("{kind} {name:?}")
                }
                "ServiceAccount" if !own_namespace.is_empty() => {
                    let user = format!("system:serviceaccount:{own_namespace}:{name}");
                    self.users.entry(user).or_default().push(place);
                    format!("{kind} {:?}", format!("{name}/{own_namespace}"))
                }
                _ => continue,
            };
            let binding_name = text(binding, "metadata.name");
            self.grants.push(Grant {
                binding: if namespace.is_empty() {
                    format!("ClusterRoleBinding {binding_name:?}")
                } else {
                    format!("RoleBinding {:?}", format!("{binding_name}/{namespace}"))
                },
                role_kind: text(binding, "roleRef.kind").to_owned(),
                role_name: text(binding, "roleRef.name").to_owned(),
                subject: described,
            });
        }
    }

    /// The grants that apply to a user, in the order of the bindings.
    fn of<'a>(&'a self, user: &UserInfo) -> impl Iterator<Item = &'a Grant> {
        let mut places: Vec<usize> = self.users.get(&user.name).cloned().unwrap_or_default();
        for group in &user.groups {
            places.extend(self.groups.get(group).into_iter().flatten());
        }
        places.sort_unstable();
        places.dedup();
        places.into_iter().map(|place| &self.grants[place])
    }
}

/// A part of the index with the revision that it was made from.
struct Part<T> {
    resource: GroupResource,
    made: RwLock<(Option<u64>, Arc<T>)>,
    make: fn(&[Arc<Value>]) -> T,
}

impl<T: Default> Part<T> {
    fn new(resource: GroupResource, make: fn(&[Arc<Value>]) -> T) -> Self {
        Part { resource, made: RwLock::new((None, Arc::default())), make }
    }

    fn get(&self, lookup: &dyn Lookup) -> Arc<T> {
        // The revision is read before the list: a change between the two only makes the part stale again.
        let revision = lookup.revision(&self.resource);
        {
            let made = self.made.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            if made.0 == Some(revision) {
                return made.1.clone();
            }
        }
        let fresh = Arc::new((self.make)(&lookup.list(&self.resource, None)));
        let mut made = self.made.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if made.0.is_none_or(|at| at < revision) {
            *made = (Some(revision), fresh.clone());
        }
        fresh
    }
}

pub(super) struct Rbac {
    lookup: Arc<dyn Lookup>,
    cluster_roles: Part<ClusterRoles>,
    roles: Part<Roles>,
    cluster_bindings: Part<Bindings>,
    bindings: Part<HashMap<String, Bindings>>,
}

fn compile_roles(list: &[Arc<Value>]) -> Roles {
    let mut roles = Roles::new();
    for role in list {
        roles
            .entry(text(role, "metadata.namespace").to_owned())
            .or_default()
            .insert(text(role, "metadata.name").to_owned(), Rule::all_of(role).into());
    }
    roles
}

fn compile_bindings(list: &[Arc<Value>]) -> HashMap<String, Bindings> {
    let mut all: HashMap<String, Bindings> = HashMap::new();
    for binding in list {
        let namespace = text(binding, "metadata.namespace");
        all.entry(namespace.to_owned()).or_default().add(binding, namespace);
    }
    all
}

impl Rbac {
    pub(super) fn new(lookup: Arc<dyn Lookup>) -> Self {
        Rbac {
            lookup,
            cluster_roles: Part::new(CLUSTER_ROLES, |list| {
                let named = |role: &Arc<Value>| {
                    (text(role, "metadata.name").to_owned(), Arc::from(Rule::all_of(role)))
                };
                list.iter().map(named).collect()
            }),
            roles: Part::new(ROLES, compile_roles),
            cluster_bindings: Part::new(CLUSTER_ROLE_BINDINGS, |list| {
                let mut bindings = Bindings::default();
                list.iter().for_each(|binding| bindings.add(binding, ""));
                bindings
            }),
            bindings: Part::new(ROLE_BINDINGS, compile_bindings),
        }
    }

    /// The rules of the role that a binding of a namespace refers to. The error is a sentence.
    pub(super) fn role_rules(&self, kind: &str, namespace: &str, name: &str) -> Result<Arc<[Rule]>, String> {
        let (rules, resource) = match kind {
            "ClusterRole" => (self.cluster_roles.get(&*self.lookup).get(name).cloned(), "clusterrole"),
            "Role" => {
                let roles = self.roles.get(&*self.lookup);
                (roles.get(namespace).and_then(|roles| roles.get(name)).cloned(), "role")
            }
            _ => return Err(format!("unsupported role reference kind: {kind:?}")),
        };
        rules.ok_or_else(|| format!("{resource}.{RBAC_GROUP} {name:?} not found"))
    }

    /// Calls `visit` with each rule that applies and whence it comes, until it answers `false`. What cannot be
    /// resolved is returned.
    ///
    /// Upstream: pkg/registry/rbac/validation/rule.go VisitRulesFor
    fn visit(
        &self,
        user: &UserInfo,
        namespace: &str,
        mut visit: impl FnMut(&Grant, &Rule) -> bool,
    ) -> Vec<String> {
        let mut errors = Vec::new();
        let cluster = self.cluster_bindings.get(&*self.lookup);
        let namespaced = (!namespace.is_empty()).then(|| self.bindings.get(&*self.lookup));
        let local = namespaced.as_ref().and_then(|all| all.get(namespace));
        let grants = cluster
            .of(user)
            .map(|grant| (grant, ""))
            .chain(local.into_iter().flat_map(|bindings| bindings.of(user)).map(|grant| (grant, namespace)));
        for (grant, namespace) in grants {
            match self.role_rules(&grant.role_kind, namespace, &grant.role_name) {
                Err(error) => errors.push(error),
                Ok(rules) => {
                    for rule in rules.iter() {
                        if !visit(grant, rule) {
                            return errors;
                        }
                    }
                }
            }
        }
        errors
    }

    pub(super) fn rules_of(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let mut rules = Vec::new();
        let errors = self.visit(user, namespace, |_, rule| {
            rules.push(rule.clone());
            true
        });
        (rules, errors)
    }

    pub(super) fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        let mut allowed = None;
        let errors = self.visit(user, &attributes.namespace, |grant, rule| {
            if !rule.allows(attributes) {
                return true;
            }
            let Grant { binding, role_kind, role_name, subject } = grant;
            allowed = Some(format!("RBAC: allowed by {binding} of {role_kind} {role_name:?} to {subject}"));
            false
        });
        match allowed {
            Some(reason) => Decision::Allow { reason },
            None if errors.is_empty() => Decision::NoOpinion { reason: String::new() },
            None => Decision::NoOpinion { reason: format!("RBAC: {}", aggregate(&errors)) },
        }
    }
}

/// One sentence of several errors, each once.
///
/// Upstream: apimachinery/pkg/util/errors/errors.go Aggregate
pub(super) fn aggregate(errors: &[String]) -> String {
    let mut once: Vec<&str> = Vec::new();
    for error in errors {
        if !once.contains(&error.as_str()) {
            once.push(error);
        }
    }
    match once.as_slice() {
        [one] => (*one).to_owned(),
        many => format!("[{}]", many.join(", ")),
    }
}
