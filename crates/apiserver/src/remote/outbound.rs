//! Connections that this server makes to others at its own wish: to webhooks and to aggregated API servers.
//! A [`Peer`] is one such server with a pool of connections; [`Peers`] keeps the pools by what they were made of.
//!
//! What always holds: a name of a Service is resolved when a connection is opened, not before; certificates are
//! checked against the Service's name, whatever address was dialled; redirects are not followed.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use client::https::{Identity, Tokens, Trust};
use client::tls::Stream;
use http::header::AUTHORIZATION;
use http::{Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::client::ResolvesClientCert;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::resolve::Resolver;
use crate::admission::webhook::identities::Identities;
use crate::body::BoxError;

/// Upstream: net/http DefaultTransport's dialer
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const POOL_IDLE: Duration = Duration::from_secs(90);
/// Upstream: apiserver/pkg/util/webhook/client.go defaultCacheSize
const KEPT_PEERS: usize = 200;

pub type OutgoingBody = UnsyncBoxBody<Bytes, BoxError>;

/// What is dialled for a peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Host { host: String, port: u16 },
    Service { namespace: String, name: String, port: u16 },
}

impl Address {
    /// The name that the peer's certificate must hold.
    fn tls_name(&self) -> String {
        match self {
            Address::Host { host, .. } => host.clone(),
            Address::Service { namespace, name, .. } => format!("{name}.{namespace}.svc"),
        }
    }

    /// As it stands in a URL.
    pub fn authority(&self) -> String {
        match self {
            Address::Host { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Address::Host { host, port } => format!("{host}:{port}"),
            Address::Service { port, .. } => format!("{}:{port}", self.tls_name()),
        }
    }

    /// Upstream: apiserver/pkg/util/webhook/client.go isLocalHost
    fn is_loopback(&self) -> bool {
        match self {
            Address::Host { host, .. } => {
                host.eq_ignore_ascii_case("localhost")
                    || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
            Address::Service { .. } => false,
        }
    }
}

/// How a peer is reached and believed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerConfig {
    pub address: Address,
    pub trust: PeerTrust,
    /// The front proxy's certificate is shown.
    pub front_proxy: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerTrust {
    /// These authorities, as PEM; the machine's when empty.
    Bundle(Vec<u8>),
    Anyone,
    /// The connection is not encrypted.
    Plain,
}

/// One server and the connections to it.
pub struct Peer {
    pub address: Address,
    http: Client<Connector, OutgoingBody>,
    /// Shown in every exchange.
    token: Option<Tokens>,
    /// HTTP/1.1 alone, which connections that are upgraded need.
    upgrades: Connector,
}

impl Peer {
    /// One exchange, over a kept connection when there is one. The URI is a whole one.
    pub async fn send(&self, mut request: Request<OutgoingBody>) -> Result<Response<Incoming>, String> {
        if let Some(token) = &self.token {
            let header = token.header().map_err(|error| error.to_string())?;
            request.headers_mut().insert(AUTHORIZATION, header);
        }
        self.http.request(request).await.map_err(|error| reason(&error))
    }

    /// A connection of its own.
    pub async fn connect(&self) -> Result<Stream, String> {
        self.upgrades.clone().connect().await.map_err(|error| error.to_string())
    }
}

/// The innermost error says what happened, the others around it only where.
fn reason(error: &hyper_util::client::legacy::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// All peers that were asked for lately.
pub struct Peers {
    resolver: Resolver,
    /// What is shown to those who know this server as a front proxy.
    front_proxy: Option<Arc<dyn ResolvesClientCert>>,
    /// What is shown to others.
    identities: Identities,
    kept: Mutex<HashMap<PeerConfig, Arc<Peer>>>,
}

impl Peers {
    pub fn new(resolver: Resolver, front_proxy: Option<Arc<dyn ResolvesClientCert>>) -> Self {
        Peers { resolver, front_proxy, identities: Identities::default(), kept: Mutex::default() }
    }

    /// That show who they are by a kubeconfig.
    pub fn with_identities(resolver: Resolver, identities: Identities) -> Self {
        Peers { resolver, front_proxy: None, identities, kept: Mutex::default() }
    }

    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// The peer of a configuration, made when it is not there.
    pub fn get(&self, config: &PeerConfig) -> Result<Arc<Peer>, String> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = kept.get(config) {
            return Ok(peer.clone());
        }
        let peer = Arc::new(self.make(config)?);
        if kept.len() >= KEPT_PEERS {
            // Rarely, all begin anew; connections in use are not cut.
            kept.clear();
        }
        kept.insert(config.clone(), peer.clone());
        Ok(peer)
    }

    fn make(&self, config: &PeerConfig) -> Result<Peer, String> {
        let credentials = self.identities.at(&config.address.authority());
        let (identity, token) = credentials.map_err(|error| error.to_string())?;
        let connector = |protocols: &[&[u8]]| {
            Ok::<_, String>(Connector {
                address: config.address.clone(),
                resolver: self.resolver.clone(),
                tls: self.tls(config, identity.clone(), protocols)?,
            })
        };
        // Upstream: apiserver/pkg/util/webhook/client.go hookClientConfig: only a peer on this machine is spoken
        // HTTP/2 with, as one connection to a Service would burden one endpoint alone.
        let protocols: &[&[u8]] =
            if config.address.is_loopback() { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
        let http = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .build(connector(protocols)?);
        let upgrades = connector(&[b"http/1.1"])?;
        Ok(Peer { address: config.address.clone(), http, token: token.map(Tokens::new), upgrades })
    }

    fn tls(
        &self,
        config: &PeerConfig,
        identity: Option<Identity>,
        protocols: &[&[u8]],
    ) -> Result<Option<(TlsConnector, ServerName<'static>)>, String> {
        let trust = match &config.trust {
            PeerTrust::Plain => return Ok(None),
            PeerTrust::Anyone => Trust::Anyone,
            PeerTrust::Bundle(pem) if pem.is_empty() => Trust::System,
            PeerTrust::Bundle(pem) => Trust::Roots(pem.clone()),
        };
        let mut tls = match &self.front_proxy {
            Some(certificate) if config.front_proxy => {
                client::https::trusting(&trust).map(|tls| tls.with_client_cert_resolver(certificate.clone()))
            }
            _ => client::https::tls_config(&client::https::Config { trust, identity, ..Default::default() }),
        }
        .map_err(|error| error.to_string())?;
        tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let name = ServerName::try_from(config.address.tls_name()).map_err(|error| error.to_string())?;
        Ok(Some((TlsConnector::from(Arc::new(tls)), name)))
    }
}

/// Opens connections to one peer, whatever the URI says.
#[derive(Clone)]
struct Connector {
    address: Address,
    resolver: Resolver,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Connector {
    async fn connect(self) -> io::Result<Stream> {
        let (host, port) = match self.address {
            Address::Host { host, port } => (host, port),
            Address::Service { namespace, name, port } => {
                self.resolver.endpoint(&namespace, &name, port).map_err(io::Error::other)?
            }
        };
        let connecting = async {
            let tcp = TcpStream::connect((host.as_str(), port)).await;
            let tcp = tcp.map_err(|error| dialling(&host, port, &error))?;
            tcp.set_nodelay(true)?;
            Ok(match self.tls {
                Some((connector, name)) => {
                    let tls = connector.connect(name, tcp).await;
                    Stream::Tls(Box::new(tls.map_err(|error| verification(&error))?))
                }
                None => Stream::Plain(tcp),
            })
        };
        let timed = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
        timed.unwrap_or_else(|_| Err(io::Error::other(format!("dial tcp {host}:{port}: i/o timeout"))))
    }
}

/// As Go's dialer words it, because clients match on it.
fn dialling(host: &str, port: u16, error: &io::Error) -> io::Error {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        _ => error.to_string(),
    };
    io::Error::other(format!("dial tcp {host}:{port}: {why}"))
}

/// Why a server could not be asked, as Go's client words it, and whether that is likely to pass.
pub(crate) fn worded(error: &client::Error, url: &str) -> (String, bool) {
    let mut innermost: &(dyn std::error::Error + 'static) = error;
    let mut found: Option<&io::Error> = None;
    loop {
        found = innermost.downcast_ref().or(found);
        match innermost.source() {
            Some(source) => innermost = source,
            None => break,
        }
    }
    let Some(found) = found else { return (innermost.to_string(), false) };
    let wrapped = found.get_ref();
    if wrapped.is_some_and(|inner| inner.is::<rustls::Error>()) {
        return (verification(found).to_string(), false);
    }
    let reset = found.kind() == io::ErrorKind::ConnectionReset;
    let uri: Option<Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
    let port = uri.as_ref().and_then(Uri::port_u16).unwrap_or(443);
    match wrapped {
        Some(_) => (found.to_string(), reset),
        None => (dialling(host, port, found).to_string(), reset),
    }
}

/// As Go words what is wrong with a certificate.
fn verification(error: &io::Error) -> io::Error {
    use rustls::CertificateError as Wrong;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(wrong)) = inner else {
        return io::Error::other(format!("tls: {error}"));
    };
    let why = match wrong {
        // A namesake of an authority that is believed is no authority.
        Wrong::UnknownIssuer | Wrong::BadSignature => {
            "x509: certificate signed by unknown authority".to_owned()
        }
        Wrong::Expired
        | Wrong::ExpiredContext { .. }
        | Wrong::NotValidYet
        | Wrong::NotValidYetContext { .. } => "x509: certificate has expired or is not yet valid".to_owned(),
        other => format!("x509: {other}"),
    };
    io::Error::other(format!("tls: failed to verify certificate: {why}"))
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Stream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect().await.map(TokioIo::new) })
    }
}
