//! Which requests a webhook or a policy is for: rules, selectors of namespaces and objects, and whether other
//! versions of the same resource count.
//!
//! What always holds: a [`Matcher`] is read once from its configuration and then decides without looking at it.
//!
//! Upstream: apiserver/pkg/admission/plugin/webhook/predicates, plugin/webhook/generic/webhook.go ShouldCallHook,
//! plugin/policy/matching/matching.go

use apimachinery::selector::LabelSelector;
use apimachinery::{GroupResource, GroupVersionKind, GroupVersionResource, Status};
use serde_json::Value;

use super::tree::{at, items, strings, text};
use crate::seams::{AdmissionRequest, Lookup, Operation};

const NAMESPACES: GroupResource = GroupResource::from_static("", "namespaces");

/// One rule: all of its parts must match.
#[derive(Clone, Debug, Default)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    /// Of policies: empty for all names.
    names: Vec<String>,
    scope: Scope,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Scope {
    #[default]
    All,
    Namespaced,
    Cluster,
    /// A word that nobody knows matches nothing.
    Unknown,
}

fn holds(items: &[String], wanted: &str) -> bool {
    items.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    fn of(rule: &Value) -> Self {
        Rule {
            operations: strings(rule, "operations"),
            groups: strings(rule, "apiGroups"),
            versions: strings(rule, "apiVersions"),
            resources: strings(rule, "resources"),
            names: strings(rule, "resourceNames"),
            scope: match text(rule, "scope") {
                "" | "*" => Scope::All,
                "Namespaced" => Scope::Namespaced,
                "Cluster" => Scope::Cluster,
                _ => Scope::Unknown,
            },
        }
    }

    fn matches(&self, request: &AdmissionRequest<'_>, gvr: &GroupVersionResource) -> bool {
        self.in_scope(request, gvr)
            && holds(&self.operations, operation(request.operation))
            && holds(&self.groups, &gvr.group)
            && holds(&self.versions, &gvr.version)
            && self.resources.iter().any(|rule| is_resource(rule, &gvr.resource, request.subresource))
            && (self.names.is_empty() || self.names.iter().any(|name| name == request.name))
    }

    fn in_scope(&self, request: &AdmissionRequest<'_>, gvr: &GroupVersionResource) -> bool {
        // A namespace is cluster-scoped, though its request is in the namespace that it is.
        let is_namespace = gvr.group.is_empty() && gvr.version == "v1" && gvr.resource == "namespaces";
        let namespaced = !is_namespace && !request.namespace.is_empty();
        match self.scope {
            Scope::All => true,
            Scope::Namespaced => namespaced,
            Scope::Cluster => !namespaced,
            Scope::Unknown => false,
        }
    }
}

/// `pods`, `pods/log`, `pods/*`, `*`, `*/scale`, `*/*`; without a slash, subresources are not meant.
fn is_resource(rule: &str, resource: &str, subresource: &str) -> bool {
    let (name, part) = rule.split_once('/').unwrap_or((rule, ""));
    (name == "*" || name == resource) && (part == "*" || part == subresource)
}

/// As rules and reviews call it.
pub(crate) fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// As what a request matches: itself, or the same objects in another version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Matched {
    pub gvr: GroupVersionResource,
    pub gvk: GroupVersionKind,
}

/// What a webhook or a policy is for.
#[derive(Clone, Debug)]
pub(crate) struct Matcher {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// Without rules everything is meant: of bindings, which narrow what their policy is for.
    all_without_rules: bool,
    equivalent: bool,
    namespaces: Result<LabelSelector, String>,
    objects: Result<LabelSelector, String>,
}

impl Matcher {
    /// What one of a configuration's `webhooks` is for.
    pub(crate) fn of_webhook(webhook: &Value) -> Self {
        Matcher::read(webhook, "rules", false)
    }

    /// What `matchConstraints` of a policy, or `matchResources` of a binding, say.
    pub(crate) fn of_resources(resources: &Value) -> Self {
        Matcher::read(resources, "resourceRules", true)
    }

    fn read(owner: &Value, rules: &str, all_without_rules: bool) -> Self {
        // An absent selector selects everything here, unlike elsewhere.
        let selector = |field: &str| {
            at(owner, field).map_or_else(|| Ok(LabelSelector::everything()), LabelSelector::from_object)
        };
        let list = |field: &str| items(owner, field).iter().map(Rule::of).collect::<Vec<_>>();
        Matcher {
            rules: list(rules),
            excluded: list("excludeResourceRules"),
            all_without_rules,
            equivalent: text(owner, "matchPolicy") != "Exact",
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
        }
    }

    /// As what the request matches, or `None`. A selector that cannot be judged is an error only for requests
    /// that the rules are for.
    pub(crate) fn matches(
        &self,
        request: &AdmissionRequest<'_>,
        lookup: &dyn Lookup,
    ) -> Result<Option<Matched>, Status> {
        let in_namespace = self.selects_namespace(request, lookup);
        if matches!(in_namespace, Ok(false)) {
            return Ok(None);
        }
        let is_selected = self.selects_object(request);
        if matches!(is_selected, Ok(false)) {
            return Ok(None);
        }
        if self.by_rules(&self.excluded, request, lookup).is_some() {
            return Ok(None);
        }
        let itself = || Matched { gvr: request.gvr.clone(), gvk: request.gvk.clone() };
        let matched = match self.rules.is_empty() && self.all_without_rules {
            true => Some(itself()),
            false => self.by_rules(&self.rules, request, lookup),
        };
        let Some(matched) = matched else { return Ok(None) };
        in_namespace.and(is_selected).map(|_| Some(matched))
    }

    /// The request itself goes before the same objects in other versions; then the first rule wins.
    fn by_rules(
        &self,
        rules: &[Rule],
        request: &AdmissionRequest<'_>,
        lookup: &dyn Lookup,
    ) -> Option<Matched> {
        if rules.iter().any(|rule| rule.matches(request, &request.gvr)) {
            return Some(Matched { gvr: request.gvr.clone(), gvk: request.gvk.clone() });
        }
        if rules.is_empty() || !self.equivalent {
            return None;
        }
        let others = lookup.equivalents(&request.gvr, request.subresource);
        rules.iter().find_map(|rule| {
            let (gvr, gvk) = others.iter().find(|(gvr, _)| rule.matches(request, gvr))?;
            Some(Matched { gvr: gvr.clone(), gvk: gvk.clone() })
        })
    }

    fn selects_namespace(&self, request: &AdmissionRequest<'_>, lookup: &dyn Lookup) -> Result<bool, Status> {
        let is_namespaces = request.gvr.resource == "namespaces";
        if request.namespace.is_empty() && !is_namespaces {
            return Ok(true);
        }
        let selector = self.namespaces.as_ref().map_err(Status::internal)?;
        if selector.is_empty() {
            return Ok(true);
        }
        // A namespace that is being written is not yet as it will be.
        let written = is_namespaces
            && request.subresource.is_empty()
            && matches!(request.operation, Operation::Create | Operation::Update);
        if written {
            return Ok(selector.matches_object(request.object));
        }
        let namespace = lookup.get(&NAMESPACES, "", request.namespace);
        let namespace = namespace.ok_or_else(|| Status::not_found(&NAMESPACES, request.namespace))?;
        Ok(selector.matches_object(&namespace))
    }

    fn selects_object(&self, request: &AdmissionRequest<'_>) -> Result<bool, Status> {
        let selector = self.objects.as_ref().map_err(Status::internal)?;
        let selects = |object: &Value| object["metadata"].is_object() && selector.matches_object(object);
        Ok(selector.is_empty() || selects(request.object) || request.old_object.is_some_and(selects))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::fake::{Case, Fake};

    fn matches(webhook: &Value, case: &mut Case) -> Result<bool, String> {
        let lookup = Fake::new([
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "labels": {"team": "x"}}}),
        ]);
        let matcher = Matcher::of_webhook(webhook);
        let matched = case.run(|request| matcher.matches(request, &*lookup));
        matched.map(|matched| matched.is_some()).map_err(|status| status.message)
    }

    fn rule(
        operations: &[&str],
        groups: &[&str],
        versions: &[&str],
        resources: &[&str],
        scope: &str,
    ) -> Value {
        json!({"rules": [{"operations": operations, "apiGroups": groups, "apiVersions": versions,
                          "resources": resources, "scope": scope}]})
    }

    fn pod(namespace: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod",
               "metadata": {"name": "p", "namespace": namespace, "labels": {"app": "web"}}})
    }

    #[test]
    fn rules_mean_operations_groups_versions_resources_and_scope() {
        for (operations, groups, versions, resources, scope, expected) in [
            (&["CREATE"][..], &[""][..], &["v1"][..], &["pods"][..], "*", true),
            (&["*"], &["*"], &["*"], &["*"], "Namespaced", true),
            (&["*"], &["*"], &["*"], &["*/*"], "*", true),
            (&["*"], &["*"], &["*"], &["pods/*"], "*", true),
            (&["*"], &["*"], &["*"], &["pods/status"], "*", false),
            (&["*"], &["*"], &["*"], &["*/scale"], "*", false),
            (&["UPDATE", "DELETE"], &["*"], &["*"], &["*"], "*", false),
            (&["CREATE"], &["apps"], &["v1"], &["pods"], "*", false),
            (&["CREATE"], &[""], &["v2"], &["pods"], "*", false),
            (&["CREATE"], &[""], &["v1"], &["pods"], "Cluster", false),
            (&["CREATE"], &[""], &["v1"], &["services", "pods"], "Other", false),
        ] {
            let webhook = rule(operations, groups, versions, resources, scope);
            assert_eq!(matches(&webhook, &mut Case::create(pod("a"))), Ok(expected), "{webhook}");
        }
    }

    #[test]
    fn subresources_are_meant_only_when_named() {
        for (resources, expected) in [
            ("pods", false),
            ("*", false),
            ("pods/*", true),
            ("*/*", true),
            ("pods/eviction", true),
            ("*/eviction", true),
        ] {
            let webhook = rule(&["*"], &["*"], &["*"], &[resources], "*");
            let mut case = Case::create(pod("a")).sub("pods", "p", "eviction");
            assert_eq!(matches(&webhook, &mut case), Ok(expected), "{resources}");
        }
    }

    #[test]
    fn a_namespace_is_of_the_cluster() {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n", "namespace": "n"}});
        for (scope, expected) in [("Cluster", true), ("Namespaced", false), ("*", true)] {
            let webhook = rule(&["*"], &["*"], &["*"], &["*"], scope);
            assert_eq!(matches(&webhook, &mut Case::create(namespace.clone())), Ok(expected), "{scope}");
        }
    }

    #[test]
    fn selectors_narrow_what_rules_mean() {
        let expression =
            |operator: &str| json!({"matchExpressions": [{"key": "team", "operator": operator}]});
        for (field, selector, namespace, expected) in [
            ("namespaceSelector", json!({"matchLabels": {"team": "x"}}), "a", Ok(true)),
            ("namespaceSelector", expression("DoesNotExist"), "a", Ok(false)),
            ("namespaceSelector", expression("Exists"), "gone", Err(r#"namespaces "gone" not found"#)),
            ("namespaceSelector", json!({}), "gone", Ok(true)),
            ("objectSelector", json!({"matchLabels": {"app": "web"}}), "a", Ok(true)),
            ("objectSelector", json!({"matchLabels": {"app": "db"}}), "a", Ok(false)),
        ] {
            let mut webhook = rule(&["*"], &["*"], &["*"], &["*"], "*");
            webhook[field] = selector;
            let got = matches(&webhook, &mut Case::create(pod(namespace)));
            assert_eq!(got, expected.map_err(str::to_owned), "{webhook}");
        }
        // Of a request that the rules are not for, nobody asks which namespace it is in.
        let mut other = rule(&["*"], &["apps"], &["*"], &["*"], "*");
        other["namespaceSelector"] = expression("Exists");
        assert_eq!(matches(&other, &mut Case::create(pod("gone"))), Ok(false));
    }

    #[test]
    fn what_a_policy_excludes_is_not_meant_and_no_rules_mean_everything() {
        let lookup = Fake::new([]);
        for (resources, expected) in [
            (json!({}), true),
            (json!({"excludeResourceRules": rule(&["*"], &["*"], &["*"], &["pods"], "*")["rules"]}), false),
            (
                json!({"resourceRules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"],
                                       "resources": ["*"], "resourceNames": ["q"]}]}),
                false,
            ),
        ] {
            let matcher = Matcher::of_resources(&resources);
            let matched = Case::create(pod("a")).run(|request| matcher.matches(request, &*lookup));
            assert_eq!(matched.expect("no selector fails").is_some(), expected, "{resources}");
        }
    }
}
