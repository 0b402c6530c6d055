//! What the two kinds of webhook configurations share: defaults, validation and columns.
//!
//! Upstream: pkg/apis/admissionregistration/validation/validation.go, apiserver/pkg/util/webhook/validation.go

use super::expressions::{Compiler, Scope};
use crate::prelude::*;
use crate::validate::one_of;

pub(super) const RULES: Rules =
    Rules { default, validate, generation: true, unconditional_update: false, ..Rules::PLAIN };

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const MAX_CONDITIONS: usize = 64;

/// Upstream: pkg/apis/admissionregistration/v1/defaults.go
pub(super) fn default(configuration: &mut Value) {
    for webhook in get::list_mut(configuration, "webhooks") {
        get::default_absent(webhook, "failurePolicy", "Fail");
        get::default_absent(webhook, "matchPolicy", "Equivalent");
        get::default(webhook, "namespaceSelector", json!({}));
        get::default(webhook, "objectSelector", json!({}));
        get::default(webhook, "timeoutSeconds", 10);
        for rule in get::list_mut(webhook, "rules") {
            get::default_absent(rule, "scope", "*");
        }
        if has(webhook, "clientConfig.service") {
            get::default(webhook, "clientConfig.service.port", 443);
        }
    }
}

pub(super) fn cells(configuration: &Value, now: i64) -> Vec<Cell> {
    cells![get::name(configuration), get::len(configuration, "webhooks"), age(configuration, now)]
}

pub(super) fn validate(configuration: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut seen = Vec::new();
    for (webhook, at) in get::items(configuration, "webhooks", &path("webhooks")) {
        errors.extend(validate_webhook(webhook, &at));
        let versions = get::texts(webhook, "admissionReviewVersions");
        errors.extend(review_versions(&versions, &at.child("admissionReviewVersions")));
        let name = text(webhook, "name");
        if !name.is_empty() && seen.contains(&name) {
            errors.push(Error::duplicate(&at.child("name"), name));
        }
        seen.push(name);
    }
    errors
}

fn validate_webhook(webhook: &Value, at: &Path) -> Errors {
    let mut errors = fully_qualified(text(webhook, "name"), &at.child("name"));
    for (rule, at) in get::items(webhook, "rules", &at.child("rules")) {
        errors.extend(validate_rule(rule, &at));
    }
    for (field, supported) in [
        ("failurePolicy", ["Fail", "Ignore"]),
        ("matchPolicy", ["Equivalent", "Exact"]),
        ("sideEffects", ["None", "NoneOnDryRun"]),
        ("reinvocationPolicy", ["IfNeeded", "Never"]),
    ] {
        if let Some(value) = webhook.get(field).and_then(Value::as_str) {
            errors.extend(one_of(value, &at.child(field), &supported));
        } else if field == "sideEffects" {
            errors.push(Error::required(&at.child(field), "must specify one of None, NoneOnDryRun"));
        }
    }
    let timeout = number(webhook, "timeoutSeconds");
    if has(webhook, "timeoutSeconds") && !(1..=30).contains(&timeout) {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.push(Error::invalid(&at.child("timeoutSeconds"), timeout, detail));
    }
    for field in ["namespaceSelector", "objectSelector"] {
        if let Some(value) = webhook.get(field) {
            errors.extend(crate::validate::selector(value, &at.child(field)));
        }
    }
    errors.extend(client_config(webhook, &at.child("clientConfig")));
    errors.extend(match_conditions(
        webhook,
        &at.child("matchConditions"),
        Scope { authorizer: true, ..Scope::default() },
    ));
    errors
}

/// Upstream: apimachinery/pkg/util/validation/validation.go IsFullyQualifiedName
fn fully_qualified(name: &str, at: &Path) -> Errors {
    if name.is_empty() {
        return vec![Error::required(at, "")];
    }
    let messages = names::dns1123_subdomain(name);
    if !messages.is_empty() {
        return vec![Error::invalid(at, name, messages.join(","))];
    }
    if name.split('.').count() < 3 {
        let detail = "should be a domain with at least three segments separated by dots";
        return vec![Error::invalid(at, name, detail)];
    }
    Errors::new()
}

fn review_versions(versions: &[&str], at: &Path) -> Errors {
    if versions.is_empty() {
        return vec![Error::required(at, "must specify one of v1, v1beta1")];
    }
    let mut errors = Errors::new();
    for (index, version) in versions.iter().enumerate() {
        if versions[..index].contains(version) {
            errors.push(Error::invalid(&at.index(index), *version, "duplicate version"));
        } else {
            errors.extend(crate::validate::each(names::dns1035_label(version), &at.index(index), version));
        }
    }
    if !versions.iter().any(|version| matches!(*version, "v1" | "v1beta1")) {
        errors.push(Error::invalid(at, json!(versions), "must include at least one of v1, v1beta1"));
    }
    errors
}

/// One of a webhook's or a policy's rules.
pub(super) fn validate_rule(rule: &Value, at: &Path) -> Errors {
    let mut errors = Errors::new();
    for (field, what) in
        [("operations", "operations"), ("apiGroups", "API groups"), ("apiVersions", "API versions")]
    {
        let (values, at) = (get::texts(rule, field), at.child(field));
        if values.is_empty() {
            errors.push(Error::required(&at, ""));
        }
        if values.len() > 1 && values.contains(&"*") {
            let detail = format!("if '*' is present, must not specify other {what}");
            errors.push(Error::invalid(&at, json!(values), detail));
        }
        for (index, value) in values.iter().enumerate() {
            match field {
                "operations" => errors.extend(one_of(value, &at.index(index), &OPERATIONS)),
                "apiVersions" if value.is_empty() => errors.push(Error::required(&at.index(index), "")),
                _ => {}
            }
        }
    }
    errors.extend(resources(&get::texts(rule, "resources"), &at.child("resources")));
    if has(rule, "scope") {
        errors.extend(one_of(text(rule, "scope"), &at.child("scope"), &["*", "Cluster", "Namespaced"]));
    }
    errors
}

fn resources(resources: &[&str], at: &Path) -> Errors {
    let mut errors = Errors::new();
    if resources.is_empty() {
        errors.push(Error::required(at, ""));
    }
    for (index, resource) in resources.iter().enumerate() {
        if resource.is_empty() {
            errors.push(Error::required(&at.index(index), ""));
        }
        let Some((name, part)) = resource.split_once('/') else { continue };
        for wide in [format!("{name}/*"), format!("*/{part}")] {
            if resources[..index].contains(&wide.as_str()) {
                let detail = format!("if '{wide}' is present, must not specify {resource}");
                errors.push(Error::invalid(&at.index(index), *resource, detail));
            }
        }
    }
    if resources.len() > 1 && resources.contains(&"*/*") {
        let detail = "if '*/*' is present, must not specify other resources";
        errors.push(Error::invalid(at, json!(resources), detail));
    }
    let whole = |resource: &&str| !resource.contains('/') && !matches!(*resource, "*" | "");
    if resources.contains(&"*") && resources.iter().any(whole) {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.push(Error::invalid(at, json!(resources), detail));
    }
    errors
}

pub(crate) fn client_config(webhook: &Value, at: &Path) -> Errors {
    let (url, service) = (has(webhook, "clientConfig.url"), has(webhook, "clientConfig.service"));
    match (url, service) {
        (true, false) => validate_url(text(webhook, "clientConfig.url"), &at.child("url")),
        (false, true) => validate_service(webhook, &at.child("service")),
        _ => vec![Error::required(at, "exactly one of url or service is required")],
    }
}

fn validate_url(url: &str, at: &Path) -> Errors {
    const FORM: &str = "; desired format: https://host[/path]";
    let mut errors = Errors::new();
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or_default() };
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if scheme != "https" {
        errors.push(Error::invalid(at, scheme, format!("'https' is the only allowed URL scheme{FORM}")));
    }
    if host.is_empty() {
        errors.push(Error::invalid(at, host, format!("host must be specified{FORM}")));
    }
    for (part, detail) in [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            errors.push(Error::invalid(at, part, detail));
        }
    }
    errors
}

fn validate_service(webhook: &Value, at: &Path) -> Errors {
    let mut errors = Errors::new();
    for field in ["name", "namespace"] {
        if text(webhook, &format!("clientConfig.service.{field}")).is_empty() {
            errors.push(Error::required(&at.child(field), ""));
        }
    }
    let port = number(webhook, "clientConfig.service.port");
    let messages = names::port_number(port);
    if !messages.is_empty() {
        let detail = format!("port is not valid: {}", messages.join(", "));
        errors.push(Error::invalid(&at.child("port"), port, detail));
    }
    errors.extend(validate_path(text(webhook, "clientConfig.service.path"), &at.child("path")));
    errors
}

fn validate_path(url_path: &str, at: &Path) -> Errors {
    let mut errors = Errors::new();
    if matches!(url_path, "" | "/") {
        return errors;
    }
    if url_path == "//" {
        return vec![Error::invalid(at, url_path, "segment[0] may not be empty")];
    }
    if !url_path.starts_with('/') {
        errors.push(Error::invalid(at, url_path, "must start with a '/'"));
    }
    let steps = url_path.strip_prefix('/').unwrap_or(url_path);
    let steps = steps.strip_suffix('/').unwrap_or(steps);
    for (index, step) in steps.split('/').enumerate() {
        if step.is_empty() {
            errors.push(Error::invalid(at, url_path, format!("segment[{index}] may not be empty")));
            continue;
        }
        for message in names::dns1123_subdomain(step) {
            errors.push(Error::invalid(at, url_path, format!("segment[{index}]: {message}")));
        }
    }
    errors
}

/// Names and number of conditions; what they say is read where they are evaluated.
/// Conditions of a webhook or a policy, whose expressions see what the scope says.
pub(super) fn match_conditions(webhook: &Value, at: &Path, scope: Scope) -> Errors {
    let conditions = list(webhook, "matchConditions");
    if conditions.len() > MAX_CONDITIONS {
        return vec![Error::too_many(at, conditions.len(), MAX_CONDITIONS)];
    }
    let mut errors = Errors::new();
    let mut seen = Vec::new();
    for (condition, at) in get::items(webhook, "matchConditions", at) {
        let name = text(condition, "name");
        let expression = text(condition, "expression").trim();
        if expression.is_empty() {
            errors.push(Error::required(&at.child("expression"), ""));
        } else if let Err(why) = Compiler::plain().compile(expression, scope, &[cel::Type::Bool]) {
            errors.push(Error::invalid(&at.child("expression"), expression, why));
        }
        if name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
            continue;
        }
        errors.extend(crate::validate::each(names::qualified_name(name), &at.child("name"), name));
        if seen.contains(&name) {
            errors.push(Error::duplicate(&at.child("name"), name));
        }
        seen.push(name);
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(change: &[(&str, Value)]) -> Value {
        let mut webhook = json!({
            "name": "a.b.c", "clientConfig": {"url": "https://host/path"}, "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        });
        for (at, value) in change {
            set(&mut webhook, at, value.clone());
        }
        let mut configuration = json!({"webhooks": [webhook]});
        default(&mut configuration);
        configuration
    }

    fn rule(field: &str, value: Value) -> (&'static str, Value) {
        let mut rule = json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]});
        rule[field] = value;
        ("rules", json!([rule]))
    }

    #[test]
    fn webhooks_are_validated_in_upstreams_words() {
        let service = |path: &str| json!({"service": {"name": "n", "namespace": "s", "path": path}});
        for (change, expected) in [
            (("name", json!("a.b.c")), ""),
            (
                ("name", json!("a.b")),
                r#"webhooks[0].name: Invalid value: "a.b": should be a domain with at least three segments separated by dots"#,
            ),
            (
                ("sideEffects", json!("Some")),
                r#"webhooks[0].sideEffects: Unsupported value: "Some": supported values: "None", "NoneOnDryRun""#,
            ),
            (
                ("timeoutSeconds", json!(31)),
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            ),
            (
                ("admissionReviewVersions", json!(["v2"])),
                r#"webhooks[0].admissionReviewVersions: Invalid value: ["v2"]: must include at least one of v1, v1beta1"#,
            ),
            (
                ("clientConfig", json!({})),
                "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
            ),
            (
                ("clientConfig", json!({"url": "http://h/?a=b"})),
                r#"webhooks[0].clientConfig.url: Invalid value: "http": 'https' is the only allowed URL scheme; desired format: https://host[/path], webhooks[0].clientConfig.url: Invalid value: "a=b": query parameters are not permitted in the URL"#,
            ),
            (
                ("clientConfig", service("/a//b")),
                r#"webhooks[0].clientConfig.service.path: Invalid value: "/a//b": segment[1] may not be empty"#,
            ),
            (("clientConfig", service("/ok/")), ""),
            (
                rule("operations", json!(["*", "CREATE"])),
                r#"webhooks[0].rules[0].operations: Invalid value: ["*","CREATE"]: if '*' is present, must not specify other operations"#,
            ),
            (
                rule("resources", json!(["pods/*", "pods/log"])),
                r#"webhooks[0].rules[0].resources[1]: Invalid value: "pods/log": if 'pods/*' is present, must not specify pods/log"#,
            ),
            (
                rule("resources", json!(["*", "pods"])),
                r#"webhooks[0].rules[0].resources: Invalid value: ["*","pods"]: if '*' is present, must not specify other resources without subresources"#,
            ),
            (rule("resources", json!(["*", "*/scale"])), ""),
            (
                (
                    "matchConditions",
                    json!([{"name": "a", "expression": "true"}, {"name": "a", "expression": ""}]),
                ),
                r#"webhooks[0].matchConditions[1].expression: Required value, webhooks[0].matchConditions[1].name: Duplicate value: "a""#,
            ),
        ] {
            let errors = validate(&webhook(&[change]));
            let got: Vec<String> =
                errors.iter().map(|error| format!("{}: {}", error.cause().field, error.body())).collect();
            assert_eq!(got.join(", "), expected);
        }
    }
}
