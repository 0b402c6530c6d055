//! The HTTP server, its one-time tokens, and the choice of the protocol.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{forward, session, spdy, websocket};
use crate::engine::{ExecRequest, lock};
use crate::{Error, SharedEngine};

/// What a token stands for.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    Exec(ExecRequest),
    Attach { container: String, stdin: bool, stdout: bool, stderr: bool, terminal: bool },
    PortForward { sandbox: String },
}

impl Work {
    fn path(&self) -> &'static str {
        match self {
            Work::Exec(_) => "exec",
            Work::Attach { .. } => "attach",
            Work::PortForward { .. } => "portforward",
        }
    }
}

// Upstream: staging/src/k8s.io/kubelet/pkg/cri/streaming/request_cache.go (one minute, one thousand)
const TOKEN_LIFE: Duration = Duration::from_secs(60);
const TOKENS_MAX: usize = 1000;

/// The tokens that are out.
#[derive(Debug, Clone)]
pub(crate) struct Tickets {
    address: SocketAddr,
    issued: Arc<Mutex<BTreeMap<String, (Instant, Work)>>>,
}

impl Tickets {
    /// Issues a URL that is good for one connection within a minute.
    pub(crate) fn issue(&self, work: Work) -> String {
        let bytes: [u8; 24] = rand::random();
        let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let url = format!("http://{}/{}/{token}", self.address, work.path());
        let mut issued = lock(&self.issued);
        issued.retain(|_, (at, _)| at.elapsed() < TOKEN_LIFE);
        if issued.len() >= TOKENS_MAX
            && let Some(oldest) = issued.iter().min_by_key(|(_, (at, _))| *at).map(|(token, _)| token.clone())
        {
            issued.remove(&oldest);
        }
        issued.insert(token, (Instant::now(), work));
        url
    }

    fn redeem(&self, path: &str) -> Option<Work> {
        let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
        let (at, work) = lock(&self.issued).remove(token)?;
        (at.elapsed() < TOKEN_LIFE && work.path() == kind).then_some(work)
    }
}

/// The server, bound but not yet serving.
pub(crate) struct Server {
    listener: TcpListener,
    tickets: Tickets,
}

impl Server {
    /// Binds a free port of loopback.
    pub(crate) async fn bind() -> Result<Self, Error> {
        let wrong = || Error::io("127.0.0.1");
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(wrong())?;
        let address = listener.local_addr().map_err(wrong())?;
        Ok(Self { listener, tickets: Tickets { address, issued: Arc::default() } })
    }

    pub(crate) fn tickets(&self) -> Tickets {
        self.tickets.clone()
    }

    /// Serves until `shutdown`, then cuts what is open.
    pub(crate) async fn run(self, engine: SharedEngine, shutdown: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            let socket = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.listener.accept() => match accepted {
                    Ok((socket, _)) => socket,
                    Err(_) => continue,
                },
            };
            // Keystrokes must not wait for each other.
            let _ = socket.set_nodelay(true);
            let (engine, tickets) = (engine.clone(), self.tickets.clone());
            connections.spawn(async move {
                // What an upgraded connection does next runs in this same task, and so ends with it.
                let (sender, mut upgraded) = tokio::sync::mpsc::channel(1);
                let service = hyper::service::service_fn(move |request| {
                    let (tickets, sender) = (tickets.clone(), sender.clone());
                    async move { Ok::<_, Infallible>(answer(&tickets, request, &sender)) }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(socket), service)
                    .with_upgrades()
                    .await;
                if served.is_err() {
                    return;
                }
                if let Some(job) = upgraded.recv().await {
                    job.run(&engine).await;
                }
            });
        }
        connections.shutdown().await;
    }
}

/// How an accepted connection will speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    /// With the subprotocol chosen.
    WebSocket(&'static str),
    Spdy(&'static str),
}

struct Job {
    upgrade: hyper::upgrade::OnUpgrade,
    wire: Wire,
    work: Work,
}

impl Job {
    async fn run(self, engine: &SharedEngine) {
        let Ok(upgraded) = self.upgrade.await else { return };
        let io = TokioIo::new(upgraded);
        match (self.wire, self.work) {
            (Wire::Spdy(_), Work::PortForward { sandbox }) => forward::serve_spdy(io, engine, &sandbox).await,
            (Wire::WebSocket(_), Work::PortForward { sandbox }) => {
                websocket::tunnel(io, |inner| forward::serve_spdy(inner, engine, &sandbox)).await;
            }
            (Wire::Spdy(protocol), work) => spdy::serve_command(io, protocol, engine, &work).await,
            (Wire::WebSocket(protocol), work) => {
                let (session, ends) = session::channel();
                tokio::join!(
                    websocket::serve_command(io, protocol, ends),
                    session::run(engine, &work, session)
                );
            }
        }
    }
}

const COMMAND_WEBSOCKET: [&str; 7] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "base64.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
];
const COMMAND_SPDY: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const FORWARD_WEBSOCKET: [&str; 1] = ["SPDY/3.1+portforward.k8s.io"];
const FORWARD_SPDY: [&str; 1] = ["portforward.k8s.io"];

/// Chooses by the headers, or says why not.
fn choose(headers: &HeaderMap, work: &Work) -> Result<Wire, String> {
    let is_forward = matches!(work, Work::PortForward { .. });
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if upgrade.eq_ignore_ascii_case("websocket") {
        let known: &[&'static str] = if is_forward { &FORWARD_WEBSOCKET } else { &COMMAND_WEBSOCKET };
        let offered = listed(headers, "sec-websocket-protocol");
        let chosen = offered.iter().find_map(|name| known.iter().find(|k| *k == name)).copied();
        return match chosen {
            Some(protocol) => Ok(Wire::WebSocket(protocol)),
            // The oldest clients offer nothing and mean the oldest protocol.
            None if offered.is_empty() && !is_forward => Ok(Wire::WebSocket("channel.k8s.io")),
            None => Err(format!(
                "unable to negotiate protocol: client supports {offered:?}, server accepts {known:?}"
            )),
        };
    }
    if upgrade.eq_ignore_ascii_case("SPDY/3.1") {
        let known: &[&'static str] = if is_forward { &FORWARD_SPDY } else { &COMMAND_SPDY };
        let offered = listed(headers, "x-stream-protocol-version");
        let chosen = offered.iter().find_map(|name| known.iter().find(|k| *k == name)).copied();
        return match chosen {
            Some(protocol) => Ok(Wire::Spdy(protocol)),
            None if offered.is_empty() => Ok(Wire::Spdy(known[known.len() - 1])),
            None => Err(format!(
                "unable to negotiate protocol: client supports {offered:?}, server accepts {known:?}"
            )),
        };
    }
    Err(format!("unable to upgrade: {upgrade:?} is neither websocket nor SPDY/3.1"))
}

/// A header's values, whether on one line or several.
fn listed(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_owned())
        .filter(|n| !n.is_empty())
        .collect()
}

fn refuse(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text.to_owned())));
    *response.status_mut() = status;
    response
}

fn answer(
    tickets: &Tickets,
    mut request: Request<Incoming>,
    upgraded: &tokio::sync::mpsc::Sender<Job>,
) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST are served");
    }
    let Some(work) = tickets.redeem(request.uri().path()) else {
        return refuse(StatusCode::NOT_FOUND, "no such token, or it was used or expired");
    };
    let wire = match choose(request.headers(), &work) {
        Ok(wire) => wire,
        Err(why) => return refuse(StatusCode::FORBIDDEN, &why),
    };
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, http::HeaderValue::from_static("Upgrade"));
    match wire {
        Wire::WebSocket(protocol) => {
            let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
                return refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
            };
            let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
            let Ok(accept) = http::HeaderValue::from_str(&accept) else {
                return refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is malformed");
            };
            headers.insert(header::UPGRADE, http::HeaderValue::from_static("websocket"));
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, http::HeaderValue::from_static(protocol));
        }
        Wire::Spdy(protocol) => {
            headers.insert(header::UPGRADE, http::HeaderValue::from_static("SPDY/3.1"));
            headers.insert("x-stream-protocol-version", http::HeaderValue::from_static(protocol));
        }
    }
    let job = Job { upgrade: hyper::upgrade::on(&mut request), wire, work };
    match upgraded.try_send(job) {
        Ok(()) => response,
        Err(_) => refuse(StatusCode::BAD_REQUEST, "the connection is upgraded already"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward() -> Work {
        Work::PortForward { sandbox: "s".into() }
    }

    fn attach() -> Work {
        Work::Attach { container: "c".into(), stdin: false, stdout: true, stderr: true, terminal: false }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once_and_for_a_minute() {
        let tickets = Tickets { address: "127.0.0.1:1".parse().unwrap(), issued: Arc::default() };
        let path = |url: String| url.strip_prefix("http://127.0.0.1:1").unwrap().to_owned();
        let first = path(tickets.issue(forward()));
        assert!(tickets.redeem(&first.replace("portforward", "exec")).is_none());
        let second = path(tickets.issue(forward()));
        assert!(tickets.redeem(&second).is_some());
        assert!(tickets.redeem(&second).is_none());
        let third = path(tickets.issue(forward()));
        tokio::time::advance(TOKEN_LIFE).await;
        assert!(tickets.redeem(&third).is_none());
        for _ in 0..TOKENS_MAX + 5 {
            tickets.issue(forward());
        }
        assert_eq!(lock(&tickets.issued).len(), TOKENS_MAX);
    }

    #[test]
    fn protocols_are_chosen_as_the_client_prefers() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, http::HeaderValue::from_static(value));
            }
            headers
        };
        let websocket = headers(&[
            ("upgrade", "websocket"),
            ("sec-websocket-protocol", "v5.channel.k8s.io, v4.channel.k8s.io"),
        ]);
        assert_eq!(choose(&websocket, &attach()), Ok(Wire::WebSocket("v5.channel.k8s.io")));
        assert!(choose(&websocket, &forward()).is_err());
        let spdy = headers(&[
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ]);
        assert_eq!(choose(&spdy, &attach()), Ok(Wire::Spdy("v4.channel.k8s.io")));
        let tunnel =
            headers(&[("upgrade", "websocket"), ("sec-websocket-protocol", "SPDY/3.1+portforward.k8s.io")]);
        assert_eq!(choose(&tunnel, &forward()), Ok(Wire::WebSocket("SPDY/3.1+portforward.k8s.io")));
        assert!(choose(&HeaderMap::new(), &attach()).is_err());
    }
}
