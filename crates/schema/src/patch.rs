//! JSON patches (RFC 6902) and JSON merge patches (RFC 7396), with upstream's limits and words.
//!
//! Upstream: apiserver/pkg/endpoints/handlers/patch.go jsonPatcher, evanphx/json-patch v4

use json_patch::{PatchErrorKind, PatchOperation};
use serde_json::Value;

use crate::Error;

const MAX_OPERATIONS: usize = 10_000;
/// How much copy operations may add to an object in all: what a request body may hold.
const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;
/// How deep operations may nest an object, which everything after walks by recursion.
const MAX_DEPTH: usize = 200;

/// Applies the operations of a JSON patch.
pub fn json_patch(original: &Value, patch: &[u8]) -> Result<Value, Error> {
    let operations: Option<Vec<Value>> =
        serde_json::from_slice(patch).map_err(|e| Error::BadPatch(not_a_patch(&e)))?;
    let operations = operations.unwrap_or_default();
    if operations.len() > MAX_OPERATIONS {
        return Err(Error::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut object = original.clone();
    let mut copied = 0;
    for operation in operations {
        apply(&mut object, operation, &mut copied)?;
    }
    Ok(object)
}

/// Merges a JSON merge patch.
pub fn merge_patch(original: &Value, patch: &Value) -> Result<Value, Error> {
    if !patch.is_object() {
        return Err(Error::BadPatch("Invalid JSON Patch".into()));
    }
    let mut object = original.clone();
    json_patch::merge(&mut object, patch);
    Ok(object)
}

fn not_a_patch(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Data => {
            "json: cannot unmarshal object into Go value of type jsonpatch.Patch".to_owned()
        }
        _ => format!("error decoding patch: {error}"),
    }
}

fn apply(object: &mut Value, operation: Value, copied: &mut usize) -> Result<(), Error> {
    let word = |name: &str| operation.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, path, from) = (word("op"), word("path"), word("from"));
    let operation = as_upstream_takes_it(object, operation)?;
    let parsed: PatchOperation = serde_json::from_value(operation.clone()).map_err(|_| {
        Error::Patch(match kind.as_str() {
            "add" | "remove" | "replace" | "move" | "copy" | "test" => {
                format!("{kind} operation failed to decode path: missing value")
            }
            _ => format!("Unexpected kind: {kind}"),
        })
    })?;
    match &parsed {
        PatchOperation::Copy(copy) => {
            *copied += object.pointer(copy.from.as_str()).map_or(0, json_size);
            if *copied > MAX_COPIED_BYTES {
                return Err(Error::TooLarge(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, \
                     exceeding the limit {MAX_COPIED_BYTES}"
                )));
            }
        }
        // Upstream finds a null where there is nothing.
        PatchOperation::Test(test)
            if test.value.is_null() && object.pointer(test.path.as_str()).is_none() =>
        {
            return Ok(());
        }
        _ => {}
    }
    if too_deep(object, &parsed) {
        return Err(Error::Patch("exceeded max depth".into()));
    }
    let missing_parent = !has_parent(object, &path);
    json_patch::patch(object, std::slice::from_ref(&parsed))
        .map_err(|error| Error::Patch(failure(&kind, &path, &from, missing_parent, &error.kind)))
}

/// Upstream's library takes more than the standard does: a value that is left out is null, what is replaced in an
/// object or copied from one need not be there, and nothing is added in the place of the whole.
///
/// Upstream: evanphx/json-patch v4 patch.go
fn as_upstream_takes_it(object: &Value, mut operation: Value) -> Result<Value, Error> {
    let Some(fields) = operation.as_object_mut() else { return Ok(operation) };
    let word = |fields: &serde_json::Map<String, Value>, name: &str| {
        fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (kind, path, from) = (word(fields, "op"), word(fields, "path"), word(fields, "from"));
    let is_absent_field = |path: &str| {
        let parent = path.rsplit_once('/').and_then(|(parent, _)| object.pointer(parent));
        parent.is_some_and(Value::is_object) && object.pointer(path).is_none()
    };
    match kind.as_str() {
        "add" if path.is_empty() && fields.contains_key("path") => {
            return Err(Error::Patch(
                "add operation does not apply: doc is missing path: \"\": missing value".into(),
            ));
        }
        "replace" if is_absent_field(&path) => drop(fields.insert("op".into(), "add".into())),
        "copy" if is_absent_field(&from) => {
            fields.insert("op".into(), "add".into());
            fields.insert("value".into(), Value::Null);
        }
        _ => {}
    }
    if matches!(kind.as_str(), "add" | "replace" | "test") {
        fields.entry("value").or_insert(Value::Null);
    }
    Ok(operation)
}

fn too_deep(object: &Value, operation: &PatchOperation) -> bool {
    let added = match operation {
        PatchOperation::Add(add) => Some(&add.value),
        PatchOperation::Replace(replace) => Some(&replace.value),
        PatchOperation::Copy(copy) => object.pointer(copy.from.as_str()),
        PatchOperation::Move(r#move) => object.pointer(r#move.from.as_str()),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => None,
    };
    added.is_some_and(|value| depth(value) + operation.path().count() > MAX_DEPTH)
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn has_parent(object: &Value, path: &str) -> bool {
    let Some((parent, _)) = path.rsplit_once('/') else { return true };
    object.pointer(parent).is_some_and(|v| v.is_object() || v.is_array())
}

fn failure(kind: &str, path: &str, from: &str, missing_parent: bool, why: &PatchErrorKind) -> String {
    let key = path.rsplit('/').next().unwrap_or_default();
    match (kind, why) {
        (_, PatchErrorKind::TestFailed) => format!("testing value {path} failed: test failed"),
        ("test", _) => format!("test operation does not apply: is missing path: {path}: missing value"),
        ("move" | "copy", PatchErrorKind::InvalidFromPointer) => {
            format!("{kind} operation does not apply: doc is missing from path: {from}: missing value")
        }
        ("move" | "copy", _) => {
            format!("{kind} operation does not apply: doc is missing destination path: {path}: missing value")
        }
        ("replace", _) if missing_parent => {
            format!("replace operation does not apply: doc is missing path: {path}: missing value")
        }
        ("replace", _) => {
            format!("replace operation does not apply: doc is missing key: {path}: missing value")
        }
        (_, _) if missing_parent => {
            format!("{kind} operation does not apply: doc is missing path: {path:?}: missing value")
        }
        ("remove", _) if key.parse::<u64>().is_err() => {
            format!(
                "error in remove for path: '{path}': Unable to remove nonexistent key: {key}: missing value"
            )
        }
        _ => format!(
            "error in {kind} for path: '{path}': Unable to access invalid index: {key}: invalid index referenced"
        ),
    }
}

/// About the length of the value's JSON, without making it.
fn json_size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|i| json_size(i) + 1).sum::<usize>() + 2,
        Value::Object(map) => map.iter().map(|(k, v)| k.len() + 4 + json_size(v)).sum::<usize>() + 2,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(patch: Value, expected: Result<Value, &str>) {
        let original = json!({"a": {"b": [1, 2]}, "c": "d"});
        let result = json_patch(&original, patch.to_string().as_bytes()).map_err(|e| e.to_string());
        assert_eq!(result, expected.map_err(str::to_owned));
    }

    #[test]
    fn operations_apply_or_fail_in_upstreams_words() {
        check(
            json!([{"op": "add", "path": "/a/b/-", "value": 3}, {"op": "remove", "path": "/c"}]),
            Ok(json!({"a": {"b": [1, 2, 3]}})),
        );
        check(
            json!([{"op": "test", "path": "/c", "value": "x"}]),
            Err("testing value /c failed: test failed"),
        );
        check(
            json!([{"op": "remove", "path": "/x"}]),
            Err("error in remove for path: '/x': Unable to remove nonexistent key: x: missing value"),
        );
        check(
            json!([{"op": "replace", "path": "/x", "value": 1}, {"op": "copy", "from": "/y", "path": "/z"},
                {"op": "add", "path": "/c"}]),
            Ok(json!({"a": {"b": [1, 2]}, "c": null, "x": 1, "z": null})),
        );
        check(
            json!([{"op": "replace", "path": "/a/b/7", "value": 1}]),
            Err("replace operation does not apply: doc is missing key: /a/b/7: missing value"),
        );
        check(
            json!([{"op": "add", "path": "", "value": {}}]),
            Err("add operation does not apply: doc is missing path: \"\": missing value"),
        );
        check(
            json!([{"op": "add", "path": "/x/y", "value": 1}]),
            Err("add operation does not apply: doc is missing path: \"/x/y\": missing value"),
        );
        check(json!([{"op": "jump", "path": "/x"}]), Err("Unexpected kind: jump"));
        check(json!({}), Err("json: cannot unmarshal object into Go value of type jsonpatch.Patch"));
        let many = vec![json!({"op": "test", "path": "/c", "value": "d"}); 10_001];
        check(json!(many), Err("The allowed maximum operations in a JSON patch is 10000, got 10001"));
    }

    #[test]
    fn copies_cannot_blow_an_object_up() {
        let bomb = vec![json!({"op": "copy", "from": "/a", "path": "/a/-"}); 100];
        let error = json_patch(&json!({"a": ["b"]}), json!(bomb).to_string().as_bytes()).unwrap_err();
        assert!(matches!(error, Error::TooLarge(_)), "{error}");
        let well = vec![json!({"op": "copy", "from": "", "path": "/x"}); 10_000];
        let error = json_patch(&json!({"a": "b"}), json!(well).to_string().as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "exceeded max depth");
    }

    #[test]
    fn merge_patches_merge() {
        let merged =
            merge_patch(&json!({"a": {"b": 1, "c": 2}}), &json!({"a": {"b": null, "d": 3}})).unwrap();
        assert_eq!(merged, json!({"a": {"c": 2, "d": 3}}));
        assert!(merge_patch(&json!({}), &json!([])).is_err());
    }
}
