//! A pod that names its node goes there or nowhere.

use api::Object;

use crate::cluster::{Change, Cluster, Kind};
use crate::framework::{Filter, LooksAt, Plugin, Refusal};
use crate::{NodeInfo, PodInfo};

pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, _cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let name = pod.node_name();
        (!name.is_empty()).then(|| Box::new(Named(name)) as Box<dyn Filter>)
    }

    fn events(&self) -> &'static [Kind] {
        &[Kind::NodeAdded]
    }

    fn may_help(&self, pod: &PodInfo, change: &Change) -> bool {
        matches!(change, Change::NodeAdded(node) if node.name() == pod.node_name())
    }
}

struct Named<'a>(&'a str);

impl Filter for Named<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        if node.name() == self.0 {
            return Ok(());
        }
        Err(Refusal::unresolvable("node(s) didn't match the requested node name"))
    }

    fn looks_at(&self) -> LooksAt {
        LooksAt::Node
    }

    fn is_steady(&self) -> bool {
        true
    }
}
