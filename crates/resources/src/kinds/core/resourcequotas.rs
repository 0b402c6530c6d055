//! ResourceQuota: how much a namespace may use.

use crate::prelude::*;
use crate::validate::quantities;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("v1", "ResourceQuota", "resourcequotas")
        .short(&["quota"])
        .status()
        .columns("Name,Request,Limit,Age", cells)
        .strategy(Rules { validate, validate_update, ..Rules::PLAIN })
        .build()
}

fn cells(quota: &Value, now: i64) -> Vec<Cell> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (name, hard) in get::entries(quota, "status.hard") {
        let used = at(quota, "status.used").and_then(|u| u.get(name));
        let used = used.map_or_else(|| "0".to_owned(), get::plain);
        let column = if name.starts_with("limits.") { &mut limits } else { &mut requests };
        column.push(format!("{name}: {used}/{}", get::plain(hard)));
    }
    cells![get::name(quota), requests.join(", "), limits.join(", "), age(quota, now)]
}

/// Upstream: pkg/apis/core/validation/validation.go ValidateResourceQuotaSpec
fn validate(quota: &Value) -> Errors {
    let mut errors = Errors::new();
    let at_hard = path("spec.hard");
    for (name, value) in get::entries(quota, "spec.hard") {
        let at = at_hard.key(name);
        errors.extend(quantities::resource_name(name, &at));
        if !name.contains('/') && !quantities::is_of_quota(name) {
            errors.push(Error::invalid(&at, name, "must be a standard resource for quota"));
        }
        errors.extend(quantities::amount(name, value, &at));
    }
    let hard: Vec<&str> = get::entries(quota, "spec.hard").map(|(name, _)| name).collect();
    let scopes = get::texts(quota, "spec.scopes");
    let shown = at(quota, "spec.scopes").cloned().unwrap_or_default();
    let at_scopes = path("spec.scopes");
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            errors.push(Error::invalid(&at_scopes, shown.clone(), "unsupported scope"));
        }
        let misfits = hard.iter().filter(|name| quantities::is_of_quota(name) && !is_scoped(scope, name));
        errors.extend(misfits.map(|_| Error::invalid(&at_scopes, shown.clone(), MISFIT)));
    }
    errors.extend(conflicts(&scopes, &shown, &at_scopes));
    if let Some(selector) = at(quota, "spec.scopeSelector") {
        errors.extend(validate_selector(selector, &hard, &shown));
    }
    errors
}

const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
const MISFIT: &str = "unsupported scope applied to resource";

/// Whether what a scope selects uses the resource.
///
/// Upstream: pkg/apis/core/helper/helpers.go IsResourceQuotaScopeValidForResource
fn is_scoped(scope: &str, name: &str) -> bool {
    const COMPUTE: &[&str] =
        &["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
    match scope {
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => name == "pods" || COMPUTE.contains(&name),
        "BestEffort" => name == "pods",
        "VolumeAttributesClass" => matches!(name, "persistentvolumeclaims" | "requests.storage"),
        _ => true,
    }
}

fn conflicts(scopes: &[&str], shown: &Value, at: &Path) -> Errors {
    let pairs = [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")];
    let both = pairs.iter().filter(|(a, b)| scopes.contains(a) && scopes.contains(b));
    both.map(|_| Error::invalid(at, shown.clone(), "conflicting scopes")).collect()
}

/// Upstream: pkg/apis/core/validation/validation.go validateScopedResourceSelectorRequirement
fn validate_selector(selector: &Value, hard: &[&str], shown: &Value) -> Errors {
    let path = path("spec.scopeSelector.matchExpressions");
    let mut errors = Errors::new();
    let mut scopes = Vec::new();
    for requirement in list(selector, "matchExpressions") {
        let (scope, operator) = (text(requirement, "scopeName"), text(requirement, "operator"));
        if !SCOPES.contains(&scope) {
            errors.push(Error::invalid(&path.child("scopeName"), scope, "unsupported scope"));
        }
        let misfits = hard.iter().filter(|name| quantities::is_of_quota(name) && !is_scoped(scope, name));
        errors.extend(misfits.map(|_| Error::invalid(&path, selector.clone(), MISFIT)));
        let only_exists =
            SCOPES.contains(&scope) && !matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if only_exists && operator != "Exists" {
            let detail = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
                          ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                          ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.push(Error::invalid(&path.child("operator"), operator, detail));
        }
        let values = list(requirement, "values");
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let detail =
                    "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.push(Error::required(&path.child("values"), detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail =
                    "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.push(Error::invalid(&path.child("values"), Value::from(values), detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errors.push(Error::invalid(&path.child("operator"), other, "not a valid selector operator"));
            }
        }
        scopes.push(scope);
    }
    errors.extend(conflicts(&scopes, shown, &path));
    errors
}

fn validate_update(quota: &Value, old: &Value) -> Errors {
    let scopes = |value: &Value| {
        let mut scopes: Vec<String> =
            get::texts(value, "spec.scopes").iter().map(|s| (*s).to_owned()).collect();
        scopes.sort();
        scopes
    };
    if scopes(quota) == scopes(old) {
        return Errors::new();
    }
    let value = at(quota, "spec.scopes").cloned().unwrap_or(Value::Null);
    vec![Error::invalid(&path("spec.scopes"), value, "field is immutable")]
}
