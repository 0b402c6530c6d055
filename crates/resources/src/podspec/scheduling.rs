//! Where a pod may run: affinity, tolerations, spreading, gates.
//!
//! Upstream: pkg/apis/core/validation/validation.go validateAffinity, ValidateTolerations,
//! validateTopologySpreadConstraints

use apimachinery::field::{Error, Path};
use apimachinery::names;
use serde_json::Value;

use crate::get::{self, Errors, at, has, int, list, number, text, texts};
use crate::validate::{each, one_of, positive, selector, taint_effect};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub fn validate_affinity(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let Some(affinity) = at(spec, "affinity") else { return errors };
    if let Some(node) = at(affinity, "nodeAffinity") {
        errors.extend(validate_node_affinity(node, &path.child("nodeAffinity")));
    }
    for field in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = at(affinity, field) else { continue };
        let path = path.child(field);
        for (term, at) in get::items(pods, REQUIRED, &path.child(REQUIRED)) {
            errors.extend(validate_pod_term(term, &at));
        }
        for (weighted, at_term) in get::items(pods, PREFERRED, &path.child(PREFERRED)) {
            errors.extend(validate_weight(weighted, &at_term));
            let term = weighted.get("podAffinityTerm").unwrap_or(&Value::Null);
            errors.extend(validate_pod_term(term, &at_term.child("podAffinityTerm")));
        }
    }
    errors
}

fn validate_weight(weighted: &Value, at: &Path) -> Errors {
    let weight = number(weighted, "weight");
    if (1..=100).contains(&weight) {
        return Errors::new();
    }
    vec![Error::invalid(&at.child("weight"), weight, "must be in the range 1-100")]
}

fn validate_node_affinity(node: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if let Some(required) = at(node, REQUIRED) {
        errors.extend(validate_node_selector(required, &path.child(REQUIRED)));
    }
    for (weighted, at_term) in get::items(node, PREFERRED, &path.child(PREFERRED)) {
        errors.extend(validate_weight(weighted, &at_term));
        let preference = weighted.get("preference").unwrap_or(&Value::Null);
        errors.extend(validate_node_term(preference, false, &at_term.child("preference")));
    }
    errors
}

/// Which nodes something must be on.
///
/// Upstream: pkg/apis/core/validation/validation.go ValidateNodeSelector
pub fn validate_node_selector(selector: &Value, path: &Path) -> Errors {
    let at_terms = path.child("nodeSelectorTerms");
    let mut errors = Errors::new();
    if list(selector, "nodeSelectorTerms").is_empty() {
        errors.push(Error::required(&at_terms, "must have at least one node selector term"));
    }
    for (term, at) in get::items(selector, "nodeSelectorTerms", &at_terms) {
        errors.extend(validate_node_term(term, true, &at));
    }
    errors
}

fn validate_node_term(term: &Value, check_values: bool, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (requirement, at) in get::items(term, "matchExpressions", &path.child("matchExpressions")) {
        errors.extend(validate_node_requirement(requirement, check_values, &at));
    }
    for (requirement, at) in get::items(term, "matchFields", &path.child("matchFields")) {
        errors.extend(validate_node_field(requirement, &at));
    }
    errors
}

fn validate_node_requirement(requirement: &Value, check_values: bool, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let values = path.child("values");
    let count = list(requirement, "values").len();
    match text(requirement, "operator") {
        "In" | "NotIn" if count == 0 => {
            errors.push(Error::required(&values, "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if count > 0 => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(Error::forbidden(&values, detail));
        }
        "Gt" | "Lt" if count != 1 => {
            let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            errors.push(Error::required(&values, detail));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.push(Error::invalid(&path.child("operator"), other, "not a valid selector operator")),
    }
    let key = text(requirement, "key");
    errors.extend(each(names::qualified_name(key), &path.child("key"), key));
    if check_values {
        for (value, at) in get::items(requirement, "values", &values) {
            let value = value.as_str().unwrap_or_default();
            errors.extend(each(names::label_value(value), &at, value));
        }
    }
    errors
}

fn validate_node_field(requirement: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    match text(requirement, "operator") {
        "In" | "NotIn" => {
            if list(requirement, "values").len() != 1 {
                let detail =
                    "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.push(Error::required(&path.child("values"), detail));
            }
        }
        other => errors.push(Error::invalid(&path.child("operator"), other, "not a valid selector operator")),
    }
    let key = text(requirement, "key");
    if key != "metadata.name" {
        errors.push(Error::invalid(&path.child("key"), key, "not a valid field selector key"));
        return errors;
    }
    for (value, at) in get::items(requirement, "values", &path.child("values")) {
        let value = value.as_str().unwrap_or_default();
        errors.extend(each(names::dns1123_subdomain(value), &at, value));
    }
    errors
}

fn validate_pod_term(term: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for field in ["labelSelector", "namespaceSelector"] {
        if let Some(value) = at(term, field) {
            errors.extend(selector(value, &path.child(field)));
        }
    }
    for namespace in texts(term, "namespaces") {
        errors.extend(each(names::dns1123_label(namespace), &path.child("namespace"), namespace));
    }
    errors.extend(validate_label_keys(term, path));
    let key = text(term, "topologyKey");
    let at_key = path.child("topologyKey");
    if key.is_empty() {
        errors.push(Error::required(&at_key, "can not be empty"));
    }
    errors.extend(each(names::qualified_name(key), &at_key, key));
    errors
}

/// Keys whose values are taken from the pod need a selector to add them to.
fn validate_label_keys(term: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = get::items(term, field, &path.child(field));
        if !keys.is_empty() && !has(term, "labelSelector") {
            let detail = "must not be specified when labelSelector is not set";
            errors.push(Error::forbidden(&path.child(field), detail));
            continue;
        }
        for (key, at) in keys {
            let key = key.as_str().unwrap_or_default();
            errors.extend(each(names::qualified_name(key), &at, key));
        }
    }
    errors
}

pub fn validate_tolerations(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (toleration, at) in get::items(spec, "tolerations", path) {
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        let (value, effect) = (text(toleration, "value"), text(toleration, "effect"));
        if !key.is_empty() {
            errors.extend(each(names::qualified_name(key), &at.child("key"), key));
        } else if operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(Error::invalid(&at.child("operator"), operator, detail));
        }
        if has(toleration, "tolerationSeconds") && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(Error::invalid(&at.child("effect"), effect, detail));
        }
        match operator {
            "" | "Equal" => {
                let messages = names::label_value(value);
                if !messages.is_empty() {
                    errors.push(Error::invalid(&at.child("operator"), value, messages.join(";")));
                }
            }
            "Exists" if value.is_empty() => {}
            "Exists" => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(Error::invalid(&at.child("operator"), value, detail));
            }
            other => {
                errors.push(Error::not_supported(&at.child("operator"), other, &["Equal", "Exists"]));
            }
        }
        if !effect.is_empty() {
            errors.extend(taint_effect(effect, &at.child("effect")));
        }
    }
    errors
}

pub fn validate_spreading(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let constraints = get::items(spec, "topologySpreadConstraints", path);
    let key = |c: &Value| (text(c, "topologyKey").to_owned(), text(c, "whenUnsatisfiable").to_owned());
    for (index, (constraint, at_one)) in constraints.iter().enumerate() {
        errors.extend(positive(number(constraint, "maxSkew"), &at_one.child("maxSkew")));
        let (topology, action) = key(constraint);
        if topology.is_empty() {
            errors.push(Error::required(&at_one.child("topologyKey"), "can not be empty"));
        }
        const ACTIONS: &[&str] = &["DoNotSchedule", "ScheduleAnyway"];
        errors.extend(one_of(&action, &at_one.child("whenUnsatisfiable"), ACTIONS));
        if constraints[index + 1..].iter().any(|(c, _)| key(c) == key(constraint)) {
            let at_key = at_one.child("{topologyKey, whenUnsatisfiable}");
            errors.push(Error::duplicate(&at_key, format!("{{{topology}, {action}}}")));
        }
        if let Some(domains) = int(constraint, "minDomains") {
            let at_domains = at_one.child("minDomains");
            errors.extend(positive(domains, &at_domains));
            if action != "DoNotSchedule" {
                let detail =
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.push(Error::invalid(&at_domains, domains, detail));
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if has(constraint, field) {
                errors.extend(one_of(text(constraint, field), &at_one.child(field), &["Honor", "Ignore"]));
            }
        }
        errors.extend(validate_label_keys(constraint, at_one));
        if let Some(value) = at(constraint, "labelSelector") {
            errors.extend(selector(value, &at_one.child("labelSelector")));
        }
    }
    errors
}

pub fn validate_gates(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (gate, at) in get::items(spec, "readinessGates", &path.child("readinessGates")) {
        let kind = text(gate, "conditionType");
        errors.extend(each(names::qualified_name(kind), &at.child("conditionType"), kind));
    }
    let mut seen = Vec::new();
    for (gate, at) in get::items(spec, "schedulingGates", &path.child("schedulingGates")) {
        let name = text(gate, "name");
        errors.extend(each(names::qualified_name(name), &at, name));
        if seen.contains(&name) {
            errors.push(Error::duplicate(&at, name));
        }
        seen.push(name);
    }
    errors
}
