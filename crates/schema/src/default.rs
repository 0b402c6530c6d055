//! Defaults that the schema itself declares. What a kind defaults by rule is its strategy's.

use api::tables::{self, Definition, Field, Type};
use serde_json::{Map, Value};

use crate::decode::is_dropped;

/// Sets the declared default of every absent field whose parent is there.
pub fn apply_declared(object: &mut Value, definition: &'static Definition) {
    walk(object, Type::Object(id(definition)), &mut |object, definition| {
        for field in definition.fields.iter().filter(|f| !f.default.is_empty()) {
            if object.contains_key(field.name) {
                continue;
            }
            let default = serde_json::from_str(field.default).unwrap_or_default();
            if !is_dropped(field, &default) {
                object.insert(field.name.to_owned(), default);
            }
        }
    });
}

/// Sets what upstream writes even when it is zero: structs that are no pointers (`status: {}`,
/// `resources: {}`) and fields without `omitempty` (`replicas: 0` in a status).
pub fn fill_always(object: &mut Value, definition: &'static Definition) {
    walk(object, Type::Object(id(definition)), &mut |object, definition| {
        for field in definition.fields {
            // Of most fields nothing is written, which is seen sooner than whether they are there.
            let Some(zero) = always(field) else { continue };
            let says_what = matches!(field.name, "apiVersion" | "kind") && is_whole(definition);
            if !object.contains_key(field.name) && !says_what {
                object.insert(field.name.to_owned(), zero);
            }
        }
    });
}

/// Of objects of their own, as claim templates are too, what they are is not filled in.
fn is_whole(definition: &Definition) -> bool {
    definition.fields.iter().any(|field| field.name == "metadata")
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
        Type::String if field.always() => Some("".into()),
        Type::Bool if field.always() => Some(false.into()),
        Type::Int32 | Type::Int64 if field.always() => Some(0.into()),
        _ => None,
    }
}

fn id(definition: &'static Definition) -> tables::DefinitionId {
    tables::id_of(definition)
}

/// Visits every object of a known type, outside in, so that what a visit adds is visited too.
fn walk(value: &mut Value, ty: Type, visit: &mut impl FnMut(&mut Map<String, Value>, &'static Definition)) {
    match (ty, value) {
        (Type::Object(id), Value::Object(object)) => {
            let definition = id.get();
            visit(object, definition);
            for (name, value) in object.iter_mut().filter(|(_, value)| value.is_object() || value.is_array())
            {
                if let Some(field) = definition.field(name) {
                    walk(value, field.ty, visit);
                }
            }
        }
        (Type::List(of), Value::Array(items)) if !is_plain(*of) => {
            items.iter_mut().for_each(|item| walk(item, *of, visit));
        }
        (Type::Map(of), Value::Object(map)) if !is_plain(*of) => {
            map.values_mut().for_each(|value| walk(value, *of, visit));
        }
        _ => {}
    }
}

fn is_plain(ty: Type) -> bool {
    !matches!(ty, Type::Object(_) | Type::List(_) | Type::Map(_))
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
