//! Cluster DNS: names of Services and pods, other names forwarded.
//!
//! Start with [`zone`], the decider: a question about the cluster's names to an answer, from whatever [`Cluster`]
//! knows. [`Informers`] is what the API server says, always current; `server` is the sockets; `forward` asks
//! upstream servers about all other names. A server runs on every node: [`announce`] says so on the Node, and
//! [`keep_service`] makes the Service that pods ask of all that do.
//!
//! What always holds: a name inside the cluster's domain is never asked of anyone else, and this server never
//! asks itself. Answers come from memory and are as fresh as the last event of the API server.

mod cluster;
mod forward;
mod kube_service;
mod metrics;
mod run;
mod server;
pub mod zone;

pub use cluster::{Cluster, Informers};
pub use forward::upstreams;
pub use kube_service::{announce, keep_service};
pub use metrics::Metrics;
pub use run::run;

use std::net::SocketAddr;

/// The port on the node where the server listens by default: 53 is often taken, by a resolver of the host.
pub const DEFAULT_PORT: u16 = 10053;

/// What a DNS server is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to answer, over UDP and TCP. Pods reach it through the Service `kube-dns`, whose EndpointSlice
    /// names the port, so that any port will do; [`DEFAULT_PORT`] is free on most hosts.
    pub bind_addresses: Vec<SocketAddr>,
    /// `cluster.local`, with or without the final dot.
    pub cluster_domain: String,
    /// Who is asked about other names, in order of preference; see [`upstreams`]. Those that are this server
    /// itself are left out. Without any, other names are refused.
    pub upstreams: Vec<SocketAddr>,
    /// The addresses by which pods know this server: never asked.
    pub service_addresses: Vec<std::net::IpAddr>,
    pub metrics: Metrics,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0:?} is not a domain name")]
    Domain(String),
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot set up forwarding")]
    Forward(#[source] hickory_resolver::net::NetError),
    #[error("the server ended")]
    Serve(#[source] hickory_server::net::NetError),
}
