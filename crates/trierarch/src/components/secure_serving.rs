//! The small HTTPS server of controllers and scheduler: health for everybody, metrics for whom the API server
//! lets.
//!
//! Upstream: cmd/kube-controller-manager/app/controllermanager.go, apiserver/pkg/server/options/serving.go

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use client::Client;
use client::delegated::{Asked, Delegated, User};
use client::kubeconfig::Kubeconfig;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::client_of;
use crate::certificates::{self, Current, Files, read};
use crate::host;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 128;

/// Where the part answers health checks and scrapers, and whom.
#[derive(Args, Clone)]
pub struct SecureServing {
    /// The address to serve health and metrics at
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// The port to serve health and metrics at; 0 for not at all
    /// [default: 10257 for the controllers, 10259 for the scheduler]
    #[arg(long, value_name = "PORT")]
    secure_port: Option<u16>,
    /// The certificate to show [default: one that nobody vouches for]
    #[arg(long, value_name = "FILE")]
    tls_cert_file: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, value_name = "FILE")]
    tls_private_key_file: Option<PathBuf>,
    /// The authorities of callers' certificates [default: those of the kubeconfig]
    #[arg(long, value_name = "FILE")]
    client_ca_file: Option<PathBuf>,
    /// The kubeconfig to ask by who a caller is [default: --kubeconfig]
    #[arg(long, value_name = "FILE")]
    authentication_kubeconfig: Option<PathBuf>,
    /// The kubeconfig to ask by what a caller may [default: --kubeconfig]
    #[arg(long, value_name = "FILE")]
    authorization_kubeconfig: Option<PathBuf>,
    /// Paths that everybody may see
    #[arg(long, value_name = "PATHS", value_delimiter = ',', default_value = "/healthz,/readyz,/livez")]
    authorization_always_allow_paths: Vec<String>,
}

/// A server at work.
pub struct Serving(Option<JoinHandle<()>>);

impl Serving {
    pub async fn stopped(self) {
        if let Some(task) = self.0 {
            // It is awaited so that its port is free; a panic in it was told already.
            let _ = task.await;
        }
    }
}

/// What a request is judged by.
struct Server {
    authentication: Delegated,
    authorization: Delegated,
    open_paths: Vec<String>,
    metrics: Box<dyn Fn() -> String + Send + Sync>,
}

impl SecureServing {
    /// Takes the port, upstream's unless told otherwise, and serves until the shutdown. `metrics` tells of the part
    /// besides its process.
    pub async fn start(
        &self,
        (component, usual_port): (&str, u16),
        kubeconfig: &Path,
        metrics: impl Fn() -> String + Send + Sync + 'static,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Serving> {
        let port = self.secure_port.unwrap_or(usual_port);
        if port == 0 {
            return Ok(Serving(None));
        }
        let delegated = |given: &Option<PathBuf>| {
            let client: Client = client_of(given.as_deref().unwrap_or(kubeconfig), component)?;
            anyhow::Ok(Delegated::new(client))
        };
        let server = Server {
            authentication: delegated(&self.authentication_kubeconfig)?,
            authorization: delegated(&self.authorization_kubeconfig)?,
            open_paths: self.authorization_always_allow_paths.clone(),
            metrics: Box::new(metrics),
        };
        let tls = self.tls(kubeconfig)?;
        let address = SocketAddr::new(self.bind_address, port);
        let listener = host::listen(address).await?;
        Ok(Serving(Some(tokio::spawn(serve(Arc::new(server), listener, tls, shutdown)))))
    }

    fn tls(&self, kubeconfig: &Path) -> anyhow::Result<TlsAcceptor> {
        let flags = ["--tls-cert-file", "--tls-private-key-file"];
        let given = Files::of_flags(flags, self.tls_cert_file.clone(), self.tls_private_key_file.clone())?;
        let certificate = match given {
            Some(files) => Current::of_files(files)?,
            None => Current::new(&certificates::self_signed(vec!["localhost".into(), host::hostname()?])?)?,
        };
        let authority = match &self.client_ca_file {
            Some(path) => Some(read(path)?),
            None => match Kubeconfig::read(kubeconfig)?.config(None)?.trust {
                client::https::Trust::Roots(pem) => Some(String::from_utf8(pem)?),
                _ => None,
            },
        };
        let mut roots = rustls::RootCertStore::empty();
        for certificate in authority.as_deref().map(certificates::chain).transpose()?.unwrap_or_default() {
            roots.add(certificate)?;
        }
        let builder = rustls::ServerConfig::builder();
        let builder = if roots.is_empty() {
            builder.with_no_client_auth()
        } else {
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build()?;
            builder.with_client_cert_verifier(verifier)
        };
        let mut config = builder.with_cert_resolver(certificate);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

async fn serve(server: Arc<Server>, listener: TcpListener, tls: TlsAcceptor, shutdown: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(connection(server.clone(), tls.clone(), stream));
            }
        }
    }
    connections.shutdown().await;
}

async fn connection(server: Arc<Server>, tls: TlsAcceptor, stream: TcpStream) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await else { return };
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let user = shown.and_then(|certificate| User::of_certificate(certificate));
    let handle = |request: Request<Incoming>| {
        let (server, user) = (server.clone(), user.clone());
        async move { Ok::<_, Infallible>(server.answer(request, user).await) }
    };
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service_fn(handle));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended");
    }
}

fn anonymous() -> User {
    let groups = vec!["system:unauthenticated".to_owned()];
    User { name: "system:anonymous".to_owned(), groups, ..User::default() }
}

pub(super) fn text(code: StatusCode, words: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(words.to_owned())));
    *response.status_mut() = code;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

impl Server {
    async fn answer(&self, request: Request<Incoming>, user: Option<User>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !self.open_paths.iter().any(|open| open == path) {
            match self.allows(&request, user).await {
                Ok(None) => {}
                Ok(Some(refusal)) => return refusal,
                Err(error) => {
                    tracing::warn!("a caller cannot be judged: {error:#}");
                    return text(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error\n");
                }
            }
        }
        match path {
            "/healthz" | "/livez" | "/readyz" => text(StatusCode::OK, "ok"),
            "/metrics" => text(StatusCode::OK, &(process_metrics() + &(self.metrics)())),
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }

    /// `None` when the caller may.
    async fn allows(
        &self,
        request: &Request<Incoming>,
        user: Option<User>,
    ) -> anyhow::Result<Option<Response<Full<Bytes>>>> {
        let token = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = token.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
        let user = match (user, token) {
            (Some(user), _) => user,
            (None, Some(token)) => match self.authentication.authenticate(token).await? {
                Some(user) => user,
                None => return Ok(Some(text(StatusCode::UNAUTHORIZED, "Unauthorized\n"))),
            },
            (None, None) => anonymous(),
        };
        let verb = if request.method() == Method::GET { "get" } else { "post" };
        let path = request.uri().path();
        if self.authorization.authorize(&user, &Asked::Path { verb, path }).await? {
            return Ok(None);
        }
        let words = format!("Forbidden: \"{path}\": User \"{}\" cannot {verb} path \"{path}\"\n", user.name);
        Ok(Some(text(StatusCode::FORBIDDEN, &words)))
    }
}

/// What every Prometheus client tells of its process.
pub(super) fn process_metrics() -> String {
    let read = || -> anyhow::Result<String> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let fields: Vec<&str> = stat.rsplit(')').next().context("a name in brackets")?.split(' ').collect();
        let number =
            |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        let ticks = rustix::param::clock_ticks_per_second().max(1) as f64;
        let processor = (number(12) + number(13)) as f64 / ticks;
        let resident = number(22) * rustix::param::page_size() as u64;
        let open = std::fs::read_dir("/proc/self/fd")?.count();
        Ok(format!(
            "# HELP process_cpu_seconds_total Total user and system CPU time spent in seconds.\n\
             # TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total {processor}\n\
             # HELP process_open_fds Number of open file descriptors.\n\
             # TYPE process_open_fds gauge\nprocess_open_fds {open}\n\
             # HELP process_resident_memory_bytes Resident memory size in bytes.\n\
             # TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {resident}\n"
        ))
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_of_itself() {
        let metrics = process_metrics();
        let value = |name: &str| {
            let line = metrics.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6, "{metrics}");
        assert!(value("process_open_fds") >= 3.0, "{metrics}");
    }
}
