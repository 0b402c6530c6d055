//! The metadata of every kind: what the server sets, and what is wrong with what clients set.
//!
//! Upstream: apimachinery/pkg/api/validation/objectmeta.go

use apimachinery::field::{Error, Path};
use apimachinery::names;
use resources::ResourceDef;
use serde_json::{Map, Value};

const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

/// The letters of generated names: none that make words.
const NAME_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const MAX_GENERATED_BASE: usize = 63 - 5;

/// A name from its prefix and five random bytes.
///
/// Upstream: apiserver/pkg/storage/names/generate.go
pub fn generate_name(prefix: &str, random: [u8; 5]) -> String {
    let mut end = prefix.len().min(MAX_GENERATED_BASE);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let letters = random.map(|byte| NAME_LETTERS[usize::from(byte) % NAME_LETTERS.len()] as char);
    prefix[..end].chars().chain(letters).collect()
}

/// The metadata of an object tree, made when there is none.
pub fn of(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().expect("metadata was made an object")
}

/// A text field of the metadata; empty when unset.
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = object.get("metadata").and_then(|m| m.get("finalizers")).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

pub fn is_terminating(object: &Value) -> bool {
    !text(object, "deletionTimestamp").is_empty()
}

/// All that is wrong with the metadata of a new object.
pub fn validate(def: &ResourceDef, object: &Value) -> Vec<Error> {
    let path = Path::new("metadata");
    let mut errors = Vec::new();
    let generate_name = text(object, "generateName");
    let invalid = |path: &Path, value: &str, details: Vec<String>, errors: &mut Vec<Error>| {
        errors.extend(details.into_iter().map(|detail| Error::invalid(path, value, detail)));
    };
    if !generate_name.is_empty() {
        let masked = names::mask_trailing_dash(generate_name);
        invalid(&path.child("generateName"), generate_name, def.strategy.validate_name(&masked), &mut errors);
    }
    let name = text(object, "name");
    if name.is_empty() {
        errors.push(Error::required(&path.child("name"), "name or generateName is required"));
    } else {
        invalid(&path.child("name"), name, def.strategy.validate_name(name), &mut errors);
    }
    let namespace = text(object, "namespace");
    match (def.namespaced(), namespace.is_empty()) {
        (true, true) => errors.push(Error::required(&path.child("namespace"), "")),
        (true, false) => {
            invalid(&path.child("namespace"), namespace, names::dns1123_label(namespace), &mut errors);
        }
        (false, false) => errors.push(Error::forbidden(&path.child("namespace"), "not allowed on this type")),
        (false, true) => {}
    }
    common(object, &mut errors);
    errors
}

/// What is checked at create and update alike.
fn common(object: &Value, errors: &mut Vec<Error>) {
    let path = Path::new("metadata");
    let empty = Value::Null;
    let metadata = object.get("metadata").unwrap_or(&empty);
    for (key, value) in metadata.get("labels").and_then(Value::as_object).into_iter().flatten() {
        let labels = path.child("labels");
        errors.extend(
            names::qualified_name(key).into_iter().map(|why| Error::invalid(&labels, key.as_str(), why)),
        );
        let value = value.as_str().unwrap_or_default();
        errors.extend(names::label_value(value).into_iter().map(|why| Error::invalid(&labels, value, why)));
    }
    let mut size = 0;
    for (key, value) in metadata.get("annotations").and_then(Value::as_object).into_iter().flatten() {
        let why = names::qualified_name(&key.to_ascii_lowercase());
        errors
            .extend(why.into_iter().map(|why| Error::invalid(&path.child("annotations"), key.as_str(), why)));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_ANNOTATION_BYTES {
        errors.push(Error::too_long(&path.child("annotations"), MAX_ANNOTATION_BYTES));
    }
    owner_references(metadata, errors);
    let list = finalizers(object);
    let finalizer_path = path.child("finalizers");
    for finalizer in &list {
        let why = names::qualified_name(finalizer);
        errors.extend(why.into_iter().map(|why| Error::invalid(&finalizer_path, *finalizer, why)));
        if !finalizer.contains('/') && !matches!(*finalizer, "kubernetes" | "orphan" | "foregroundDeletion") {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(Error::invalid(&finalizer_path, *finalizer, why));
        }
    }
    if list.contains(&"orphan") && list.contains(&"foregroundDeletion") {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(Error::invalid(&finalizer_path, Value::from(list), why));
    }
}

fn owner_references(metadata: &Value, errors: &mut Vec<Error>) {
    let path = Path::new("metadata").child("ownerReferences");
    let mut controller: Option<&str> = None;
    for (at, owner) in
        metadata.get("ownerReferences").and_then(Value::as_array).into_iter().flatten().enumerate()
    {
        let path = path.index(at);
        let text = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or_default();
        for (field, detail) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if text(field).is_empty() {
                errors.push(Error::invalid(&path.child(field), text(field), detail));
            }
        }
        if text("apiVersion") == "v1" && text("kind") == "Event" {
            errors.push(Error::invalid(
                &path,
                "v1, Kind=Event",
                "v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if owner.get("controller").and_then(Value::as_bool) == Some(true) {
            if let Some(other) = controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {other} and {}",
                    text("name")
                );
                errors.push(Error::invalid(&path.child("controller"), true, detail));
            }
            controller = Some(text("name"));
        }
    }
}

/// All that is wrong with the metadata of an update.
pub fn validate_update(object: &Value, old: &Value) -> Vec<Error> {
    let path = Path::new("metadata");
    let mut errors = Vec::new();
    let field = |object: &Value, name: &str| object.get("metadata").and_then(|m| m.get(name)).cloned();
    for name in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        let (new, was) = (field(object, name), field(old, name));
        if new.clone().unwrap_or_default() != was.unwrap_or_default() {
            errors.push(Error::invalid(&path.child(name), new.unwrap_or_default(), "field is immutable"));
        }
    }
    if is_terminating(old) {
        let was = finalizers(old);
        let added: Vec<String> =
            finalizers(object).iter().filter(|f| !was.contains(*f)).map(|f| format!("{f:?}")).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            errors.push(Error::forbidden(&path.child("finalizers"), detail));
        }
    }
    common(object, &mut errors);
    errors
}

/// Carries over what only the server sets.
pub fn keep_system_fields(object: &mut Value, old: &Value) {
    let metadata = of(object);
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
    ] {
        match old.get("metadata").and_then(|m| m.get(field)) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.remove(field),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn updates_are_told_what_may_not_change() {
        let old = json!({"metadata": {"name": "a", "deletionTimestamp": "x", "finalizers": ["a/b"]}});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!(["a/b", "c/d"]);
        let errors: Vec<String> = validate_update(&new, &old).iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, \
              found new finalizers []string{\"c/d\"}"
            ]
        );
    }

    #[test]
    fn generated_names_fit_a_label() {
        let name = generate_name(&"x".repeat(100), [0, 1, 2, 3, 255]);
        assert_eq!(name.len(), 63);
        assert!(name.ends_with("bcdfq"), "{name}");
    }
}
