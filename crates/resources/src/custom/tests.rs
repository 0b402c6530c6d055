use serde_json::{Value, json};

use super::rules::Rules;
use super::status::{Taken, decide};
use super::*;

fn definition() -> Value {
    json!({
        "metadata": {"name": "widgets.example.com", "uid": "u"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [
                {"name": "v1beta1", "served": true, "storage": false, "deprecated": true},
                {"name": "v1", "served": true, "storage": true, "additionalPrinterColumns": [
                    {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
                    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
                    {"name": "Since", "type": "date", "jsonPath": ".spec.since"},
                ]},
            ]},
    })
}

fn accepted() -> Value {
    let mut definition = definition();
    definition["status"] = decide(&definition, &Taken::default(), "2024-01-01T00:00:00Z");
    definition
}

#[test]
fn a_definition_without_rivals_is_established_at_once() {
    let definition = accepted();
    assert_eq!(definition["status"]["acceptedNames"], definition["spec"]["names"]);
    assert!(is_true_condition(&definition, "NamesAccepted") && is_true_condition(&definition, "Established"));
    assert!(is_served(&definition));
    let again = decide(&definition, &Taken::of("example.com", [&definition]), "2025-01-01T00:00:00Z");
    assert_eq!(again, definition["status"], "what holds is not decided again");
}

#[test]
fn rows_are_made_of_what_the_definition_says() {
    let rows = rows(&accepted());
    let [beta, stable] = rows.as_slice() else { panic!("two versions are served") };
    assert_eq!(stable.storage_prefix, "example.com/widgets");
    assert_eq!((&*beta.storage_version, &*stable.storage_version), ("v1", "v1"));
    let deprecation = beta.deprecation.as_deref();
    assert_eq!(deprecation, Some("example.com/v1beta1 Widget is deprecated; use example.com/v1 Widget"));
    let object = json!({"metadata": {"name": "a"}, "spec": {"replicas": 3, "since": "1970-01-01T00:00:10Z"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!((stable.cells)(&object, 70), [json!("a"), json!(3), json!("True"), json!("60s")]);
    assert_eq!(
        (stable.cells)(&json!({"metadata": {"name": "a"}}), 0)[1..],
        [Value::Null, Value::Null, Value::Null]
    );
}

#[track_caller]
fn check(schema: Value, object: Value, old: Option<Value>, expected: &[&str]) {
    let rules = Rules::compile(&schema).unwrap();
    let errors: Vec<String> = rules.validate(&object, old.as_ref()).iter().map(ToString::to_string).collect();
    assert_eq!(errors, expected, "{object}");
}

fn with_rule(rule: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-validations": [rule],
        "properties": {"min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string"}}}}})
}

#[test]
fn rules_refuse_in_upstreams_words() {
    let object = json!({"spec": {"min": 3, "max": 1}});
    let schema = with_rule(json!({"rule": "self.min <= self.max"}));
    check(schema.clone(), object.clone(), None, &["spec: Invalid value: failed rule: self.min <= self.max"]);
    check(schema.clone(), json!({"spec": {"min": 1, "max": 1}}), None, &[]);
    check(schema.clone(), object.clone(), Some(object.clone()), &[]);
    let rule = json!({"rule": "self.min <= self.max", "message": "too small", "fieldPath": ".max", "reason": "FieldValueForbidden"});
    check(with_rule(rule), object.clone(), None, &["spec.max: Forbidden: too small"]);
    let rule = json!({"rule": "self.min <= self.max", "messageExpression": "'min is ' + string(self.min)"});
    check(with_rule(rule), object, None, &["spec: Invalid value: min is 3"]);
}

#[test]
fn rules_about_changes_are_asked_of_changes() {
    let schema = with_rule(json!({"rule": "self.name == oldSelf.name", "message": "name is immutable"}));
    let (was, is) = (json!({"spec": {"name": "a"}}), json!({"spec": {"name": "b"}}));
    check(schema.clone(), is.clone(), None, &[]);
    check(schema, is.clone(), Some(was), &["spec: Invalid value: name is immutable"]);
    let optional = with_rule(json!({"rule": "oldSelf.hasValue()", "optionalOldSelf": true, "message": "no"}));
    check(optional, is, None, &["spec: Invalid value: no"]);
}
