//! Sends a request on and copies what comes back. Connections that the other side upgrades (WebSocket, SPDY) are
//! copied byte by byte both ways; this server understands neither.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, BodyStream, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::location::Target;
use crate::body::{Body, BoxError, Response};
use crate::handle::{ApiServer, Asked, RequestBody};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Headers that concern one connection only.
const HOP_HEADERS: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

fn is_hop(name: &HeaderName) -> bool {
    HOP_HEADERS.contains(&name.as_str())
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

fn unreachable(target: &Target, why: impl std::fmt::Display) -> Status {
    let scheme = if target.tls { "https" } else { "http" };
    Status::service_unavailable(format!(
        "error trying to reach service: {why} ({scheme}://{}:{})",
        target.host, target.port
    ))
}

async fn connect(server: &ApiServer, target: &Target) -> Result<Box<dyn Io>, Status> {
    let tcp = TcpStream::connect((target.host.trim_matches(['[', ']']), target.port));
    let tcp = tokio::time::timeout(CONNECT_TIMEOUT, tcp).await;
    let tcp =
        tcp.map_err(|_| unreachable(target, "i/o timeout"))?.map_err(|error| unreachable(target, error))?;
    tcp.set_nodelay(true).map_err(|error| unreachable(target, error))?;
    if !target.tls {
        return Ok(Box::new(tcp));
    }
    let config = match &server.config.kubelet_tls {
        Some(config) if target.kubelet => config.clone(),
        _ => client::https::unverified(),
    };
    let name = ServerName::try_from(target.host.clone()).map_err(|error| unreachable(target, error))?;
    let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp);
    let tls = tokio::time::timeout(CONNECT_TIMEOUT, tls)
        .await
        .map_err(|_| unreachable(target, "TLS handshake timeout"))?;
    Ok(Box::new(tls.map_err(|error| unreachable(target, error))?))
}

/// The page that the client should have asked for.
pub fn moved(to: &str) -> Result<Response, Status> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let to = HeaderValue::from_str(to).map_err(|_| Status::bad_request("the path cannot be redirected"))?;
    response.headers_mut().insert(header::LOCATION, to);
    Ok(response)
}

fn outgoing_headers(asked: &HeaderMap, target: &Target, upgrade: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in asked {
        let ours = *name == header::AUTHORIZATION
            || *name == header::HOST
            || name.as_str().starts_with("impersonate-");
        if !ours && (upgrade || !is_hop(name)) {
            headers.append(name, value.clone());
        }
    }
    if let Ok(host) = HeaderValue::from_str(&format!("{}:{}", target.host, target.port)) {
        headers.insert(header::HOST, host);
    }
    headers
}

/// `prefix` is the path under which the client sees the root of what is proxied.
pub async fn forward(
    server: &Arc<ApiServer>,
    asked: Asked,
    target: Target,
    prefix: Option<String>,
) -> Result<Response, Status> {
    let Asked { mut parts, body, .. } = asked;
    let upgrade = parts.headers.contains_key(header::UPGRADE);
    let own_side = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let body: BoxBody<Bytes, hyper::Error> = match body {
        RequestBody::Ready(bytes) => Full::new(bytes).map_err(|never| match never {}).boxed(),
        RequestBody::Incoming(incoming) => incoming.boxed(),
    };
    let request = Request::builder().method(parts.method.clone()).uri(&target.path_and_query).body(body);
    let mut request =
        request.map_err(|error| Status::bad_request(format!("cannot send the request on: {error}")))?;
    *request.headers_mut() = outgoing_headers(&parts.headers, &target, upgrade);
    let io = connect(server, &target).await?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(io)).await;
    let (mut sender, connection) = handshake.map_err(|error| unreachable(&target, error))?;
    let shutdown = server.shutdown.clone();
    server.tasks.spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            result = connection.with_upgrades() => if let Err(error) = result {
                tracing::debug!(%error, "a proxied connection ended");
            },
        }
    });
    let answer = sender.send_request(request).await.map_err(|error| unreachable(&target, error))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return join(server, answer, own_side);
    }
    Ok(copied(answer, &target, prefix.as_deref()))
}

/// Both sides have changed protocols: from here on bytes are copied.
fn join(
    server: &Arc<ApiServer>,
    answer: http::Response<hyper::body::Incoming>,
    own_side: Option<hyper::upgrade::OnUpgrade>,
) -> Result<Response, Status> {
    let Some(own_side) = own_side else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    let shutdown = server.shutdown.clone();
    server.tasks.spawn(async move {
        let copy = async {
            let (theirs, ours) = tokio::try_join!(hyper::upgrade::on(answer), own_side)?;
            let (mut theirs, mut ours) = (TokioIo::new(theirs), TokioIo::new(ours));
            tokio::io::copy_bidirectional(&mut theirs, &mut ours).await?;
            Ok::<(), BoxError>(())
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            result = copy => if let Err(error) = result {
                tracing::debug!(error, "a tunnel ended");
            },
        }
    });
    Ok(response)
}

fn copied(answer: http::Response<hyper::body::Incoming>, target: &Target, prefix: Option<&str>) -> Response {
    let (parts, body) = answer.into_parts();
    let frames = BodyStream::new(body).filter_map(|frame| async move {
        match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(BoxError::from(error))),
        }
    });
    let mut response = Response::new(Body::Stream(Box::pin(frames)));
    *response.status_mut() = parts.status;
    for (name, value) in &parts.headers {
        if !is_hop(name) && *name != header::CONTENT_LENGTH {
            response.headers_mut().append(name, value.clone());
        }
    }
    if let Some(prefix) = prefix {
        relocate(response.headers_mut(), target, prefix);
    }
    response
}

/// A redirect of what is proxied stays below the proxy.
fn relocate(headers: &mut HeaderMap, target: &Target, prefix: &str) {
    let Some(location) = headers.get(header::LOCATION).and_then(|v| v.to_str().ok()) else { return };
    let own = [
        format!("http://{}:{}", target.host, target.port),
        format!("https://{}:{}", target.host, target.port),
    ];
    let path = own.iter().find_map(|own| location.strip_prefix(own.as_str())).unwrap_or(location);
    if path.starts_with('/')
        && let Ok(value) = HeaderValue::from_str(&format!("{prefix}{path}"))
    {
        headers.insert(header::LOCATION, value);
    }
}
