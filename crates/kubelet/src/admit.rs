//! Whether this node takes a pod: what the scheduler has checked is checked again, as pods also come without it.

use std::collections::BTreeMap;

use api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod};

use crate::pod::{self, qos};
use crate::status::Verdict;

fn verdict(reason: &str, message: String) -> Verdict {
    Verdict { reason: reason.into(), message, ..Default::default() }
}

/// The refusal, if the pod cannot live beside `others` on `node`.
// Upstream: pkg/kubelet/lifecycle/predicate.go Admit
pub fn check(pod: &Pod, others: &[&Pod], node: &Node) -> Option<Verdict> {
    let spec = pod.spec.as_ref()?;
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS".to_owned();
        return Some(verdict("PodOSNotSupported", message));
    }
    if let Some(refusal) = resources(pod, others, node) {
        return Some(refusal);
    }
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    if !selected || !affinity(pod, node, &labels) {
        return Some(predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
    }
    let mut taken = others.iter().flat_map(|p| host_ports(p));
    let wanted = host_ports(pod);
    if taken.any(|t| wanted.iter().any(|w| conflict(w, &t))) {
        return Some(predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports"));
    }
    if !pod::is_static(pod) && !tolerates_no_execute(pod, node) {
        return Some(predicate("TaintToleration", "node(s) had untolerated taint(s)"));
    }
    None
}

fn predicate(name: &str, why: &str) -> Verdict {
    verdict(name, format!("Predicate {name} failed: {why}"))
}

fn resources(pod: &Pod, others: &[&Pod], node: &Node) -> Option<Verdict> {
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.clone()).unwrap_or_default();
    let insufficient = |name: &str, requested: i64, used: i64, capacity: i64| {
        let message = format!(
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        verdict(&format!("OutOf{name}"), message)
    };
    let capacity = |name: &str| allocatable.get(name).map(|q| qos::amount(name, q));
    if let Some(max) = capacity("pods").filter(|max| others.len() as i64 + 1 > *max) {
        return Some(insufficient("pods", 1, others.len() as i64, max));
    }
    let mut names: Vec<String> = ["cpu", "memory", "ephemeral-storage"].map(str::to_owned).to_vec();
    let asked = pod::containers(pod).iter().filter_map(|c| c.resources.as_ref()?.requests.as_ref());
    // Extended resources that the node does not have are not this node's to judge.
    names.extend(
        asked.flat_map(|r| r.keys()).filter(|k| k.contains('/') && allocatable.contains_key(*k)).cloned(),
    );
    for name in names {
        let requested = qos::pod_request(pod, &name);
        let used: i64 = others.iter().map(|p| qos::pod_request(p, &name)).sum();
        let Some(capacity) = capacity(&name) else { continue };
        if requested > 0 && used + requested > capacity {
            return Some(insufficient(&name, requested, used, capacity));
        }
    }
    None
}

fn affinity(pod: &Pod, node: &Node, labels: &BTreeMap<String, String>) -> bool {
    let spec = pod.spec.as_ref();
    let required = spec
        .and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|r| matches_terms(&r.node_selector_terms, node, labels))
}

/// Whether the node is one of those that the terms select.
pub fn matches_any(terms: &[NodeSelectorTerm], node: &Node) -> bool {
    matches_terms(terms, node, &node.metadata.labels.clone().unwrap_or_default())
}

fn matches_terms(terms: &[NodeSelectorTerm], node: &Node, labels: &BTreeMap<String, String>) -> bool {
    let name = BTreeMap::from([("metadata.name".to_owned(), node.metadata.name.clone().unwrap_or_default())]);
    let matches = |term: &NodeSelectorTerm| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        // A term without requirements matches nothing.
        !(expressions.is_empty() && fields.is_empty())
            && expressions.iter().all(|r| requirement(r, labels))
            && fields.iter().all(|r| requirement(r, &name))
    };
    terms.iter().any(matches)
}

fn requirement(requirement: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: Option<&String>| text.and_then(|t| t.parse::<i64>().ok());
    let pair = number(value).zip(number(values.first()));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.contains(v)),
        "NotIn" => !value.is_some_and(|v| values.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => pair.is_some_and(|(a, b)| a > b),
        "Lt" => pair.is_some_and(|(a, b)| a < b),
        _ => false,
    }
}

/// Address, protocol and number of each port of the node that the pod takes.
fn host_ports(pod: &Pod) -> Vec<(String, String, i32)> {
    let host_network = pod::host_network(pod);
    let sidecars = pod::init_containers(pod).iter().filter(|c| pod::is_sidecar(c));
    let ports = pod::containers(pod).iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let own = if host_network { Some(port.container_port) } else { None };
            let number = port.host_port.filter(|p| *p > 0).or(own)?;
            let address =
                port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
            Some((address, port.protocol.clone().unwrap_or_else(|| "TCP".into()), number))
        })
        .collect()
}

fn conflict(a: &(String, String, i32), b: &(String, String, i32)) -> bool {
    let any = |ip: &str| ip == "0.0.0.0" || ip == "::";
    a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || any(&a.0) || any(&b.0))
}

fn tolerates_no_execute(pod: &Pod, node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.clone()).unwrap_or_default();
    taints.iter().filter(|t| t.effect == "NoExecute").all(|taint| {
        tolerations.iter().any(|t| {
            let key = t.key.as_deref().unwrap_or_default();
            let effect = t.effect.as_deref().unwrap_or_default();
            let by_value = match t.operator.as_deref() {
                Some("Exists") => true,
                _ => t.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
            };
            (effect.is_empty() || effect == taint.effect) && (key.is_empty() || key == taint.key) && by_value
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([]);
        }
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn port(host_ip: &str, protocol: &str, number: i32) -> Pod {
        pod(json!({"containers": [{"name": "c", "ports": [
            {"containerPort": 80, "hostPort": number, "hostIP": host_ip, "protocol": protocol}]}]}))
    }

    fn cpu(amount: &str) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]}))
    }

    #[test]
    fn refusals() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n", "labels": {"disk": "ssd"}},
            "spec": {"taints": [{"key": "gone", "effect": "NoExecute"}]},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "3"}},
        }))
        .unwrap();
        let tolerant = |mut pod: Pod| {
            let toleration = json!([{"operator": "Exists"}]);
            pod.spec.as_mut().unwrap().tolerations = serde_json::from_value(toleration).unwrap();
            pod
        };
        let check = |pod: Pod, others: &[Pod], want: Option<&str>| {
            let others: Vec<&Pod> = others.iter().collect();
            let got = super::check(&tolerant(pod.clone()), &others, &node);
            assert_eq!(got.as_ref().map(|v| v.reason.as_str()), want, "{pod:?}");
        };
        check(cpu("1"), &[cpu("1")], None);
        check(cpu("1"), &[cpu("1500m")], Some("OutOfcpu"));
        check(cpu("0"), &[cpu("0"), cpu("0"), cpu("0")], Some("OutOfpods"));
        check(pod(json!({"nodeSelector": {"disk": "ssd"}})), &[], None);
        check(pod(json!({"nodeSelector": {"disk": "hdd"}})), &[], Some("NodeAffinity"));
        check(port("", "TCP", 80), &[port("", "TCP", 80)], Some("NodePorts"));
        check(port("127.0.0.1", "TCP", 80), &[port("", "TCP", 80)], Some("NodePorts"));
        check(port("127.0.0.1", "TCP", 80), &[port("127.0.0.2", "TCP", 80)], None);
        check(port("", "UDP", 80), &[port("", "TCP", 80)], None);
        assert_eq!(super::check(&cpu("1"), &[], &node).unwrap().reason, "TaintToleration");
    }
}
