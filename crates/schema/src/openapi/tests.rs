use serde_json::json;

use super::*;

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|w| (*w).to_owned()).collect()
}

fn deployment() -> Kind {
    let speaks = |name: &str, group: &str, version: &str, kind: &str| Subresource {
        name: name.into(),
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        verbs: words(&["get", "patch", "update"]),
    };
    Kind {
        group: "apps".into(),
        version: "v1".into(),
        kind: "Deployment".into(),
        plural: "deployments".into(),
        namespaced: true,
        verbs: words(&["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]),
        subresources: vec![
            speaks("status", "apps", "v1", "Deployment"),
            speaks("scale", "autoscaling", "v1", "Scale"),
        ],
        schema: None,
        list_kind: String::new(),
    }
}

/// Every reference leads somewhere.
fn check_references(document: &Value, value: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
            }
            map.values().for_each(|v| check_references(document, v));
        }
        Value::Array(items) => items.iter().for_each(|v| check_references(document, v)),
        _ => {}
    }
}

#[test]
fn version_3_tells_clients_what_they_look_for() {
    let document = v3(&[deployment()], "v1.36.0");
    check_references(&document, &document);
    let paths = &document["paths"];
    let names: Vec<&String> = paths.as_object().unwrap().keys().collect();
    assert_eq!(
        names,
        [
            "/apis/apps/v1/",
            "/apis/apps/v1/deployments",
            "/apis/apps/v1/namespaces/{namespace}/deployments",
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}",
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale",
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/status",
            "/apis/apps/v1/watch/deployments",
            "/apis/apps/v1/watch/namespaces/{namespace}/deployments",
            "/apis/apps/v1/watch/namespaces/{namespace}/deployments/{name}",
        ]
    );
    let item = &paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
    let patch = &item["patch"];
    assert!(patch["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "fieldValidation"));
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    assert!(patch["requestBody"]["content"].get("application/apply-patch+yaml").is_some());
    let schemas = &document["components"]["schemas"];
    let spec = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"];
    assert_eq!(spec["containers"]["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(schemas["io.k8s.api.autoscaling.v1.Scale"]["type"], "object");
}

#[test]
fn version_2_is_closed_too_and_custom_kinds_have_their_schema() {
    let custom = Kind {
        group: "example.com".into(),
        version: "v1".into(),
        kind: "Crontab".into(),
        plural: "crontabs".into(),
        verbs: words(&["get", "list", "create"]),
        schema: Some(json!({"type": "object", "properties": {"spec": {"type": "object", "nullable": true}}})),
        list_kind: "CrontabList".into(),
        ..Kind::default()
    };
    let document = v2(&[deployment(), custom.clone()], "v1.36.0");
    check_references(&document, &document);
    let definition = &document["definitions"]["com.example.v1.Crontab"];
    assert_eq!(definition["properties"]["spec"], json!({}));
    assert_eq!(definition["x-kubernetes-group-version-kind"][0]["kind"], "Crontab");
    let create = &document["paths"]["/apis/example.com/v1/crontabs"]["post"];
    assert_eq!(create["operationId"], "createExampleComV1Crontab");
    let v3 = v3(&[custom], "v1.36.0");
    assert_eq!(v3["components"]["schemas"]["com.example.v1.Crontab"]["properties"]["spec"]["nullable"], true);
}
