//! PersistentVolume: storage that the cluster has.

use crate::podspec;
use crate::prelude::*;
use crate::validate::{each, one_of, quantities, required, same};

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("v1", "PersistentVolume", "persistentvolumes")
        .short(&["pv"])
        .status()
        .columns(
            "Name,Capacity,Access Modes,Reclaim Policy,Status,Claim,StorageClass,VolumeAttributesClass,Reason,Age,\
             +VolumeMode",
            cells,
        )
        .strategy(Rules {
            default,
            prepare_create,
            validate,
            validate_update,
            warnings,
            ..Rules::PLAIN
        })
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
    get::default_absent(volume, "spec.volumeMode", "Filesystem");
    if has(volume, "spec.hostPath") {
        get::default(volume, "spec.hostPath.type", "");
    }
}

/// Upstream: pkg/api/persistentvolume/util.go warningsForPersistentVolumeSpecAndMeta
fn warnings(volume: &Value) -> Vec<String> {
    const ANNOTATIONS: &[(&str, &str)] = &[
        (
            "volume.beta.kubernetes.io/storage-class",
            "deprecated since v1.8; use \"storageClassName\" attribute instead",
        ),
        (
            "volume.beta.kubernetes.io/mount-options",
            "deprecated since v1.31; use \"mountOptions\" attribute instead",
        ),
    ];
    const PLUGINS: &[&str] = &["cephfs", "photonPersistentDisk", "scaleIO", "storageos", "glusterfs", "rbd"];
    let mut warnings = Vec::new();
    for (key, why) in ANNOTATIONS {
        if get::entries(volume, "metadata.annotations").any(|(given, _)| given == *key) {
            warnings.push(format!("metadata.annotations[{key}]: {why}"));
        }
    }
    if text(volume, "spec.persistentVolumeReclaimPolicy") == "Recycle" {
        warnings.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended \
             approach is to use dynamic provisioning."
                .to_owned(),
        );
    }
    for (index, term) in list(volume, "spec.nodeAffinity.required.nodeSelectorTerms").iter().enumerate() {
        let at = format!("spec.nodeAffinity.required.nodeSelectorTerms[{index}]");
        warnings.extend(podspec::node_term(term, false, &at));
    }
    let used = PLUGINS.iter().filter(|field| has(volume, &format!("spec.{field}")));
    warnings.extend(
        used.filter_map(|field| podspec::plugin(field)).map(|(shown, why)| format!("spec.{shown}: {why}")),
    );
    warnings
}

fn prepare_create(context: &crate::Context, volume: &mut Value) {
    set(volume, "status.phase", "Pending");
    set(volume, "status.lastPhaseTransitionTime", apimachinery::time::rfc3339(context.now));
}

/// Upstream: pkg/apis/core/validation/validation.go ValidatePersistentVolumeSpec
fn validate(volume: &Value) -> Errors {
    let spec = path("spec");
    let mut errors = validate_modes_and_size(volume, &spec);
    let policy = text(volume, "spec.persistentVolumeReclaimPolicy");
    let at_policy = spec.child("persistentVolumeReclaimPolicy");
    errors.extend(one_of(policy, &at_policy, &["Delete", "Recycle", "Retain"]));
    if let Some(affinity) = at(volume, "spec.nodeAffinity") {
        let at_required = spec.child("nodeAffinity").child("required");
        match at(affinity, "required") {
            Some(required) => errors.extend(podspec::validate_node_selector(required, &at_required)),
            None => errors.push(Error::required(&at_required, "must specify required node constraints")),
        }
    }
    let source = at(volume, "spec").unwrap_or(&Value::Null);
    errors.extend(podspec::sources::of_volume(source, get::name(volume), &spec));
    if text(volume, "spec.hostPath.path") == "/" && policy == "Recycle" {
        errors.push(Error::forbidden(&at_policy, "may not be 'recycle' for a hostPath mount of '/'"));
    }
    let class = text(volume, "spec.storageClassName");
    if !class.is_empty() {
        errors.extend(each(names::dns1123_subdomain(class), &spec.child("storageClassName"), class));
    }
    if let Some(mode) = at(volume, "spec.volumeMode").and_then(Value::as_str) {
        errors.extend(one_of(mode, &spec.child("volumeMode"), &["Block", "Filesystem"]));
    }
    if let Some(class) = at(volume, "spec.volumeAttributesClassName").and_then(Value::as_str) {
        let at_class = spec.child("volumeAttributesClassName");
        match class {
            "" => errors.push(Error::required(&at_class, "an empty string is disallowed")),
            class => errors.extend(each(names::dns1123_subdomain(class), &at_class, class)),
        }
        if !has(volume, "spec.csi") {
            let detail = "has to be specified when using volumeAttributesClassName";
            errors.push(Error::required(&spec.child("csi"), detail));
        }
    }
    errors
}

fn validate_modes_and_size(volume: &Value, spec: &Path) -> Errors {
    let mut errors = required(volume, "spec.accessModes");
    errors.extend(super::persistentvolumeclaims::validate_modes(volume, spec));
    errors.extend(required(volume, "spec.capacity"));
    let at_capacity = spec.child("capacity");
    if !has(volume, "spec.capacity.storage") || get::len(volume, "spec.capacity") > 1 {
        let value = at(volume, "spec.capacity").cloned().unwrap_or_default();
        errors.push(Error::not_supported(&at_capacity, value, &["storage"]));
    }
    for (name, value) in get::entries(volume, "spec.capacity") {
        errors.extend(quantities::non_negative(value, &at_capacity.key(name)));
        errors.extend(quantities::positive(value, &at_capacity.key(name)));
    }
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go ValidatePersistentVolumeUpdate
fn validate_update(volume: &Value, old: &Value) -> Errors {
    const OTHERS: [&str; 9] = [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ];
    let mut errors = Errors::new();
    let source = |volume: &Value| {
        let mut spec = at(volume, "spec").cloned().unwrap_or_default();
        OTHERS.iter().for_each(|field| drop(get::remove(&mut spec, field)));
        // It may be set where there was none.
        if !has(old, "spec.csi.controllerExpandSecretRef") {
            get::remove(&mut spec, "csi.controllerExpandSecretRef");
        }
        spec
    };
    if !same(Some(&source(volume)), Some(&source(old))) {
        let detail = "spec.persistentvolumesource is immutable after creation";
        errors.push(Error::forbidden(&path("spec.persistentvolumesource"), detail));
    }
    if !same(at(volume, "spec.volumeMode"), at(old, "spec.volumeMode")) {
        let mode = at(volume, "spec.volumeMode").cloned().unwrap_or_default();
        errors.push(Error::invalid(&path("volumeMode"), mode, crate::validate::IMMUTABLE));
    }
    let class = "spec.volumeAttributesClassName";
    if has(old, class) && !has(volume, class) {
        errors.push(Error::forbidden(&path(class), "update from non-nil value to nil is forbidden"));
    }
    let (affinity, before) = (at(volume, "spec.nodeAffinity"), at(old, "spec.nodeAffinity"));
    if before.is_some() && !same(affinity, before) {
        let detail = "field is immutable, except for updating from beta label to GA";
        let value = affinity.cloned().unwrap_or_default();
        errors.push(Error::invalid(&path("nodeAffinity"), value, detail));
    }
    errors
}
