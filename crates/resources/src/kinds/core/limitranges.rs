//! LimitRange: bounds and defaults for the resources of a namespace's pods.

use std::collections::BTreeSet;

use apimachinery::quantity::Quantity;

use crate::prelude::*;
use crate::validate::quantities;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("v1", "LimitRange", "limitranges")
        .short(&["limits"])
        .strategy(Rules { default, prepare_create, validate, create_on_update: true, ..Rules::PLAIN })
        .build()
}

/// One without a name has its uid for one.
///
/// Upstream: pkg/registry/core/limitrange/strategy.go PrepareForCreate
fn prepare_create(_context: &crate::Context, limit_range: &mut Value) {
    if get::name(limit_range).is_empty() {
        let uid = text(limit_range, "metadata.uid").to_owned();
        set(limit_range, "metadata.name", uid);
    }
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
        let names_of = |field: &str| -> Errors {
            let at = at.child(field);
            let names = get::entries(limit, field).map(|(name, _)| name);
            names.flat_map(|name| resource_name(kind, name, &at.key(name))).collect()
        };
        errors.extend(names_of("max"));
        errors.extend(names_of("min"));
        for field in ["default", "defaultRequest"] {
            if kind != "Pod" {
                errors.extend(names_of(field));
            } else if get::len(limit, field) > 0 {
                let detail = "may not be specified when `type` is 'Pod'";
                errors.push(Error::forbidden(&at.child(field), detail));
            }
        }
        if kind == "PersistentVolumeClaim" && !has(limit, "min.storage") && !has(limit, "max.storage") {
            let detail = "either minimum or maximum storage value is required, but neither was provided";
            errors.push(Error::required(&at.child("limits"), detail));
        }
        errors.extend(names_of("maxLimitRequestRatio"));
        errors.extend(consistent(limit, kind, &at));
    }
    errors
}

fn resource_name(kind: &str, name: &str, at: &Path) -> Errors {
    match kind {
        "Pod" | "Container" => quantities::container_name(name, at),
        _ => quantities::resource_name(name, at),
    }
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

/// The bounds and defaults of each resource must not contradict each other.
fn consistent(limit: &Value, kind: &str, at: &Path) -> Errors {
    /// What must not be greater than what, the field that is wrong, the value that is shown, and the words.
    const ORDER: &[(&str, &str, &str, &str, &str)] = &[
        ("min", "max", "min", "min", "min value {} is greater than max value {}"),
        (
            "min",
            "defaultRequest",
            "defaultRequest",
            "defaultRequest",
            "min value {} is greater than default request value {}",
        ),
        (
            "defaultRequest",
            "max",
            "defaultRequest",
            "defaultRequest",
            "default request value {} is greater than max value {}",
        ),
        (
            "defaultRequest",
            "default",
            "defaultRequest",
            "defaultRequest",
            "default request value {} is greater than default limit value {}",
        ),
        ("min", "default", "default", "min", "min value {} is greater than default value {}"),
        ("default", "max", "default", "max", "default value {} is greater than max value {}"),
    ];
    const FIELDS: &[&str] = &["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
    let of_pods = |field: &str| kind == "Pod" && field.starts_with("default");
    let fields = || FIELDS.iter().filter(|field| !of_pods(field));
    let names: BTreeSet<&str> =
        fields().flat_map(|field| get::entries(limit, field)).map(|(n, _)| n).collect();
    let mut errors = Errors::new();
    for name in names {
        let quantity = |field: &str| match of_pods(field) {
            true => None,
            false => limit.get(field)?.get(name).and_then(quantities::read),
        };
        for (low, high, field, shown, words) in ORDER {
            let (Some(low), Some(high), Some(shown)) = (quantity(low), quantity(high), quantity(shown))
            else {
                continue;
            };
            if low > high {
                let detail = words.replacen("{}", &low.to_string(), 1).replacen("{}", &high.to_string(), 1);
                errors.push(Error::invalid(&at.child(field).key(name), shown.to_string(), detail));
            }
        }
        errors.extend(ratio(&quantity, &at.child("maxLimitRequestRatio").key(name)));
        if let (Some(limit), Some(request)) = (quantity("default"), quantity("defaultRequest"))
            && limit != request
            && !quantities::overcommit_allowed(name)
        {
            let detail =
                format!("default value {limit} must equal to defaultRequest value {request} in {name}");
            errors.push(Error::invalid(&at.child("defaultRequest").key(name), request.to_string(), detail));
        }
    }
    errors
}

/// A limit may be so many times the request: at least once, and no more than the bounds allow.
fn ratio(quantity: &dyn Fn(&str) -> Option<Quantity>, at: &Path) -> Errors {
    let mut errors = Errors::new();
    let Some(ratio) = quantity("maxLimitRequestRatio") else { return errors };
    if ratio < Quantity::from_value_i64(1) {
        errors.push(Error::invalid(at, ratio.to_string(), format!("ratio {ratio} is less than 1")));
    }
    if let (Some(min), Some(max)) = (quantity("min"), quantity("max")) {
        let most = max.as_f64() / min.as_f64();
        if ratio.as_f64() > most {
            let detail = format!("ratio {ratio} is greater than max/min = {most:.6}");
            errors.push(Error::invalid(at, ratio.to_string(), detail));
        }
    }
    errors
}
