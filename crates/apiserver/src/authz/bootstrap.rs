//! The roles and bindings that a cluster starts with, read from `bootstrap.txt`.
//!
//! An unindented line there begins an object: `clusterrole NAME` or `role NAMESPACE/NAME`, with `to=X` for a
//! role that is gathered into X and `from=X` for the role that gathers; or `clusterrolebinding NAME KIND:ROLE`
//! with its subjects as `user=`, `group=` and `sa=NAMESPACE/NAME`. The indented lines after a role are its
//! rules: `VERBS GROUPS RESOURCES [NAMES]`, the core group written `core`, or `VERBS url PATHS`. A line that begins
//! with `?FEATURE|` counts where that feature is on.
//!
//! Upstream: plugin/pkg/auth/authorizer/rbac/bootstrappolicy/{policy,controller_policy,namespace_policy}.go

use std::collections::BTreeMap;

use resources::features::Features;
use serde_json::{Value, json};

use crate::admission::tree::{items, label, set};

const TABLE: &str = include_str!("bootstrap.txt");
const AGGREGATE_TO: &str = "rbac.authorization.k8s.io/aggregate-to-";

/// All default ClusterRoles, Roles, ClusterRoleBindings and RoleBindings, aggregated roles already filled.
pub fn bootstrap_objects() -> Vec<Value> {
    bootstrap_objects_with(Features::NONE)
}

/// The same of a cluster with these features.
pub fn bootstrap_objects_with(features: Features) -> Vec<Value> {
    let mut objects: Vec<Value> = Vec::new();
    let counts = |line: &'static str| match line.strip_prefix('?').and_then(|line| line.split_once('|')) {
        Some((feature, line)) => features.has_named(feature).then_some(line),
        None => Some(line),
    };
    let lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines.filter_map(counts) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(' ') {
            let rules = objects.last_mut().and_then(|role| role["rules"].as_array_mut());
            rules.expect("the table's indented lines follow a role").push(parse_rule(&words));
        } else {
            objects.push(parse_head(&words));
        }
    }
    aggregate(&mut objects);
    objects
}

fn list(words: &str) -> Vec<&str> {
    words.split(',').map(|word| if word == "core" { "" } else { word }).collect()
}

fn parse_rule(words: &[&str]) -> Value {
    match words {
        [verbs, "url", paths] => json!({"verbs": list(verbs), "nonResourceURLs": list(paths)}),
        [verbs, groups, resources] => {
            json!({"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources)})
        }
        [verbs, groups, resources, names] => json!({
            "verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources), "resourceNames": list(names),
        }),
        _ => unreachable!("the table's rules have two to four words"),
    }
}

fn parse_head(words: &[&str]) -> Value {
    let [kind, name, rest @ ..] = words else { unreachable!("the table's objects have a kind and a name") };
    let kind = match *kind {
        "clusterrole" => "ClusterRole",
        "role" => "Role",
        "clusterrolebinding" => "ClusterRoleBinding",
        "rolebinding" => "RoleBinding",
        _ => unreachable!("the table has no other kinds"),
    };
    let mut object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        },
    });
    match name.split_once('/').filter(|_| !kind.starts_with("Cluster")) {
        Some((namespace, name)) => {
            object["metadata"]["namespace"] = namespace.into();
            object["metadata"]["name"] = name.into();
        }
        None => object["metadata"]["name"] = (*name).into(),
    }
    if kind.ends_with("Role") {
        object["rules"] = json!([]);
        for word in rest {
            match word.split_once('=') {
                Some(("to", role)) => {
                    object["metadata"]["labels"][format!("{AGGREGATE_TO}{role}")] = "true".into()
                }
                Some(("from", role)) => {
                    let selector = json!({"matchLabels": {format!("{AGGREGATE_TO}{role}"): "true"}});
                    object["aggregationRule"] = json!({"clusterRoleSelectors": [selector]});
                }
                _ => unreachable!("the table's roles have no other words"),
            }
        }
        return object;
    }
    let (role_kind, role) =
        rest.first().and_then(|word| word.split_once(':')).expect("a binding names its role");
    object["roleRef"] = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role});
    let subjects: Vec<Value> = rest[1..].iter().map(|word| parse_subject(word)).collect();
    if !subjects.is_empty() {
        object["subjects"] = subjects.into();
    }
    object
}

fn parse_subject(word: &str) -> Value {
    match word.split_once('=') {
        Some(("sa", account)) => {
            let (namespace, name) = account.split_once('/').expect("an account has a namespace");
            json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
        }
        Some((kind, name)) => {
            let kind = if kind == "user" { "User" } else { "Group" };
            json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name})
        }
        None => unreachable!("the table's subjects have a kind"),
    }
}

/// Fills each gathering role with the rules of those labelled for it, in the order of their names, again and
/// again until nothing changes: `admin` gathers `edit`, which gathers `view`.
fn aggregate(objects: &mut [Value]) {
    loop {
        let mut filled: BTreeMap<usize, Vec<Value>> = BTreeMap::new();
        for (place, role) in objects.iter().enumerate() {
            let Some(selector) = items(role, "aggregationRule.clusterRoleSelectors").first() else {
                continue;
            };
            let Some(key) = selector["matchLabels"].as_object().and_then(|labels| labels.keys().next())
            else {
                continue;
            };
            let mut rules: Vec<Value> = Vec::new();
            for source in objects.iter().filter(|source| label(source, key) == Some("true")) {
                for rule in items(source, "rules") {
                    if !rules.contains(rule) {
                        rules.push(rule.clone());
                    }
                }
            }
            if items(role, "rules") != rules.as_slice() {
                filled.insert(place, rules);
            }
        }
        if filled.is_empty() {
            return;
        }
        for (place, rules) in filled {
            set(&mut objects[place], "rules", rules);
        }
    }
}

/// The rules of one default ClusterRole.
pub(super) fn default_rules(name: &str) -> Vec<super::Rule> {
    let is_it = |role: &&Value| role["kind"] == "ClusterRole" && role["metadata"]["name"] == name;
    bootstrap_objects().iter().find(is_it).map(super::Rule::all_of).unwrap_or_default()
}
