//! What the two kinds of policies and their bindings share: defaults, validation and columns.
//!
//! Upstream: pkg/apis/admissionregistration/validation/validation.go

use cel::Type;

use super::expressions::{Compiled, Compiler, Scope};
use super::webhooks::{match_conditions, validate_rule};
use crate::prelude::*;
use crate::validate::one_of;

const MAX_AUDIT_ANNOTATIONS: usize = 20;
const MAX_AUDIT_EXPRESSION_BYTES: usize = 5 * 1024;

/// Upstream: pkg/apis/admissionregistration/v1/defaults.go
pub(super) fn default_policy(policy: &mut Value) {
    get::default_absent(policy, "spec.failurePolicy", "Fail");
    default_match(policy, "spec.matchConstraints");
}

pub(super) fn default_binding(binding: &mut Value) {
    default_match(binding, "spec.matchResources");
}

fn default_match(object: &mut Value, path: &str) {
    if !has(object, path) {
        return;
    }
    get::default_absent(object, &format!("{path}.matchPolicy"), "Equivalent");
    get::default(object, &format!("{path}.namespaceSelector"), json!({}));
    get::default(object, &format!("{path}.objectSelector"), json!({}));
    for rules in ["resourceRules", "excludeResourceRules"] {
        for rule in get::list_mut(object, &format!("{path}.{rules}")) {
            get::default_absent(rule, "scope", "*");
        }
    }
}

/// A text that compiled is not reported; one that did not is, as upstream's words have it.
fn report(compiled: Compiled, text: &str, at: &Path) -> Errors {
    match compiled {
        Ok(_) => Errors::new(),
        Err(why) => vec![Error::invalid(at, text, why)],
    }
}

fn scope_of(spec: &Value) -> Scope {
    Scope { params: has(spec, "paramKind"), authorizer: true, patches: false }
}

/// What both kinds of policies have, and the compiler that knows their variables.
fn validate_common(spec: &Value, at: &Path) -> (Compiler, Errors) {
    let mut errors = one_of(text(spec, "failurePolicy"), &at.child("failurePolicy"), &["Fail", "Ignore"]);
    if let Some(kind) = spec.get("paramKind") {
        errors.extend(param_kind(kind, &at.child("paramKind")));
    }
    let constraints = at.child("matchConstraints");
    match spec.get("matchConstraints") {
        None => errors.push(Error::required(&constraints, "")),
        Some(resources) => {
            errors.extend(match_resources(resources, &constraints));
            if get::len(resources, "resourceRules") == 0 {
                errors.push(Error::required(&constraints.child("resourceRules"), ""));
            }
        }
    }
    let scope = scope_of(spec);
    errors.extend(match_conditions(spec, &at.child("matchConditions"), scope));
    let mut compiler = Compiler::composited();
    for (variable, at) in get::items(spec, "variables", &at.child("variables")) {
        let (name, expression) = (text(variable, "name"), text(variable, "expression"));
        if name.trim().is_empty() {
            errors.push(Error::required(&at.child("name"), "name is not specified"));
        } else if !is_identifier(name) {
            errors.push(Error::invalid(&at.child("name"), name, "must be a valid CEL identifier"));
        }
        let at = at.child("expression");
        if expression.trim().is_empty() {
            errors.push(Error::required(&at, "expression is not specified"));
        } else {
            errors.extend(report(compiler.variable(name, expression, scope), expression, &at));
        }
    }
    (compiler, errors)
}

fn is_identifier(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && cel::escape(name).is_some_and(|escaped| escaped == name || name.contains("__"))
}

pub(super) fn validate_validating(policy: &Value) -> Errors {
    let at = path("spec");
    let spec = &policy["spec"];
    let (compiler, mut errors) = validate_common(spec, &at);
    let scope = scope_of(spec);
    let audits = get::len(spec, "auditAnnotations");
    if get::len(spec, "validations") == 0 && audits == 0 {
        for field in ["validations", "auditAnnotations"] {
            let detail = "validations or auditAnnotations must contain at least one item";
            errors.push(Error::required(&at.child(field), detail));
        }
        return errors;
    }
    for (validation, at) in get::items(spec, "validations", &at.child("validations")) {
        errors.extend(validate_validation(&compiler, validation, &at, scope));
    }
    let annotations = at.child("auditAnnotations");
    if audits > MAX_AUDIT_ANNOTATIONS {
        let detail = format!("must not have more than {MAX_AUDIT_ANNOTATIONS} auditAnnotations");
        errors.push(Error::invalid(&annotations, spec["auditAnnotations"].clone(), detail));
    }
    let mut seen = Vec::new();
    for (annotation, at) in get::items(spec, "auditAnnotations", &annotations) {
        errors.extend(audit_annotation(&compiler, policy, annotation, &at, scope));
        let key = text(annotation, "key");
        if seen.contains(&key) {
            errors.push(Error::duplicate(&at.child("key"), key));
        }
        seen.push(key);
    }
    errors
}

fn validate_validation(compiler: &Compiler, validation: &Value, at: &Path, scope: Scope) -> Errors {
    let mut errors = Errors::new();
    let expression = text(validation, "expression");
    if expression.trim().is_empty() {
        errors.push(Error::required(&at.child("expression"), "expression is not specified"));
    } else {
        let compiled = compiler.compile(expression, scope, &[Type::Bool]);
        errors.extend(report(compiled, expression, &at.child("expression")));
    }
    let message = text(validation, "messageExpression");
    if !message.is_empty() && message.trim().is_empty() {
        let detail = "must be non-empty if specified";
        errors.push(Error::invalid(&at.child("messageExpression"), message, detail));
    } else if !message.is_empty() {
        let compiled = compiler.compile(message, Scope { authorizer: false, ..scope }, &[Type::String]);
        errors.extend(report(compiled, message, &at.child("messageExpression")));
    }
    let message = text(validation, "message");
    if !message.is_empty() && message.trim().is_empty() {
        errors.push(Error::invalid(&at.child("message"), message, "must be non-empty if specified"));
    } else if message.trim().contains(['\n', '\r']) {
        errors.push(Error::invalid(&at.child("message"), message, "must not contain line breaks"));
    }
    if has(validation, "reason") {
        let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
        errors.extend(one_of(text(validation, "reason"), &at.child("reason"), &reasons));
    }
    errors
}

fn audit_annotation(
    compiler: &Compiler,
    policy: &Value,
    annotation: &Value,
    at: &Path,
    scope: Scope,
) -> Errors {
    let (name, key) = (get::name(policy), text(annotation, "key"));
    let whole = format!("{name}/{key}");
    let mut errors = crate::validate::each(names::qualified_name(&whole), &at.child("key"), &whole);
    let expression = text(annotation, "valueExpression").trim();
    let at = at.child("valueExpression");
    if expression.is_empty() {
        errors.push(Error::required(&at, "valueExpression is not specified"));
    } else if expression.len() > MAX_AUDIT_EXPRESSION_BYTES {
        let detail = format!("must not exceed {MAX_AUDIT_EXPRESSION_BYTES} bytes in length");
        errors.push(Error::required(&at, detail));
    } else {
        let compiled = compiler.compile(expression, scope, &[Type::String, Type::Null]);
        errors.extend(report(compiled, text(annotation, "valueExpression"), &at));
    }
    errors
}

pub(super) fn validate_mutating(policy: &Value) -> Errors {
    let at = path("spec");
    let spec = &policy["spec"];
    let (compiler, mut errors) = validate_common(spec, &at);
    let operations = at.child("matchConstraints").child("resourceRules").child("operations");
    for rule in get::list(spec, "matchConstraints.resourceRules") {
        for operation in get::texts(rule, "operations") {
            errors.extend(one_of(operation, &operations, &["CREATE", "UPDATE"]));
        }
    }
    let scope = Scope { patches: true, ..scope_of(spec) };
    if get::len(spec, "mutations") == 0 {
        errors.push(Error::required(&at.child("mutations"), "mutations must contain at least one item"));
    }
    for (mutation, at) in get::items(spec, "mutations", &at.child("mutations")) {
        errors.extend(validate_mutation(&compiler, mutation, &at, scope));
    }
    let reinvocation = at.child("reinvocationPolicy");
    match text(spec, "reinvocationPolicy") {
        "" => errors.push(Error::required(&reinvocation, "")),
        policy => errors.extend(one_of(policy, &reinvocation, &["IfNeeded", "Never"])),
    }
    errors
}

fn validate_mutation(compiler: &Compiler, mutation: &Value, at: &Path, scope: Scope) -> Errors {
    let kind = text(mutation, "patchType");
    let (own, other, ty) = match kind {
        "" => return vec![Error::required(&at.child("patchType"), "")],
        "JSONPatch" => ("jsonPatch", "applyConfiguration", Type::list(Type::object("JSONPatch", []))),
        "ApplyConfiguration" => ("applyConfiguration", "jsonPatch", Type::object("Object", [])),
        kind => return one_of(kind, &at.child("patchType"), &["ApplyConfiguration", "JSONPatch"]),
    };
    let mut errors = Errors::new();
    let patch = at.child(own);
    match mutation.get(own) {
        None => {
            errors.push(Error::required(&patch, format!("must be specified when patchType is {kind}")));
        }
        Some(configuration) => {
            let expression = text(configuration, "expression").trim();
            let at = patch.child("expression");
            if expression.is_empty() {
                errors.push(Error::required(&at, ""));
            } else {
                errors.extend(report(compiler.compile(expression, scope, &[ty]), expression, &at));
            }
        }
    }
    if has(mutation, other) {
        let detail = format!("must not be specified when patchType is {kind}");
        errors.push(Error::invalid(&at.child(other), format!("{{{other}}}"), detail));
    }
    errors
}

fn param_kind(kind: &Value, at: &Path) -> Errors {
    let mut errors = Errors::new();
    let version_at = at.child("apiVersion");
    let api_version = text(kind, "apiVersion");
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if api_version.is_empty() {
        errors.push(Error::required(&version_at, ""));
    } else if version.contains('/') {
        let detail = format!("unexpected GroupVersion string: {api_version}");
        errors.push(Error::invalid(&version_at, api_version, detail));
    } else {
        let problems = if group.is_empty() { Vec::new() } else { names::dns1123_subdomain(group) };
        if !problems.is_empty() {
            errors.push(Error::invalid(&version_at, group, problems.join(",")));
        }
        let problems = names::dns1035_label(version);
        if version.is_empty() {
            errors.push(Error::invalid(&version_at, api_version, "version must be specified"));
        } else if !problems.is_empty() {
            errors.push(Error::invalid(&version_at, version, problems.join(",")));
        }
    }
    let name = text(kind, "kind");
    let problems = names::dns1035_label(&name.to_lowercase());
    if name.is_empty() {
        errors.push(Error::required(&at.child("kind"), ""));
    } else if !problems.is_empty() {
        let detail = format!("may have mixed case, but should otherwise match: {}", problems.join(","));
        errors.push(Error::invalid(&at.child("kind"), name, detail));
    }
    errors
}

fn match_resources(resources: &Value, at: &Path) -> Errors {
    let mut errors =
        one_of(text(resources, "matchPolicy"), &at.child("matchPolicy"), &["Equivalent", "Exact"]);
    for field in ["namespaceSelector", "objectSelector"] {
        match resources.get(field) {
            None => errors.push(Error::required(&at.child(field), "")),
            Some(selector) => errors.extend(crate::validate::selector(selector, &at.child(field))),
        }
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (rule, at) in get::items(resources, field, &at.child(field)) {
            let named = get::texts(rule, "resourceNames");
            for (index, name) in named.iter().enumerate() {
                let at = at.child("resourceNames").index(index);
                errors.extend(crate::validate::each(names::path_segment(name), &at, name));
                if named[..index].contains(name) {
                    errors.push(Error::duplicate(&at, *name));
                }
            }
            errors.extend(validate_rule(rule, &at));
        }
    }
    errors
}

pub(super) fn validate_validating_binding(binding: &Value) -> Errors {
    let mut errors = validate_binding(binding);
    let at = path("spec.validationActions");
    let actions = get::texts(binding, "spec.validationActions");
    for (index, action) in actions.iter().enumerate() {
        errors.extend(one_of(action, &at.index(index), &["Audit", "Deny", "Warn"]));
        if actions[..index].contains(action) {
            errors.push(Error::duplicate(&at.index(index), *action));
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the \
                      API response and headers serves no purpose)";
        errors.push(Error::invalid(&at, json!(actions), detail));
    }
    if actions.is_empty() {
        errors.push(Error::required(&at, "at least one validation action is required"));
    }
    errors
}

pub(super) fn validate_binding(binding: &Value) -> Errors {
    let at = path("spec");
    let mut errors = Errors::new();
    let policy = text(binding, "spec.policyName");
    if policy.is_empty() {
        errors.push(Error::required(&at.child("policyName"), ""));
    } else {
        errors.extend(crate::validate::each(
            names::dns1123_subdomain(policy),
            &at.child("policyName"),
            policy,
        ));
    }
    if let Some(reference) = crate::get::at(binding, "spec.paramRef") {
        errors.extend(param_ref(reference, &at.child("paramRef")));
    }
    if let Some(resources) = crate::get::at(binding, "spec.matchResources") {
        errors.extend(match_resources(resources, &at.child("matchResources")));
    }
    errors
}

fn param_ref(reference: &Value, at: &Path) -> Errors {
    let mut errors = Errors::new();
    let name = text(reference, "name");
    let selector = reference.get("selector");
    let exclusive = "name and selector are mutually exclusive";
    if !name.is_empty() {
        errors.extend(crate::validate::each(names::path_segment(name), &at.child("name"), name));
        if selector.is_some() {
            errors.push(Error::forbidden(&at.child("name"), exclusive));
        }
    }
    if let Some(selector) = selector {
        errors.extend(crate::validate::selector(selector, &at.child("selector")));
        if !name.is_empty() {
            errors.push(Error::forbidden(&at.child("selector"), exclusive));
        }
    }
    if name.is_empty() && selector.is_none() {
        errors.push(Error::required(at, "one of name or selector must be specified"));
    }
    let action = at.child("parameterNotFoundAction");
    match text(reference, "parameterNotFoundAction") {
        "" => errors.push(Error::required(&action, "")),
        value => errors.extend(one_of(value, &action, &["Deny", "Allow"])),
    }
    errors
}

pub(super) fn param_kind_cell(policy: &Value) -> String {
    match crate::get::at(policy, "spec.paramKind") {
        Some(kind) => format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind")),
        None => "<unset>".to_owned(),
    }
}

pub(super) fn binding_cells(binding: &Value, now: i64) -> Vec<Cell> {
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
