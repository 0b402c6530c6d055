//! A pod's volumes: set up before its first container, kept up to date while it runs, taken away after it.
//!
//! [`payload`] decides, purely, which files a projected volume holds; [`atomic`] puts them there so that no
//! reader ever sees half of a change; [`ownership`] gives trees to groups; [`subpath`] opens parts of volumes without being led outside.

pub mod atomic;
mod ownership;
pub mod payload;
mod setup;
pub mod subpath;

pub use setup::{Mounted, Volumes};

/// Why a volume cannot be had. The message stands in a `FailedMount` event.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{0}")]
    Refused(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{what}: {source}")]
    Api { what: String, source: Box<client::Error> },
    #[error("{what}: {source}")]
    Kernel { what: String, source: linux::Error },
}

impl VolumeError {
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        VolumeError::Io { what: what.into(), source }
    }
}
