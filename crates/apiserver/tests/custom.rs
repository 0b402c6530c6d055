//! CustomResourceDefinitions over memory storage: from the definition to its objects, its versions and its end.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use apiserver::ApiServer;
use apiserver::bootstrap::loopback_user;
use apiserver::handle::{Peer, RequestBody};
use apiserver::testing;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

struct Api(Arc<ApiServer>);

impl Api {
    async fn new() -> Self {
        let server = testing::server().await;
        server.bootstrap(Vec::new()).await.unwrap();
        Api(server)
    }

    async fn send(&self, method: &str, path: &str, content_type: &str, body: String) -> (u16, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .body(RequestBody::Ready(Bytes::from(body)))
            .unwrap();
        let response = self.0.handle(request, Peer::Local(loopback_user())).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, "application/json", String::new()).await
    }

    async fn post(&self, path: &str, object: &Value) -> (u16, Value) {
        self.send("POST", path, "application/json", object.to_string()).await
    }

    async fn put(&self, path: &str, object: &Value) -> (u16, Value) {
        self.send("PUT", path, "application/json", object.to_string()).await
    }

    /// Creates a definition and waits until it is established.
    async fn define(&self, definition: &Value) -> Value {
        let (code, answer) = self.post(DEFINITIONS, definition).await;
        assert_eq!(code, 201, "{answer}");
        let name = definition["metadata"]["name"].as_str().unwrap().to_owned();
        self.until(&format!("{DEFINITIONS}/{name}"), |definition| {
            condition(definition, "Established") == "True"
        })
        .await
    }

    /// Reads until what is read is as wanted; the loop that follows definitions runs beside the test.
    async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..500 {
            let (_, object) = self.get(path).await;
            if wanted(&object) {
                return object;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("{path} did not become what it should: {}", self.get(path).await.1);
    }
}

fn condition<'v>(definition: &'v Value, kind: &str) -> &'v str {
    let conditions = definition["status"]["conditions"].as_array().into_iter().flatten();
    conditions.filter(|c| c["type"] == kind).find_map(|c| c["status"].as_str()).unwrap_or_default()
}

fn version(name: &str, storage: bool, spec: &Value) -> Value {
    json!({
        "name": name, "served": true, "storage": storage,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": spec,
            "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
        }}},
        "subresources": {"status": {}, "scale": {
            "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
        }},
        "additionalPrinterColumns": [{"name": "Color", "type": "string", "jsonPath": ".spec.color"}],
        "selectableFields": [{"jsonPath": ".spec.color"}],
    })
}

fn spec() -> Value {
    json!({"type": "object", "required": ["color"], "properties": {
        "color": {"type": "string", "maxLength": 8},
        "size": {"type": "string", "default": "M"},
        "replicas": {"type": "integer", "minimum": 0},
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "required": ["name"], "properties": {
                "name": {"type": "string"}, "port": {"type": "integer"}}}},
    }})
}

fn widgets(versions: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "versions": versions,
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]},
        },
    })
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn a_definition_is_served_and_its_objects_have_its_shape() {
    let api = Api::new().await;
    let definition = api.define(&widgets(json!([version("v1", true, &spec())]))).await;
    assert_eq!(definition["status"]["acceptedNames"]["singular"], "widget");
    assert_eq!(definition["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(condition(&definition, "NamesAccepted"), "True");
    let (_, resources) = api.get("/apis/example.com/v1").await;
    let names: Vec<&str> =
        resources["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["widgets", "widgets/scale", "widgets/status"]);

    let (code, object) =
        api.post(WIDGETS, &widget("a", json!({"color": "red", "unknown": 1, "replicas": 2}))).await;
    assert_eq!(code, 201, "{object}");
    assert_eq!(object["spec"], json!({"color": "red", "size": "M", "replicas": 2}));
    assert_eq!(object["metadata"]["generation"], 1);
    let (code, refused) = api
        .post(&format!("{WIDGETS}?fieldValidation=Strict"), &widget("b", json!({"color": "red", "x": 1})))
        .await;
    assert_eq!(code, 400);
    assert!(
        refused["message"].as_str().unwrap().ends_with("strict decoding error: unknown field \"spec.x\"")
    );
    let (code, refused) =
        api.post(WIDGETS, &widget("b", json!({"color": "ultraviolet", "replicas": -1}))).await;
    assert_eq!(code, 422);
    assert_eq!(
        refused["message"],
        "Widget.example.com \"b\" is invalid: [spec.color: Too long: may not be more than 8 bytes, spec.replicas: \
         Invalid value: -1: spec.replicas in body should be greater than or equal to 0, .spec.replicas: Invalid value: -1: should be a \
         non-negative integer]"
    );
    let (code, _) = api
        .send("PATCH", &format!("{WIDGETS}/a"), "application/strategic-merge-patch+json", "{}".into())
        .await;
    assert_eq!(code, 415);
}

#[tokio::test]
async fn status_scale_generation_and_apply_work_as_for_built_in_kinds() {
    let api = Api::new().await;
    api.define(&widgets(json!([version("v1", true, &spec())]))).await;
    let mut sent = widget("a", json!({"color": "red", "replicas": 2}));
    sent["status"] = json!({"replicas": 9});
    let (_, mut object) = api.post(WIDGETS, &sent).await;
    assert!(object.get("status").is_none());
    object["status"] = json!({"replicas": 1});
    object["spec"]["color"] = "blue".into();
    let (code, object) = api.put(&format!("{WIDGETS}/a/status"), &object).await;
    assert_eq!(
        (code, &object["spec"]["color"], &object["metadata"]["generation"]),
        (200, &json!("red"), &json!(1))
    );
    let (_, scale) = api.get(&format!("{WIDGETS}/a/scale")).await;
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&json!(2), &json!(1)));
    let patch = json!({"spec": {"replicas": 5}}).to_string();
    let (code, _) =
        api.send("PATCH", &format!("{WIDGETS}/a/scale"), "application/merge-patch+json", patch).await;
    assert_eq!(code, 200);
    let (_, object) = api.get(&format!("{WIDGETS}/a")).await;
    assert_eq!((&object["spec"]["replicas"], &object["metadata"]["generation"]), (&json!(5), &json!(2)));

    let apply = |manager: &str, name: &str, port: i64| {
        let patch = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "a"},
            "spec": {"ports": [{"name": name, "port": port}]}});
        (format!("{WIDGETS}/a?fieldManager={manager}"), patch.to_string())
    };
    for (manager, name) in [("one", "http"), ("two", "https")] {
        let (path, patch) = apply(manager, name, 1);
        let (code, answer) = api.send("PATCH", &path, "application/apply-patch+yaml", patch).await;
        assert_eq!(code, 200, "{answer}");
    }
    let (_, object) = api.get(&format!("{WIDGETS}/a")).await;
    assert_eq!(object["spec"]["ports"].as_array().unwrap().len(), 2);
    let (path, patch) = apply("two", "http", 2);
    let (code, refused) = api.send("PATCH", &path, "application/apply-patch+yaml", patch).await;
    assert_eq!(code, 409);
    assert_eq!(
        refused["message"],
        "Apply failed with 1 conflict: conflict with \"one\": .spec.ports[name=\"http\"].port"
    );
}

#[tokio::test]
async fn versions_are_read_whatever_was_stored_and_defaults_come_at_reading() {
    let api = Api::new().await;
    let definition = api.define(&widgets(json!([version("v1", true, &spec())]))).await;
    api.post(WIDGETS, &widget("a", json!({"color": "red"}))).await;
    api.post(WIDGETS, &widget("b", json!({"color": "blue"}))).await;
    let mut newer = spec();
    newer["properties"]["shape"] = json!({"type": "string", "default": "round"});
    let mut definition = definition;
    definition["spec"]["versions"] = json!([version("v1", false, &newer), version("v2", true, &newer)]);
    let (code, definition) = api.put(&format!("{DEFINITIONS}/widgets.example.com"), &definition).await;
    assert_eq!(code, 200, "{definition}");
    assert_eq!(definition["status"]["storedVersions"], json!(["v1", "v2"]));
    let second = WIDGETS.replace("v1", "v2");
    let object = api.until(&format!("{second}/a"), |object| object["kind"] == "Widget").await;
    assert_eq!(object["apiVersion"], "example.com/v2");
    assert_eq!(object["spec"], json!({"color": "red", "size": "M", "shape": "round"}));
    let (_, list) = api.get(&format!("{second}?fieldSelector=spec.color%3Dblue")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0]["metadata"]["name"], "b");
    assert_eq!(list["kind"], "WidgetList");
    let (_, mut object) = api.get(&format!("{WIDGETS}/b")).await;
    assert_eq!(object["apiVersion"], "example.com/v1");
    object["spec"]["size"] = "L".into();
    let (code, object) = api.put(&format!("{WIDGETS}/b"), &object).await;
    assert_eq!((code, &object["apiVersion"]), (200, &json!("example.com/v1")));
    let (_, group) = api.get("/apis/example.com").await;
    assert_eq!(group["preferredVersion"]["version"], "v2");
}

#[tokio::test]
async fn a_definition_that_goes_takes_its_objects_along() {
    let api = Api::new().await;
    api.define(&widgets(json!([version("v1", true, &spec())]))).await;
    let mut held = widget("held", json!({"color": "red"}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    api.post(WIDGETS, &held).await;
    api.post(WIDGETS, &widget("free", json!({"color": "red"}))).await;
    let path = format!("{DEFINITIONS}/widgets.example.com");
    let (code, definition) = api.send("DELETE", &path, "application/json", String::new()).await;
    assert_eq!((code, condition(&definition, "Terminating")), (200, "True"));
    api.until(&format!("{WIDGETS}/free"), |answer| answer["code"] == 404).await;
    let (code, refused) = api.post(WIDGETS, &widget("late", json!({"color": "red"}))).await;
    assert_eq!(code, 403, "{refused}");
    assert_eq!(
        refused["message"],
        "widgets.example.com \"late\" is forbidden: create not allowed while custom resource definition is terminating"
    );
    let release = json!({"metadata": {"finalizers": null}}).to_string();
    let (code, answer) =
        api.send("PATCH", &format!("{WIDGETS}/held"), "application/merge-patch+json", release).await;
    assert_eq!(code, 200, "{answer}");
    api.until(&path, |answer| answer["code"] == 404).await;
    api.until("/apis/example.com/v1", |answer| answer["code"] == 404 || answer.is_null()).await;
}

#[tokio::test]
async fn names_belong_to_the_first_definition_that_asks() {
    let api = Api::new().await;
    api.define(&widgets(json!([version("v1", true, &spec())]))).await;
    let mut other = widgets(json!([version("v1", true, &spec())]));
    other["metadata"]["name"] = "gadgets.example.com".into();
    other["spec"]["names"] = json!({"plural": "gadgets", "kind": "Widget", "shortNames": ["wd"]});
    api.post(DEFINITIONS, &other).await;
    let path = format!("{DEFINITIONS}/gadgets.example.com");
    let definition = api.until(&path, |definition| condition(definition, "NamesAccepted") == "False").await;
    let conditions = definition["status"]["conditions"].as_array().unwrap();
    let accepted = conditions.iter().find(|c| c["type"] == "NamesAccepted").unwrap();
    assert_eq!(accepted["reason"], "ListKindConflict");
    assert_eq!(accepted["message"], "\"WidgetList\" is already in use");
    assert_eq!(condition(&definition, "Established"), "False");
    api.send("DELETE", &format!("{DEFINITIONS}/widgets.example.com"), "application/json", String::new())
        .await;
    api.until(&path, |definition| condition(definition, "Established") == "True").await;
}

#[tokio::test]
async fn what_is_wrong_with_a_definition_is_told_at_once() {
    let api = Api::new().await;
    let mut bad = widgets(json!([version("v1", false, &json!({"type": "object", "properties": {"a": {}}}))]));
    bad["spec"]["scope"] = "Galaxy".into();
    let (code, refused) = api.post(DEFINITIONS, &bad).await;
    assert_eq!(code, 422);
    let mut causes: Vec<&str> = refused["details"]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cause| cause["field"].as_str().unwrap())
        .collect();
    causes.sort_unstable();
    causes.dedup();
    assert_eq!(
        causes,
        [
            "spec.scope",
            "spec.selectableFields[0].jsonPath",
            "spec.validation.openAPIV3Schema.properties[spec].properties[a].type",
            "spec.versions",
            "status.storedVersions",
        ]
    );
}
