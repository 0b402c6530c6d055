//! Some disks serve one pod at a time, and so does a claim whose access mode is ReadWriteOncePod.
//!
//! Upstream: pkg/scheduler/framework/plugins/volumerestrictions/volume_restrictions.go

use api::Object;
use api::core::v1::Volume;

use crate::cluster::{Change, Cluster, Kind};
use crate::framework::{Filter, Plugin, Refusal};
use crate::{NodeInfo, PodInfo};

const DISK_CONFLICT: &str = "node(s) had no available disk";
const CLAIM_CONFLICT: &str = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode \
                              already in-use by another pod";

pub struct VolumeRestrictions;

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let disks: Vec<&Volume> = volumes(pod).filter(|volume| is_disk(volume)).collect();
        let mut alone = Alone { pod, disks, claims: Vec::new(), users: 0 };
        for name in volumes(pod).filter_map(claim) {
            let claim = cluster.volumes.claim(pod.pod.namespace(), name);
            let modes = claim.and_then(|claim| claim.spec.as_ref()?.access_modes.as_ref());
            if modes.is_some_and(|modes| modes.iter().any(|mode| mode == "ReadWriteOncePod")) {
                alone.claims.push(name);
            }
        }
        if !alone.claims.is_empty() {
            let others = cluster.nodes().flat_map(|node| &node.pods);
            alone.users = others.map(|other| alone.shared_with(other)).sum();
        }
        let asks = !alone.disks.is_empty() || alone.users > 0;
        asks.then(|| Box::new(alone) as Box<dyn Filter>)
    }

    fn events(&self) -> &'static [Kind] {
        &[Kind::NodeAdded, Kind::PodGone, Kind::PodItself, Kind::Claim]
    }

    fn may_help(&self, pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeAdded(_) | Change::PodItself => true,
            Change::PodGone(other) => {
                other.pod.namespace() == pod.pod.namespace() || volumes(pod).any(is_disk)
            }
            Change::Claim { namespace, .. } => pod.pod.namespace() == namespace,
            _ => false,
        }
    }
}

fn volumes(pod: &PodInfo) -> impl Iterator<Item = &Volume> {
    pod.spec().into_iter().flat_map(|spec| spec.volumes.iter().flatten())
}

fn claim(volume: &Volume) -> Option<&str> {
    volume.persistent_volume_claim.as_ref().map(|source| source.claim_name.as_str())
}

fn is_disk(volume: &Volume) -> bool {
    volume.gce_persistent_disk.is_some()
        || volume.aws_elastic_block_store.is_some()
        || volume.rbd.is_some()
        || volume.iscsi.is_some()
}

struct Alone<'a> {
    pod: &'a PodInfo,
    disks: Vec<&'a Volume>,
    /// Claims of the pod that one pod only may use.
    claims: Vec<&'a str>,
    /// How many uses of them there are.
    users: i64,
}

impl Alone<'_> {
    fn shared_with(&self, other: &PodInfo) -> i64 {
        if other.pod.namespace() != self.pod.pod.namespace() {
            return 0;
        }
        volumes(other).filter_map(claim).filter(|name| self.claims.contains(name)).count() as i64
    }
}

impl Filter for Alone<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let others = || node.pods.iter().flat_map(|pod| volumes(pod));
        if self.disks.iter().any(|disk| others().any(|other| conflicts(disk, other))) {
            return Err(Refusal::new(DISK_CONFLICT));
        }
        if self.users > 0 { Err(Refusal::new(CLAIM_CONFLICT)) } else { Ok(()) }
    }

    fn assume(&mut self, other: &PodInfo, _node: &NodeInfo, count: i64) {
        self.users += count * self.shared_with(other);
    }
}

/// Whether two pods cannot have these volumes on one node.
fn conflicts(a: &Volume, b: &Volume) -> bool {
    let read_only = |flag: Option<bool>| flag == Some(true);
    if let (Some(a), Some(b)) = (&a.gce_persistent_disk, &b.gce_persistent_disk) {
        return a.pd_name == b.pd_name && !(read_only(a.read_only) && read_only(b.read_only));
    }
    if let (Some(a), Some(b)) = (&a.aws_elastic_block_store, &b.aws_elastic_block_store) {
        return a.volume_id == b.volume_id;
    }
    if let (Some(a), Some(b)) = (&a.iscsi, &b.iscsi) {
        return a.iqn == b.iqn && !(read_only(a.read_only) && read_only(b.read_only));
    }
    if let (Some(a), Some(b)) = (&a.rbd, &b.rbd) {
        return a.monitors.iter().any(|monitor| b.monitors.contains(monitor))
            && a.pool == b.pool
            && a.image == b.image
            && !(read_only(a.read_only) && read_only(b.read_only));
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{cluster, node_info, pod_info};

    fn check(other: Value, mine: Value, expected: Result<(), &str>) {
        let pod = |name: &str, volume: Value| {
            pod_info(json!({"metadata": {"name": name, "namespace": "default"},
                "spec": {"containers": [], "volumes": [volume]}}))
        };
        let claim = json!({"kind": "PersistentVolumeClaim", "metadata": {"name": "c", "namespace": "default"},
            "spec": {"accessModes": ["ReadWriteOncePod"]}});
        let mut cluster = cluster(&[claim]);
        cluster.set_node(node_info(json!({"metadata": {"name": "n"}})).node.unwrap());
        cluster.assume(pod("other", other), "n");
        let mine = pod("mine", mine);
        let checked = match VolumeRestrictions.filter(&mine, &cluster) {
            Some(filter) => filter.check(cluster.node("n").unwrap()),
            None => Ok(()),
        };
        assert_eq!(checked.map_err(|refusal| refusal.words()), expected.map_err(str::to_owned));
    }

    #[test]
    fn disks_and_claims_of_one_pod_are_not_shared() {
        let disk = |name: &str, read_only: bool| json!({"name": "v", "gcePersistentDisk": {"pdName": name, "readOnly": read_only}});
        check(disk("a", false), disk("a", true), Err(DISK_CONFLICT));
        check(disk("a", true), disk("a", true), Ok(()));
        check(disk("a", false), disk("b", false), Ok(()));
        let claim = |name: &str| json!({"name": "v", "persistentVolumeClaim": {"claimName": name}});
        check(claim("c"), claim("c"), Err(CLAIM_CONFLICT));
        check(claim("other"), claim("c"), Ok(()));
    }
}
