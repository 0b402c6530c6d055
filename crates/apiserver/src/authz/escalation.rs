//! Nobody grants what they do not hold: the check of writes to roles and bindings.
//!
//! Upstream: pkg/registry/rbac/{role,clusterrole,rolebinding,clusterrolebinding}/policybased/storage.go

use std::collections::{BTreeMap, BTreeSet};

use apimachinery::Status;
use serde_json::Value;

use super::rbac::{CLUSTER_ROLES, RBAC_GROUP, ROLES, aggregate};
use super::rule::{Rule, resource_covers, url_covers};
use super::{Authorizer, is_master};
use crate::admission::tree::{items, same, text};
use crate::seams::{AdmissionRequest, Attributes, Operation, UserInfo};

/// Whether the user may write this role or binding. To be asked after mutating admission, before validation.
pub fn check(authorizer: &Authorizer, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    if request.gvr.group != RBAC_GROUP
        || !request.subresource.is_empty()
        || !matches!(request.operation, Operation::Create | Operation::Update)
        || is_master(request.user)
    {
        return Ok(());
    }
    if request.old_object.is_some_and(|old| only_collection_fields_differ(old, request.object)) {
        return Ok(());
    }
    match &*request.gvr.resource {
        "roles" | "clusterroles" => check_role(authorizer, request),
        "rolebindings" | "clusterrolebindings" => check_binding(authorizer, request),
        _ => Ok(()),
    }
}

/// Owner references and finalizers are for garbage collection and grant nothing.
///
/// Upstream: pkg/registry/rbac/helpers.go IsOnlyMutatingGCFields
fn only_collection_fields_differ(old: &Value, new: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in ["ownerReferences", "finalizers", "managedFields"] {
                metadata.remove(field);
            }
        }
        object
    };
    same(Some(&strip(old)), Some(&strip(new)))
}

fn allowed(
    authorizer: &Authorizer,
    user: &UserInfo,
    verb: &str,
    namespace: &str,
    resource: &str,
    name: &str,
) -> bool {
    let attributes = Attributes {
        verb: verb.to_owned(),
        namespace: namespace.to_owned(),
        group: RBAC_GROUP.to_owned(),
        version: "*".to_owned(),
        resource: resource.to_owned(),
        name: name.to_owned(),
        is_resource: true,
        ..Default::default()
    };
    authorizer.allows(user, &attributes)
}

fn forbid(request: &AdmissionRequest<'_>, why: impl std::fmt::Display) -> Status {
    Status::forbidden(&request.gvr.group_resource(), text(request.object, "metadata.name"), why)
}

fn check_role(authorizer: &Authorizer, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let AdmissionRequest { user, namespace, name, .. } = request;
    if allowed(authorizer, user, "escalate", namespace, &request.gvr.resource, name) {
        return Ok(());
    }
    confirm(authorizer, user, namespace, &Rule::all_of(request.object))
        .map_err(|why| forbid(request, why))?;
    let aggregates = |role: &Value| !items(role, "aggregationRule.clusterRoleSelectors").is_empty();
    if aggregates(request.object) || request.old_object.is_some_and(aggregates) {
        confirm(authorizer, user, namespace, &full_authority())
            .map_err(|_| forbid(request, "must have cluster-admin privileges to use the aggregationRule"))?;
    }
    Ok(())
}

fn check_binding(authorizer: &Authorizer, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let AdmissionRequest { user, namespace, .. } = request;
    let kind = text(request.object, "roleRef.kind");
    let name = text(request.object, "roleRef.name");
    let role = if kind == "Role" { ROLES } else { CLUSTER_ROLES };
    if allowed(authorizer, user, "bind", namespace, &role.resource, name) {
        return Ok(());
    }
    let rules = authorizer.rbac.role_rules(kind, namespace, name).map_err(|why| match kind {
        "Role" | "ClusterRole" => Status::not_found(&role, name),
        _ => Status::internal(why),
    })?;
    confirm(authorizer, user, namespace, &rules).map_err(|why| forbid(request, why))
}

fn full_authority() -> [Rule; 2] {
    let all = || vec!["*".to_owned()];
    [
        Rule { verbs: all(), api_groups: all(), resources: all(), ..Default::default() },
        Rule { verbs: all(), non_resource_urls: all(), ..Default::default() },
    ]
}

/// Whether the user holds all of `rules`; else upstream's sentence on what is missing.
///
/// Upstream: pkg/registry/rbac/validation/rule.go ConfirmNoEscalation
fn confirm(authorizer: &Authorizer, user: &UserInfo, namespace: &str, rules: &[Rule]) -> Result<(), String> {
    let (held, errors) = authorizer.rbac.rules_of(user, namespace);
    let missing: Vec<Rule> =
        rules.iter().flat_map(atoms).filter(|atom| !held.iter().any(|rule| covers(rule, atom))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let described: BTreeSet<String> = compact(missing).iter().map(describe).collect();
    let mut message = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        described.into_iter().collect::<Vec<_>>().join("\n")
    );
    if !errors.is_empty() {
        message.push_str(&format!("; resolution errors: [{}]", aggregate(&errors)));
    }
    Err(message)
}

/// A rule as rules of one verb on one thing each.
///
/// Upstream: component-helpers/auth/rbac/validation/policy_comparator.go BreakdownRule
fn atoms(rule: &Rule) -> Vec<Rule> {
    let mut atoms = Vec::new();
    for verb in &rule.verbs {
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let atom = Rule {
                    verbs: vec![verb.clone()],
                    api_groups: vec![group.clone()],
                    resources: vec![resource.clone()],
                    ..Default::default()
                };
                if rule.resource_names.is_empty() {
                    atoms.push(atom.clone());
                }
                for name in &rule.resource_names {
                    atoms.push(Rule { resource_names: vec![name.clone()], ..atom.clone() });
                }
            }
        }
        for url in &rule.non_resource_urls {
            atoms.push(Rule {
                verbs: vec![verb.clone()],
                non_resource_urls: vec![url.clone()],
                ..Default::default()
            });
        }
    }
    atoms
}

/// Whether one held rule covers an atom.
///
/// Upstream: component-helpers/auth/rbac/validation/policy_comparator.go ruleCovers
fn covers(held: &Rule, atom: &Rule) -> bool {
    let within =
        |held: &[String], wanted: &[String]| wanted.iter().all(|w| held.iter().any(|h| h == "*" || h == w));
    if !within(&held.verbs, &atom.verbs) {
        return false;
    }
    if let [url] = atom.non_resource_urls.as_slice() {
        return held.non_resource_urls.iter().any(|held| url_covers(held, url));
    }
    let resource = atom.resources.first().map(String::as_str).unwrap_or_default();
    let (parent, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    within(&held.api_groups, &atom.api_groups)
        && held.resources.iter().any(|h| h == resource || resource_covers(h, parent, subresource))
        && (held.resource_names.is_empty()
            || (!atom.resource_names.is_empty()
                && atom.resource_names.iter().all(|name| held.resource_names.contains(name))))
}

/// Atoms on the same resource and name joined into rules of many verbs.
///
/// Upstream: pkg/registry/rbac/validation/policy_compact.go CompactRules
fn compact(atoms: Vec<Rule>) -> Vec<Rule> {
    let mut joined: BTreeMap<[Vec<String>; 3], Rule> = BTreeMap::new();
    let mut others = Vec::new();
    for atom in atoms {
        if !atom.non_resource_urls.is_empty() {
            others.push(atom);
            continue;
        }
        let key = [atom.api_groups.clone(), atom.resources.clone(), atom.resource_names.clone()];
        match joined.get_mut(&key) {
            Some(rule) => rule.verbs.extend(atom.verbs),
            None => drop(joined.insert(key, atom)),
        }
    }
    others.extend(joined.into_values());
    others
}

/// Upstream: pkg/apis/rbac/v1/evaluation_helpers.go CompactString
fn describe(rule: &Rule) -> String {
    let parts: Vec<String> = [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("ResourceNames", &rule.resource_names),
        ("Verbs", &rule.verbs),
    ]
    .into_iter()
    .filter(|(_, list)| !list.is_empty())
    .map(|(field, list)| format!("{field}:{}", quoted(list)))
    .collect();
    format!("{{{}}}", parts.join(", "))
}

/// `["a" "b"]`, as Go prints a list of strings.
fn quoted(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|entry| format!("{entry:?}")).collect();
    format!("[{}]", quoted.join(" "))
}
