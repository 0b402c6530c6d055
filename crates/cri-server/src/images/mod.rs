//! Images: pulled or imported, kept as an OCI layout, unpacked once a layer, and built for demos and tests.
//!
//! Start with [`Store`]. What always holds: a blob is stored under the digest of its bytes and nothing else; a
//! name in the index leads to a manifest, a configuration and layers that are all there; a layer directory is
//! whole or absent. An unpacked layer is only trusted during the boot in which it was unpacked: a machine that
//! crashed may have lost file contents that nobody waited for, and the blobs, which are synced, can give them again.

mod archive;
mod build;
mod format;
mod pull;
mod registries;
mod store;
mod unpack;

pub use build::{BuildConfig, BuildFile, build};
pub use format::{RunConfig, normalize};
pub use pull::{Credentials, PullError};
pub(crate) use pull::{How, pull};
pub use store::{ImageInfo, Store};

use std::path::PathBuf;

/// What goes wrong with images.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("invalid image reference {reference:?}: {why}")]
    Reference { reference: String, why: String },
    #[error("image {0:?} not found")]
    NotFound(String),
    #[error("{}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("malformed image: {0}")]
    Malformed(String),
    #[error("digest of {what} is {actual}, expected {expected}")]
    Digest { what: String, expected: String, actual: String },
    #[error("unpack layer entry {entry:?}")]
    Unpack { entry: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{}: {why}", path.display())]
    Registries { path: PathBuf, why: String },
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error("no image for {os}/{architecture} in {reference:?}")]
    Platform { reference: String, os: &'static str, architecture: &'static str },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { path, source }
    }

    /// Whether there was no room on the disk.
    pub(crate) fn is_storage_full(&self) -> bool {
        let causes = std::iter::successors(Some(self as &dyn std::error::Error), |error| error.source());
        let mut errors = causes.filter_map(|cause| cause.downcast_ref::<std::io::Error>());
        errors.any(|error| error.kind() == std::io::ErrorKind::StorageFull)
    }
}
