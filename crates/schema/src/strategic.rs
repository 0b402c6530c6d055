//! Strategic merge patches: merge patches that know which lists merge, and by which key.
//!
//! A patch may hold directives: `$patch: replace|delete|merge`, `$retainKeys`, `$setElementOrder/<list>`
//! and `$deleteFromPrimitiveList/<list>`. They are consumed here and never reach the object.
//!
//! Upstream: apimachinery/pkg/util/strategicpatch/patch.go StrategicMergeMapPatch

mod order;

use api::tables::{self, Definition, Type};
use serde_json::{Map, Value};

use crate::Error;
use order::{Elements, enforce_order};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM_PREFIX: &str = "$deleteFromPrimitiveList";
const SET_ORDER_PREFIX: &str = "$setElementOrder";

type Object = Map<String, Value>;

/// Merges a strategic merge patch into an object.
pub fn merge(original: &Value, patch: &Value, definition: &'static Definition) -> Result<Value, Error> {
    let (Value::Object(original), Value::Object(patch)) = (original, patch) else {
        return Err(Error::BadPatch("invalid JSON document".into()));
    };
    let meta = Meta::Of(Type::Object(tables::id_of(definition)));
    merge_map(original.clone(), patch.clone(), meta).map(Value::Object)
}

/// What the tables know of a value.
#[derive(Clone, Copy)]
enum Meta {
    Of(Type),
    Nothing,
}

/// How a field merges.
struct FieldMeta {
    inner: Meta,
    replace: bool,
    merge: bool,
    merge_key: &'static str,
}

impl Meta {
    fn field(self, key: &str) -> Result<FieldMeta, Error> {
        let plain = |inner| FieldMeta { inner, replace: false, merge: false, merge_key: "" };
        match self {
            Meta::Of(Type::Object(id)) => {
                let definition = id.get();
                let Some(field) = definition.field(key) else {
                    return Err(Error::Patch(format!(
                        "unable to find api field in struct {} for the json field {key:?}",
                        definition.go_name()
                    )));
                };
                let strategies = || field.patch_strategy.split(',');
                let inner = if let Type::List(of) = field.ty { *of } else { field.ty };
                Ok(FieldMeta {
                    inner: Meta::Of(inner),
                    replace: strategies().any(|s| s == "replace"),
                    merge: strategies().any(|s| s == "merge"),
                    merge_key: field.patch_merge_key,
                })
            }
            Meta::Of(Type::Map(of)) => Ok(plain(Meta::Of(*of))),
            _ => Ok(plain(Meta::Nothing)),
        }
    }

    /// For messages about lists without a merge key.
    fn name(self) -> &'static str {
        match self {
            Meta::Of(Type::Object(id)) => id.get().go_name(),
            _ => "",
        }
    }
}

fn merge_map(mut original: Object, mut patch: Object, meta: Meta) -> Result<Object, Error> {
    if let Some(directive) = patch.remove(PATCH) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => Err(bad_patch_type(&directive, patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, meta)?;
    // Deletions first: with BTreeMap's order `$` sorts before letters, so a list is cut before it grows.
    for (key, value) in patch {
        let list = key.strip_prefix(DELETE_FROM);
        if list.is_none() && key.starts_with(DELETE_FROM_PREFIX) {
            return Err(Error::BadPatch("invalid patch format of primitive list".into()));
        }
        merge_member(&mut original, list.unwrap_or(&key), value, list.is_some(), meta)?;
    }
    Ok(original)
}

fn merge_member(
    original: &mut Object,
    key: &str,
    value: Value,
    deletes: bool,
    meta: Meta,
) -> Result<(), Error> {
    if value.is_null() {
        original.remove(key);
        return Ok(());
    }
    let merged = match (original.remove(key), value) {
        (Some(Value::Object(old)), Value::Object(new)) => {
            let field = meta.field(key)?;
            Some(Value::Object(if field.replace { new } else { merge_map(old, new, field.inner)? }))
        }
        (Some(Value::Array(old)), Value::Array(new)) => {
            let field = meta.field(key)?;
            Some(Value::Array(if field.merge || deletes {
                merge_list(old, new, &field, deletes)?
            } else {
                new
            }))
        }
        (old, _) if deletes => old,
        (_, mut new) => {
            discard_nulls(&mut new);
            without_directives(new)
        }
    };
    if let Some(merged) = merged {
        original.insert(key.to_owned(), merged);
    }
    Ok(())
}

/// Keeps of the original only the fields that the patch names in `$retainKeys`.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Error> {
    let malformed = || Error::BadPatch("invalid patch format of retainKeys".into());
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(malformed()) };
    let retained = |key: &str| keys.iter().any(|k| k == key);
    let stray = patch.iter().any(|(key, value)| {
        !value.is_null()
            && !key.starts_with(DELETE_FROM_PREFIX)
            && !key.starts_with(SET_ORDER_PREFIX)
            && !retained(key)
    });
    if stray {
        return Err(malformed());
    }
    original.retain(|key, _| retained(key));
    Ok(())
}

/// Merges the lists whose order the patch sets with `$setElementOrder/<list>`.
fn merge_ordered_lists(original: &mut Object, patch: &mut Object, meta: Meta) -> Result<(), Error> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER_PREFIX)).cloned().collect();
    for directive in directives {
        let malformed = || Error::BadPatch("invalid patch format of setElementOrder list".into());
        let key = directive.strip_prefix(SET_ORDER).ok_or_else(malformed)?;
        let order = list_of(patch.remove(&directive))?.unwrap_or_default();
        let old = list_of(original.get(key).cloned())?;
        let new = list_of(patch.get(key).cloned())?;
        let field = meta.field(key)?;
        validate_order(new.as_deref().unwrap_or_default(), &order, field.merge_key)?;
        let merged = match (old.clone(), new.clone()) {
            (Some(old), None) => old,
            (None, Some(new)) => match without_directives(Value::Array(new)) {
                Some(Value::Array(new)) => new,
                _ => continue,
            },
            (Some(old), Some(new)) if field.merge => merge_list(old, new, &field, false)?,
            (Some(_), Some(new)) => new,
            (None, None) => continue,
        };
        let old = old.unwrap_or_default();
        let elements = Elements::of(old.iter().chain(new.iter().flatten()), field.merge_key)?;
        let ordered = enforce_order(merged, &order, &old, elements)?;
        original.insert(key.to_owned(), Value::Array(ordered));
        patch.remove(key);
    }
    Ok(())
}

fn list_of(value: Option<Value>) -> Result<Option<Vec<Value>>, Error> {
    match value {
        None => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(other) => {
            Err(Error::UnfitPatch(format!("expected a []interface {{}}, but received a {}", go_kind(&other))))
        }
    }
}

/// The items of the patch must come in the order that the directive sets.
fn validate_order(patch: &[Value], order: &[Value], merge_key: &str) -> Result<(), Error> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut wanted = order.iter();
    for item in patch.iter().filter(|i| i.get(PATCH).is_none()) {
        let key = order::key_of(item, merge_key)?;
        let mut found = false;
        for candidate in wanted.by_ref() {
            if order::key_of(candidate, merge_key)? == key {
                found = true;
                break;
            }
        }
        if !found {
            return Err(Error::UnfitPatch(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                go_value(&Value::Array(patch.to_vec())),
                go_value(&Value::Array(order.to_vec()))
            )));
        }
    }
    Ok(())
}

fn merge_list(
    old: Vec<Value>,
    new: Vec<Value>,
    field: &FieldMeta,
    deletes: bool,
) -> Result<Vec<Value>, Error> {
    if old.is_empty() && new.is_empty() {
        return Ok(old);
    }
    let elements = Elements::of(old.iter().chain(&new), field.merge_key)?;
    if elements == Elements::Scalars {
        if deletes {
            return Ok(old.into_iter().filter(|item| !new.contains(item)).collect());
        }
        let mut both: Vec<Value> = Vec::with_capacity(old.len() + new.len());
        for item in old.iter().chain(&new) {
            if !both.contains(item) {
                both.push(item.clone());
            }
        }
        return enforce_order(both, &new, &old, elements);
    }
    if field.merge_key.is_empty() {
        return Err(Error::UnfitPatch(format!(
            "cannot merge lists without merge key for {}",
            field.inner.name()
        )));
    }
    let (mut old, new) = take_special_elements(old, new, field.merge_key)?;
    let server_order = old.clone();
    for item in &new {
        let Value::Object(item) = item else { continue };
        let key = item.get(field.merge_key).ok_or_else(|| no_merge_key(item, field.merge_key))?;
        match old.iter_mut().find(|o| o.get(field.merge_key) == Some(key)) {
            Some(slot) => {
                if let Value::Object(existing) = std::mem::take(slot) {
                    *slot = Value::Object(merge_map(existing, item.clone(), field.inner)?);
                }
            }
            None => old.push(Value::Object(item.clone())),
        }
    }
    enforce_order(old, &new, &server_order, elements)
}

/// Carries out `$patch: delete` and `$patch: replace` elements, and gives the lists without them.
fn take_special_elements(
    mut old: Vec<Value>,
    new: Vec<Value>,
    merge_key: &str,
) -> Result<(Vec<Value>, Vec<Value>), Error> {
    let mut plain = Vec::with_capacity(new.len());
    let mut replace = false;
    for item in new {
        let Some(directive) = item.get(PATCH).cloned() else {
            plain.push(item);
            continue;
        };
        let Value::Object(map) = item else { continue };
        match directive.as_str() {
            Some("delete") => {
                let key = map.get(merge_key).ok_or_else(|| no_merge_key(&map, merge_key))?;
                old.retain(|o| o.get(merge_key) != Some(key));
            }
            Some("replace") => replace = true,
            Some("merge") => {
                return Err(Error::UnfitPatch("merging lists cannot yet be specified in the patch".into()));
            }
            _ => return Err(bad_patch_type(&directive, map)),
        }
    }
    Ok(if replace { (plain, Vec::new()) } else { (old, plain) })
}

/// Drops nulls from what a patch adds: there is nothing that they could delete.
fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(discard_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(discard_nulls),
        _ => {}
    }
}

/// The value without the parts that are directives; `None` when it is one itself.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(PATCH) => None,
        Value::Object(map) => Some(Value::Object(
            map.into_iter().filter_map(|(k, v)| Some((k, without_directives(v)?))).collect(),
        )),
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        other => Some(other),
    }
}

fn bad_patch_type(directive: &Value, mut map: Object) -> Error {
    map.insert(PATCH.to_owned(), directive.clone());
    Error::UnfitPatch(format!(
        "unknown patch type: {} in map: {}",
        go_value(directive),
        go_value(&Value::Object(map))
    ))
}

fn no_merge_key(map: &Object, key: &str) -> Error {
    Error::UnfitPatch(format!(
        "map: {} does not contain declared merge key: {key}",
        go_value(&Value::Object(map.clone()))
    ))
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// As Go prints a value with `%v`.
pub fn go_value(value: &Value) -> String {
    let joined = |words: Vec<String>| words.join(" ");
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", joined(items.iter().map(go_value).collect())),
        Value::Object(map) => {
            format!("map[{}]", joined(map.iter().map(|(k, v)| format!("{k}:{}", go_value(v))).collect()))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
