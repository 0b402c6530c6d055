//! CSINode: which storage drivers a node has.

use crate::prelude::*;
use crate::validate::{csi_driver_name, each, same};

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("storage.k8s.io/v1", "CSINode", "csinodes")
        .columns("Name,Drivers:integer,Age", |o, now| {
            cells![get::name(o), get::len(o, "spec.drivers"), age(o, now)]
        })
        .strategy(Rules { validate, validate_update, unconditional_update: false, ..Rules::PLAIN })
        .build()
}

/// Upstream: pkg/apis/storage/validation/validation.go ValidateCSINode
fn validate(node: &Value) -> Errors {
    const LONGEST_ID: usize = 192;
    let mut errors = Errors::new();
    let mut drivers = Vec::new();
    for (driver, at) in get::items(node, "spec.drivers", &path("spec.drivers")) {
        let (name, id) = (text(driver, "name"), text(driver, "nodeID"));
        errors.extend(csi_driver_name(name, &at.child("name")));
        if id.is_empty() {
            errors.push(Error::required(&at.child("nodeID"), ""));
        }
        if id.len() > LONGEST_ID {
            let detail = format!("must be {LONGEST_ID} characters or less");
            errors.push(Error::invalid(&at.child("nodeID"), id, detail));
        }
        let count = at.child("allocatable").child("count");
        errors.extend(crate::validate::non_negative_at(driver, "allocatable.count", &count));
        if drivers.contains(&name) {
            errors.push(Error::duplicate(&at.child("name"), name));
        }
        drivers.push(name);
        let mut keys = Vec::new();
        for key in get::texts(driver, "topologyKeys") {
            if key.is_empty() {
                errors.push(Error::required(&at, key));
            }
            if keys.contains(&key) {
                errors.push(Error::duplicate(&at, key));
            }
            keys.push(key);
            errors.extend(each(names::qualified_name(key), &at, key));
        }
    }
    errors
}

/// A driver that is there stays what it is, except for how many volumes the node takes.
fn validate_update(node: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    for driver in list(node, "spec.drivers") {
        let before = list(old, "spec.drivers").iter().find(|old| text(old, "name") == text(driver, "name"));
        let fixed = |driver: &Value| {
            let mut driver = driver.clone();
            get::remove(&mut driver, "allocatable");
            driver
        };
        if before.is_some_and(|before| !same(Some(&fixed(driver)), Some(&fixed(before)))) {
            let at = path("spec.drivers");
            errors.push(Error::invalid(&at, driver.clone(), crate::validate::IMMUTABLE));
        }
    }
    errors
}
