//! Connections: TLS, HTTP/1.1 and HTTP/2, one task each; and the way for parts in the same process.
//!
//! What always holds: nobody's silence costs others anything. Handshakes, headers and bodies have a time; a
//! connection that asks nothing makes room for others ([`strangers`]); a peer that does not read is given up
//! ([`wire`]).

mod strangers;
mod wire;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use http::Request;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use crate::body::{Body, BoxError, Response};
use crate::handle::{ApiServer, Peer, RequestBody};
use crate::seams::UserInfo;
use strangers::{Stranger, Strangers};
use wire::Wire;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(32);
const MAX_CONNECTIONS: usize = 16_384;
/// Upstream: apiserver/pkg/server/secure_serving.go
const MAX_STREAMS: u32 = 250;
/// How much of one answer may wait for a peer to take it.
const SEND_BUFFER: usize = 256 << 10;
/// A peer is asked so often whether it is still there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long open requests may take after the shutdown began.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the TLS configuration cannot be used")]
    Tls(#[from] rustls::Error),
    #[error("the client certificate authorities cannot be used")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("connections cannot be accepted")]
    Accept(#[source] std::io::Error),
}

/// TLS for the API: client certificates are optional, and must be of these authorities when shown.
pub fn tls_config(
    certificate: Arc<dyn ResolvesServerCert>,
    client_authorities: &[CertificateDer<'static>],
) -> Result<Arc<rustls::ServerConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = if client_authorities.is_empty() {
        builder.with_no_client_auth()
    } else {
        let mut roots = rustls::RootCertStore::empty();
        for authority in client_authorities {
            roots.add(authority.clone())?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
    };
    let mut config = builder.with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What answers the requests of a connection.
trait Answers<F>: Service<Request<Incoming>, Response = Response, Error = Infallible, Future = F> {}

impl<F, S: Service<Request<Incoming>, Response = Response, Error = Infallible, Future = F>> Answers<F> for S {}

impl ApiServer {
    /// Serves connections until the shutdown; then lets open requests end.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
    ) -> Result<(), Error> {
        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let strangers = Strangers::default();
        let connections = TaskTracker::new();
        loop {
            let slot = tokio::select! {
                () = self.shutdown.cancelled() => break,
                slot = slots.clone().acquire_owned() => slot,
            };
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_transient(&error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
                Err(error) => return Err(Error::Accept(error)),
            };
            let (server, acceptor) = (self.clone(), acceptor.clone());
            let stranger = strangers.admit();
            connections.spawn(async move {
                let _slot = slot;
                tokio::select! {
                    () = stranger.dismissed.cancelled() => {}
                    () = server.connection(stream, address, acceptor, &stranger) => {}
                }
            });
        }
        connections.close();
        self.tasks.close();
        let drained = async {
            connections.wait().await;
            self.tasks.wait().await;
        };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::warn!("open requests did not end in time");
        }
        Ok(())
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        address: std::net::SocketAddr,
        acceptor: tokio_rustls::TlsAcceptor,
        stranger: &Stranger,
    ) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, %address, "a connection ended");
            return;
        }
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, %address, "the TLS handshake failed");
                return;
            }
            Err(_) => return,
        };
        let certificates: Arc<[CertificateDer<'static>]> = {
            let (_, session) = stream.get_ref();
            session.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect()
        };
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let service = service_fn(|request: Request<Incoming>| {
            stranger.introduce();
            let server = self.clone();
            let peer = Peer::Remote { certificates: certificates.clone(), address };
            async move { Ok::<_, Infallible>(server.handle(request.map(RequestBody::Incoming), peer).await) }
        });
        let result = match is_http2 {
            true => self.http2(stream, service).await,
            false => self.http1(stream, service).await,
        };
        if let Err(error) = result {
            tracing::debug!(error, %address, "a connection ended");
        }
    }

    async fn http2<F>(&self, stream: TlsStream<TcpStream>, service: impl Answers<F>) -> Result<(), BoxError>
    where
        F: Future<Output = Result<Response, Infallible>> + Send + 'static,
    {
        let wire = Wire::gathering(stream);
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(Some(KEEP_ALIVE_INTERVAL))
            .serve_connection(TokioIo::new(wire.clone()), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            result = wire.drive(connection.as_mut()) => result,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                wire.drive(connection).await
            }
        }
    }

    async fn http1<F>(&self, stream: TlsStream<TcpStream>, service: impl Answers<F>) -> Result<(), BoxError>
    where
        F: Future<Output = Result<Response, Infallible>> + Send + 'static,
    {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(Wire::direct(stream)), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => result?,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await?;
            }
        }
        Ok(())
    }

    /// The way to this server for parts in the same process, as this user: the same line, less TLS and
    /// authentication.
    pub fn in_process(self: &Arc<Self>, user: UserInfo) -> Arc<dyn client::Transport> {
        Arc::new(InProcess { server: self.clone(), user })
    }
}

/// Too many open files and connections that were gone before they were accepted pass.
fn is_transient(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    let passing = [
        ErrorKind::ConnectionAborted,
        ErrorKind::ConnectionReset,
        ErrorKind::Interrupted,
        ErrorKind::WouldBlock,
    ];
    passing.contains(&error.kind()) || matches!(error.raw_os_error(), Some(23 | 24))
}

struct InProcess {
    server: Arc<ApiServer>,
    user: UserInfo,
}

#[async_trait]
impl client::Transport for InProcess {
    async fn send(&self, request: Request<Bytes>) -> Result<http::Response<client::Body>, client::Error> {
        let request = request.map(RequestBody::Ready);
        let response = self.server.handle(request, Peer::Local(self.user.clone())).await;
        let (parts, body) = response.into_parts();
        let body = match body {
            Body::Full(bytes) => client::Body::Full(bytes),
            Body::Blocks { .. } => {
                let all = body.collect().await.map_err(client::Error::Transport)?;
                client::Body::Full(all.to_bytes())
            }
            Body::Stream(stream) => {
                client::Body::Stream(Box::pin(stream.map(|block| block.map_err(client::Error::Transport))))
            }
        };
        Ok(http::Response::from_parts(parts, body))
    }
}
