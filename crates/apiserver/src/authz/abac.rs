//! Authorization by a file of policies, one a line.
//!
//! Upstream: pkg/auth/authorizer/abac/abac.go, pkg/apis/abac/{v0,v1beta1}/conversion.go

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::Rule;
use crate::seams::{Attributes, Decision, UserInfo};

const GROUP: &str = "abac.authorization.kubernetes.io";
const ALL_AUTHENTICATED: &str = "system:authenticated";

/// What somebody may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Policy {
    user: String,
    group: String,
    readonly: bool,
    api_group: String,
    resource: String,
    namespace: String,
    non_resource_path: String,
}

/// The policies of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Policies(Vec<Policy>);

impl Policies {
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path);
        Self::parse(&text.map_err(|error| format!("open {}: {error}", path.display()))?, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, String> {
        let (mut policies, mut unversioned) = (Vec::new(), false);
        for (index, line) in text.lines().enumerate() {
            let said = line.trim();
            if said.is_empty() || said.starts_with('#') {
                continue;
            }
            let (policy, versioned) = Policy::parse(said).map_err(|why| {
                format!("error reading policy file {}, line {}: {line}: {why}", path.display(), index + 1)
            })?;
            unversioned |= !versioned;
            policies.push(policy);
        }
        if unversioned {
            tracing::warn!(file = %path.display(), "the policy file has rules without a version");
        }
        Ok(Policies(policies))
    }

    pub(super) fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        match self.0.iter().any(|policy| policy.allows(user, attributes)) {
            true => Decision::Allow { reason: String::new() },
            false => Decision::NoOpinion { reason: "No policy matched.".to_owned() },
        }
    }

    /// What somebody may do in a namespace.
    pub(super) fn rules_of(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let there = |policy: &&Policy| policy.namespace == "*" || policy.namespace == namespace;
        let concerned = self.0.iter().filter(|policy| policy.concerns(user)).filter(there);
        concerned.flat_map(Policy::rules).collect()
    }
}

impl Policy {
    /// The policy of a line, and whether the line says of which version it is.
    fn parse(line: &str) -> Result<(Self, bool), String> {
        let read: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let text = |field: &str| read[field].as_str().unwrap_or_default();
        let (kind, version) = (text("kind"), text("apiVersion"));
        let of = |value: &Value| Policy::deserialize(value).map_err(|error| error.to_string());
        if kind.is_empty() || version.is_empty() {
            return Ok((of(&read)?.filled_as_v0(), false));
        }
        match version.strip_prefix(GROUP) {
            Some("/v0") if kind == "Policy" => Ok((of(&read)?.filled_as_v0(), true)),
            Some("/v1beta1") if kind == "Policy" => {
                let spec = read.get("spec").map(of).transpose()?.unwrap_or_default();
                Ok((spec.of_everybody(), true))
            }
            _ => Err(format!("no kind {kind:?} is registered for version {version:?}")),
        }
    }

    /// A star is everybody who is known.
    fn of_everybody(mut self) -> Self {
        if self.user == "*" || self.group == "*" {
            self.user = String::new();
            self.group = ALL_AUTHENTICATED.to_owned();
        }
        self
    }

    /// The first version had no groups of the API and no paths: what is left out is all there is.
    fn filled_as_v0(mut self) -> Self {
        let all = || "*".to_owned();
        self.api_group = all();
        let anywhere = self.namespace.is_empty() && self.resource.is_empty();
        self.non_resource_path = if anywhere { all() } else { String::new() };
        for field in [&mut self.namespace, &mut self.resource] {
            if field.is_empty() {
                *field = all();
            }
        }
        if self.user.is_empty() && self.group.is_empty() {
            self.group = ALL_AUTHENTICATED.to_owned();
        }
        self.of_everybody()
    }

    fn concerns(&self, user: &UserInfo) -> bool {
        let is_user = self.user.is_empty() || self.user == "*" || self.user == user.name;
        let in_group = self.group.is_empty() || self.group == "*" || user.groups.contains(&self.group);
        let names_somebody = !(self.user.is_empty() && self.group.is_empty());
        names_somebody && is_user && in_group
    }

    fn allows(&self, user: &UserInfo, attributes: &Attributes) -> bool {
        let reads = matches!(attributes.verb.as_str(), "get" | "list" | "watch");
        if !self.concerns(user) || (self.readonly && !reads) {
            return false;
        }
        let is = |own: &str, asked: &str| own == "*" || own == asked;
        if attributes.is_resource {
            return is(&self.namespace, &attributes.namespace)
                && is(&self.resource, &attributes.resource)
                && is(&self.api_group, &attributes.group);
        }
        let path = self.non_resource_path.as_str();
        path == attributes.path
            || (path.ends_with('*') && attributes.path.starts_with(path.trim_end_matches('*')))
    }

    fn rules(&self) -> Vec<Rule> {
        let verbs: &[&str] = if self.readonly { &["get", "list", "watch"] } else { &["*"] };
        let base = Rule { verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(), ..Rule::default() };
        let mut rules = Vec::new();
        if !self.resource.is_empty() {
            let (api_groups, resources) = (vec![self.api_group.clone()], vec![self.resource.clone()]);
            rules.push(Rule { api_groups, resources, ..base.clone() });
        }
        if !self.non_resource_path.is_empty() {
            rules.push(Rule { non_resource_urls: vec![self.non_resource_path.clone()], ..base });
        }
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies(text: &str) -> Result<Policies, String> {
        Policies::parse(text, Path::new("/policies"))
    }

    fn user(name: &str) -> UserInfo {
        let groups = vec![ALL_AUTHENTICATED.to_owned(), "devs".to_owned()];
        UserInfo { name: name.to_owned(), groups, ..UserInfo::default() }
    }

    fn asks(verb: &str, what: &str) -> Attributes {
        let verb = verb.to_owned();
        match what.split_once(':') {
            Some((namespace, resource)) => Attributes {
                verb,
                namespace: namespace.to_owned(),
                resource: resource.to_owned(),
                is_resource: true,
                ..Attributes::default()
            },
            None => Attributes { verb, path: what.to_owned(), ..Attributes::default() },
        }
    }

    fn line(spec: &str) -> String {
        format!(r#"{{"apiVersion": "{GROUP}/v1beta1", "kind": "Policy", "spec": {{{spec}}}}}"#)
    }

    #[test]
    fn a_policy_allows_whom_it_names_what_it_names() {
        for (text, name, verb, what, allowed) in [
            // The first version.
            (r#"{"user":"jane"}"#.to_owned(), "jane", "delete", "n:pods", true),
            (r#"{"user":"jane"}"#.to_owned(), "joe", "get", "n:pods", false),
            (r#"{"user":"jane"}"#.to_owned(), "jane", "get", "/healthz", true),
            (r#"{"user":"jane","resource":"pods"}"#.to_owned(), "jane", "get", "/healthz", false),
            (r#"{"readonly":true}"#.to_owned(), "joe", "list", "n:pods", true),
            (r#"{"readonly":true}"#.to_owned(), "joe", "create", "n:pods", false),
            (r#"{"user":"*","namespace":"n"}"#.to_owned(), "joe", "create", "n:pods", true),
            (r#"{"user":"*","namespace":"n"}"#.to_owned(), "joe", "create", "m:pods", false),
            // The second.
            (line(r#""user": "jane""#), "jane", "get", "n:pods", false),
            (
                line(r#""group": "devs", "namespace": "n", "resource": "pods""#),
                "joe",
                "update",
                "n:pods",
                true,
            ),
            (
                line(r#""group": "devs", "namespace": "n", "resource": "pods", "apiGroup": "apps""#),
                "joe",
                "get",
                "n:pods",
                false,
            ),
            (
                line(r#""user": "jane", "group": "others", "namespace": "*", "resource": "*""#),
                "jane",
                "get",
                "n:pods",
                false,
            ),
            (line(r#""user": "*", "nonResourcePath": "/api*""#), "joe", "get", "/apis/apps", true),
            (line(r#""user": "*", "nonResourcePath": "/api*""#), "joe", "get", "/version", false),
            (line(r#""nonResourcePath": "*""#), "joe", "get", "/version", false),
        ] {
            let decision = policies(&text).unwrap().authorize(&user(name), &asks(verb, what));
            let wanted = match allowed {
                true => Decision::Allow { reason: String::new() },
                false => Decision::NoOpinion { reason: "No policy matched.".into() },
            };
            assert_eq!(decision, wanted, "{text} {name} {verb} {what}");
        }
    }

    #[test]
    fn a_file_is_read_line_by_line() {
        let text = format!("# who may\n\n{}\n{{\"user\":\"joe\"}}\n", line(r#""user": "jane""#));
        assert_eq!(policies(&text).unwrap().0.len(), 2);
        for (text, wanted) in [
            ("\n{", "error reading policy file /policies, line 2: {: "),
            (r#"{"kind":"Policy","apiVersion":"other/v1"}"#, "is registered for version \"other/v1\""),
        ] {
            let why = policies(text).unwrap_err();
            assert!(why.contains(wanted), "{why}");
        }
    }

    #[test]
    fn rules_show_what_policies_allow() {
        let specs = [
            r#""user": "jane", "namespace": "n", "resource": "pods", "readonly": true"#,
            r#""user": "jane", "namespace": "*", "nonResourcePath": "/api*""#,
            r#""user": "joe", "namespace": "n", "resource": "secrets""#,
        ];
        let policies = policies(&specs.map(line).join("\n")).unwrap();
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let pods = Rule {
            verbs: texts(&["get", "list", "watch"]),
            api_groups: texts(&[""]),
            resources: texts(&["pods"]),
            ..Rule::default()
        };
        let paths = Rule { verbs: texts(&["*"]), non_resource_urls: texts(&["/api*"]), ..Rule::default() };
        assert_eq!(policies.rules_of(&user("jane"), "n"), [pods, paths.clone()]);
        assert_eq!(policies.rules_of(&user("jane"), "m"), [paths]);
    }
}
