//! Webhooks and policies that decide about requests.

pub mod mutatingadmissionpolicies;
pub mod mutatingadmissionpolicybindings;
pub mod mutatingwebhookconfigurations;
pub mod validatingadmissionpolicies;
pub mod validatingadmissionpolicybindings;
pub mod validatingwebhookconfigurations;

use crate::prelude::*;
use crate::validate::one_of;

const WEBHOOKS: Rules = Rules {
    default: default_webhooks,
    validate: validate_webhooks,
    generation: true,
    unconditional_update: false,
    ..Rules::PLAIN
};
const POLICY: Rules =
    Rules { default: default_policy, generation: true, unconditional_update: false, ..Rules::PLAIN };
const BINDING: Rules = Rules {
    default: |o| default_match(o, "spec.matchResources"),
    validate: validate_binding,
    generation: true,
    unconditional_update: false,
    ..Rules::PLAIN
};

/// Upstream: pkg/apis/admissionregistration/v1/defaults.go
fn default_webhooks(configuration: &mut Value) {
    for webhook in get::list_mut(configuration, "webhooks") {
        get::default(webhook, "failurePolicy", "Fail");
        get::default(webhook, "matchPolicy", "Equivalent");
        get::default(webhook, "namespaceSelector", json!({}));
        get::default(webhook, "objectSelector", json!({}));
        get::default(webhook, "timeoutSeconds", 10);
        for rule in get::list_mut(webhook, "rules") {
            get::default(rule, "scope", "*");
        }
        if has(webhook, "clientConfig.service") {
            get::default(webhook, "clientConfig.service.port", 443);
        }
    }
}

fn default_policy(policy: &mut Value) {
    get::default(policy, "spec.failurePolicy", "Fail");
    default_match(policy, "spec.matchConstraints");
}

fn default_match(object: &mut Value, path: &str) {
    if !has(object, path) {
        return;
    }
    get::default(object, &format!("{path}.matchPolicy"), "Equivalent");
    get::default(object, &format!("{path}.namespaceSelector"), json!({}));
    get::default(object, &format!("{path}.objectSelector"), json!({}));
    for rules in ["resourceRules", "excludeResourceRules"] {
        for rule in get::list_mut(object, &format!("{path}.{rules}")) {
            get::default(rule, "scope", "*");
        }
    }
}

/// Upstream: pkg/apis/admissionregistration/validation/validation.go validateWebhookConfiguration
fn validate_webhooks(configuration: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut seen = Vec::new();
    for (webhook, at) in get::items(configuration, "webhooks", &path("webhooks")) {
        let name = text(webhook, "name");
        if name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
        } else if let [message, ..] = names::dns1123_subdomain(name).as_slice() {
            errors.push(Error::invalid(&at.child("name"), name, message.as_str()));
        } else if name.split('.').count() < 3 {
            let detail = "should be a domain with at least three segments separated by dots";
            errors.push(Error::invalid(&at.child("name"), name, detail));
        }
        if seen.contains(&name) {
            errors.push(Error::duplicate(&at.child("name"), name));
        }
        seen.push(name);
        if list(webhook, "admissionReviewVersions").is_empty() {
            let versions = at.child("admissionReviewVersions");
            errors.push(Error::required(&versions, "must specify one of v1, v1beta1"));
        }
        let timeout = number(webhook, "timeoutSeconds");
        if !(1..=30).contains(&timeout) {
            let detail = "the timeout value must be between 1 and 30 seconds";
            errors.push(Error::invalid(&at.child("timeoutSeconds"), timeout, detail));
        }
        let failure = text(webhook, "failurePolicy");
        errors.extend(one_of(failure, &at.child("failurePolicy"), &["Fail", "Ignore"]));
        let matching = text(webhook, "matchPolicy");
        errors.extend(one_of(matching, &at.child("matchPolicy"), &["Equivalent", "Exact"]));
        match text(webhook, "sideEffects") {
            "" => {
                let detail = "must specify one of None, NoneOnDryRun";
                errors.push(Error::required(&at.child("sideEffects"), detail));
            }
            effects => errors.extend(one_of(effects, &at.child("sideEffects"), &["None", "NoneOnDryRun"])),
        }
        for field in ["namespaceSelector", "objectSelector"] {
            if let Some(value) = webhook.get(field) {
                errors.extend(crate::validate::selector(value, &at.child(field)));
            }
        }
        if has(webhook, "clientConfig.url") == has(webhook, "clientConfig.service") {
            let detail = "exactly one of url or service is required";
            errors.push(Error::required(&at.child("clientConfig"), detail));
        }
    }
    errors
}

fn validate_binding(binding: &Value) -> Errors {
    let mut errors = Errors::new();
    if text(binding, "spec.policyName").is_empty() {
        errors.push(Error::required(&path("spec.policyName"), ""));
    }
    errors
}

fn param_kind(policy: &Value) -> String {
    match at(policy, "spec.paramKind") {
        Some(kind) => format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind")),
        None => "<unset>".to_owned(),
    }
}

fn binding_cells(binding: &Value, now: i64) -> Vec<Cell> {
    let (name, namespace) = (text(binding, "spec.paramRef.name"), text(binding, "spec.paramRef.namespace"));
    let param = match (name, namespace) {
        ("", _) if has(binding, "spec.paramRef.selector") => {
            print::selector(binding, "spec.paramRef.selector")
        }
        ("", _) => "<unset>".to_owned(),
        (name, "") => format!("*/{name}"),
        (name, namespace) => format!("{namespace}/{name}"),
    };
    cells![get::name(binding), text(binding, "spec.policyName"), param, age(binding, now)]
}

fn webhook_cells(configuration: &Value, now: i64) -> Vec<Cell> {
    cells![get::name(configuration), get::len(configuration, "webhooks"), age(configuration, now)]
}
