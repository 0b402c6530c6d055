//! The container engine behind CRI: images, snapshots, sandboxes, shim, logs, streaming.
//!
//! Start at [`run`], which serves CRI v1 on a unix socket; `service` translates its calls into those of
//! `engine`, where the sandboxes and containers live. Below that: [`images`] keeps what containers are made of,
//! `runtime` describes one to the OCI runtime, [`shim`] is the process per pod that holds them, `network` runs
//! CNI plugins, `streaming` carries exec, attach and port-forward, [`cli`] is for `trierarch image`.
//!
//! What always holds: the engine can be killed at any instant; containers go on, their exit codes are kept, and
//! the next engine adopts the shims it finds. Whoever waits, waits on a file descriptor or a channel, never on a
//! clock. Files of images and containers are a stranger's and are only reached beneath their root. There are
//! deliberately no checkpoints and no Windows here, and what CRI has of them answers so.

mod config;
mod engine;
pub mod images;
mod network;
mod runtime;
mod service;
pub mod shim;
mod stats;
mod streaming;

pub mod cli;

pub use config::{Clock, CniConfig, Config};
pub use engine::reset;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use cri::streams;
use cri::v1::image_service_server::ImageServiceServer;
use cri::v1::runtime_service_server::RuntimeServiceServer;

/// What stops an engine or fails one of its calls.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("another container engine answers at {}", .0.display())]
    Occupied(PathBuf),
    #[error("{0}")]
    Invalid(String),
    #[error("{kind} {id:?} not found")]
    NotFound { kind: &'static str, id: String },
    #[error("{0}")]
    Conflict(String),
    #[error("{what}")]
    Kernel { what: &'static str, source: linux::Error },
    #[error("failed to start container {id:?}: {why}")]
    Start { id: String, why: String },
    #[error("failed to exec in container: {0}")]
    Exec(String),
    #[error("{what}: {message}")]
    Shim { what: &'static str, message: String },
    #[error("network plugin {plugin}: {message}")]
    Network { plugin: String, message: String },
    #[error(transparent)]
    Image(#[from] images::Error),
    #[error("deadline exceeded: {0}")]
    Deadline(String),
    #[error("serve CRI")]
    Serve(#[source] tonic::transport::Error),
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { path, source }
    }

    pub(crate) fn kernel(what: &'static str) -> impl FnOnce(linux::Error) -> Self {
        move |source| Error::Kernel { what, source }
    }
}

/// Serves CRI on `config.socket` until `shutdown`. Containers run on afterwards, in the care of their shims.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let socket = config.socket.clone();
    let listener = listen(&socket).await?;
    let streams = streaming::Server::bind().await?;
    let engine = engine::Engine::open(config, streams.tickets(), shutdown.clone()).await?;
    let import = cli::serve_imports(engine.clone(), shutdown.clone())?;
    let streaming = tokio::spawn(streams.run(engine.clone(), shutdown.clone()));
    let served = tonic::transport::Server::builder()
        .add_routes(routes(&engine))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.clone().cancelled_owned())
        .await;
    shutdown.cancel();
    for task in [streaming, import] {
        if let Err(error) = task.await {
            tracing::error!(%error, "a server of the engine ended badly");
        }
    }
    engine.close().await;
    let _ = std::fs::remove_file(&socket);
    served.map_err(Error::Serve)
}

/// CRI's two services, each made of its calls and of those that stream.
fn routes(engine: &SharedEngine) -> Routes {
    let runtime = RuntimeServiceServer::new(service::Runtime::new(engine.clone()))
        .max_decoding_message_size(cri::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(cri::MAX_MESSAGE_BYTES);
    let image = ImageServiceServer::new(service::Image::new(engine.clone()))
        .max_decoding_message_size(cri::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(cri::MAX_MESSAGE_BYTES);
    let mut router = Routes::new(runtime).add_service(image).into_axum_router();
    let streams =
        streams::runtime_service_server::RuntimeServiceServer::new(service::Runtime::new(engine.clone()));
    for call in ["PodSandboxes", "Containers", "ContainerStats", "PodSandboxStats"] {
        router = router.route_service(&format!("/runtime.v1.RuntimeService/Stream{call}"), streams.clone());
    }
    let images = streams::image_service_server::ImageServiceServer::new(service::Image::new(engine.clone()));
    router.route_service("/runtime.v1.ImageService/StreamImages", images).into()
}

/// Listens at a socket of mode 0600, taking over one that a killed engine left.
async fn listen(socket: &std::path::Path) -> Result<UnixListener, Error> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(dir) = socket.parent() {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    }
    if tokio::net::UnixStream::connect(socket).await.is_ok() {
        return Err(Error::Occupied(socket.to_path_buf()));
    }
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io(socket)(e)),
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(Error::io(socket))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map_err(Error::io(socket))?;
    Ok(listener)
}

/// Shares the engine among its servers.
pub(crate) type SharedEngine = Arc<engine::Engine>;
