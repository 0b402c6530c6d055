//! LimitRange: bounds and defaults for the resources of a namespace's pods.

use crate::prelude::*;
use crate::validate::quantities;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("v1", "LimitRange", "limitranges")
        .short(&["limits"])
        .strategy(Rules { default, validate, create_on_update: true, ..Rules::PLAIN })
        .build()
}

/// Fills the defaults of containers from the bounds.
///
/// Upstream: pkg/apis/core/v1/defaults.go SetDefaults_LimitRangeItem
fn default(limit_range: &mut Value) {
    for item in get::list_mut(limit_range, "spec.limits") {
        if text(item, "type") != "Container" {
            continue;
        }
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let entries: Vec<(String, Value)> =
                get::entries(item, from).map(|(k, v)| (k.to_owned(), v.clone())).collect();
            let Some(fields) = get::fields_mut(item, to) else { continue };
            for (name, quantity) in entries {
                fields.entry(name).or_insert(quantity);
            }
        }
    }
}

/// Upstream: pkg/apis/core/validation/validation.go ValidateLimitRange
fn validate(limit_range: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut seen = Vec::new();
    for (limit, at) in get::items(limit_range, "spec.limits", &path("spec.limits")) {
        let kind = text(limit, "type");
        errors.extend(limit_type(kind, &at.child("type")));
        if seen.contains(&kind) {
            errors.push(Error::duplicate(&at.child("type"), kind));
        }
        seen.push(kind);
        for field in ["min", "max", "default", "defaultRequest", "maxLimitRequestRatio"] {
            errors.extend(quantities::list(limit, field, &at.child(field)));
            if kind == "Pod" && field.starts_with("default") {
                continue;
            }
            for (name, _) in get::entries(limit, field) {
                let at = at.child(field).key(name);
                errors.extend(match kind {
                    "Pod" | "Container" => quantities::container_name(name, &at),
                    _ => quantities::resource_name(name, &at),
                });
            }
        }
        if kind == "PersistentVolumeClaim" && !has(limit, "min.storage") && !has(limit, "max.storage") {
            let detail = "either minimum or maximum storage value is required, but neither was provided";
            errors.push(Error::required(&at.child("limits"), detail));
        }
        errors.extend(ratios(limit, &at.child("maxLimitRequestRatio")));
        if kind == "Pod" {
            for field in ["default", "defaultRequest"] {
                if get::len(limit, field) > 0 {
                    let detail = "may not be specified when `type` is 'Pod'";
                    errors.push(Error::forbidden(&at.child(field), detail));
                }
            }
        }
        errors.extend(ordered(limit, &at));
    }
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go validateLimitRangeTypeName
fn limit_type(kind: &str, at: &Path) -> Errors {
    let errors = crate::validate::each(names::qualified_name(kind), at, kind);
    let standard = matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim");
    if !errors.is_empty() || standard || kind.contains('/') {
        return errors;
    }
    vec![Error::invalid(at, kind, "must be a standard limit type or fully qualified")]
}

/// A limit may be so many times the request: at least once, and no more than the bounds allow.
fn ratios(limit: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (name, value) in get::entries(limit, "maxLimitRequestRatio") {
        let Some(ratio) = quantities::read(value) else { continue };
        let at = path.key(name);
        if ratio < apimachinery::quantity::Quantity::from_value_i64(1) {
            let detail = format!("ratio {ratio} is less than 1");
            errors.push(Error::invalid(&at, ratio.to_string(), detail));
        }
        let bound = |field: &str| at_key(limit, field, name).and_then(quantities::read);
        if let (Some(min), Some(max)) = (bound("min"), bound("max")) {
            let most = max.as_f64() / min.as_f64();
            if ratio.as_f64() > most {
                let detail = format!("ratio {ratio} is greater than max/min = {most:.6}");
                errors.push(Error::invalid(&at, ratio.to_string(), detail));
            }
        }
    }
    errors
}

/// The bounds and defaults of one resource must not contradict each other.
fn ordered(limit: &Value, at: &Path) -> Errors {
    const ORDER: &[(&str, &str, &str, &str)] = &[
        ("min", "max", "min", "min value {} is greater than max value {}"),
        ("min", "defaultRequest", "defaultRequest", "min value {} is greater than default request value {}"),
        ("min", "default", "default", "min value {} is greater than default value {}"),
        ("defaultRequest", "max", "defaultRequest", "default request value {} is greater than max value {}"),
        (
            "defaultRequest",
            "default",
            "defaultRequest",
            "default request value {} is greater than default limit value {}",
        ),
        ("default", "max", "default", "default value {} is greater than max value {}"),
    ];
    let mut errors = Errors::new();
    for (low, high, field, words) in ORDER {
        for (name, value) in get::entries(limit, low) {
            let Some(other) = at_key(limit, high, name) else { continue };
            let (Some(low), Some(high)) = (quantities::read(value), quantities::read(other)) else {
                continue;
            };
            if low > high {
                let detail = words.replacen("{}", &low.to_string(), 1).replacen("{}", &high.to_string(), 1);
                errors.push(Error::invalid(&at.child(field).key(name), low.to_string(), detail));
            }
        }
    }
    errors
}

fn at_key<'a>(limit: &'a Value, field: &str, name: &str) -> Option<&'a Value> {
    limit.get(field)?.get(name)
}
