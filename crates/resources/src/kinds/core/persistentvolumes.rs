//! PersistentVolume: storage that the cluster has.

use crate::prelude::*;
use crate::validate::{immutable, one_of, quantities, required};

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("v1", "PersistentVolume", "persistentvolumes")
        .short(&["pv"])
        .status()
        .columns(
            "Name,Capacity,Access Modes,Reclaim Policy,Status,Claim,StorageClass,VolumeAttributesClass,Reason,Age,\
             +VolumeMode",
            cells,
        )
        .strategy(Rules { default, prepare_create, validate, validate_update, ..Rules::PLAIN })
        .build()
}

fn cells(volume: &Value, now: i64) -> Vec<Cell> {
    let claim = match at(volume, "spec.claimRef") {
        Some(claim) => format!("{}/{}", text(claim, "namespace"), text(claim, "name")),
        None => String::new(),
    };
    let deleting = has(volume, "metadata.deletionTimestamp");
    let status = if deleting { "Terminating" } else { text(volume, "status.phase") };
    cells![
        get::name(volume),
        print::plain_or(volume, "spec.capacity.storage", "0"),
        print::access_modes(volume, "spec.accessModes"),
        text(volume, "spec.persistentVolumeReclaimPolicy"),
        status,
        claim,
        text(volume, "spec.storageClassName"),
        print::or(volume, "spec.volumeAttributesClassName", "<unset>"),
        text(volume, "status.reason"),
        age(volume, now),
        print::or(volume, "spec.volumeMode", "<unset>"),
    ]
}

fn default(volume: &mut Value) {
    get::default(volume, "status.phase", "Pending");
    get::default(volume, "spec.persistentVolumeReclaimPolicy", "Retain");
    get::default(volume, "spec.volumeMode", "Filesystem");
    if has(volume, "spec.hostPath") {
        get::default(volume, "spec.hostPath.type", "");
    }
}

fn prepare_create(context: &crate::Context, volume: &mut Value) {
    set(volume, "status.phase", "Pending");
    set(volume, "status.lastPhaseTransitionTime", apimachinery::time::rfc3339(context.now));
}

/// Upstream: pkg/apis/core/validation/validation.go ValidatePersistentVolumeSpec
fn validate(volume: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = path("spec");
    const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    errors.extend(required(volume, "spec.accessModes"));
    for mode in get::texts(volume, "spec.accessModes") {
        errors.extend(one_of(mode, &spec.child("accessModes"), MODES));
    }
    errors.extend(required(volume, "spec.capacity"));
    if get::len(volume, "spec.capacity") > 0 && !has(volume, "spec.capacity.storage") {
        let value = at(volume, "spec.capacity").cloned().unwrap_or_default();
        errors.push(Error::not_supported(&spec.child("capacity"), value, &["storage"]));
    }
    for (name, value) in get::entries(volume, "spec.capacity") {
        errors.extend(quantities::positive(value, &spec.child("capacity").key(name)));
    }
    const SOURCES: &[&str] = &[
        "hostPath",
        "gcePersistentDisk",
        "awsElasticBlockStore",
        "glusterfs",
        "flocker",
        "nfs",
        "rbd",
        "quobyte",
        "cephfs",
        "iscsi",
        "cinder",
        "fc",
        "azureFile",
        "vsphereVolume",
        "photonPersistentDisk",
        "azureDisk",
        "portworxVolume",
        "scaleIO",
        "local",
        "storageos",
        "csi",
        "flexVolume",
    ];
    let sources: Vec<&&str> = SOURCES.iter().filter(|s| has(volume, &format!("spec.{s}"))).collect();
    for source in sources.iter().skip(1) {
        // Upstream's own spelling.
        let shown = if **source == "cephfs" { "cephFS" } else { source };
        errors.push(Error::forbidden(&spec.child(shown), "may not specify more than 1 volume type"));
    }
    if sources.is_empty() {
        errors.push(Error::required(&spec, "must specify a volume type"));
    }
    let policy = text(volume, "spec.persistentVolumeReclaimPolicy");
    errors.extend(one_of(
        policy,
        &spec.child("persistentVolumeReclaimPolicy"),
        &["Delete", "Recycle", "Retain"],
    ));
    errors.extend(one_of(
        text(volume, "spec.volumeMode"),
        &spec.child("volumeMode"),
        &["Block", "Filesystem"],
    ));
    for field in ["storageClassName", "volumeAttributesClassName"] {
        let value = text(volume, &format!("spec.{field}"));
        if !value.is_empty() {
            errors.extend(crate::validate::each(names::dns1123_subdomain(value), &spec.child(field), value));
        }
    }
    if let Some(affinity) = at(volume, "spec.nodeAffinity") {
        let at_required = spec.child("nodeAffinity").child("required");
        match at(affinity, "required") {
            Some(required) => errors.extend(crate::podspec::validate_node_selector(required, &at_required)),
            None => errors.push(Error::required(&at_required, "must specify required node constraints")),
        }
    }
    if has(volume, "spec.local") && !has(volume, "spec.nodeAffinity") {
        errors.push(Error::required(&path("metadata.annotations"), "Local volume requires node affinity"));
    }
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go ValidatePersistentVolumeUpdate
fn validate_update(volume: &Value, old: &Value) -> Errors {
    const SOURCES: &[&str] =
        &["hostPath", "nfs", "iscsi", "fc", "local", "csi", "cephfs", "rbd", "flexVolume"];
    let mut errors = Errors::new();
    let changed =
        |source: &&&str| at(volume, &format!("spec.{source}")) != at(old, &format!("spec.{source}"));
    if SOURCES.iter().any(|s| changed(&s)) {
        let detail = "spec.persistentvolumesource is immutable after creation";
        errors.push(Error::forbidden(&path("spec.persistentvolumesource"), detail));
    }
    errors.extend(immutable(volume, old, "spec.volumeMode"));
    let (affinity, before) = (at(volume, "spec.nodeAffinity"), at(old, "spec.nodeAffinity"));
    if before.is_some() && !crate::validate::same(affinity, before) {
        let detail = "field is immutable, except for updating from beta label to GA";
        let value = affinity.cloned().unwrap_or_default();
        errors.push(Error::invalid(&path("nodeAffinity"), value, detail));
    }
    errors
}
