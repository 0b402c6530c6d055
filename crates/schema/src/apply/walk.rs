//! Walks over typed trees: which fields a tree has, how two differ, what both make together.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::set::{self, Builder, Set};
use super::typed::{Schema, Shape, item_element};

/// How a tree changed into another.
#[derive(Default)]
pub struct Comparison {
    pub added: Builder,
    pub modified: Builder,
    pub removed: Builder,
}

/// The shape of this value: what is declared, or deduced from it.
fn shape_of<S: Schema>(schema: &S, value: Option<&Value>) -> Shape {
    match (schema.shape(), value) {
        (Shape::Deduced, Some(Value::Object(_))) => Shape::Map,
        (Shape::Deduced, _) => Shape::Leaf,
        (Shape::Struct | Shape::Map, Some(Value::Object(_))) => schema.shape(),
        (Shape::Set | Shape::Keyed, Some(Value::Array(_))) => schema.shape(),
        _ => Shape::Leaf,
    }
}

fn field_type<S: Schema>(schema: &S, name: &str) -> S {
    match schema.shape() {
        Shape::Struct => schema.field(name).unwrap_or_else(|| schema.clone()),
        Shape::Deduced => schema.clone(),
        _ => schema.element(),
    }
}

/// Why the tree is not of its type: `.spec.foo: field not declared in schema`, each on its own.
pub fn validate<S: Schema>(schema: &S, value: &Value, path: &str, errors: &mut Vec<String>) {
    if let Err(why) = schema.check(value) {
        errors.push(format!("{}{why}", if path.is_empty() { String::new() } else { format!("{path}: ") }));
        return;
    }
    match (schema.shape(), value) {
        (Shape::Struct, Value::Object(map)) => {
            for (name, value) in map {
                match schema.field(name) {
                    Some(field) => validate(&field, value, &format!("{path}.{name}"), errors),
                    None => errors.push(format!("{path}.{name}: field not declared in schema")),
                }
            }
        }
        (Shape::Map, Value::Object(map)) => {
            let element = schema.element();
            map.iter().for_each(|(name, value)| validate(&element, value, &format!("{path}.{name}"), errors));
        }
        (Shape::Set | Shape::Keyed, Value::Array(items)) => {
            let (element, keys) = (schema.element(), schema.keys());
            let mut seen = HashSet::new();
            for (at, item) in items.iter().enumerate() {
                match item_element(schema, &keys, item) {
                    Err(why) => errors.push(format!("{path}: element {at}: {why}")),
                    Ok(name) => {
                        let mut single = Builder::default();
                        single.insert(std::slice::from_ref(&name));
                        let words =
                            set::paths(&single.finish()).pop().map(|(_, words)| words).unwrap_or_default();
                        if !seen.insert(name) {
                            errors.push(format!("{path}: duplicate entries for key {words}"));
                        }
                        validate(&element, item, &format!("{path}{words}"), errors);
                    }
                }
            }
        }
        (Shape::Leaf, Value::Object(map)) => {
            for (name, value) in map {
                if let Some(field) = schema.field(name) {
                    validate(&field, value, &format!("{path}.{name}"), errors);
                }
            }
        }
        (Shape::Leaf, Value::Array(items)) => {
            let element = schema.element();
            for (at, item) in items.iter().enumerate() {
                validate(&element, item, &format!("{path}[{at}]"), errors);
            }
        }
        _ => {}
    }
}

/// The parts of a tree that can only be replaced as a whole.
pub fn atomics<S: Schema>(schema: &S, value: &Value, path: &str, out: &mut Vec<String>) {
    let shape = shape_of(schema, Some(value));
    match value {
        Value::Object(map) => {
            if shape == Shape::Leaf {
                out.push(path.to_owned());
            }
            for (name, value) in map {
                atomics(&field_type(schema, name), value, &format!("{path}.{name}"), out);
            }
        }
        Value::Array(items) => {
            if shape == Shape::Leaf && schema.shape() != Shape::Deduced {
                out.push(path.to_owned());
            }
            let element = schema.element();
            for (at, item) in items.iter().enumerate() {
                atomics(&element, item, &format!("{path}[{at}]"), out);
            }
        }
        _ => {}
    }
}

/// The fields that a tree has.
pub fn field_set<S: Schema>(schema: &S, value: &Value) -> Set {
    let mut set = Builder::default();
    collect(schema, value, &mut Vec::new(), &mut set);
    set.finish()
}

fn collect<S: Schema>(schema: &S, value: &Value, path: &mut Vec<String>, set: &mut Builder) {
    match (shape_of(schema, Some(value)), value) {
        (Shape::Struct | Shape::Map, Value::Object(map)) => {
            let of_struct = schema.shape() == Shape::Struct;
            for (name, value) in map {
                path.push(format!("f:{name}"));
                collect(&field_type(schema, name), value, path, set);
                if !of_struct || value.is_null() || value.as_object().is_some_and(Map::is_empty) {
                    set.insert(path);
                }
                path.pop();
            }
        }
        (Shape::Set | Shape::Keyed, Value::Array(items)) => {
            let (element, keys) = (schema.element(), schema.keys());
            for item in items {
                let Ok(name) = item_element(schema, &keys, item) else { continue };
                path.push(name);
                collect(&element, item, path, set);
                set.insert(path);
                path.pop();
            }
        }
        _ => set.insert(path),
    }
}

/// Compares two trees; equal parts are skipped at once.
pub fn compare<S: Schema>(schema: &S, old: &Value, new: &Value) -> Comparison {
    let mut comparison = Comparison::default();
    differ(schema, Some(old), Some(new), &mut Vec::new(), &mut comparison);
    comparison
}

fn differ<S: Schema>(
    schema: &S,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<String>,
    out: &mut Comparison,
) {
    if old == new {
        return;
    }
    let shape = match (old, new) {
        (Some(old), Some(new)) if shape_of(schema, Some(old)) != shape_of(schema, Some(new)) => Shape::Leaf,
        _ => shape_of(schema, new.or(old)),
    };
    let empty = |value: Option<&Value>| match value {
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        _ => true,
    };
    if shape != Shape::Leaf && !(empty(old) && empty(new)) {
        match shape {
            Shape::Set | Shape::Keyed => differ_items(schema, old, new, path, out),
            _ => differ_fields(schema, old, new, path, out),
        }
        match (old, new) {
            (None, _) => out.added.insert(path),
            (_, None) => out.removed.insert(path),
            _ => {}
        }
        return;
    }
    match (old, new) {
        (None, _) => out.added.insert(path),
        (_, None) => out.removed.insert(path),
        _ => out.modified.insert(path),
    }
}

fn differ_fields<S: Schema>(
    schema: &S,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<String>,
    out: &mut Comparison,
) {
    let empty = Map::new();
    let old = old.and_then(Value::as_object).unwrap_or(&empty);
    let new = new.and_then(Value::as_object).unwrap_or(&empty);
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    for name in new.keys().chain(gone) {
        let (old, new) = (old.get(name), new.get(name));
        if old != new {
            path.push(format!("f:{name}"));
            differ(&field_type(schema, name), old, new, path, out);
            path.pop();
        }
    }
}

/// The items by their elements; of duplicates, which old objects may hold, all are kept together.
fn index<'v, S: Schema>(
    schema: &S,
    keys: &[(String, Option<Value>)],
    list: Option<&'v Value>,
) -> Vec<(String, Vec<&'v Value>)> {
    let mut places = std::collections::HashMap::new();
    let mut items: Vec<(String, Vec<&Value>)> = Vec::new();
    for item in list.and_then(Value::as_array).into_iter().flatten() {
        let Ok(name) = item_element(schema, keys, item) else { continue };
        let place = *places.entry(name.clone()).or_insert(items.len());
        match items.get_mut(place) {
            Some((_, same)) => same.push(item),
            None => items.push((name, vec![item])),
        }
    }
    items
}

fn differ_items<S: Schema>(
    schema: &S,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<String>,
    out: &mut Comparison,
) {
    let (element, keys) = (schema.element(), schema.keys());
    let mut old: std::collections::BTreeMap<_, _> = index(schema, &keys, old).into_iter().collect();
    let mut pairs: Vec<_> = index(schema, &keys, new)
        .into_iter()
        .map(|(name, new)| {
            let old = old.remove(&name).unwrap_or_default();
            (name, old, new)
        })
        .collect();
    pairs.extend(old.into_iter().map(|(name, old)| (name, old, Vec::new())));
    for (name, old, new) in pairs {
        path.push(name);
        match (old.as_slice(), new.as_slice()) {
            ([] | [_], [] | [_]) => differ(&element, old.first().copied(), new.first().copied(), path, out),
            (old, new) if old == new => {}
            ([_, _, ..], [_, _, ..]) => out.modified.insert(path),
            ([_, _, ..], _) => out.removed.insert(path),
            _ => out.added.insert(path),
        }
        path.pop();
    }
}

/// What a tree becomes when another is applied on it.
pub fn merge<S: Schema>(schema: &S, old: &Value, new: &Value) -> Value {
    let shape = shape_of(schema, Some(new));
    if shape != shape_of(schema, Some(old)) {
        return new.clone();
    }
    match (shape, old, new) {
        (Shape::Struct | Shape::Map, Value::Object(old), Value::Object(new)) => {
            let mut merged = old.clone();
            for (name, value) in new {
                let value = match old.get(name) {
                    Some(existing) => merge(&field_type(schema, name), existing, value),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Shape::Set | Shape::Keyed, Value::Array(old), Value::Array(new)) => {
            Value::Array(merge_items(schema, old, new))
        }
        _ => new.clone(),
    }
}

/// Items come in the order of the new list; what only the old one has stays where it stood among them.
// Upstream: structured-merge-diff typed/merge.go visitListItems
fn merge_items<S: Schema>(schema: &S, old: &[Value], new: &[Value]) -> Vec<Value> {
    let (element, keys) = (schema.element(), schema.keys());
    let named = |items: &[Value]| -> Vec<Option<String>> {
        items.iter().map(|item| item_element(schema, &keys, item).ok()).collect()
    };
    let (old_names, new_names) = (named(old), named(new));
    let in_new: HashSet<&String> = new_names.iter().flatten().collect();
    let in_old: HashSet<&String> = old_names.iter().flatten().collect();
    let mut shared = new_names.iter().flatten().filter(|n| in_old.contains(n)).peekable();
    let join = |at: usize| {
        let twin = new_names[at].as_ref().and_then(|n| old_names.iter().position(|o| o.as_ref() == Some(n)));
        twin.map_or_else(|| new[at].clone(), |twin| merge(&element, &old[twin], &new[at]))
    };
    let mut merged = Vec::with_capacity(old.len() + new.len());
    let mut next = 0;
    for (at, name) in old_names.iter().enumerate() {
        match name {
            Some(name) if in_new.contains(name) => {
                if shared.peek() != Some(&name) {
                    continue;
                }
                shared.next();
                while next < new.len() {
                    merged.push(join(next));
                    next += 1;
                    if new_names[next - 1].as_ref() == Some(name) {
                        break;
                    }
                }
            }
            _ => merged.push(old[at].clone()),
        }
    }
    merged.extend((next..new.len()).map(join));
    merged
}

/// Takes away what `last` held and nobody holds any more.
// Upstream: structured-merge-diff merge/update.go prune
pub fn prune<S: Schema>(schema: &S, value: &mut Value, last: &Set, held: &Set) {
    let nothing = Set::new();
    let goes = |element: &str, named: bool| {
        let owned = |set: &Set| {
            set::member(set, element) || (named && set::child(set, element).is_some_and(set::has_children))
        };
        owned(last) && !owned(held)
    };
    match (shape_of(schema, Some(value)), value) {
        (shape @ (Shape::Struct | Shape::Map), Value::Object(map)) => {
            let named = shape == Shape::Struct;
            map.retain(|name, _| !goes(&format!("f:{name}"), named));
            for (name, value) in map {
                let element = format!("f:{name}");
                if let Some(last) = set::child(last, &element).filter(|l| set::has_children(l)) {
                    prune(
                        &field_type(schema, name),
                        value,
                        last,
                        set::child(held, &element).unwrap_or(&nothing),
                    );
                }
            }
        }
        (Shape::Set | Shape::Keyed, Value::Array(items)) => {
            let (element, keys) = (schema.element(), schema.keys());
            let name = |item: &Value| item_element(schema, &keys, item).unwrap_or_default();
            items.retain(|item| !goes(&name(item), false));
            for item in items {
                let name = name(item);
                if let Some(last) = set::child(last, &name).filter(|l| set::has_children(l)) {
                    prune(&element, item, last, set::child(held, &name).unwrap_or(&nothing));
                }
            }
        }
        _ => {}
    }
}
