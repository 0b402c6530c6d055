use api::tables;
use serde_json::json;

use super::*;

fn deployment() -> &'static Definition {
    tables::kind("apps", "v1", "Deployment").unwrap()
}

#[track_caller]
fn check_type_error(kind: &str, body: Value, message: &str) {
    let definition = tables::kind("apps", "v1", kind).or_else(|| tables::kind("", "v1", kind)).unwrap();
    let error = json(body.to_string().as_bytes(), definition, Strictness::Report).unwrap_err();
    assert_eq!(error, Error::Type(message.to_owned()));
}

#[test]
fn unknown_and_duplicate_fields_are_told_and_pruned() {
    let body = br#"{"apiVersion":"apps/v1","kind":"Deployment","foo":1,"metadata":{"name":"a","labels":{"a":"b","a":"c"}},
        "spec":{"replicas":1,"replicas":2,"unknownField":{"x":[1]},"Paused":true,
        "template":{"spec":{"containers":[{"name":"c","foo":1,"image":"i"},{"name":"d","env":[{"name":"x","bar":2}]}]}}}}"#;
    let decoded = json(body, deployment(), Strictness::Report).unwrap();
    assert_eq!(
        decoded.problems,
        [
            "unknown field \"foo\"",
            "duplicate field \"metadata.labels.a\"",
            "duplicate field \"spec.replicas\"",
            "unknown field \"spec.unknownField\"",
            "unknown field \"spec.Paused\"",
            "unknown field \"spec.template.spec.containers[0].foo\"",
            "unknown field \"spec.template.spec.containers[1].env[0].bar\"",
        ]
    );
    assert_eq!(decoded.object["spec"]["replicas"], 2);
    assert!(decoded.object["spec"].get("unknownField").is_none());
    assert!(
        decoded
            .strict_error()
            .unwrap()
            .starts_with("strict decoding error: unknown field \"foo\", duplicate")
    );
    let ignored = json(body, deployment(), Strictness::Ignore).unwrap();
    assert!(ignored.problems.is_empty());
    assert_eq!(ignored.object, decoded.object);
}

#[test]
fn wrong_types_are_told_in_gos_words() {
    check_type_error(
        "Deployment",
        json!({"spec": {"replicas": "3"}}),
        "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
    );
    check_type_error(
        "Deployment",
        json!({"spec": {"replicas": 3000000000u32}}),
        "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
    );
    check_type_error(
        "Deployment",
        json!({"spec": {"template": {"spec": {"containers": [{"env": [{"value": 1}]}]}}}}),
        "json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string",
    );
    check_type_error(
        "Pod",
        json!({"spec": {"containers": {}}}),
        "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
    );
    check_type_error(
        "Pod",
        json!({"spec": {"restartPolicy": 1}}),
        "json: cannot unmarshal number into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy",
    );
    check_type_error("Pod", json!([]), "json: cannot unmarshal array into Go value of type v1.Pod");
    check_type_error(
        "ConfigMap",
        json!({"data": {"a": 1}}),
        "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
    );
    check_type_error("Secret", json!({"data": {"a": "a?=="}}), "illegal base64 data at input byte 1");
    check_type_error(
        "Pod",
        json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}),
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
    );
    let error = Error::Type("x".into());
    assert_eq!(cannot_be_handled("Pod", "v1", &error), "Pod in version \"v1\" cannot be handled as a Pod: x");
}

#[test]
fn values_are_canonical() {
    let body = json!({
        "metadata": {"name": "a", "annotations": null, "labels": {}, "creationTimestamp": null,
            "deletionTimestamp": "2026-01-02T03:04:05+02:00"},
        "spec": {
            "containers": [{"name": "c", "image": "", "args": [], "stdin": false, "env": [],
                "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}, "requests": {"cpu": "1000m"}},
                "livenessProbe": {"httpGet": {"port": "http"}},
                "readinessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "terminationGracePeriodSeconds": 0,
        },
        "status": {},
    });
    let decoded = value(body, tables::kind("", "v1", "Pod").unwrap(), Strictness::Report).unwrap();
    assert_eq!(
        decoded.object,
        json!({
            "metadata": {"name": "a", "deletionTimestamp": "2026-01-02T01:04:05Z"},
            "spec": {
                "containers": [{"name": "c",
                    "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "1"}},
                    "livenessProbe": {"httpGet": {"port": "http"}},
                    "readinessProbe": {"httpGet": {"port": 80}}}],
                "volumes": [{"name": "v", "emptyDir": {}}],
                "terminationGracePeriodSeconds": 0,
            },
            "status": {},
        })
    );
    assert!(decoded.problems.is_empty());
}

#[test]
fn nulls_in_lists_and_maps_become_zeros() {
    let body = br#"{"data":{"a":null,"b":"c"},"metadata":{"finalizers":[null]}}"#;
    let decoded = json(body, tables::kind("", "v1", "ConfigMap").unwrap(), Strictness::Report).unwrap();
    assert_eq!(decoded.object, json!({"data": {"a": "", "b": "c"}, "metadata": {"finalizers": [""]}}));
}

#[test]
fn what_is_not_json_is_told_in_gos_words() {
    let check = |body: &str, message: &str| {
        let error = json(body.as_bytes(), deployment(), Strictness::Report).unwrap_err();
        assert_eq!(error, Error::Syntax(message.to_owned()));
    };
    check("{", "unexpected end of JSON input");
    check("hello", "invalid character 'h' looking for beginning of value");
    check("{}x", "invalid character 'x' after top-level value");
    let deep = format!("{}{}", "{\"spec\":".repeat(100_000), "}".repeat(100_000));
    assert!(json(deep.as_bytes(), deployment(), Strictness::Report).is_err());
    assert!(untyped_json("[".repeat(100_000).as_bytes()).is_err());
    assert!(untyped_yaml("[".repeat(100_000).as_bytes()).is_err());
}

#[test]
fn yaml_is_read_and_its_duplicate_keys_are_told_with_their_line() {
    let body = "apiVersion: apps/v1\nkind: Deployment\nspec:\n  replicas: 1\n  replicas: 3\n  extra: 0777\n";
    let decoded = yaml(body.as_bytes(), deployment(), Strictness::Report).unwrap();
    assert_eq!(
        decoded.problems,
        ["line 5: key \"replicas\" already set in map", "unknown field \"spec.extra\""]
    );
    assert_eq!(decoded.object["spec"]["replicas"], 3);
    let untyped = untyped_yaml(b"a: 0777\nb: yes\nc: '1'\nd: 1.5\n2: x").unwrap().object;
    assert_eq!(untyped["a"], 511);
    assert_eq!(untyped["c"], "1");
    assert_eq!(untyped["2"], "x");
}

#[test]
fn schemas_of_custom_resources_are_read() {
    let definition = tables::kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
    let schema = json!({"type": "object", "properties": {
        "a": {"items": {"type": "string", "foo": 1}, "default": [null, {"x": null}]},
        "b": {"additionalProperties": true, "x-kubernetes-int-or-string": true}}});
    let body = json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}});
    let decoded = value(body, definition, Strictness::Report).unwrap();
    assert!(decoded.problems.is_empty());
    let schema = &decoded.object["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    assert_eq!(schema["a"], json!({"items": {"type": "string"}, "default": [null, {"x": null}]}));
    assert_eq!(schema["b"], json!({"additionalProperties": true, "x-kubernetes-int-or-string": true}));
}
