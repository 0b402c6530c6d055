//! Conditions of the common type.

use apimachinery::field::{Error, Path};
use apimachinery::names;
use serde_json::Value;

use crate::get::{Errors, has, number, text};
use crate::validate::{each, one_of};

const MAX_REASON: usize = 1024;
const MAX_MESSAGE: usize = 32 * 1024;

/// Upstream: apimachinery/pkg/apis/meta/v1/validation/validation.go ValidateConditions
pub fn conditions(conditions: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, condition) in conditions.iter().enumerate() {
        let (at, kind) = (path.index(index), text(condition, "type"));
        if conditions[..index].iter().any(|other| text(other, "type") == kind) {
            errors.push(Error::duplicate(&at.child("type"), kind));
        }
        errors.extend(validate(condition, &at));
    }
    errors
}

fn validate(condition: &Value, at: &Path) -> Errors {
    let (kind, reason) = (text(condition, "type"), text(condition, "reason"));
    let mut errors = each(names::qualified_name(kind), &at.child("type"), kind);
    errors.extend(one_of(text(condition, "status"), &at.child("status"), &["False", "True", "Unknown"]));
    let generation = number(condition, "observedGeneration");
    if generation < 0 {
        let why = "must be greater than or equal to zero";
        errors.push(Error::invalid(&at.child("observedGeneration"), generation, why));
    }
    if !has(condition, "lastTransitionTime") {
        errors.push(Error::required(&at.child("lastTransitionTime"), ""));
    }
    if reason.is_empty() {
        errors.push(Error::required(&at.child("reason"), ""));
    } else {
        if !is_reason(reason) {
            let why = "a condition reason must start with alphabetic character, optionally followed by a string of \
                       alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. \
                       'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex \
                       used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')";
            errors.push(Error::invalid(&at.child("reason"), reason, why));
        }
        if reason.len() > MAX_REASON {
            errors.push(Error::too_long(&at.child("reason"), MAX_REASON));
        }
    }
    if text(condition, "message").len() > MAX_MESSAGE {
        errors.push(Error::too_long(&at.child("message"), MAX_MESSAGE));
    }
    errors
}

fn is_reason(reason: &str) -> bool {
    reason.starts_with(|first: char| first.is_ascii_alphabetic())
        && reason.ends_with(|last: char| last.is_ascii_alphanumeric() || last == '_')
        && reason.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ',' | ':'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_are_checked() {
        let whole = json!({"type": "Ready", "status": "True", "reason": "Up", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let check = |changes: &[(&str, Value)], expected: &[&str]| {
            let mut condition = whole.clone();
            changes.iter().for_each(|(field, value)| condition[*field] = value.clone());
            let said = conditions(&[condition], &Path::new("c"));
            assert_eq!(said.iter().map(|error| error.cause().field).collect::<Vec<_>>(), expected);
        };
        check(&[], &[]);
        check(&[("type", json!(""))], &["c[0].type", "c[0].type"]);
        check(&[("status", json!("true"))], &["c[0].status"]);
        check(&[("reason", json!("not so"))], &["c[0].reason"]);
        check(
            &[("reason", json!("")), ("lastTransitionTime", json!(null))],
            &["c[0].lastTransitionTime", "c[0].reason"],
        );
        check(&[("observedGeneration", json!(-1))], &["c[0].observedGeneration"]);
        let said = conditions(&[whole.clone(), whole.clone()], &Path::new("c"));
        assert_eq!(said[0].cause().field, "c[1].type");
    }
}
