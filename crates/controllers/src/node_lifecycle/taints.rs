//! What a node's state means for it: taints, conditions of a silent kubelet, labels.

use std::collections::BTreeMap;

use api::core::v1::{Node, NodeCondition, Taint};
use api::meta::Time;
use jiff::Timestamp;

use crate::objects::label;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that are bad when true, and their taints.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
];

pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// `True`, `False` or `Unknown`; a node that never said so is unknown.
pub(crate) fn readiness(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |ready| ready.status.as_str())
}

/// Whether pods may be driven off a node that is unwell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eviction {
    Allowed,
    /// Not yet: what drives pods off already stays.
    NotYet,
    /// Not at all: nobody is well, and the fault is likely ours.
    Never,
}

/// The taint that drives pods off a node in such a state. A node that never said how it is has none.
pub(super) fn evicting_key(node: &Node) -> Option<&'static str> {
    match condition(node, "Ready")?.status.as_str() {
        "False" => Some(NOT_READY),
        "Unknown" => Some(UNREACHABLE),
        _ => None,
    }
}

fn evicts(taint: &Taint) -> bool {
    taint.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str())
}

/// Whether the node's state drives pods off already, for whichever reason.
pub(super) fn is_evicting(node: &Node) -> bool {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(evicts)
}

/// The taints that the node's state asks for.
pub(super) fn taints(node: &Node, eviction: Eviction, now: Timestamp) -> Vec<Taint> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let bad = evicting_key(node);
    wanted.extend(bad.map(|key| (key, "NoSchedule")));
    let pressed = |kind: &str| condition(node, kind).is_some_and(|condition| condition.status == "True");
    wanted.extend(PRESSURES.iter().filter(|(kind, _)| pressed(kind)).map(|(_, key)| (*key, "NoSchedule")));
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    wanted.extend(bad.filter(|_| eviction == Eviction::Allowed).map(|key| (key, "NoExecute")));
    let stays = |taint: &Taint| match taint.effect.as_str() {
        "NoSchedule" => {
            ![NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str())
                && !PRESSURES.iter().any(|(_, key)| *key == taint.key)
        }
        _ => !evicts(taint) || (bad.is_some() && eviction == Eviction::NotYet),
    };
    let present = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let mut result: Vec<Taint> = present
        .filter(|taint| stays(taint) || wanted.contains(&(taint.key.as_str(), taint.effect.as_str())))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !result.iter().any(|taint| taint.key == key && taint.effect == effect) {
            result.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    result
}

/// Labels of old names that the node lacks, or has with other values than those of the new names.
///
/// Upstream: pkg/controller/nodelifecycle/node_lifecycle_controller.go labelReconcileInfo
pub(super) fn old_labels(node: &Node) -> BTreeMap<&'static str, String> {
    let pairs =
        [("kubernetes.io/os", "beta.kubernetes.io/os"), ("kubernetes.io/arch", "beta.kubernetes.io/arch")];
    let wrong = pairs.into_iter().filter(|(new, old)| label(node, old) != label(node, new));
    wrong.filter_map(|(new, old)| Some((old, label(node, new)?.to_owned()))).collect()
}

/// The conditions of a node whose kubelet went silent.
pub(super) fn silenced(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let mut conditions =
        node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|condition| condition.type_ == kind) {
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(Time(now));
            }
            Some(_) => {}
            None => conditions.push(NodeCondition {
                type_: kind.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
        }
    }
    conditions
}

#[cfg(test)]
mod tests {
    use api::Object;
    use serde_json::json;

    use super::*;
    use crate::objects::tests::at;

    fn node(ready: &str, extra: &[(&str, &str)], unschedulable: bool, taints: &[(&str, &str)]) -> Node {
        let mut conditions = vec![json!({"type": "Ready", "status": ready})];
        conditions.extend(extra.iter().map(|(kind, status)| json!({"type": kind, "status": status})));
        let taints: Vec<_> =
            taints.iter().map(|(key, effect)| json!({"key": key, "effect": effect})).collect();
        Node::from_value(json!({
            "metadata": {"name": "n"},
            "spec": {"unschedulable": unschedulable, "taints": taints},
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    fn words(taints: &[Taint]) -> String {
        let short = |taint: &Taint| {
            format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect)
        };
        taints.iter().map(short).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn taints_follow_conditions() {
        for (node, eviction, expected) in [
            (node("True", &[], false, &[]), Eviction::Allowed, ""),
            (node("False", &[], false, &[]), Eviction::Allowed, "not-ready:NoSchedule not-ready:NoExecute"),
            (
                node("Unknown", &[], false, &[]),
                Eviction::Allowed,
                "unreachable:NoSchedule unreachable:NoExecute",
            ),
            (node("Unknown", &[], false, &[]), Eviction::NotYet, "unreachable:NoSchedule"),
            (
                node("True", &[], false, &[(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
                Eviction::Allowed,
                "",
            ),
            (
                node("False", &[], false, &[(UNREACHABLE, "NoExecute")]),
                Eviction::Allowed,
                "not-ready:NoSchedule not-ready:NoExecute",
            ),
            (
                node("False", &[], false, &[(UNREACHABLE, "NoExecute")]),
                Eviction::NotYet,
                "unreachable:NoExecute not-ready:NoSchedule",
            ),
            (node("False", &[], false, &[(NOT_READY, "NoExecute")]), Eviction::Never, "not-ready:NoSchedule"),
            (node("True", &[], false, &[(NOT_READY, "NoExecute")]), Eviction::NotYet, ""),
            (
                node("True", &[("DiskPressure", "True")], true, &[]),
                Eviction::Allowed,
                "disk-pressure:NoSchedule unschedulable:NoSchedule",
            ),
            (
                node("True", &[], false, &[("mine", "NoSchedule"), (UNSCHEDULABLE, "NoSchedule")]),
                Eviction::Allowed,
                "mine:NoSchedule",
            ),
        ] {
            assert_eq!(words(&taints(&node, eviction, at(0))), expected);
        }
    }

    #[test]
    fn a_silent_kubelet_is_unknown() {
        let conditions = silenced(&node("True", &[("DiskPressure", "False")], false, &[]), at(5));
        let line = |c: &NodeCondition| format!("{} {} {}", c.type_, c.status, c.reason.as_deref().unwrap());
        let lines: Vec<_> = conditions.iter().map(line).collect();
        assert_eq!(
            lines,
            [
                "Ready Unknown NodeStatusUnknown",
                "DiskPressure Unknown NodeStatusUnknown",
                "MemoryPressure Unknown NodeStatusNeverUpdated",
                "PIDPressure Unknown NodeStatusNeverUpdated",
            ]
        );
    }

    #[test]
    fn old_labels_follow_the_new() {
        let labelled = |labels: serde_json::Value| {
            Node::from_value(json!({"metadata": {"name": "n", "labels": labels}})).unwrap()
        };
        for (labels, expected) in [
            (json!({}), ""),
            (json!({"kubernetes.io/os": "linux"}), "beta.kubernetes.io/os=linux"),
            (json!({"kubernetes.io/os": "linux", "beta.kubernetes.io/os": "linux"}), ""),
            (
                json!({"kubernetes.io/arch": "arm64", "beta.kubernetes.io/arch": "x"}),
                "beta.kubernetes.io/arch=arm64",
            ),
            (json!({"beta.kubernetes.io/arch": "x"}), ""),
        ] {
            let found = old_labels(&labelled(labels));
            let found: Vec<_> = found.iter().map(|(key, value)| format!("{key}={value}")).collect();
            assert_eq!(found.join(" "), expected);
        }
    }
}
