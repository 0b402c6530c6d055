//! The kubelet: makes the pods of one node be as declared, through CRI.
//!
//! Start at [`run`]: it registers the [`node`], then hands each pod of the node to a worker of its own
//! ([`worker`]). A worker is level-triggered: woken by a change of its pod, of its containers, of a probe or of an
//! object that it mounts, it reads what is ([`pod_state`]), decides ([`actions`] and [`resize`], pure), reports
//! ([`status`], pure) and acts. What it acts with is below: [`container`] makes CRI configurations, [`volumes`] the
//! mounts, [`images`], [`lifecycle`] and [`probe`] do what their names say. [`plugins`] are found by their sockets,
//! [`devices`] are what some of them offer, [`dra`] what others prepare for claims. [`pressure`] and [`evict`] end pods when room runs out, [`shutdown`] when
//! the machine goes. [`server`] is
//! what the API server calls: logs, exec, stats.
//!
//! What always holds:
//! - The runtime is the truth about containers. A restarted kubelet reads it and goes on; containers do not notice.
//! - A pod's end is told to the API only when nothing of it runs or is mounted any more.
//! - Nothing polls; a slow relist is there only in case the runtime's event stream lies.
//!
//! Deliberately absent: managers of CPUs, memory and topology.

mod actions;
mod admit;
mod backoff;
mod cgroup;
mod config;
mod container;
mod core;
mod devices;
mod dra;
mod env_file;
mod events;
mod evict;
mod exposition;
mod http_get;
mod images;
mod lifecycle;
mod log_rotation;
mod logs;
mod node;
mod objects;
mod paths;
mod pleg;
mod plugins;
mod pod;
mod pod_state;
mod pods;
pub mod pressure;
mod probe;
mod pulled_images;
mod resize;
mod restart_all;
pub mod runtime;
mod server;
mod shutdown;
mod static_pods;
mod status;
pub mod sysctls;
mod userns;
mod volumes;
mod worker;

pub use self::core::{run, run_with};
pub use config::{Config, EVICTION_HARD, ServingTls};
pub use container::config::SwapBehavior;
pub use log_rotation::Policy as LogRotation;
pub use node::allocatable::Resources;
pub use shutdown::periods::{Period as ShutdownPeriod, Settings as ShutdownSettings};

/// Why a kubelet cannot run at all. What goes wrong with one pod is told of that pod.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the container runtime cannot be reached")]
    Connect(#[source] cri::Error),
    #[error("the container runtime does not answer")]
    Runtime(#[source] tonic::Status),
    #[error("cannot prepare {what}")]
    Prepare { what: String, source: std::io::Error },
    #[error("cannot make the cgroups of pods")]
    Cgroup(#[source] linux::Error),
    #[error("cannot serve the kubelet's API at {address}")]
    Serve { address: std::net::SocketAddr, source: std::io::Error },
    #[error("the kubelet's TLS settings are not valid")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}
