//! A pod's volumes: set up before its first container, kept up to date while it runs, taken away after it.
//!
//! Start at [`setup`]. [`payload`] decides, purely, which files a projected volume holds; [`atomic`] puts them
//! there so that no reader ever sees half of a change; [`claims`] finds the PersistentVolume of a claim, which is
//! a [`host_path`] or a storage driver's ([`csi`]); [`tokens`] holds the tokens of service accounts; [`ownership`]
//! gives trees to groups; [`subpath`] opens parts of volumes without being led outside; [`usage`] says how full
//! they are.

pub mod atomic;
mod claims;
pub mod csi;
mod host_path;
mod ownership;
pub mod payload;
mod setup;
pub mod subpath;
pub mod tokens;
pub mod usage;

pub use setup::{Mounted, Volumes};

/// Why a volume cannot be had. The message stands in a `FailedMount` event.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{0}")]
    Refused(String),
    /// It waits for somebody else; no event says so.
    #[error("{0}")]
    Pending(String),
    /// The node has no room for it.
    #[error("the node has reached its volume attachment limit")]
    Exhausted,
    /// A step of many failed: the volume is named by its object.
    #[error("{step} for volume {volume:?} : {why}")]
    Step { reason: &'static str, step: &'static str, volume: String, why: String },
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

    /// The event of a pod whose volume it is, by reason and message.
    pub fn event(&self, volume: &str) -> Option<(&'static str, String)> {
        match self {
            VolumeError::Pending(_) | VolumeError::Exhausted => None,
            VolumeError::Step { reason, .. } => Some((reason, self.to_string())),
            _ => Some(("FailedMount", format!("MountVolume.SetUp failed for volume {volume:?} : {self}"))),
        }
    }
}

/// Why a pod is refused whose volumes the node has no room for, if that is why it waits.
// Upstream: pkg/kubelet/volumemanager/volume_manager.go VolumeAttachLimitExceededError
pub fn exhausted(failed: &[(String, VolumeError)]) -> Option<String> {
    let named = |is_meant: fn(&VolumeError) -> bool| {
        let names = failed.iter().filter(|(_, error)| is_meant(error)).map(|(name, _)| name.as_str());
        names.collect::<Vec<_>>().join(" ")
    };
    failed.iter().any(|(_, error)| matches!(error, VolumeError::Exhausted)).then(|| {
        let unattached = named(|error| matches!(error, VolumeError::Exhausted | VolumeError::Pending(_)));
        format!(
            "Node has reached its volume attachment limit, rejecting pod. unmounted volumes=[{}], unattached \
             volumes=[{unattached}], failed to process volumes=[]: context deadline exceeded",
            named(|_| true)
        )
    })
}
