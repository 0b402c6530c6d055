//! Values that may be absent.
//!
//! Upstream: cel-go cel/library.go OptionalTypes

use super::{Function, no_overload};
use crate::error::EvalError;
use crate::value::Value;

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

pub static FUNCTIONS: &[Function] = &[
    Function { name: "optional.of", eval: of, overloads: &[("optional_of", "(V) -> optional_type(V)")] },
    Function {
        name: "optional.ofNonZeroValue",
        eval: of_non_zero,
        overloads: &[("optional_ofNonZeroValue", "(V) -> optional_type(V)")],
    },
    Function { name: "optional.none", eval: none, overloads: &[("optional_none", "() -> optional_type(V)")] },
    Function {
        name: "optional.unwrap",
        eval: unwrap,
        overloads: &[("optional_unwrap", "(list(optional_type(V))) -> list(V)")],
    },
    Function {
        name: "unwrapOpt",
        eval: unwrap,
        overloads: &[("optional_unwrapOpt", "list(optional_type(V)).() -> list(V)")],
    },
    Function {
        name: "hasValue",
        eval: has_value,
        overloads: &[("optional_hasValue", "optional_type(V).() -> bool")],
    },
    Function { name: "value", eval: value, overloads: &[("optional_value", "optional_type(V).() -> V")] },
    // The evaluator has these two itself: they evaluate their argument only when it is needed.
    Function {
        name: "or",
        eval: value,
        overloads: &[("optional_or_optional", "optional_type(V).(optional_type(V)) -> optional_type(V)")],
    },
    Function {
        name: "orValue",
        eval: value,
        overloads: &[("optional_orValue_value", "optional_type(V).(V) -> V")],
    },
];

fn of<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [value] => Ok(Value::some(value.clone())),
        _ => no_overload(),
    }
}

fn of_non_zero<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [value] if value.is_zero() => Ok(Value::none()),
        _ => of(args),
    }
}

fn none<'a>(_: &[Value<'a>]) -> Result<'a> {
    Ok(Value::none())
}

fn unwrap<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::List(list)] = args else { return no_overload() };
    let mut held = Vec::new();
    for item in list.iter() {
        match item? {
            Value::Optional(Some(value)) => held.push((*value).clone()),
            Value::Optional(None) => {}
            other => {
                let message = format!("value {other:?} is not optional");
                return Err(EvalError::new(message));
            }
        }
    }
    Ok(Value::list(held))
}

fn has_value<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Optional(held)] => Ok(Value::Bool(held.is_some())),
        _ => no_overload(),
    }
}

fn value<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Optional(Some(held))] => Ok((**held).clone()),
        [Value::Optional(None)] => Err(EvalError::new("optional.none() dereference")),
        _ => no_overload(),
    }
}
