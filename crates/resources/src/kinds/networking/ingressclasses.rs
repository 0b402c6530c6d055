//! IngressClass: which controller serves which Ingresses.

use crate::prelude::*;
use crate::validate::each;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("networking.k8s.io/v1", "IngressClass", "ingressclasses")
        .columns("Name,Controller,Parameters,Age", cells)
        .strategy(Rules { default, validate, validate_update, generation: true, ..Rules::PLAIN })
        .build()
}

fn cells(class: &Value, now: i64) -> Vec<Cell> {
    let annotations = at(class, "metadata.annotations");
    let marked = annotations.and_then(|a| a.get("ingressclass.kubernetes.io/is-default-class"));
    let name = get::name(class);
    let is_default = marked.and_then(Value::as_str) == Some("true");
    let parameters = match at(class, "spec.parameters") {
        None => "<none>".to_owned(),
        Some(p) if has(p, "apiGroup") => {
            format!("{}.{}/{}", text(p, "kind"), text(p, "apiGroup"), text(p, "name"))
        }
        Some(p) => format!("{}/{}", text(p, "kind"), text(p, "name")),
    };
    cells![
        if is_default { format!("{name} (default)") } else { name.to_owned() },
        text(class, "spec.controller"),
        parameters,
        age(class, now),
    ]
}

fn default(class: &mut Value) {
    if has(class, "spec.parameters") {
        get::default_absent(class, "spec.parameters.scope", "Cluster");
    }
}

/// Upstream: pkg/apis/networking/validation/validation.go validateIngressClassSpec
fn validate(class: &Value) -> Errors {
    let mut errors = Errors::new();
    let controller = text(class, "spec.controller");
    let at_controller = path("spec.controller");
    if controller.is_empty() {
        errors.push(Error::required(&at_controller, ""));
    } else if controller.len() > 250 {
        errors.push(Error::too_long(&at_controller, 250));
    } else {
        errors.extend(crate::validate::domain_prefixed_path(controller, &at_controller));
    }
    if let Some(parameters) = at(class, "spec.parameters") {
        errors.extend(validate_parameters(parameters, &path("spec.parameters")));
    }
    errors
}

fn validate_parameters(parameters: &Value, at: &Path) -> Errors {
    let mut errors = Errors::new();
    let group = text(parameters, "apiGroup");
    if has(parameters, "apiGroup") {
        errors.extend(each(names::dns1123_subdomain(group), &at.child("apiGroup"), group));
    }
    for field in ["kind", "name"] {
        let value = text(parameters, field);
        if value.is_empty() {
            errors.push(Error::required(&at.child(field), ""));
        } else {
            errors.extend(each(names::path_segment(value), &at.child(field), value));
        }
    }
    let namespace = text(parameters, "namespace");
    let at_namespace = at.child("namespace");
    match text(parameters, "scope") {
        "" => errors.push(Error::required(&at.child("scope"), "")),
        "Namespace" if namespace.is_empty() => {
            let detail = "`parameters.scope` is set to 'Namespace'";
            errors.push(Error::required(&at_namespace, detail));
        }
        "Namespace" => errors.extend(each(names::dns1123_label(namespace), &at_namespace, namespace)),
        "Cluster" if has(parameters, "namespace") => {
            let detail = "`parameters.scope` is set to 'Cluster'";
            errors.push(Error::forbidden(&at_namespace, detail));
        }
        "Cluster" => {}
        other => errors.push(Error::not_supported(&at.child("scope"), other, &["Cluster", "Namespace"])),
    }
    errors
}

fn validate_update(class: &Value, old: &Value) -> Errors {
    crate::validate::immutable(class, old, "spec.controller")
}
