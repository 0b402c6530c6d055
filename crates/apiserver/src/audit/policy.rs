//! The audit policy: which requests are noted, and how much of them. Read from a file once, at the start.
//!
//! Upstream: apiserver/pkg/audit/policy/{reader,checker}.go, apiserver/pkg/apis/audit/validation/validation.go

use std::collections::BTreeMap;

use apimachinery::field::{Error as FieldError, Path};
use apimachinery::names;
use serde::Deserialize;
use serde_json::Value;

use super::{Level, Stage};
use crate::seams::{Attributes, UserInfo};

const API_VERSION: &str = "audit.k8s.io/v1";

/// Why a policy cannot be used, in upstream's words.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    #[error("failed decoding: {0}")]
    Decoding(String),
    #[error("{0}")]
    Invalid(String),
    #[error("loaded illegal policy with 0 rules")]
    Empty,
}

/// What the file says, as it says it. What no field is for is kept, to warn of it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    omit_stages: Vec<String>,
    omit_managed_fields: bool,
    rules: Vec<FileRule>,
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    _metadata: Value,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FileRule {
    level: String,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<String>,
    omit_managed_fields: Option<bool>,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

/// How one request is to be noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub level: Level,
    pub omit_stages: Vec<Stage>,
    pub omit_managed_fields: bool,
}

struct Rule {
    when: FileRule,
    then: Applied,
}

pub struct Policy {
    rules: Vec<Rule>,
    /// What no rule is for.
    otherwise: Applied,
}

impl Policy {
    /// Reads YAML or JSON. Fields that nobody knows are told, and otherwise passed over.
    pub fn parse(text: &[u8]) -> Result<(Self, Vec<String>), PolicyError> {
        let decoded = schema::decode::untyped_yaml(text);
        let decoded = decoded.map_err(|error| PolicyError::Decoding(error.to_string()))?;
        check_kind(&decoded.object)?;
        let file: File = serde_json::from_value(decoded.object)
            .map_err(|error| PolicyError::Decoding(error.to_string()))?;
        let mut problems = decoded.problems;
        problems.extend(unknown_fields(&file));
        let errors = validate(&file);
        if !errors.is_empty() {
            let words: Vec<String> = errors.iter().map(ToString::to_string).collect();
            return Err(PolicyError::Invalid(crate::admission::join_errors(&words)));
        }
        if file.rules.is_empty() {
            return Err(PolicyError::Empty);
        }
        Ok((Policy::of(file), problems))
    }

    fn of(file: File) -> Self {
        let everywhere: Vec<Stage> =
            file.omit_stages.iter().filter_map(|stage| Stage::named(stage)).collect();
        let managed = file.omit_managed_fields;
        let rule = |when: FileRule| {
            let own = when.omit_stages.iter().filter_map(|stage| Stage::named(stage));
            let then = Applied {
                level: Level::named(&when.level).unwrap_or(Level::None),
                omit_stages: everywhere.iter().copied().chain(own).collect(),
                omit_managed_fields: when.omit_managed_fields.unwrap_or(managed),
            };
            Rule { when, then }
        };
        let rules = file.rules.into_iter().map(rule).collect();
        let otherwise = Applied { level: Level::None, omit_stages: everywhere, omit_managed_fields: managed };
        Policy { rules, otherwise }
    }

    /// The first rule that is for the request decides.
    pub fn applied(&self, user: Option<&UserInfo>, attributes: &Attributes) -> &Applied {
        let rule = self.rules.iter().find(|rule| rule.when.is_for(user, attributes));
        rule.map_or(&self.otherwise, |rule| &rule.then)
    }
}

impl FileRule {
    fn is_for(&self, user: Option<&UserInfo>, attributes: &Attributes) -> bool {
        let named = |list: &[String], name: &str| list.iter().any(|listed| listed == name);
        let by_user = self.users.is_empty() || user.is_some_and(|user| named(&self.users, &user.name));
        let by_group = self.user_groups.is_empty()
            || user.is_some_and(|user| user.groups.iter().any(|group| named(&self.user_groups, group)));
        if !by_user || !by_group || !(self.verbs.is_empty() || named(&self.verbs, &attributes.verb)) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return attributes.is_resource
                && (self.namespaces.is_empty() || named(&self.namespaces, &attributes.namespace))
                && (self.resources.is_empty()
                    || self.resources.iter().any(|resources| resources.hold(attributes)));
        }
        self.non_resource_urls.is_empty()
            || !attributes.is_resource
                && self.non_resource_urls.iter().any(|wanted| is_path(wanted, &attributes.path))
    }
}

/// `*`, the path itself, or what it begins with before a star.
fn is_path(wanted: &str, path: &str) -> bool {
    wanted == path || wanted.ends_with('*') && path.starts_with(wanted.trim_end_matches('*'))
}

impl GroupResources {
    fn hold(&self, attributes: &Attributes) -> bool {
        if self.group != "*" && self.group != attributes.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let Attributes { resource, subresource, name, .. } = attributes;
        let named = self.resource_names.is_empty() || self.resource_names.contains(name);
        let is = |wanted: &String| match wanted.split_once('/') {
            None => wanted == "*" || (subresource.is_empty() && wanted == resource),
            // Even the resource itself is one of all its parts.
            Some((whole, "*")) if whole == resource => true,
            Some((whole, part)) => {
                !subresource.is_empty() && part == subresource && (whole == "*" || whole == resource)
            }
        };
        named && self.resources.iter().any(is)
    }
}

fn check_kind(object: &Value) -> Result<(), PolicyError> {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let why = match (version, kind) {
        (_, "") => format!("Object 'Kind' is missing in '{object}'"),
        ("", _) => format!("Object 'apiVersion' is missing in '{object}'"),
        (API_VERSION, "Policy") => return Ok(()),
        _ => format!("no kind {kind:?} is registered for version {version:?}"),
    };
    Err(PolicyError::Decoding(why))
}

fn unknown_fields(file: &File) -> Vec<String> {
    let mut found: Vec<String> = file.unknown.keys().cloned().collect();
    for (at, rule) in file.rules.iter().enumerate() {
        found.extend(rule.unknown.keys().map(|name| format!("rules[{at}].{name}")));
        for (place, resources) in rule.resources.iter().enumerate() {
            found.extend(
                resources.unknown.keys().map(|name| format!("rules[{at}].resources[{place}].{name}")),
            );
        }
    }
    found.into_iter().map(|path| format!("unknown field {path:?}")).collect()
}

fn validate(file: &File) -> Vec<FieldError> {
    let mut errors = Vec::new();
    check_stages(&file.omit_stages, &Path::new("omitStages"), &mut errors);
    for (at, rule) in file.rules.iter().enumerate() {
        check_rule(rule, &Path::new("rules").index(at), &mut errors);
    }
    errors
}

fn check_rule(rule: &FileRule, path: &Path, errors: &mut Vec<FieldError>) {
    let level = path.child("level");
    match rule.level.as_str() {
        "" => errors.push(FieldError::required(&level, "")),
        given if Level::named(given).is_none() => {
            let known = Level::ALL.map(Level::as_str);
            errors.push(FieldError::not_supported(&level, given, &known));
        }
        _ => {}
    }
    let urls = path.child("nonResourceURLs");
    for (at, url) in rule.non_resource_urls.iter().enumerate().filter(|(_, url)| *url != "*") {
        if !url.starts_with('/') {
            let why = "non-resource URL rules must begin with a '/' character";
            errors.push(FieldError::invalid(&urls.index(at), url.as_str(), why));
        }
        if url.char_indices().any(|(place, c)| c == '*' && place + 1 < url.len()) {
            let why = "non-resource URL wildcards '*' must be the final character of the rule";
            errors.push(FieldError::invalid(&urls.index(at), url.as_str(), why));
        }
    }
    let resources = path.child("resources");
    for group in &rule.resources {
        if !group.group.is_empty() && group.group != "*" {
            let problems = names::dns1123_subdomain(&group.group);
            if !problems.is_empty() {
                let path = resources.child("group");
                errors.push(FieldError::invalid(&path, group.group.as_str(), problems.join(",")));
            }
        }
        if !group.resource_names.is_empty() && group.resources.is_empty() {
            let why = "using resourceNames requires at least one resource";
            let path = resources.child("resourceNames");
            errors.push(FieldError::invalid(&path, group.resource_names.clone(), why));
        }
    }
    check_stages(&rule.omit_stages, &path.child("omitStages"), errors);
    let of_resources = !rule.resources.is_empty() || !rule.namespaces.is_empty();
    if of_resources && !rule.non_resource_urls.is_empty() {
        let why = "rules cannot apply to both regular resources and non-resource URLs";
        errors.push(FieldError::invalid(&urls, rule.non_resource_urls.clone(), why));
    }
}

fn check_stages(stages: &[String], path: &Path, errors: &mut Vec<FieldError>) {
    for (at, stage) in stages.iter().enumerate().filter(|(_, stage)| Stage::named(stage).is_none()) {
        let why = format!("allowed stages are {}", Stage::ALL.map(Stage::as_str).join(","));
        errors.push(FieldError::invalid(&path.index(at), stage.as_str(), why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";

    fn parse(rest: &str) -> Result<(Policy, Vec<String>), String> {
        Policy::parse(format!("{HEAD}{rest}").as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_wrong_policy_is_told_in_upstreams_words() {
        for (text, wanted) in [
            ("rules: []", "loaded illegal policy with 0 rules"),
            ("rules: [{}]", "rules[0].level: Required value"),
            (
                "rules: [{level: All}]",
                r#"rules[0].level: Unsupported value: "All": supported values: "None", "Metadata", "Request", "RequestResponse""#,
            ),
            (
                "rules: [{level: None, nonResourceURLs: [a, '/a*b']}]",
                "[rules[0].nonResourceURLs[0]: Invalid value: \"a\": non-resource URL rules must begin with a '/' \
                 character, rules[0].nonResourceURLs[1]: Invalid value: \"/a*b\": non-resource URL wildcards '*' must \
                 be the final character of the rule]",
            ),
            (
                "rules: [{level: None, resources: [{resourceNames: [x]}]}]",
                "rules[0].resources.resourceNames: Invalid value: [\"x\"]: using resourceNames requires at least one \
                 resource",
            ),
            (
                "omitStages: [Never]\nrules: [{level: None}]",
                "omitStages[0]: Invalid value: \"Never\": allowed stages are \
                 RequestReceived,ResponseStarted,ResponseComplete,Panic",
            ),
        ] {
            assert_eq!(parse(text).err().as_deref(), Some(wanted), "{text}");
        }
        let other = Policy::parse(b"apiVersion: audit.k8s.io/v2\nkind: Policy\n").err().unwrap().to_string();
        assert_eq!(other, r#"failed decoding: no kind "Policy" is registered for version "audit.k8s.io/v2""#);
    }

    #[test]
    fn a_field_that_nobody_knows_is_told_and_passed_over() {
        let (_, problems) = parse("rules: [{level: None, lvel: x}]").unwrap();
        assert_eq!(problems, [r#"unknown field "rules[0].lvel""#]);
    }

    #[test]
    fn the_first_rule_that_is_for_a_request_decides() {
        let (policy, _) = parse(
            r#"
omitStages: [RequestReceived]
rules:
- {level: None, users: ["system:kube-proxy"], verbs: [watch]}
- {level: RequestResponse, userGroups: [admins], omitManagedFields: true}
- {level: Request, namespaces: [secret], resources: [{resources: ["pods/*"]}]}
- {level: None, nonResourceURLs: ["/healthz*", /version]}
- {level: Metadata, omitStages: [ResponseStarted], resources: [{group: "", resources: [secrets, "*/log"]}, {group: apps}]}
"#,
        )
        .unwrap();
        let pods = |verb: &str, namespace: &str, resource: &str| {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            Attributes {
                verb: verb.into(),
                namespace: namespace.into(),
                resource: resource.into(),
                subresource: subresource.into(),
                is_resource: true,
                ..Default::default()
            }
        };
        let path = |path: &str| Attributes { verb: "get".into(), path: path.into(), ..Default::default() };
        let user = |name: &str, group: &str| UserInfo {
            name: name.into(),
            groups: vec![group.into()],
            ..Default::default()
        };
        let apps = Attributes { group: "apps".into(), ..pods("get", "a", "deployments") };
        for (user, attributes, level) in [
            (user("system:kube-proxy", ""), pods("watch", "", "secrets"), Level::None),
            (user("system:kube-proxy", ""), pods("get", "", "secrets"), Level::Metadata),
            (user("jane", "admins"), path("/healthz"), Level::RequestResponse),
            (user("jane", ""), pods("get", "secret", "pods"), Level::Request),
            (user("jane", ""), pods("get", "secret", "pods/log"), Level::Request),
            (user("jane", ""), pods("get", "a", "pods/log"), Level::Metadata),
            (user("jane", ""), pods("get", "a", "pods"), Level::None),
            (user("jane", ""), path("/healthz/etcd"), Level::None),
            (user("jane", ""), apps, Level::Metadata),
        ] {
            assert_eq!(policy.applied(Some(&user), &attributes).level, level, "{user:?} {attributes:?}");
        }
        let applied = policy.applied(None, &pods("get", "", "secrets"));
        assert_eq!(applied.omit_stages, [Stage::RequestReceived, Stage::ResponseStarted]);
        assert!(policy.applied(Some(&user("jane", "admins")), &path("/")).omit_managed_fields);
    }
}
