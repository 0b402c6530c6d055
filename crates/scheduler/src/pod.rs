//! [`PodInfo`]: a pod and what the scheduler works out of it once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::Object;
use api::core::v1::{Affinity, Pod, PodAffinityTerm, PodSpec};
use api::meta::LabelSelector as LabelSelectorObject;
use apimachinery::selector::LabelSelector;

use crate::resources::{self, Resources};

#[derive(Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub key: String,
    pub priority: i32,
    pub requests: Resources,
    /// The requests as scoring counts them.
    pub scoring_requests: Resources,
    pub host_ports: Vec<HostPort>,
    pub required_affinity: Vec<AffinityTerm>,
    pub required_anti_affinity: Vec<AffinityTerm>,
    /// With weights; those of anti-affinity are negative.
    pub preferred_affinity: Vec<(i64, AffinityTerm)>,
}

/// A port of the node itself that a pod wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts(&self, other: &HostPort) -> bool {
        let any = |port: &HostPort| port.ip == "0.0.0.0" || port.ip == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(self) || any(other))
    }
}

/// Which pods, and within which topology, a pod wants to be near to or away from.
#[derive(Debug)]
pub struct AffinityTerm {
    pub selector: LabelSelector,
    /// Namespaces by name; those that `namespace_selector` matches are added.
    pub namespaces: BTreeSet<String>,
    pub namespace_selector: Option<LabelSelector>,
    pub topology_key: String,
}

impl AffinityTerm {
    fn new(term: &PodAffinityTerm, pod: &Pod) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(pod.namespace().to_owned());
        }
        AffinityTerm {
            selector: selector(term.label_selector.as_ref()),
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(|s| selector(Some(s))),
            topology_key: term.topology_key.clone(),
        }
    }

    /// Whether the term speaks of this pod. `namespace_labels` gives the labels of a namespace.
    pub fn matches<'a>(&self, pod: &Pod, namespace_labels: impl Fn(&str) -> Option<&'a Labels>) -> bool {
        let namespace = pod.namespace();
        let in_namespace = self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                selector.is_empty()
                    || namespace_labels(namespace).is_some_and(|labels| selector.matches_map(labels))
            });
        in_namespace && self.selector.matches_map(labels(pod))
    }
}

pub type Labels = BTreeMap<String, String>;

static NO_LABELS: Labels = Labels::new();

pub fn labels(pod: &Pod) -> &Labels {
    pod.metadata.labels.as_ref().unwrap_or(&NO_LABELS)
}

/// A selector of an object; an absent one selects nothing, as does one that the API server would have refused.
pub fn selector(object: Option<&LabelSelectorObject>) -> LabelSelector {
    let Some(object) = object else { return LabelSelector::nothing() };
    let tree = serde_json::to_value(object).expect("a selector has no keys but strings");
    LabelSelector::from_object(&tree).unwrap_or_else(|_| LabelSelector::nothing())
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
        let terms = |terms: Option<&Vec<PodAffinityTerm>>| {
            terms.into_iter().flatten().map(|term| AffinityTerm::new(term, &pod)).collect()
        };
        let near = affinity.and_then(|a| a.pod_affinity.as_ref());
        let away = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        PodInfo {
            key: pod.key(),
            priority: pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0),
            requests: resources::of_pod(&pod),
            scoring_requests: resources::of_pod_for_scoring(&pod),
            host_ports: pod.spec.as_ref().map(host_ports).unwrap_or_default(),
            required_affinity: terms(
                near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            required_anti_affinity: terms(
                away.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred_affinity: preferred(affinity, &pod),
            pod,
        }
    }

    pub fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    pub fn uid(&self) -> &str {
        self.pod.uid()
    }

    /// Which scheduler is to place it.
    pub fn scheduler_name(&self) -> &str {
        self.spec().and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or("default-scheduler")
    }

    /// Empty while the pod has none.
    pub fn node_name(&self) -> &str {
        self.spec().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
    }

    pub fn nominated_node(&self) -> Option<&str> {
        self.pod.status.as_ref()?.nominated_node_name.as_deref().filter(|name| !name.is_empty())
    }

    /// Succeeded or failed: takes no room any more.
    pub fn is_terminal(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    pub fn is_deleting(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    pub fn has_affinity(&self) -> bool {
        !self.required_affinity.is_empty()
            || !self.required_anti_affinity.is_empty()
            || !self.preferred_affinity.is_empty()
    }
}

fn preferred(affinity: Option<&Affinity>, pod: &Pod) -> Vec<(i64, AffinityTerm)> {
    let near = affinity.and_then(|a| a.pod_affinity.as_ref());
    let away = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    let near = near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let away = away.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let near = near.into_iter().flatten().map(|t| (i64::from(t.weight), &t.pod_affinity_term));
    let away = away.into_iter().flatten().map(|t| (-i64::from(t.weight), &t.pod_affinity_term));
    near.chain(away).map(|(weight, term)| (weight, AffinityTerm::new(term, pod))).collect()
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let wanted = ports.filter_map(|port| {
        let number = port.host_port.filter(|n| *n > 0)?;
        let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0");
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        Some(HostPort { ip: ip.to_owned(), protocol: protocol.to_owned(), port: number })
    });
    wanted.collect()
}
