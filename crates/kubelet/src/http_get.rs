//! GET requests to containers, for probes and hooks: HTTP, or HTTPS with whatever certificate is shown.

use std::time::Duration;

use api::IntOrString;
use api::core::v1::{Container, HTTPGetAction};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

/// As much of an answer as is read.
const MAX_BODY_BYTES: usize = 10 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub https: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

/// The number of a port, which may be given by the name of one of the container's.
pub fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name));
            named.map(|p| p.container_port).or_else(|| name.parse().ok())
        }
    };
    let number = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    number.ok_or_else(|| format!("invalid port number: {port:?}"))
}

/// The target of an action in a pod at `pod_ip`.
pub fn target(action: &HTTPGetAction, container: &Container, pod_ip: &str) -> Result<Target, String> {
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
    if host.is_empty() {
        return Err("the pod has no IP address yet".into());
    }
    let path = action.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let headers = action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone()));
    Ok(Target {
        https: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
        host: host.to_owned(),
        port: resolve_port(&action.port, container)?,
        path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
        headers: headers.collect(),
    })
}

impl Target {
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    pub fn url(&self) -> String {
        format!("{}://{}{}", if self.https { "https" } else { "http" }, self.authority(), self.path)
    }
}

/// The code, where it redirects to, and the body of the answer. `agent` is the user agent.
pub async fn get(
    target: &Target,
    agent: &str,
    timeout: Duration,
) -> Result<(u16, Option<String>, Bytes), String> {
    let timed_out = || {
        format!(
            "Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            target.url()
        )
    };
    let answer = tokio::time::timeout(timeout, exchange(target, agent)).await.map_err(|_| timed_out())?;
    answer.map_err(|why| format!("Get {:?}: {why}", target.url()))
}

async fn exchange(target: &Target, agent: &str) -> Result<(u16, Option<String>, Bytes), String> {
    let dial = |e: std::io::Error| {
        let why = if e.kind() == std::io::ErrorKind::ConnectionRefused {
            "connection refused".into()
        } else {
            e.to_string()
        };
        format!("dial tcp {}: connect: {why}", target.authority())
    };
    let tcp = TcpStream::connect((target.host.as_str(), target.port)).await.map_err(dial)?;
    if !target.https {
        return request(TokioIo::new(tcp), target, agent).await;
    }
    let name = ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
    let tls = tokio_rustls::TlsConnector::from(client::tls::unverified()).connect(name, tcp).await;
    request(TokioIo::new(tls.map_err(|e| e.to_string())?), target, agent).await
}

async fn request<I>(io: I, target: &Target, agent: &str) -> Result<(u16, Option<String>, Bytes), String>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let text = |e: hyper::Error| e.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(text)?;
    let mut request = http::Request::get(&target.path);
    let has = |name: &str| target.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    for (name, value) in &target.headers {
        request = request.header(name, value);
    }
    let defaults = [
        ("host", target.authority()),
        ("user-agent", agent.to_owned()),
        ("accept", "*/*".into()),
        ("connection", "close".into()),
    ];
    for (name, value) in defaults.iter().filter(|(name, _)| !has(name)) {
        request = request.header(*name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(text)?;
        let code = response.status().as_u16();
        let location = response.headers().get("location").and_then(|l| l.to_str().ok()).map(str::to_owned);
        // A body that is too long is cut: only its beginning is of use.
        let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
        Ok((code, location, body.map(|b| b.to_bytes()).unwrap_or_default()))
    };
    tokio::pin!(exchange, connection);
    // The connection has to be driven until the answer is whole.
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}
