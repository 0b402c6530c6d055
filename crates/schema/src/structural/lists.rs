//! What must be unique in lists of the types `set` and `map`.
//!
//! Upstream: apiextensions-apiserver/pkg/apiserver/schema/listtype/validation.go

use std::collections::HashMap;

use apimachinery::field::{Error, Path};
use serde_json::{Map, Value};

use super::{Additional, ListKind, Structural};

/// All duplicates in an object.
pub fn validate(object: &Value, schema: &Structural) -> Vec<Error> {
    let mut errors = Vec::new();
    walk(&Path::root(), object, schema, &mut errors);
    errors
}

fn walk(path: &Path, value: &Value, schema: &Structural, errors: &mut Vec<Error>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (schema.properties.get(name), &schema.additional) {
                    (Some(property), _) => walk(&path.child(name), value, property, errors),
                    (None, Additional::Schema(schema)) => walk(&path.key(name), value, schema, errors),
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            match schema.list_kind {
                ListKind::Atomic => {}
                ListKind::Set => {
                    let twice = repeated(items.iter().collect::<Vec<_>>().as_slice());
                    errors.extend(
                        twice.into_iter().map(|at| Error::duplicate(&path.index(at), items[at].clone())),
                    );
                }
                ListKind::Map => map(path, items, &schema.list_map_keys, errors),
            }
            if let Some(schema) = &schema.items {
                for (at, item) in items.iter().enumerate() {
                    walk(&path.index(at), item, schema, errors);
                }
            }
        }
        _ => {}
    }
}

fn map(path: &Path, items: &[Value], keys: &[String], errors: &mut Vec<Error>) {
    if let Some(at) = items.iter().position(|item| !item.is_object() && !item.is_null()) {
        let detail = "must be an object for an array of list-type map";
        errors.push(Error::invalid(&path.index(at), items[at].clone(), detail));
        return;
    }
    let names: Vec<Value> = items
        .iter()
        .map(|item| {
            let named = keys.iter().filter_map(|key| Some((key.clone(), item.get(key)?.clone())));
            Value::Object(named.collect::<Map<_, _>>())
        })
        .collect();
    for at in repeated(names.iter().collect::<Vec<_>>().as_slice()) {
        errors.push(Error::duplicate(&path.index(at), names[at].clone()));
    }
}

/// Where each value that comes more than once comes for the second time.
fn repeated(values: &[&Value]) -> Vec<usize> {
    let mut seen: HashMap<String, usize> = HashMap::with_capacity(values.len());
    let mut found = Vec::new();
    for (at, value) in values.iter().enumerate() {
        let times = seen.entry(value.to_string()).or_default();
        *times += 1;
        if *times == 2 {
            found.push(at);
        }
    }
    found
}
