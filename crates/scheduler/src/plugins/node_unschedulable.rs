//! A cordoned node takes only pods that tolerate it.

use crate::cluster::{Change, Cluster, Kind};
use crate::framework::{Filter, LooksAt, Plugin, Refusal};
use crate::plugins::taint_toleration::tolerates;
use crate::{NodeInfo, PodInfo};

pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, _cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let taint = api::core::v1::Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Default::default()
        };
        (!tolerates(pod, &taint)).then(|| Box::new(Cordoned) as Box<dyn Filter>)
    }

    fn events(&self) -> &'static [Kind] {
        &[Kind::NodeAdded, Kind::NodeUpdated, Kind::PodItself]
    }

    fn may_help(&self, _pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeAdded(node) => !node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false),
            Change::NodeUpdated { old, new } => {
                let cordoned =
                    |n: &api::core::v1::Node| n.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
                cordoned(old) && !cordoned(new)
            }
            change => matches!(change, Change::PodItself),
        }
    }
}

struct Cordoned;

impl Filter for Cordoned {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        if node.is_unschedulable() {
            Err(Refusal::unresolvable("node(s) were unschedulable"))
        } else {
            Ok(())
        }
    }

    fn looks_at(&self) -> LooksAt {
        LooksAt::Node
    }

    fn is_steady(&self) -> bool {
        true
    }
}
