use apimachinery::field::Path;
use serde_json::{Value, json};

use super::*;

fn pruned(schema: Value, mut object: Value) -> (Value, Vec<String>) {
    let unknown = prune::object(&mut object, &Structural::of(&schema));
    (object, unknown)
}

#[test]
fn what_the_schema_does_not_name_is_pruned() {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"b": {}}}},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"known": {"type": "object"}}},
            "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
        }},
    }});
    let (object, unknown) = pruned(
        schema,
        json!({"apiVersion": "a/v1", "kind": "K", "metadata": {"x": 1}, "other": 1, "spec": {
            "list": [{"a": "1", "z": 1}],
            "map": {"k": {"b": 1, "c": 2}},
            "open": {"any": {"thing": 1}, "known": {"gone": 1}},
            "pod": {"kind": "Pod", "apiVersion": "v1", "metadata": {}, "status": {}, "spec": {}},
        }}),
    );
    assert_eq!(
        object,
        json!({"apiVersion": "a/v1", "kind": "K", "metadata": {"x": 1}, "spec": {
            "list": [{"a": "1"}],
            "map": {"k": {"b": 1}},
            "open": {"any": {"thing": 1}, "known": {}},
            "pod": {"kind": "Pod", "apiVersion": "v1", "metadata": {}, "spec": {}},
        }})
    );
    assert_eq!(
        unknown,
        ["other", "spec.list[0].z", "spec.map.k.c", "spec.open.known.gone", "spec.pod.status"]
    );
}

#[test]
fn defaults_fill_what_is_absent_and_nulls_go_where_they_are_not_allowed() {
    let schema = Structural::of(&json!({"type": "object", "properties": {
        "a": {"type": "string", "default": "A"},
        "b": {"type": "object", "default": {}, "properties": {"c": {"type": "integer", "default": 3}}},
        "n": {"type": "string", "nullable": true, "default": "N"},
        "plain": {"type": "string"},
        "list": {"type": "array", "items": {"type": "object", "properties": {"d": {"default": true, "type": "boolean"}}}},
    }}));
    for (mut object, expected) in [
        (json!({}), json!({"a": "A", "b": {"c": 3}, "n": "N"})),
        (json!({"a": null, "n": null, "plain": null}), json!({"a": "A", "b": {"c": 3}, "n": null})),
        (
            json!({"b": {"c": 5}, "list": [{}]}),
            json!({"a": "A", "b": {"c": 5}, "n": "N", "list": [{"d": true}]}),
        ),
    ] {
        default::drop_nulls(&mut object, Some(&schema));
        default::apply(&mut object, &schema);
        assert_eq!(object, expected);
    }
}

#[track_caller]
fn check_value(schema: Value, value: Value, expected: &[&str]) {
    let errors = values::validate(&Path::root(), &value, &Structural::of(&schema));
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors, expected, "{value}");
}

#[test]
fn values_are_refused_in_upstreams_words() {
    let of = |spec: Value| json!({"type": "object", "properties": {"spec": spec}});
    check_value(
        of(json!({"type": "integer"})),
        json!({"spec": "x"}),
        &[r#"spec: Invalid value: "string": spec in body must be of type integer: "string""#],
    );
    check_value(
        of(json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}})),
        json!({"spec": {}}),
        &["spec.a: Required value"],
    );
    check_value(
        of(json!({"type": "string", "enum": ["A", "B"]})),
        json!({"spec": "C"}),
        &[r#"spec: Unsupported value: "C": supported values: "A", "B""#],
    );
    check_value(
        of(json!({"type": "integer", "maximum": 10, "minimum": 1})),
        json!({"spec": 11}),
        &["spec: Invalid value: 11: spec in body should be less than or equal to 10"],
    );
    check_value(
        of(json!({"type": "string", "maxLength": 2})),
        json!({"spec": "abc"}),
        &["spec: Too long: may not be more than 2 bytes"],
    );
    check_value(
        of(json!({"type": "string", "pattern": "^a+$"})),
        json!({"spec": "b"}),
        &[r#"spec: Invalid value: "b": spec in body should match '^a+$'"#],
    );
    check_value(
        of(json!({"type": "array", "maxItems": 1, "items": {"type": "string"}})),
        json!({"spec": ["a", 1]}),
        &[
            r#"spec[1]: Invalid value: "integer": spec[1] in body must be of type string: "integer""#,
            "spec: Too many: 2: must have at most 1 item",
        ],
    );
    check_value(of(json!({"x-kubernetes-int-or-string": true})), json!({"spec": 1}), &[]);
    check_value(
        of(json!({"x-kubernetes-int-or-string": true})),
        json!({"spec": true}),
        &[r#"spec: Invalid value: "boolean": spec in body must be of type integer,string: "boolean""#],
    );
    check_value(of(json!({"type": "number"})), json!({"spec": 1}), &[]);
    check_value(of(json!({"type": "integer"})), json!({"spec": 1.0}), &[]);
    check_value(of(json!({"type": "string", "nullable": true})), json!({"spec": null}), &[]);
    check_value(
        of(json!({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]})),
        json!({"spec": {"a": 1, "b": 2}}),
        &[
            r#"<nil>: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
        ],
    );
    check_value(
        of(json!({"type": "string", "format": "date"})),
        json!({"spec": "today"}),
        &[r#"spec: Invalid value: "today": spec in body must be of type date: "today""#],
    );
}

#[test]
fn what_did_not_change_may_stay_wrong() {
    let schema = Structural::of(&json!({"type": "object", "properties": {
        "a": {"type": "string", "maxLength": 1}, "b": {"type": "string", "maxLength": 1},
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
            "items": {"type": "object", "properties": {"n": {"type": "string"}, "v": {"type": "integer", "maximum": 1}}}},
    }}));
    let old = json!({"a": "long", "b": "x", "list": [{"n": "one", "v": 5}]});
    let new = json!({"a": "long", "b": "longer", "list": [{"n": "two", "v": 1}, {"n": "one", "v": 5}]});
    let errors = values::validate_update(&Path::root(), &new, &old, &schema);
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors, ["b: Too long: may not be more than 1 bytes"]);
}

#[test]
fn sets_and_maps_have_no_duplicates() {
    let schema = Structural::of(&json!({"type": "object", "properties": {
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object"}},
    }}));
    let object = json!({"set": ["a", "b", "a", "a"], "map": [{"k": 1}, {"k": 1, "v": 2}]});
    let errors: Vec<String> = lists::validate(&object, &schema).iter().map(ToString::to_string).collect();
    assert_eq!(errors, [r#"map[1]: Duplicate value: {"k":1}"#, r#"set[2]: Duplicate value: "a""#]);
}

#[track_caller]
fn check_schema(schema: Value, expected: &[&str]) {
    let errors = invariants::validate(&Path::new("s"), &schema);
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors, expected, "{schema}");
}

#[test]
fn schemas_must_be_structural() {
    check_schema(
        json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}}}),
        &[],
    );
    check_schema(json!({}), &["s.type: Required value: must not be empty at the root"]);
    check_schema(
        json!({"type": "object", "properties": {"a": {}, "b": {"type": "array"}}}),
        &[
            "s.properties[a].type: Required value: must not be empty for specified object fields",
            "s.properties[b].items: Required value: must be specified",
        ],
    );
    check_schema(
        json!({"type": "object", "additionalProperties": {"type": "string"}}),
        &["s.additionalProperties: Forbidden: must not be used at the root"],
    );
    check_schema(
        json!({"type": "object", "properties": {"a": {"type": "string"}},
            "anyOf": [{"properties": {"a": {"type": "string"}, "b": {"minLength": 1}}}]}),
        &[
            "s.anyOf[0].properties[a].type: Forbidden: must be empty to be structural",
            "s.properties[b]: Required value: because it is defined in s.anyOf[0].properties[b]",
        ],
    );
    check_schema(
        json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
        &[
            "s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but \
           metadata is implicitly specified",
        ],
    );
    let both = json!([{"type": "integer"}, {"type": "string"}]);
    check_schema(
        json!({"type": "object", "properties": {
            "a": {"x-kubernetes-int-or-string": true, "anyOf": both},
            "b": {"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": both}]},
        }}),
        &[],
    );
    check_schema(
        json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}),
        &[
            "s.properties[a].pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: error parsing \
           regexp: regex parse error:\n    (\n    ^\nerror: unclosed group",
        ],
    );
}

#[test]
fn version_2_of_openapi_has_fewer_words() {
    let own = publish::ObjectFields {
        api_version: json!({"type": "string"}),
        kind: json!({"type": "string"}),
        metadata: json!({"$ref": "#/m"}),
    };
    let schema = json!({"type": "object", "required": ["n", "a"], "properties": {
        "n": {"type": "object", "nullable": true, "properties": {"x": {"type": "string"}}},
        "a": {"x-kubernetes-int-or-string": true},
        "o": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }});
    let shown = publish::published(&schema, true, &own);
    assert_eq!(shown["properties"]["n"], json!({}));
    assert_eq!(shown["properties"]["a"], json!({"x-kubernetes-int-or-string": true}));
    assert_eq!(shown["properties"]["o"], json!({"x-kubernetes-preserve-unknown-fields": true}));
    assert_eq!(shown["required"], json!(["a"]));
    let shown = publish::published(&schema, false, &own);
    assert_eq!(
        shown["properties"]["a"],
        json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]})
    );
    assert_eq!(shown["properties"]["metadata"], json!({"$ref": "#/m"}));
}
