//! Nothing that an expression says takes unbounded time, memory or stack.

use cel::{Env, EvalError, PER_CALL_LIMIT, Type, Value};
use serde_json::json;

/// Threads of servers have at least so much.
const STACK_BYTES: usize = 2 << 20;

fn outcome(text: &str) -> Result<Result<bool, EvalError>, String> {
    let text = text.to_owned();
    let run = move || {
        let object = json!({"l": (0..1000).collect::<Vec<i64>>(), "s": "x".repeat(1000)});
        let program = Env::kubernetes()
            .variable("object", Type::Dyn)
            .compile(&text)
            .map_err(|errors| errors.to_string())?;
        program.estimated_cost(None);
        let evaluation = program.eval(&[("object", Value::json(&object))], PER_CALL_LIMIT);
        Ok(evaluation.result.map(|value| value.as_bool().unwrap_or(true)))
    };
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(run).expect("a thread starts");
    thread.join().expect("nothing panics")
}

#[test]
fn what_is_too_large_is_refused_before_it_is_built() {
    let deep = [
        "(".repeat(5000) + "1" + &")".repeat(5000),
        "[".repeat(5000) + &"]".repeat(5000),
        "1".to_owned() + &"+1".repeat(5000),
        "object".to_owned() + &".a".repeat(5000),
        "!".repeat(5000) + "(" + &"!(".repeat(400) + "true" + &")".repeat(401),
        "object.l".to_owned() + &".map(x, x)".repeat(400),
        "object.?l".to_owned() + &".optMap(x, x)".repeat(60),
    ];
    for text in deep {
        let error = outcome(&text).expect_err("the text is too deep");
        assert!(
            error.contains("limit exceeded") || error.contains("exceeds limit"),
            "{}",
            &error[..200.min(error.len())]
        );
    }
    let error = outcome(&" ".repeat(200_000)).expect_err("the text is too long");
    assert!(
        error.contains("expression code point size exceeds limit: size: 200000, limit 100000"),
        "{error}"
    );
}

#[test]
fn what_may_nest_fits_the_stack() {
    for text in [
        "(".repeat(100) + "true" + &")".repeat(100),
        "object.s == ''".to_owned() + &" || object.s == ''".repeat(2000),
        "1".to_owned() + &" + 1".repeat(200) + " > 0",
        "[".repeat(100) + &"]".repeat(100),
        "true ? ".repeat(100).replace("? ", "? true : ") + "true",
    ] {
        outcome(&text).expect("the text compiles").expect("the expression has a value");
    }
}

#[test]
fn what_takes_long_is_stopped() {
    for text in [
        "object.l.all(a, object.l.all(b, object.l.all(c, true)))",
        "lists.range(1000000000).size() > 0",
        "object.l.map(a, object.s + object.s).map(b, b + b).join(object.s).size() > 0",
        "object.l.all(a, object.s.replace('x', object.s).replace('x', object.s).size() > 0)",
        "object.l.map(a, object.l).map(b, object.l.map(c, b)).flatten().size() > 0",
        "object.l.all(a, dyn(a) in dyn(object.l.map(x, x + 1)) || true)",
    ] {
        assert_eq!(outcome(text), Ok(Err(EvalError::CostLimitExceeded)), "{text}");
    }
    let huge = outcome("object.s.matches('((((x{1000}){1000}){1000}){1000})')");
    assert!(huge.is_err() || huge.is_ok_and(|result| result.is_err()), "a pattern has a size");
}
