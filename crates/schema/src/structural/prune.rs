//! Pruning: what a schema does not name is taken away.
//!
//! Upstream: apiextensions-apiserver/pkg/apiserver/schema/pruning/algorithm.go

use serde_json::Value;

use super::{Additional, Structural};

/// How many pruned fields are told at most.
const MAX_TOLD: usize = 100;

const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Where the walk is, and what it took away.
#[derive(Default)]
struct Walk {
    path: Vec<String>,
    pruned: Vec<String>,
}

impl Walk {
    fn tell(&mut self, name: &str) {
        if self.pruned.len() < MAX_TOLD {
            let mut path = join(&self.path);
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
            self.pruned.push(path);
        }
    }
}

/// `spec.ports[0].name` of its parts.
fn join(parts: &[String]) -> String {
    let mut path = String::new();
    for part in parts {
        if !path.is_empty() && !part.starts_with('[') {
            path.push('.');
        }
        path.push_str(part);
    }
    path
}

/// Prunes a whole object, whose kind and metadata stay. Gives the paths of what went, in order.
pub fn object(object: &mut Value, schema: &Structural) -> Vec<String> {
    prune(object, schema, true)
}

/// Prunes a value that is no object of its own, such as a default.
pub fn value(value: &mut Value, schema: &Structural) -> Vec<String> {
    prune(value, schema, schema.embedded)
}

fn prune(value: &mut Value, schema: &Structural, embedded: bool) -> Vec<String> {
    let mut walk = Walk::default();
    step(value, Some(schema), embedded, &mut walk);
    walk.pruned.sort();
    walk.pruned
}

fn step(value: &mut Value, schema: Option<&Structural>, embedded: bool, walk: &mut Walk) {
    if let Some(schema) = schema.filter(|schema| schema.preserve_unknown) {
        return keep(value, schema, embedded, walk);
    }
    match value {
        Value::Object(fields) => fields.retain(|name, value| {
            if embedded && META.contains(&name.as_str()) {
                return true;
            }
            let known = schema.map(|schema| (schema.properties.get(name), &schema.additional));
            let inner = match known {
                Some((Some(property), _)) => Some(property),
                Some((None, Additional::Schema(schema))) => Some(&**schema),
                Some((None, Additional::Any(_))) => None,
                Some((None, Additional::None)) | None => {
                    walk.tell(name);
                    return false;
                }
            };
            walk.path.push(name.clone());
            step(value, inner, inner.is_some_and(|schema| schema.embedded), walk);
            walk.path.pop();
            true
        }),
        Value::Array(items) => {
            let inner = schema.and_then(|schema| schema.items.as_deref());
            each(items, walk, |item, walk| {
                step(item, inner, inner.is_some_and(|schema| schema.embedded), walk);
            });
        }
        _ => {}
    }
}

/// Keeps what is unknown, and prunes only below what is known.
fn keep(value: &mut Value, schema: &Structural, embedded: bool, walk: &mut Walk) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                if embedded && META.contains(&name.as_str()) {
                    continue;
                }
                let inner = match (schema.properties.get(name), &schema.additional) {
                    (Some(property), _) => Some(property),
                    (None, Additional::Schema(schema)) => Some(&**schema),
                    (None, Additional::Any(_)) => None,
                    (None, Additional::None) => continue,
                };
                walk.path.push(name.clone());
                step(value, inner, inner.is_some_and(|schema| schema.embedded), walk);
                walk.path.pop();
            }
        }
        Value::Array(items) => {
            let Some(inner) = schema.items.as_deref() else { return };
            each(items, walk, |item, walk| keep(item, inner, inner.embedded, walk));
        }
        _ => {}
    }
}

fn each(items: &mut [Value], walk: &mut Walk, mut visit: impl FnMut(&mut Value, &mut Walk)) {
    for (at, item) in items.iter_mut().enumerate() {
        walk.path.push(format!("[{at}]"));
        visit(item, walk);
        walk.path.pop();
    }
}
