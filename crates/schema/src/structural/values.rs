//! What is wrong with a value by its schema, in upstream's words.
//!
//! An update is ratcheted: what has not changed is not told again, however wrong it is.
//!
//! Upstream: kube-openapi/pkg/validation/validate, apiextensions-apiserver/pkg/apiserver/validation

use std::borrow::Cow;

use apimachinery::field::{Error, Path};
use serde_json::{Number, Value};

use super::{Additional, Kind, ListKind, Structural};

/// One failure; its name is the path as messages have it, which begins with a dot below maps at the root.
struct Failure {
    name: String,
    what: What,
    message: String,
}

enum What {
    Required,
    Enum(Value, Vec<Value>),
    TooLong(usize),
    TooMany(usize, usize),
    WrongType(Value),
    Invalid(Value),
    /// Not about a field of its own.
    Whole,
}

/// What a schema found, and how much of it fitted: of several alternatives the best fitting is told.
#[derive(Default)]
struct Outcome {
    failures: Vec<Failure>,
    matches: usize,
}

impl Outcome {
    fn add(&mut self, failure: Failure) {
        if !self.failures.iter().any(|known| known.message == failure.message) {
            self.failures.push(failure);
        }
    }

    fn fail(&mut self, name: &str, what: What, message: String) {
        self.add(Failure { name: name.to_owned(), what, message });
    }

    fn merge(&mut self, other: Outcome) {
        self.matches += other.matches;
        other.failures.into_iter().for_each(|failure| self.add(failure));
    }

    fn is_valid(&self) -> bool {
        self.failures.is_empty()
    }
}

/// Whether what did not change may stay wrong.
#[derive(Clone, Copy)]
struct Old<'v>(Option<&'v Value>);

/// All that is wrong with a new value.
pub fn validate(path: &Path, value: &Value, schema: &Structural) -> Vec<Error> {
    errors(path, check("", value, schema, Old(None)))
}

/// All that is wrong with a value that was another before.
pub fn validate_update(path: &Path, value: &Value, old: &Value, schema: &Structural) -> Vec<Error> {
    errors(path, ratcheted("", value, schema, Old(Some(old))))
}

fn errors(path: &Path, outcome: Outcome) -> Vec<Error> {
    let at = |name: &str| match name.trim_start_matches('.') {
        "" => path.clone(),
        name => path.child(name),
    };
    let error = |failure: Failure| {
        let field = at(&failure.name);
        match failure.what {
            What::Required => Error::required(&field, ""),
            What::Enum(value, allowed) => {
                let shown: Vec<Cow<'_, str>> = allowed
                    .iter()
                    .map(|value| match value {
                        Value::String(text) => Cow::Borrowed(text.as_str()),
                        other => Cow::Owned(other.to_string()),
                    })
                    .collect();
                let shown: Vec<&str> = shown.iter().map(|text| &**text).collect();
                Error::not_supported(&field, value, &shown)
            }
            What::TooLong(max) => Error::too_long(&field, max),
            What::TooMany(actual, max) => Error::too_many(&field, actual, max),
            What::WrongType(value) => Error::type_invalid(&field, value, failure.message),
            What::Invalid(value) => Error::invalid(&field, value, failure.message),
            What::Whole => Error::invalid(path, "", failure.message),
        }
    };
    outcome.failures.into_iter().map(error).collect()
}

fn ratcheted(name: &str, value: &Value, schema: &Structural, old: Old<'_>) -> Outcome {
    let mut outcome = check(name, value, schema, old);
    if !outcome.is_valid() && old.0 == Some(value) {
        outcome.failures.clear();
    }
    outcome
}

/// The types in messages: `integer`, or both of an int-or-string.
fn expected(schema: &Structural) -> &'static str {
    if schema.int_or_string { "integer,string" } else { schema.kind.as_str() }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_integral(number: &Number) -> bool {
    number.as_f64().is_some_and(|n| n.fract() == 0.0 && n.abs() <= 9_007_199_254_740_991.0)
}

fn fits(schema: &Structural, value: &Value) -> bool {
    if schema.int_or_string {
        return match value {
            Value::String(_) => true,
            Value::Number(number) => !number.is_f64() || is_integral(number),
            _ => false,
        };
    }
    match (schema.kind, value) {
        (Kind::Any, _)
        | (Kind::Object, Value::Object(_))
        | (Kind::Array, Value::Array(_))
        | (Kind::String, Value::String(_))
        | (Kind::Boolean, Value::Bool(_))
        | (Kind::Number, Value::Number(_)) => true,
        (Kind::Integer, Value::Number(number)) => !number.is_f64() || is_integral(number),
        _ => false,
    }
}

fn check(name: &str, value: &Value, schema: &Structural, old: Old<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let typed = schema.int_or_string || schema.kind != Kind::Any;
    if value.is_null() {
        if typed && !schema.nullable {
            wrong_type(name, value, schema, &mut outcome);
        }
        check_enum(name, value, schema, &mut outcome);
        return outcome;
    }
    if typed || schema.checks.format.is_some() {
        let lists_pass = schema.checks.format.as_ref().is_some_and(|format| format.is_textual());
        if fits(schema, value) || (lists_pass && value.is_array()) {
            outcome.matches += 1;
        } else {
            wrong_type(name, value, schema, &mut outcome);
        }
        outcome.matches += 1;
    }
    check_junctors(name, value, schema, old, &mut outcome);
    match value {
        Value::String(text) => check_text(name, text, schema, &mut outcome),
        Value::Number(number) => check_number(name, number, schema, &mut outcome),
        Value::Array(items) => check_items(name, items, schema, old, &mut outcome),
        Value::Object(_) => {}
        _ => {}
    }
    check_enum(name, value, schema, &mut outcome);
    if let Value::Object(fields) = value {
        check_fields(name, fields, schema, old, &mut outcome);
    }
    outcome.matches += 1;
    outcome
}

fn wrong_type(name: &str, value: &Value, schema: &Structural, outcome: &mut Outcome) {
    let (expected, found) = (expected(schema), type_name(value));
    let message = format!("{name} in body must be of type {expected}: {found:?}");
    outcome.fail(name, What::WrongType(found.into()), message);
}

fn check_enum(name: &str, value: &Value, schema: &Structural, outcome: &mut Outcome) {
    let allowed = &schema.checks.one_of_values;
    let same = |a: &Value| match (a, value) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (a, b) => a == b,
    };
    if !allowed.is_empty() && !allowed.iter().any(same) {
        let message = format!("{name} in body should be one of {}", Value::from(allowed.clone()));
        outcome.fail(name, What::Enum(value.clone(), allowed.clone()), message);
    }
}

fn check_text(name: &str, text: &str, schema: &Structural, outcome: &mut Outcome) {
    let checks = &schema.checks;
    let length = text.chars().count();
    // Upstream tells the first of these only.
    let failure = if let Some(max) = checks.max_length.filter(|max| length > *max) {
        Some((What::TooLong(max), format!("{name} in body should be at most {max} chars long")))
    } else if let Some(min) = checks.min_length.filter(|min| length < *min) {
        Some((What::Invalid(text.into()), format!("{name} in body should be at least {min} chars long")))
    } else {
        match &checks.pattern {
            Some(pattern) => match &pattern.regex {
                Ok(regex) if regex.is_match(text) => None,
                Ok(_) => Some((
                    What::Invalid(text.into()),
                    format!("{name} in body should match '{}'", pattern.text),
                )),
                Err(why) => Some((
                    What::Invalid(text.into()),
                    format!("{name} in body should match '{}, but pattern is invalid: {why}'", pattern.text),
                )),
            },
            None => None,
        }
    };
    if let Some((what, message)) = failure {
        outcome.fail(name, what, message);
    }
    if let Some(format) = checks.format.as_ref().filter(|format| !format.matches(text)) {
        let message = format!("{name} in body must be of type {}: {text:?}", format.name);
        outcome.fail(name, What::WrongType(text.into()), message);
    }
    outcome.matches += 1;
}

/// A bound as Go prints it: without a fraction when it has none.
fn plain(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 1e21 { format!("{number:.0}") } else { number.to_string() }
}

fn check_number(name: &str, number: &Number, schema: &Structural, outcome: &mut Outcome) {
    let checks = &schema.checks;
    if let Some(format) = checks.format.as_ref().filter(|format| !format.holds(number)) {
        let kind = schema.kind.as_str();
        let message = format!("Checked value must be of type {kind} with format {} in {name}", format.name);
        outcome.fail(name, What::Whole, message);
    }
    let value = number.as_f64().unwrap_or_default();
    let invalid = || What::Invalid(Value::Number(number.clone()));
    if let Some(factor) = checks.multiple_of {
        if factor <= 0.0 {
            let message =
                format!("factor MultipleOf declared for {name} must be positive: {}", plain(factor));
            outcome.fail(name, invalid(), message);
        } else if !is_multiple(number, factor) {
            let message = format!("{name} in body should be a multiple of {}", plain(factor));
            outcome.fail(name, invalid(), message);
        }
    }
    if let Some(max) = checks.maximum {
        let exclusive = checks.exclusive_maximum;
        if value > max || (exclusive && value >= max) {
            let words = if exclusive { "less than" } else { "less than or equal to" };
            outcome.fail(name, invalid(), format!("{name} in body should be {words} {}", plain(max)));
        }
    }
    if let Some(min) = checks.minimum {
        let exclusive = checks.exclusive_minimum;
        if value < min || (exclusive && value <= min) {
            let words = if exclusive { "greater than" } else { "greater than or equal to" };
            outcome.fail(name, invalid(), format!("{name} in body should be {words} {}", plain(min)));
        }
    }
    outcome.matches += 1;
}

fn is_multiple(number: &Number, factor: f64) -> bool {
    let value = number.as_f64().unwrap_or_default();
    let times = if factor < 1.0 { 1.0 / factor * value } else { value / factor };
    (times - times.round()).abs() < 1e-9 * times.abs().max(1.0)
}

fn check_items(name: &str, items: &[Value], schema: &Structural, old: Old<'_>, outcome: &mut Outcome) {
    let checks = &schema.checks;
    if let Some(item_schema) = &schema.items {
        for (at, item) in items.iter().enumerate() {
            let name = format!("{name}[{at}]");
            outcome.merge(match correlated_item(item, schema, old) {
                Some(before) => ratcheted(&name, item, item_schema, Old(Some(before))),
                None => check(&name, item, item_schema, Old(None)),
            });
        }
    }
    let size = items.len();
    if let Some(min) = checks.min_items.filter(|min| size < *min) {
        let message = format!("{name} in body should have at least {min} items");
        outcome.fail(name, What::Invalid(size.into()), message);
    }
    if let Some(max) = checks.max_items.filter(|max| size > *max) {
        let message = format!("{name} in body should have at most {max} items");
        outcome.fail(name, What::TooMany(size, max), message);
    }
    if checks.unique_items && items.iter().enumerate().any(|(at, item)| items[..at].contains(item)) {
        let message = format!("{name} in body shouldn't contain duplicates");
        outcome.fail(name, What::Invalid("".into()), message);
    }
    outcome.matches += 1;
}

/// What an item was before: only items of lists with keys are the same across changes.
fn correlated_item<'v>(item: &Value, schema: &Structural, old: Old<'v>) -> Option<&'v Value> {
    if schema.list_kind != ListKind::Map {
        return None;
    }
    let same = |before: &&Value| schema.list_map_keys.iter().all(|key| before.get(key) == item.get(key));
    old.0?.as_array()?.iter().find(same)
}

fn check_fields(
    name: &str,
    fields: &serde_json::Map<String, Value>,
    schema: &Structural,
    old: Old<'_>,
    outcome: &mut Outcome,
) {
    let checks = &schema.checks;
    let size = fields.len();
    if let Some(min) = checks.min_properties.filter(|min| size < *min) {
        let message = format!("{name} in body should have at least {min} properties");
        outcome.fail(name, What::Invalid(size.into()), message);
    }
    if let Some(max) = checks.max_properties.filter(|max| size > *max) {
        let message = format!("{name} in body should have at most {max} properties");
        outcome.fail(name, What::TooMany(size, max), message);
    }
    for (field, value) in fields {
        let (inner, path) = match (schema.properties.get(field), &schema.additional) {
            (Some(property), _) if name.is_empty() => (property, field.clone()),
            (Some(property), _) => (property, format!("{name}.{field}")),
            (None, Additional::Schema(schema)) => (&**schema, format!("{name}.{field}")),
            (None, Additional::Any(false)) => {
                let message = format!("{name}.{field} in body is a forbidden property");
                outcome.fail(name, What::Invalid(field.as_str().into()), message);
                continue;
            }
            _ => continue,
        };
        let of_type = name.is_empty() && matches!(field.as_str(), "kind" | "apiVersion");
        let before = old.0.and_then(|old| old.get(field)).filter(|_| !of_type);
        outcome.merge(match before {
            Some(before) => ratcheted(&path, value, inner, Old(Some(before))),
            None => check(&path, value, inner, Old(None)),
        });
    }
    for field in checks.required.iter().filter(|field| !fields.contains_key(*field)) {
        let name = format!("{name}.{field}");
        let message = format!("{name} in body is required");
        outcome.fail(&name, What::Required, message);
    }
    outcome.matches += 1;
}

/// Upstream: kube-openapi/pkg/validation/validate/schema_props.go
fn check_junctors(name: &str, value: &Value, schema: &Structural, old: Old<'_>, outcome: &mut Outcome) {
    let checks = &schema.checks;
    let whole = |message: String, outcome: &mut Outcome| outcome.fail(name, What::Whole, message);
    if !checks.any_of.is_empty() {
        let (valid, best) = alternatives(name, value, &checks.any_of, old);
        if valid == 0 {
            whole(format!("{name:?} must validate at least one schema (anyOf)"), outcome);
        }
        outcome.merge(best);
    }
    if !checks.one_of.is_empty() {
        let (valid, best) = alternatives(name, value, &checks.one_of, old);
        match valid {
            1 => outcome.merge(best),
            0 => {
                let found = "Found none valid";
                whole(format!("{name:?} must validate one and only one schema (oneOf). {found}"), outcome);
                outcome.merge(best);
            }
            _ => {
                let found = format!("Found {valid} valid alternatives");
                whole(format!("{name:?} must validate one and only one schema (oneOf). {found}"), outcome);
            }
        }
    }
    if !checks.all_of.is_empty() {
        let mut valid = 0;
        for schema in &checks.all_of {
            let result = check(name, value, schema, old);
            valid += usize::from(result.is_valid());
            outcome.merge(result);
        }
        if valid != checks.all_of.len() {
            let more = if valid == 0 { ". None validated" } else { "" };
            whole(format!("{name:?} must validate all the schemas (allOf){more}"), outcome);
        }
    }
    if let Some(not) = &checks.not
        && check(name, value, not, old).is_valid()
    {
        whole(format!("{name:?} must not validate the schema (not)"), outcome);
    }
    outcome.matches += 1;
}

/// How many schemas the value fits, and what the best fitting one says.
fn alternatives(name: &str, value: &Value, schemas: &[Structural], old: Old<'_>) -> (usize, Outcome) {
    let (mut valid, mut best): (usize, Option<Outcome>) = (0, None);
    for schema in schemas {
        let result = check(name, value, schema, old);
        if result.is_valid() {
            valid += 1;
            if valid == 1 {
                best = Some(result);
            }
        } else if valid == 0 && best.as_ref().is_none_or(|best| result.matches > best.matches) {
            best = Some(result);
        }
    }
    (valid, best.unwrap_or_default())
}
