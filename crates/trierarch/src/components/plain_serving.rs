//! The small HTTP server of the proxy, for scrapers on the same machine: health and metrics, without TLS, as upstream
//! serves them.
//!
//! Upstream: cmd/kube-proxy/app/server.go serveMetrics

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::secure_serving::{process_metrics, text};

const MAX_CONNECTIONS: usize = 16;

fn answer(path: &str, mode: &str, metrics: &dyn Fn() -> String) -> Response<Full<Bytes>> {
    match path {
        "/healthz" => text(StatusCode::OK, "ok"),
        "/proxyMode" => text(StatusCode::OK, mode),
        "/metrics" => text(StatusCode::OK, &(process_metrics() + &metrics())),
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// Serves until the shutdown. `metrics` is what there is to tell besides the process itself.
pub async fn serve(
    listener: TcpListener,
    mode: &'static str,
    metrics: impl Fn() -> String + Clone + Send + 'static,
    shutdown: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                let Ok((stream, _)) = accepted else { continue };
                let metrics = metrics.clone();
                let handle = move |request: Request<Incoming>| {
                    let answer = answer(request.uri().path(), mode, &metrics);
                    async move { Ok::<_, Infallible>(answer) }
                };
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service_fn(handle));
                connections.spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a connection ended");
                    }
                });
            }
        }
    }
    connections.shutdown().await;
}

/// An address with this port, or one that says its own; empty means none.
pub fn address(text: &str, port: u16) -> anyhow::Result<Option<SocketAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse().or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, port)));
    Ok(Some(parsed.map_err(|_| anyhow::anyhow!("{text:?} is not an address like 0.0.0.0:{port}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_leave_out_its_port() {
        for (text, wanted) in [("", None), ("127.0.0.1:1", Some("127.0.0.1:1")), ("::", Some("[::]:10256"))] {
            let wanted = wanted.map(|text| text.parse().unwrap());
            assert_eq!(address(text, 10256).unwrap(), wanted, "{text}");
        }
        assert!(address("nowhere", 10256).is_err());
    }

    #[test]
    fn scrapers_find_what_upstream_serves() {
        for (path, code) in [("/metrics", 200), ("/healthz", 200), ("/proxyMode", 200), ("/other", 404)] {
            assert_eq!(answer(path, "nftables", &String::new).status(), code, "{path}");
        }
    }
}
