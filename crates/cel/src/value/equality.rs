//! When two values are equal, and how numbers of different types compare.

use std::cmp::Ordering;

use serde_json::Value as Json;

use super::{Key, List, Map, Value};
use crate::decl::{DeclKind, ListKind};

/// The order of two numbers of any types; none for what is no number, or not a number.
pub(super) fn compare_numbers(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    let whole = |value: &Value<'_>| match value {
        Value::Int(number) => Some(i128::from(*number)),
        Value::Uint(number) => Some(i128::from(*number)),
        _ => None,
    };
    match (a, b) {
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Double(a), b) => compare_double(*a, whole(b)?),
        (a, Value::Double(b)) => compare_double(*b, whole(a)?).map(Ordering::reverse),
        (a, b) => Some(whole(a)?.cmp(&whole(b)?)),
    }
}

fn compare_double(a: f64, b: i128) -> Option<Ordering> {
    if a.is_nan() {
        return None;
    }
    // Every double beyond the range of both whole types is beyond every whole number.
    if a >= 1.9e19 {
        return Some(Ordering::Greater);
    }
    if a <= -1.0e19 {
        return Some(Ordering::Less);
    }
    let whole = a.trunc() as i128;
    Some(whole.cmp(&b).then_with(|| a.fract().partial_cmp(&0.0).unwrap_or(Ordering::Equal)))
}

/// CEL's equality: of numbers by amount, of lists and maps by content, of different types never.
impl PartialEq for Value<'_> {
    fn eq(&self, other: &Self) -> bool {
        equal(self, other)
    }
}

pub(crate) fn equal(a: &Value<'_>, b: &Value<'_>) -> bool {
    match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Type(a), Value::Type(b)) => a.runtime_name() == b.runtime_name(),
        (Value::List(a), Value::List(b)) => lists_equal(a, b),
        (Value::Map(a), Value::Map(b)) => maps_equal(a, b),
        (Value::Optional(a), Value::Optional(b)) => match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => equal(a, b),
            _ => false,
        },
        (Value::Object(a), Value::Object(b)) => {
            a.name == b.name
                && a.fields.len() == b.fields.len()
                && a.fields
                    .iter()
                    .all(|(key, value)| b.fields.get(key).is_some_and(|other| equal(value, other)))
        }
        (Value::Extension(a), Value::Extension(b)) => a.equals(b),
        (a, b) => a.compare(b) == Some(Ordering::Equal),
    }
}

fn lists_equal(a: &List<'_>, b: &List<'_>) -> bool {
    if a.len() != b.len() {
        return false;
    }
    match a.declaration().map(|decl| &decl.kind) {
        // Sets and lists by key are equal in any order.
        Some(DeclKind::List(_, ListKind::Set)) => b.iter().flatten().all(|item| contains(a, &item)),
        Some(DeclKind::List(_, ListKind::Map(keys))) => b.iter().flatten().all(|item| {
            let key = map_key(&item, keys);
            a.iter().flatten().any(|mine| map_key(&mine, keys) == key && equal(&mine, &item))
        }),
        _ => a.iter().zip(b.iter()).all(|(a, b)| matches!((a, b), (Ok(a), Ok(b)) if equal(&a, &b))),
    }
}

pub(crate) fn contains(list: &List<'_>, wanted: &Value<'_>) -> bool {
    list.iter().flatten().any(|item| equal(&item, wanted))
}

/// What tells an item of a list by key from the others.
pub(crate) fn map_key(item: &Value<'_>, keys: &[String]) -> Vec<Option<Json>> {
    let Value::Map(map) = item else { return Vec::new() };
    let value = |key: &String| {
        let key = crate::escape(key).unwrap_or_else(|| key.clone());
        map.get(&Key::String(key.into()))?.ok()?.to_json().ok()
    };
    keys.iter().map(value).collect()
}

/// The items of a set or of a list by key with those of another: places stay, what is new comes last, and of two
/// items of one key the later counts.
///
/// Upstream: apiserver/pkg/cel/common/valuesunstructured.go Add
pub(super) fn merge<'a>(
    list: &List<'a>,
    other: &List<'a>,
    kind: &ListKind,
) -> Result<Vec<Value<'a>>, crate::error::EvalError> {
    let mut items: Vec<Value<'a>> = list.iter().collect::<Result<_, _>>()?;
    for item in other.iter() {
        let item = item?;
        let same = |mine: &Value<'a>| match kind {
            ListKind::Map(keys) => map_key(mine, keys) == map_key(&item, keys),
            _ => equal(mine, &item),
        };
        match (items.iter().position(same), kind) {
            (Some(at), ListKind::Map(_)) => items[at] = item,
            (Some(_), _) => {}
            (None, _) => items.push(item),
        }
    }
    Ok(items)
}

fn maps_equal(a: &Map<'_>, b: &Map<'_>) -> bool {
    // Fields that a schema does not declare are there all the same, and compare as they come.
    if let (Map::Json(a, Some(_)), Map::Json(b, Some(_))) = (a, b) {
        return json_equal_entries(a, b);
    }
    a.len() == b.len()
        && a.keys().iter().all(|key| match (a.get(key), b.get(key)) {
            (Some(Ok(a)), Some(Ok(b))) => equal(&a, &b),
            (None, None) => true,
            _ => false,
        })
}

fn json_equal_entries(a: &serde_json::Map<String, Json>, b: &serde_json::Map<String, Json>) -> bool {
    a.len() == b.len()
        && a.iter().all(|(key, value)| {
            b.get(key).is_some_and(|other| equal(&Value::json(value), &Value::json(other)))
        })
}

/// Keys of different kinds in a fixed order; numbers by amount.
fn rank(key: &Key) -> (u8, i128, &str) {
    match key {
        Key::Bool(flag) => (0, i128::from(*flag), ""),
        Key::Int(number) => (1, i128::from(*number), ""),
        Key::Uint(number) => (1, i128::from(*number), ""),
        Key::String(text) => (2, 0, text),
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        rank(self).cmp(&rank(other))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Key {}
