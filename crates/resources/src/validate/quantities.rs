//! Resource lists.

use apimachinery::field::{Error, Path};
use apimachinery::names;
use apimachinery::quantity::Quantity;
use serde_json::Value;

use crate::get::{self, Errors, at};

/// A quantity, which the schema has already found well-formed.
pub fn read(value: &Value) -> Option<Quantity> {
    Quantity::from_value(value).ok()
}

pub fn non_negative(value: &Value, at: &Path) -> Errors {
    match read(value) {
        Some(q) if q.is_negative() => {
            vec![Error::invalid(at, q.to_string(), "must be greater than or equal to 0")]
        }
        Some(_) => Errors::new(),
        None => vec![Error::invalid(at, value.clone(), "must be a valid resource quantity")],
    }
}

pub fn positive(value: &Value, at: &Path) -> Errors {
    match read(value) {
        Some(q) if q.is_zero() || q.is_negative() => {
            vec![Error::invalid(at, q.to_string(), "must be greater than zero")]
        }
        Some(_) => Errors::new(),
        None => vec![Error::invalid(at, value.clone(), "must be a valid resource quantity")],
    }
}

/// A map of resource names to amounts that are not negative.
pub fn list(object: &Value, field: &str, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (name, value) in get::entries(object, field) {
        errors.extend(crate::validate::each(names::qualified_name(name), &path.key(name), name));
        errors.extend(non_negative(value, &path.key(name)));
    }
    errors
}

/// Resources that can be given away more than once.
///
/// Upstream: pkg/apis/core/helper/helpers.go IsOvercommitAllowed
pub fn overcommit_allowed(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    native && !is_huge_page(name)
}

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// What quotas measure.
const MEASURED: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];
/// What quotas count by names of old.
const COUNTED: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// Whether quotas know the resource, which is none of a domain.
///
/// Upstream: pkg/apis/core/helper/helpers.go IsStandardQuotaResourceName
pub fn is_of_quota(name: &str) -> bool {
    MEASURED.contains(&name)
        || COUNTED.contains(&name)
        || is_huge_page(name)
        || name.starts_with("requests.hugepages-")
}

/// Upstream: pkg/apis/core/validation/validation.go validateResourceName
pub fn resource_name(name: &str, at: &Path) -> Errors {
    let errors = crate::validate::each(names::qualified_name(name), at, name);
    if !errors.is_empty() || name.contains('/') || name == "storage" || is_of_quota(name) {
        return errors;
    }
    vec![Error::invalid(at, name, "must be a standard resource type or fully qualified")]
}

/// Upstream: pkg/apis/core/validation/validation.go validateContainerResourceName
pub fn container_name(name: &str, at: &Path) -> Errors {
    const STANDARD: &[&str] = &["cpu", "memory", "ephemeral-storage"];
    let mut errors = crate::validate::each(names::qualified_name(name), at, name);
    if !name.contains('/') {
        if !STANDARD.contains(&name) && !is_huge_page(name) {
            if errors.is_empty() {
                let detail = "must be a standard resource type or fully qualified";
                errors.push(Error::invalid(at, name, detail));
            }
            errors.push(Error::invalid(at, name, "must be a standard resource for containers"));
        }
    } else if name.starts_with("requests.") {
        errors.push(Error::invalid(at, name, "doesn't follow extended resource name standard"));
    }
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go ValidateResourceQuantityValue
pub fn amount(name: &str, value: &Value, at: &Path) -> Errors {
    let mut errors = non_negative(value, at);
    let whole = COUNTED.contains(&name) || (name.contains('/') && !name.contains("kubernetes.io/"));
    if let Some(quantity) = read(value)
        && whole
        && !quantity.is_whole()
    {
        errors.push(Error::invalid(at, quantity.to_string(), "must be an integer"));
    }
    errors
}

/// The `resources` of a container.
///
/// Upstream: pkg/apis/core/validation/validation.go validateResourceRequirements
pub fn requirements(resources: &Value, path: &Path) -> Errors {
    requirements_of(resources, container_name, path)
}

/// The `resources` of a pod as a whole.
pub fn pod_requirements(resources: &Value, path: &Path) -> Errors {
    requirements_of(resources, pod_name, path)
}

/// Upstream: pkg/apis/core/validation/validation.go validatePodResourceName
fn pod_name(name: &str, at: &Path) -> Errors {
    let errors = resource_name(name, at);
    if !errors.is_empty() || matches!(name, "cpu" | "memory") || is_huge_page(name) {
        return errors;
    }
    vec![Error::not_supported(at, name, &["cpu", "hugepages-", "memory"])]
}

fn requirements_of(resources: &Value, known: fn(&str, &Path) -> Errors, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let (limits, requests) = (path.child("limits"), path.child("requests"));
    for (name, value) in get::entries(resources, "limits") {
        errors.extend(known(name, &limits.key(name)));
        errors.extend(amount(name, value, &limits.key(name)));
    }
    for (name, value) in get::entries(resources, "requests") {
        errors.extend(known(name, &requests.key(name)));
        errors.extend(amount(name, value, &requests.key(name)));
        let limit = at(resources, "limits").and_then(|l| l.get(name)).and_then(read);
        match (read(value), limit) {
            (Some(request), Some(limit)) if request != limit && !overcommit_allowed(name) => {
                let detail = format!("must be equal to {name} limit of {limit}");
                errors.push(Error::invalid(&requests, request.to_string(), detail));
            }
            (Some(request), Some(limit)) if request > limit => {
                let detail = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(Error::invalid(&requests, request.to_string(), detail));
            }
            (_, None) if !overcommit_allowed(name) => {
                let detail = "Limit must be set for non overcommitable resources";
                errors.push(Error::required(&limits, detail));
            }
            _ => {}
        }
    }
    let names =
        || get::entries(resources, "limits").chain(get::entries(resources, "requests")).map(|(n, _)| n);
    if names().any(is_huge_page) && !names().any(|n| n == "cpu" || n == "memory") {
        errors.push(Error::forbidden(path, "HugePages require cpu or memory"));
    }
    errors
}
