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

use super::links::Proxied;
use super::location::Target;
use crate::audit;
use crate::body::{Body, BoxError, Response};
use crate::handle::{ApiServer, Asked, RequestBody};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest page whose links are rewritten.
const MAX_PAGE_BYTES: usize = 8 << 20;

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
        "error trying to reach service: {why} ({scheme}://{})",
        target.authority()
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
        _ => client::tls::unverified(),
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

/// The client's side of a connection that is to be upgraded.
pub(crate) struct OwnSide {
    pub upgrade: hyper::upgrade::OnUpgrade,
    /// The audit log's last line is written when this is gone.
    pub noted: Option<audit::Open>,
}

impl OwnSide {
    pub fn take(parts: &mut http::request::Parts) -> Option<Self> {
        let noted = parts.extensions.remove();
        Some(OwnSide { upgrade: parts.extensions.remove()?, noted })
    }
}

/// The headers that are not meant for this server alone; those of the connection only when it is upgraded.
pub(crate) fn passed_on(asked: &HeaderMap, upgrade: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in asked {
        let ours = *name == header::AUTHORIZATION
            || *name == header::HOST
            || name.as_str().starts_with("impersonate-");
        if !ours && (upgrade || !is_hop(name)) {
            headers.append(name, value.clone());
        }
    }
    headers
}

fn outgoing_headers(asked: &HeaderMap, target: &Target, upgrade: bool) -> HeaderMap {
    let mut headers = passed_on(asked, upgrade);
    if let Ok(host) = HeaderValue::from_str(&target.authority()) {
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
    let own_side = OwnSide::take(&mut parts);
    let body: BoxBody<Bytes, hyper::Error> = match body {
        RequestBody::Ready(bytes) => Full::new(bytes).map_err(|never| match never {}).boxed(),
        RequestBody::Incoming(incoming) => incoming.boxed(),
    };
    let request = Request::builder().method(parts.method.clone()).uri(&target.path_and_query).body(body);
    let mut request =
        request.map_err(|error| Status::bad_request(format!("cannot send the request on: {error}")))?;
    *request.headers_mut() = outgoing_headers(&parts.headers, &target, upgrade);
    if let Some(prefix) = &prefix {
        forwarded(request.headers_mut(), &parts, prefix);
    }
    let io = connect(server, &target).await?;
    let answer = exchange(server, io, request).await.map_err(|error| unreachable(&target, error))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return join(server, answer, own_side);
    }
    let Some(prefix) = prefix else { return Ok(copied(answer)) };
    let proxied = Proxied { authority: target.authority(), prefix };
    below(copied(answer), &proxied).await
}

/// Tells the proxied server where its clients see it.
fn forwarded(headers: &mut HeaderMap, asked: &http::request::Parts, prefix: &str) {
    let host = asked.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| asked.uri.authority().map(|authority| authority.as_str())).unwrap_or_default();
    let path = if asked.uri.path().len() > prefix.len() { asked.uri.path() } else { prefix };
    for (name, value) in
        [("x-forwarded-uri", path), ("x-forwarded-host", host), ("x-forwarded-proto", "https")]
    {
        if let Ok(value) = HeaderValue::from_str(value)
            && !value.is_empty()
        {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    // Pages are looked into.
    headers.remove(header::ACCEPT_ENCODING);
}

/// The answer of a proxied server as it is seen below the proxy: redirects, and the links of its pages.
async fn below(mut response: Response, proxied: &Proxied) -> Result<Response, Status> {
    let text = |response: &Response, name: &HeaderName| {
        response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    if let Some(location) = text(&response, &header::LOCATION) {
        if let Some(value) = proxied.rewrite(&location).and_then(|link| HeaderValue::from_str(&link).ok()) {
            response.headers_mut().insert(header::LOCATION, value);
        }
        return Ok(response);
    }
    let kind = text(&response, &header::CONTENT_TYPE).unwrap_or_default();
    let is_page = kind.split(';').next().is_some_and(|kind| kind.trim() == "text/html");
    if !is_page || response.headers().contains_key(header::CONTENT_ENCODING) {
        return Ok(response);
    }
    let (parts, mut body) = response.into_parts();
    let mut page = Vec::new();
    while page.len() <= MAX_PAGE_BYTES {
        match body.frame().await {
            None => {
                let page = match String::from_utf8(page) {
                    Ok(page) => proxied.rewrite_page(&page).into(),
                    Err(error) => Bytes::from(error.into_bytes()),
                };
                return Ok(Response::from_parts(parts, Body::Full(page)));
            }
            Some(Ok(frame)) => {
                if let Ok(block) = frame.into_data() {
                    page.extend_from_slice(&block);
                }
            }
            Some(Err(error)) => {
                return Err(Status::service_unavailable(format!("error trying to reach service: {error}")));
            }
        }
    }
    // So long a page goes on as it is.
    let begun = futures::stream::iter([Ok(Bytes::from(page))]);
    let rest = BodyStream::new(body)
        .filter_map(|frame| async move { frame.map(|frame| frame.into_data().ok()).transpose() });
    Ok(Response::from_parts(parts, Body::Stream(Box::pin(begun.chain(rest)))))
}

/// One exchange over a connection of its own, which the other side may upgrade.
pub(crate) async fn exchange<B>(
    server: &ApiServer,
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<B>,
) -> Result<http::Response<hyper::body::Incoming>, hyper::Error>
where
    B: hyper::body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    let shutdown = server.shutdown.clone();
    server.tasks.spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            result = connection.with_upgrades() => if let Err(error) = result {
                tracing::debug!(%error, "a proxied connection ended");
            },
        }
    });
    sender.send_request(request).await
}

/// Both sides have changed protocols: from here on bytes are copied.
pub(crate) fn join(
    server: &Arc<ApiServer>,
    answer: http::Response<hyper::body::Incoming>,
    own_side: Option<OwnSide>,
) -> Result<Response, Status> {
    let Some(OwnSide { upgrade, noted }) = own_side else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    let shutdown = server.shutdown.clone();
    server.tasks.spawn(async move {
        let _noted = noted;
        let copy = async {
            let (theirs, ours) = tokio::try_join!(hyper::upgrade::on(answer), upgrade)?;
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

/// An answer as it came, less what concerned its connection.
pub(crate) fn copied(answer: http::Response<hyper::body::Incoming>) -> Response {
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
    response
}
