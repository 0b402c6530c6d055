//! Every expression of `expressions.jsonl` compiles, costs and evaluates as upstream's library says. The file holds
//! one line an expression: its errors, or its type, its estimated and its actual cost, and its value.

use cel::{DeclType, Env, Type, Value};
use serde_json::{Value as Json, json};

const CASES: &str = include_str!("expressions.jsonl");

fn object() -> Json {
    json!({"a": {"b": "str", "n": 5, "f": 1.5, "l": [1, 2, 3], "s": ["x", "y", "zz"], "m": {"k": "v", "k2": "v2"},
                 "t": true, "nul": null, "objs": [{"name": "n1", "v": 1}, {"name": "n2", "v": 2}]}})
}

fn schema() -> Json {
    let text = json!({"type": "string"});
    let integer = json!({"type": "integer"});
    json!({"type": "object", "required": ["b"], "properties": {
        "b": {"type": "string", "maxLength": 10}, "n": integer, "f": {"type": "number"},
        "l": {"type": "array", "maxItems": 5, "items": integer}, "s": {"type": "array", "items": text},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "maxItems": 4,
                "items": {"type": "string", "maxLength": 3}},
        "ml": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
               "items": {"type": "object", "required": ["name"], "properties": {"name": text, "v": integer}}},
        "m": {"type": "object", "additionalProperties": text},
        "mm": {"type": "object", "maxProperties": 3, "additionalProperties": {"type": "string", "maxLength": 7}},
        "d": {"type": "string", "format": "duration"}, "ts": {"type": "string", "format": "date-time"},
        "by": {"type": "string", "format": "byte"}, "ios": {"x-kubernetes-int-or-string": true},
        "en": {"type": "string", "enum": ["aa", "bbbb"]}, "a-b": text, "nul": {"type": "string", "nullable": true},
        "namespace": text, "o": {"type": "object", "properties": {"x": integer}},
    }})
}

fn this() -> Json {
    json!({"b": "hello", "n": 3, "f": 2, "l": [3, 1, 2], "s": ["p", "q"], "set": ["a", "b"],
           "ml": [{"name": "x", "v": 1}, {"name": "y", "v": 2}], "m": {"k": "v"}, "mm": {"q": "w"}, "d": "1h2m",
           "ts": "2020-01-02T03:04:05Z", "by": "aGVsbG8=", "ios": "50%", "en": "aa", "a-b": "dash", "nul": null,
           "namespace": "ns", "o": {"x": 9}})
}

/// A value as the file shows it; of types that JSON does not have, nothing is shown.
fn show(value: &Value<'_>) -> Option<Json> {
    match value {
        Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Double(_) | Value::String(_) => {
            value.to_json().ok()
        }
        Value::Optional(held) => {
            let held = match held {
                Some(held) => show(held)?,
                None => Json::Null,
            };
            Some(json!({"optional": held}))
        }
        Value::List(list) => {
            list.iter().map(|item| show(&item.ok()?)).collect::<Option<Vec<_>>>().map(Json::Array)
        }
        Value::Map(map) => {
            let entry = |key: cel::Key| Some((key.to_string(), show(&map.get(&key)?.ok()?)?));
            map.keys().into_iter().map(entry).collect::<Option<serde_json::Map<_, _>>>().map(Json::Object)
        }
        _ => None,
    }
}

fn same(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Number(a), Json::Number(b)) => a.as_f64() == b.as_f64(),
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

/// What differs from what the line says.
fn check(line: &Json) -> Vec<String> {
    let text = |key: &str| line[key].as_str();
    let (object, schema, this, params, old) = (object(), schema(), this(), json!({"p": 1}), Json::Null);
    let decl = DeclType::from_schema(&schema, false).expect("the schema is visible").named("selfType");
    let mut env = Env::kubernetes()
        .variable("object", Type::Dyn)
        .variable("oldObject", Type::Dyn)
        .variable("params", Type::Dyn)
        .variable("authorizer", Type::authorizer());
    if line["patch"] == true {
        env = env.patch_types();
    } else {
        env = env
            .variable("self", decl.cel_type().clone())
            .variable("oldSelf", Type::optional(decl.cel_type().clone()));
    }
    let mut wrong = Vec::new();
    let mut differ = |what: &str, expected: &str, got: String| {
        if expected != got {
            wrong.push(format!("{what}: expected {expected}\n    got {got}"));
        }
    };
    let program = match env.compile(text("expr").expect("every line has an expression")) {
        Err(errors) => {
            differ("compile", text("compile").unwrap_or("nothing wrong"), errors.to_string());
            return wrong;
        }
        Ok(program) => program,
    };
    if let Some(expected) = text("compile") {
        differ("compile", expected, "nothing wrong".to_owned());
    }
    if let Some(expected) = text("type") {
        let ty = program.result_type();
        let shown = match ty {
            Type::Duration => "google.protobuf.Duration".to_owned(),
            Type::Timestamp => "google.protobuf.Timestamp".to_owned(),
            Type::Null => "null_type".to_owned(),
            ty => ty.to_string(),
        };
        differ("type", expected, shown);
    }
    if let Some(expected) = text("estimate") {
        let estimate = program.estimated_cost((line["patch"] != true).then_some(&decl));
        differ("estimate", expected, format!("{} {}", estimate.min, estimate.max));
    }
    let mut bindings = vec![
        ("object", Value::json(&object)),
        ("oldObject", Value::json(&old)),
        ("params", Value::json(&params)),
    ];
    if line["patch"] != true {
        bindings.push(("self", Value::typed(&this, &decl).expect("the data is of the schema")));
    }
    let evaluation = program.eval(&bindings, cel::PER_CALL_LIMIT);
    if let Some(expected) = text("cost") {
        differ("cost", expected, evaluation.cost.to_string());
    }
    match evaluation.result {
        Err(error) => {
            let expected = text("eval").or(text("program")).unwrap_or("a value");
            differ("error", expected, error.to_string());
        }
        Ok(value) => {
            if let Some(expected) = text("eval").or(text("program")) {
                differ("error", expected, format!("{value:?}"));
            }
            if let (Some(expected), Some(shown)) = (line.get("value"), show(&value))
                && !same(expected, &shown)
            {
                differ("value", &expected.to_string(), shown.to_string());
            }
        }
    }
    wrong
}

#[test]
fn expressions_do_what_upstream_does() {
    let mut problems = Vec::new();
    for line in CASES.lines() {
        let line: Json = serde_json::from_str(line).expect("every line is JSON");
        let wrong = check(&line);
        if !wrong.is_empty() {
            problems.push(format!("{}\n  {}", line["expr"], wrong.join("\n  ")));
        }
    }
    assert!(problems.is_empty(), "{} differ:\n{}", problems.len(), problems.join("\n"));
}
