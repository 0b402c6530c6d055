//! In which order upstream lists the groups that it serves itself, and their versions.
//!
//! Upstream: cmd/kube-apiserver/app/aggregator.go, pkg/controlplane/apiserver/aggregator.go

/// Group, its priority, and that of its versions where it is not the usual one.
const PRIORITIES: [(&str, i64, &[(&str, i64)]); 21] = [
    ("", 18_000, &[("v1", 1)]),
    ("apps", 17_800, &[]),
    ("events.k8s.io", 17_750, &[]),
    ("authentication.k8s.io", 17_700, &[]),
    ("authorization.k8s.io", 17_600, &[]),
    ("autoscaling", 17_500, &[("v2", 30)]),
    ("batch", 17_400, &[]),
    ("certificates.k8s.io", 17_300, &[]),
    ("networking.k8s.io", 17_200, &[]),
    ("policy", 17_100, &[]),
    ("rbac.authorization.k8s.io", 17_000, &[]),
    ("storage.k8s.io", 16_800, &[]),
    ("admissionregistration.k8s.io", 16_700, &[]),
    ("apiextensions.k8s.io", 16_700, &[]),
    ("scheduling.k8s.io", 16_600, &[]),
    ("coordination.k8s.io", 16_500, &[]),
    ("node.k8s.io", 16_300, &[]),
    ("discovery.k8s.io", 16_200, &[]),
    ("resource.k8s.io", 16_200, &[("v1", 21)]),
    ("flowcontrol.apiserver.k8s.io", 16_100, &[("v1", 21)]),
    ("internal.apiserver.k8s.io", 16_000, &[]),
];

const USUAL_VERSION: i64 = 15;
/// Of groups that CustomResourceDefinitions make.
const CUSTOM: (i64, i64) = (1000, 100);

/// The priorities of a group version that this server serves itself, and whether a definition made it.
pub fn of(group: &str, version: &str) -> (i64, i64, bool) {
    let Some((_, priority, versions)) = PRIORITIES.iter().find(|(name, ..)| *name == group) else {
        return (CUSTOM.0, CUSTOM.1, true);
    };
    let own = versions.iter().find(|(name, _)| *name == version).map(|(_, priority)| *priority);
    (*priority, own.unwrap_or(USUAL_VERSION), false)
}

/// The priority of a group that this server serves itself. That of the aggregator's own group is above all.
pub fn of_group(group: &str) -> i64 {
    if group == "apiregistration.k8s.io" { i64::MAX } else { of(group, "").0 }
}
