//! The expressions of a custom kind's schema (`x-kubernetes-validations`), asked about its objects.
//!
//! [`Rules`] mirrors the schema where it has expressions; [`compile`] makes one expression ready, and
//! [`field_path`] reads the path that it may blame.
//!
//! Upstream: apiextensions-apiserver/pkg/apiserver/schema/cel/validation.go

pub mod compile;
pub mod field_path;

use std::collections::BTreeMap;

use apimachinery::field::{Error, Path};
use cel::{DeclType, EvalError, PER_CALL_LIMIT, RUNTIME_COST_BUDGET};
use serde_json::Value;

use crate::get::{is_true, text, texts};
use compile::{Compiled, compile};

const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// The expressions of a schema and of the schemas inside it.
#[derive(Debug)]
pub struct Rules {
    kind: String,
    rules: Vec<Compiled>,
    /// What `self` is to the rules here.
    decl: Option<Box<DeclType>>,
    items: Option<Box<Rules>>,
    /// The keys by which items are the same across changes.
    list_map_keys: Option<Vec<String>>,
    properties: BTreeMap<String, Rules>,
    additional: Option<Box<Rules>>,
}

/// What is left to spend, and what was found.
struct Evaluation {
    budget: u64,
    errors: Vec<Error>,
    /// The budget is gone: nothing further is asked.
    stopped: bool,
}

/// What a value was before, and whether it is the same.
#[derive(Clone, Copy)]
struct Before<'v> {
    /// What rules see as `oldSelf`.
    value: Option<&'v Value>,
    /// What has not changed, here or as a part of something, is not refused again.
    unchanged: bool,
}

impl<'v> Before<'v> {
    fn of(&self, value: Option<&'v Value>, now: &Value) -> Self {
        let unchanged = match value {
            Some(value) => value == now,
            // What cannot be told apart is as unchanged as what it is in.
            None => self.unchanged,
        };
        Before { value, unchanged }
    }
}

impl Rules {
    /// The expressions of a resource's schema; `None` when it has none.
    pub fn compile(schema: &Value) -> Option<Self> {
        Self::of(schema, true)
    }

    /// The expressions of a schema inside a resource's.
    pub fn compile_part(schema: &Value) -> Option<Self> {
        Self::of(schema, false)
    }

    fn of(schema: &Value, root: bool) -> Option<Self> {
        let boxed = |schema: &Value| Self::of(schema, false).map(Box::new);
        let object = |name: &str| schema.get(name).filter(|inner| inner.is_object());
        let declared = schema.get("x-kubernetes-validations").and_then(Value::as_array);
        let declared = declared.map(Vec::as_slice).unwrap_or_default();
        let decl = match declared {
            [] => None,
            _ => DeclType::from_schema(schema, root).map(|decl| Box::new(decl.named("selfType"))),
        };
        let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        let rules = Rules {
            kind: text(schema, "type").to_owned(),
            rules: declared.iter().map(|rule| compile(rule, schema, decl.as_deref())).collect(),
            decl,
            items: object("items").and_then(boxed),
            list_map_keys: (text(schema, "x-kubernetes-list-type") == "map").then(|| {
                texts(schema, "x-kubernetes-list-map-keys").into_iter().map(str::to_owned).collect()
            }),
            properties: properties
                .filter_map(|(name, schema)| Some((name.clone(), Self::of(schema, false)?)))
                .collect(),
            additional: object("additionalProperties").and_then(boxed),
        };
        let any = !rules.rules.is_empty()
            || rules.items.is_some()
            || !rules.properties.is_empty()
            || rules.additional.is_some();
        any.then_some(rules)
    }

    /// What the expressions refuse of an object that was another before.
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<Error> {
        self.validate_within(&Path::root(), object, old, RUNTIME_COST_BUDGET).0
    }

    /// What the expressions refuse of a value at `path`, and what is left of the budget.
    pub fn validate_within(
        &self,
        path: &Path,
        value: &Value,
        old: Option<&Value>,
        budget: u64,
    ) -> (Vec<Error>, u64) {
        let mut evaluation = Evaluation { budget, errors: Vec::new(), stopped: false };
        let before = Before { value: old, unchanged: old == Some(value) };
        self.walk(path, value, before, &mut evaluation);
        (evaluation.errors, if evaluation.stopped { 0 } else { evaluation.budget })
    }

    fn walk(&self, path: &Path, value: &Value, before: Before<'_>, evaluation: &mut Evaluation) {
        if value.is_null() || evaluation.stopped {
            return;
        }
        self.ask(path, value, before, evaluation);
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let old = before.value.and_then(|old| old.get(name));
                    match (self.properties.get(name), &self.additional) {
                        (Some(rules), _) => {
                            rules.walk(&path.child(name), value, before.of(old, value), evaluation);
                        }
                        (None, Some(rules)) => {
                            rules.walk(&path.key(name), value, before.of(old, value), evaluation);
                        }
                        (None, None) => {}
                    }
                }
            }
            Value::Array(items) => {
                let Some(rules) = &self.items else { return };
                for (at, item) in items.iter().enumerate() {
                    let old = self.correlated(item, before.value);
                    rules.walk(&path.index(at), item, before.of(old, item), evaluation);
                }
            }
            _ => {}
        }
    }

    /// What an item was before: only items with keys are the same across changes.
    fn correlated<'v>(&self, item: &Value, old: Option<&'v Value>) -> Option<&'v Value> {
        let keys = self.list_map_keys.as_ref()?;
        let same = |before: &&Value| keys.iter().all(|key| before.get(key) == item.get(key));
        old?.as_array()?.iter().find(same)
    }

    fn ask(&self, path: &Path, value: &Value, before: Before<'_>, evaluation: &mut Evaluation) {
        for rule in &self.rules {
            if evaluation.stopped {
                return;
            }
            self.ask_one(rule, path, value, before, evaluation);
        }
    }

    fn ask_one(
        &self,
        rule: &Compiled,
        path: &Path,
        value: &Value,
        before: Before<'_>,
        evaluation: &mut Evaluation,
    ) {
        let invalid = |detail: String| Error::invalid(path, self.kind.as_str(), detail);
        let program = match &rule.program {
            Ok(Some(program)) => program,
            Ok(None) => return,
            Err(why) => {
                evaluation.errors.push(invalid(format!("rule compile error: {why}")));
                return;
            }
        };
        let Some(decl) = self.decl.as_deref() else { return };
        // A rule about a change says nothing of what was not there before.
        if rule.uses_old_self && before.value.is_none() && !rule.optional_old_self {
            return;
        }
        if evaluation.budget == 0 {
            evaluation.errors.push(invalid(OUT_OF_BUDGET.to_owned()));
            evaluation.stopped = true;
            return;
        }
        let bindings = match bindings(rule, decl, value, before.value) {
            Ok(bindings) => bindings,
            Err(error) => {
                evaluation.errors.push(invalid(failed(&error, rule)));
                return;
            }
        };
        let answer = program.eval(&bindings, PER_CALL_LIMIT);
        if answer.cost > evaluation.budget {
            evaluation.errors.push(invalid(OUT_OF_BUDGET.to_owned()));
            evaluation.stopped = true;
            return;
        }
        evaluation.budget -= answer.cost;
        match &answer.result {
            Ok(cel::Value::Bool(true)) => return,
            Ok(_) => {}
            Err(error) => {
                evaluation.stopped = matches!(error, EvalError::CostLimitExceeded);
                evaluation.errors.push(invalid(failed(error, rule)));
                return;
            }
        }
        let path = match rule.field_path.as_str() {
            "" => path.clone(),
            blamed => path.child(blamed),
        };
        let error = match message(rule, &bindings, evaluation) {
            Ok(detail) => refusal(rule, &path, value, &self.kind, detail),
            Err(why) => {
                evaluation.stopped = true;
                Error::invalid(&path, self.kind.as_str(), why)
            }
        };
        // What has not changed may stay as it is, but for rules that are about the change.
        if rule.uses_old_self || !before.unchanged {
            evaluation.errors.push(error);
        }
    }
}

type Bindings<'v> = Vec<(&'static str, cel::Value<'v>)>;

fn bindings<'v>(
    rule: &Compiled,
    decl: &'v DeclType,
    value: &'v Value,
    old: Option<&'v Value>,
) -> Result<Bindings<'v>, EvalError> {
    let mut bindings = vec![("self", cel::Value::typed(value, decl)?)];
    if rule.uses_old_self {
        let old = old.map(|old| cel::Value::typed(old, decl)).transpose()?;
        match (old, rule.optional_old_self) {
            (Some(old), true) => bindings.push(("oldSelf", cel::Value::some(old))),
            (None, true) => bindings.push(("oldSelf", cel::Value::none())),
            (Some(old), false) => bindings.push(("oldSelf", old)),
            (None, false) => {}
        }
    }
    Ok(bindings)
}

/// What the rule says of itself in errors: its message, or its text.
fn shown(rule: &Compiled) -> &str {
    match rule.message.trim() {
        "" => rule.text.trim(),
        message => message,
    }
}

fn failed(error: &EvalError, rule: &Compiled) -> String {
    let words = error.to_string();
    if words.starts_with("no such overload") {
        return format!(
            "'{words}': call arguments did not match a supported operator, function or macro signature for rule: {}",
            shown(rule)
        );
    }
    if matches!(error, EvalError::CostLimitExceeded) {
        return format!(
            "'{words}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
            shown(rule)
        );
    }
    format!("{words} evaluating rule: {}", shown(rule))
}

/// The message of a rule that was broken: that of its expression, if it makes one, else its own. An error when
/// asking for it used the budget up.
fn message(rule: &Compiled, bindings: &Bindings<'_>, evaluation: &mut Evaluation) -> Result<String, String> {
    let own = || match rule.message.trim() {
        "" => format!("failed rule: {}", rule.text.trim()),
        message => message.to_owned(),
    };
    let Ok(Some(program)) = &rule.message_program else { return Ok(own()) };
    let answer = program.eval(bindings, PER_CALL_LIMIT);
    if answer.cost > evaluation.budget {
        return Err(
            "messageExpression evaluation failed due to running out of cost budget, no further validation \
                    rules will be run"
                .to_owned(),
        );
    }
    evaluation.budget -= answer.cost;
    if let Err(EvalError::CostLimitExceeded) = answer.result {
        return Err(format!(
            "no further validation rules will be run due to call cost exceeds limit for messageExpression: {:?}",
            rule.message_expression
        ));
    }
    let made = answer.result.ok().and_then(|value| value.as_str().map(|text| text.trim().to_owned()));
    let fine =
        |text: &String| !text.is_empty() && text.len() <= cel::MAX_MESSAGE_BYTES && !text.contains('\n');
    Ok(made.filter(fine).unwrap_or_else(own))
}

fn refusal(rule: &Compiled, path: &Path, value: &Value, kind: &str, detail: String) -> Error {
    let whole = matches!(kind, "object" | "array");
    match rule.reason.as_str() {
        "FieldValueForbidden" => Error::forbidden(path, detail),
        "FieldValueRequired" => Error::required(path, detail),
        "FieldValueDuplicate" if whole => Error::duplicate(path, Value::Null).without_value(),
        "FieldValueDuplicate" => Error::duplicate(path, value.clone()),
        _ if whole => Error::invalid(path, Value::Null, detail).without_value(),
        _ => Error::invalid(path, value.clone(), detail),
    }
}

/// Whether a rule may see that there was nothing before.
fn optional_old_self(rule: &Value) -> bool {
    is_true(rule, "optionalOldSelf")
}
