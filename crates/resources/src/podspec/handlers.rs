//! Probes and lifecycle hooks.
//!
//! Upstream: pkg/apis/core/validation/validation.go validateHandler, validateProbe

use apimachinery::field::{Error, Path};
use apimachinery::names;
use serde_json::Value;

use crate::get::{Errors, at, has, int, list, number, text};
use crate::validate::{each, non_negative_at, one_of, port_number, port_number_or_name};

/// Which of a container's probes.
#[derive(Clone, Copy, PartialEq)]
pub enum Probe {
    Liveness,
    Readiness,
    Startup,
}

pub fn validate_probes(container: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (field, kind) in [
        ("livenessProbe", Probe::Liveness),
        ("readinessProbe", Probe::Readiness),
        ("startupProbe", Probe::Startup),
    ] {
        if let Some(probe) = at(container, field) {
            errors.extend(validate_probe(probe, kind, &path.child(field)));
        }
    }
    errors
}

fn validate_probe(probe: &Value, kind: Probe, path: &Path) -> Errors {
    const COUNTS: &[&str] =
        &["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];
    let mut errors = validate_handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], None, path);
    for field in COUNTS {
        errors.extend(non_negative_at(probe, field, &path.child(field)));
    }
    let grace = int(probe, "terminationGracePeriodSeconds");
    let at_grace = path.child("terminationGracePeriodSeconds");
    if let Some(seconds) = grace.filter(|s| *s <= 0) {
        errors.push(Error::invalid(&at_grace, seconds, "must be greater than 0"));
    }
    if kind == Probe::Readiness {
        if let Some(seconds) = grace {
            errors.push(Error::invalid(&at_grace, seconds, "must not be set for readinessProbes"));
        }
    } else if number(probe, "successThreshold") != 1 {
        let value = number(probe, "successThreshold");
        errors.push(Error::invalid(&path.child("successThreshold"), value, "must be 1"));
    }
    errors
}

pub fn validate_lifecycle(
    lifecycle: &Value,
    grace_period_seconds: Option<i64>,
    os: &str,
    path: &Path,
) -> Errors {
    let mut errors = Errors::new();
    for field in ["postStart", "preStop"] {
        if let Some(hook) = at(lifecycle, field) {
            let kinds = &["exec", "httpGet", "tcpSocket", "sleep"];
            errors.extend(validate_handler(hook, kinds, grace_period_seconds, &path.child(field)));
        }
    }
    if has(lifecycle, "stopSignal") {
        let signal = text(lifecycle, "stopSignal");
        let at_signal = path.child("stopSignal");
        if os.is_empty() {
            let detail = "may not be set for containers with empty `spec.os.name`";
            errors.push(Error::forbidden(&at_signal, detail));
        } else if !signal.starts_with("SIG") {
            errors.push(Error::not_supported(&at_signal, signal, &["SIGKILL", "SIGTERM"]));
        }
    }
    errors
}

/// Exactly one of the kinds of handlers, and that one well-formed.
fn validate_handler(handler: &Value, kinds: &[&str], grace: Option<i64>, path: &Path) -> Errors {
    let given: Vec<&&str> = kinds.iter().filter(|kind| has(handler, kind)).collect();
    let Some((first, rest)) = given.split_first() else {
        return vec![Error::required(path, "must specify a handler type")];
    };
    let at_first = path.child(first);
    let action = &handler[**first];
    let mut errors = match **first {
        "exec" if list(action, "command").is_empty() => vec![Error::required(&at_first.child("command"), "")],
        "httpGet" => validate_http_get(action, &at_first),
        "tcpSocket" => port_number_or_name(action.get("port"), &at_first.child("port")),
        "grpc" => port_number(number(action, "port"), &at_first.child("port")),
        "sleep" => validate_sleep(number(action, "seconds"), grace, &at_first),
        _ => Errors::new(),
    };
    for kind in rest {
        errors.push(Error::forbidden(&path.child(kind), "may not specify more than 1 handler type"));
    }
    errors
}

fn validate_http_get(action: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if text(action, "path").is_empty() {
        errors.push(Error::required(&path.child("path"), ""));
    }
    errors.extend(port_number_or_name(action.get("port"), &path.child("port")));
    errors.extend(one_of(text(action, "scheme"), &path.child("scheme"), &["HTTP", "HTTPS"]));
    for header in list(action, "httpHeaders") {
        let name = text(header, "name");
        errors.extend(each(names::http_header_name(name), &path.child("httpHeaders"), name));
    }
    errors
}

fn validate_sleep(seconds: i64, grace: Option<i64>, path: &Path) -> Errors {
    match grace {
        Some(grace) if seconds < 0 || seconds > grace => {
            let detail =
                format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
            vec![Error::invalid(path, seconds, detail)]
        }
        _ => Errors::new(),
    }
}
