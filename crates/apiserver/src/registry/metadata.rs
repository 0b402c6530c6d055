//! The metadata of every kind: what the server sets, and what is wrong with what clients set.
//!
//! Upstream: apimachinery/pkg/api/validation/objectmeta.go

use apimachinery::field::{Error, Path};
use apimachinery::names;
use apimachinery::objectmeta::{self, Finalizers};
use resources::ResourceDef;
use serde_json::{Map, Value};

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
    errors.extend(common(def, object));
    errors
}

/// What is checked at create and update alike.
fn common(def: &ResourceDef, object: &Value) -> Vec<Error> {
    let empty = Value::Null;
    let metadata = object.get("metadata").unwrap_or(&empty);
    // Some groups are checked like custom kinds: upstream's validation of those came from elsewhere.
    let lenient = def.custom.is_some()
        || matches!(
            &*def.group,
            "admissionregistration.k8s.io"
                | "apiextensions.k8s.io"
                | "apiregistration.k8s.io"
                | "coordination.k8s.io"
                | "node.k8s.io"
                | "policy"
        )
        || (def.group.is_empty() && def.plural == "events");
    let finalizers = if lenient { Finalizers::Any } else { Finalizers::Qualified };
    objectmeta::validate(metadata, &Path::new("metadata"), finalizers)
}

/// All that is wrong with the metadata of an update.
pub fn validate_update(def: &ResourceDef, object: &Value, old: &Value) -> Vec<Error> {
    let path = Path::new("metadata");
    let mut errors = Vec::new();
    fn field<'o>(object: &'o Value, name: &str) -> &'o Value {
        object.get("metadata").and_then(|metadata| metadata.get(name)).unwrap_or(&Value::Null)
    }
    for name in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        let (new, was) = (field(object, name), field(old, name));
        if new != was {
            errors.push(Error::invalid(&path.child(name), new.clone(), "field is immutable"));
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
    errors.extend(common(def, object));
    errors
}

/// Takes out owners that are named twice; the uids of those.
///
/// Upstream: apiserver/pkg/endpoints/handlers/rest.go dedupOwnerReferencesAndAddWarning
pub fn dedup_owners(object: &mut Value) -> Option<String> {
    let owners = object.get_mut("metadata")?.get_mut("ownerReferences")?.as_array_mut()?;
    if owners.len() < 2 {
        return None;
    }
    let mut seen: Vec<Value> = Vec::with_capacity(owners.len());
    let mut twice: Vec<String> = Vec::new();
    owners.retain(|owner| {
        let again = seen.contains(owner);
        if again {
            twice.push(owner["uid"].as_str().unwrap_or_default().to_owned());
        } else {
            seen.push(owner.clone());
        }
        !again
    });
    (!twice.is_empty()).then(|| twice.join(", "))
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
        let def = resources::table()[0].clone();
        let errors: Vec<String> = validate_update(&def, &new, &old).iter().map(ToString::to_string).collect();
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
