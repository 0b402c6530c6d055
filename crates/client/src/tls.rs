//! What every connection to a peer needs, whoever opens it: [`Stream`], with or without TLS, and a [`Believer`]
//! for peers whom no certificate authority that we know has named.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::{Connected, Connection};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A connection to a peer.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Stream {
    fn io(self: Pin<&mut Self>) -> Pin<&mut dyn Io> {
        let io: &mut dyn Io = match self.get_mut() {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => &mut **stream,
        };
        Pin::new(io)
    }
}

trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Stream::Tls(tls) if tls.get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            _ => Connected::new(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
}

/// What a server shows in a handshake.
pub struct Shown<'a> {
    pub end_entity: &'a CertificateDer<'a>,
    pub intermediates: &'a [CertificateDer<'a>],
    pub name: &'a ServerName<'a>,
    pub ocsp_response: &'a [u8],
    pub now: UnixTime,
}

type Believe = dyn Fn(Shown<'_>) -> Result<ServerCertVerified, rustls::Error> + Send + Sync;

/// Checks that the peer holds the key of the certificate that it shows, and lets a function say whether that
/// certificate is believed.
struct Believer {
    believe: Box<Believe>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Believer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Believer")
    }
}

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        (self.believe)(Shown { end_entity, intermediates, name, ocsp_response, now })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A client that believes what `believe` believes, and shows no certificate of its own.
pub fn believing(
    believe: impl Fn(Shown<'_>) -> Result<ServerCertVerified, rustls::Error> + Send + Sync + 'static,
) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring has the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(believer(provider, believe))
        .with_no_client_auth();
    Arc::new(config)
}

/// The verifier of [`believing`], for a configuration with more to it.
pub(crate) fn believer(
    provider: Arc<CryptoProvider>,
    believe: impl Fn(Shown<'_>) -> Result<ServerCertVerified, rustls::Error> + Send + Sync + 'static,
) -> Arc<dyn ServerCertVerifier> {
    Arc::new(Believer { believe: Box::new(believe), provider })
}

/// `insecure-skip-tls-verify`: the handshake's signatures are checked, whose they are is not.
pub(crate) fn anyone(_: Shown<'_>) -> Result<ServerCertVerified, rustls::Error> {
    Ok(ServerCertVerified::assertion())
}

/// A client that takes every certificate: for peers whose names nobody certifies, as probed and proxied pods.
///
/// Upstream: pkg/probe/http/http.go, pkg/registry/core/pod/rest/subresources.go check none there either
pub fn unverified() -> Arc<ClientConfig> {
    believing(anyone)
}
