//! The HTTP servers of the proxy: a health check port per Service of external policy Local, and `/healthz`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Error;

/// Checks that one port answers at once; a balancer opens a handful.
const MAX_CONNECTIONS: usize = 128;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// No check keeps a connection this long.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// What a port answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Of the proxy itself.
    Proxy { is_healthy: bool },
    /// Of a Service.
    Service { namespace: String, name: String, local_endpoints: usize, is_healthy: bool },
}

/// The servers that run now, by port.
pub(crate) struct Servers {
    running: HashMap<u16, (watch::Sender<Answer>, CancellationToken)>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Servers {
    pub fn new(shutdown: CancellationToken) -> Self {
        Servers { running: HashMap::new(), tasks: TaskTracker::new(), shutdown }
    }

    /// Serves `/healthz` as long as the proxy runs.
    pub async fn serve_proxy(
        &self,
        address: SocketAddr,
        answer: watch::Receiver<Answer>,
    ) -> Result<(), Error> {
        let listener =
            TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        self.tasks.spawn(serve(listener, answer, self.shutdown.clone()));
        Ok(())
    }

    /// Starts, updates and stops servers until they are those wanted. A port that is taken is reported and
    /// tried again with the next change.
    pub async fn settle(&mut self, wanted: HashMap<u16, Answer>) {
        self.running.retain(|port, (_, stop)| {
            let stays = wanted.contains_key(port);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for (port, answer) in wanted {
            if let Some((sender, _)) = self.running.get(&port) {
                sender.send_if_modified(|present| std::mem::replace(present, answer.clone()) != answer);
                continue;
            }
            let any_address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            match TcpListener::bind(any_address).await {
                Ok(listener) => {
                    let (sender, receiver) = watch::channel(answer);
                    let stop = self.shutdown.child_token();
                    self.tasks.spawn(serve(listener, receiver, stop.clone()));
                    self.running.insert(port, (sender, stop));
                }
                Err(error) => tracing::warn!(port, %error, "cannot listen on a health check node port"),
            }
        }
    }

    /// Waits until every server has ended; they end with the shutdown token.
    pub async fn join(self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn serve(listener: TcpListener, answer: watch::Receiver<Answer>, stop: CancellationToken) {
    let connections = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        // A failed accept concerns that one connection, or descriptors that will be free again.
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (answer, stop) = (answer.clone(), stop.clone());
        connections.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let response = respond(request.uri().path(), &answer.borrow());
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = stop.cancelled() => {}
                // How a connection ends is of no interest: the answer was given or the peer went.
                _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection) => {}
            }
            drop(permit);
        });
    }
    connections.close();
    connections.wait().await;
}

// Upstream: pkg/proxy/healthcheck/service_health.go ServeHTTP, proxy_health.go
fn respond(path: &str, answer: &Answer) -> Response<Full<Bytes>> {
    let status = |is_good| if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let response = Response::builder()
        .header("Content-Type", "application/json")
        .header("X-Content-Type-Options", "nosniff");
    let response = match answer {
        Answer::Service { namespace, name, local_endpoints, is_healthy } => {
            let body = serde_json::json!({
                "service": {"namespace": namespace, "name": name},
                "localEndpoints": local_endpoints,
                "serviceProxyHealthy": is_healthy,
            });
            response
                .status(status(*is_healthy && *local_endpoints > 0))
                .header("X-Load-Balancing-Endpoint-Weight", local_endpoints.to_string())
                .body(body.to_string())
        }
        Answer::Proxy { is_healthy } if matches!(path, "/healthz" | "/livez") => {
            response.status(status(*is_healthy)).body(serde_json::json!({"nodeEligible": true}).to_string())
        }
        Answer::Proxy { .. } => response.status(StatusCode::NOT_FOUND).body("{}".to_owned()),
    };
    response.expect("all header names and values are valid").map(|body| Full::new(Bytes::from(body)))
}
