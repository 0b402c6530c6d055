//! Services and EndpointSlices as one nftables table.
//!
//! Start with [`service::wanted`], the decider: one Service with its slices to elements of sets and maps.
//! [`ruleset`] keeps what all Services want and writes the text that brings the kernel there; [`run`] listens
//! to the API server and carries it out.
//!
//! The table consists of maps, and its chains name no Service. A chain per Service and endpoint, as upstream's
//! proxy has, takes the kernel quadratic time to load; here 10,000 Services load in half a second and a change
//! touches the elements that changed. [`element`] explains the two look-ups. [`routes`] lead to the pods of other
//! nodes.
//!
//! What always holds: a packet sees the state before a change or after it, never between. Connections that are
//! established are left alone, but UDP flows whose endpoint is gone are cut. When the proxy stops, its table
//! stays and Services go on working; [`reset`] takes it away.

pub mod element;
pub mod endpoints;
mod health;
mod metrics;
mod range;
pub mod routes;
pub mod ruleset;
mod run;
pub mod service;
pub mod slice;

pub use metrics::{Metrics, Starved};
pub use ruleset::NodePorts;
pub use run::run;

use std::net::SocketAddr;

use controller_runtime::Clock;

/// What a proxy is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Endpoints on the node of this name are local.
    pub node_name: String,
    /// Where pods are: traffic to a ClusterIP from elsewhere is masqueraded. At most a few ranges.
    pub cluster_cidrs: Vec<String>,
    /// Where `/healthz` and `/livez` answer; upstream's proxy listens on port 10256.
    pub healthz_address: Option<SocketAddr>,
    /// The addresses at which node ports, and the ports of health checks, are.
    pub node_ports: NodePorts,
    pub clock: Clock,
    pub metrics: Metrics,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cluster CIDR {0:?} is not an address range like 10.42.0.0/16")]
    ClusterCidr(String),
    #[error("node port addresses {0:?} are neither `primary` nor a range like 192.0.2.0/24")]
    NodePorts(String),
    #[error("routes cannot be read")]
    Routes(#[source] std::io::Error),
    #[error("cannot listen on {address} for health checks")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot write the table {}", ruleset::TABLE)]
    Table(#[from] linux::nft::Error),
}

/// Removes the proxy's tables from the network namespace of the calling thread.
pub fn reset() -> Result<(), Error> {
    for family in ["ip", "ip6"] {
        match linux::nft::delete_table(family, ruleset::TABLE) {
            // Without nft there was never a table.
            Ok(()) | Err(linux::nft::Error::Missing) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
