//! FlowSchemas and PriorityLevelConfigurations as they are used: read once for each change.
//!
//! Upstream: apiserver/pkg/util/flowcontrol/rule.go, apf_controller.go

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use apimachinery::GroupResource;
use http::HeaderValue;
use serde_json::Value;
use tokio::sync::oneshot;

use super::queues::{QueueSet, Shape};
use crate::admission::tree::{at, flag, integer, items, strings, text};
use crate::seams::{Attributes, Lookup, UserInfo};

pub const SCHEMAS: GroupResource = GroupResource::from_static("flowcontrol.apiserver.k8s.io", "flowschemas");
pub const LEVELS: GroupResource =
    GroupResource::from_static("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations");

/// What was counted for a schema.
#[derive(Default)]
pub struct Counts {
    pub dispatched: AtomicU64,
    pub queue_full: AtomicU64,
    pub concurrency_limit: AtomicU64,
    pub timed_out: AtomicU64,
    pub cancelled: AtomicU64,
}

pub type Queues = Mutex<QueueSet<oneshot::Sender<()>>>;

pub struct Level {
    pub name: String,
    pub uid: HeaderValue,
    pub exempt: bool,
    shares: u64,
    lendable_percent: u64,
    borrowing_percent: Option<u64>,
    /// Its part of the server's seats.
    pub nominal: u32,
    pub queues: Arc<Queues>,
}

impl Level {
    /// What it keeps at least.
    pub fn lower(&self) -> u32 {
        let lent = u64::from(self.nominal) * self.lendable_percent / 100;
        self.nominal.saturating_sub(u32::try_from(lent).unwrap_or(u32::MAX))
    }

    /// What it may have at most.
    pub fn upper(&self) -> u32 {
        let borrowed = self.borrowing_percent.map(|percent| u64::from(self.nominal) * percent / 100);
        borrowed
            .map_or(u32::MAX, |seats| self.nominal.saturating_add(u32::try_from(seats).unwrap_or(u32::MAX)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distinguisher {
    None,
    User,
    Namespace,
}

pub struct Schema {
    pub name: String,
    pub uid: HeaderValue,
    pub level: usize,
    pub counts: Arc<Counts>,
    precedence: i64,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

impl Schema {
    /// To which flow of the schema a request belongs.
    pub fn flow(&self, user: &UserInfo, attributes: &Attributes) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.name.hash(&mut hasher);
        self.distinguished(user, attributes).hash(&mut hasher);
        hasher.finish()
    }

    fn distinguished<'a>(&self, user: &'a UserInfo, attributes: &'a Attributes) -> &'a str {
        match self.distinguisher {
            Distinguisher::None => "",
            Distinguisher::User => &user.name,
            Distinguisher::Namespace => &attributes.namespace,
        }
    }
}

struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

enum Subject {
    User(String),
    Group(String),
    /// Namespace and name.
    Account(String, String),
}

struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    cluster_scope: bool,
}

struct PathRule {
    verbs: Vec<String>,
    paths: Vec<String>,
}

fn holds(items: &[String], wanted: &str) -> bool {
    items.iter().any(|item| item == "*" || item == wanted)
}

impl Subject {
    fn of(subject: &Value) -> Option<Self> {
        Some(match text(subject, "kind") {
            "User" => Subject::User(text(subject, "user.name").to_owned()),
            "Group" => Subject::Group(text(subject, "group.name").to_owned()),
            "ServiceAccount" => Subject::Account(
                text(subject, "serviceAccount.namespace").to_owned(),
                text(subject, "serviceAccount.name").to_owned(),
            ),
            _ => return None,
        })
    }

    fn is(&self, user: &UserInfo) -> bool {
        match self {
            Subject::User(name) => name == "*" || *name == user.name,
            Subject::Group(name) => name == "*" || user.groups.contains(name),
            Subject::Account(namespace, name) => {
                let account = user.name.strip_prefix("system:serviceaccount:");
                account.and_then(|account| account.split_once(':')).is_some_and(|(in_namespace, account)| {
                    in_namespace == namespace && (name == "*" || account == name)
                })
            }
        }
    }
}

impl ResourceRule {
    fn is(&self, attributes: &Attributes) -> bool {
        holds(&self.verbs, &attributes.verb)
            && self.resources.iter().any(|rule| is_resource(rule, attributes))
            && holds(&self.groups, &attributes.group)
            && match attributes.namespace.as_str() {
                "" => self.cluster_scope,
                namespace => holds(&self.namespaces, namespace),
            }
    }
}

/// `pods`, `pods/status`, or `*`, which here means subresources too.
fn is_resource(rule: &str, attributes: &Attributes) -> bool {
    let (name, part) = rule.split_once('/').unwrap_or((rule, ""));
    rule == "*" || (name == attributes.resource && part == attributes.subresource)
}

impl PathRule {
    fn is(&self, attributes: &Attributes) -> bool {
        let path = attributes.path.as_str();
        let under = |rule: &String| match rule.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => rule == path,
        };
        holds(&self.verbs, &attributes.verb) && self.paths.iter().any(under)
    }
}

impl Rule {
    fn of(rule: &Value) -> Self {
        let resource = |rule: &Value| ResourceRule {
            verbs: strings(rule, "verbs"),
            groups: strings(rule, "apiGroups"),
            resources: strings(rule, "resources"),
            namespaces: strings(rule, "namespaces"),
            cluster_scope: flag(rule, "clusterScope").unwrap_or(false),
        };
        let path = |rule: &Value| PathRule {
            verbs: strings(rule, "verbs"),
            paths: strings(rule, "nonResourceURLs"),
        };
        Rule {
            subjects: items(rule, "subjects").iter().filter_map(Subject::of).collect(),
            resources: items(rule, "resourceRules").iter().map(resource).collect(),
            paths: items(rule, "nonResourceRules").iter().map(path).collect(),
        }
    }

    fn is(&self, user: &UserInfo, attributes: &Attributes) -> bool {
        self.subjects.iter().any(|subject| subject.is(user))
            && match attributes.is_resource {
                true => self.resources.iter().any(|rule| rule.is(attributes)),
                false => self.paths.iter().any(|rule| rule.is(attributes)),
            }
    }
}

/// All schemas in their order, and all levels.
pub struct Configuration {
    revisions: (u64, u64),
    pub schemas: Vec<Schema>,
    pub levels: Vec<Level>,
}

fn uid(object: &Value) -> HeaderValue {
    HeaderValue::from_str(text(object, "metadata.uid")).unwrap_or(HeaderValue::from_static(""))
}

fn unsigned(object: &Value, path: &str) -> Option<u64> {
    integer(object, path).and_then(|number| u64::try_from(number).ok())
}

impl Configuration {
    /// Nothing is configured: everything runs.
    pub fn empty() -> Self {
        Configuration { revisions: (u64::MAX, u64::MAX), schemas: Vec::new(), levels: Vec::new() }
    }

    fn revisions(lookup: &dyn Lookup) -> (u64, u64) {
        (lookup.revision(&SCHEMAS), lookup.revision(&LEVELS))
    }

    pub fn is_current(&self, lookup: &dyn Lookup) -> bool {
        self.revisions == Configuration::revisions(lookup)
    }

    /// What is configured now. Levels and counts that were there before are taken over.
    pub fn read(lookup: &dyn Lookup, seats: u32, before: &Configuration) -> Self {
        let revisions = Configuration::revisions(lookup);
        let levels = lookup.list(&LEVELS, None);
        let mut levels: Vec<Level> = levels.iter().map(|level| Level::of(level, before)).collect();
        divide(&mut levels, seats);
        let places: HashMap<&str, usize> =
            levels.iter().enumerate().map(|(at, level)| (level.name.as_str(), at)).collect();
        let schemas = lookup.list(&SCHEMAS, None);
        let schema = |schema: &Arc<Value>| {
            let level = places.get(text(schema, "spec.priorityLevelConfiguration.name"))?;
            Some(Schema::of(schema, *level, before))
        };
        let mut schemas: Vec<Schema> = schemas.iter().filter_map(schema).collect();
        schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        Configuration { revisions, schemas, levels }
    }

    /// The first schema that a request matches.
    pub fn classify(&self, user: &UserInfo, attributes: &Attributes) -> Option<usize> {
        self.schemas.iter().position(|schema| schema.rules.iter().any(|rule| rule.is(user, attributes)))
    }
}

/// Every level gets the part of the seats that its shares are of all shares.
///
/// Upstream: apf_controller.go updateBorrowingLocked, nominal limits rounded up
fn divide(levels: &mut [Level], seats: u32) {
    let all: u64 = levels.iter().map(|level| level.shares).sum();
    for level in levels {
        let nominal = (u64::from(seats) * level.shares).div_ceil(all.max(1));
        level.nominal = u32::try_from(nominal).unwrap_or(u32::MAX);
        level.queues.lock().unwrap_or_else(PoisonError::into_inner).set_limit(level.nominal);
    }
}

impl Level {
    fn of(level: &Value, before: &Configuration) -> Self {
        let name = text(level, "metadata.name");
        let exempt = text(level, "spec.type") == "Exempt";
        let spec = if exempt { "spec.exempt" } else { "spec.limited" };
        let spec = at(level, spec).unwrap_or(&Value::Null);
        let queuing = at(spec, "limitResponse.queuing").unwrap_or(&Value::Null);
        let size = |field: &str, default: usize| {
            unsigned(queuing, field).and_then(|n| usize::try_from(n).ok()).unwrap_or(default)
        };
        let shape = match text(spec, "limitResponse.type") {
            "Queue" => Shape {
                queues: size("queues", 64).max(1),
                hand_size: size("handSize", 8),
                length_limit: size("queueLengthLimit", 50),
            },
            _ => Shape::default(),
        };
        let kept = before.levels.iter().find(|level| level.name == name).map(|level| level.queues.clone());
        let queues = kept.unwrap_or_else(|| Arc::new(Mutex::new(QueueSet::new(shape, 1))));
        queues.lock().unwrap_or_else(PoisonError::into_inner).reshape(shape);
        Level {
            name: name.to_owned(),
            uid: uid(level),
            exempt,
            shares: unsigned(spec, "nominalConcurrencyShares").unwrap_or(if exempt { 0 } else { 30 }),
            lendable_percent: unsigned(spec, "lendablePercent").unwrap_or(0).min(100),
            borrowing_percent: unsigned(spec, "borrowingLimitPercent"),
            nominal: 0,
            queues,
        }
    }
}

impl Schema {
    fn of(schema: &Value, level: usize, before: &Configuration) -> Self {
        let name = text(schema, "metadata.name");
        let kept =
            before.schemas.iter().find(|schema| schema.name == name).map(|schema| schema.counts.clone());
        Schema {
            name: name.to_owned(),
            uid: uid(schema),
            level,
            counts: kept.unwrap_or_default(),
            precedence: integer(schema, "spec.matchingPrecedence").unwrap_or(1000),
            distinguisher: match text(schema, "spec.distinguisherMethod.type") {
                "ByUser" => Distinguisher::User,
                "ByNamespace" => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules: items(schema, "spec.rules").iter().map(Rule::of).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fake::{Fake, user};

    fn configuration() -> Configuration {
        let lookup = Fake::new(super::super::objects::all());
        Configuration::read(&*lookup, 600, &Configuration::empty())
    }

    fn resource(verb: &str, group: &str, resource: &str, namespace: &str) -> Attributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            is_resource: true,
            ..Default::default()
        }
    }

    fn path(path: &str) -> Attributes {
        Attributes { verb: "get".into(), path: path.into(), ..Default::default() }
    }

    #[test]
    fn requests_are_classified_as_upstreams_default_schemas_say() {
        let configuration = configuration();
        let everyone = "system:authenticated";
        let leases = || resource("update", "coordination.k8s.io", "leases", "kube-system");
        for (name, groups, attributes, schema, level) in [
            (
                "admin",
                &["system:masters", everyone][..],
                resource("list", "", "pods", ""),
                "exempt",
                "exempt",
            ),
            ("jane", &[everyone], path("/readyz"), "probes", "exempt"),
            ("jane", &[everyone], path("/readyz/etcd"), "global-default", "global-default"),
            ("system:kube-scheduler", &[everyone], leases(), "system-leader-election", "leader-election"),
            (
                "system:serviceaccount:kube-system:x",
                &["system:serviceaccounts", everyone],
                leases(),
                "system-leader-election",
                "leader-election",
            ),
            (
                "system:node:n",
                &["system:nodes", everyone],
                resource("update", "", "nodes/status", ""),
                "system-node-high",
                "node-high",
            ),
            (
                "system:node:n",
                &["system:nodes", everyone],
                resource("get", "", "pods", "a"),
                "system-nodes",
                "system",
            ),
            (
                "system:kube-controller-manager",
                &[everyone],
                resource("list", "", "pods", ""),
                "kube-controller-manager",
                "workload-high",
            ),
            (
                "system:serviceaccount:kube-system:x",
                &["system:serviceaccounts", everyone],
                resource("list", "", "pods", ""),
                "kube-system-service-accounts",
                "workload-high",
            ),
            (
                "system:serviceaccount:a:x",
                &["system:serviceaccounts", everyone],
                resource("list", "", "pods", ""),
                "service-accounts",
                "workload-low",
            ),
            ("jane", &[everyone], resource("list", "", "pods", ""), "global-default", "global-default"),
            ("jane", &["nobody"], resource("list", "", "pods", ""), "-", "-"),
        ] {
            let found = configuration.classify(&user(name, groups), &attributes);
            let found = found.map(|at| &configuration.schemas[at]);
            let got =
                found.map_or(("-", "-"), |schema| (&*schema.name, &*configuration.levels[schema.level].name));
            assert_eq!(got, (schema, level), "{name} {attributes:?}");
        }
    }

    #[test]
    fn levels_divide_the_seats_by_their_shares() {
        let configuration = configuration();
        let mut seats: Vec<String> = configuration
            .levels
            .iter()
            .map(|level| format!("{} {} {}", level.name, level.lower(), level.nominal))
            .collect();
        seats.sort();
        assert_eq!(
            seats,
            [
                "catch-all 13 13",
                "exempt 0 0",
                "global-default 25 49",
                "leader-election 25 25",
                "node-high 74 98",
                "system 50 74",
                "workload-high 49 98",
                "workload-low 25 245",
            ]
        );
    }
}
