//! PersistentVolumeClaim: storage that a pod wants.

use crate::prelude::*;
use crate::validate::{each, one_of, quantities, required, same, selector};

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
            // Clients of old leave out what was filled in for them.
            prepare_update: |_, o, old| {
                if !has(old, "spec.dataSource") && !has(old, "spec.dataSourceRef") {
                    drop_sources(o);
                }
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
    let (source, again) = (at(object, "spec.dataSource"), at(object, "spec.dataSourceRef"));
    if let (Some(source), Some(again)) = (source, again)
        && text(again, "namespace").is_empty()
        && ["apiGroup", "kind", "name"].iter().any(|field| !same(source.get(field), again.get(field)))
    {
        errors.push(Error::invalid(spec, json!({}), "must match dataSourceRef"));
    }
    errors
}

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// Puts what `new` may say otherwise than `old` back to what it was.
fn undo_allowed(spec: &mut Value, claim: &Value, old: &Value) {
    let back = |spec: &mut Value, field: &str| match at(old, &format!("spec.{field}")) {
        Some(value) => set(spec, field, value.clone()),
        None => drop(get::remove(spec, field)),
    };
    if text(old, "spec.volumeName").is_empty() {
        back(spec, "volumeName");
    }
    let (class, before) = (at(claim, "spec.storageClassName"), at(old, "spec.storageClassName"));
    let annotated = annotation(old);
    let named = class.and_then(Value::as_str);
    if before.is_none() && named.is_some() && annotated.is_none_or(|annotated| Some(annotated) == named) {
        get::remove(spec, "storageClassName");
    }
    if text(claim, "status.phase") == "Bound" {
        if has(claim, "spec.resources.requests") {
            back(spec, "resources.requests.storage");
        }
        back(spec, "volumeAttributesClassName");
    }
}

fn annotation(claim: &Value) -> Option<&str> {
    let mut annotations = get::entries(claim, "metadata.annotations");
    annotations.find(|(key, _)| *key == CLASS_ANNOTATION).and_then(|(_, value)| value.as_str())
}

/// Upstream: pkg/apis/core/validation/validation.go ValidatePersistentVolumeClaimUpdate
fn validate_update(claim: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let (named, before) = (annotation(claim), annotation(old));
    let moved = before.is_some() && at(claim, "spec.storageClassName").and_then(Value::as_str) == before;
    if named != before && !(moved && named.is_none() && !has(old, "spec.storageClassName")) {
        let at_annotation = path("metadata.annotations").child(CLASS_ANNOTATION);
        errors.push(Error::invalid(&at_annotation, named.unwrap_or_default(), crate::validate::IMMUTABLE));
    }
    let mut spec = at(claim, "spec").cloned().unwrap_or_default();
    undo_allowed(&mut spec, claim, old);
    if !same(Some(&spec), at(old, "spec")) {
        let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for \
                      bound claims";
        errors.push(Error::forbidden(&path("spec"), detail));
    }
    let size = |value: &Value, field: &str| at(value, field).and_then(quantities::read);
    let wanted = size(claim, "spec.resources.requests.storage");
    // What could not be provided may be taken back, but no volume shrinks.
    if wanted < size(old, "spec.resources.requests.storage") && wanted <= size(old, "status.capacity.storage")
    {
        let detail = "field can not be less than status.capacity";
        errors.push(Error::forbidden(&path("spec.resources.requests.storage"), detail));
    }
    if !same(at(claim, "spec.volumeMode"), at(old, "spec.volumeMode")) {
        let mode = at(claim, "spec.volumeMode").cloned().unwrap_or_default();
        errors.push(Error::invalid(&path("volumeMode"), mode, crate::validate::IMMUTABLE));
    }
    if has(old, "status.currentVolumeAttributesClassName") {
        let what = match at(claim, "spec.volumeAttributesClassName").and_then(Value::as_str) {
            None => Some("nil"),
            Some("") => Some("empty string"),
            Some(_) => None,
        };
        let detail = |what| {
            format!("update to {what} is forbidden when status.currentVolumeAttributesClassName is not nil")
        };
        errors
            .extend(what.map(|what| Error::forbidden(&path("spec.volumeAttributesClassName"), detail(what))));
    }
    errors
}
