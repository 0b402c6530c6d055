//! A pod chooses nodes by their labels: what it requires, and what it prefers.

use std::sync::Arc;

use api::Object;
use api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, PreferredSchedulingTerm,
};
use serde_json::Value;

use crate::cluster::{Change, Cluster, Kind};
use crate::configuration::args;
use crate::framework::{Filter, LooksAt, Plugin, Refusal, Score, normalize_to_max};
use crate::pod::Labels;
use crate::{NodeInfo, PodInfo};

/// What a profile asks of all its pods, beside what each asks.
pub struct NodeAffinity {
    added: Option<api::core::v1::NodeAffinity>,
}

impl NodeAffinity {
    pub fn make(args: Option<&Value>) -> Result<Arc<dyn Plugin>, String> {
        let args: args::NodeAffinityArgs = args::read(args)?;
        Ok(Arc::new(NodeAffinity { added: args.added_affinity }))
    }

    fn added_required(&self) -> Option<&NodeSelector> {
        self.added.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
    }
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, _cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let spec = pod.spec()?;
        let added = self.added_required();
        let asks = spec.node_selector.as_ref().is_some_and(|selector| !selector.is_empty())
            || spec.affinity.as_ref().is_some_and(|affinity| affinity.node_affinity.is_some())
            || added.is_some();
        asks.then(|| Box::new(Required { pod, added }) as Box<dyn Filter>)
    }

    fn refuse_all(&self, pod: &PodInfo, _cluster: &Cluster) -> Option<Refusal> {
        let conflict = self.narrow(pod).is_some_and(|names| names.is_empty());
        conflict.then(|| Refusal::unresolvable("pod affinity terms conflict"))
    }

    // Upstream: pkg/scheduler/framework/plugins/nodeaffinity/node_affinity.go PreFilter
    fn narrow(&self, pod: &PodInfo) -> Option<Vec<String>> {
        let affinity = pod.spec()?.affinity.as_ref()?.node_affinity.as_ref()?;
        let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
        if required.node_selector_terms.is_empty() {
            return None;
        }
        let mut names: Vec<String> = Vec::new();
        for term in &required.node_selector_terms {
            let fields = term.match_fields.as_deref().unwrap_or_default();
            let named = |r: &&NodeSelectorRequirement| r.key == "metadata.name" && r.operator == "In";
            let mut named = fields.iter().filter(named).map(|r| r.values.clone().unwrap_or_default());
            // A term that names no node may match any.
            let first = named.next()?;
            names.extend(
                named.fold(first, |names, more| names.into_iter().filter(|n| more.contains(n)).collect()),
            );
        }
        names.sort();
        names.dedup();
        Some(names)
    }

    fn score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _cluster: &'a Cluster,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let own = pod.spec()?.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let all = own.into_iter().chain(self.added.as_ref());
        let terms = all.flat_map(|a| a.preferred_during_scheduling_ignored_during_execution.iter().flatten());
        let terms: Vec<&PreferredSchedulingTerm> = terms.collect();
        (!terms.is_empty()).then(|| Box::new(Preferred(terms)) as Box<dyn Score>)
    }

    fn events(&self) -> &'static [Kind] {
        &[Kind::NodeAdded, Kind::NodeUpdated, Kind::PodItself]
    }

    fn may_help(&self, pod: &PodInfo, change: &Change) -> bool {
        let matches = |node: &Node| {
            self.added_required().is_none_or(|added| matches_selector(added, node))
                && matches_required(pod, node)
        };
        match change {
            Change::NodeAdded(node) => matches(node),
            Change::NodeUpdated { old, new } => !matches(old) && matches(new),
            change => matches!(change, Change::PodItself),
        }
    }
}

struct Required<'a> {
    pod: &'a PodInfo,
    added: Option<&'a NodeSelector>,
}

impl Filter for Required<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let Some(node) = &node.node else { return Ok(()) };
        if self.added.is_some_and(|added| !matches_selector(added, node)) {
            return Err(Refusal::unresolvable("node(s) didn't match scheduler-enforced node affinity"));
        }
        match matches_required(self.pod, node) {
            true => Ok(()),
            false => Err(Refusal::unresolvable("node(s) didn't match Pod's node affinity/selector")),
        }
    }

    fn looks_at(&self) -> LooksAt {
        LooksAt::Node
    }

    fn is_steady(&self) -> bool {
        true
    }
}

struct Preferred<'a>(Vec<&'a PreferredSchedulingTerm>);

impl Score for Preferred<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let Some(node) = &node.node else { return 0 };
        self.0
            .iter()
            .filter(|term| matches_term(&term.preference, node))
            .map(|term| i64::from(term.weight))
            .sum()
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        normalize_to_max(scores, false);
    }
}

/// Whether the node has the labels of the pod's node selector and matches one of its required terms.
///
/// Upstream: component-helpers/scheduling/corev1/nodeaffinity/nodeaffinity.go RequiredNodeAffinity
pub fn matches_required(pod: &PodInfo, node: &Node) -> bool {
    pod.spec().is_none_or(|spec| matches_spec(spec, node))
}

/// The same of a pod's spec.
pub fn matches_spec(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key));
    if !spec.node_selector.iter().flatten().all(|(key, value)| label(key) == Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    match affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()) {
        None => true,
        Some(required) => matches_selector(required, node),
    }
}

pub fn matches_selector(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| matches_term(term, node))
}

/// A term without requirements matches nothing.
fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let no_labels = Labels::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&no_labels);
    expressions.iter().all(|r| matches(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| matches(r, (r.key == "metadata.name").then(|| node.name())))
}

fn matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|v| v == value);
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |holds: fn(i64, i64) -> bool| {
        let bound = values.first().and_then(|v| number(v));
        value.and_then(number).zip(bound).is_some_and(|(value, bound)| holds(value, bound))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|value, bound| value > bound),
        "Lt" => compare(|value, bound| value < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;

    fn check(term: Value, expected: bool) {
        let pod = json!({"spec": {"containers": [], "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}}});
        let pod = PodInfo::new(Pod::from_value(pod).unwrap().into());
        let node = json!({"metadata": {"name": "n1", "labels": {"zone": "a", "cores": "8"}}});
        assert_eq!(matches_required(&pod, &Node::from_value(node).unwrap()), expected, "{term}");
    }

    #[test]
    fn terms_match_labels_and_fields() {
        let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        check(expression("zone", "In", &["a", "b"]), true);
        check(expression("zone", "In", &["b"]), false);
        check(expression("zone", "NotIn", &["b"]), true);
        check(expression("rack", "NotIn", &["b"]), true);
        check(expression("zone", "Exists", &[]), true);
        check(expression("rack", "DoesNotExist", &[]), true);
        check(expression("cores", "Gt", &["4"]), true);
        check(expression("cores", "Lt", &["8"]), false);
        check(expression("zone", "Gt", &["4"]), false);
        check(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}), true);
        check(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}), false);
        check(json!({}), false);
    }
}
