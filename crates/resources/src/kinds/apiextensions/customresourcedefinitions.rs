//! CustomResourceDefinition: a kind that users add.

use crate::prelude::*;
use crate::validate::one_of;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions")
        .short(&["crd", "crds"])
        .category("api-extensions")
        .status()
        .prefix("apiextensions.k8s.io/customresourcedefinitions")
        .strategy(Rules { default, validate, validate_update, generation: true, ..Rules::PLAIN })
        .build()
}

/// Upstream: apiextensions-apiserver/pkg/apis/apiextensions/v1/defaults.go
fn default(definition: &mut Value) {
    let kind = text(definition, "spec.names.kind").to_owned();
    if !kind.is_empty() {
        get::default(definition, "spec.names.singular", kind.to_lowercase());
        get::default(definition, "spec.names.listKind", format!("{kind}List"));
    }
    get::default(definition, "spec.conversion.strategy", "None");
    if has(definition, "spec.conversion.webhook.clientConfig.service") {
        get::default(definition, "spec.conversion.webhook.clientConfig.service.port", 443);
    }
}

/// Upstream: apiextensions-apiserver/pkg/apis/apiextensions/validation/validation.go
fn validate(definition: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = path("spec");
    let (group, plural) = (text(definition, "spec.group"), text(definition, "spec.names.plural"));
    let required = format!("{plural}.{group}");
    if get::name(definition) != required {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.push(Error::invalid(&path("metadata.name"), get::name(definition), detail));
    }
    if group.is_empty() {
        errors.push(Error::required(&spec.child("group"), ""));
    } else if let messages @ [_, ..] = names::dns1123_subdomain(group).as_slice() {
        errors.push(Error::invalid(&spec.child("group"), group, messages.join(",")));
    } else if !group.contains('.') {
        let detail = "should be a domain with at least one dot";
        errors.push(Error::invalid(&spec.child("group"), group, detail));
    }
    match text(definition, "spec.scope") {
        "" => errors.push(Error::required(&spec.child("scope"), "")),
        scope => errors.extend(one_of(scope, &spec.child("scope"), &["Cluster", "Namespaced"])),
    }
    errors.extend(validate_names(definition, &spec.child("names")));
    errors.extend(validate_versions(definition, &spec.child("versions")));
    let strategy = text(definition, "spec.conversion.strategy");
    let at = spec.child("conversion");
    errors.extend(one_of(strategy, &at.child("strategy"), &["None", "Webhook"]));
    if strategy == "Webhook" && !has(definition, "spec.conversion.webhook.clientConfig") {
        let detail = "required when strategy is set to Webhook";
        errors.push(Error::required(&at.child("webhookClientConfig"), detail));
    }
    errors
}

fn validate_names(definition: &Value, at: &Path) -> Errors {
    let mut errors = Errors::new();
    for field in ["plural", "singular", "kind", "listKind"] {
        let value = text(definition, &format!("spec.names.{field}"));
        if value.is_empty() {
            errors.push(Error::required(&at.child(field), ""));
            continue;
        }
        let messages = names::dns1035_label(&value.to_lowercase());
        if !messages.is_empty() {
            errors.push(Error::invalid(&at.child(field), value, messages.join(",")));
        }
    }
    let (kind, list_kind) = (text(definition, "spec.names.kind"), text(definition, "spec.names.listKind"));
    if !kind.is_empty() && kind == list_kind {
        errors.push(Error::invalid(
            &at.child("listKind"),
            list_kind,
            "kind and listKind may not be the same",
        ));
    }
    for field in ["shortNames", "categories"] {
        for (value, at) in get::items(definition, &format!("spec.names.{field}"), &at.child(field)) {
            let value = value.as_str().unwrap_or_default();
            let messages = names::dns1035_label(value);
            if !messages.is_empty() {
                errors.push(Error::invalid(&at, value, messages.join(",")));
            }
        }
    }
    errors
}

fn validate_versions(definition: &Value, at: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen = Vec::new();
    let mut stored = 0;
    for (version, at) in get::items(definition, "spec.versions", at) {
        let name = text(version, "name");
        if seen.contains(&name) {
            let value = "must contain unique version names";
            errors.push(Error::invalid(&at.child("name"), name, value));
        }
        seen.push(name);
        let messages = names::dns1035_label(name);
        if !messages.is_empty() {
            errors.push(Error::invalid(&at.child("name"), name, messages.join(",")));
        }
        stored += usize::from(is_true(version, "storage"));
        if !has(version, "schema.openAPIV3Schema") {
            let at = at.child("schema").child("openAPIV3Schema");
            errors.push(Error::required(&at, "schemas are required"));
        } else if text(version, "schema.openAPIV3Schema.type") != "object" {
            let at = at.child("schema").child("openAPIV3Schema").child("type");
            match text(version, "schema.openAPIV3Schema.type") {
                "" => errors.push(Error::required(&at, "must not be empty at the root")),
                kind => errors.push(Error::invalid(&at, kind, "must be object at the root")),
            }
        }
    }
    if stored != 1 {
        let value = at_versions(definition);
        let detail = "must have exactly one version marked as storage version";
        errors.push(Error::invalid(at, value, detail));
    }
    errors
}

fn at_versions(definition: &Value) -> Value {
    let versions = list(definition, "spec.versions").iter().map(|v| Value::from(text(v, "name")));
    versions.collect()
}

fn validate_update(definition: &Value, old: &Value) -> Errors {
    let established = list(old, "status.conditions")
        .iter()
        .any(|c| text(c, "type") == "Established" && text(c, "status") == "True");
    let mut errors = crate::validate::immutable(definition, old, "spec.group");
    errors.extend(crate::validate::immutable(definition, old, "spec.names.plural"));
    if established {
        errors.extend(crate::validate::immutable(definition, old, "spec.scope"));
        errors.extend(crate::validate::immutable(definition, old, "spec.names.kind"));
    }
    errors
}
