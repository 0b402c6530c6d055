//! Event: what happened to an object. Served in the core group and in `events.k8s.io`, stored as the former.

use crate::prelude::*;
use crate::validate::{each, same};

const COLUMNS: &str = "Last Seen,Type,Reason,Object,+Subobject,+Source,Message,+First Seen,+Count,+Name";

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("v1", "Event", "events")
        .short(&["ev"])
        .columns(COLUMNS, cells)
        .fields(&[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
        ])
        .field("source", |o| {
            let component = text(o, "source.component");
            if component.is_empty() { text(o, "reportingComponent").to_owned() } else { component.to_owned() }
        })
        .fields(&["type"])
        .strategy(Rules {
            name: names::path_segment,
            validate: |o| validate(o, "reportingComponent"),
            create_on_update: true,
            ..Rules::PLAIN
        })
        .build()
}

pub fn row_of_events_group() -> Arc<ResourceDef> {
    Row::namespaced("events.k8s.io/v1", "Event", "events")
        .short(&["ev"])
        .columns(COLUMNS, |o, now| cells(&core(o), now))
        // What is stored has the names of the core group.
        .fields(&["reason", "type"])
        .field("regarding.kind", |o| text(o, "involvedObject.kind").to_owned())
        .field("regarding.namespace", |o| text(o, "involvedObject.namespace").to_owned())
        .field("regarding.name", |o| text(o, "involvedObject.name").to_owned())
        .field("regarding.uid", |o| text(o, "involvedObject.uid").to_owned())
        .field("regarding.apiVersion", |o| text(o, "involvedObject.apiVersion").to_owned())
        .field("regarding.resourceVersion", |o| text(o, "involvedObject.resourceVersion").to_owned())
        .field("regarding.fieldPath", |o| text(o, "involvedObject.fieldPath").to_owned())
        .field("reportingController", |o| text(o, "reportingComponent").to_owned())
        .strategy(Rules {
            validate: |o| validate(&core(o), "reportingController"),
            validate_create: |o| validate_new(&core(o)),
            validate_update: |o, old| validate_kept(&core(o), &core(old)),
            create_on_update: true,
            ..Rules::PLAIN
        })
        .build()
}

/// As the core group has it.
fn core(event: &Value) -> Value {
    let mut converted = event.clone();
    crate::convert::event_to_core(&mut converted);
    converted
}

fn cells(event: &Value, now: i64) -> Vec<Cell> {
    let since = |field: &str| has(event, field).then(|| print::since(event, field, now));
    let unknown = || "<unknown>".to_owned();
    let first = since("firstTimestamp").or_else(|| since("eventTime")).unwrap_or_else(unknown);
    let mut last = since("lastTimestamp").unwrap_or_else(|| first.clone());
    let mut times = number(event, "count").max(1);
    if has(event, "series") {
        last = since("series.lastObservedTime").unwrap_or_else(unknown);
        times = number(event, "series.count");
    }
    let kind = text(event, "involvedObject.kind").to_lowercase();
    let object = match text(event, "involvedObject.name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let either = |a: &str, b: &str| match text(event, a) {
        "" => text(event, b).to_owned(),
        value => value.to_owned(),
    };
    let component = either("source.component", "reportingComponent");
    let instance = either("source.host", "reportingInstance");
    cells![
        last,
        text(event, "type"),
        text(event, "reason"),
        object,
        text(event, "involvedObject.fieldPath"),
        if instance.is_empty() { component } else { format!("{component}, {instance}") },
        text(event, "message").trim(),
        first,
        times,
        get::name(event),
    ]
}

/// Upstream: pkg/apis/core/validation/events.go legacyValidateEvent
fn validate(event: &Value, controller_field: &str) -> Errors {
    let mut errors = Errors::new();
    let (namespace, of_object) = (text(event, "metadata.namespace"), text(event, "involvedObject.namespace"));
    let mismatch =
        || Error::invalid(&path("involvedObject.namespace"), of_object, "does not match event.namespace");
    if !has(event, "eventTime") {
        let good = if of_object.is_empty() {
            namespace.is_empty() || namespace == "default"
        } else {
            namespace == of_object
        };
        if !good {
            errors.push(mismatch());
        }
        return errors;
    }
    if of_object.is_empty() && namespace != "default" && namespace != "kube-system" {
        errors.push(mismatch());
    }
    let controller = text(event, "reportingComponent");
    if controller.is_empty() {
        errors.push(Error::required(&path(controller_field), ""));
    }
    errors.extend(each(names::qualified_name(controller), &path(controller_field), controller));
    for (field, longest) in [("reportingInstance", 128), ("action", 128), ("reason", 128), ("message", 1024)]
    {
        let value = text(event, field);
        if value.is_empty() && field != "message" {
            errors.push(Error::required(&path(field), ""));
        }
        if value.len() > longest {
            errors.push(Error::invalid(&path(field), "", format!("can have at most {longest} characters")));
        }
    }
    errors
}

/// What `events.k8s.io` asks besides.
///
/// Upstream: pkg/apis/core/validation/events.go ValidateEventCreate
fn validate_new(core: &Value) -> Errors {
    let mut errors = validate_series(core);
    if !has(core, "eventTime") {
        errors.push(Error::required(&path("eventTime"), ""));
    }
    let kind = text(core, "type");
    if kind != "Normal" && kind != "Warning" {
        errors.push(Error::invalid(&path("type"), "", format!("has invalid value: {kind}")));
    }
    for field in ["firstTimestamp", "lastTimestamp"] {
        if has(core, field) {
            errors.push(Error::invalid(&path(field), "", "needs to be unset"));
        }
    }
    if number(core, "count") != 0 {
        errors.push(Error::invalid(&path("count"), "", "needs to be unset"));
    }
    if !text(core, "source.component").is_empty() || !text(core, "source.host").is_empty() {
        errors.push(Error::invalid(&path("source"), "", "needs to be unset"));
    }
    errors
}

fn validate_series(core: &Value) -> Errors {
    let mut errors = Errors::new();
    if has(core, "series") {
        if number(core, "series.count") < 2 {
            errors.push(Error::invalid(&path("series.count"), "", "should be at least 2"));
        }
        if !has(core, "series.lastObservedTime") {
            errors.push(Error::required(&path("series.lastObservedTime"), ""));
        }
    }
    errors
}

/// An event of `events.k8s.io` tells of the same thing for ever; only its series goes on.
///
/// Upstream: pkg/apis/core/validation/events.go ValidateEventUpdate
fn validate_kept(core: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    if !same(at(core, "series"), at(old, "series")) {
        errors.extend(validate_series(core));
    }
    for field in [
        "involvedObject",
        "reason",
        "message",
        "source",
        "firstTimestamp",
        "lastTimestamp",
        "count",
        "type",
        "eventTime",
        "action",
        "related",
        "reportingComponent",
        "reportingInstance",
    ] {
        // Of the stored names one is another in upstream's messages.
        let told = if field == "reportingComponent" { "reportingController" } else { field };
        if !same(at(core, field), at(old, field)) {
            let value = at(core, field).cloned().unwrap_or_else(|| "".into());
            errors.push(Error::invalid(&path(told), value, crate::validate::IMMUTABLE));
        }
    }
    errors
}
