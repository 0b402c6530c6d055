//! Nodes repel pods by taints, unless the pods tolerate them.

use api::core::v1::{Taint, Toleration};

use crate::cluster::{Change, Cluster, Kind};
use crate::framework::{Filter, LooksAt, Plugin, Refusal, Score, normalize_to_max};
use crate::{NodeInfo, PodInfo};

pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, _cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        Some(Box::new(Tolerated(pod)))
    }

    fn score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _cluster: &'a Cluster,
        nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let any =
            nodes.iter().any(|node| node.taints().iter().any(|taint| taint.effect == "PreferNoSchedule"));
        any.then(|| Box::new(Preferred(pod)) as Box<dyn Score>)
    }

    fn events(&self) -> &'static [Kind] {
        &[Kind::NodeAdded, Kind::NodeUpdated, Kind::PodItself]
    }

    fn may_help(&self, pod: &PodInfo, change: &Change) -> bool {
        let tolerated = |node: &api::core::v1::Node| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
            untolerated(pod, taints).is_none()
        };
        match change {
            Change::NodeAdded(node) => tolerated(node),
            Change::NodeUpdated { old, new } => !tolerated(old) && tolerated(new),
            change => matches!(change, Change::PodItself),
        }
    }
}

/// The first taint that keeps the pod off a node.
pub fn untolerated<'a>(pod: &PodInfo, taints: &'a [Taint]) -> Option<&'a Taint> {
    if taints.is_empty() { None } else { untolerated_by(tolerations(pod), taints) }
}

/// The same for these tolerations.
pub fn untolerated_by<'a>(tolerations: &[Toleration], taints: &'a [Taint]) -> Option<&'a Taint> {
    let mut repel = taints.iter().filter(|t| t.effect == "NoSchedule" || t.effect == "NoExecute");
    repel.find(|taint| !tolerations.iter().any(|toleration| matches(toleration, taint)))
}

pub fn tolerates(pod: &PodInfo, taint: &Taint) -> bool {
    tolerations(pod).iter().any(|toleration| matches(toleration, taint))
}

fn tolerations(pod: &PodInfo) -> &[Toleration] {
    pod.spec().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
}

// Upstream: staging/src/k8s.io/api/core/v1/toleration.go ToleratesTaint
fn matches(toleration: &Toleration, taint: &Taint) -> bool {
    let differs =
        |given: &Option<String>, is: &str| given.as_deref().is_some_and(|g| !g.is_empty() && g != is);
    if differs(&toleration.effect, &taint.effect) || differs(&toleration.key, &taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        "Exists" => true,
        _ => false,
    }
}

struct Tolerated<'a>(&'a PodInfo);

impl Filter for Tolerated<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        match untolerated(self.0, node.taints()) {
            None => Ok(()),
            Some(_) => Err(Refusal::unresolvable("node(s) had untolerated taint(s)")),
        }
    }

    fn looks_at(&self) -> LooksAt {
        LooksAt::Node
    }

    fn is_steady(&self) -> bool {
        true
    }
}

struct Preferred<'a>(&'a PodInfo);

impl Score for Preferred<'_> {
    /// The number of taints that ask the pod to stay away.
    fn score(&self, node: &NodeInfo) -> i64 {
        let tolerations = tolerations(self.0).iter().filter(|toleration| {
            matches!(toleration.effect.as_deref().unwrap_or_default(), "" | "PreferNoSchedule")
        });
        let asks = |taint: &&Taint| {
            taint.effect == "PreferNoSchedule"
                && !tolerations.clone().any(|toleration| matches(toleration, taint))
        };
        node.taints().iter().filter(asks).count() as i64
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        normalize_to_max(scores, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toleration: (&str, &str, &str, &str), expected: bool) {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let (key, operator, value, effect) = toleration;
        let toleration = Toleration {
            key: some(key),
            operator: some(operator),
            value: some(value),
            effect: some(effect),
            ..Default::default()
        };
        let taint = Taint {
            key: "gpu".into(),
            value: Some("yes".into()),
            effect: "NoSchedule".into(),
            ..Default::default()
        };
        assert_eq!(matches(&toleration, &taint), expected, "{toleration:?}");
    }

    #[test]
    fn tolerations_match_taints() {
        check(("gpu", "Equal", "yes", "NoSchedule"), true);
        check(("gpu", "", "yes", ""), true);
        check(("gpu", "Equal", "no", ""), false);
        check(("gpu", "Exists", "", ""), true);
        check(("", "Exists", "", ""), true);
        check(("", "Exists", "", "NoExecute"), false);
        check(("cpu", "Exists", "", ""), false);
        check(("gpu", "Unknown", "yes", ""), false);
    }
}
