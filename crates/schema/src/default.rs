//! Defaults that the schema itself declares. What a kind defaults by rule is its strategy's.

use std::sync::LazyLock;

use api::tables::{self, Definition, Field, Type};
use serde_json::{Map, Value};

use crate::decode::is_dropped;

/// Sets the declared default of every absent field whose parent is there.
pub fn apply_declared(object: &mut Value, definition: &'static Definition) {
    let visit = &mut |object: &mut Map<String, Value>, definition: &'static Definition| {
        for field in &facts_of(definition).declared.fields {
            if object.contains_key(field.name) {
                continue;
            }
            let default = serde_json::from_str(field.default).unwrap_or_default();
            if !is_dropped(field, &default) {
                object.insert(field.name.to_owned(), default);
            }
        }
    };
    walk(object, Type::Object(tables::id_of(definition)), &|facts: &'static Facts| &facts.declared, visit);
}

/// Sets what upstream writes even when it is zero: structs that are no pointers (`status: {}`,
/// `resources: {}`) and fields without `omitempty` (`replicas: 0` in a status).
pub fn fill_always(object: &mut Value, definition: &'static Definition) {
    let visit = &mut |object: &mut Map<String, Value>, definition: &'static Definition| {
        for field in &facts_of(definition).filled.fields {
            let now = object.get_mut(field.name);
            if now.as_ref().is_some_and(|value| !is_empty(value)) {
                continue;
            }
            match (now, always(field)) {
                (None, Some(zero)) => drop(object.insert(field.name.to_owned(), zero)),
                // Upstream's store knows no list that is there and empty.
                (Some(empty), Some(Value::Null)) => *empty = Value::Null,
                _ => {}
            }
        }
    };
    walk(object, Type::Object(tables::id_of(definition)), &|facts: &'static Facts| &facts.filled, visit);
}

/// What there is to set in the objects of a definition.
struct Facts {
    declared: Chosen,
    filled: Chosen,
}

/// Some of the fields of a definition: of most, there are none.
struct Chosen {
    fields: Vec<&'static Field>,
    /// Whether there are such fields here or anywhere below.
    leads_on: bool,
}

/// By the places of the definitions.
static FACTS: LazyLock<Vec<Facts>> = LazyLock::new(|| {
    let declared = fields_with(|_, field| !field.default.is_empty());
    let filled = fields_with(|definition, field| {
        // Of objects of their own, as claim templates are too, what they are is not filled in.
        let says_what = matches!(field.name, "apiVersion" | "kind") && definition.field("metadata").is_some();
        !says_what && always(field).is_some()
    });
    declared.into_iter().zip(filled).map(|(declared, filled)| Facts { declared, filled }).collect()
});

fn facts_of(definition: &'static Definition) -> &'static Facts {
    &FACTS[place_of(definition)]
}

/// The place among all definitions, which are one table.
fn place_of(definition: &'static Definition) -> usize {
    let offset = std::ptr::from_ref(definition).addr() - tables::definitions().as_ptr().addr();
    offset / size_of::<Definition>()
}

fn fields_with(is_one: impl Fn(&Definition, &Field) -> bool) -> Vec<Chosen> {
    let definitions = tables::definitions();
    let own = definitions.iter().map(|definition| {
        let fields: Vec<_> = definition.fields.iter().filter(|field| is_one(definition, field)).collect();
        Chosen { leads_on: !fields.is_empty(), fields }
    });
    let mut all: Vec<Chosen> = own.collect();
    loop {
        let leads = |field: &Field| innermost(field.ty).is_some_and(|below| all[place_of(below)].leads_on);
        let more = definitions.iter().enumerate().filter(|(at, _)| !all[*at].leads_on);
        let more: Vec<usize> =
            more.filter(|(_, definition)| definition.fields.iter().any(leads)).map(|(at, _)| at).collect();
        if more.is_empty() {
            return all;
        }
        more.into_iter().for_each(|at| all[at].leads_on = true);
    }
}

/// The definition of an object, or of those in a list or map.
fn innermost(ty: Type) -> Option<&'static Definition> {
    match ty {
        Type::Object(id) => Some(id.get()),
        Type::List(of) | Type::Map(of) => innermost(*of),
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn always(field: &Field) -> Option<Value> {
    if field.omit_zero() {
        return None;
    }
    if field.pointer() {
        return field.always().then_some(Value::Null);
    }
    match field.ty {
        // No tag of Go's leaves out a time that is no pointer.
        Type::Time | Type::MicroTime => Some(Value::Null),
        Type::List(_) | Type::Map(_) if field.always() => Some(Value::Null),
        Type::Object(_) => Some(Value::Object(Map::new())),
        Type::Quantity => Some("0".into()),
        Type::String if field.always() => Some("".into()),
        Type::Bool if field.always() => Some(false.into()),
        Type::Int32 | Type::Int64 if field.always() => Some(0.into()),
        _ => None,
    }
}

/// Visits every object of a known type that leads to something, outside in, so that what a visit adds is visited too.
fn walk(
    value: &mut Value,
    ty: Type,
    of: &impl Fn(&'static Facts) -> &'static Chosen,
    visit: &mut impl FnMut(&mut Map<String, Value>, &'static Definition),
) {
    match (ty, value) {
        (Type::Object(id), Value::Object(object)) => {
            let definition = id.get();
            visit(object, definition);
            for (name, value) in object.iter_mut().filter(|(_, value)| value.is_object() || value.is_array())
            {
                if let Some(field) = definition.field(name)
                    && innermost(field.ty).is_some_and(|below| of(facts_of(below)).leads_on)
                {
                    walk(value, field.ty, of, visit);
                }
            }
        }
        (Type::List(element), Value::Array(items)) => {
            items.iter_mut().for_each(|item| walk(item, *element, of, visit));
        }
        (Type::Map(element), Value::Object(map)) => {
            map.values_mut().for_each(|value| walk(value, *element, of, visit));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn declared_defaults_are_set_where_the_parent_is() {
        let mut service = json!({"spec": {"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}});
        apply_declared(&mut service, tables::kind("", "v1", "Service").unwrap());
        assert_eq!(
            service,
            json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}})
        );
        let mut pod = json!({"spec": {"imagePullSecrets": [{}], "containers": [{"livenessProbe": {"grpc": {"port": 1}}}]}});
        apply_declared(&mut pod, tables::kind("", "v1", "Pod").unwrap());
        assert_eq!(
            pod,
            json!({"spec": {"imagePullSecrets": [{}],
                "containers": [{"livenessProbe": {"grpc": {"port": 1, "service": ""}}}]}})
        );
    }

    #[test]
    fn upstreams_zero_fields_are_filled() {
        let mut replica_set = json!({"metadata": {"name": "a"}});
        fill_always(&mut replica_set, tables::kind("apps", "v1", "ReplicaSet").unwrap());
        assert_eq!(replica_set["status"], json!({"replicas": 0}));
        // A kind that is a field like any other.
        let mut definition = json!({"status": {}});
        let kind = "CustomResourceDefinition";
        fill_always(&mut definition, tables::kind("apiextensions.k8s.io", "v1", kind).unwrap());
        assert_eq!(definition["status"]["acceptedNames"], json!({"kind": "", "plural": ""}));
        let mut pod = json!({"spec": {"containers": [{"name": "a"}]}});
        fill_always(&mut pod, tables::kind("", "v1", "Pod").unwrap());
        assert_eq!(
            pod,
            json!({"metadata": {}, "spec": {"containers": [{"name": "a", "resources": {}}]}, "status": {}})
        );
    }
}
