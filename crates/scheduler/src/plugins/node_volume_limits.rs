//! A CSI driver attaches only so many volumes to a node.
//!
//! Upstream: pkg/scheduler/framework/plugins/nodevolumelimits/csi.go

use std::collections::{HashMap, HashSet};

use api::Object;

use crate::cluster::{Change, Cluster, Kind};
use crate::framework::{Filter, Plugin, Refusal};
use crate::volumes::Volumes;
use crate::{NodeInfo, PodInfo};

pub struct NodeVolumeLimits;

/// A driver's name and a volume's handle.
type Attached = HashSet<(String, String)>;

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let wanted = attached(pod, &cluster.volumes);
        let volumes = &cluster.volumes;
        (!wanted.is_empty()).then(|| Box::new(Limits { wanted, volumes }) as Box<dyn Filter>)
    }

    fn events(&self) -> &'static [Kind] {
        &[Kind::NodeAdded, Kind::PodGone, Kind::PodItself, Kind::Claim, Kind::Volumes]
    }

    fn may_help(&self, _pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::PodGone(other) => {
                let volumes = other.spec().and_then(|spec| spec.volumes.as_ref());
                volumes.is_some_and(|v| {
                    v.iter().any(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some())
                })
            }
            Change::NodeAdded(_) | Change::Volumes | Change::Claim { .. } | Change::PodItself => true,
            _ => false,
        }
    }
}

fn attached(pod: &PodInfo, volumes: &Volumes) -> Attached {
    let all = pod.spec().into_iter().flat_map(|spec| spec.volumes.iter().flatten());
    let claims = all.filter_map(|volume| {
        let (name, _) = Volumes::claim_name(&pod.pod, volume)?;
        volumes.claim(pod.pod.namespace(), &name)
    });
    claims.filter_map(|claim| volumes.csi_of(claim)).collect()
}

struct Limits<'a> {
    wanted: Attached,
    volumes: &'a Volumes,
}

impl Filter for Limits<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let drivers = self.volumes.csi_nodes.get(node.name()).map(|node| node.spec.drivers.as_slice());
        let limits: HashMap<&str, usize> = drivers
            .unwrap_or_default()
            .iter()
            .filter_map(|driver| {
                let count = driver.allocatable.as_ref()?.count?;
                Some((driver.name.as_str(), usize::try_from(count).ok()?))
            })
            .collect();
        if limits.is_empty() {
            return Ok(());
        }
        let mut there: Attached = node.pods.iter().flat_map(|pod| attached(pod, self.volumes)).collect();
        for attachment in self.volumes.attachments.values().filter(|a| a.spec.node_name == node.name()) {
            let volume = attachment.spec.source.persistent_volume_name.as_deref();
            let volume = volume.and_then(|name| self.volumes.volumes.get(name));
            if let Some(csi) = volume.and_then(|volume| volume.spec.as_ref()?.csi.as_ref()) {
                there.insert((csi.driver.clone(), csi.volume_handle.clone()));
            }
        }
        let over = limits.iter().any(|(driver, limit)| {
            let more = self.wanted.iter().filter(|v| v.0 == *driver && !there.contains(v)).count();
            more > 0 && there.iter().filter(|v| v.0 == *driver).count() + more > *limit
        });
        if over { Err(Refusal::new("node(s) exceed max volume count")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{cluster, node_info, pod_info};

    /// A node that takes two volumes, of which pods use `there`, and a pod that wants `wanted`.
    fn check(there: &[&str], wanted: &[&str], expected: bool) {
        let mut objects = vec![json!({"kind": "CSINode", "metadata": {"name": "n"},
            "spec": {"drivers": [{"name": "d", "nodeID": "n", "allocatable": {"count": 2}}]}})];
        for name in ["a", "b", "c"] {
            objects.push(json!({"kind": "PersistentVolume", "metadata": {"name": name},
                "spec": {"csi": {"driver": "d", "volumeHandle": name}}}));
            objects.push(json!({"kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "namespace": "default"}, "spec": {"volumeName": name}}));
        }
        let pod = |name: &str, claims: &[&str]| {
            let volumes =
                claims.iter().map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}}));
            pod_info(json!({"metadata": {"name": name, "namespace": "default"},
                "spec": {"containers": [], "volumes": volumes.collect::<Vec<_>>()}}))
        };
        let mut cluster = cluster(&objects);
        cluster.set_node(node_info(json!({"metadata": {"name": "n"}})).node.unwrap());
        cluster.assume(pod("other", there), "n");
        let wanted = pod("p", wanted);
        let filter = NodeVolumeLimits.filter(&wanted, &cluster).unwrap();
        assert_eq!(filter.check(cluster.node("n").unwrap()).is_ok(), expected, "{there:?}");
    }

    #[test]
    fn a_volume_counts_once_for_each_node() {
        check(&["a"], &["b"], true);
        check(&["a", "b"], &["c"], false);
        check(&["a", "b"], &["a"], true);
        check(&[], &["a", "b", "c"], false);
    }
}
