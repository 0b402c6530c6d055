use serde_json::json;

use super::*;

#[track_caller]
fn check(object: Value) {
    let version = GroupVersion::parse(object["apiVersion"].as_str().unwrap()).unwrap();
    let definition =
        tables::kind(&version.group, &version.version, object["kind"].as_str().unwrap()).unwrap();
    let bytes = encode(&object, definition).unwrap();
    let (kind, back) = decode(&bytes).unwrap();
    assert_eq!(back, object);
    assert_eq!(kind.kind, object["kind"].as_str().unwrap());
}

#[test]
fn objects_survive_the_round_trip() {
    check(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "labels": {"a": "b", "c": ""}, "creationTimestamp": "2026-01-02T03:04:05Z",
            "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}]},
        "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "500m"}},
            "livenessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 3}}],
            "volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 0}}));
    check(json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "AQID"}}));
    check(json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "spec": {"renewTime": "2026-01-02T03:04:05.123456Z", "leaseTransitions": 1}}));
    check(json!({"apiVersion": "v1", "kind": "ServiceList", "metadata": {"resourceVersion": "1"}, "items": [
        {"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80, "targetPort": 8080}]}, "status": {"loadBalancer": {}}}]}));
    check(json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "spec": {"conversion": {"strategy": "None"}, "group": "g", "scope": "Cluster", "names": {"plural": "p", "kind": "k"},
        "versions": [{"name": "v", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
            "x-kubernetes-preserve-unknown-fields": true, "maximum": 1.5, "default": {"a": [1, null]},
            "properties": {"a": {"items": {"type": "string"}, "additionalProperties": false},
                "b": {"items": [{"type": "string"}], "additionalProperties": {"type": "x"},
                    "dependencies": {"d": ["e"], "f": {"type": "g"}}}}}}}]}}));
    check(json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": "t"}, "status": {"user": {"extra": {"a": ["b", "c"]}}}}));
}

#[test]
fn what_go_writes_for_zero_is_absent() {
    // A Go client writes every scalar that is no pointer, so an empty hostname comes as an empty string.
    let container = tables::definition("io.k8s.api.core.v1.Container").unwrap();
    let written = message(&json!({"name": "a", "image": "", "stdin": false, "args": []}), container).unwrap();
    assert_eq!(decode_message(&written, container).unwrap(), json!({"name": "a"}));
    let meta = tables::definition("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap();
    assert_eq!(decode_message(&[0x42, 0], meta).unwrap(), json!({}));
}

#[test]
fn lists_and_frames_hold_messages() {
    let definition = tables::kind("", "v1", "ConfigMap").unwrap();
    let config_map = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"}});
    let item = message(&config_map, definition).unwrap();
    let list = list(&json!({"resourceVersion": "7"}), [item.as_slice(), &item].into_iter()).unwrap();
    let (_, object) = decode(&envelope("v1", "ConfigMapList", &list)).unwrap();
    assert_eq!(object["items"], json!([{"data": {"a": "b"}}, {"data": {"a": "b"}}]));
    assert_eq!(object["metadata"]["resourceVersion"], "7");

    let frame = watch_frame("ADDED", &envelope("v1", "ConfigMap", &item));
    let (length, event) = frame.split_at(4);
    assert_eq!(u32::from_be_bytes(length.try_into().unwrap()) as usize, event.len());
    let (event_type, object) = decode_watch_event(event).unwrap();
    assert_eq!(event_type, "ADDED");
    assert_eq!(object, config_map);
}

#[test]
fn bad_bodies_are_refused() {
    assert!(decode(b"{}").is_err());
    assert!(decode(b"k8s\0\xff").is_err());
    let unknown = decode(&envelope("v1", "Nothing", b"")).unwrap_err();
    assert_eq!(unknown.to_string(), "no kind \"Nothing\" is registered for version \"v1\"");
    let definition = tables::kind("", "v1", "Secret").unwrap();
    assert!(message(&json!({"data": {"a": 1}}), definition).is_err());
    assert!(message(&json!([]), definition).is_err());
}
