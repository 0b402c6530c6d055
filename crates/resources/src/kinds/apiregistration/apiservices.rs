//! APIService: where a group version is served.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("apiregistration.k8s.io/v1", "APIService", "apiservices")
        .category("api-extensions")
        .status()
        .prefix("apiregistration.k8s.io/apiservices")
        .columns("Name,Service,Available,Age", cells)
        .strategy(Rules {
            default,
            validate,
            name: names::path_segment,
            unconditional_update: false,
            ..Rules::PLAIN
        })
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
    if group.is_empty() && version != "v1" {
        let detail = "only v1 may have an empty group and it better be legacy kube";
        errors.push(Error::required(&path("spec.group"), detail));
    }
    if !group.is_empty() {
        errors.extend(crate::validate::each(names::dns1123_subdomain(group), &path("spec.group"), group));
    }
    errors.extend(crate::validate::each(names::dns1035_label(version), &path("spec.version"), version));
    for (field, highest) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let value = number(service, &format!("spec.{field}"));
        if value <= 0 || value > highest {
            let detail = format!("must be positive and less than {highest}");
            errors.push(Error::invalid(&path("spec").child(field), value, detail));
        }
    }
    let unverified = is_true(service, "spec.insecureSkipTLSVerify");
    let bundle = crate::validate::decoded_length(at(service, "spec.caBundle").unwrap_or(&Value::Null));
    let place = path("spec.insecureSkipTLSVerify");
    if !has(service, "spec.service") {
        if bundle > 0 {
            let detail = "local APIServices may not have a caBundle";
            errors.push(Error::invalid(&path("spec.caBundle"), format!("{bundle} bytes"), detail));
        }
        if unverified {
            let detail = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(Error::invalid(&place, true, detail));
        }
        return errors;
    }
    for field in ["namespace", "name"] {
        if text(service, &format!("spec.service.{field}")).is_empty() {
            errors.push(Error::required(&path("spec.service").child(field), ""));
        }
    }
    let port = number(service, "spec.service.port");
    let messages = names::port_number(port);
    if !messages.is_empty() {
        let detail = format!("port is not valid: {}", messages.join(", "));
        errors.push(Error::invalid(&path("spec.service.port"), port, detail));
    }
    if unverified && bundle > 0 {
        errors.push(Error::invalid(&place, true, "may not be true if caBundle is present"));
    }
    errors
}
