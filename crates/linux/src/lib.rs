//! The kernel: mounts, namespaces, cgroups v1 and v2, netlink, nftables, pidfds. The only crate with unsafe code.
//!
//! Start with [`mounts`] and [`cgroups`], which the container engine builds on, then [`namespaces`]. What always
//! holds here: a call either does the whole thing or says which path or system call failed; whatever concerns a
//! thread (namespaces) happens on a thread of its own; and each `unsafe` block says why it is sound. There is
//! no policy: what to mount, limit or filter is for the callers to decide.

pub mod beneath;
pub mod cgroups;
pub mod device_filter;
pub mod fdpass;
pub mod id_maps;
pub mod mounts;
pub mod namespaces;
pub mod process;

pub mod conntrack;
mod netfilter;
pub mod netlink;
pub mod netns;
pub mod nft;

use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{kind} mount at {}", path.display())]
    Mount { kind: &'static str, path: PathBuf, source: Errno },
    #[error("{}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{call}")]
    Call { call: &'static str, source: Errno },
}

impl Error {
    pub(crate) fn mount(kind: &'static str, path: &Path, source: Errno) -> Self {
        Error::Mount { kind, path: path.to_path_buf(), source }
    }

    pub(crate) fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// A system call that failed, for code outside that works in a closure of this crate.
    pub fn call(call: &'static str, source: Errno) -> Self {
        Error::Call { call, source }
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
