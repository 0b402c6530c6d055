//! The server behind sockets: TLS, client certificates, HTTP/1.1, bodies that are too large, and shutdown.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use apiserver::server::tls_config;
use apiserver::testing;
use client::tls::unverified;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A certificate of its own for the server.
fn certificate() -> Arc<SingleCertAndKey> {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let private = PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let private = rustls::crypto::ring::sign::any_supported_type(&private).unwrap();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![key.cert.der().clone()], private)))
}

async fn exchange(address: std::net::SocketAddr, request: &[u8]) -> String {
    let connector = tokio_rustls::TlsConnector::from(unverified());
    let tcp = TcpStream::connect(address).await.unwrap();
    let mut tls = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    let (mut read, mut write) = tokio::io::split(&mut tls);
    let (_, answer) = tokio::join!(
        async {
            // A refused body may close the connection before it is all sent.
            let _closed_early = write.write_all(request).await;
        },
        async {
            let mut answer = Vec::new();
            let mut block = [0; 4096];
            while let Ok(count @ 1..) = read.read(&mut block).await {
                answer.extend_from_slice(&block[..count]);
            }
            String::from_utf8_lossy(&answer).into_owned()
        }
    );
    answer
}

#[tokio::test]
async fn connections_are_served_until_the_shutdown() {
    let server = testing::server().await;
    let tls = tls_config(certificate(), &[]).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(Arc::clone(&server).serve(listener, tls));

    let version = exchange(address, b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(version.starts_with("HTTP/1.1 200 OK") && version.contains("\"minor\":\"36\""), "{version}");
    let old = exchange(address, b"GET /version HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 OK") && old.ends_with('}'), "{old}");
    let anonymous =
        exchange(address, b"GET /api/v1/pods HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(anonymous.starts_with("HTTP/1.1 403"), "{anonymous}");
    let garbage = exchange(address, b"\x00\x01garbage\r\n\r\n").await;
    assert!(garbage.is_empty() || garbage.starts_with("HTTP/1.1 400"), "{garbage}");

    server.shutdown.cancel();
    serving.await.unwrap().unwrap();
}

/// Takes everyone for one user.
struct Everyone;

#[async_trait::async_trait]
impl apiserver::seams::Authenticate for Everyone {
    async fn authenticate(
        &self,
        _: &http::HeaderMap,
        _: &http::Uri,
        _: &[rustls_pki_types::CertificateDer<'static>],
    ) -> Result<Option<apiserver::seams::UserInfo>, apimachinery::Status> {
        Ok(Some(apiserver::bootstrap::loopback_user()))
    }
}

/// A pod's server: it answers one plain request, and echoes what comes after an upgrade.
async fn pod_server(listener: TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { return };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        if head.contains("upgrade: echo") {
            stream
                .write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
                )
                .await
                .unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        } else {
            let path = head.split(' ').nth(1).unwrap();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{path}",
                path.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn proxied_and_upgraded_connections_are_copied() {
    let mut config = testing::config();
    config.authenticate = Arc::new(Everyone);
    let server = testing::server_with(Arc::new(storage::memory::Memory::new()), config).await;
    server.bootstrap(Vec::new()).await.unwrap();
    let pod_listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = pod_listener.local_addr().unwrap().port();
    let pod = tokio::spawn(pod_server(pod_listener));

    let client = client::Client::new(server.in_process(apiserver::bootstrap::loopback_user()), "test");
    let pods = client::Resource {
        gvr: apimachinery::GroupVersionResource::from_static("", "v1", "pods"),
        namespaced: true,
    };
    let object = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
    });
    client.create_value(&pods, "default", None, &object).await.unwrap();
    let status = serde_json::json!({"status": {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}});
    let kind = client::PatchType::Merge;
    client.patch_value(&pods, "default", "p", Some("status"), kind, &status).await.unwrap();

    let tls = tls_config(certificate(), &[]).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(Arc::clone(&server).serve(listener, tls));

    let path = format!("/api/v1/namespaces/default/pods/p:{port}/proxy");
    let request = format!("GET {path}/a/b?c=d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let plain = exchange(address, request.as_bytes()).await;
    assert!(plain.starts_with("HTTP/1.1 200") && plain.contains("/a/b?c=d"), "{plain}");
    let bare =
        exchange(address, format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
            .await;
    assert!(bare.starts_with("HTTP/1.1 301"), "{bare}");

    let connector = tokio_rustls::TlsConnector::from(unverified());
    let tcp = TcpStream::connect(address).await.unwrap();
    let mut tls = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    let request = format!("GET {path}/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte).await.unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    tls.write_all(b"over and back").await.unwrap();
    let mut echoed = [0; 13];
    tls.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"over and back");
    drop(tls);

    server.shutdown.cancel();
    serving.await.unwrap().unwrap();
    pod.abort();
}
