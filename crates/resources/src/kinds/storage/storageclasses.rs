//! StorageClass: a kind of storage that claims can ask for.

use crate::prelude::*;
use crate::validate::{immutable, one_of};

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("storage.k8s.io/v1", "StorageClass", "storageclasses")
        .short(&["sc"])
        .columns("Name,Provisioner,ReclaimPolicy,VolumeBindingMode,AllowVolumeExpansion,Age", cells)
        .strategy(Rules { default, validate, validate_update, ..Rules::PLAIN })
        .build()
}

fn cells(class: &Value, now: i64) -> Vec<Cell> {
    let annotation = |key: &str| {
        let annotations = at(class, "metadata.annotations").and_then(|a| a.get(key));
        annotations.and_then(Value::as_str) == Some("true")
    };
    let is_default = annotation("storageclass.kubernetes.io/is-default-class")
        || annotation("storageclass.beta.kubernetes.io/is-default-class");
    let name = get::name(class);
    cells![
        if is_default { format!("{name} (default)") } else { name.to_owned() },
        text(class, "provisioner"),
        print::or(class, "reclaimPolicy", "Delete"),
        print::or(class, "volumeBindingMode", "Immediate"),
        is_true(class, "allowVolumeExpansion"),
        age(class, now),
    ]
}

fn default(class: &mut Value) {
    get::default(class, "reclaimPolicy", "Delete");
    get::default(class, "volumeBindingMode", "Immediate");
}

/// Upstream: pkg/apis/storage/validation/validation.go ValidateStorageClass
fn validate(class: &Value) -> Errors {
    let mut errors = Errors::new();
    let provisioner = text(class, "provisioner");
    if provisioner.is_empty() {
        errors.push(Error::required(&path("provisioner"), ""));
    } else {
        for message in names::qualified_name(&provisioner.to_lowercase()) {
            errors.push(Error::invalid(&path("provisioner"), provisioner, message));
        }
    }
    errors.extend(one_of(text(class, "reclaimPolicy"), &path("reclaimPolicy"), &["Delete", "Retain"]));
    let mode = text(class, "volumeBindingMode");
    errors.extend(one_of(mode, &path("volumeBindingMode"), &["Immediate", "WaitForFirstConsumer"]));
    errors
}

/// Upstream: pkg/apis/storage/validation/validation.go ValidateStorageClassUpdate
fn validate_update(class: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    for field in ["parameters", "provisioner"] {
        if class.get(field) != old.get(field) {
            errors.push(Error::forbidden(&path(field), format!("updates to {field} are forbidden.")));
        }
    }
    if class.get("reclaimPolicy") != old.get("reclaimPolicy") {
        errors.push(Error::forbidden(&path("reclaimPolicy"), "updates to reclaimPolicy are forbidden."));
    }
    errors.extend(immutable(class, old, "volumeBindingMode"));
    errors
}
