//! [`Rule`]: one entry of a role, and what it allows.

use serde_json::Value;

use crate::admission::tree::strings;
use crate::seams::Attributes;

/// A `PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    /// Empty for all.
    pub resource_names: Vec<String>,
    pub non_resource_urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == wanted)
}

impl Rule {
    pub fn from_value(rule: &Value) -> Self {
        Rule {
            verbs: strings(rule, "verbs"),
            api_groups: strings(rule, "apiGroups"),
            resources: strings(rule, "resources"),
            resource_names: strings(rule, "resourceNames"),
            non_resource_urls: strings(rule, "nonResourceURLs"),
        }
    }

    /// The rules of a Role or ClusterRole.
    pub fn all_of(role: &Value) -> Vec<Rule> {
        crate::admission::tree::items(role, "rules").iter().map(Rule::from_value).collect()
    }

    /// Upstream: plugin/pkg/auth/authorizer/rbac/rbac.go RuleAllows
    pub fn allows(&self, attributes: &Attributes) -> bool {
        if !has(&self.verbs, &attributes.verb) {
            return false;
        }
        if !attributes.is_resource {
            return self.non_resource_urls.iter().any(|url| url_covers(url, &attributes.path));
        }
        has(&self.api_groups, &attributes.group)
            && self
                .resources
                .iter()
                .any(|r| resource_covers(r, &attributes.resource, &attributes.subresource))
            && (self.resource_names.is_empty() || self.resource_names.contains(&attributes.name))
    }
}

/// Whether a rule's URL, which may end in `*`, covers a path.
pub(super) fn url_covers(rule: &str, path: &str) -> bool {
    rule == "*" || rule == path || (rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*')))
}

/// Whether a rule's resource (`*`, `pods`, `pods/log`, `*/scale`) covers a resource and subresource.
pub(super) fn resource_covers(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some((parent, sub)) => sub == subresource && !sub.is_empty() && (parent == "*" || parent == resource),
    }
}
