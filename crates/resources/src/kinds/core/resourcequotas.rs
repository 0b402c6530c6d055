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
    let at = path("spec.hard");
    for (name, value) in get::entries(quota, "spec.hard") {
        for message in names::qualified_name(name) {
            errors.push(Error::invalid(&at.key(name), name, message));
        }
        errors.extend(quantities::non_negative(value, &at.key(name)));
    }
    for scope in list(quota, "spec.scopes") {
        const SCOPES: &[&str] = &[
            "BestEffort",
            "CrossNamespacePodAffinity",
            "NotBestEffort",
            "NotTerminating",
            "PriorityClass",
            "Terminating",
            "VolumeAttributesClass",
        ];
        if !scope.as_str().is_some_and(|s| SCOPES.contains(&s)) {
            let all = get::at(quota, "spec.scopes").cloned().unwrap_or_default();
            errors.push(Error::invalid(&path("spec.scopes"), all, "unsupported scope"));
        }
    }
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
