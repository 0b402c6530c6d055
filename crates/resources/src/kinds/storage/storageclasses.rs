//! StorageClass: a kind of storage that claims can ask for.

use std::collections::{BTreeMap, BTreeSet};

use crate::prelude::*;
use crate::validate::{each, immutable, one_of};

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
    get::default_absent(class, "reclaimPolicy", "Delete");
    get::default_absent(class, "volumeBindingMode", "Immediate");
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
    errors.extend(super::parameters::validate(class, true));
    let policy = text(class, "reclaimPolicy");
    if !policy.is_empty() {
        errors.extend(one_of(policy, &path("reclaimPolicy"), &["Delete", "Retain"]));
    }
    let mode = text(class, "volumeBindingMode");
    errors.extend(one_of(mode, &path("volumeBindingMode"), &["Immediate", "WaitForFirstConsumer"]));
    errors.extend(validate_topologies(class));
    errors
}

/// Where volumes of the class may be. No two terms say the same; and one that says nothing is the same as each of
/// the empty ones that upstream's list begins with.
///
/// Upstream: pkg/apis/storage/validation/validation.go validateAllowedTopologies
fn validate_topologies(class: &Value) -> Errors {
    type Term<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;
    let mut errors = Errors::new();
    let terms = get::items(class, "allowedTopologies", &path("allowedTopologies"));
    let mut before: Vec<Term> = terms.iter().map(|_| Term::new()).collect();
    for (term, at) in terms {
        let at = at.child("matchLabelExpressions");
        let mut said = Term::new();
        for (requirement, at) in get::items(term, "matchLabelExpressions", &at) {
            let key = text(requirement, "key");
            let values = get::texts(requirement, "values");
            if values.is_empty() {
                errors.push(Error::required(&at.child("values"), ""));
            }
            for (index, value) in
                values.iter().enumerate().filter(|(at, value)| values[..*at].contains(value))
            {
                errors.push(Error::duplicate(&at.child("values").index(index), *value));
            }
            errors.extend(each(names::qualified_name(key), &at.child("key"), key));
            if said.insert(key, values.into_iter().collect()).is_some() {
                errors.push(Error::duplicate(&at.child("key"), key));
            }
        }
        let same = before.iter().filter(|other| **other == said);
        errors.extend(same.map(|_| Error::duplicate(&at, "")));
        before.push(said);
    }
    errors
}

/// Upstream: pkg/apis/storage/validation/validation.go ValidateStorageClassUpdate
fn validate_update(class: &Value, old: &Value) -> Errors {
    let fields = ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"];
    fields.into_iter().flat_map(|field| immutable(class, old, field)).collect()
}
