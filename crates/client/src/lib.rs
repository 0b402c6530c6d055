//! The way to an API server. Start with [`Client`]: typed and untyped calls, the same whether the server is
//! behind HTTPS ([`https`] over [`tls`], by [`kubeconfig`]) or in the same process (the API server's own [`Transport`]), and
//! whether as oneself or as a [`service_account`]. Small servers have their callers judged by it ([`delegated`]).
//!
//! What always holds: every call is one HTTP exchange with upstream's paths and bodies, so that a part behaves
//! the same in one process and in many; a server's refusal is an [`apimachinery::Status`].

mod call;
pub mod delegated;
pub mod https;
pub mod kept;
pub mod kubeconfig;
pub mod service_account;
pub mod tls;
mod watch;

use std::pin::Pin;
use std::sync::Arc;

use apimachinery::{GroupVersionResource, Status};
use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;

pub use call::{DeleteOptions, List, ListOptions, PatchType, Preconditions, Propagation};
pub use watch::{Decode, WatchEvent, WatchStream};

/// What answers requests.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// One exchange. The request's URI has a path and query only. An answer with a failure code is `Ok`.
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Error>;
}

/// The body of an answer.
pub enum Body {
    Full(Bytes),
    /// A watch or a followed log: chunks as they come. Dropping it ends the exchange.
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused.
    #[error(transparent)]
    Api(#[from] Status),
    #[error("cannot reach the API server")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the API server's answer cannot be read")]
    Decode(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{0}")]
    Config(String),
}

impl Error {
    /// The server's refusal, if it is one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Error::Api(status) => Some(status),
            _ => None,
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(Status::is_not_found)
    }

    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(Status::is_conflict)
    }

    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(Status::is_already_exists)
    }

    pub fn is_expired(&self) -> bool {
        self.status().is_some_and(Status::is_expired)
    }
}

/// Where objects of a kind live: what untyped calls are told in place of a type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resource {
    pub gvr: GroupVersionResource,
    pub namespaced: bool,
}

impl Resource {
    pub fn of<T: api::Object>() -> Self {
        Resource { gvr: T::gvr(), namespaced: T::NAMESPACED }
    }
}

/// A handle to one API server as one user. Clones are cheap and share the transport.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    user_agent: Arc<str>,
}
