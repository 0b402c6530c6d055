//! What a HorizontalPodAutoscaler must satisfy, in either version.
//!
//! Upstream: pkg/apis/autoscaling/validation/validation.go

use crate::prelude::*;
use crate::validate::{dns_label, each, one_of, quantities};

const LONGEST_WINDOW_SECONDS: i64 = 3600;
const LONGEST_PERIOD_SECONDS: i64 = 1800;

pub fn validate(autoscaler: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = path("spec");
    let (min, max) = (get::int(autoscaler, "spec.minReplicas"), number(autoscaler, "spec.maxReplicas"));
    if min.is_some_and(|min| min < 1) {
        let detail = "must be greater than or equal to 1";
        errors.push(Error::invalid(&spec.child("minReplicas"), min, detail));
    }
    let at_max = spec.child("maxReplicas");
    if max == 0 {
        errors.push(Error::required(&at_max, "must be set and greater than 0"));
    } else if max < 0 {
        errors.push(Error::invalid(&at_max, max, "must be greater than or equal to 1"));
    }
    if min.is_some_and(|min| max < min) {
        errors.push(Error::invalid(&at_max, max, "must be greater than or equal to `minReplicas`"));
    }
    let target = at(autoscaler, "spec.scaleTargetRef").unwrap_or(&Value::Null);
    // Of what can be scaled only one kind has no group.
    let in_core = text(target, "kind") == "ReplicationController";
    errors.extend(validate_reference(target, in_core, &spec.child("scaleTargetRef")));
    for (metric, at) in get::items(autoscaler, "spec.metrics", &spec.child("metrics")) {
        errors.extend(validate_metric(metric, &at));
    }
    for direction in ["scaleUp", "scaleDown"] {
        if let Some(rules) = at(autoscaler, &format!("spec.behavior.{direction}")) {
            errors.extend(validate_rules(rules, &spec.child("behavior").child(direction)));
        }
    }
    errors
}

/// Upstream: pkg/apis/autoscaling/validation/validation.go ValidateCrossVersionObjectReference, ValidateAPIVersion
fn validate_reference(reference: &Value, in_core: bool, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for field in ["kind", "name"] {
        let (value, at) = (text(reference, field), path.child(field));
        if value.is_empty() {
            errors.push(Error::required(&at, ""));
        } else {
            errors.extend(each(names::path_segment(value), &at, value));
        }
    }
    let version = text(reference, "apiVersion");
    let at = path.child("apiVersion");
    match version.split('/').count() {
        1 if in_core => {}
        1 => errors.push(Error::invalid(&at, version, "apiVersion must specify API group")),
        2 if version.starts_with('/') && !in_core => {
            errors.push(Error::invalid(&at, version, "apiVersion must specify API group"));
        }
        2 => {}
        _ => {
            let detail = format!("unexpected GroupVersion string: {version}");
            errors.push(Error::invalid(&at, version, detail));
        }
    }
    errors
}

/// Where each type of metric is told, in the order in which they are looked at.
const SOURCES: &[(&str, &str)] = &[
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];

fn validate_metric(metric: &Value, path: &Path) -> Errors {
    const TYPES: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];
    let mut errors = Errors::new();
    let kind = text(metric, "type");
    let at_type = path.child("type");
    if kind.is_empty() {
        errors.push(Error::required(&at_type, "must specify a metric source type"));
    }
    let expected = SOURCES.iter().find(|(known, _)| *known == kind).map(|(_, field)| *field);
    if expected.is_none() {
        errors.push(Error::not_supported(&at_type, kind, TYPES));
    }
    let present: Vec<&str> =
        SOURCES.iter().map(|(_, field)| *field).filter(|field| has(metric, field)).collect();
    if let Some(first) = present.first() {
        errors.extend(validate_source(first, &metric[*first], &path.child(first)));
    }
    match expected {
        Some(field) if !present.contains(&field) => {
            let detail = "must populate information for the given metric source";
            errors.push(Error::required(&path.child(field), detail));
        }
        Some(_) => {}
        None => errors.push(Error::not_supported(&at_type, kind, TYPES)),
    }
    if present.len() != 1 {
        for field in present.into_iter().filter(|field| Some(*field) != expected) {
            let detail = "must populate the given metric source only";
            errors.push(Error::forbidden(&path.child(field), detail));
        }
    }
    errors
}

fn validate_source(kind: &str, source: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if kind == "object" {
        let described = source.get("describedObject").unwrap_or(&Value::Null);
        errors.extend(validate_reference(described, true, &path.child("describedObject")));
    }
    let of_resource = matches!(kind, "resource" | "containerResource");
    if of_resource {
        if text(source, "name").is_empty() {
            errors.push(Error::required(&path.child("name"), "must specify a resource name"));
        }
        if kind == "containerResource" {
            match text(source, "container") {
                "" => errors.push(Error::required(&path.child("container"), "must specify a container")),
                name => errors.extend(dns_label(name, &path.child("container"))),
            }
        }
    } else {
        let (name, at_name) = (text(source, "metric.name"), path.child("metric").child("name"));
        if name.is_empty() {
            errors.push(Error::required(&at_name, "must specify a metric name"));
        } else {
            errors.extend(each(names::path_segment(name), &at_name, name));
        }
    }
    let target = path.child("target");
    errors.extend(validate_target(source, &target));
    let given = |field: &str| has(source, &format!("target.{field}"));
    let (value, average, utilization) = (given("value"), given("averageValue"), given("averageUtilization"));
    match kind {
        "object" if !value && !average => {
            let detail = "must set either a target value or averageValue";
            errors.push(Error::required(&target.child("averageValue"), detail));
        }
        "external" if !value && !average => {
            let detail = "must set either a target value for metric or a per-pod target";
            errors.push(Error::required(&target.child("averageValue"), detail));
        }
        "external" if value && average => {
            let detail = "may not set both a target value for metric and a per-pod target";
            errors.push(Error::forbidden(&target.child("value"), detail));
        }
        "pods" if !average => {
            let detail = "must specify a positive target averageValue";
            errors.push(Error::required(&target.child("averageValue"), detail));
        }
        _ if of_resource && !utilization && !average => {
            let detail = "must set either a target raw value or a target utilization";
            errors.push(Error::required(&target.child("averageUtilization"), detail));
        }
        _ if of_resource && utilization && average => {
            let detail = "may not set both a target raw value and a target utilization";
            errors.push(Error::forbidden(&target.child("averageValue"), detail));
        }
        _ => {}
    }
    errors
}

fn validate_target(source: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let kind = text(source, "target.type");
    if kind.is_empty() {
        errors.push(Error::required(&path.child("type"), "must specify a metric target type"));
    }
    if !["Utilization", "Value", "AverageValue"].contains(&kind) {
        let detail = "must be either Utilization, Value, or AverageValue";
        errors.push(Error::invalid(&path.child("type"), kind, detail));
    }
    for field in ["value", "averageValue"] {
        let amount = at(source, &format!("target.{field}")).and_then(quantities::read);
        if let Some(amount) = amount.filter(|amount| amount.is_zero() || amount.is_negative()) {
            errors.push(Error::invalid(&path.child(field), amount.to_string(), "must be positive"));
        }
    }
    if let Some(percent) = get::int(source, "target.averageUtilization").filter(|percent| *percent < 1) {
        errors.push(Error::invalid(&path.child("averageUtilization"), percent, "must be greater than 0"));
    }
    errors
}

fn validate_rules(rules: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if let Some(seconds) = get::int(rules, "stabilizationWindowSeconds") {
        let at = path.child("stabilizationWindowSeconds");
        if seconds < 0 {
            errors.push(Error::invalid(&at, seconds, "must be greater than or equal to zero"));
        } else if seconds > LONGEST_WINDOW_SECONDS {
            let detail = format!("must be less than or equal to {LONGEST_WINDOW_SECONDS}");
            errors.push(Error::invalid(&at, seconds, detail));
        }
    }
    if has(rules, "selectPolicy") {
        let at = path.child("selectPolicy");
        errors.extend(one_of(text(rules, "selectPolicy"), &at, &["Disabled", "Max", "Min"]));
    }
    let at_policies = path.child("policies");
    if list(rules, "policies").is_empty() {
        errors.push(Error::required(&at_policies, "must specify at least one Policy"));
    }
    for (policy, at) in get::items(rules, "policies", &at_policies) {
        errors.extend(one_of(text(policy, "type"), &at.child("type"), &["Percent", "Pods"]));
        for field in ["value", "periodSeconds"] {
            let value = number(policy, field);
            if value <= 0 {
                errors.push(Error::invalid(&at.child(field), value, "must be greater than zero"));
            } else if field == "periodSeconds" && value > LONGEST_PERIOD_SECONDS {
                let detail = format!("must be less than or equal to {LONGEST_PERIOD_SECONDS}");
                errors.push(Error::invalid(&at.child(field), value, detail));
            }
        }
    }
    if let Some(tolerance) = rules.get("tolerance") {
        errors.extend(quantities::non_negative(tolerance, &path.child("tolerance")));
    }
    errors
}
