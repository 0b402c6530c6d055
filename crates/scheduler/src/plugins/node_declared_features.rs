//! A pod that uses a feature that not every kubelet has goes to nodes that declare it.

use api::core::v1::{Node, PodSpec};

use crate::cluster::{Change, Cluster, Kind};
use crate::framework::{Filter, LooksAt, Plugin, Refusal};
use crate::{NodeInfo, PodInfo};

/// A feature by the name that nodes declare, and which pods use it.
type Feature = (&'static str, fn(&PodSpec) -> bool);

/// Those that matter when a pod is placed. Others matter only when it is changed, and are no concern of a scheduler.
///
/// Upstream: staging/src/k8s.io/component-helpers/nodedeclaredfeatures/features/registry.go AllFeatures
static FEATURES: &[Feature] = &[
    ("RestartAllContainersOnContainerExits", restarts_all),
    ("UserNamespacesHostNetworkSupport", |spec| {
        spec.host_network == Some(true) && spec.host_users == Some(false)
    }),
];

fn restarts_all(spec: &PodSpec) -> bool {
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers.any(|container| {
        container.restart_policy_rules.iter().flatten().any(|rule| rule.action == "RestartAllContainers")
    })
}

/// The features that the pod needs.
fn needed(pod: &PodInfo) -> Vec<&'static str> {
    let Some(spec) = pod.spec() else { return Vec::new() };
    FEATURES.iter().filter(|(_, uses)| uses(spec)).map(|(name, _)| *name).collect()
}

fn declared(node: &Node) -> &[String] {
    node.status.as_ref().and_then(|status| status.declared_features.as_deref()).unwrap_or_default()
}

pub struct NodeDeclaredFeatures;

impl Plugin for NodeDeclaredFeatures {
    fn name(&self) -> &'static str {
        "NodeDeclaredFeatures"
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, _cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let needed = needed(pod);
        (!needed.is_empty()).then(|| Box::new(Needed(needed)) as Box<dyn Filter>)
    }

    fn events(&self) -> &'static [Kind] {
        &[Kind::NodeAdded, Kind::NodeUpdated, Kind::PodItself]
    }

    fn may_help(&self, _pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeUpdated { old, new } => declared(old) != declared(new),
            change => matches!(change, Change::NodeAdded(_) | Change::PodItself),
        }
    }
}

struct Needed(Vec<&'static str>);

impl Filter for Needed {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let declared = node.node.as_deref().map(declared).unwrap_or_default();
        if self.0.iter().all(|needed| declared.iter().any(|name| name == needed)) {
            return Ok(());
        }
        Err(Refusal::unresolvable("node(s) didn't match Pod's required features"))
    }

    fn looks_at(&self) -> LooksAt {
        LooksAt::Node
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{node_info, pod_info};

    fn check(mut spec: Value, declared: &[&str]) -> Result<(), String> {
        if spec["containers"].is_null() {
            spec["containers"] = json!([]);
        }
        let pod = pod_info(json!({"metadata": {"name": "p"}, "spec": spec}));
        let node = node_info(json!({"metadata": {"name": "n"}, "status": {"declaredFeatures": declared}}));
        let cluster = Cluster::default();
        let filter = NodeDeclaredFeatures.filter(&pod, &cluster);
        filter.map_or(Ok(()), |filter| filter.check(&node)).map_err(|refusal| refusal.words())
    }

    #[test]
    fn a_node_must_declare_what_the_pod_uses() {
        let refused = Err("node(s) didn't match Pod's required features".to_owned());
        assert_eq!(check(json!({}), &[]), Ok(()));
        let container = |action: &str| {
            json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules": [{"action": action,
                "exitCodes": {"operator": "In", "values": [1]}}]})
        };
        let restarts = |action: &str| json!({"containers": [container(action)]});
        assert_eq!(check(restarts("Restart"), &[]), Ok(()));
        assert_eq!(check(restarts("RestartAllContainers"), &[]), refused);
        let name = "RestartAllContainersOnContainerExits";
        assert_eq!(check(restarts("RestartAllContainers"), &["Another", name]), Ok(()));
        let init = json!({"initContainers": [container("RestartAllContainers")]});
        assert_eq!(check(init, &["Another"]), refused);
        let host = |users: Value| json!({"hostNetwork": true, "hostUsers": users});
        assert_eq!(check(host(json!(false)), &[name]), refused);
        assert_eq!(check(host(json!(null)), &[]), Ok(()));
    }
}
