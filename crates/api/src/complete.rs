//! Objects that lack what their schema requires. The API server stores what validation lets pass, and for many
//! a status that is little: a condition without a time, say. Upstream's types read what is missing as zero; so
//! do ours, or one client's bad status would hide an object from every controller and proxy.

use serde_json::{Map, Value};

use crate::tables::{Definition, Type};

/// Sets the required fields that are missing or null to their zero values.
pub(crate) fn complete(object: &mut Value, definition: &Definition) {
    let Value::Object(object) = object else { return };
    for field in definition.fields {
        let missing = object.get(field.name).is_none_or(Value::is_null);
        if missing && field.required() {
            object.insert(field.name.to_owned(), zero(field.ty));
        }
        if let Some(value) = object.get_mut(field.name) {
            complete_value(value, field.ty);
        }
    }
}

fn complete_value(value: &mut Value, ty: Type) {
    match (ty, value) {
        (Type::Object(definition), value) => complete(value, definition.get()),
        (Type::List(item), Value::Array(items)) => items.iter_mut().for_each(|v| complete_value(v, *item)),
        (Type::Map(item), Value::Object(map)) => map.values_mut().for_each(|v| complete_value(v, *item)),
        _ => {}
    }
}

fn zero(ty: Type) -> Value {
    match ty {
        Type::String | Type::Bytes => "".into(),
        Type::Bool => false.into(),
        Type::Int32 | Type::Int64 | Type::IntOrString => 0.into(),
        Type::Double => 0.0.into(),
        Type::Quantity => "0".into(),
        Type::Time => "0001-01-01T00:00:00Z".into(),
        Type::MicroTime => "0001-01-01T00:00:00.000000Z".into(),
        Type::List(_) | Type::Strings => Value::Array(Vec::new()),
        Type::Object(_) | Type::Map(_) | Type::FieldsV1 => Value::Object(Map::new()),
        Type::Raw | Type::Json | Type::SchemaOrArray | Type::SchemaOrBool | Type::SchemaOrStrings => {
            Value::Null
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::Object;
    use crate::core::v1::{Pod, Service};

    #[test]
    fn what_is_required_and_missing_reads_as_zero() {
        let condition = json!({"type": "T", "status": "True", "lastTransitionTime": null});
        let service = json!({"metadata": {"name": "s"}, "status": {"conditions": [condition]}});
        for service in
            [Service::from_value(service.clone()), Service::from_slice(service.to_string().as_bytes())]
        {
            let conditions = service.unwrap().status.unwrap().conditions.unwrap();
            assert_eq!(conditions[0].last_transition_time.0.to_string(), "0001-01-01T00:00:00Z");
            assert_eq!(conditions[0].reason, "");
        }
        let pod = Pod::from_value(json!({"spec": {"containers": [{}]}})).unwrap();
        assert_eq!(pod.spec.unwrap().containers[0].name, "");
    }

    #[test]
    fn what_is_of_another_type_is_no_object() {
        assert!(Service::from_value(json!({"spec": {"ports": 1}})).is_err());
        assert!(Service::from_slice(b"{").is_err());
    }
}
