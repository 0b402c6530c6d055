//! The schemas and levels that a cluster starts with.
//!
//! Upstream: apiserver/pkg/apis/flowcontrol/bootstrap/default.go

use serde_json::{Value, json};

const API_VERSION: &str = "flowcontrol.apiserver.k8s.io/v1";

/// Those without which the server cannot do: they are made again when they are deleted or changed.
pub const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": API_VERSION, "kind": kind,
        "metadata": {"name": name, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}},
        "spec": spec,
    })
}

/// Name, shares, part that may be lent, and queues with hand size; without queues a level rejects.
const LEVELS: [(&str, u32, u32, Option<(u32, u32)>); 7] = [
    ("system", 30, 33, Some((64, 6))),
    ("node-high", 40, 25, Some((64, 6))),
    ("leader-election", 10, 0, Some((16, 4))),
    ("workload-high", 40, 50, Some((128, 6))),
    ("workload-low", 100, 90, Some((128, 6))),
    ("global-default", 20, 50, Some((128, 6))),
    ("catch-all", 5, 0, None),
];

pub fn levels() -> Vec<Value> {
    let level = |(name, shares, lendable, queues): (&str, u32, u32, Option<(u32, u32)>)| {
        let response = match queues {
            None => json!({"type": "Reject"}),
            Some((queues, hand)) => json!({
                "type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50},
            }),
        };
        let limited = json!({
            "nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response,
        });
        object("PriorityLevelConfiguration", name, json!({"type": "Limited", "limited": limited}))
    };
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let mut levels = vec![object("PriorityLevelConfiguration", "exempt", exempt)];
    levels.extend(LEVELS.map(level));
    levels
}

fn groups(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"kind": "Group", "group": {"name": name}})).collect()
}

fn users(names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| json!({"kind": "User", "user": {"name": name}})).collect()
}

fn kube_system_accounts() -> Value {
    json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}})
}

fn resources(verbs: &[&str], groups: &[&str], resources: &[&str], cluster_scope: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": resources, "namespaces": ["*"]});
    if cluster_scope {
        rule["clusterScope"] = true.into();
    }
    rule
}

/// A rule for everything that these subjects do.
fn everything(subjects: Value) -> Value {
    json!([{
        "subjects": subjects,
        "resourceRules": [resources(&["*"], &["*"], &["*"], true)],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    }])
}

pub fn schemas() -> Vec<Value> {
    let anybody = || groups(&["system:unauthenticated", "system:authenticated"]);
    let nodes = || groups(&["system:nodes"]);
    let leaders = {
        let mut subjects = users(&["system:kube-controller-manager", "system:kube-scheduler"]);
        subjects.push(kube_system_accounts());
        json!([{
            "subjects": subjects,
            "resourceRules":
                [resources(&["get", "create", "update"], &["coordination.k8s.io"], &["leases"], false)],
        }])
    };
    let node_high = json!([{
        "subjects": nodes(),
        "resourceRules": [
            resources(&["*"], &[""], &["nodes", "nodes/status"], true),
            resources(&["*"], &["coordination.k8s.io"], &["leases"], false),
        ],
    }]);
    let probes = json!([{
        "subjects": anybody(),
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}],
    }]);
    let one = |user: &str| everything(users(&[user]).into());
    let (by_user, by_namespace) = (Some("ByUser"), Some("ByNamespace"));
    [
        ("exempt", "exempt", 1, None, everything(groups(&["system:masters"]))),
        ("probes", "exempt", 2, None, probes),
        ("system-leader-election", "leader-election", 100, by_user, leaders),
        ("system-node-high", "node-high", 400, by_user, node_high),
        ("system-nodes", "system", 500, by_user, everything(nodes())),
        (
            "kube-controller-manager",
            "workload-high",
            800,
            by_namespace,
            one("system:kube-controller-manager"),
        ),
        ("kube-scheduler", "workload-high", 800, by_namespace, one("system:kube-scheduler")),
        (
            "kube-system-service-accounts",
            "workload-high",
            900,
            by_namespace,
            everything(json!([kube_system_accounts()])),
        ),
        ("service-accounts", "workload-low", 9000, by_user, everything(groups(&["system:serviceaccounts"]))),
        ("global-default", "global-default", 9900, by_user, everything(anybody())),
        ("catch-all", "catch-all", 10_000, by_user, everything(anybody())),
    ]
    .map(|(name, level, precedence, distinguisher, rules)| {
        let mut spec = json!({
            "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": rules,
        });
        if let Some(distinguisher) = distinguisher {
            spec["distinguisherMethod"] = json!({"type": distinguisher});
        }
        object("FlowSchema", name, spec)
    })
    .to_vec()
}

#[cfg(test)]
pub fn all() -> Vec<Value> {
    [levels(), schemas()].concat()
}
