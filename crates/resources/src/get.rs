//! Short ways into object trees. A path is the field names with dots between; names that hold dots themselves
//! (labels, data keys) are reached through their map.

use apimachinery::field::{Error, Path};
use serde_json::{Map, Value};

pub type Errors = Vec<Error>;

/// The value at a path, absent when null.
pub fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    // Most paths are one name of a few letters, for which `split` takes longer than the search in the map.
    let (mut value, mut rest) = (object, path);
    while let Some(dot) = rest.bytes().position(|byte| byte == b'.') {
        value = value.as_object()?.get(&rest[..dot])?;
        rest = &rest[dot + 1..];
    }
    value.as_object()?.get(rest).filter(|value| !value.is_null())
}

/// Whether something is set at a path.
pub fn has(object: &Value, path: &str) -> bool {
    at(object, path).is_some()
}

/// The text at a path, empty when there is none.
pub fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or_default()
}

pub fn int(object: &Value, path: &str) -> Option<i64> {
    at(object, path).and_then(Value::as_i64)
}

/// The number at a path, 0 when there is none.
pub fn number(object: &Value, path: &str) -> i64 {
    int(object, path).unwrap_or(0)
}

pub fn flag(object: &Value, path: &str) -> Option<bool> {
    at(object, path).and_then(Value::as_bool)
}

/// Whether the flag at a path is set and true.
pub fn is_true(object: &Value, path: &str) -> bool {
    flag(object, path) == Some(true)
}

/// The items at a path, none when there is no list.
pub fn list<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    at(object, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The texts of the list at a path.
pub fn texts<'a>(object: &'a Value, path: &str) -> Vec<&'a str> {
    list(object, path).iter().filter_map(Value::as_str).collect()
}

/// The items at a path, each with its field path.
pub fn items<'a>(object: &'a Value, path: &str, at: &Path) -> Vec<(&'a Value, Path)> {
    list(object, path).iter().enumerate().map(|(i, item)| (item, at.index(i))).collect()
}

/// The entries of the map at a path.
pub fn entries<'a>(object: &'a Value, path: &str) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
    at(object, path).and_then(Value::as_object).into_iter().flatten().map(|(k, v)| (k.as_str(), v))
}

/// How many items or entries there are at a path.
pub fn len(object: &Value, path: &str) -> usize {
    match at(object, path) {
        Some(Value::Array(items)) => items.len(),
        Some(Value::Object(fields)) => fields.len(),
        _ => 0,
    }
}

/// A scalar as field selectors compare it, empty when unset.
pub fn scalar(object: &Value, path: &str) -> String {
    match at(object, path) {
        Some(Value::String(text)) => text.clone(),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
        _ => String::new(),
    }
}

/// A string or number as it is printed: the form of `IntOrString`s and quantities.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The fields at a path, made when they are not there.
pub fn fields_mut<'a>(object: &'a mut Value, path: &str) -> Option<&'a mut Map<String, Value>> {
    let mut value = object;
    if !path.is_empty() {
        for name in path.split('.') {
            let fields = value.as_object_mut()?;
            let field = fields.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if field.is_null() {
                *field = Value::Object(Map::new());
            }
            value = field;
        }
    }
    value.as_object_mut()
}

/// The value at a path, to change it, when it is there.
pub fn at_mut<'a>(object: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    path.split('.').try_fold(object, |value, name| value.get_mut(name)).filter(|v| !v.is_null())
}

/// The items at a path, to change them.
pub fn list_mut<'a>(object: &'a mut Value, path: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    at_mut(object, path).and_then(Value::as_array_mut).into_iter().flatten()
}

/// The values of the map at a path, to change them.
pub fn values_mut<'a>(object: &'a mut Value, path: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    at_mut(object, path).and_then(Value::as_object_mut).into_iter().flatten().map(|(_, v)| v)
}

/// Sets a field, making what is on the way to it.
pub fn set(object: &mut Value, path: &str, value: impl Into<Value>) {
    let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
    if let Some(fields) = fields_mut(object, parent) {
        fields.insert(name.to_owned(), value.into());
    }
}

/// Sets a field when it is absent or null: upstream holds it by pointer, and empty text is something.
pub fn default_absent(object: &mut Value, path: &str, value: impl Into<Value>) {
    if !has(object, path) {
        set(object, path, value);
    }
}

/// Sets a field when it is absent, null, or empty text.
pub fn default(object: &mut Value, path: &str, value: impl Into<Value>) {
    let unset = match at(object, path) {
        None => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    if unset {
        set(object, path, value);
    }
}

/// Sets an annotation, whose key may hold dots.
pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    if let Some(annotations) = fields_mut(object, "metadata.annotations") {
        annotations.insert(key.to_owned(), value.into());
    }
}

pub fn remove(object: &mut Value, path: &str) -> Option<Value> {
    let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
    let parent = if parent.is_empty() { Some(object) } else { at_mut(object, parent) };
    parent?.as_object_mut()?.remove(name)
}

/// A field's path of the spec: `spec_path("a.b")` is `spec.a.b`.
pub fn path(text: &str) -> Path {
    Path::new(text)
}

/// The name in the metadata.
pub fn name(object: &Value) -> &str {
    text(object, "metadata.name")
}
