//! Expressions: what compiles has a cost, and runs within its limit.

#![no_main]

use cel::{Env, PER_CALL_LIMIT, Type, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let environment = Env::kubernetes().variable("object", Type::Dyn).variable("self", Type::String);
    let Ok(program) = environment.compile(text) else { return };
    program.estimated_cost(None);
    let object = serde_json::json!({
        "spec": {"replicas": 3, "list": [1, 2, 3], "text": "a.b-c"}, "time": "2026-01-02T03:04:05Z", "null": null
    });
    let variables = [("object", Value::json(&object)), ("self", Value::json(&object["spec"]["text"]))];
    let _ = program.eval(&variables, PER_CALL_LIMIT);
});
