//! Two pods of a node cannot have the same port of it.

use crate::cluster::{Change, Cluster, Kind};
use crate::framework::{Filter, Plugin, Refusal};
use crate::pod::HostPort;
use crate::{NodeInfo, PodInfo};

pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, _cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        (!pod.host_ports.is_empty()).then(|| Box::new(Free(&pod.host_ports)) as Box<dyn Filter>)
    }

    fn events(&self) -> &'static [Kind] {
        &[Kind::NodeAdded, Kind::PodGone, Kind::PodItself]
    }

    fn may_help(&self, pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeAdded(_) | Change::PodItself => true,
            Change::PodGone(gone) => conflict(&pod.host_ports, &gone.host_ports),
            _ => false,
        }
    }
}

fn conflict(wanted: &[HostPort], used: &[HostPort]) -> bool {
    wanted.iter().any(|port| used.iter().any(|other| port.conflicts(other)))
}

struct Free<'a>(&'a [HostPort]);

impl Filter for Free<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        if conflict(self.0, &node.host_ports) {
            return Err(Refusal::new("node(s) didn't have free ports for the requested pod ports"));
        }
        Ok(())
    }
}
