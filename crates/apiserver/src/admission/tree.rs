//! Reading and writing object trees by dotted paths of plain field names: `spec.nodeName`. Labels and
//! annotations, whose keys hold dots, are read with [`label`] and [`annotation`].
//!
//! What always holds: a path that leads nowhere, or to a value of another type, reads as empty; nothing panics.

use serde_json::{Map, Value};

pub(crate) fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    resources::get::at(object, path)
}

/// The string at the path, or the empty one.
pub(crate) fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn flag(object: &Value, path: &str) -> Option<bool> {
    at(object, path).and_then(Value::as_bool)
}

pub(crate) fn integer(object: &Value, path: &str) -> Option<i64> {
    at(object, path).and_then(Value::as_i64)
}

pub(crate) fn items<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    at(object, path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The strings of the list at the path.
pub(crate) fn strings(object: &Value, path: &str) -> Vec<String> {
    items(object, path).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The keys and values of the map at the path, by key.
pub(crate) fn entries<'a>(object: &'a Value, path: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    at(object, path)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value))
}

/// The value of a key that may hold dots, in the map at the path.
pub(crate) fn entry<'a>(object: &'a Value, path: &str, key: &str) -> Option<&'a str> {
    at(object, path)?.get(key)?.as_str()
}

pub(crate) fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    entry(object, "metadata.labels", key)
}

pub(crate) fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    entry(object, "metadata.annotations", key)
}

/// The value at the path, made on the way as `fresh` where it is missing or null. `None` when something on the
/// way is no map.
fn reach<'a>(object: &'a mut Value, path: &str, fresh: fn() -> Value) -> Option<&'a mut Value> {
    let mut value = object;
    for key in path.split('.') {
        if value.is_null() {
            *value = Value::Object(Map::new());
        }
        value = value.as_object_mut()?.entry(key).or_insert(Value::Null);
    }
    if value.is_null() {
        *value = fresh();
    }
    Some(value)
}

pub(crate) fn set(object: &mut Value, path: &str, value: impl Into<Value>) {
    if let Some(place) = reach(object, path, || Value::Null) {
        *place = value.into();
    }
}

/// The list at the path, made when missing. `None` when something else is there.
pub(crate) fn list_mut<'a>(object: &'a mut Value, path: &str) -> Option<&'a mut Vec<Value>> {
    reach(object, path, || Value::Array(Vec::new()))?.as_array_mut()
}

/// The map at the path, made when missing. `None` when something else is there.
pub(crate) fn map_mut<'a>(object: &'a mut Value, path: &str) -> Option<&'a mut Map<String, Value>> {
    reach(object, path, || Value::Object(Map::new()))?.as_object_mut()
}

/// Two values that say the same: nothing, null, and the empty list, map and string are one.
pub(crate) fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    fn nothing(value: &&Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::String(text) => text.is_empty(),
            _ => false,
        }
    }
    match (a.filter(|v| !nothing(v)), b.filter(|v| !nothing(v))) {
        (None, None) => true,
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            a.iter().all(|(key, value)| same(Some(value), b.get(key)))
                && b.iter().all(|(key, value)| a.contains_key(key) || same(None, Some(value)))
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(Some(a), Some(b)))
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_there_reads_as_empty() {
        let object = json!({"spec": {"a": "x", "n": null, "l": ["p", 1]}});
        assert_eq!(text(&object, "spec.a"), "x");
        assert_eq!(text(&object, "spec.a.b"), "");
        assert_eq!(at(&object, "spec.n"), None);
        assert_eq!(strings(&object, "spec.l"), ["p"]);
    }

    #[test]
    fn writing_makes_the_way_and_leaves_what_is_no_map() {
        let mut object = json!({"spec": {"a": "x"}});
        set(&mut object, "spec.b.c", 1);
        set(&mut object, "spec.a.c", 1);
        assert_eq!(object, json!({"spec": {"a": "x", "b": {"c": 1}}}));
    }

    #[test]
    fn empty_and_missing_are_the_same() {
        assert!(same(Some(&json!({"a": [], "b": 1})), Some(&json!({"b": 1, "c": {}}))));
        assert!(!same(Some(&json!({"a": [1]})), None));
    }
}
