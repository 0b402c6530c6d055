use serde_json::json;

use super::*;

#[track_caller]
fn check(kind: &str, original: Value, patch: Value, expected: Result<Value, &str>) {
    let definition = tables::kind("", "v1", kind).or_else(|| tables::kind("apps", "v1", kind)).unwrap();
    let merged = merge(&original, &patch, definition).map_err(|e| e.to_string());
    assert_eq!(merged, expected.map_err(str::to_owned));
}

#[track_caller]
fn check_pod(spec: Value, patch: Value, expected: Value) {
    check("Pod", json!({"spec": spec}), json!({"spec": patch}), Ok(json!({"spec": expected})));
}

#[test]
fn lists_merge_by_key() {
    check_pod(
        json!({"containers": [{"name": "a", "image": "1", "env": [{"name": "x", "value": "1"}]}, {"name": "b"}]}),
        json!({"containers": [{"name": "a", "image": "2", "env": [{"name": "y", "value": "2"}]}, {"name": "c"}]}),
        json!({"containers": [
            {"name": "a", "image": "2", "env": [{"name": "y", "value": "2"}, {"name": "x", "value": "1"}]},
            {"name": "c"}, {"name": "b"}]}),
    );
    check_pod(
        json!({"containers": [{"name": "a", "args": ["1", "2"]}], "tolerations": [{"key": "k"}]}),
        json!({"containers": [{"name": "a", "args": ["3"]}], "tolerations": [{"key": "l"}]}),
        json!({"containers": [{"name": "a", "args": ["3"]}], "tolerations": [{"key": "l"}]}),
    );
}

#[test]
fn patch_directives() {
    check_pod(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "a", "$patch": "delete"}, {"name": "c"}]}),
        json!({"containers": [{"name": "c"}, {"name": "b"}]}),
    );
    check_pod(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}),
        json!({"containers": [{"name": "c"}]}),
    );
    check_pod(
        json!({"nodeSelector": {"a": "b"}, "securityContext": {"runAsUser": 1, "fsGroup": 2}}),
        json!({"nodeSelector": {"$patch": "delete"}, "securityContext": {"$patch": "replace", "runAsUser": 3}}),
        json!({"nodeSelector": {}, "securityContext": {"runAsUser": 3}}),
    );
    check_pod(
        json!({"a": 1}),
        json!({"x": {"$patch": "delete"}, "y": {"z": null, "w": 1}}),
        json!({"a": 1, "y": {"w": 1}}),
    );
    check(
        "Pod",
        json!({"spec": {}}),
        json!({"spec": {"$patch": "jump", "a": 1}}),
        Err("unknown patch type: jump in map: map[$patch:jump a:1]"),
    );
    check(
        "Pod",
        json!({"spec": {"containers": [{"name": "a"}]}}),
        json!({"spec": {"containers": [{"image": "x"}]}}),
        Err("map: map[image:x] does not contain declared merge key: name"),
    );
}

#[test]
fn primitive_lists() {
    check(
        "Pod",
        json!({"metadata": {"finalizers": ["a", "b", "c"]}}),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"], "finalizers": ["d", "a"]}}),
        Ok(json!({"metadata": {"finalizers": ["d", "a", "c"]}})),
    );
    check(
        "Pod",
        json!({"metadata": {"finalizers": ["a", "b", "c"]}}),
        json!({"metadata": {"$setElementOrder/finalizers": ["c", "a"], "$deleteFromPrimitiveList/finalizers": ["b"]}}),
        Ok(json!({"metadata": {"finalizers": ["c", "a"]}})),
    );
    check(
        "Pod",
        json!({"metadata": {}}),
        json!({"metadata": {"$deleteFromPrimitiveListfinalizers": ["b"]}}),
        Err("invalid patch format of primitive list"),
    );
}

#[test]
fn element_order() {
    check_pod(
        json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "server"}]}),
        json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}],
            "containers": [{"name": "c"}, {"name": "b", "image": "x"}]}),
        json!({"containers": [{"name": "c"}, {"name": "b", "image": "x"}, {"name": "a"}, {"name": "server"}]}),
    );
    check_pod(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
        json!({"containers": [{"name": "b"}, {"name": "a"}]}),
    );
    check(
        "Pod",
        json!({"spec": {"containers": [{"name": "a"}]}}),
        json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "z"}]}}),
        Err(
            "The order in patch list:\n[map[name:z]]\n doesn't match $setElementOrder list:\n[map[name:a]]\n",
        ),
    );
}

#[test]
fn retained_keys() {
    check(
        "Deployment",
        json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
        json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
        Ok(json!({"spec": {"strategy": {"type": "Recreate"}}})),
    );
    check_pod(
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
        json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}),
    );
    check(
        "Deployment",
        json!({"spec": {"strategy": {}}}),
        json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}}),
        Err("invalid patch format of retainKeys"),
    );
}

#[test]
fn replaced_maps_and_unknown_fields() {
    check(
        "Pod",
        json!({"nothing": {"a": 1}}),
        json!({"nothing": {"b": 1}}),
        Err("unable to find api field in struct Pod for the json field \"nothing\""),
    );
    check(
        "ConfigMap",
        json!({"data": {"a": "b", "c": "d"}}),
        json!({"data": {"a": null, "e": "f"}}),
        Ok(json!({"data": {"c": "d", "e": "f"}})),
    );
}
