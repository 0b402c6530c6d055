//! Roles and who has them.

pub mod clusterrolebindings;
pub mod clusterroles;
pub mod rolebindings;
pub mod roles;

use crate::prelude::*;

const GROUP: &str = "rbac.authorization.k8s.io";

/// What a Role and a ClusterRole share.
const ROLE: Rules = Rules {
    name: names::path_segment,
    validate: |o| validate_rules(o, true),
    create_on_update: true,
    ..Rules::PLAIN
};

/// What a RoleBinding and a ClusterRoleBinding share.
const BINDING: Rules =
    Rules { name: names::path_segment, default, validate_update, create_on_update: true, ..Rules::PLAIN };

/// Upstream: pkg/apis/rbac/v1/defaults.go
fn default(binding: &mut Value) {
    get::default(binding, "roleRef.apiGroup", GROUP);
    for subject in get::list_mut(binding, "subjects") {
        if matches!(text(subject, "kind"), "User" | "Group") {
            get::default(subject, "apiGroup", GROUP);
        }
    }
}

/// Upstream: pkg/apis/rbac/validation/validation.go ValidatePolicyRule
fn validate_rules(role: &Value, namespaced: bool) -> Errors {
    let mut errors = Errors::new();
    for (rule, at) in get::items(role, "rules", &path("rules")) {
        if list(rule, "verbs").is_empty() {
            errors.push(Error::required(&at.child("verbs"), "verbs must contain at least one value"));
        }
        if !list(rule, "nonResourceURLs").is_empty() {
            if namespaced {
                let value = rule.get("nonResourceURLs").cloned().unwrap_or_default();
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.push(Error::invalid(&at.child("nonResourceURLs"), value, detail));
            }
            let named = ["apiGroups", "resources", "resourceNames"].iter().any(|f| !list(rule, f).is_empty());
            if named {
                let value = rule.get("nonResourceURLs").cloned().unwrap_or_default();
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(Error::invalid(&at.child("nonResourceURLs"), value, detail));
            }
            continue;
        }
        if list(rule, "apiGroups").is_empty() {
            let detail = "resource rules must supply at least one api group";
            errors.push(Error::required(&at.child("apiGroups"), detail));
        }
        if list(rule, "resources").is_empty() {
            let detail = "resource rules must supply at least one resource";
            errors.push(Error::required(&at.child("resources"), detail));
        }
    }
    errors
}

/// Upstream: pkg/apis/rbac/validation/validation.go ValidateRoleBinding
fn validate_binding(binding: &Value, role_kinds: &[&str], namespaced: bool) -> Errors {
    let mut errors = Errors::new();
    let role = path("roleRef");
    if text(binding, "roleRef.apiGroup") != GROUP {
        let value = text(binding, "roleRef.apiGroup");
        errors.push(Error::not_supported(&role.child("apiGroup"), value, &[GROUP]));
    }
    let kind = text(binding, "roleRef.kind");
    if !role_kinds.contains(&kind) {
        errors.push(Error::not_supported(&role.child("kind"), kind, role_kinds));
    }
    let name = text(binding, "roleRef.name");
    if name.is_empty() {
        errors.push(Error::required(&role.child("name"), ""));
    }
    for message in names::path_segment(name) {
        errors.push(Error::invalid(&role.child("name"), name, message));
    }
    for (subject, at) in get::items(binding, "subjects", &path("subjects")) {
        errors.extend(validate_subject(subject, &at, namespaced));
    }
    errors
}

fn validate_subject(subject: &Value, at: &Path, namespaced: bool) -> Errors {
    let mut errors = Errors::new();
    let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
    if name.is_empty() {
        errors.push(Error::required(&at.child("name"), ""));
    }
    match text(subject, "kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                for message in names::dns1123_subdomain(name) {
                    errors.push(Error::invalid(&at.child("name"), name, message));
                }
            }
            if !group.is_empty() {
                errors.push(Error::not_supported(&at.child("apiGroup"), group, &[""]));
            }
            if !namespaced && text(subject, "namespace").is_empty() {
                errors.push(Error::required(&at.child("namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.push(Error::not_supported(&at.child("apiGroup"), group, &[GROUP]));
            }
        }
        kind => {
            errors.push(Error::not_supported(&at.child("kind"), kind, &["ServiceAccount", "User", "Group"]))
        }
    }
    errors
}

/// Upstream: pkg/apis/rbac/validation/validation.go ValidateRoleBindingUpdate
fn validate_update(binding: &Value, old: &Value) -> Errors {
    if binding.get("roleRef") == old.get("roleRef") {
        return Errors::new();
    }
    let value = binding.get("roleRef").cloned().unwrap_or_default();
    vec![Error::invalid(&path("roleRef"), value, "cannot change roleRef")]
}

fn cells(binding: &Value, now: i64) -> Vec<Cell> {
    let subjects = |kind: &str| {
        let subjects = list(binding, "subjects").iter().filter(|s| text(s, "kind") == kind);
        let name = |s: &Value| match text(s, "namespace") {
            namespace if !namespace.is_empty() && kind == "ServiceAccount" => {
                format!("{namespace}/{}", text(s, "name"))
            }
            _ => text(s, "name").to_owned(),
        };
        subjects.map(name).collect::<Vec<_>>().join(", ")
    };
    cells![
        get::name(binding),
        format!("{}/{}", text(binding, "roleRef.kind"), text(binding, "roleRef.name")),
        age(binding, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

const COLUMNS: &str = "Name,Role,Age,+Users,+Groups,+ServiceAccounts";
