//! One attempt of a probe.

use std::time::Duration;

use api::core::v1::{Container, Probe};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::backoff::go_duration;
use crate::http_get;
use crate::runtime::{Runtime, describe};

/// What the probes call themselves.
pub const USER_AGENT: &str = "kube-probe/1.36";
/// As much of a command's output as is kept.
const MAX_OUTPUT_BYTES: usize = 10 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// It succeeded, with something to say.
    Warning(String),
    Failure(String),
    /// The attempt itself failed.
    Unknown(String),
}

pub struct Attempt<'a> {
    pub runtime: &'a dyn Runtime,
    pub container_id: &'a str,
    pub container: &'a Container,
    pub probe: &'a Probe,
    pub pod_ip: &'a str,
    pub timeout: Duration,
}

impl Attempt<'_> {
    pub async fn run(&self) -> Outcome {
        if let Some(action) = &self.probe.exec {
            return self.exec(action.command.as_deref().unwrap_or_default()).await;
        }
        if let Some(action) = &self.probe.http_get {
            return match http_get::target(action, self.container, self.pod_ip) {
                Ok(target) => self.http(target).await,
                Err(why) => Outcome::Unknown(why),
            };
        }
        if let Some(action) = &self.probe.tcp_socket {
            let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(self.pod_ip);
            return match http_get::resolve_port(&action.port, self.container) {
                Ok(port) => self.tcp(host, port).await,
                Err(why) => Outcome::Unknown(why),
            };
        }
        if let Some(action) = &self.probe.grpc {
            let Ok(port) = u16::try_from(action.port) else { return Outcome::Unknown("invalid port".into()) };
            return self.grpc(port, action.service.as_deref().unwrap_or_default()).await;
        }
        Outcome::Unknown("missing probe handler".into())
    }

    async fn exec(&self, command: &[String]) -> Outcome {
        let seconds = i64::try_from(self.timeout.as_secs()).unwrap_or(1).max(1);
        match self.runtime.exec_sync(self.container_id, command, seconds).await {
            Ok(answer) if answer.exit_code == 0 => Outcome::Success,
            Ok(answer) => {
                let mut output = answer.stdout;
                output.extend_from_slice(&answer.stderr);
                output.truncate(MAX_OUTPUT_BYTES);
                Outcome::Failure(String::from_utf8_lossy(&output).into_owned())
            }
            Err(error) if error.code() == tonic::Code::DeadlineExceeded => {
                let command = command.join(" ");
                let timeout = go_duration(self.timeout);
                Outcome::Failure(format!("command timed out: {command:?} timed out after {timeout}"))
            }
            Err(error) => Outcome::Unknown(describe(&error)),
        }
    }

    // Upstream: pkg/probe/http/http.go DoHTTPProbe; redirects are followed to the same host alone.
    async fn http(&self, mut target: http_get::Target) -> Outcome {
        for _ in 0..10 {
            let (code, location, body) = match http_get::get(&target, USER_AGENT, self.timeout).await {
                Ok(answer) => answer,
                Err(why) => return Outcome::Failure(why),
            };
            match (code, location) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => match follow(&target, &location) {
                    Some(next) => target = next,
                    None => {
                        let body = String::from_utf8_lossy(&body);
                        return Outcome::Warning(format!(
                            "Probe terminated redirects, Response body: {body}"
                        ));
                    }
                },
                (200..=399, _) => return Outcome::Success,
                _ => return Outcome::Failure(format!("HTTP probe failed with statuscode: {code}")),
            }
        }
        Outcome::Failure(format!("Get {:?}: stopped after 10 redirects", target.url()))
    }

    async fn tcp(&self, host: &str, port: u16) -> Outcome {
        let refused = |why: String| Outcome::Failure(format!("dial tcp {host}:{port}: {why}"));
        match tokio::time::timeout(self.timeout, TcpStream::connect((host, port))).await {
            Ok(Ok(_)) => Outcome::Success,
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                refused("connect: connection refused".into())
            }
            Ok(Err(e)) => refused(e.to_string()),
            Err(_) => refused("i/o timeout".into()),
        }
    }

    // Upstream: pkg/probe/grpc/grpc.go Probe
    async fn grpc(&self, port: u16, service: &str) -> Outcome {
        let address = format!("{}:{port}", self.pod_ip);
        match tokio::time::timeout(self.timeout, check_health(self.pod_ip, port, service)).await {
            Err(_) => Outcome::Failure(format!(
                "timeout: failed to connect service {address:?} within {}: context deadline exceeded",
                go_duration(self.timeout)
            )),
            Ok(Err(why)) => {
                Outcome::Failure(format!("error: failed to connect service at {address:?}: {why}"))
            }
            Ok(Ok(Health { grpc_code: 12, message, .. })) => Outcome::Failure(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
            )),
            Ok(Ok(Health { serving: 1, grpc_code: 0, .. })) => Outcome::Success,
            Ok(Ok(Health { grpc_code: 0, serving, .. })) => {
                let name = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
                let name = name.get(serving as usize).copied().unwrap_or("UNKNOWN");
                Outcome::Failure(format!("service unhealthy (responded with {name:?})"))
            }
            Ok(Ok(health)) => Outcome::Failure(format!("error: health rpc probe failed: {}", health.message)),
        }
    }
}

/// Where a redirect leads, if to the same host.
fn follow(from: &http_get::Target, location: &str) -> Option<http_get::Target> {
    if let Some(path) = location.strip_prefix('/').filter(|p| !p.starts_with('/')) {
        return Some(http_get::Target { path: format!("/{path}"), ..from.clone() });
    }
    let uri: http::Uri = location.parse().ok()?;
    let https = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
    let same = uri.host() == Some(from.host.as_str());
    let path = uri.path_and_query().map_or("/".to_owned(), ToString::to_string);
    same.then(|| http_get::Target { https, port, path, ..from.clone() })
}

struct Health {
    grpc_code: u32,
    message: String,
    serving: u32,
}

/// `grpc.health.v1.Health/Check` by hand: two fields of one byte each do not need a code generator.
async fn check_health(host: &str, port: u16, service: &str) -> Result<Health, String> {
    let text = |e: &dyn std::error::Error| e.to_string();
    let tcp = TcpStream::connect((host, port)).await.map_err(|e| text(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
            .await
            .map_err(|e| text(&e))?;
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        message.push(
            u8::try_from(service.len()).ok().filter(|n| *n < 128).ok_or("the service name is too long")?,
        );
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(&message);
    let request = http::Request::post(format!("http://{host}:{port}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", USER_AGENT)
        .body(Full::new(Bytes::from(frame)))
        .map_err(|e| text(&e))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| text(&e))?;
        let headers = response.headers().clone();
        let body = Limited::new(response.into_body(), MAX_OUTPUT_BYTES)
            .collect()
            .await
            .map_err(|e| e.to_string())?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let header = |name: &str| {
            let value = trailers.get(name).or_else(|| headers.get(name));
            value.and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
        };
        let data = body.to_bytes();
        let serving = match data.get(5..) {
            Some([0x08, value, ..]) => u32::from(*value),
            _ => 0,
        };
        let grpc_code = header("grpc-status").parse().unwrap_or(0);
        Ok(Health { grpc_code, message: header("grpc-message"), serving })
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_on_the_host() {
        let from = http_get::Target {
            https: false,
            host: "10.0.0.1".into(),
            port: 8080,
            path: "/".into(),
            headers: Vec::new(),
        };
        let cases = [
            ("/ok", Some("http://10.0.0.1:8080/ok")),
            ("http://10.0.0.1:9/x?y", Some("http://10.0.0.1:9/x?y")),
            ("http://example.com/", None),
            ("//example.com/", None),
        ];
        for (location, want) in cases {
            assert_eq!(follow(&from, location).map(|t| t.url()).as_deref(), want, "{location}");
        }
    }
}
