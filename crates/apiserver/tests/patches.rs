//! Patches that are refused, and applies to a subresource: as clients see them.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use apiserver::ApiServer;
use apiserver::bootstrap::loopback_user;
use apiserver::handle::{Peer, RequestBody};
use apiserver::testing;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

struct Api(Arc<ApiServer>);

impl Api {
    async fn with_deployment() -> Self {
        let server = testing::server().await;
        server.bootstrap(Vec::new()).await.unwrap();
        let api = Api(server);
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {
                "selector": {"matchLabels": {"a": "b"}},
                "template": {
                    "metadata": {"labels": {"a": "b"}},
                    "spec": {"containers": [{"name": "c", "image": "i"}]},
                },
            },
        });
        let (code, answer) = api.send("POST", DEPLOYMENTS, "application/json", &deployment.to_string()).await;
        assert_eq!(code, 201, "{answer}");
        api
    }

    async fn send(&self, method: &str, path: &str, content_type: &str, body: &str) -> (u16, Value) {
        let request = Request::builder().method(method).uri(path).header("content-type", content_type);
        let request = request.header("user-agent", "tester").body(RequestBody::Ready(body.to_owned().into()));
        let response = self.0.handle(request.unwrap(), Peer::Local(loopback_user())).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    async fn apply(&self, path: &str, manager: &str, object: &Value) -> (u16, Value) {
        let path = format!("{path}?fieldManager={manager}");
        self.send("PATCH", &path, "application/apply-patch+yaml", &object.to_string()).await
    }
}

#[tokio::test]
async fn what_a_patch_must_not_say_is_invalid() {
    let api = Api::with_deployment().await;
    let path = format!("{DEPLOYMENTS}/web?fieldValidation=Strict");
    for (kind, patch, shown, why) in [
        ("merge-patch", r#"{"spec":{"x":1}}"#, "{", r#"unknown field \"spec.x\""#),
        (
            "merge-patch",
            r#"{"spec":{"replicas":1,"replicas":2}}"#,
            "{",
            r#"duplicate field \"spec.replicas\""#,
        ),
        (
            "strategic-merge-patch",
            r#"{"spec":{"x":1}}"#,
            "\"map[spec:map[x:1]]\"",
            r#"unknown field \"spec.x\""#,
        ),
        ("json-patch", r#"[{"op":"add","path":"/spec/x","value":1}]"#, "{", r#"unknown field \"spec.x\""#),
        (
            "json-patch",
            r#"[{"op":"add","op":"add","path":"/spec/paused","value":true}]"#,
            "{",
            r#"json patch duplicate field \"[0].op\""#,
        ),
    ] {
        let (code, answer) = api.send("PATCH", &path, &format!("application/{kind}+json"), patch).await;
        assert_eq!(code, 422, "{kind} {patch}: {answer}");
        assert_eq!(answer["reason"], "Invalid");
        let message = answer["message"].as_str().unwrap();
        assert!(message.starts_with(" \"\" is invalid: patch: Invalid value: "), "{message}");
        assert!(message.contains(shown), "{message}");
        let why = why.replace("\\\"", "\"");
        assert!(message.ends_with(&format!(": strict decoding error: {why}")), "{message}");
    }
}

#[tokio::test]
async fn who_applies_a_scale_owns_the_replicas() {
    let api = Api::with_deployment().await;
    let scale_path = format!("{DEPLOYMENTS}/web/scale");
    let scale = |replicas: i64| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "spec": {"replicas": replicas}});
    let (code, answer) = api
        .apply(
            &format!("{DEPLOYMENTS}/web"),
            "people",
            &json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 2},
            }),
        )
        .await;
    assert_eq!(code, 409, "the creator owns the replicas that were defaulted: {answer}");
    let (code, answer) = api.apply(&scale_path, "scaler&force=true", &scale(3)).await;
    assert_eq!(
        (code, &answer["kind"], &answer["spec"]["replicas"]),
        (200, &json!("Scale"), &json!(3)),
        "{answer}"
    );
    let (_, deployment) = api.send("GET", &format!("{DEPLOYMENTS}/web"), "application/json", "").await;
    let owners = deployment["metadata"]["managedFields"].as_array().unwrap();
    let scaler = owners.iter().find(|owner| owner["manager"] == "scaler").unwrap();
    assert_eq!(scaler["operation"], "Apply");
    assert_eq!(scaler["subresource"], "scale");
    assert_eq!(scaler["apiVersion"], "apps/v1");
    assert_eq!(scaler["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    let (code, answer) = api.apply(&scale_path, "other", &scale(5)).await;
    assert_eq!(code, 409, "{answer}");
    let cause = &answer["details"]["causes"][0];
    assert_eq!(cause["field"], ".spec.replicas");
    assert!(cause["message"].as_str().unwrap().contains("scaler"), "{cause}");
    let (code, answer) = api.apply(&format!("{DEPLOYMENTS}/none/scale"), "scaler", &scale(1)).await;
    assert_eq!(code, 404, "{answer}");
}

#[tokio::test]
async fn a_patch_leaves_an_object_what_it_is() {
    let api = Api::with_deployment().await;
    let path = format!("{DEPLOYMENTS}/web");
    for (kind, patch, why) in [
        (
            "merge-patch",
            r#"{"kind":"Secret","apiVersion":"v1"}"#,
            "converting (v1.Secret) to (apps.Deployment): unknown conversion",
        ),
        ("json-patch", r#"[{"op":"replace","path":"/kind","value":"zz"}]"#, "no kind \"zz\" is registered"),
    ] {
        let (code, answer) = api.send("PATCH", &path, &format!("application/{kind}+json"), patch).await;
        assert_eq!(code, 422, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(why), "{answer}");
    }
    let (code, answer) =
        api.send("PATCH", &path, "application/strategic-merge-patch+json", r#"{"kind":"Secret"}"#).await;
    assert_eq!((code, &answer["kind"]), (200, &json!("Deployment")));
    let (code, answer) =
        api.send("PATCH", &path, "application/merge-patch+json", r#"{"metadata":{"uid":"x"}}"#).await;
    let uids = answer["details"]["causes"].as_array().unwrap().len();
    assert_eq!((code, uids), (422, 2), "each of upstream's looks finds it: {answer}");
}

#[tokio::test]
async fn a_patched_scale_is_a_scale() {
    let api = Api::with_deployment().await;
    let path = format!("{DEPLOYMENTS}/web/scale");
    for (patch, code, why) in [
        (r#"{"spec":{"replicas":"x"}}"#, 422, "json: cannot unmarshal string into Go struct field"),
        (r#"{"kind":"x"}"#, 422, "no kind \"x\" is registered for version \"autoscaling/v1\""),
        (
            r#"{"metadata":{"name":"x"}}"#,
            400,
            "the name of the object (x) does not match the name on the URL (web)",
        ),
    ] {
        let (answered, answer) = api.send("PATCH", &path, "application/merge-patch+json", patch).await;
        assert_eq!(answered, code, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(why), "{answer}");
    }
    let (_, scale) = api.send("GET", &path, "application/json", "").await;
    assert_eq!(scale["spec"]["replicas"], 1, "nothing of that reached the object");
}

#[tokio::test]
async fn nobody_owns_what_the_server_adds() {
    let api = Api::with_deployment().await;
    let services = "/api/v1/namespaces/default/services";
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"ports": [{"port": 80}]}});
    let (code, created) = api.send("POST", services, "application/json", &service.to_string()).await;
    assert_eq!(code, 201, "{created}");
    assert!(created["spec"]["clusterIP"].is_string(), "{created}");
    let owned = &created["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"];
    assert!(owned.get("f:ports").is_some() && owned.get("f:clusterIP").is_none(), "{owned}");
    let patch = r#"{"metadata":{"managedFields":[]}}"#;
    let (_, patched) =
        api.send("PATCH", &format!("{services}/s"), "application/merge-patch+json", patch).await;
    assert_eq!(patched["metadata"].get("managedFields"), None, "an emptied list forgets all owners");
    let (_, list) = api.send("GET", services, "application/json", "").await;
    let item = &list["items"][0];
    assert_eq!((item.get("kind"), item.get("apiVersion")), (None, None), "the list says it of all");
    assert!(item["metadata"]["resourceVersion"].is_string(), "{item}");
}
