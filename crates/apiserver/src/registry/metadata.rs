//! The metadata of every kind: what the server sets, and what is wrong with what clients set.
//!
//! Upstream: apimachinery/pkg/api/validation/objectmeta.go

use apimachinery::field::{Error, Path};
use apimachinery::objectmeta::{self, Finalizers};
use apimachinery::{Status, names};
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

/// The object is of the namespace of the request, or of none yet; where there are none it loses its own.
///
/// Upstream: apiserver/pkg/registry/rest/meta.go EnsureObjectNamespaceMatchesRequestNamespace
pub fn check_namespace(def: &ResourceDef, namespace: &str, object: &mut Value) -> Result<(), Status> {
    match text(object, "namespace") {
        given if def.namespaced() && given == namespace => {}
        "" if def.namespaced() => drop(of(object).insert("namespace".into(), namespace.into())),
        _ if def.namespaced() => {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        _ => drop(of(object).remove("namespace")),
    }
    Ok(())
}

/// The object is the one that the URL names.
///
/// Upstream: apiserver/pkg/endpoints/handlers/rest.go checkName
pub fn check_name(name: &str, object: &Value) -> Result<(), Status> {
    match text(object, "name") {
        given if given == name => Ok(()),
        "" => Err(Status::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        ))),
        given => Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        ))),
    }
}

/// All that is wrong with the metadata of a new object.
pub fn validate(def: &ResourceDef, object: &Value) -> Vec<Error> {
    let path = Path::new("metadata");
    let mut errors = Vec::new();
    let invalid = |path: &Path, value: &str, details: Vec<String>, errors: &mut Vec<Error>| {
        errors.extend(details.into_iter().map(|detail| Error::invalid(path, value, detail)));
    };
    errors.extend(wrong_prefix(object, |name| def.strategy.validate_name(name)));
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
    errors.extend(common(object, finalizers_policy(def)));
    errors
}

/// What is wrong with a prefix that a name is to be generated from.
fn wrong_prefix(object: &Value, check: impl Fn(&str) -> Vec<String>) -> Vec<Error> {
    let prefix = text(object, "generateName");
    if prefix.is_empty() {
        return Vec::new();
    }
    let path = Path::new("metadata").child("generateName");
    let details = check(&names::mask_trailing_dash(prefix)).into_iter();
    details.map(|detail| Error::invalid(&path, prefix, detail)).collect()
}

/// How often upstream looks at the metadata of an update: each kind does once more what is done for all, and each
/// error that is found again is one more cause.
struct Repeats {
    /// Whether the kind checks the change once more.
    change: bool,
    /// How often it checks the whole as that of a new object.
    anew: usize,
    /// Whether its own checks know the rule of finalizers' names.
    policy: Finalizers,
}

/// Upstream: each kind's ValidateUpdate, in pkg/apis/*/validation
fn repeats(def: &ResourceDef) -> Repeats {
    let plural = &*def.plural;
    let (change, anew) = match &*def.group {
        "" => match plural {
            "configmaps"
            | "endpoints"
            | "namespaces"
            | "nodes"
            | "persistentvolumeclaims"
            | "pods"
            | "secrets"
            | "serviceaccounts" => (true, 1),
            "persistentvolumes" => (false, 2),
            "limitranges" => (false, 1),
            "events" => (false, 0),
            _ => (true, 0),
        },
        "apps" => (true, usize::from(plural == "controllerrevisions")),
        "batch" => (true, usize::from(plural == "jobs")),
        "networking.k8s.io" => {
            (true, usize::from(matches!(plural, "ingressclasses" | "ingresses" | "ipaddresses")))
        }
        "resource.k8s.io" => (true, usize::from(plural != "resourceslices")),
        "storage.k8s.io" => match plural {
            "csidrivers" => (true, 0),
            "csinodes" | "volumeattachments" => (false, 1),
            _ => (true, 1),
        },
        "rbac.authorization.k8s.io" | "certificates.k8s.io" | "node.k8s.io" | "apiregistration.k8s.io" => {
            (true, 1)
        }
        "admissionregistration.k8s.io" | "discovery.k8s.io" | "flowcontrol.apiserver.k8s.io" => (false, 1),
        "policy" => (false, 0),
        _ => (true, 0),
    };
    Repeats { change, anew, policy: finalizers_policy(def) }
}

/// Which finalizers a kind takes.
fn finalizers_policy(def: &ResourceDef) -> Finalizers {
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
        || def.group == "events.k8s.io"
        || (def.group.is_empty() && def.plural == "events");
    if lenient { Finalizers::Any } else { Finalizers::Qualified }
}

/// What is checked of the whole, names excepted.
fn common(object: &Value, policy: Finalizers) -> Vec<Error> {
    let metadata = object.get("metadata").unwrap_or(&Value::Null);
    objectmeta::validate(metadata, &Path::new("metadata"), policy)
}

/// All that is wrong with the metadata of an update. Most updates are good at the first look, and then no second
/// look finds more.
pub fn validate_update(def: &ResourceDef, object: &Value, old: &Value, whole: bool) -> Vec<Error> {
    let mut errors = wrong_prefix(object, names::path_segment);
    errors.extend(common(object, Finalizers::Any));
    errors.extend(validate_change(object, old, Finalizers::Any));
    let repeats = repeats(def);
    let rules_left = (repeats.policy == Finalizers::Qualified && !finalizers(object).is_empty())
        || (whole && !text(object, "generateName").is_empty());
    if errors.is_empty() && !rules_left {
        return errors;
    }
    if repeats.change {
        errors.extend(validate_change(object, old, repeats.policy));
    }
    for _ in 0..if whole { repeats.anew } else { 0 } {
        errors.extend(wrong_prefix(object, |name| def.strategy.validate_name(name)));
        errors.extend(common(object, repeats.policy));
    }
    errors
}

fn validate_change(object: &Value, old: &Value, policy: Finalizers) -> Vec<Error> {
    let path = Path::new("metadata");
    let mut errors = Vec::new();
    fn field<'o>(object: &'o Value, name: &str) -> &'o Value {
        object.get("metadata").and_then(|metadata| metadata.get(name)).unwrap_or(&Value::Null)
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
    for name in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        let (new, was) = (field(object, name), field(old, name));
        if new != was {
            errors.push(Error::invalid(&path.child(name), new.clone(), "field is immutable"));
        }
    }
    let metadata = object.get("metadata").unwrap_or(&Value::Null);
    errors.extend(objectmeta::validate_change(metadata, &path, policy));
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

/// Carries over what only the server sets. What a client may not change and did is left for [`validate_update`].
///
/// Upstream: apiserver/pkg/registry/rest/update.go BeforeUpdate
pub fn keep_system_fields(object: &mut Value, old: &Value) {
    const KEPT: [&str; 3] = ["creationTimestamp", "generation", "selfLink"];
    let metadata = of(object);
    let of_old =
        |field: &str| old.get("metadata").and_then(|m| m.get(field)).filter(|value| !value.is_null());
    let mut keep = |field: &str, only_absent: bool| match of_old(field) {
        Some(_)
            if only_absent && metadata.get(field).is_some_and(|value| !value.is_null() && value != "") => {}
        Some(value) => drop(metadata.insert(field.to_owned(), value.clone())),
        None if only_absent => {}
        None => drop(metadata.remove(field)),
    };
    KEPT.iter().for_each(|field| keep(field, false));
    keep("uid", true);
    keep("deletionGracePeriodSeconds", true);
    if is_terminating(old) {
        keep("deletionTimestamp", false);
    }
    metadata.retain(|_, value| !value.is_null());
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
        let def = resources::table().iter().find(|def| def.plural == "poddisruptionbudgets").unwrap().clone();
        let errors: Vec<String> =
            validate_update(&def, &new, &old, true).iter().map(ToString::to_string).collect();
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
