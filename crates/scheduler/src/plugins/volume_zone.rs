//! A volume that is labelled with zones can be used in these only.
//!
//! Upstream: pkg/scheduler/framework/plugins/volumezone/volume_zone.go

use crate::cluster::{Change, Cluster, Kind};
use crate::framework::{Filter, LooksAt, Plugin, Refusal};
use crate::volumes::Volumes;
use crate::{NodeInfo, PodInfo};
use api::Object;

/// The labels, with those that took their place.
const LABELS: &[(&str, &str)] = &[
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/region"),
];

pub struct VolumeZone;

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let zones = zones(pod, &cluster.volumes);
        (!zones.is_empty()).then(|| Box::new(Zones(zones)) as Box<dyn Filter>)
    }

    fn events(&self) -> &'static [Kind] {
        &[Kind::NodeAdded, Kind::NodeUpdated, Kind::PodItself, Kind::Claim, Kind::Volumes]
    }

    fn may_help(&self, _pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeAdded(_) | Change::Volumes | Change::Claim { .. } | Change::PodItself => true,
            Change::NodeUpdated { old, new } => old.metadata.labels != new.metadata.labels,
            _ => false,
        }
    }
}

/// A label with its later name, and the values that will do.
struct Zone {
    label: &'static str,
    later: &'static str,
    values: Vec<String>,
}

fn zones(pod: &PodInfo, volumes: &Volumes) -> Vec<Zone> {
    let mut zones = Vec::new();
    for volume in pod.spec().iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let Some(source) = &volume.persistent_volume_claim else { continue };
        let claim = volumes.claim(pod.pod.namespace(), &source.claim_name);
        let name = claim.and_then(|claim| claim.spec.as_ref()?.volume_name.as_deref());
        let Some(labels) = name.and_then(|name| volumes.volumes.get(name)?.metadata.labels.as_ref()) else {
            continue;
        };
        for (label, later) in LABELS {
            // Several zones stand in one label, with two underscores between them.
            let values = labels.get(*label).map(|v| v.split("__").map(str::to_owned).collect());
            zones.extend(values.map(|values| Zone { label, later, values }));
        }
    }
    zones
}

struct Zones(Vec<Zone>);

impl Filter for Zones {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let labels = node.labels();
        if !LABELS.iter().any(|(label, _)| labels.contains_key(*label)) {
            return Ok(());
        }
        let fits = self.0.iter().all(|zone| {
            let value = labels.get(zone.label).or_else(|| labels.get(zone.later));
            value.is_some_and(|value| zone.values.contains(value))
        });
        if fits { Ok(()) } else { Err(Refusal::unresolvable("node(s) had no available volume zone")) }
    }

    fn looks_at(&self) -> LooksAt {
        LooksAt::Node
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node_info, pod_info};
    use serde_json::{Value, json};

    fn check(node_labels: Value, expected: bool) {
        let mut cluster = cluster(&[
            json!({"kind": "PersistentVolume", "metadata": {"name": "v",
                    "labels": {"topology.kubernetes.io/zone": "a__b"}}}),
            json!({"kind": "PersistentVolumeClaim", "metadata": {"name": "c", "namespace": "default"},
                    "spec": {"volumeName": "v"}}),
        ]);
        let node = node_info(json!({"metadata": {"name": "n", "labels": node_labels}}));
        cluster.set_node(node.node.clone().unwrap());
        let pod =
            pod_info(json!({"metadata": {"name": "p", "namespace": "default"}, "spec": {"containers": [],
            "volumes": [{"name": "x", "persistentVolumeClaim": {"claimName": "c"}}]}}));
        let filter = VolumeZone.filter(&pod, &cluster).unwrap();
        assert_eq!(filter.check(&node).is_ok(), expected);
    }

    #[test]
    fn zones_of_volume_and_node_must_agree() {
        check(json!({"topology.kubernetes.io/zone": "b"}), true);
        check(json!({"topology.kubernetes.io/zone": "c"}), false);
        check(json!({"topology.kubernetes.io/region": "x"}), false);
        check(json!({}), true);
    }
}
