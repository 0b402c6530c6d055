//! Pods of a gang are placed so many at once, or none is.
//!
//! Upstream: pkg/scheduler/framework/plugins/gangscheduling/gangscheduling.go

use std::time::Duration;

use crate::PodInfo;
use crate::cluster::{Change, Cluster, Kind};
use crate::framework::{Permit, Plugin};
use crate::pod_groups::Policy;

/// How long pods of a gang wait with a node for the others.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

pub struct GangScheduling;

impl Plugin for GangScheduling {
    fn name(&self) -> &'static str {
        "GangScheduling"
    }

    fn hold_back(&self, pod: &PodInfo, cluster: &Cluster) -> Option<String> {
        let group = pod.group.as_ref()?;
        match cluster.pod_groups.policy(group) {
            Policy::Unknown => {
                let name = group.rsplit('/').next().unwrap_or_default();
                Some(format!("waiting for pods's pod group {name:?} to appear in scheduling queue"))
            }
            Policy::Gang(least) if cluster.pod_groups.all(group) < least => {
                Some("waiting for minCount pods from a gang to appear in scheduling queue".into())
            }
            Policy::Gang(_) | Policy::Basic => None,
        }
    }

    fn permit(&self, pod: &PodInfo, _node: &str, cluster: &Cluster) -> Permit {
        let Some(group) = &pod.group else { return Permit::Allowed };
        match cluster.pod_groups.policy(group) {
            Policy::Unknown => Permit::Rejected(format!("failed to get podGroup {group}")),
            Policy::Gang(least) if cluster.pod_groups.placed(group) < least => Permit::Wait(PATIENCE),
            Policy::Gang(_) | Policy::Basic => Permit::Allowed,
        }
    }

    fn events(&self) -> &'static [Kind] {
        &[Kind::Group]
    }

    fn may_help(&self, pod: &PodInfo, change: &Change) -> bool {
        matches!(change, Change::Group(group) if pod.group.as_ref() == Some(group))
    }
}

#[cfg(test)]
mod tests {
    use api::Object;
    use api::scheduling::v1alpha2::PodGroup;
    use serde_json::json;

    use super::*;
    use crate::testing::pod_info;

    #[test]
    fn a_gang_waits_for_its_members() {
        let pod = |name: &str| {
            pod_info(json!({"metadata": {"name": name, "namespace": "ns"},
                "spec": {"containers": [], "schedulingGroup": {"podGroupName": "g"}}}))
        };
        let (a, b) = (pod("a"), pod("b"));
        let mut cluster = Cluster::default();
        cluster.pod_groups.wait(&a);
        let held = |cluster: &Cluster| GangScheduling.hold_back(&a, cluster);
        assert!(held(&cluster).unwrap().contains("pod group \"g\" to appear"));
        let group =
            json!({"metadata": {"name": "g"}, "spec": {"schedulingPolicy": {"gang": {"minCount": 2}}}});
        cluster.pod_groups.set("ns/g", Some(PodGroup::from_value(group).unwrap().into()));
        assert!(held(&cluster).unwrap().contains("minCount pods"));
        cluster.pod_groups.wait(&b);
        assert_eq!(held(&cluster), None);
        cluster.pod_groups.place(&a);
        assert_eq!(GangScheduling.permit(&a, "n", &cluster), Permit::Wait(PATIENCE));
        cluster.pod_groups.place(&b);
        assert_eq!(GangScheduling.permit(&a, "n", &cluster), Permit::Allowed);
    }
}
