//! The [`Transport`](crate::Transport) over TLS: HTTP/2 where the server offers it, else HTTP/1.1, over
//! connections that are kept. Certificates and tokens given as files are read again when they are used, so that
//! they may be renewed in place.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, BodyStream, Full, Limited};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::tls::{self, Stream};
use crate::{Body, Error, Transport};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Upstream: apimachinery/pkg/util/net/http.go readIdleTimeoutSeconds, pingTimeoutSeconds
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Upstream: client-go/transport/token_source.go NewCachedFileTokenSource
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// Where Debian keeps the certificates that a machine trusts.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How to reach a server, and as whom.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `https://host:port`, possibly with a path before the API's. Plain `http` is for proxies on this machine.
    pub server: String,
    pub trust: Trust,
    pub identity: Option<Identity>,
    pub token: Option<Token>,
    /// The name that the server's certificate must hold, when it is not the host's.
    pub tls_server_name: Option<String>,
}

/// Whose certificates are believed.
#[derive(Clone, Debug, Default)]
pub enum Trust {
    /// The machine's certificate authorities.
    #[default]
    System,
    /// These, as PEM.
    Roots(Vec<u8>),
    /// Everyone's.
    Anyone,
}

/// A client certificate with its key, as PEM.
#[derive(Clone)]
pub enum Identity {
    Pem {
        certificate: Vec<u8>,
        key: Vec<u8>,
    },
    /// Read at every handshake.
    Files {
        certificate: PathBuf,
        key: PathBuf,
    },
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity")
    }
}

/// A bearer token.
#[derive(Clone)]
pub enum Token {
    Text(String),
    /// Read again every minute.
    File(PathBuf),
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// Connections to one server as one user.
pub struct HttpsTransport {
    http: RwLock<HttpClient<Connector, Full<Bytes>>>,
    /// Whether the client certificate may be another one by now than that of the connections that are kept.
    renews: bool,
    connector: Connector,
    /// For streams that are upgraded, which HTTP/2 cannot do.
    upgrade_connector: Connector,
    scheme: &'static str,
    /// A path before the API's paths, without a slash at its end.
    prefix: String,
    tokens: Option<Tokens>,
    /// The longest answer that is read, but for streams.
    max_answer: usize,
}

impl HttpsTransport {
    /// Reads what the configuration names; connects at the first request.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let uri: Uri = config.server.parse().map_err(|e| bad(format!("server {:?}: {e}", config.server)))?;
        let host = uri.host().ok_or_else(|| bad(format!("server {:?} names no host", config.server)))?;
        let (scheme, default_port) = match uri.scheme_str() {
            Some("https") => ("https", 443),
            Some("http") => ("http", 80),
            _ => return Err(bad(format!("server {:?} is neither https:// nor http://", config.server))),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(default_port);
        let target = Target { host, port };
        let (connector, upgrade_connector) = if scheme == "https" {
            let name = config.tls_server_name.clone().unwrap_or_else(|| target.host.clone());
            let name = ServerName::try_from(name).map_err(|e| bad(format!("server name: {e}")))?;
            let tls = |protocols: &[&[u8]]| {
                let mut tls = tls_config(config)?;
                tls.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
                let connector = TlsConnector::from(Arc::new(tls));
                Ok::<_, Error>(Connector { target: target.clone(), tls: Some((connector, name.clone())) })
            };
            (tls(&[b"h2", b"http/1.1"])?, tls(&[b"http/1.1"])?)
        } else {
            let plain = Connector { target, tls: None };
            (plain.clone(), plain)
        };
        Ok(HttpsTransport {
            http: RwLock::new(http_client(connector.clone())),
            renews: matches!(config.identity, Some(Identity::Files { .. })),
            connector,
            upgrade_connector,
            scheme,
            prefix: uri.path().trim_end_matches('/').to_owned(),
            tokens: config.token.clone().map(Tokens::new),
            max_answer: usize::MAX,
        })
    }

    /// Reads no answer that is longer: for servers whose answers are short when all is well.
    pub fn at_most(self, max_answer: usize) -> Self {
        HttpsTransport { max_answer, ..self }
    }

    /// A connection of its own that speaks HTTP/1.1 to the server: for exec, attach and port-forward, which
    /// upgrade it. The caller sends what [`prepare`](Self::prepare) made of its request.
    pub async fn connect(&self) -> Result<Stream, Error> {
        let stream = self.upgrade_connector.clone().connect().await;
        stream.map_err(|e| Error::Transport(e.into()))
    }

    /// What was shown is believed no more: the next request shows what is there now. A certificate counts for the
    /// whole life of a connection, so those that are kept are given up.
    fn refused(&self) {
        if let Some(tokens) = &self.tokens {
            tokens.forget();
        }
        if self.renews {
            *self.http.write().unwrap_or_else(PoisonError::into_inner) = http_client(self.connector.clone());
        }
    }

    /// Gives a request whose URI is a path the server's address and the user's token.
    pub fn prepare<B>(&self, request: &mut Request<B>) -> Result<(), Error> {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        // What lies at the root is at the server's own path, which has no slash at its end.
        let at_root = |rest: &&str| !self.prefix.is_empty() && (rest.is_empty() || rest.starts_with('?'));
        let path = path.strip_prefix('/').filter(at_root).unwrap_or(path);
        let authority = self.connector.target.authority();
        let uri = format!("{}://{authority}{}{path}", self.scheme, self.prefix);
        *request.uri_mut() = uri.parse().map_err(|e| bad(format!("cannot form a request: {e}")))?;
        if let Some(tokens) = &self.tokens {
            request.headers_mut().insert(header::AUTHORIZATION, tokens.header()?);
        }
        Ok(())
    }
}

fn http_client(connector: Connector) -> HttpClient<Connector, Full<Bytes>> {
    HttpClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(90))
        .http2_keep_alive_interval(PING_AFTER)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_initial_stream_window_size(1 << 20)
        .http2_initial_connection_window_size(16 << 20)
        .build(connector)
}

#[async_trait]
impl Transport for HttpsTransport {
    async fn send(&self, mut request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let streams = is_stream(request.uri());
        self.prepare(&mut request)?;
        let http = self.http.read().unwrap_or_else(PoisonError::into_inner).clone();
        let response = http.request(request.map(Full::new)).await.map_err(|e| Error::Transport(e.into()))?;
        if response.status() == http::StatusCode::UNAUTHORIZED {
            self.refused();
        }
        let (parts, body) = response.into_parts();
        let body = if streams && parts.status.is_success() {
            let chunks = BodyStream::new(body).filter_map(|frame| async {
                match frame {
                    Ok(frame) => frame.into_data().ok().map(Ok),
                    Err(error) => Some(Err(Error::Transport(error.into()))),
                }
            });
            Body::Stream(Box::pin(chunks))
        } else {
            Body::Full(
                Limited::new(body, self.max_answer).collect().await.map_err(Error::Transport)?.to_bytes(),
            )
        };
        Ok(Response::from_parts(parts, body))
    }
}

/// Whether the answer may go on for ever.
fn is_stream(uri: &Uri) -> bool {
    let mut pairs = uri.query().unwrap_or_default().split('&');
    pairs.any(|pair| matches!(pair, "watch=true" | "watch=1" | "follow=true" | "follow=1"))
}

fn bad(message: String) -> Error {
    Error::Config(message)
}

/// The user's token as a header, read again when it is old.
pub struct Tokens {
    source: Token,
    cached: Mutex<Option<(HeaderValue, Instant)>>,
}

impl Tokens {
    pub fn new(source: Token) -> Self {
        Tokens { source, cached: Mutex::new(None) }
    }

    pub fn header(&self) -> Result<HeaderValue, Error> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((header, at)) = &*cached
            && at.elapsed() < TOKEN_LIFE
        {
            return Ok(header.clone());
        }
        let read = match &self.source {
            Token::Text(text) => Ok(text.clone()),
            Token::File(path) => {
                std::fs::read_to_string(path).map_err(|e| bad(format!("token file {}: {e}", path.display())))
            }
        };
        let text = match (read, &*cached) {
            (Ok(text), _) => text,
            // A file in the midst of being replaced: the old token is likely still good.
            (Err(_), Some((header, _))) => return Ok(header.clone()),
            (Err(error), None) => return Err(error),
        };
        let mut header = HeaderValue::try_from(format!("Bearer {}", text.trim()))
            .map_err(|_| bad("the bearer token holds characters that no token has".into()))?;
        header.set_sensitive(true);
        *cached = Some((header.clone(), Instant::now()));
        Ok(header)
    }

    fn forget(&self) {
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The beginning of a TLS client that believes these.
pub fn trusting(
    trust: &Trust,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(format!("TLS: {e}")))?;
    Ok(match trust {
        Trust::Anyone => {
            builder.dangerous().with_custom_certificate_verifier(tls::believer(provider, tls::anyone))
        }
        Trust::Roots(pem) => builder.with_root_certificates(roots(pem)?),
        Trust::System => {
            let pem = std::fs::read(SYSTEM_ROOTS).map_err(|e| bad(format!("{SYSTEM_ROOTS}: {e}")))?;
            builder.with_root_certificates(roots(&pem)?)
        }
    })
}

/// TLS as a configuration asks for it, without ALPN: for callers that keep connections of their own.
pub fn tls_config(config: &Config) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = trusting(&config.trust)?;
    Ok(match config.identity.clone() {
        None => builder.with_no_client_auth(),
        Some(source) => {
            let first = Arc::new(certified_key(&source, &provider)?);
            builder.with_client_cert_resolver(Arc::new(ClientIdentity {
                source,
                provider,
                last: Mutex::new(first),
            }))
        }
    })
}

fn roots(pem: &[u8]) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    store.add_parsable_certificates(certificates.map_err(|e| bad(format!("certificate authority: {e}")))?);
    if store.is_empty() {
        return Err(bad("certificate authority: no certificate found".into()));
    }
    Ok(store)
}

fn certified_key(identity: &Identity, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|e| bad(format!("{}: {e}", path.display())));
    let (certificate, key) = match identity {
        Identity::Pem { certificate, key } => (certificate.clone(), key.clone()),
        Identity::Files { certificate, key } => (read(certificate)?, read(key)?),
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate).collect();
    let chain = chain.map_err(|e| bad(format!("client certificate: {e}")))?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| bad(format!("client key: {e}")))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|e| bad(format!("client certificate: {e}")))
}

/// A client certificate that is read again for every handshake when it lies in files.
struct ClientIdentity {
    source: Identity,
    provider: Arc<CryptoProvider>,
    last: Mutex<Arc<CertifiedKey>>,
}

impl std::fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientIdentity")
    }
}

impl ResolvesClientCert for ClientIdentity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(self.source, Identity::Files { .. }) {
            match certified_key(&self.source, &self.provider) {
                Ok(fresh) => *last = Arc::new(fresh),
                Err(error) => tracing::warn!(%error, "the client certificate cannot be read again"),
            }
        }
        Some(last.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[derive(Clone)]
struct Target {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
}

impl Target {
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Opens connections to the one server, whatever the URI says.
#[derive(Clone)]
struct Connector {
    target: Target,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Connector {
    async fn connect(self) -> io::Result<Stream> {
        let connecting = async {
            let tcp = TcpStream::connect((self.target.host.as_str(), self.target.port)).await?;
            tcp.set_nodelay(true)?;
            Ok(match self.tls {
                Some((connector, name)) => Stream::Tls(Box::new(connector.connect(name, tcp).await?)),
                None => Stream::Plain(tcp),
            })
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "timed out while connecting")))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_told_by_their_query() {
        for (uri, expected) in [
            ("/api/v1/pods", false),
            ("/api/v1/pods?limit=500", false),
            ("/api/v1/pods?limit=5&watch=true", true),
            ("/api/v1/namespaces/a/pods/b/log?follow=true", true),
        ] {
            assert_eq!(is_stream(&uri.parse().unwrap()), expected, "{uri}");
        }
    }

    #[test]
    fn a_wrong_server_is_refused() {
        for server in ["", "ftp://host", "/path", "https://"] {
            let config = Config { server: server.into(), trust: Trust::Anyone, ..Default::default() };
            assert!(HttpsTransport::new(&config).is_err(), "{server}");
        }
    }

    #[test]
    fn a_request_gets_address_prefix_and_token() {
        let config = Config {
            server: "https://[::1]:6443/prefix/".into(),
            trust: Trust::Anyone,
            token: Some(Token::Text(" secret\n".into())),
            ..Default::default()
        };
        let transport = HttpsTransport::new(&config).unwrap();
        let mut request = Request::get("/api/v1/pods?limit=5").body(()).unwrap();
        transport.prepare(&mut request).unwrap();
        assert_eq!(request.uri().to_string(), "https://[::1]:6443/prefix/api/v1/pods?limit=5");
        assert_eq!(request.headers()[header::AUTHORIZATION], "Bearer secret");
        let mut request = Request::post("/?timeout=5s").body(()).unwrap();
        transport.prepare(&mut request).unwrap();
        assert_eq!(request.uri().to_string(), "https://[::1]:6443/prefix?timeout=5s");
    }

    #[tokio::test]
    async fn a_plain_server_answers_in_full_and_in_streams() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let answers = tokio::spawn(async move {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut seen = Vec::new();
                while !seen.ends_with(b"\r\n\r\n") {
                    seen.push(stream.read_u8().await.unwrap());
                }
                let answer = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let transport = HttpsTransport::new(&Config { server, ..Default::default() }).unwrap();
        let full = transport.send(Request::get("/version").body(Bytes::new()).unwrap()).await.unwrap();
        assert!(matches!(full.into_body(), Body::Full(b) if &b[..] == b"{}"));
        let stream = transport.send(Request::get("/x?watch=true").body(Bytes::new()).unwrap()).await.unwrap();
        let Body::Stream(mut chunks) = stream.into_body() else { panic!("a watch is a stream") };
        assert_eq!(&chunks.next().await.unwrap().unwrap()[..], b"{}");
        answers.await.unwrap();
    }
}
