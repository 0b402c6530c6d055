//! IngressClass: which controller serves which Ingresses.

use crate::prelude::*;

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
        get::default(class, "spec.parameters.scope", "Cluster");
    }
}

fn validate(class: &Value) -> Errors {
    let controller = text(class, "spec.controller");
    if controller.is_empty() {
        return vec![Error::required(&path("spec.controller"), "")];
    }
    let good = controller
        .split_once('/')
        .is_some_and(|(host, rest)| names::dns1123_subdomain(host).is_empty() && !rest.is_empty());
    if good {
        return Errors::new();
    }
    let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
    vec![Error::invalid(&path("spec.controller"), controller, detail)]
}

fn validate_update(class: &Value, old: &Value) -> Errors {
    crate::validate::immutable(class, old, "spec.controller")
}
