//! Operators, conversions between types, sizes.

use std::cmp::Ordering;

use super::{Extension, Function, no_overload, time};
use crate::error::EvalError;
use crate::types::Type;
use crate::value::{Key, Map, Text, Value, contains, equal};

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

pub static OPERATORS: &[Function] = &[
    Function { name: "!_", eval: not, overloads: &[("logical_not", "(bool) -> bool")] },
    Function {
        name: "-_",
        eval: negate,
        overloads: &[("negate_double", "(double) -> double"), ("negate_int64", "(int) -> int")],
    },
    Function {
        name: "@in",
        eval: within,
        overloads: &[("in_list", "(A, list(A)) -> bool"), ("in_map", "(A, map(A, B)) -> bool")],
    },
    // The evaluator has these itself: they do not evaluate all their arguments, or look at errors.
    Function {
        name: "@not_strictly_false",
        eval: not,
        overloads: &[("not_strictly_false", "(bool) -> bool")],
    },
    Function { name: "_&&_", eval: not, overloads: &[("logical_and", "(bool, bool) -> bool")] },
    Function { name: "_||_", eval: not, overloads: &[("logical_or", "(bool, bool) -> bool")] },
    Function { name: "_?_:_", eval: not, overloads: &[("conditional", "(bool, A, A) -> A")] },
    Function {
        name: "_?._",
        eval: not,
        overloads: &[("select_optional_field", "(dyn, string) -> optional_type(V)")],
    },
    Function {
        name: "_[_]",
        eval: not,
        overloads: &[
            ("index_list", "(list(A), int) -> A"),
            ("index_map", "(map(A, B), A) -> B"),
            ("optional_list_index_int", "(optional_type(list(V)), int) -> optional_type(V)"),
            ("optional_map_index_value", "(optional_type(map(K, V)), K) -> optional_type(V)"),
        ],
    },
    Function {
        name: "_[?_]",
        eval: not,
        overloads: &[
            ("list_optindex_optional_int", "(list(V), int) -> optional_type(V)"),
            ("optional_list_optindex_optional_int", "(optional_type(list(V)), int) -> optional_type(V)"),
            ("map_optindex_optional_value", "(map(K, V), K) -> optional_type(V)"),
            ("optional_map_optindex_optional_value", "(optional_type(map(K, V)), K) -> optional_type(V)"),
        ],
    },
    Function { name: "_==_", eval: equals, overloads: &[("equals", "(A, A) -> bool")] },
    Function { name: "_!=_", eval: not_equals, overloads: &[("not_equals", "(A, A) -> bool")] },
    Function {
        name: "_+_",
        eval: add,
        overloads: &[
            ("add_bytes", "(bytes, bytes) -> bytes"),
            ("add_double", "(double, double) -> double"),
            ("add_duration_duration", "(duration, duration) -> duration"),
            ("add_duration_timestamp", "(duration, timestamp) -> timestamp"),
            ("add_timestamp_duration", "(timestamp, duration) -> timestamp"),
            ("add_int64", "(int, int) -> int"),
            ("add_list", "(list(A), list(A)) -> list(A)"),
            ("add_string", "(string, string) -> string"),
            ("add_uint64", "(uint, uint) -> uint"),
        ],
    },
    Function {
        name: "_-_",
        eval: subtract,
        overloads: &[
            ("subtract_double", "(double, double) -> double"),
            ("subtract_duration_duration", "(duration, duration) -> duration"),
            ("subtract_int64", "(int, int) -> int"),
            ("subtract_timestamp_duration", "(timestamp, duration) -> timestamp"),
            ("subtract_timestamp_timestamp", "(timestamp, timestamp) -> duration"),
            ("subtract_uint64", "(uint, uint) -> uint"),
        ],
    },
    Function {
        name: "_*_",
        eval: multiply,
        overloads: &[
            ("multiply_double", "(double, double) -> double"),
            ("multiply_int64", "(int, int) -> int"),
            ("multiply_uint64", "(uint, uint) -> uint"),
        ],
    },
    Function {
        name: "_/_",
        eval: divide,
        overloads: &[
            ("divide_double", "(double, double) -> double"),
            ("divide_int64", "(int, int) -> int"),
            ("divide_uint64", "(uint, uint) -> uint"),
        ],
    },
    Function {
        name: "_%_",
        eval: modulo,
        overloads: &[("modulo_int64", "(int, int) -> int"), ("modulo_uint64", "(uint, uint) -> uint")],
    },
    Function { name: "_<_", eval: |args| order(args, Ordering::is_lt), overloads: COMPARISONS },
    Function { name: "_<=_", eval: |args| order(args, Ordering::is_le), overloads: COMPARISONS },
    Function { name: "_>_", eval: |args| order(args, Ordering::is_gt), overloads: COMPARISONS },
    Function { name: "_>=_", eval: |args| order(args, Ordering::is_ge), overloads: COMPARISONS },
    Function {
        name: "size",
        eval: size,
        overloads: &[
            ("size_bytes", "(bytes) -> int"),
            ("bytes_size", "bytes.() -> int"),
            ("size_list", "(list(A)) -> int"),
            ("list_size", "list(A).() -> int"),
            ("size_map", "(map(A, B)) -> int"),
            ("map_size", "map(A, B).() -> int"),
            ("size_string", "(string) -> int"),
            ("string_size", "string.() -> int"),
        ],
    },
    Function {
        name: "cel.@mapInsert",
        eval: |args| map_insert(args.to_vec()),
        overloads: &[
            ("@mapInsert_map_key_value", "(map(K, V), K, V) -> map(K, V)"),
            ("@mapInsert_map_map", "(map(K, V), map(K, V)) -> map(K, V)"),
        ],
    },
];

const COMPARISONS: &[(&str, &str)] = &[
    ("compare_{T}", "({T}, {T}) -> bool"),
    ("compare_int_double", "(int, double) -> bool"),
    ("compare_int_uint", "(int, uint) -> bool"),
    ("compare_uint_double", "(uint, double) -> bool"),
    ("compare_uint_int", "(uint, int) -> bool"),
    ("compare_double_int", "(double, int) -> bool"),
    ("compare_double_uint", "(double, uint) -> bool"),
];

pub static CONVERSIONS: &[Function] = &[
    Function {
        name: "bool",
        eval: to_bool,
        overloads: &[("bool_to_bool", "(bool) -> bool"), ("string_to_bool", "(string) -> bool")],
    },
    Function {
        name: "bytes",
        eval: to_bytes,
        overloads: &[("bytes_to_bytes", "(bytes) -> bytes"), ("string_to_bytes", "(string) -> bytes")],
    },
    Function {
        name: "double",
        eval: to_double,
        overloads: &[
            ("double_to_double", "(double) -> double"),
            ("int64_to_double", "(int) -> double"),
            ("string_to_double", "(string) -> double"),
            ("uint64_to_double", "(uint) -> double"),
        ],
    },
    Function { name: "dyn", eval: to_dyn, overloads: &[("to_dyn", "(A) -> dyn")] },
    Function {
        name: "int",
        eval: to_int,
        overloads: &[
            ("int64_to_int64", "(int) -> int"),
            ("double_to_int64", "(double) -> int"),
            ("duration_to_int64", "(duration) -> int"),
            ("string_to_int64", "(string) -> int"),
            ("timestamp_to_int64", "(timestamp) -> int"),
            ("uint64_to_int64", "(uint) -> int"),
        ],
    },
    Function {
        name: "string",
        eval: to_string,
        overloads: &[
            ("string_to_string", "(string) -> string"),
            ("bool_to_string", "(bool) -> string"),
            ("bytes_to_string", "(bytes) -> string"),
            ("double_to_string", "(double) -> string"),
            ("duration_to_string", "(duration) -> string"),
            ("int64_to_string", "(int) -> string"),
            ("timestamp_to_string", "(timestamp) -> string"),
            ("uint64_to_string", "(uint) -> string"),
            ("ip_to_string", "(net.IP) -> string"),
            ("cidr_to_string", "(net.CIDR) -> string"),
        ],
    },
    Function { name: "type", eval: to_type, overloads: &[("type", "(A) -> type(A)")] },
    Function {
        name: "uint",
        eval: to_uint,
        overloads: &[
            ("uint64_to_uint64", "(uint) -> uint"),
            ("double_to_uint64", "(double) -> uint"),
            ("int64_to_uint64", "(int) -> uint"),
            ("string_to_uint64", "(string) -> uint"),
        ],
    },
];

fn int_overflow() -> EvalError {
    EvalError::new("integer overflow")
}

fn uint_overflow() -> EvalError {
    EvalError::new("unsigned integer overflow")
}

fn not<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Bool(flag)] => Ok(Value::Bool(!flag)),
        _ => no_overload(),
    }
}

fn negate<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Int(number)] => number.checked_neg().map(Value::Int).ok_or_else(int_overflow),
        [Value::Double(number)] => Ok(Value::Double(-number)),
        _ => no_overload(),
    }
}

fn within<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [wanted, Value::List(list)] => Ok(Value::Bool(contains(list, wanted))),
        [wanted, Value::Map(map)] => {
            Ok(Value::Bool(Key::from_value(wanted).is_some_and(|key| map.get(&key).is_some())))
        }
        _ => no_overload(),
    }
}

fn equals<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [a, b] => Ok(Value::Bool(equal(a, b))),
        _ => no_overload(),
    }
}

fn not_equals<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [a, b] => Ok(Value::Bool(!equal(a, b))),
        _ => no_overload(),
    }
}

fn order<'a>(args: &[Value<'a>], holds: fn(Ordering) -> bool) -> Result<'a> {
    match args {
        [Value::Double(a), b] if a.is_nan() && is_number(b) => Ok(Value::Bool(false)),
        [a, Value::Double(b)] if b.is_nan() && is_number(a) => Ok(Value::Bool(false)),
        [a, b] => a.compare(b).map(|order| Value::Bool(holds(order))).ok_or_else(EvalError::no_such_overload),
        _ => no_overload(),
    }
}

fn is_number(value: &Value<'_>) -> bool {
    matches!(value, Value::Int(_) | Value::Uint(_) | Value::Double(_))
}

pub fn add<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Int(a), Value::Int(b)] => a.checked_add(*b).map(Value::Int).ok_or_else(int_overflow),
        [Value::Uint(a), Value::Uint(b)] => a.checked_add(*b).map(Value::Uint).ok_or_else(uint_overflow),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a + b)),
        [Value::String(a), Value::String(b)] => Ok(Value::string(format!("{}{}", &**a, &**b))),
        [Value::Bytes(a), Value::Bytes(b)] => Ok(Value::bytes([&**a, &**b].concat())),
        [Value::List(a), Value::List(b)] => a.clone().concat(b).map(Value::List),
        [Value::Duration(a), Value::Duration(b)] => {
            a.checked_add(*b).map(Value::Duration).ok_or_else(int_overflow)
        }
        [Value::Timestamp(moment), Value::Duration(by)] | [Value::Duration(by), Value::Timestamp(moment)] => {
            time::shift(*moment, *by)
        }
        _ => no_overload(),
    }
}

fn subtract<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Int(a), Value::Int(b)] => a.checked_sub(*b).map(Value::Int).ok_or_else(int_overflow),
        [Value::Uint(a), Value::Uint(b)] => a.checked_sub(*b).map(Value::Uint).ok_or_else(uint_overflow),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a - b)),
        [Value::Duration(a), Value::Duration(b)] => {
            a.checked_sub(*b).map(Value::Duration).ok_or_else(int_overflow)
        }
        [Value::Timestamp(moment), Value::Duration(by)] => {
            time::shift(*moment, by.checked_neg().ok_or_else(int_overflow)?)
        }
        [Value::Timestamp(a), Value::Timestamp(b)] => {
            let nanoseconds = a.as_nanosecond() - b.as_nanosecond();
            i64::try_from(nanoseconds).map(Value::Duration).map_err(|_| int_overflow())
        }
        _ => no_overload(),
    }
}

fn multiply<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Int(a), Value::Int(b)] => a.checked_mul(*b).map(Value::Int).ok_or_else(int_overflow),
        [Value::Uint(a), Value::Uint(b)] => a.checked_mul(*b).map(Value::Uint).ok_or_else(uint_overflow),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a * b)),
        _ => no_overload(),
    }
}

fn divide<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            Err(EvalError::new("division by zero"))
        }
        [Value::Int(a), Value::Int(b)] => a.checked_div(*b).map(Value::Int).ok_or_else(int_overflow),
        [Value::Uint(a), Value::Uint(b)] => Ok(Value::Uint(a / b)),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a / b)),
        _ => no_overload(),
    }
}

fn modulo<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            Err(EvalError::new("modulus by zero"))
        }
        [Value::Int(a), Value::Int(b)] => a.checked_rem(*b).map(Value::Int).ok_or_else(int_overflow),
        [Value::Uint(a), Value::Uint(b)] => Ok(Value::Uint(a % b)),
        _ => no_overload(),
    }
}

fn size<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [value @ (Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_))] => {
            Ok(Value::Int(value.size() as i64))
        }
        _ => no_overload(),
    }
}

/// Adds an entry, or the entries of another map. No key may be there already.
pub fn map_insert<'a>(args: Vec<Value<'a>>) -> Result<'a> {
    let mut args = args.into_iter();
    let (Some(Value::Map(Map::Entries(mut entries))), Some(second), third) =
        (args.next(), args.next(), args.next())
    else {
        return no_overload();
    };
    let into = std::rc::Rc::make_mut(&mut entries);
    let mut insert = |key: Key, value: Value<'a>| match into.insert(key.clone(), value) {
        None => Ok(()),
        Some(_) => Err(EvalError::new(format!("insert failed: key {key} already exists"))),
    };
    match (second, third) {
        (Value::Map(more), None) => {
            for key in more.keys() {
                if let Some(value) = more.get(&key) {
                    insert(key, value?)?;
                }
            }
        }
        (key, Some(value)) => {
            let key = Key::from_value(&key).ok_or_else(EvalError::no_such_overload)?;
            insert(key, value)?;
        }
        _ => return no_overload(),
    }
    Ok(Value::Map(Map::Entries(entries)))
}

fn cannot_convert(from: &str, to: &str) -> EvalError {
    EvalError::new(format!("type conversion error from '{from}' to '{to}'"))
}

fn to_bool<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Bool(flag)] => Ok(Value::Bool(*flag)),
        // Upstream: strconv.ParseBool
        [Value::String(text)] => match &**text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Value::Bool(false)),
            _ => Err(cannot_convert("string", "bool")),
        },
        _ => no_overload(),
    }
}

fn to_bytes<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Bytes(bytes)] => Ok(Value::Bytes(bytes.clone())),
        [Value::String(text)] => Ok(Value::bytes(text.as_bytes())),
        _ => no_overload(),
    }
}

fn to_double<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Double(number)] => Ok(Value::Double(*number)),
        [Value::Int(number)] => Ok(Value::Double(*number as f64)),
        [Value::Uint(number)] => Ok(Value::Double(*number as f64)),
        [Value::String(text)] => {
            text.parse().map(Value::Double).map_err(|_| cannot_convert("string", "double"))
        }
        _ => no_overload(),
    }
}

fn to_dyn<'a>(args: &[Value<'a>]) -> Result<'a> {
    args.first().cloned().map_or_else(no_overload, Ok)
}

fn to_int<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Int(number)] => Ok(Value::Int(*number)),
        [Value::Uint(number)] => i64::try_from(*number).map(Value::Int).map_err(|_| int_overflow()),
        [Value::Double(number)] => {
            // The bounds themselves are no doubles that fit.
            let fits = *number > i64::MIN as f64 && *number < i64::MAX as f64;
            if fits { Ok(Value::Int(*number as i64)) } else { Err(int_overflow()) }
        }
        [Value::Duration(nanoseconds)] => Ok(Value::Int(*nanoseconds)),
        [Value::Timestamp(moment)] => Ok(Value::Int(moment.as_second())),
        [Value::String(text)] => text.parse().map(Value::Int).map_err(|_| cannot_convert("string", "int")),
        _ => no_overload(),
    }
}

fn to_uint<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Uint(number)] => Ok(Value::Uint(*number)),
        [Value::Int(number)] => u64::try_from(*number).map(Value::Uint).map_err(|_| uint_overflow()),
        [Value::Double(number)] => {
            let fits = *number >= 0.0 && *number < u64::MAX as f64;
            if fits { Ok(Value::Uint(*number as u64)) } else { Err(uint_overflow()) }
        }
        [Value::String(text)] => text.parse().map(Value::Uint).map_err(|_| cannot_convert("string", "uint")),
        _ => no_overload(),
    }
}

pub fn to_string<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::String(text)] => Ok(Value::String(text.clone())),
        [Value::Bool(flag)] => Ok(Value::string(flag.to_string())),
        [Value::Int(number)] => Ok(Value::string(number.to_string())),
        [Value::Uint(number)] => Ok(Value::string(number.to_string())),
        [Value::Double(number)] => Ok(Value::string(format_double(*number))),
        [Value::Duration(_)] => Ok(Value::string(time::format_duration(&args[0]))),
        [Value::Timestamp(moment)] => Ok(Value::string(moment.to_string())),
        [Value::Bytes(bytes)] => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Value::string(text)),
            Err(_) => Err(EvalError::new("invalid UTF-8 in bytes, cannot convert to string")),
        },
        [Value::Extension(Extension::Ip(address))] => Ok(Value::string(address.to_string())),
        [Value::Extension(Extension::Cidr(cidr))] => Ok(Value::String(Text::from(cidr.to_string()))),
        _ => no_overload(),
    }
}

/// As Go writes a float with the fewest digits.
pub fn format_double(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i32 = exponent.parse().unwrap_or(0);
    // Upstream: strconv.FormatFloat(v, 'g', -1, 64)
    if !(-4..6).contains(&power) {
        let sign = if power < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", power.abs());
    }
    format!("{number}")
}

fn to_type<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Type(_)] => Ok(Value::Type(Type::Type(None))),
        [value] => Ok(Value::Type(value.type_of())),
        _ => no_overload(),
    }
}
