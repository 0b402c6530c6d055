//! Quantities of resources.
//!
//! Upstream: apiserver/pkg/cel/library/quantity.go

use std::cmp::Ordering;

use apimachinery::quantity::Quantity;

use super::{Extension, Function, no_overload, semver};
use crate::error::EvalError;
use crate::value::Value;

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

pub static FUNCTIONS: &[Function] = &[
    Function {
        name: "quantity",
        eval: |args| match args {
            [Value::String(text)] => Quantity::parse(text)
                .map(|quantity| Value::Extension(Extension::Quantity(quantity)))
                .map_err(|error| EvalError::new(error.to_string())),
            _ => no_overload(),
        },
        overloads: &[("string_to_quantity", "(string) -> kubernetes.Quantity")],
    },
    Function {
        name: "isQuantity",
        eval: |args| match args {
            [Value::String(text)] => Ok(Value::Bool(Quantity::parse(text).is_ok())),
            _ => no_overload(),
        },
        overloads: &[("is_quantity_string", "(string) -> bool")],
    },
    Function {
        name: "sign",
        eval: |args| one(args, |quantity| Ok(Value::Int(sign(quantity.cmp(&Quantity::default()))))),
        overloads: &[("quantity_sign", "(kubernetes.Quantity) -> int")],
    },
    Function {
        name: "asInteger",
        eval: |args| {
            one(args, |quantity| {
                let whole = whole(quantity).ok_or_else(|| EvalError::new("cannot convert value to integer"));
                whole.map(Value::Int)
            })
        },
        overloads: &[("quantity_get_int", "kubernetes.Quantity.() -> int")],
    },
    Function {
        name: "isInteger",
        eval: |args| one(args, |quantity| Ok(Value::Bool(whole(quantity).is_some()))),
        overloads: &[("quantity_is_integer", "kubernetes.Quantity.() -> bool")],
    },
    Function {
        name: "asApproximateFloat",
        eval: |args| one(args, |quantity| Ok(Value::Double(quantity.as_f64()))),
        overloads: &[("quantity_get_float", "kubernetes.Quantity.() -> double")],
    },
    Function {
        name: "add",
        eval: |args| combine(args, Quantity::add),
        overloads: &[
            ("quantity_add", "kubernetes.Quantity.(kubernetes.Quantity) -> kubernetes.Quantity"),
            ("quantity_add_int", "kubernetes.Quantity.(int) -> kubernetes.Quantity"),
        ],
    },
    Function {
        name: "sub",
        eval: |args| combine(args, Quantity::sub),
        overloads: &[
            ("quantity_sub", "kubernetes.Quantity.(kubernetes.Quantity) -> kubernetes.Quantity"),
            ("quantity_sub_int", "kubernetes.Quantity.(int) -> kubernetes.Quantity"),
        ],
    },
    // Versions compare by the same names.
    Function {
        name: "isGreaterThan",
        eval: |args| compare(args).map(|order| Value::Bool(order.is_gt())),
        overloads: &[
            ("quantity_is_greater_than", "kubernetes.Quantity.(kubernetes.Quantity) -> bool"),
            ("semver_is_greater_than", "kubernetes.Semver.(kubernetes.Semver) -> bool"),
        ],
    },
    Function {
        name: "isLessThan",
        eval: |args| compare(args).map(|order| Value::Bool(order.is_lt())),
        overloads: &[
            ("quantity_is_less_than", "kubernetes.Quantity.(kubernetes.Quantity) -> bool"),
            ("semver_is_less_than", "kubernetes.Semver.(kubernetes.Semver) -> bool"),
        ],
    },
    Function {
        name: "compareTo",
        eval: |args| compare(args).map(|order| Value::Int(sign(order))),
        overloads: &[
            ("quantity_compare_to", "kubernetes.Quantity.(kubernetes.Quantity) -> int"),
            ("semver_compare_to", "kubernetes.Semver.(kubernetes.Semver) -> int"),
        ],
    },
];

fn sign(order: Ordering) -> i64 {
    order as i64
}

fn whole(quantity: &Quantity) -> Option<i64> {
    let value = quantity.value();
    // What does not fit is not what it was written as.
    (quantity.is_whole() && Quantity::from_value_i64(value) == *quantity).then_some(value)
}

fn one<'a>(args: &[Value<'a>], compute: impl Fn(&Quantity) -> Result<'a>) -> Result<'a> {
    match args {
        [Value::Extension(Extension::Quantity(quantity))] => compute(quantity),
        _ => no_overload(),
    }
}

fn combine<'a>(args: &[Value<'a>], change: fn(&mut Quantity, &Quantity)) -> Result<'a> {
    let (quantity, by) = match args {
        [Value::Extension(Extension::Quantity(quantity)), Value::Extension(Extension::Quantity(by))] => {
            (quantity, *by)
        }
        [Value::Extension(Extension::Quantity(quantity)), Value::Int(by)] => {
            (quantity, Quantity::from_value_i64(*by))
        }
        _ => return no_overload(),
    };
    let mut result = *quantity;
    change(&mut result, &by);
    Ok(Value::Extension(Extension::Quantity(result)))
}

fn compare(args: &[Value<'_>]) -> std::result::Result<Ordering, EvalError> {
    match args {
        [Value::Extension(Extension::Quantity(a)), Value::Extension(Extension::Quantity(b))] => Ok(a.cmp(b)),
        [Value::Extension(Extension::Semver(a)), Value::Extension(Extension::Semver(b))] => {
            Ok(semver::Version::order(a, b))
        }
        _ => no_overload(),
    }
}
