//! What a pod refers to.

use std::collections::BTreeSet;

use serde_json::Value;

use super::tree::{at, items, text};

pub(crate) const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

pub(crate) fn is_mirror(pod: &Value) -> bool {
    super::tree::annotation(pod, MIRROR_ANNOTATION).is_some()
}

/// Init, then plain, then ephemeral containers of a pod spec.
pub(crate) fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    CONTAINER_LISTS.iter().flat_map(move |list| items(spec, list))
}

fn insert(names: &mut BTreeSet<String>, name: &str) {
    if !name.is_empty() {
        names.insert(name.to_owned());
    }
}

/// Upstream: pkg/api/v1/pod/util.go VisitPodSecretNames
pub(crate) fn secret_names(pod: &Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for secret in items(pod, "spec.imagePullSecrets") {
        insert(&mut names, text(secret, "name"));
    }
    for container in at(pod, "spec").into_iter().flat_map(containers) {
        for env in items(container, "env") {
            insert(&mut names, text(env, "valueFrom.secretKeyRef.name"));
        }
        for env in items(container, "envFrom") {
            insert(&mut names, text(env, "secretRef.name"));
        }
    }
    const PATHS: [&str; 10] = [
        "azureFile.secretName",
        "cephfs.secretRef.name",
        "cinder.secretRef.name",
        "flexVolume.secretRef.name",
        "rbd.secretRef.name",
        "secret.secretName",
        "scaleIO.secretRef.name",
        "iscsi.secretRef.name",
        "storageos.secretRef.name",
        "csi.nodePublishSecretRef.name",
    ];
    for volume in items(pod, "spec.volumes") {
        for path in PATHS {
            insert(&mut names, text(volume, path));
        }
        for source in items(volume, "projected.sources") {
            insert(&mut names, text(source, "secret.name"));
        }
    }
    names
}

/// Upstream: pkg/api/v1/pod/util.go VisitPodConfigmapNames
pub(crate) fn config_map_names(pod: &Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for container in at(pod, "spec").into_iter().flat_map(containers) {
        for env in items(container, "env") {
            insert(&mut names, text(env, "valueFrom.configMapKeyRef.name"));
        }
        for env in items(container, "envFrom") {
            insert(&mut names, text(env, "configMapRef.name"));
        }
    }
    for volume in items(pod, "spec.volumes") {
        insert(&mut names, text(volume, "configMap.name"));
        for source in items(volume, "projected.sources") {
            insert(&mut names, text(source, "configMap.name"));
        }
    }
    names
}

/// The claims of a pod's volumes, those of ephemeral volumes by the name that they get.
pub(crate) fn claim_names(pod: &Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for volume in items(pod, "spec.volumes") {
        insert(&mut names, text(volume, "persistentVolumeClaim.claimName"));
        if at(volume, "ephemeral").is_some() {
            names.insert(format!("{}-{}", text(pod, "metadata.name"), text(volume, "name")));
        }
    }
    names
}

/// The resource claims that a pod uses, as its status names those made from templates.
pub(crate) fn resource_claim_names(pod: &Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for claim in items(pod, "spec.resourceClaims") {
        insert(&mut names, text(claim, "resourceClaimName"));
    }
    for claim in items(pod, "status.resourceClaimStatuses") {
        insert(&mut names, text(claim, "resourceClaimName"));
    }
    insert(&mut names, text(pod, "status.extendedResourceClaimStatus.resourceClaimName"));
    names
}

/// The plural of the first kind of API object that a pod refers to, if any: a mirror pod may not.
///
/// Upstream: pkg/api/pod/util.go HasAPIObjectReference
pub(crate) fn api_reference(pod: &Value) -> Option<&'static str> {
    if !text(pod, "spec.serviceAccountName").is_empty() {
        return Some("serviceaccounts");
    }
    if !secret_names(pod).is_empty() {
        return Some("secrets");
    }
    if !config_map_names(pod).is_empty() {
        return Some("configmaps");
    }
    if !items(pod, "spec.resourceClaims").is_empty() {
        return Some("resourceclaims");
    }
    const VOLUMES: [(&str, &str); 4] = [
        ("csi", "csidrivers (via CSI volumes)"),
        ("glusterfs", "endpoints (via glusterFS volumes)"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
        ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
    ];
    const PROJECTIONS: [(&str, &str); 3] = [
        ("serviceAccountToken", "serviceaccounts (via projected volumes)"),
        ("clusterTrustBundle", "clustertrustbundles"),
        ("podCertificate", "podcertificates"),
    ];
    let first = |table: &[(&str, &'static str)], source: &Value| {
        table.iter().find(|(field, _)| at(source, field).is_some()).map(|(_, what)| *what)
    };
    items(pod, "spec.volumes").iter().find_map(|volume| {
        let projections = || items(volume, "projected.sources").iter().find_map(|s| first(&PROJECTIONS, s));
        first(&VOLUMES, volume).or_else(projections)
    })
}
