//! Which nodes a daemon's pods belong on, and how a pod is tied to one.

use api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
    Toleration,
};

use crate::taint_eviction::tolerates;

const NODE_NAME_FIELD: &str = "metadata.name";

/// Taints that every daemon tolerates: a node in trouble needs its daemons.
///
/// Upstream: pkg/controller/daemon/util/daemonset_util.go AddOrUpdateDaemonPodTolerations
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NETWORK_UNAVAILABLE: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

pub(crate) fn add_tolerations(spec: &mut PodSpec) {
    let host_network = (spec.host_network == Some(true)).then_some(NETWORK_UNAVAILABLE);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(host_network) {
        let wanted = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Default::default()
        };
        let same = |t: &Toleration| {
            t.key == wanted.key
                && t.effect == wanted.effect
                && t.operator == wanted.operator
                && t.value.is_none()
        };
        match tolerations.iter_mut().find(|t| same(t)) {
            Some(present) => *present = wanted,
            None => tolerations.push(wanted),
        }
    }
}

/// The pod's required node affinity names this node and no other.
///
/// Upstream: pkg/controller/daemon/util/daemonset_util.go ReplaceDaemonSetPodNodeNameNodeAffinity
pub(crate) fn tie_to_node(spec: &mut PodSpec, node: &str) {
    let requirement = NodeSelectorRequirement {
        key: NODE_NAME_FIELD.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![requirement]), match_expressions: None };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}

fn required(spec: &PodSpec) -> Option<&NodeSelector> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity.required_during_scheduling_ignored_during_execution.as_ref()
}

/// The node that a pod is on, or is tied to.
pub(crate) fn target_node(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = spec.node_name.as_deref().filter(|name| !name.is_empty()) {
        return Some(name);
    }
    let mut fields = required(spec)?.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let field = fields.find(|field| field.key == NODE_NAME_FIELD && field.operator == "In")?;
    match field.values.as_deref() {
        Some([name]) => Some(name),
        _ => None,
    }
}

/// Whether a pod is to be started on the node, and whether one there may stay.
///
/// Upstream: pkg/controller/daemon/daemon_controller.go NodeShouldRunDaemonPod
pub(crate) fn should_run(template: &PodSpec, node: &Node) -> (bool, bool) {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let wanted = template.node_name.as_deref().unwrap_or_default();
    if !(wanted.is_empty() || wanted == name) || !fits(template, node) {
        return (false, false);
    }
    let mut spec = PodSpec {
        tolerations: template.tolerations.clone(),
        host_network: template.host_network,
        ..Default::default()
    };
    add_tolerations(&mut spec);
    let untolerated = |effects: &[&str]| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        taints.iter().any(|taint| {
            effects.contains(&taint.effect.as_str())
                && !spec.tolerations.iter().flatten().any(|toleration| tolerates(toleration, taint))
        })
    };
    if untolerated(&["NoExecute", "NoSchedule"]) {
        return (false, !untolerated(&["NoExecute"]));
    }
    (true, true)
}

/// Whether the node passes the node selector and the required node affinity.
fn fits(spec: &PodSpec, node: &Node) -> bool {
    let label =
        |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| label(key) == Some(value));
    let term = |term: &NodeSelectorTerm| {
        let (expressions, fields) = (&term.match_expressions, &term.match_fields);
        let empty =
            expressions.as_ref().is_none_or(Vec::is_empty) && fields.as_ref().is_none_or(Vec::is_empty);
        let name = node.metadata.name.as_deref();
        !empty
            && expressions.iter().flatten().all(|r| meets(r, label(&r.key)))
            && fields.iter().flatten().all(|r| meets(r, name.filter(|_| r.key == NODE_NAME_FIELD)))
    };
    selected && required(spec).is_none_or(|selector| selector.node_selector_terms.iter().any(term))
}

fn meets(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|v| v == value));
    let numbers = || {
        let bound = values.first()?.parse::<i64>().ok()?;
        Some((value?.parse::<i64>().ok()?, bound))
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers().is_some_and(|(value, bound)| value < bound),
        // Validation lets no other operator in; what is unknown selects nothing.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn nodes_are_chosen_as_the_scheduler_would() {
        let check = |template: Value, taints: Value, expected: (bool, bool)| {
            let template: PodSpec = serde_json::from_value(template).unwrap();
            let node: Node = serde_json::from_value(json!({
                "metadata": {"name": "n1", "labels": {"disk": "ssd", "cores": "8"}}, "spec": {"taints": taints},
            }))
            .unwrap();
            assert_eq!(should_run(&template, &node), expected, "{template:?} {taints}");
        };
        let affine = |requirement: Value| {
            json!({"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [requirement]},
            }}})
        };
        let plain = json!({"containers": []});
        check(plain.clone(), json!([]), (true, true));
        check(json!({"containers": [], "nodeName": "n2"}), json!([]), (false, false));
        check(json!({"containers": [], "nodeSelector": {"disk": "ssd"}}), json!([]), (true, true));
        check(json!({"containers": [], "nodeSelector": {"disk": "hdd"}}), json!([]), (false, false));
        check(affine(json!({})), json!([]), (false, false));
        check(
            affine(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]})),
            json!([]),
            (true, true),
        );
        check(
            affine(json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["8"]}]})),
            json!([]),
            (false, false),
        );
        check(
            affine(json!({"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["9"]}]})),
            json!([]),
            (true, true),
        );
        check(
            plain.clone(),
            json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]),
            (true, true),
        );
        check(
            plain.clone(),
            json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]),
            (true, true),
        );
        check(
            plain.clone(),
            json!([{"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule"}]),
            (false, true),
        );
        check(
            json!({"containers": [], "hostNetwork": true}),
            json!([{"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule"}]),
            (true, true),
        );
        check(plain.clone(), json!([{"key": "mine", "effect": "NoSchedule"}]), (false, true));
        check(plain, json!([{"key": "mine", "effect": "NoExecute"}]), (false, false));
    }

    #[test]
    fn a_pod_is_tied_to_one_node() {
        let mut pod = Pod { spec: Some(PodSpec::default()), ..Default::default() };
        assert_eq!(target_node(&pod), None);
        tie_to_node(pod.spec.as_mut().unwrap(), "n1");
        assert_eq!(target_node(&pod), Some("n1"));
        pod.spec.as_mut().unwrap().node_name = Some("n2".into());
        assert_eq!(target_node(&pod), Some("n2"));
    }
}
