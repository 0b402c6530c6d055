//! Whether the defaults of a schema are of the schema's own type.
//!
//! Upstream: apiextensions-apiserver/pkg/apiserver/schema/defaulting/validation.go ValidateDefaults

use schema::structural::embedded::{self, Malformed};
use schema::structural::{Structural, prune, values};
use serde_json::Value;

use crate::custom::rules::Rules;
use crate::get::{Errors, is_true};
use crate::prelude::{Error, Path};

/// What is wrong with the defaults in a schema.
pub fn validate(path: &Path, schema: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut budget = cel::RUNTIME_COST_BUDGET;
    walk(path, schema, false, &mut budget, &mut errors);
    errors
}

fn walk(path: &Path, schema: &Value, inside_meta: bool, budget: &mut u64, errors: &mut Errors) {
    let embedded = is_true(schema, "x-kubernetes-embedded-resource");
    let inside_meta = inside_meta && !embedded;
    if let Some(default) = schema.get("default").filter(|default| !default.is_null()) {
        one(&path.child("default"), schema, default, inside_meta, budget, errors);
    }
    if *budget == 0 {
        return;
    }
    if let Some(items) = schema.get("items").filter(|items| items.is_object()) {
        walk(&path.child("items"), items, inside_meta, budget, errors);
    }
    for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let meta = embedded && matches!(name.as_str(), "metadata" | "apiVersion" | "kind");
        walk(&path.child("properties").key(name), inner, inside_meta || meta, budget, errors);
    }
}

fn one(
    path: &Path,
    schema: &Value,
    default: &Value,
    inside_meta: bool,
    budget: &mut u64,
    errors: &mut Errors,
) {
    let structural = Structural::of(schema);
    let mut value = default.clone();
    if !inside_meta {
        prune::value(&mut value, &structural);
        if value != *default {
            errors.push(Error::invalid(path, default.clone(), "must not have unknown fields"));
        }
        let coerced =
            embedded::coerce(path, &mut default.clone(), &structural, Malformed::Refuse, &mut Vec::new());
        if let Err(error) = coerced {
            errors.push(error);
            return;
        }
        let wrong = embedded::validate(path, default, &structural);
        if !wrong.is_empty() {
            errors.extend(wrong);
            return;
        }
    }
    let wrong = values::validate(path, default, &structural);
    if !wrong.is_empty() {
        errors.extend(wrong);
        return;
    }
    let Some(rules) = Rules::compile_part(schema) else { return };
    // As something that stays, and as something new: rules about changes see both.
    for old in [Some(default), None] {
        let (refused, left) = rules.validate_within(path, default, old, *budget);
        let stop = !refused.is_empty();
        errors.extend(refused);
        *budget = left;
        if stop {
            return;
        }
    }
}
