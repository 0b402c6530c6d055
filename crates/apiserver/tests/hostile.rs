//! Clients that mean no good, or are merely slow: they cost the others nothing.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use apiserver::bootstrap::loopback_user;
use apiserver::handle::{Peer, RequestBody};
use apiserver::server::tls_config;
use apiserver::{ApiServer, testing};
use bytes::Bytes;
use client::tls::unverified;
use http::Request;
use http_body_util::BodyExt;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

const GET_VERSION: &[u8] = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
/// More than may wait without a request.
const SILENT: usize = 1_200;

async fn listening() -> SocketAddr {
    let server = testing::server().await;
    let key = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let private = PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let private = rustls::crypto::ring::sign::any_supported_type(&private).unwrap();
    let certified = CertifiedKey::new(vec![key.cert.der().clone()], private);
    let tls = tls_config(Arc::new(SingleCertAndKey::from(certified)), &[]).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(server.serve(listener, tls));
    address
}

async fn connect(address: SocketAddr) -> Tls {
    let connector = tokio_rustls::TlsConnector::from(unverified());
    let tcp = TcpStream::connect(address).await.unwrap();
    connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap()
}

async fn is_served(address: SocketAddr) {
    let asked = async {
        let mut tls = connect(address).await;
        tls.write_all(GET_VERSION).await.unwrap();
        let mut answer = [0; 15];
        tls.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    };
    tokio::time::timeout(Duration::from_secs(10), asked).await.expect("others are served meanwhile");
}

#[tokio::test]
async fn connections_that_say_nothing_make_room() {
    let address = listening().await;
    let mut first = TcpStream::connect(address).await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    is_served(address).await;
    let closed = tokio::time::timeout(Duration::from_secs(5), first.read(&mut [0])).await;
    assert!(!matches!(closed.expect("the oldest is sent away"), Ok(1..)));
}

#[tokio::test]
async fn half_a_body_holds_nobody_up() {
    let address = listening().await;
    let mut halves = Vec::new();
    for _ in 0..50 {
        let mut tls = connect(address).await;
        let head =
            "POST /api/v1/namespaces/default/pods HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n{";
        tls.write_all(head.as_bytes()).await.unwrap();
        halves.push(tls);
    }
    is_served(address).await;
}

#[tokio::test]
async fn an_answer_that_nobody_reads_holds_nobody_up() {
    let address = listening().await;
    let mut deaf = Vec::new();
    for _ in 0..50 {
        let mut tls = connect(address).await;
        // Many answers that are not read fill what lies between.
        for _ in 0..200 {
            tls.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        }
        deaf.push(tls);
    }
    is_served(address).await;
}

async fn send(server: &Arc<ApiServer>, method: &str, path: &str, body: &Value) -> http::response::Parts {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("content-type", "application/merge-patch+json");
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let request = request.body(RequestBody::Ready(body)).unwrap();
    server.handle(request, Peer::Local(loopback_user())).await.into_parts().0
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_told_to_list_again() {
    let server = testing::server().await;
    server.bootstrap(Vec::new()).await.unwrap();
    let path = "/api/v1/namespaces/default/configmaps?watch=1";
    let request = Request::builder().uri(path).body(RequestBody::Ready(Bytes::new())).unwrap();
    let mut watch = server.handle(request, Peer::Local(loopback_user())).await.into_body();
    // More than a resource's history may hold, in bytes.
    let filler = "x".repeat(500_000);
    for number in 0..20 {
        let map = json!({"metadata": {"name": format!("a{number}")}, "data": {"a": filler}});
        let request = Request::post("/api/v1/namespaces/default/configmaps");
        let request = request.header("content-type", "application/json");
        let request = request.body(RequestBody::Ready(map.to_string().into())).unwrap();
        assert_eq!(server.handle(request, Peer::Local(loopback_user())).await.status(), 201);
    }
    for number in 0..60 {
        let patch = json!({"data": {"b": number.to_string()}});
        let path = "/api/v1/namespaces/default/configmaps/a0";
        assert_eq!(send(&server, "PATCH", path, &patch).await.status, 200);
    }
    let mut last = Bytes::new();
    while let Some(frame) = watch.frame().await {
        last = frame.unwrap().into_data().unwrap();
    }
    let event: Value = serde_json::from_slice(&last).unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)), "{event}");
}
