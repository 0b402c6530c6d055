//! The API server: the straight line from a request to the store, and back to the watchers.
//!
//! Start with [`handle`], which every request goes through from its first line to its last. [`request`],
//! [`options`] and [`negotiate`] say what was asked; [`authn`], [`authz`] and [`admission`] who may; the
//! [`registry`] reads and writes; [`encode`] answers. What few kinds do differently is in [`special`], what goes
//! on to kubelets and pods in [`remote`], and to other API servers in [`aggregation`]; [`flowcontrol`] holds back
//! who asks too much; [`audit`] notes who asked for what; [`discovery`], [`openapi`] and [`health`] are told from
//! the table.
//! [`server`] is TLS and connections; [`bootstrap`] what a cluster starts with.
//!
//! What always holds: an answered write is durable and visible to every reader; a kind has no code of its own
//! unless it does something that no other does; nothing a client sends makes the server panic, hang or grow.

pub mod admission;
pub mod aggregation;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod body;
pub mod bootstrap;
pub mod discovery;
pub mod encode;
pub mod expiry;
pub mod extensions;
pub mod flowcontrol;
pub mod handle;
pub mod health;
pub mod metrics;
pub mod negotiate;
pub mod openapi;
pub mod options;
pub mod pace;
pub mod registry;
pub mod remote;
pub mod request;
pub mod seams;
pub mod server;
pub mod services;
pub mod special;
pub mod testing;

pub use handle::{ApiServer, Config};
pub use registry::Registry;
