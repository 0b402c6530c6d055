//! An HTTPS server on this machine that answers JSON with JSON: a webhook, or whoever else reviews.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A code and a body; without them the request is never answered.
pub type Answer = Option<(u16, Value)>;

type Answering = dyn Fn(&Parts, Value) -> Answer + Send + Sync;

pub struct JsonServer {
    pub address: SocketAddr,
    /// As PEM.
    pub certificate: String,
}

impl JsonServer {
    /// Serves until the runtime ends.
    pub async fn start(answer: impl Fn(&Parts, Value) -> Answer + Send + Sync + 'static) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer: Arc<Answering> = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(acceptor.clone(), stream, answer.clone()));
            }
        });
        JsonServer { address, certificate: made.cert.pem() }
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, answer: Arc<Answering>) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = hyper::service::service_fn(|request: http::Request<Incoming>| {
        let answer = answer.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let Some((code, body)) = answer(&parts, serde_json::from_slice(&body).unwrap()) else {
                return std::future::pending().await;
            };
            let body = Full::new(Bytes::from(body.to_string()));
            Ok::<_, Infallible>(http::Response::builder().status(code).body(body).unwrap())
        }
    });
    let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    // A client that goes away is no failure.
    http.serve_connection(TokioIo::new(stream), service).await.ok();
}
