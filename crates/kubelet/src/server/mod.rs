//! The kubelet's own HTTPS server: what the API server asks of a node. Whoever shows a certificate of the cluster's
//! authority or a token is told what the API server allows it ([`access`]); to others only health is answered.

mod access;
mod configz;
mod logs;
mod metrics;
mod streams;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use api::Object;
use api::core::v1::Pod;
use bytes::Bytes;
use client::delegated::User;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::pod_state;
use crate::runtime::describe;
use crate::{Error, ServingTls};

pub type Body = BoxBody<Bytes, Infallible>;
pub type Answer = Response<Body>;

/// Connections that are served at the same time.
const MAX_CONNECTIONS: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A socket that is ours, before anything is answered.
pub struct Listener {
    socket: TcpListener,
    tls: TlsAcceptor,
}

/// Takes the address.
pub async fn listen(address: SocketAddr, tls: &ServingTls) -> Result<Listener, Error> {
    let wrong = |e: Box<dyn std::error::Error + Send + Sync>| Error::Tls(e);
    let mut roots = RootCertStore::empty();
    for block in pem::parse_many(&tls.client_ca).map_err(|e| wrong(e.into()))? {
        roots.add(block.into_contents().into()).map_err(|e| wrong(e.into()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| wrong(e.into()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(e.into()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(tls.certificate.clone());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let socket = TcpListener::bind(address).await.map_err(|source| Error::Serve { address, source })?;
    Ok(Listener { socket, tls: TlsAcceptor::from(Arc::new(config)) })
}

/// Serves until the shutdown.
pub async fn run(core: Arc<Core>, listener: Listener, shutdown: CancellationToken) -> Result<(), Error> {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next(), if connections.len() >= MAX_CONNECTIONS => {}
            accepted = listener.socket.accept(), if connections.len() < MAX_CONNECTIONS => {
                let Ok((stream, _)) = accepted else { continue };
                let connection = serve(core.clone(), listener.tls.clone(), stream);
                let stop = shutdown.clone();
                connections.spawn(async move {
                    tokio::select! {
                        () = connection => {}
                        () = stop.cancelled() => {}
                    }
                });
            }
        }
    }
    connections.shutdown().await;
    Ok(())
}

async fn serve(core: Arc<Core>, tls: TlsAcceptor, stream: TcpStream) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await else { return };
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let user = shown.and_then(|certificate| User::of_certificate(certificate));
    // Streams that outlive their request are driven here, and end with their connection.
    let streams = streams::Streams::default();
    let handle = |request: Request<Incoming>| {
        let (core, user, streams) = (core.clone(), user.clone(), streams.clone());
        async move { Ok::<_, Infallible>(route(core, request, user, streams).await) }
    };
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service_fn(handle))
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the kubelet ended");
    }
    streams.finished().await;
}

async fn route(
    core: Arc<Core>,
    request: Request<Incoming>,
    user: Option<User>,
    streams: streams::Streams,
) -> Answer {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    if parts.first() == Some(&"healthz") {
        return text(StatusCode::OK, "ok");
    }
    let (head, body) = request.into_parts();
    if let Err(refusal) = access::check(&core.access, &core.config.node_name, &head, user).await {
        return refusal;
    }
    let request = Request::from_parts(head, body);
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let method = request.method().clone();
    match (&method, parts.as_slice()) {
        (&Method::GET, ["pods"]) => pods(&core),
        (&Method::GET, ["runningpods"]) => running_pods(&core).await,
        (&Method::GET, ["containerLogs", namespace, pod, container]) => {
            logs::serve(core, namespace, pod, container, &query).await
        }
        (_, ["exec" | "attach" | "portForward" | "cri", ..]) => {
            streams::serve(core, request, &parts, &query, streams).await
        }
        (&Method::POST, ["run", namespace, pod, .., container]) => {
            run_command(&core, namespace, pod, container, &query).await
        }
        (&Method::GET, ["stats", "summary"]) => metrics::summary(&core).await,
        (&Method::GET, ["metrics"]) => metrics::own(&core).await,
        (&Method::GET, ["metrics", "resource"]) => metrics::resource(&core).await,
        (&Method::GET, ["metrics", "probes"]) => text(StatusCode::OK, core.probe_metrics.text()),
        (&Method::GET, ["metrics", "cadvisor"]) => metrics::cadvisor(&core).await,
        (&Method::GET, ["configz"]) => configz::answer_of(&core.config),
        _ => text(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

/// The values of a query, in order.
pub struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        });
        Query(pairs.collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    pub fn all(&self, key: &str) -> Vec<String> {
        self.0.iter().filter(|(k, _)| k == key).map(|(_, v)| v.clone()).collect()
    }

    pub fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some("1" | "true" | "True" | "t"))
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

pub fn text(code: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(code, "text/plain; charset=utf-8", full(body))
}

pub fn json(value: &serde_json::Value) -> Answer {
    answer(StatusCode::OK, "application/json", full(value.to_string()))
}

fn answer(code: StatusCode, content_type: &'static str, body: Body) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// A body that comes in pieces.
pub fn stream(chunks: impl futures::Stream<Item = Bytes> + Send + Sync + 'static) -> Body {
    BodyExt::boxed(StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk)))))
}

/// The pod of that name, if it is on this node.
pub fn find_pod(core: &Core, namespace: &str, name: &str) -> Result<Arc<Pod>, Box<Answer>> {
    let pods = core.pods.lock().unwrap_or_else(PoisonError::into_inner);
    let found = pods.values().find(|p| p.namespace() == namespace && p.name() == name).cloned();
    found.ok_or_else(|| Box::new(text(StatusCode::NOT_FOUND, format!("pod {name:?} not found"))))
}

fn pods(core: &Core) -> Answer {
    let pods = core.pods.lock().unwrap_or_else(PoisonError::into_inner);
    let items: Vec<_> = pods.values().map(|p| p.to_value()).collect();
    json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

async fn running_pods(core: &Core) -> Answer {
    let known = match pod_state::known_pods(core.runtime.as_ref()).await {
        Ok(known) => known,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, describe(&error)),
    };
    let label = |labels: &std::collections::HashMap<String, String>, key: &str| labels.get(key).cloned();
    let items: Vec<_> = known
        .iter()
        .map(|(uid, labels)| {
            serde_json::json!({"metadata": {
                "name": label(labels, crate::runtime::POD_NAME),
                "namespace": label(labels, crate::runtime::POD_NAMESPACE),
                "uid": uid,
            }})
        })
        .collect();
    json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

async fn run_command(core: &Core, namespace: &str, pod: &str, container: &str, query: &Query) -> Answer {
    let id = match streams::container_id(core, namespace, pod, container).await {
        Ok(id) => id,
        Err(answer) => return *answer,
    };
    let command: Vec<String> = query.get("cmd").unwrap_or_default().split(' ').map(str::to_owned).collect();
    match core.runtime.exec_sync(&id, &command, 0).await {
        Ok(done) => {
            let mut output = done.stdout;
            output.extend_from_slice(&done.stderr);
            text(StatusCode::OK, output)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, describe(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let query = Query::parse("command=sh&command=-c&command=echo%20a%2Bb+c&tty=1&x");
        assert_eq!(query.all("command"), ["sh", "-c", "echo a+b c"]);
        assert!(query.flag("tty") && !query.flag("stdin"));
        assert_eq!(query.get("x"), None);
        assert_eq!(Query::parse("a=%zz%").get("a"), Some("%zz%"));
    }
}
