//! Services and the addresses that follow them; CBOR on the wire.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use apiserver::ApiServer;
use apiserver::bootstrap::loopback_user;
use apiserver::handle::{Config, Peer, RequestBody};
use apiserver::negotiate::Forms;
use apiserver::testing;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};

async fn send(
    server: &Arc<ApiServer>,
    method: &str,
    path: &str,
    types: (&str, &str),
    body: Vec<u8>,
) -> (u16, Bytes) {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("accept", types.0).header("content-type", types.1);
    let request = request.body(RequestBody::Ready(body.into())).unwrap();
    let response = server.handle(request, Peer::Local(loopback_user())).await;
    let code = response.status().as_u16();
    (code, response.into_body().collect().await.unwrap().to_bytes())
}

async fn json(server: &Arc<ApiServer>, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let types = ("application/json", "application/json");
    let (code, bytes) = send(server, method, path, types, body.to_string().into_bytes()).await;
    (code, serde_json::from_slice(&bytes).unwrap())
}

/// Asks until the answer has the code.
async fn until(server: &Arc<ApiServer>, path: &str, code: u16) -> Value {
    let asked = async {
        loop {
            let (answered, object) = json(server, "GET", path, &Value::Null).await;
            if answered == code {
                return object;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asked).await.unwrap()
}

#[tokio::test]
async fn an_address_comes_and_goes_with_its_service() {
    let server = testing::server().await;
    server.bootstrap(Vec::new()).await.unwrap();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"clusterIP": "10.43.0.9", "ports": [{"port": 80}]},
    });
    let services = "/api/v1/namespaces/default/services";
    assert_eq!(json(&server, "POST", services, &service).await.0, 201);
    let address = "/apis/networking.k8s.io/v1/ipaddresses/10.43.0.9";
    let object = until(&server, address, 200).await;
    assert_eq!(
        object["spec"]["parentRef"],
        json!({"resource": "services", "namespace": "default", "name": "s"})
    );
    assert_eq!(object["metadata"]["labels"]["ipaddress.kubernetes.io/managed-by"], "ipallocator.k8s.io");
    // Deleted by hand, it comes back; without its Service it goes.
    assert_eq!(json(&server, "DELETE", address, &json!({})).await.0, 200);
    until(&server, address, 200).await;
    let (code, answer) = json(&server, "POST", services, &{
        let mut other = service.clone();
        other["metadata"]["name"] = "t".into();
        other
    })
    .await;
    assert_eq!(code, 422, "{answer}");
    assert_eq!(json(&server, "DELETE", &format!("{services}/s"), &json!({})).await.0, 200);
    until(&server, address, 404).await;
    let range =
        json(&server, "GET", "/apis/networking.k8s.io/v1/servicecidrs/kubernetes", &Value::Null).await.1;
    assert_eq!(range["status"]["conditions"][0]["status"], "True");
}

#[tokio::test]
async fn a_job_selects_the_pods_of_its_own_uid() {
    let server = testing::server().await;
    server.bootstrap(Vec::new()).await.unwrap();
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"},
        "spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}],
        }}},
    });
    let (code, made) = json(&server, "POST", "/apis/batch/v1/namespaces/default/jobs", &job).await;
    assert_eq!(code, 201, "{made}");
    let selected = &made["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"];
    assert_eq!(selected, &made["metadata"]["uid"]);
}

#[tokio::test]
async fn objects_are_written_read_and_listed_as_cbor() {
    let server = testing::server_of(Config { forms: Forms::ALL, ..testing::config() }).await;
    server.bootstrap(Vec::new()).await.unwrap();
    let cbor = ("application/cbor", "application/cbor");
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "AQID"}, "type": "Opaque",
    });
    let secrets = "/api/v1/namespaces/default/secrets";
    let body = schema::cbor::encode(&secret, api::tables::kind("", "v1", "Secret"));
    let (code, bytes) = send(&server, "POST", secrets, cbor, body).await;
    assert_eq!(code, 201);
    assert_eq!(schema::cbor::decode(&bytes).unwrap()["data"], secret["data"]);
    let (_, bytes) = send(&server, "GET", secrets, cbor, Vec::new()).await;
    let list = schema::cbor::decode(&bytes).unwrap();
    assert_eq!(list["items"][0]["data"], secret["data"]);
    let (code, _) = send(&server, "POST", secrets, cbor, b"\x9b\xff\xff\xff\xff".to_vec()).await;
    assert_eq!(code, 400);
}
