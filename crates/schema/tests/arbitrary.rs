//! No input makes the crate panic, and what it accepts is stable.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use api::tables::{self, Definition};
use proptest::prelude::*;
use schema::apply::{Typed, Writer, apply, track_update};
use schema::decode::Strictness;
use schema::{decode, default, patch, protobuf, strategic};
use serde_json::{Value, json};

fn definitions() -> Vec<&'static Definition> {
    let kinds = [
        ("", "Pod"),
        ("", "Service"),
        ("apps", "Deployment"),
        ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ];
    kinds.iter().map(|(group, kind)| tables::kind(group, "v1", kind).unwrap()).collect()
}

/// Trees whose keys are often those of real fields.
fn tree() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec![
        "spec",
        "metadata",
        "template",
        "containers",
        "ports",
        "name",
        "labels",
        "replicas",
        "resources",
        "limits",
        "cpu",
        "env",
        "key",
        "finalizers",
        "ownerReferences",
        "uid",
        "status",
        "conditions",
        "type",
        "port",
        "protocol",
        "versions",
        "schema",
        "openAPIV3Schema",
        "properties",
        "items",
        "additionalProperties",
        "default",
        "x",
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "$deleteFromPrimitiveList/finalizers",
        "managedFields",
        "fieldsV1",
        "f:spec",
        "k:{}",
        "creationTimestamp",
        "data",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..3i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
        prop::sample::select(vec![
            "a",
            "delete",
            "replace",
            "merge",
            "1Gi",
            "2026-01-02T03:04:05Z",
            "AQID",
            "FieldsV1",
            "Apply"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..6).prop_map(|map| map
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect::<serde_json::Map<_, _>>()
                .into()),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for definition in definitions() {
            let _ = decode::json(&bytes, definition, Strictness::Report);
            let _ = decode::yaml(&bytes, definition, Strictness::Report);
            let _ = protobuf::decode_message(&bytes, definition);
        }
        if let Ok(value) = schema::cbor::decode(&bytes) {
            let written = schema::cbor::encode(&value, None);
            prop_assert_eq!(schema::cbor::decode(&written).unwrap(), value);
        }
        let _ = protobuf::decode(&bytes);
        let _ = protobuf::decode_watch_event(&bytes);
        let _ = patch::json_patch(&json!({}), &bytes);
    }

    #[test]
    fn any_tree_is_decoded_or_refused_and_decoding_is_stable(tree in tree()) {
        for definition in definitions() {
            let Ok(decoded) = decode::value(tree.clone(), definition, Strictness::Report) else { continue };
            let again = decode::value(decoded.object.clone(), definition, Strictness::Report).unwrap();
            prop_assert_eq!(&again.object, &decoded.object);
            prop_assert!(again.problems.is_empty());
            let text = decoded.object.to_string();
            prop_assert_eq!(&decode::json(text.as_bytes(), definition, Strictness::Report).unwrap().object, &decoded.object);
            if let Ok(message) = protobuf::message(&decoded.object, definition) {
                prop_assert!(protobuf::decode_message(&message, definition).is_ok());
            }
            let mut object = decoded.object;
            default::apply_declared(&mut object, definition);
            default::fill_always(&mut object, definition);
        }
    }

    #[test]
    fn any_patch_is_applied_or_refused(original in tree(), patch in tree()) {
        for definition in definitions() {
            let _ = strategic::merge(&original, &patch, definition);
            let mut applied = patch.clone();
            let mut new = patch.clone();
            if let Value::Object(map) = &mut applied {
                map.insert("apiVersion".into(), "v1".into());
            }
            let writer = Writer { manager: "m", subresource: "", api_version: "v1", now: 0, resets: &[] };
            let _ = apply(&Typed::of(definition), Some(&original), &applied, &writer, false);
            let _ = apply(&Typed::of(definition), Some(&original), &applied, &writer, true);
            track_update(&Typed::of(definition), Some(&original), &mut new, &writer);
        }
        let _ = patch::merge_patch(&original, &patch);
        let _ = patch::json_patch(&original, patch.to_string().as_bytes());
    }
}
