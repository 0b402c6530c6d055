//! [`PodInfo`]: a pod and what the scheduler works out of it once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use api::Object;
use api::core::v1::{Affinity, NodeAffinity, Pod, PodAffinityTerm, PodSpec, TopologySpreadConstraint};
use api::meta::LabelSelector as LabelSelectorObject;
use apimachinery::selector::LabelSelector;

use crate::pod_groups::group_of;
use crate::resources::{self, Resources};
use crate::tally::{Question, Scope, Wish};

#[derive(Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub key: String,
    pub priority: i32,
    /// The key of the group that it is scheduled with.
    pub group: Option<String>,
    /// When it began to run; of one that did not yet, the end of time.
    pub started: jiff::Timestamp,
    pub requests: Resources,
    /// The requests as scoring counts them.
    pub scoring_requests: Resources,
    pub host_ports: Vec<HostPort>,
    pub required_affinity: Vec<Wanted>,
    pub required_anti_affinity: Vec<Wanted>,
    /// With weights; those of anti-affinity are negative.
    pub preferred_affinity: Vec<(i64, Wanted)>,
    /// Its own constraints of spreading.
    pub spread: Vec<SpreadConstraint>,
    /// Those that it has for belonging to others, with the version of the groups by which they were found.
    pub spread_by_group: Mutex<Option<(u64, Arc<[SpreadConstraint]>)>>,
}

/// A term, and what it asks of the cluster.
#[derive(Debug)]
pub struct Wanted {
    pub term: Arc<AffinityTerm>,
    /// How many pods are where that the term speaks of; for required affinity, that all terms speak of.
    pub question: Arc<Question>,
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

/// How a pod is spread among those that belong to it.
#[derive(Debug)]
pub struct SpreadConstraint {
    pub topology_key: String,
    pub max_skew: i64,
    pub min_domains: i64,
    /// Nodes that break it are out, rather than less wanted.
    pub required: bool,
    /// Whether the pod is one of those that are counted.
    pub counts_itself: bool,
    pub question: Arc<Question>,
}

/// Which pods, and within which topology, a pod wants to be near to or away from.
#[derive(Debug)]
pub struct AffinityTerm {
    /// Equal for terms that speak of the same pods.
    pub id: String,
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
        let which = selector(term.label_selector.as_ref());
        let namespace_selector = term.namespace_selector.as_ref().map(|s| selector(Some(s)));
        let nothing = if which.is_nothing() { "!" } else { "" };
        AffinityTerm {
            id: match &namespace_selector {
                None => format!("{namespaces:?}{nothing}{which}"),
                Some(among) => format!("{namespaces:?}({among}){nothing}{which}"),
            },
            selector: which,
            namespaces,
            namespace_selector,
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
        let terms = |terms: Option<&Vec<PodAffinityTerm>>| -> Vec<Arc<AffinityTerm>> {
            terms.into_iter().flatten().map(|term| Arc::new(AffinityTerm::new(term, &pod))).collect()
        };
        let near = affinity.and_then(|a| a.pod_affinity.as_ref());
        let away = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        PodInfo {
            key: pod.key(),
            group: group_of(&pod),
            priority: pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0),
            started: pod
                .status
                .as_ref()
                .and_then(|status| status.start_time.as_ref())
                .map_or(jiff::Timestamp::MAX, |time| time.0),
            requests: resources::of_pod(&pod),
            scoring_requests: resources::of_pod_for_scoring(&pod),
            host_ports: pod.spec.as_ref().map(host_ports).unwrap_or_default(),
            required_affinity: all_of(terms(
                near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            )),
            required_anti_affinity: terms(
                away.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            )
            .into_iter()
            .map(one_of)
            .collect(),
            spread: spread(&pod),
            spread_by_group: Mutex::default(),
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
        crate::cluster::is_terminal(&self.pod)
    }

    pub fn is_deleting(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// What it wants of other pods, once it is placed.
    pub fn wishes(&self) -> impl Iterator<Item = (Wish, &Arc<AffinityTerm>)> {
        let away = self.required_anti_affinity.iter().map(|wanted| (Wish::Away, &wanted.term));
        let near = self.required_affinity.iter().map(|wanted| (Wish::Near, &wanted.term));
        let prefers = self.preferred_affinity.iter().map(|(weight, w)| (Wish::Prefers(*weight), &w.term));
        away.chain(near).chain(prefers)
    }
}

/// Terms that other pods must match all at once.
fn all_of(terms: Vec<Arc<AffinityTerm>>) -> Vec<Wanted> {
    let wanted = terms.iter().map(|term| Wanted {
        term: term.clone(),
        question: Question::matching(terms.clone(), &term.topology_key),
    });
    wanted.collect()
}

/// A term that counts by itself.
fn one_of(term: Arc<AffinityTerm>) -> Wanted {
    Wanted { question: Question::matching(vec![term.clone()], &term.topology_key), term }
}

/// The constraints that the pod states itself.
fn spread(pod: &Pod) -> Vec<SpreadConstraint> {
    let constraints = pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_deref());
    let constraints = constraints.unwrap_or_default();
    let keys = |required: bool| {
        let same = constraints.iter().filter(move |c| (c.when_unsatisfiable == "DoNotSchedule") == required);
        same.map(|constraint| constraint.topology_key.clone()).collect::<Vec<_>>()
    };
    let wanted = constraints.iter().map(|constraint| {
        let mut object = constraint.label_selector.clone().unwrap_or_default();
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = labels(pod).get(key) {
                object.match_labels.get_or_insert_default().insert(key.clone(), value.clone());
            }
        }
        let selector = selector(constraint.label_selector.is_some().then_some(&object));
        SpreadConstraint::new(
            constraint,
            selector,
            keys(constraint.when_unsatisfiable == "DoNotSchedule"),
            pod,
        )
    });
    wanted.collect()
}

impl SpreadConstraint {
    /// The constraint as it is for a pod whose companions the selector selects. `keys` are labels that nodes must
    /// have to take part.
    pub fn new(
        constraint: &TopologySpreadConstraint,
        selector: LabelSelector,
        keys: Vec<String>,
        pod: &Pod,
    ) -> Self {
        let honor_affinity = constraint.node_affinity_policy.as_deref() != Some("Ignore");
        let honor_taints = constraint.node_taints_policy.as_deref() == Some("Honor");
        let scope = Scope {
            spec: Box::new(choice_of_nodes(pod, honor_affinity, honor_taints)),
            honor_affinity,
            honor_taints,
            keys,
        };
        SpreadConstraint {
            topology_key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
            required: constraint.when_unsatisfiable == "DoNotSchedule",
            counts_itself: selector.matches_map(labels(pod)),
            question: Question::group(pod.namespace(), selector, &constraint.topology_key, scope),
        }
    }
}

/// What of a pod's spec chooses nodes by their labels and taints.
fn choice_of_nodes(pod: &Pod, affinity: bool, taints: bool) -> PodSpec {
    let mut choice = PodSpec::default();
    let Some(spec) = &pod.spec else { return choice };
    if affinity {
        choice.node_selector.clone_from(&spec.node_selector);
        let required = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        choice.affinity = required.map(|affinity| Affinity {
            node_affinity: Some(NodeAffinity {
                required_during_scheduling_ignored_during_execution: affinity
                    .required_during_scheduling_ignored_during_execution
                    .clone(),
                ..Default::default()
            }),
            ..Default::default()
        });
    }
    if taints {
        choice.tolerations.clone_from(&spec.tolerations);
    }
    choice
}

fn preferred(affinity: Option<&Affinity>, pod: &Pod) -> Vec<(i64, Wanted)> {
    let near = affinity.and_then(|a| a.pod_affinity.as_ref());
    let away = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    let near = near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let away = away.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let near = near.into_iter().flatten().map(|t| (i64::from(t.weight), &t.pod_affinity_term));
    let away = away.into_iter().flatten().map(|t| (-i64::from(t.weight), &t.pod_affinity_term));
    near.chain(away).map(|(weight, term)| (weight, one_of(Arc::new(AffinityTerm::new(term, pod))))).collect()
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
