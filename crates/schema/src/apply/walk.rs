//! Walks over typed trees: which fields a tree has, how two differ, what both make together.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::set::{Element, Set};
use super::typed::{Keys, Schema, Shape, item_element};

/// How a tree changed into another.
#[derive(Default)]
pub struct Comparison<'v> {
    /// What was added or modified.
    pub changed: Set<'v>,
    pub removed: Set<'v>,
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
                        let words = name.words();
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
pub fn field_set<'v, S: Schema>(schema: &S, value: &'v Value) -> Set<'v> {
    collect(schema, value).with_member(false)
}

fn collect<'v, S: Schema>(schema: &S, value: &'v Value) -> Set<'v> {
    match (shape_of(schema, Some(value)), value) {
        (Shape::Struct | Shape::Map, Value::Object(map)) => {
            let of_struct = schema.shape() == Shape::Struct;
            let mut set = Set::default();
            for (name, value) in map {
                let mut field = collect(&field_type(schema, name), value);
                field.member |= !of_struct || value.is_null() || value.as_object().is_some_and(Map::is_empty);
                set.push(Element::field(name), field);
            }
            set
        }
        (Shape::Set | Shape::Keyed, Value::Array(items)) => {
            let (element, keys) = (schema.element(), schema.keys());
            let mut set = Set::default();
            for item in items {
                let Ok(name) = item_element(schema, &keys, item) else { continue };
                set.push(name, collect(&element, item).with_member(true));
            }
            set.sort();
            set
        }
        _ => Set::leaf(),
    }
}

/// Compares two trees; equal parts are skipped at once.
pub fn compare<'v, S: Schema>(schema: &S, old: &'v Value, new: &'v Value) -> Comparison<'v> {
    if old == new {
        return Comparison::default();
    }
    let mut comparison = differ(schema, Some(old), Some(new));
    (comparison.changed.member, comparison.removed.member) = (false, false);
    comparison
}

/// Compares what differs. Null is what an empty list or map may be written as.
fn differ<'v, S: Schema>(schema: &S, old: Option<&'v Value>, new: Option<&'v Value>) -> Comparison<'v> {
    let there = |value: Option<&'v Value>| value.filter(|v| !v.is_null());
    let shape = match (there(old), there(new)) {
        (Some(old), Some(new)) if shape_of(schema, Some(old)) != shape_of(schema, Some(new)) => Shape::Leaf,
        (old, new) => shape_of(schema, new.or(old)),
    };
    let empty = |value: Option<&Value>| match value {
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        _ => true,
    };
    let parted = shape != Shape::Leaf && !(empty(old) && empty(new));
    let mut comparison = match shape {
        _ if !parted => Comparison::default(),
        Shape::Set | Shape::Keyed => differ_items(schema, old, new),
        _ => differ_fields(schema, old, new),
    };
    match (old, new) {
        (None, _) => comparison.changed.member = true,
        (_, None) => comparison.removed.member = true,
        _ => comparison.changed.member |= !parted,
    }
    comparison
}

impl<'v> Comparison<'v> {
    fn push(&mut self, element: Element<'v>, under: Comparison<'v>) {
        match (under.changed.is_empty(), under.removed.is_empty()) {
            (false, false) => {
                self.changed.push(element.clone(), under.changed);
                self.removed.push(element, under.removed);
            }
            (false, true) => self.changed.push(element, under.changed),
            (true, _) => self.removed.push(element, under.removed),
        }
    }
}

fn differ_fields<'v, S: Schema>(
    schema: &S,
    old: Option<&'v Value>,
    new: Option<&'v Value>,
) -> Comparison<'v> {
    let mut comparison = Comparison::default();
    let mut old = old.and_then(Value::as_object).into_iter().flatten().peekable();
    let mut new = new.and_then(Value::as_object).into_iter().flatten().peekable();
    loop {
        let (name, was, is) = match (old.peek(), new.peek()) {
            (None, None) => return comparison,
            (Some((was, _)), Some((is, _))) if was == is => {
                let (was, is) = (old.next(), new.next());
                if was == is {
                    continue;
                }
                (is.map(|(name, _)| name), was, is)
            }
            (Some((was, _)), is) if is.is_none_or(|(is, _)| was < is) => {
                let was = old.next();
                (was.map(|(name, _)| name), was, None)
            }
            _ => {
                let is = new.next();
                (is.map(|(name, _)| name), None, is)
            }
        };
        let Some(name) = name else { return comparison };
        let value = |entry: Option<(&'v String, &'v Value)>| entry.map(|(_, value)| value);
        let under = differ(&field_type(schema, name), value(was), value(is));
        comparison.push(Element::field(name), under);
    }
}

/// The items by their elements, sorted; of duplicates, which old objects may hold, all are kept together.
fn index<'v, S: Schema>(
    schema: &S,
    keys: &Keys<'_>,
    list: Option<&'v Value>,
) -> Vec<(Element<'static>, Vec<&'v Value>)> {
    let mut items: Vec<(Element<'static>, Vec<&Value>)> = Vec::new();
    for item in list.and_then(Value::as_array).into_iter().flatten() {
        if let Ok(name) = item_element(schema, keys, item) {
            items.push((name, vec![item]));
        }
    }
    items.sort_by(|a, b| a.0.cmp(&b.0));
    items.dedup_by(|later, first| {
        let same = later.0 == first.0;
        if same {
            first.1.append(&mut later.1);
        }
        same
    });
    items
}

fn differ_items<'v, S: Schema>(schema: &S, old: Option<&'v Value>, new: Option<&'v Value>) -> Comparison<'v> {
    let (element, keys) = (schema.element(), schema.keys());
    let mut comparison = Comparison::default();
    let mut old = index(schema, &keys, old).into_iter().peekable();
    let mut new = index(schema, &keys, new).into_iter().peekable();
    loop {
        let (was, is) = match (old.peek(), new.peek()) {
            (None, None) => return comparison,
            (Some((was, _)), Some((is, _))) if was == is => (old.next(), new.next()),
            (Some((was, _)), is) if is.is_none_or(|(is, _)| was < is) => (old.next(), None),
            _ => (None, new.next()),
        };
        let (name, was, is) = match (was, is) {
            (Some((name, was)), Some((_, is))) => (name, was, is),
            (Some((name, was)), None) => (name, was, Vec::new()),
            (None, Some((name, is))) => (name, Vec::new(), is),
            (None, None) => return comparison,
        };
        let mut under = Comparison::default();
        match (was.as_slice(), is.as_slice()) {
            (was, is) if was == is => {}
            ([] | [_], [] | [_]) => under = differ(&element, was.first().copied(), is.first().copied()),
            ([_, _, ..], [] | [_]) => under.removed.member = true,
            _ => under.changed.member = true,
        }
        comparison.push(name, under);
    }
}

/// What a tree becomes when another is applied on it.
pub fn merge<S: Schema>(schema: &S, old: &Value, new: &Value) -> Value {
    // Nothing, in the place of fields or items, adds none and takes none away.
    let has_parts =
        old.as_object().is_some_and(|map| !map.is_empty()) || old.as_array().is_some_and(|l| !l.is_empty());
    if new.is_null() && has_parts && shape_of(schema, Some(old)) != Shape::Leaf {
        return old.clone();
    }
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
    let named = |items: &[Value]| -> Vec<Option<Element<'static>>> {
        items.iter().map(|item| item_element(schema, &keys, item).ok()).collect()
    };
    let (old_names, new_names) = (named(old), named(new));
    let in_new: HashSet<&Element<'_>> = new_names.iter().flatten().collect();
    let in_old: HashSet<&Element<'_>> = old_names.iter().flatten().collect();
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
pub fn prune<S: Schema>(schema: &S, value: &mut Value, last: &Set<'_>, held: &Set<'_>) {
    let nothing = Set::default();
    let goes = |element: &Element<'_>, named: bool| {
        let owned = |set: &Set<'_>| {
            set.child(element).is_some_and(|child| child.member || (named && child.has_children()))
        };
        owned(last) && !owned(held)
    };
    let under = |schema: &S, value: &mut Value, element: &Element<'_>| {
        if let Some(last) = last.child(element).filter(|last| last.has_children()) {
            prune(schema, value, last, held.child(element).unwrap_or(&nothing));
        }
    };
    match (shape_of(schema, Some(value)), value) {
        (shape @ (Shape::Struct | Shape::Map), Value::Object(map)) => {
            let named = shape == Shape::Struct;
            map.retain(|name, _| !goes(&Element::field(name), named));
            for (name, value) in map {
                under(&field_type(schema, name), value, &Element::field(name));
            }
        }
        (Shape::Set | Shape::Keyed, Value::Array(items)) => {
            let (element, keys) = (schema.element(), schema.keys());
            let name = |item: &Value| item_element(schema, &keys, item);
            items.retain(|item| !name(item).is_ok_and(|name| goes(&name, false)));
            for item in items {
                if let Ok(name) = name(item) {
                    under(&element, item, &name);
                }
            }
        }
        _ => {}
    }
}
