//! Lists and sets.
//!
//! Upstream: apiserver/pkg/cel/library/lists.go, cel-go ext/lists.go, ext/sets.go

use std::cmp::Ordering;

use super::{Function, no_overload, standard, strings};
use crate::error::EvalError;
use crate::types::Type;
use crate::value::{List, Value, contains};

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

/// The longest list that a function makes of lists in lists.
const MAX_ITEMS: usize = 1 << 20;

pub static FUNCTIONS: &[Function] = &[
    Function {
        name: "isSorted",
        eval: is_sorted,
        overloads: &[("list_{T}_is_sorted_bool", "list({T}).() -> bool")],
    },
    Function {
        name: "sum",
        eval: sum,
        overloads: &[
            ("list_int_sum_int", "list(int).() -> int"),
            ("list_uint_sum_uint", "list(uint).() -> uint"),
            ("list_double_sum_double", "list(double).() -> double"),
            ("list_duration_sum_duration", "list(duration).() -> duration"),
        ],
    },
    Function {
        name: "max",
        eval: |args| extreme(args, "max", Ordering::Greater),
        overloads: &[("list_{T}_max_{T}", "list({T}).() -> {T}")],
    },
    Function {
        name: "min",
        eval: |args| extreme(args, "min", Ordering::Less),
        overloads: &[("list_{T}_min_{T}", "list({T}).() -> {T}")],
    },
    Function {
        name: "indexOf",
        eval: strings::index_of,
        overloads: &[
            ("list_a_index_of_int", "list(A).(A) -> int"),
            ("string_index_of_string", "string.(string) -> int"),
            ("string_index_of_string_int", "string.(string, int) -> int"),
        ],
    },
    Function {
        name: "lastIndexOf",
        eval: strings::last_index_of,
        overloads: &[
            ("list_a_last_index_of_int", "list(A).(A) -> int"),
            ("string_last_index_of_string", "string.(string) -> int"),
            ("string_last_index_of_string_int", "string.(string, int) -> int"),
        ],
    },
    Function { name: "slice", eval: slice, overloads: &[("list_slice", "list(T).(int, int) -> list(T)")] },
    Function {
        name: "flatten",
        eval: flatten,
        overloads: &[
            ("list_flatten", "list(list(T)).() -> list(T)"),
            ("list_flatten_int", "list(dyn).(int) -> list(dyn)"),
        ],
    },
    Function { name: "sort", eval: sort, overloads: &[("list_{T}_sort", "list({T}).() -> list({T})")] },
    Function {
        name: "@sortByAssociatedKeys",
        eval: sort_by,
        overloads: &[("list_{T}_sortByAssociatedKeys", "list(T).(list({T})) -> list(T)")],
    },
    Function { name: "lists.range", eval: range, overloads: &[("lists_range", "(int) -> list(int)")] },
    Function { name: "reverse", eval: reverse, overloads: &[("list_reverse", "list(T).() -> list(T)")] },
    Function { name: "distinct", eval: distinct, overloads: &[("list_distinct", "list(T).() -> list(T)")] },
    Function {
        name: "first",
        eval: |args| end(args, |_| Some(0)),
        overloads: &[("list_first", "list(V).() -> optional_type(V)")],
    },
    Function {
        name: "last",
        eval: |args| end(args, |length| length.checked_sub(1)),
        overloads: &[("list_last", "list(V).() -> optional_type(V)")],
    },
    Function {
        name: "sets.contains",
        eval: |args| sets(args, holds_all),
        overloads: &[("list_sets_contains_list", "(list(T), list(T)) -> bool")],
    },
    Function {
        name: "sets.equivalent",
        eval: |args| sets(args, |a, b| Ok(holds_all(a, b)? && holds_all(b, a)?)),
        overloads: &[("list_sets_equivalent_list", "(list(T), list(T)) -> bool")],
    },
    Function {
        name: "sets.intersects",
        eval: |args| {
            sets(args, |a, b| {
                for item in a.iter() {
                    if contains(b, &item?) {
                        return Ok(true);
                    }
                }
                Ok(false)
            })
        },
        overloads: &[("list_sets_intersects_list", "(list(T), list(T)) -> bool")],
    },
];

fn items<'a>(list: &List<'a>) -> std::result::Result<Vec<Value<'a>>, EvalError> {
    if list.len() > MAX_ITEMS {
        return Err(EvalError::CostLimitExceeded);
    }
    list.iter().collect()
}

fn compare(a: &Value<'_>, b: &Value<'_>) -> std::result::Result<Ordering, EvalError> {
    a.compare(b).ok_or_else(EvalError::no_such_overload)
}

fn is_sorted<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::List(list)] = args else { return no_overload() };
    let mut before: Option<Value<'a>> = None;
    for item in list.iter() {
        let item = item?;
        if let Some(before) = &before
            && compare(before, &item)?.is_gt()
        {
            return Ok(Value::Bool(false));
        }
        before = Some(item);
    }
    Ok(Value::Bool(true))
}

fn sum<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::List(list)] = args else { return no_overload() };
    let mut total: Option<Value<'a>> = None;
    for item in list.iter() {
        let item = item?;
        total = Some(match total {
            Some(total) => standard::add(&[total, item])?,
            None => item,
        });
    }
    Ok(total.unwrap_or(Value::Int(0)))
}

fn extreme<'a>(args: &[Value<'a>], name: &str, wanted: Ordering) -> Result<'a> {
    let [Value::List(list)] = args else { return no_overload() };
    let mut best: Option<Value<'a>> = None;
    for item in list.iter() {
        let item = item?;
        let better = match &best {
            Some(best) => compare(&item, best)? == wanted,
            None => true,
        };
        if better {
            best = Some(item);
        }
    }
    best.ok_or_else(|| EvalError::new(format!("{name} called on empty list")))
}

fn slice<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::List(list), Value::Int(start), Value::Int(end)] = args else { return no_overload() };
    let wrong = |why: String| EvalError::new(format!("cannot slice({start}, {end}), {why}"));
    let (Ok(from), Ok(to)) = (usize::try_from(*start), usize::try_from(*end)) else {
        return Err(wrong("negative indexes not supported".to_owned()));
    };
    if from > to {
        return Err(wrong("start index must be less than or equal to end index".to_owned()));
    }
    if to > list.len() {
        return Err(wrong(format!("list is length {}", list.len())));
    }
    let items: std::result::Result<Vec<_>, _> = (from..to).filter_map(|index| list.get(index)).collect();
    Ok(Value::list(items?))
}

fn flatten<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (list, depth) = match args {
        [Value::List(list)] => (list, 1),
        [Value::List(list), Value::Int(depth)] => (list, *depth),
        _ => return no_overload(),
    };
    if depth < 0 {
        return Err(EvalError::new("level must be non-negative"));
    }
    let mut flat = Vec::new();
    flatten_into(list, depth, &mut flat)?;
    Ok(Value::list(flat))
}

fn flatten_into<'a>(
    list: &List<'a>,
    depth: i64,
    flat: &mut Vec<Value<'a>>,
) -> std::result::Result<(), EvalError> {
    for item in list.iter() {
        match item? {
            Value::List(inner) if depth > 0 => flatten_into(&inner, depth - 1, flat)?,
            other => flat.push(other),
        }
        if flat.len() > MAX_ITEMS {
            return Err(EvalError::CostLimitExceeded);
        }
    }
    Ok(())
}

fn sort<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::List(list)] = args else { return no_overload() };
    let items = items(list)?;
    sorted(items.clone(), items)
}

fn sort_by<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::List(list), Value::List(keys)] = args else { return no_overload() };
    if list.len() != keys.len() {
        return Err(EvalError::new(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list, but got {} and {} \
             elements respectively",
            list.len(),
            keys.len()
        )));
    }
    sorted(items(list)?, items(keys)?)
}

fn sorted<'a>(list: Vec<Value<'a>>, keys: Vec<Value<'a>>) -> Result<'a> {
    let kind = |value: &Value<'_>| value.type_of();
    if let Some(first) = keys.first().map(kind) {
        if matches!(first, Type::List(_) | Type::Map(_) | Type::Null | Type::Object(_) | Type::Opaque(..)) {
            return Err(EvalError::new("list elements must be comparable"));
        }
        if keys.iter().any(|key| kind(key) != first) {
            return Err(EvalError::new("list elements must have the same type"));
        }
    }
    let mut both: Vec<(Value<'a>, Value<'a>)> = keys.into_iter().zip(list).collect();
    both.sort_by(|(a, _), (b, _)| a.compare(b).unwrap_or(Ordering::Equal));
    Ok(Value::list(both.into_iter().map(|(_, item)| item).collect()))
}

fn range<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::Int(count)] = args else { return no_overload() };
    if *count > MAX_ITEMS as i64 {
        return Err(EvalError::CostLimitExceeded);
    }
    Ok(Value::list((0..*count).map(Value::Int).collect()))
}

fn reverse<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::List(list)] = args else { return no_overload() };
    let mut items = items(list)?;
    items.reverse();
    Ok(Value::list(items))
}

fn distinct<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::List(list)] = args else { return no_overload() };
    let mut kept: Vec<Value<'a>> = Vec::new();
    for item in list.iter() {
        let item = item?;
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    Ok(Value::list(kept))
}

fn end<'a>(args: &[Value<'a>], which: fn(usize) -> Option<usize>) -> Result<'a> {
    let [Value::List(list)] = args else { return no_overload() };
    match which(list.len()).and_then(|index| list.get(index)) {
        Some(item) => Ok(Value::some(item?)),
        None => Ok(Value::none()),
    }
}

type Holds = fn(&List<'_>, &List<'_>) -> std::result::Result<bool, EvalError>;

fn sets<'a>(args: &[Value<'a>], holds: Holds) -> Result<'a> {
    match args {
        [Value::List(a), Value::List(b)] => holds(a, b).map(Value::Bool),
        _ => no_overload(),
    }
}

fn holds_all(list: &List<'_>, part: &List<'_>) -> std::result::Result<bool, EvalError> {
    for item in part.iter() {
        if !contains(list, &item?) {
            return Ok(false);
        }
    }
    Ok(true)
}
