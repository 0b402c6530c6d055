//! StorageVersionMigration: the wish that all objects of a resource be written anew, in the version in which they are
//! stored now.

use crate::prelude::*;
use crate::validate::{conditions, each, immutable};

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("storagemigration.k8s.io/v1beta1", "StorageVersionMigration", "storageversionmigrations")
        .columns("Name,Resource,Status", |o, _| cells![get::name(o), resource(o), phase(o)])
        .strategy(Rules {
            validate,
            validate_update: |o, old| immutable(o, old, "spec"),
            validate_status,
            unconditional_update: false,
            ..Rules::PLAIN
        })
        .status()
        .build()
}

fn resource(migration: &Value) -> String {
    let name = text(migration, "spec.resource.resource");
    match text(migration, "spec.resource.group") {
        "" => name.to_owned(),
        group => format!("{name}.{group}"),
    }
}

/// Upstream: pkg/printers/internalversion/printers.go printStorageVersionMigration
fn phase(migration: &Value) -> &str {
    let conditions = list(migration, "status.conditions").iter();
    let mut said = conditions.filter(|condition| text(condition, "status") == "True");
    let said = said.rfind(|condition| matches!(text(condition, "type"), "Running" | "Failed" | "Succeeded"));
    said.map_or("Unknown", |condition| text(condition, "type"))
}

/// Upstream: pkg/apis/storagemigration/validation/validation.go ValidateStorageVersionMigration
fn validate(migration: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = path("spec.resource");
    let (name, group) = (text(migration, "spec.resource.resource"), text(migration, "spec.resource.group"));
    if name.is_empty() {
        errors.push(Error::required(&spec.child("resource"), "resource is required to be set"));
    } else {
        let wrong = names::dns1035_label(name);
        if !wrong.is_empty() {
            errors.push(Error::invalid(&spec.child("resource"), name, wrong.join(",")));
        }
    }
    if !group.is_empty() {
        errors.extend(each(names::dns1123_subdomain(group), &spec.child("group"), group));
    }
    errors
}

/// Upstream: pkg/apis/storagemigration/validation/validation.go ValidateStorageVersionMigrationStatusUpdate
fn validate_status(migration: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let at = path("status");
    let (version, before) = (text(migration, "status.resourceVersion"), text(old, "status.resourceVersion"));
    if !version.is_empty() && version.parse::<u128>().is_err() {
        let why = format!("resource version is not well formed: {version}");
        errors.push(Error::invalid(&at.child("resourceVersion"), version, why));
    }
    errors.extend(conditions(list(migration, "status.conditions"), &at.child("conditions")));
    if !before.is_empty() && version != before {
        errors.push(Error::invalid(&at.child("resourceVersion"), version, "field is immutable"));
    }
    let is = |object: &Value, kind: &str| print::condition(object, kind, "True");
    let mut wrong = |what: &str| {
        let all = at_conditions(migration);
        errors.push(Error::invalid(&at.child("conditions"), all, what));
    };
    if is(migration, "Succeeded") && is(migration, "Failed") {
        wrong("Both success and failed conditions cannot be true at the same time");
    }
    if is(old, "Succeeded") && !is(migration, "Succeeded") {
        wrong("Success condition cannot be set to false once it is true");
    }
    if is(old, "Failed") && !is(migration, "Failed") {
        wrong("Failed condition cannot be set to false once it is true");
    }
    errors
}

fn at_conditions(migration: &Value) -> Value {
    at(migration, "status.conditions").cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_stays_ended() {
        let of = |version: &str, kinds: &[&str]| {
            let condition = |kind: &&str| {
                json!({"type": kind, "status": "True", "reason": "R", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"})
            };
            let conditions: Vec<Value> = kinds.iter().map(condition).collect();
            json!({"status": {"resourceVersion": version, "conditions": conditions}})
        };
        let check = |new: &Value, old: &Value, expected: &[&str]| {
            let said: Vec<String> = validate_status(new, old).iter().map(|e| e.cause().field).collect();
            assert_eq!(said, expected);
        };
        check(&of("5", &["Running"]), &of("", &[]), &[]);
        check(&of("6", &[]), &of("5", &[]), &["status.resourceVersion"]);
        check(&of("x", &[]), &of("", &[]), &["status.resourceVersion"]);
        check(&of("5", &["Failed", "Succeeded"]), &of("5", &[]), &["status.conditions"]);
        check(&of("5", &["Running"]), &of("5", &["Succeeded"]), &["status.conditions"]);
        assert_eq!(phase(&of("5", &["Running", "Succeeded"])), "Succeeded");
    }

    #[test]
    fn a_resource_is_named() {
        let check = |resource: Value, expected: &[&str]| {
            let migration = json!({"spec": {"resource": resource}});
            let said: Vec<String> = validate(&migration).iter().map(|e| e.cause().field).collect();
            assert_eq!(said, expected);
        };
        check(json!({"resource": "secrets"}), &[]);
        check(json!({"group": "apps"}), &["spec.resource.resource"]);
        check(json!({"group": "A_b", "resource": "1x"}), &["spec.resource.resource", "spec.resource.group"]);
    }
}
