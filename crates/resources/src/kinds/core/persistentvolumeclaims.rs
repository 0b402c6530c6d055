//! PersistentVolumeClaim: storage that a pod wants.

use crate::prelude::*;
use crate::validate::{each, one_of, quantities, required, selector};

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
        .short(&["pvc"])
        .status()
        .columns(
            "Name,Status,Volume,Capacity,Access Modes,StorageClass,VolumeAttributesClass,Age,+VolumeMode",
            cells,
        )
        .strategy(Rules {
            default: |o| {
                get::default(o, "status.phase", "Pending");
                default_spec(o, "spec");
            },
            prepare_create: |_, o| {
                set(o, "status.phase", "Pending");
                drop_sources(o);
                mirror_source(o);
            },
            validate: |o| validate_spec(o, &path("spec")),
            validate_update,
            warnings,
            ..Rules::PLAIN
        })
        .build()
}

fn cells(claim: &Value, now: i64) -> Vec<Cell> {
    let deleting = has(claim, "metadata.deletionTimestamp");
    let status = if deleting { "Terminating" } else { text(claim, "status.phase") };
    let bound = !text(claim, "spec.volumeName").is_empty();
    let capacity = if bound { print::plain_or(claim, "status.capacity.storage", "0") } else { String::new() };
    let modes = if bound { print::access_modes(claim, "status.accessModes") } else { String::new() };
    cells![
        get::name(claim),
        status,
        text(claim, "spec.volumeName"),
        capacity,
        modes,
        text(claim, "spec.storageClassName"),
        print::or(claim, "spec.volumeAttributesClassName", "<unset>"),
        age(claim, now),
        print::or(claim, "spec.volumeMode", "<unset>"),
    ]
}

const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const OLD_CLASS_WHY: &str = "deprecated since v1.8; use \"storageClassName\" attribute instead";

/// Upstream: pkg/api/persistentvolumeclaim/util.go GetWarningsForPersistentVolumeClaim
fn warnings(claim: &Value) -> Vec<String> {
    let old = get::entries(claim, "metadata.annotations").any(|(key, _)| key == OLD_CLASS);
    let mut warnings: Vec<String> =
        old.then(|| format!("metadata.annotations[{OLD_CLASS}]: {OLD_CLASS_WHY}")).into_iter().collect();
    warnings.extend(crate::podspec::claim_fractions(claim, "spec"));
    warnings
}

/// The defaults of a claim's spec, in a claim or a template of claims.
pub fn default_spec(object: &mut Value, spec: &str) {
    get::default_absent(object, &format!("{spec}.volumeMode"), "Filesystem");
}

/// Upstream: pkg/apis/core/validation/validation.go ValidatePersistentVolumeClaimSpec
pub fn validate_spec(object: &Value, spec: &Path) -> Errors {
    let mut errors = Errors::new();
    errors.extend(
        required(object, "spec.accessModes")
            .into_iter()
            .map(|_| Error::required(&spec.child("accessModes"), "at least 1 access mode is required")),
    );
    let selector_value = at(object, "spec.selector");
    errors.extend(selector_value.map_or_else(Errors::new, |s| selector(s, &spec.child("selector"))));
    errors.extend(validate_modes(object, spec));
    let storage = spec.child("resources").key("storage");
    match at(object, "spec.resources.requests.storage") {
        None => errors.push(Error::required(&storage, "")),
        Some(value) => errors.extend(quantities::positive(value, &storage)),
    }
    for field in ["storageClassName", "volumeAttributesClassName"] {
        let value = text(object, &format!("spec.{field}"));
        if !value.is_empty() {
            errors.extend(each(names::dns1123_subdomain(value), &spec.child(field), value));
        }
    }
    errors.extend(validate_sources(object, spec));
    if let Some(mode) = at(object, "spec.volumeMode").and_then(Value::as_str) {
        errors.extend(one_of(mode, &spec.child("volumeMode"), &["Block", "Filesystem"]));
    }
    errors
}

/// Sources that cannot be honoured are not kept: of other kinds than claims and snapshots in the old field, and of
/// other namespaces in the new one.
///
/// Upstream: pkg/api/persistentvolumeclaim/util.go DropDisabledFields, EnforceDataSourceBackwardsCompatibility
fn drop_sources(claim: &mut Value) {
    if !text(claim, "spec.dataSourceRef.namespace").is_empty() {
        get::remove(claim, "spec.dataSourceRef");
    }
    let part = |field: &str| text(claim, &format!("spec.dataSource.{field}"));
    let known = matches!(
        (part("apiGroup"), part("kind")),
        ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
    );
    if !known && !has(claim, "spec.dataSourceRef") {
        get::remove(claim, "spec.dataSource");
    }
}

/// The ways in which a volume or claim is reached.
pub fn validate_modes(object: &Value, spec: &Path) -> Errors {
    const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    let at = spec.child("accessModes");
    let modes = get::texts(object, "spec.accessModes");
    let mut errors: Errors = modes.iter().flat_map(|mode| one_of(mode, &at, MODES)).collect();
    let alone = |mode: &&str| *mode == "ReadWriteOncePod";
    if modes.iter().any(alone) && modes.iter().any(|mode| MODES.contains(mode) && !alone(mode)) {
        errors.push(Error::forbidden(&at, "may not use ReadWriteOncePod with other access modes"));
    }
    errors
}

/// Where the content comes from is told in two fields, of which a client may fill either.
///
/// Upstream: pkg/api/persistentvolumeclaim/util.go NormalizeDataSources
fn mirror_source(claim: &mut Value) {
    let (plain, with_namespace) =
        (at(claim, "spec.dataSource").cloned(), at(claim, "spec.dataSourceRef").cloned());
    match (plain, with_namespace) {
        (Some(source), None) => set(claim, "spec.dataSourceRef", source),
        (None, Some(source)) if text(&source, "namespace").is_empty() => {
            set(claim, "spec.dataSource", source);
            get::remove(claim, "spec.dataSource.namespace");
        }
        _ => {}
    }
}

/// Upstream: pkg/apis/core/validation/validation.go validateDataSource, validateDataSourceRef
fn validate_sources(object: &Value, spec: &Path) -> Errors {
    let mut errors = Errors::new();
    for field in ["dataSource", "dataSourceRef"] {
        let Some(source) = at(object, &format!("spec.{field}")) else { continue };
        let at = spec.child(field);
        for name in ["name", "kind"] {
            if text(source, name).is_empty() {
                errors.push(Error::required(&at.child(name), ""));
            }
        }
        let group = text(source, "apiGroup");
        if group.is_empty() && text(source, "kind") != "PersistentVolumeClaim" {
            let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errors.push(Error::invalid(&at, text(source, "kind"), detail));
        }
        if !group.is_empty() {
            errors.extend(each(names::dns1123_subdomain(group), &at.child("apiGroup"), group));
        }
        let namespace = text(source, "namespace");
        if field == "dataSourceRef" && !namespace.is_empty() {
            errors.extend(each(names::dns1123_label(namespace), &at.child("namespace"), namespace));
            if has(object, "spec.dataSource") {
                let detail = "may not be specified when dataSourceRef.namespace is specified";
                errors.push(Error::invalid(spec, json!({}), detail));
            }
        }
    }
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go ValidatePersistentVolumeClaimUpdate
fn validate_update(claim: &Value, old: &Value) -> Errors {
    let fixed = |value: &Value| {
        let mut spec = at(value, "spec").cloned().unwrap_or_default();
        get::remove(&mut spec, "resources");
        get::remove(&mut spec, "volumeAttributesClassName");
        if text(old, "spec.volumeName").is_empty() {
            get::remove(&mut spec, "volumeName");
        }
        if text(old, "spec.storageClassName").is_empty() {
            get::remove(&mut spec, "storageClassName");
        }
        spec
    };
    let mut errors = Errors::new();
    if fixed(claim) != fixed(old) {
        let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for \
                      bound claims";
        errors.push(Error::forbidden(&path("spec"), detail));
    }
    let size = |value: &Value| at(value, "spec.resources.requests.storage").and_then(quantities::read);
    if let (Some(new), Some(old)) = (size(claim), size(old))
        && new < old
    {
        let detail = "field can not be less than previous value";
        errors.push(Error::forbidden(&path("spec.resources.requests.storage"), detail));
    }
    errors
}
