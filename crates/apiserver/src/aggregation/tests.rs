//! Aggregation against a real extension server: TLS both ways, on this machine.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::PrivateKeyDer;
use serde_json::json;
use tokio::task::JoinHandle;

use super::*;
use crate::ApiServer;
use crate::bootstrap::loopback_user;
use crate::handle::{Peer as Caller, RequestBody};
use crate::seams::UserInfo;
use crate::testing;

const GROUP: &str = "fish.example.com";

#[test]
fn the_group_and_version_of_a_path_are_found() {
    for (path, expected) in [
        ("/apis/g.x/v1", Some(("g.x", "v1"))),
        ("/apis/g.x/v1/", Some(("g.x", "v1"))),
        ("/openapi/v3/apis/g.x/v1", Some(("g.x", "v1"))),
        ("/apis/g.x", None),
        ("/apis/g.x/", None),
        ("/healthz", None),
    ] {
        assert_eq!(group_version(path), expected, "{path}");
    }
}

/// A certificate that vouches for itself.
fn certificate(name: &str) -> rcgen::CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap()
}

fn key(of: &rcgen::CertifiedKey<rcgen::KeyPair>) -> PrivateKeyDer<'static> {
    PrivateKeyDer::try_from(of.signing_key.serialize_der()).unwrap()
}

/// A server of one kind, which answers a request for an object with what it saw of the request.
struct Extension {
    port: u16,
    bundle: String,
    serving: JoinHandle<()>,
}

fn answer(request: &Request<()>, body: &[u8], knows_proxy: bool) -> (u16, Value) {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let all = |name: &str| -> Vec<&str> {
        request.headers().get_all(name).iter().filter_map(|value| value.to_str().ok()).collect()
    };
    match request.uri().path() {
        "/apis/fish.example.com/v1" => {
            let kind = |name: &str, kind: &str| {
                json!({"name": name, "singularName": "fish", "namespaced": true, "kind": kind,
                       "verbs": ["get", "list"], "shortNames": ["fi"]})
            };
            let resources = [kind("fish", "Fish"), kind("fish/status", "Fish")];
            let version = format!("{GROUP}/v1");
            (200, json!({"kind": "APIResourceList", "groupVersion": version, "resources": resources}))
        }
        "/openapi/v3" => (
            200,
            json!({"paths": {"apis/fish.example.com/v1": {"serverRelativeURL": "/openapi/v3/apis/fish.example.com/v1?hash=1"}}}),
        ),
        path if path.starts_with("/apis/fish.example.com/v1/namespaces/") => (
            200,
            json!({
                "method": request.method().as_str(), "path": path, "query": request.uri().query(),
                "user": header("x-remote-user"), "groups": all("x-remote-group"),
                "extra": header("x-remote-extra-scopes"), "token": header("authorization"),
                "proxy": knows_proxy, "body": String::from_utf8_lossy(body),
            }),
        ),
        _ => (404, json!({"kind": "Status", "code": 404})),
    }
}

impl Extension {
    async fn start(name: &str, proxy: &rcgen::CertifiedKey<rcgen::KeyPair>) -> Self {
        let made = certificate(name);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut proxies = rustls::RootCertStore::empty();
        proxies.add(proxy.cert.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(proxies), provider.clone());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
            .with_single_cert(vec![made.cert.der().clone()], key(&made))
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let knows_proxy = stream.get_ref().1.peer_certificates().is_some();
                    let service = hyper::service::service_fn(
                        move |request: Request<hyper::body::Incoming>| async move {
                            let (parts, body) = request.into_parts();
                            let body = body.collect().await.unwrap().to_bytes();
                            let request = Request::from_parts(parts, ());
                            let (code, value) = answer(&request, &body, knows_proxy);
                            let response = http::Response::builder().status(code);
                            let response = response.header("content-type", "application/json");
                            let body = Full::new(Bytes::from(value.to_string()));
                            Ok::<_, std::convert::Infallible>(response.body(body).unwrap())
                        },
                    );
                    let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    http.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        Extension { port, bundle: STANDARD.encode(made.cert.pem()), serving }
    }
}

struct Api(Arc<ApiServer>);

impl Api {
    async fn new(proxy: &rcgen::CertifiedKey<rcgen::KeyPair>) -> Self {
        let mut config = testing::config();
        let provider = rustls::crypto::ring::default_provider();
        let signing = provider.key_provider.load_private_key(key(proxy)).unwrap();
        let shown = rustls::sign::CertifiedKey::new(vec![proxy.cert.der().clone()], signing);
        config.front_proxy = Some(Arc::new(rustls::sign::SingleCertAndKey::from(shown)));
        let server = testing::server_with(Arc::new(storage::memory::Memory::new()), config).await;
        server.bootstrap(Vec::new()).await.unwrap();
        Api(server)
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        user: UserInfo,
        body: &Value,
    ) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = request.body(RequestBody::Ready(body.into())).unwrap();
        let response = self.0.handle(request, Caller::Local(user)).await;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8_lossy(&body).into_owned())
    }

    async fn get(&self, path: &str, accept: &str) -> Value {
        let (code, body) = self.send("GET", path, &[("accept", accept)], loopback_user(), &Value::Null).await;
        assert_eq!(code, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    async fn make(&self, path: &str, object: Value) {
        let json = [("content-type", "application/json")];
        let (code, body) = self.send("POST", path, &json, loopback_user(), &object).await;
        assert_eq!(code, 201, "{body}");
    }

    /// Waits until the APIService's condition has this reason; gives its message.
    async fn until(&self, reason: &str) -> String {
        let lookup: &dyn Lookup = &*self.0.registry;
        let mut changes = lookup.changes(&API_SERVICES).unwrap();
        loop {
            changes.borrow_and_update();
            let service = lookup.get(&API_SERVICES, "", "v1.fish.example.com");
            let conditions = service.as_ref().map(|s| items(s, "status.conditions").to_vec());
            let found = conditions.into_iter().flatten().find(|c| c["reason"] == reason);
            if let Some(condition) = found {
                return text(&condition, "message").to_owned();
            }
            let changed = tokio::time::timeout(std::time::Duration::from_secs(20), changes.changed()).await;
            changed.unwrap_or_else(|_| panic!("the condition {reason} did not come")).unwrap();
        }
    }
}

fn api_service(extension: &Extension) -> Value {
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.fish.example.com"},
        "spec": {
            "group": GROUP, "version": "v1", "groupPriorityMinimum": 17_450, "versionPriority": 15,
            "caBundle": extension.bundle,
            "service": {"namespace": "default", "name": "ext", "port": extension.port},
        },
    })
}

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_on_to_an_extension_server_and_its_documents_join_ours() {
    let proxy = certificate("front-proxy");
    let extension = Extension::start("ext.default.svc", &proxy).await;
    let api = Api::new(&proxy).await;
    api.make(
        "/api/v1/namespaces/default/services",
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ext"},
               "spec": {"type": "ExternalName", "externalName": "127.0.0.1"}}),
    )
    .await;
    api.make(SERVICES, api_service(&extension)).await;
    assert_eq!(api.until("Passed").await, "all checks passed");

    // The user is told, whatever the client says of himself; his token is not.
    let jane = UserInfo {
        name: "jane".into(),
        groups: vec!["dev".into(), "ops".into()],
        extra: [("scopes".to_owned(), vec!["a".to_owned()])].into(),
        ..Default::default()
    };
    let headers =
        [("x-remote-user", "root"), ("x-remote-group", "system:masters"), ("authorization", "Bearer secret")];
    let path = "/apis/fish.example.com/v1/namespaces/default/fish/nemo?x=1";
    let (code, body) = api.send("PUT", path, &headers, jane, &json!({"a": 1})).await;
    assert_eq!(code, 200, "{body}");
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap(),
        json!({
            "method": "PUT", "path": "/apis/fish.example.com/v1/namespaces/default/fish/nemo", "query": "x=1",
            "user": "jane", "groups": ["dev", "ops"], "extra": "a", "token": null, "proxy": true,
            "body": "{\"a\":1}",
        })
    );

    // Discovery shows the group at the place that its priority gives it, between our own.
    let groups = api.get("/apis", "application/json").await;
    let names: Vec<&str> = items(&groups, "groups").iter().map(|group| text(group, "name")).collect();
    let place = |name: &str| names.iter().position(|n| *n == name).unwrap();
    assert!(place("autoscaling") < place(GROUP) && place(GROUP) < place("batch"), "{names:?}");
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let aggregated = api.get("/apis", accept).await;
    let shown: Vec<&str> =
        items(&aggregated, "items").iter().map(|item| text(item, "metadata.name")).collect();
    assert_eq!(shown, names);
    let fish = &items(&aggregated, "items")[place(GROUP)]["versions"][0];
    assert_eq!(fish["freshness"], "Current");
    assert_eq!(fish["resources"][0]["shortNames"], json!(["fi"]));
    assert_eq!(fish["resources"][0]["subresources"][0]["subresource"], "status");
    let group = api.get("/apis/fish.example.com", "application/json").await;
    assert_eq!(group["preferredVersion"]["groupVersion"], "fish.example.com/v1");
    let index = api.get("/openapi/v3", "application/json").await;
    let url = &index["paths"]["apis/fish.example.com/v1"]["serverRelativeURL"];
    assert_eq!(url, "/openapi/v3/apis/fish.example.com/v1?hash=1");

    // A server that is gone is missed by its clients at once, and by the next look.
    extension.serving.abort();
    extension.serving.await.unwrap_err();
    let get = || api.send("GET", path, &[], loopback_user(), &Value::Null);
    let (code, body) = get().await;
    assert_eq!(code, 503);
    let missed = body.starts_with("error trying to reach service: ");
    assert!(missed || body == "service unavailable\n", "{body}");
    let label = json!({"metadata": {"labels": {"look": "again"}}});
    let merge = [("content-type", "application/merge-patch+json")];
    let name = format!("{SERVICES}/v1.fish.example.com");
    api.send("PATCH", &name, &merge, loopback_user(), &label).await;
    let message = api.until("FailedDiscoveryCheck").await;
    assert!(message.starts_with("failing or missing response from https://ext.default.svc:"), "{message}");
    assert_eq!(get().await, (503, "service unavailable\n".to_owned()));
    let stale = api.get("/apis", accept).await;
    assert_eq!(items(&stale, "items")[place(GROUP)]["versions"][0]["freshness"], "Stale");
    api.0.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_server_that_nobody_vouches_for_is_not_asked() {
    let proxy = certificate("front-proxy");
    let extension = Extension::start("other.default.svc", &proxy).await;
    let api = Api::new(&proxy).await;
    api.make(SERVICES, api_service(&extension)).await;
    assert_eq!(api.until("ServiceNotFound").await, r#"service/ext in "default" is not present"#);
    api.make(
        "/api/v1/namespaces/default/services",
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ext"},
               "spec": {"type": "ExternalName", "externalName": "127.0.0.1"}}),
    )
    .await;
    let message = api.until("FailedDiscoveryCheck").await;
    assert!(message.contains("x509") || message.contains("certificate"), "{message}");
    api.0.shutdown.cancel();
}

#[test]
fn groups_and_versions_are_listed_by_their_priorities() {
    let mut groups = [
        "batch",
        "apiregistration.k8s.io",
        "a.example.com",
        "apps",
        "apiextensions.k8s.io",
        "admissionregistration.k8s.io",
    ];
    groups.sort_by_key(|group| (std::cmp::Reverse(priorities::of_group(group)), *group));
    let wanted = [
        "apiregistration.k8s.io",
        "apps",
        "batch",
        "admissionregistration.k8s.io",
        "apiextensions.k8s.io",
        "a.example.com",
    ];
    assert_eq!(groups, wanted);
}
