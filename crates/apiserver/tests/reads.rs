//! What is read, as clients are shown it.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use apiserver::ApiServer;
use apiserver::bootstrap::loopback_user;
use apiserver::handle::{Config, Peer, RequestBody};
use apiserver::testing;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

async fn send(server: &Arc<ApiServer>, method: &str, path: &str, body: &Value) -> apiserver::body::Response {
    let request = Request::builder().method(method).uri(path).header("accept", TABLE);
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = request.body(RequestBody::Ready(body.into())).unwrap();
    server.handle(request, Peer::Local(loopback_user())).await
}

#[tokio::test]
async fn a_watched_table_tells_ages_as_of_each_event() {
    let now = Arc::new(AtomicI64::new(1_700_000_000));
    let seconds = now.clone();
    let clock = Arc::new(move || jiff::Timestamp::from_second(seconds.load(Ordering::Relaxed)).unwrap());
    let store = Arc::new(storage::memory::Memory::new());
    let server = testing::server_with(store, Config { clock, ..testing::config() }).await;
    server.bootstrap(Vec::new()).await.unwrap();
    let watch = send(&server, "GET", &format!("{MAPS}?watch=true"), &Value::Null).await;
    let mut events = watch.into_body();
    let mut ages = Vec::new();
    for (name, passed) in [("a", 0), ("b", 300)] {
        now.fetch_add(passed, Ordering::Relaxed);
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        assert_eq!(send(&server, "POST", MAPS, &map).await.status(), 201);
        let frame = events.frame().await.unwrap().unwrap().into_data().unwrap();
        for line in String::from_utf8(frame.to_vec()).unwrap().lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            let cells = event["object"]["rows"][0]["cells"].as_array().unwrap().clone();
            ages.push((cells[0].clone(), cells[2].clone()));
        }
    }
    ages.retain(|(name, _)| name != "kube-root-ca.crt");
    assert_eq!(ages, [("a", "0s"), ("b", "0s")].map(|(name, age)| (json!(name), json!(age))));
}

#[tokio::test]
async fn component_statuses_are_told_in_tables_and_selected() {
    let server = testing::server().await;
    let told = async |query: &str| {
        let path = format!("/api/v1/componentstatuses{query}");
        let answer = send(&server, "GET", &path, &Value::Null).await.into_body().collect().await.unwrap();
        let table: Value = serde_json::from_slice(&answer.to_bytes()).unwrap();
        table["rows"].as_array().unwrap().iter().map(|row| row["cells"].clone()).collect::<Vec<Value>>()
    };
    let row = json!(["etcd-0", "Healthy", "ok", ""]);
    for (query, rows) in [
        ("", vec![row.clone()]),
        ("/etcd-0", vec![row.clone()]),
        ("?fieldSelector=metadata.name%3Detcd-0", vec![row]),
        ("?fieldSelector=metadata.name%3Dother", vec![]),
        ("?labelSelector=a%3Db", vec![]),
    ] {
        assert_eq!(told(query).await, rows, "{query}");
    }
}

#[tokio::test]
async fn a_watch_has_no_yaml_form() {
    let server = testing::server().await;
    for (accepted, code, message) in [
        (
            "application/yaml",
            406,
            "only the following media types are accepted: application/json;stream=watch, \
             application/vnd.kubernetes.protobuf;stream=watch",
        ),
        ("application/json", 200, ""),
    ] {
        let request = Request::get(format!("{MAPS}?watch=true&timeoutSeconds=1")).header("accept", accepted);
        let request = request.body(RequestBody::Ready(String::new().into())).unwrap();
        let answer = server.handle(request, Peer::Local(loopback_user())).await;
        assert_eq!(answer.status(), code, "{accepted}");
        if code != 200 {
            let text = answer.into_body().collect().await.unwrap().to_bytes();
            assert!(String::from_utf8_lossy(&text).contains(message), "{text:?}");
        }
    }
}
