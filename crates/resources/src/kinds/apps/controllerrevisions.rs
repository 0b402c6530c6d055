//! ControllerRevision: what a StatefulSet or DaemonSet was, to go back to.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("apps/v1", "ControllerRevision", "controllerrevisions")
        .columns("Name,Controller,Revision,Age", cells)
        .strategy(Rules { validate, validate_update, ..Rules::PLAIN })
        .build()
}

fn cells(revision: &Value, now: i64) -> Vec<Cell> {
    let owner = list(revision, "metadata.ownerReferences").iter().find(|o| is_true(o, "controller"));
    let owner = owner.map_or_else(
        || "<none>".to_owned(),
        |owner| {
            let kind = text(owner, "kind").to_lowercase();
            match text(owner, "apiVersion").split_once('/') {
                Some((group, _)) => format!("{kind}.{group}/{}", text(owner, "name")),
                None => format!("{kind}/{}", text(owner, "name")),
            }
        },
    );
    cells![get::name(revision), owner, count(revision, "revision"), age(revision, now)]
}

fn validate(revision: &Value) -> Errors {
    let mut errors = Errors::new();
    if !has(revision, "data") {
        errors.push(Error::required(&path("data"), "data is mandatory"));
    } else if !revision["data"].is_object() {
        errors.push(Error::required(&path("data"), "data must be a valid JSON object"));
    }
    errors.extend(crate::validate::non_negative(revision, "revision"));
    errors
}

fn validate_update(revision: &Value, old: &Value) -> Errors {
    crate::validate::immutable(revision, old, "data")
}
