//! APIService: where a group version is served.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("apiregistration.k8s.io/v1", "APIService", "apiservices")
        .category("api-extensions")
        .status()
        .prefix("apiregistration.k8s.io/apiservices")
        .columns("Name,Service,Available,Age", cells)
        .strategy(Rules { default, validate, name: names::path_segment, ..Rules::PLAIN })
        .build()
}

fn cells(service: &Value, now: i64) -> Vec<Cell> {
    let target = match at(service, "spec.service") {
        Some(target) => format!("{}/{}", text(target, "namespace"), text(target, "name")),
        None => "Local".to_owned(),
    };
    let available = list(service, "status.conditions").iter().find(|c| text(c, "type") == "Available");
    let available = match available {
        None => "Unknown".to_owned(),
        Some(c) if text(c, "status") == "True" => "True".to_owned(),
        Some(c) => format!("{} ({})", text(c, "status"), text(c, "reason")),
    };
    cells![get::name(service), target, available, age(service, now)]
}

fn default(service: &mut Value) {
    if has(service, "spec.service") {
        get::default(service, "spec.service.port", 443);
    }
}

/// Upstream: kube-aggregator/pkg/apis/apiregistration/validation/validation.go
fn validate(service: &Value) -> Errors {
    let mut errors = Errors::new();
    let (group, version) = (text(service, "spec.group"), text(service, "spec.version"));
    let required = format!("{version}.{group}");
    if get::name(service) != required {
        let detail = format!("must be `spec.version+\".\"+spec.group`: {required:?}");
        errors.push(Error::invalid(&path("metadata.name"), get::name(service), detail));
    }
    if version.is_empty() {
        errors.push(Error::required(&path("spec.version"), ""));
    }
    for (field, highest) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let value = number(service, &format!("spec.{field}"));
        if value <= 0 || value > highest {
            let detail = format!("must be positive and less than {highest}");
            errors.push(Error::invalid(&path("spec").child(field), value, detail));
        }
    }
    if has(service, "spec.service") {
        for field in ["namespace", "name"] {
            if text(service, &format!("spec.service.{field}")).is_empty() {
                errors.push(Error::required(&path("spec.service").child(field), ""));
            }
        }
        if is_true(service, "spec.insecureSkipTLSVerify") && !text(service, "spec.caBundle").is_empty() {
            let detail = "may not be true if caBundle is present";
            errors.push(Error::invalid(&path("spec.insecureSkipTLSVerify"), true, detail));
        }
    } else if is_true(service, "spec.insecureSkipTLSVerify") {
        let detail = "may not be true if service is nil";
        errors.push(Error::invalid(&path("spec.insecureSkipTLSVerify"), true, detail));
    }
    errors
}
