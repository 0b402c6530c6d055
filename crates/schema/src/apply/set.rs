//! Sets of field paths, in the very form in which managedFields keeps them.
//!
//! A set is a JSON object whose keys are path elements (`f:name`, `k:{"name":"a"}`, `v:"x"`). An element is a
//! member when its value is empty or holds `"."`; the other keys of its value are its children.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

pub type Set = Map<String, Value>;

const SELF: &str = ".";

fn node(value: &Value) -> Option<&Set> {
    value.as_object()
}

fn is_member(node: &Set) -> bool {
    node.is_empty() || node.contains_key(SELF)
}

fn children(node: &Set) -> impl Iterator<Item = (&String, &Value)> {
    node.iter().filter(|(k, _)| *k != SELF)
}

pub fn has_children(node: &Set) -> bool {
    children(node).next().is_some()
}

/// A node of those children, a member or not; `None` when it is neither.
fn make(mut children: Set, member: bool) -> Option<Value> {
    match (children.is_empty(), member) {
        (true, false) => None,
        (true, true) => Some(Value::Object(children)),
        (false, true) => {
            children.insert(SELF.into(), Value::Object(Set::new()));
            Some(Value::Object(children))
        }
        (false, false) => Some(Value::Object(children)),
    }
}

/// The set under one element, if any.
pub fn child<'s>(set: &'s Set, element: &str) -> Option<&'s Set> {
    set.get(element).and_then(node)
}

pub fn member(set: &Set, element: &str) -> bool {
    child(set, element).is_some_and(is_member)
}

pub fn has(set: &Set, path: &[String]) -> bool {
    match path {
        [] => false,
        [last] => member(set, last),
        [first, rest @ ..] => child(set, first).is_some_and(|c| has(c, rest)),
    }
}

/// Takes an element and all below it away.
pub fn remove_under(set: &mut Set, path: &[&str]) {
    match path {
        [] => {}
        [last] => {
            set.remove(*last);
        }
        [first, rest @ ..] => {
            let Some(Value::Object(next)) = set.get_mut(*first) else { return };
            let was_member = is_member(next);
            remove_under(next, rest);
            if next.is_empty() && !was_member {
                set.remove(*first);
            }
        }
    }
}

/// Takes one member away, and leaves what is below it.
pub fn remove_member(set: &mut Set, path: &[&str]) {
    match path {
        [] => {}
        [last] => {
            if let Some(Value::Object(next)) = set.get_mut(*last) {
                next.remove(SELF);
                if next.is_empty() {
                    set.remove(*last);
                }
            }
        }
        [first, rest @ ..] => {
            let Some(Value::Object(next)) = set.get_mut(*first) else { return };
            let was_member = is_member(next);
            remove_member(next, rest);
            if next.is_empty() && !was_member {
                set.remove(*first);
            }
        }
    }
}

pub fn union(set: &mut Set, other: &Set) {
    for (element, theirs) in children(other) {
        let Some(theirs) = node(theirs) else { continue };
        match set.get_mut(element) {
            None => {
                set.insert(element.clone(), Value::Object(theirs.clone()));
            }
            Some(Value::Object(ours)) => {
                let member = is_member(ours) || is_member(theirs);
                ours.remove(SELF);
                union(ours, theirs);
                if member && !ours.is_empty() {
                    ours.insert(SELF.into(), Value::Object(Set::new()));
                }
            }
            Some(_) => {}
        }
    }
}

pub fn difference(set: &mut Set, other: &Set) {
    for (element, theirs) in children(other) {
        let Some(theirs) = node(theirs) else { continue };
        let Some(Value::Object(ours)) = set.get_mut(element) else { continue };
        let member = is_member(ours) && !is_member(theirs);
        let mut rest = std::mem::take(ours);
        rest.remove(SELF);
        difference(&mut rest, theirs);
        match make(rest, member) {
            Some(node) => {
                set.insert(element.clone(), node);
            }
            None => {
                set.remove(element);
            }
        }
    }
}

pub fn intersection(set: &Set, other: &Set) -> Set {
    let mut common = Set::new();
    for (element, ours) in children(set) {
        let (Some(ours), Some(theirs)) = (node(ours), child(other, element)) else { continue };
        let member = is_member(ours) && is_member(theirs);
        if let Some(node) = make(intersection(ours, theirs), member) {
            common.insert(element.clone(), node);
        }
    }
    common
}

/// All members as people read paths, `.spec.containers[name="a"].image`: at each level its members first.
pub fn paths(set: &Set) -> Vec<(Vec<String>, String)> {
    let mut paths = Vec::new();
    collect(set, &mut Vec::new(), String::new(), &mut paths);
    paths
}

fn collect(set: &Set, path: &mut Vec<String>, text: String, paths: &mut Vec<(Vec<String>, String)>) {
    for (element, value) in children(set) {
        if node(value).is_some_and(is_member) {
            let mut full = path.clone();
            full.push(element.clone());
            paths.push((full, text.clone() + &words(element)));
        }
    }
    for (element, value) in children(set) {
        let Some(next) = node(value) else { continue };
        path.push(element.clone());
        collect(next, path, text.clone() + &words(element), paths);
        path.pop();
    }
}

fn words(element: &str) -> String {
    if let Some(name) = element.strip_prefix("f:") {
        return format!(".{name}");
    }
    if let Some(value) = element.strip_prefix("v:") {
        return format!("[={value}]");
    }
    match element.strip_prefix("k:").and_then(|json| serde_json::from_str::<Set>(json).ok()) {
        Some(keys) => {
            let pairs: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("[{}]", pairs.join(","))
        }
        None => format!("[{}]", element.trim_start_matches("i:")),
    }
}

/// Whether the value is a set as managedFields may hold it.
pub fn is_valid(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.iter().all(|(key, value)| {
            let named = key == SELF || ["f:", "k:", "v:", "i:"].iter().any(|p| key.starts_with(p));
            named && is_valid(value)
        }),
        _ => false,
    }
}

/// Gathers paths into a set, one after the other.
#[derive(Default)]
pub struct Builder {
    member: bool,
    children: BTreeMap<String, Builder>,
}

impl Builder {
    pub fn insert(&mut self, path: &[String]) {
        match path {
            [] => self.member = true,
            [first, rest @ ..] => match self.children.get_mut(first) {
                Some(child) => child.insert(rest),
                None => self.children.entry(first.clone()).or_default().insert(rest),
            },
        }
    }

    /// The whole object is no member of its own set.
    pub fn finish(self) -> Set {
        self.children.into_iter().filter_map(|(element, child)| Some((element, child.node()?))).collect()
    }

    fn node(self) -> Option<Value> {
        let member = self.member;
        make(self.finish(), member)
    }
}
