//! What can go wrong, and the code that the CNI specification gives it.

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is not an address range like 10.42.0.0/24")]
    Cidr(String),
    #[error("CNI version {0} is not supported")]
    Version(String),
    #[error("environment variable {0}")]
    Environment(String),
    #[error("the configuration on stdin cannot be read")]
    Decode(#[source] serde_json::Error),
    #[error("the configuration is not valid: {0}")]
    Config(String),
    #[error("cannot {what}")]
    Io { what: String, source: io::Error },
    #[error("no address is free in {0}")]
    Exhausted(Cidr),
    #[error("container {container} is not as it was made: {what}")]
    Changed { container: String, what: String },
    #[error("cannot publish host ports")]
    HostPorts(#[source] linux::nft::Error),
    #[error("network policies are not in force: {0}")]
    Policies(String),
    #[error("cannot set up masquerading")]
    Masquerade(#[source] linux::nft::Error),
}

use crate::Cidr;

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }

    /// The error code of the CNI specification; codes from 100 are the plugin's own.
    pub fn code(&self) -> u32 {
        match self {
            Error::Version(_) => 1,
            Error::Environment(_) => 4,
            Error::Io { .. } => 5,
            Error::Decode(_) => 6,
            Error::Cidr(_) | Error::Config(_) => 7,
            // "Try again later".
            Error::Exhausted(_) | Error::Policies(_) => 11,
            Error::Changed { .. } => 100,
            Error::HostPorts(_) | Error::Masquerade(_) => 101,
        }
    }

    /// This error and what caused it, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        text
    }
}
