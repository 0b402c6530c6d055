//! Ingress: HTTP from outside to Services.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("networking.k8s.io/v1", "Ingress", "ingresses")
        .short(&["ing"])
        .status()
        .prefix("ingress")
        .columns("Name,Class,Hosts,Address,Ports,Age", |o, now| {
            cells![
                get::name(o),
                print::or(o, "spec.ingressClassName", "<none>"),
                hosts(o),
                print::load_balancer(o),
                if list(o, "spec.tls").is_empty() { "80" } else { "80, 443" },
                age(o, now),
            ]
        })
        .strategy(Rules { validate, warnings, generation: true, ..Rules::PLAIN })
        .build()
}

fn warnings(ingress: &Value) -> Vec<String> {
    const OLD_CLASS: &str = "kubernetes.io/ingress.class";
    let old = get::entries(ingress, "metadata.annotations").any(|(key, _)| key == OLD_CLASS);
    if !old || has(ingress, "spec.ingressClassName") {
        return Vec::new();
    }
    vec![format!("annotation {OLD_CLASS:?} is deprecated, please use 'spec.ingressClassName' instead")]
}

fn hosts(ingress: &Value) -> String {
    const SHOWN: usize = 3;
    let rules = list(ingress, "spec.rules");
    let all: Vec<&str> = rules.iter().map(|r| text(r, "host")).filter(|h| !h.is_empty()).collect();
    let shown = all[..all.len().min(SHOWN)].join(",");
    if all.is_empty() {
        "*".to_owned()
    } else if all.len() >= SHOWN && rules.len() > SHOWN {
        format!("{shown} + {} more...", rules.len() - SHOWN)
    } else {
        shown
    }
}

/// Upstream: pkg/apis/networking/validation/validation.go ValidateIngressSpec
fn validate(ingress: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = path("spec");
    if list(ingress, "spec.rules").is_empty() && !has(ingress, "spec.defaultBackend") {
        let detail = "either `defaultBackend` or `rules` must be specified";
        let value = at(ingress, "spec.rules").cloned().unwrap_or_else(|| json!([]));
        errors.push(Error::invalid(&spec, value, detail));
    }
    if let Some(backend) = at(ingress, "spec.defaultBackend") {
        errors.extend(validate_backend(backend, &spec.child("defaultBackend")));
    }
    for (rule, at) in get::items(ingress, "spec.rules", &spec.child("rules")) {
        let host = text(rule, "host");
        let messages = match host {
            "" => Vec::new(),
            host if host.contains('*') => names::wildcard_dns1123_subdomain(host),
            host => names::dns1123_subdomain(host),
        };
        errors.extend(messages.into_iter().map(|m| Error::invalid(&at.child("host"), host, m)));
        let paths = at.child("http").child("paths");
        if has(rule, "http") && list(rule, "http.paths").is_empty() {
            errors.push(Error::required(&paths, ""));
        }
        for (item, at) in get::items(rule, "http.paths", &paths) {
            errors.extend(validate_path(item, &at));
        }
    }
    for (entry, at) in get::items(ingress, "spec.tls", &spec.child("tls")) {
        for (host, at) in get::items(entry, "hosts", &at.child("hosts")) {
            let host = host.as_str().unwrap_or_default();
            let messages = if host.contains('*') {
                names::wildcard_dns1123_subdomain(host)
            } else {
                names::dns1123_subdomain(host)
            };
            errors.extend(messages.into_iter().map(|m| Error::invalid(&at, host, m)));
        }
        let secret = text(entry, "secretName");
        if !secret.is_empty() {
            let messages = names::dns1123_subdomain(secret);
            errors.extend(messages.into_iter().map(|m| Error::invalid(&at.child("secretName"), secret, m)));
        }
    }
    if let Some(class) = at(ingress, "spec.ingressClassName").and_then(Value::as_str) {
        let messages = names::dns1123_subdomain(class);
        let at = spec.child("ingressClassName");
        errors.extend(messages.into_iter().map(|m| Error::invalid(&at, class, m)));
    }
    errors
}

fn validate_path(item: &Value, at: &Path) -> Errors {
    const TYPES: &[&str] = &["Exact", "ImplementationSpecific", "Prefix"];
    let mut errors = Errors::new();
    let value = text(item, "path");
    match text(item, "pathType") {
        "" => errors.push(Error::required(&at.child("pathType"), "pathType must be specified")),
        "Exact" | "Prefix" => {
            if !value.starts_with('/') {
                errors.push(Error::invalid(&at.child("path"), value, "must be an absolute path"));
            }
            for invalid in ["//", "/./", "/../", "%2f", "%2F"] {
                if value.contains(invalid) {
                    let detail = format!("must not contain '{invalid}'");
                    errors.push(Error::invalid(&at.child("path"), value, detail));
                }
            }
            for invalid in ["/..", "/."] {
                if value.ends_with(invalid) {
                    let detail = format!("cannot end with '{invalid}'");
                    errors.push(Error::invalid(&at.child("path"), value, detail));
                }
            }
        }
        "ImplementationSpecific" => {
            if !value.is_empty() && !value.starts_with('/') {
                errors.push(Error::invalid(&at.child("path"), value, "must be an absolute path"));
            }
        }
        other => errors.push(Error::not_supported(&at.child("pathType"), other, TYPES)),
    }
    errors.extend(validate_backend(item.get("backend").unwrap_or(&Value::Null), &at.child("backend")));
    errors
}

fn validate_backend(backend: &Value, at: &Path) -> Errors {
    let mut errors = Errors::new();
    match (has(backend, "resource"), has(backend, "service")) {
        (true, true) => {
            errors.push(Error::invalid(at, "", "cannot set both resource and service backends"));
        }
        (false, false) => errors.push(Error::required(at, "port name or number is required")),
        (false, true) => {
            let service = at.child("service");
            let name = text(backend, "service.name");
            if name.is_empty() {
                errors.push(Error::required(&service.child("name"), ""));
            } else {
                let messages = names::dns1123_label(name);
                errors.extend(messages.into_iter().map(|m| Error::invalid(&service.child("name"), name, m)));
            }
            let port = service.child("port");
            match (text(backend, "service.port.name"), number(backend, "service.port.number")) {
                ("", 0) => errors.push(Error::required(&port, "port name or number is required")),
                ("", n) => {
                    let messages = names::port_number(n);
                    errors.extend(messages.into_iter().map(|m| Error::invalid(&port.child("number"), n, m)));
                }
                (_, n) if n != 0 => {
                    errors.push(Error::invalid(at, "", "cannot set both port name & port number"));
                }
                (name, _) => {
                    let messages = names::port_name(name);
                    errors.extend(messages.into_iter().map(|m| Error::invalid(&port.child("name"), name, m)));
                }
            }
        }
        (true, false) => errors.extend(validate_resource(&backend["resource"], &at.child("resource"))),
    }
    errors
}

/// An object of the namespace that serves.
///
/// Upstream: pkg/apis/networking/validation/validation.go validateIngressTypedLocalObjectReference
fn validate_resource(reference: &Value, at: &Path) -> Errors {
    let mut errors = Errors::new();
    if let Some(group) = get::at(reference, "apiGroup").and_then(Value::as_str) {
        let messages = names::dns1123_subdomain(group);
        errors.extend(messages.into_iter().map(|m| Error::invalid(&at.child("apiGroup"), group, m)));
    }
    for field in ["kind", "name"] {
        let at = at.child(field);
        match text(reference, field) {
            "" => errors.push(Error::required(&at, "")),
            value => {
                let messages = names::path_segment(value);
                errors.extend(messages.into_iter().map(|m| Error::invalid(&at, value, m)));
            }
        }
    }
    errors
}
