//! What `trierarch image` calls: images by CRI, and imports over a socket beside CRI's, for CRI has no import.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cri::v1;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::engine::blocking;
use crate::{Error, SharedEngine};

/// A request of the import socket is one line: the path of an archive, as this machine knows it.
const MAX_LINE: u64 = 8 * 1024;

/// What a command of `trierarch image` failed with, worded for people.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Connect(#[from] cri::Error),
    #[error("{}", .0.message())]
    Refused(#[from] tonic::Status),
    #[error("{0}")]
    Import(String),
    #[error("{}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// An image as `trierarch image list` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub id: String,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
    pub size: u64,
}

/// Imports an archive and returns the names of its images. `socket` is CRI's; the engine reads the file itself.
pub async fn import(socket: &Path, archive: &Path) -> Result<Vec<String>, CliError> {
    let archive =
        std::path::absolute(archive).map_err(|source| CliError::Io { path: archive.into(), source })?;
    let socket = socket.with_extension("import.sock");
    let wrong = |source| CliError::Io { path: socket.clone(), source };
    let mut stream = UnixStream::connect(&socket).await.map_err(wrong)?;
    stream.write_all(format!("{}\n", archive.display()).as_bytes()).await.map_err(wrong)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(wrong)?;
    let answer: Result<Vec<String>, String> =
        serde_json::from_str(&answer).map_err(|e| CliError::Import(format!("the engine's answer: {e}")))?;
    answer.map_err(CliError::Import)
}

/// The annotation of an image to pull that its registry speaks HTTP without TLS.
pub(crate) const PLAIN_HTTP: &str = "trierarch.io/plain-http";

/// Pulls an image and returns its id.
pub async fn pull(
    socket: &Path,
    image: &str,
    auth: Option<v1::AuthConfig>,
    plain_http: bool,
) -> Result<String, CliError> {
    let mut clients = cri::clients(&socket.display().to_string()).await?;
    let annotations = plain_http.then(|| (PLAIN_HTTP.to_owned(), "true".to_owned())).into_iter().collect();
    let image = Some(v1::ImageSpec { image: image.to_owned(), annotations, ..Default::default() });
    let request = v1::PullImageRequest { image, auth, sandbox_config: None };
    Ok(clients.image.pull_image(request).await?.into_inner().image_ref)
}

/// Lists the images.
pub async fn list(socket: &Path) -> Result<Vec<Listed>, CliError> {
    let mut clients = cri::clients(&socket.display().to_string()).await?;
    let images = clients.image.list_images(v1::ListImagesRequest::default()).await?.into_inner().images;
    let listed = |image: v1::Image| Listed {
        id: image.id,
        tags: image.repo_tags,
        digests: image.repo_digests,
        size: image.size,
    };
    Ok(images.into_iter().map(listed).collect())
}

/// Removes an image; one that is not there is an error here, for a person may have mistyped it.
pub async fn remove(socket: &Path, image: &str) -> Result<(), CliError> {
    let mut clients = cri::clients(&socket.display().to_string()).await?;
    let spec = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
    let status = v1::ImageStatusRequest { image: spec.clone(), verbose: false };
    if clients.image.image_status(status).await?.into_inner().image.is_none() {
        return Err(CliError::Import(format!("image {:?} not found", crate::network::shown(image))));
    }
    clients.image.remove_image(v1::RemoveImageRequest { image: spec }).await?;
    Ok(())
}

/// Serves the import socket until the engine ends.
pub(crate) fn serve_imports(
    engine: SharedEngine,
    shutdown: CancellationToken,
) -> Result<JoinHandle<()>, Error> {
    let socket = engine.config.import_socket();
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(Error::io(&socket))?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).map_err(Error::io(&socket))?;
    Ok(tokio::spawn(async move {
        let mut imports = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = imports.join_next() => {}
                accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                    let engine = engine.clone();
                    imports.spawn(async move { answer(engine, stream).await });
                },
            }
        }
        // An import that is cut short leaves only temporary files.
        imports.shutdown().await;
        let _ = std::fs::remove_file(&socket);
    }))
}

async fn answer(engine: SharedEngine, stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    if BufReader::new(read.take(MAX_LINE)).read_line(&mut line).await.is_err() {
        return;
    }
    let path = PathBuf::from(line.trim_end_matches('\n'));
    let images = engine.images.clone();
    let done = blocking(move || {
        let file = std::fs::File::open(&path).map_err(Error::io(&path))?;
        let names = images.import(Box::new(file) as Box<dyn Read + Send>)?;
        for name in &names {
            // Unpacked now, so that the first container does not wait for it.
            images.layers(name)?;
        }
        Ok(names)
    })
    .await;
    let done: Result<Vec<String>, String> = done.map_err(|e| crate::service::status(e).message().to_owned());
    if let Ok(text) = serde_json::to_vec(&done) {
        // Whoever asked may have left.
        let _ = write.write_all(&text).await;
    }
}
