//! The HTTP servers of the proxy: a health check port per Service of external policy Local, and `/healthz`.
//!
//! [`respond`] decides every answer from the proxy's [`State`] and the time.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use controller_runtime::Clock;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Error;
use crate::metrics::Metrics;

/// Checks that one port answers at once; a balancer opens a handful.
const MAX_CONNECTIONS: usize = 128;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// No check keeps a connection this long.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// A change that is not in force after so long means that something is wrong.
/// Upstream: cmd/kube-proxy/app/server.go: twice the sync period
const LATE: SignedDuration = SignedDuration::from_secs(60);
/// What a moment that never was is in Go's JSON.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// How the proxy is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// When the table last was as wanted.
    pub last_updated: Option<Timestamp>,
    /// When the oldest change came that is not in force yet.
    pub pending_since: Option<Timestamp>,
    /// The Node is there and is not about to go.
    pub is_node_eligible: bool,
}

impl State {
    fn is_healthy(&self, now: Timestamp) -> bool {
        self.pending_since.is_none_or(|since| now.duration_since(since) < LATE)
    }
}

/// What a port answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Of the proxy itself.
    Proxy,
    /// Of a Service.
    Service { namespace: String, name: String, local_endpoints: usize },
}

/// What every answer depends on.
#[derive(Clone)]
pub(crate) struct Health {
    pub state: watch::Receiver<State>,
    pub clock: Clock,
    pub metrics: Metrics,
}

/// The servers that run now, by address.
pub(crate) struct Servers {
    running: HashMap<SocketAddr, (watch::Sender<Answer>, CancellationToken)>,
    tasks: TaskTracker,
    health: Health,
    shutdown: CancellationToken,
}

impl Servers {
    pub fn new(health: Health, shutdown: CancellationToken) -> Self {
        Servers { running: HashMap::new(), tasks: TaskTracker::new(), health, shutdown }
    }

    /// Serves `/healthz` and `/livez` as long as the proxy runs.
    pub async fn serve_proxy(&self, address: SocketAddr) -> Result<(), Error> {
        let listener =
            TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        let (_, answer) = watch::channel(Answer::Proxy);
        self.tasks.spawn(serve(listener, answer, self.health.clone(), self.shutdown.clone()));
        Ok(())
    }

    /// Starts, updates and stops servers until they are those wanted, each port at each of these addresses. A port
    /// that is taken is reported and tried again with the next change.
    pub async fn settle(&mut self, wanted: HashMap<u16, Answer>, addresses: &[IpAddr]) {
        let wanted: HashMap<SocketAddr, Answer> = wanted
            .into_iter()
            .flat_map(|(port, answer)| addresses.iter().map(move |ip| ((*ip, port).into(), answer.clone())))
            .collect();
        self.running.retain(|address, (_, stop)| {
            let stays = wanted.contains_key(address);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for (address, answer) in wanted {
            if let Some((sender, _)) = self.running.get(&address) {
                sender.send_if_modified(|present| std::mem::replace(present, answer.clone()) != answer);
                continue;
            }
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    let (sender, receiver) = watch::channel(answer);
                    let stop = self.shutdown.child_token();
                    self.tasks.spawn(serve(listener, receiver, self.health.clone(), stop.clone()));
                    self.running.insert(address, (sender, stop));
                }
                Err(error) => tracing::warn!(%address, %error, "cannot listen on a health check node port"),
            }
        }
    }

    /// Waits until every server has ended; they end with the shutdown token.
    pub async fn join(self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn serve(
    listener: TcpListener,
    answer: watch::Receiver<Answer>,
    health: Health,
    stop: CancellationToken,
) {
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
        let (answer, health, stop) = (answer.clone(), health.clone(), stop.clone());
        connections.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let path = request.uri().path();
                let response = respond(path, &answer.borrow(), &health.state.borrow(), health.clock.now());
                if *answer.borrow() == Answer::Proxy {
                    health.metrics.probed(path, response.status());
                }
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

fn status(is_good: bool) -> StatusCode {
    if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn respond(path: &str, answer: &Answer, state: &State, now: Timestamp) -> Response<Full<Bytes>> {
    let response = Response::builder()
        .header("Content-Type", "application/json")
        .header("X-Content-Type-Options", "nosniff");
    let is_healthy = state.is_healthy(now);
    let response = match answer {
        Answer::Service { namespace, name, local_endpoints } => response
            .status(status(is_healthy && *local_endpoints > 0))
            .header("X-Load-Balancing-Endpoint-Weight", local_endpoints.to_string())
            .body(service_body(namespace, name, *local_endpoints, is_healthy)),
        Answer::Proxy if path == "/livez" => {
            response.status(status(is_healthy)).body(proxy_body(state, is_healthy, None, now))
        }
        // Upstream's proxy is healthy before it has done anything; a balancer that believed that would lose packets.
        Answer::Proxy if path == "/healthz" => {
            let is_good = is_healthy && state.is_node_eligible;
            let body = proxy_body(state, is_good, Some(state.is_node_eligible), now);
            response.status(status(is_good && state.last_updated.is_some())).body(body)
        }
        Answer::Proxy => Response::builder()
            .status(StatusCode::NOT_FOUND)
            .header("Content-Type", "text/plain; charset=utf-8")
            .body("404 page not found\n".to_owned()),
    };
    response.expect("all header names and values are valid").map(|body| Full::new(Bytes::from(body)))
}

// Upstream: pkg/proxy/healthcheck/service_health.go ServeHTTP
fn service_body(namespace: &str, name: &str, local_endpoints: usize, is_healthy: bool) -> String {
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\
         \"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {is_healthy}\n}}"
    )
}

// Upstream: pkg/proxy/healthcheck/proxy_health.go ProxyHealth
fn proxy_body(state: &State, is_good: bool, is_node_eligible: Option<bool>, now: Timestamp) -> String {
    let is_healthy = state.is_healthy(now);
    let updated = state.last_updated.map_or_else(|| NEVER.to_owned(), |time| time.to_string());
    let family = json!({"lastUpdated": updated, "healthy": is_healthy});
    let mut body = json!({
        // Of a proxy that is well: recent, whether or not there was anything to update.
        "lastUpdated": if is_good { now.to_string() } else { updated },
        "currentTime": now.to_string(),
        "healthy": is_healthy,
        "status": {"IPv4": family, "IPv6": family},
    });
    if let Some(eligible) = is_node_eligible {
        body["nodeEligible"] = eligible.into();
    }
    body.to_string()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    async fn ask(path: &str, answer: &Answer, state: &State, second: i64) -> (u16, String, String) {
        let response = respond(path, answer, state, at(second));
        let weight = response.headers().get("X-Load-Balancing-Endpoint-Weight");
        let weight = weight.map(|weight| weight.to_str().unwrap().to_owned()).unwrap_or_default();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, weight, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_proxy_tells_of_itself() {
        let good = State { last_updated: Some(at(100)), pending_since: None, is_node_eligible: true };
        let late = State { pending_since: Some(at(100)), ..good.clone() };
        let leaving = State { is_node_eligible: false, ..good.clone() };
        let starting = State { last_updated: None, ..good.clone() };
        for (state, second, healthz, livez) in [
            (&good, 1000, 200, 200),
            (&late, 159, 200, 200),
            (&late, 160, 503, 503),
            (&leaving, 1000, 503, 200),
            (&starting, 100, 503, 200),
        ] {
            assert_eq!(ask("/healthz", &Answer::Proxy, state, second).await.0, healthz, "{state:?}");
            assert_eq!(ask("/livez", &Answer::Proxy, state, second).await.0, livez, "{state:?}");
        }
        let body: serde_json::Value =
            serde_json::from_str(&ask("/healthz", &Answer::Proxy, &late, 160).await.2).unwrap();
        let family = json!({"healthy": false, "lastUpdated": "1970-01-01T00:01:40Z"});
        let expected = json!({
            "lastUpdated": "1970-01-01T00:01:40Z", "currentTime": "1970-01-01T00:02:40Z", "healthy": false,
            "nodeEligible": true, "status": {"IPv4": family, "IPv6": family},
        });
        assert_eq!(body, expected);
        let body = ask("/livez", &Answer::Proxy, &good, 160).await.2;
        assert!(body.contains("\"lastUpdated\":\"1970-01-01T00:02:40Z\"") && !body.contains("nodeEligible"));
        assert_eq!(ask("/", &Answer::Proxy, &good, 0).await.0, 404);
    }

    #[tokio::test]
    async fn a_service_tells_of_its_endpoints() {
        let state = State { last_updated: Some(at(0)), ..State::default() };
        let answer = |local_endpoints| Answer::Service {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            local_endpoints,
        };
        let (status, weight, body) = ask("/", &answer(2), &state, 0).await;
        assert_eq!((status, weight.as_str()), (200, "2"));
        let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\
                        \"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(body, expected);
        assert_eq!(ask("/any", &answer(0), &state, 0).await.0, 503);
        let late = State { pending_since: Some(at(0)), ..state };
        let (status, weight, body) = ask("/", &answer(2), &late, 61).await;
        assert_eq!((status, weight.as_str()), (503, "2"));
        assert!(body.contains("\"serviceProxyHealthy\": false"), "{body}");
    }
}
