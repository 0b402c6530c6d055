//! Network policies as one nftables table: which traffic reaches and leaves the pods of this node.
//!
//! Start with [`policy`], a NetworkPolicy as its rules, and [`cluster::Cluster`], the decider: pods, namespaces
//! and policies to chains, sets and maps. [`table`] is their text. [`run`] listens to the API server and carries
//! changes out; [`sandboxes`] is where the CNI plugin says which addresses a pod is about to get, and waits.
//!
//! A pod that policies select leads by a verdict map from its address to a chain of its policies; a pod that
//! none selects is in no map. Peers are addresses in sets, one set for each selector in use, however many
//! policies use it. So a pod that comes or goes is a few elements, and a policy is a chain.
//!
//! What always holds: a packet sees the state before a change or after it, never between. Policies see addresses
//! after destination NAT and before source NAT: those of pods, not of Services. Traffic between a pod and its own
//! node passes, for it is not forwarded; so does what a pod sends to itself through a Service, and what belongs
//! to a connection that was let through. When this stops, its table stays in force; [`reset`] takes it away.

pub mod cluster;
pub mod object;
pub mod policy;
pub mod ranges;
mod run;
pub mod sandboxes;
pub mod table;

pub use run::Agent;

use std::path::PathBuf;

/// What the agent of a node is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Policies hold for the pods of the node of this name.
    pub node_name: String,
    /// Where the CNI plugin writes which pod has which addresses, and where it asks (`agent.sock`) for their
    /// rules. Without it, rules follow the addresses that the API server knows, some time after a pod's start.
    pub dir: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen for the CNI plugin in {}", dir.display())]
    Listen { dir: PathBuf, source: std::io::Error },
    #[error("cannot write the table {}", table::TABLE)]
    Table(#[from] linux::nft::Error),
}

/// Removes the table from the network namespace of the calling thread.
pub fn reset() -> Result<(), Error> {
    match linux::nft::delete_table(table::FAMILY, table::TABLE) {
        // Without nft there was never a table.
        Ok(()) | Err(linux::nft::Error::Missing) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
