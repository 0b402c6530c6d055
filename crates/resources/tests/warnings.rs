//! What clients are warned of, in upstream's words.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use resources::table;
use serde_json::{Value, json};

#[track_caller]
fn check(plural: &str, mut object: Value, wanted: &[&str]) {
    let def = table().iter().find(|def| def.plural == plural).unwrap();
    def.strategy.default(&mut object);
    object["metadata"]["name"] = json!("a");
    assert_eq!(def.strategy.warnings(&object, None), wanted);
}

#[test]
fn pods_that_are_likely_not_meant_so() {
    check(
        "pods",
        json!({"spec": {
            "nodeSelector": {"beta.kubernetes.io/os": "linux"},
            "topologySpreadConstraints": [{"topologyKey": "failure-domain.beta.kubernetes.io/zone"}],
            "volumes": [
                {"name": "v", "glusterfs": {}},
                {"name": "w", "configMap": {"name": "c", "items": [{"key": "k", "path": "a"}, {"key": "l", "path": "a/b"}]}},
                {"name": "x", "projected": {"sources": [{}, {"secret": {"name": "s", "items": [{"key": "k", "path": "t"}]}},
                                                         {"serviceAccountToken": {"path": "t"}}]}},
            ],
            "hostAliases": [{"ip": "1.2.3.4"}, {"ip": "1.2.3.4"}],
            "imagePullSecrets": [{"name": "s"}, {"name": "s"}, {}],
            "terminationGracePeriodSeconds": -1,
            "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "k"}]}},
            "containers": [
                {"name": "c", "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}, {"name": "A", "value": "3"}],
                 "resources": {"limits": {"memory": "1500m"}},
                 "ports": [{"name": "p", "containerPort": 80}, {"containerPort": 80, "hostPort": 81}]},
                {"name": "d", "ports": [{"name": "p", "containerPort": 80}]},
            ],
        }}),
        &[
            "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
            "spec.topologySpreadConstraints[0].topologyKey: failure-domain.beta.kubernetes.io/zone is deprecated since \
             v1.17; use \"topology.kubernetes.io/zone\" instead",
            "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod",
            "spec.volumes[0].glusterfs: deprecated in v1.25, non-functional in v1.26+",
            "volume \"w\" (ConfigMap \"c\"): overlapping paths: \"a/b\" with \"a\"",
            "volume \"x\" (Projected) has no sources provided",
            "volume \"x\" (Projected): overlapping paths: \"t\" (ServiceAccountToken) with \"t\" (Secret \"s\")",
            "spec.hostAliases[1].ip: duplicate ip \"1.2.3.4\"",
            "spec.imagePullSecrets[1].name: duplicate name \"s\"",
            "spec.imagePullSecrets[2].name: invalid empty name \"\"",
            "spec.containers[0].resources.limits[memory]: fractional byte value \"1500m\" is invalid, must be an integer",
            "spec.containers[0].resources.requests[memory]: fractional byte value \"1500m\" is invalid, must be an integer",
            "spec.containers[0].env[2]: hides previous definition of \"A\", which may be dropped when using apply",
            "spec.containers[0].ports[1]: overlapping port definition with spec.containers[0].ports[0]",
            "spec.containers[1].ports[0]: duplicate port definition with spec.containers[0].ports[0]",
            "spec.containers[1].ports[0]: overlapping port definition with spec.containers[0].ports[1]",
            "spec.containers[1].ports[0]: duplicate port name \"p\" with spec.containers[0].ports[0], services and \
             probes that select ports by name will use spec.containers[0].ports[0]",
            "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
            "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector: a null \
             labelSelector results in matching no pod",
        ],
    );
}

#[test]
fn other_kinds_that_are_likely_not_meant_so() {
    check(
        "persistentvolumeclaims",
        json!({"metadata": {"annotations": {"volume.beta.kubernetes.io/storage-class": "a"}},
               "spec": {"resources": {"requests": {"storage": "1.5"}}}}),
        &[
            "metadata.annotations[volume.beta.kubernetes.io/storage-class]: deprecated since v1.8; use \
             \"storageClassName\" attribute instead",
            "spec.resources.requests[storage]: fractional byte value \"1500m\" is invalid, must be an integer",
        ],
    );
    check(
        "persistentvolumes",
        json!({"spec": {"persistentVolumeReclaimPolicy": "Recycle", "rbd": {}}}),
        &[
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended \
             approach is to use dynamic provisioning.",
            "spec.rbd: deprecated in v1.28, non-functional in v1.31+",
        ],
    );
    check(
        "services",
        json!({"spec": {"clusterIP": "None", "externalIPs": ["1.2.3.4"], "externalName": "a.b", "sessionAffinity": "ClientIP",
                        "trafficDistribution": "PreferClose"}}),
        &[
            "spec.externalIPs is ignored for headless services",
            "spec.SessionAffinity is ignored for headless services",
            "spec.externalName is ignored when spec.type is not \"ExternalName\"",
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
        ],
    );
    check(
        "cronjobs",
        json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": [], "volumes": [{"gitRepo": {}}]}}}}}}),
        &[
            "spec.jobTemplate.spec.template.spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+",
        ],
    );
}
