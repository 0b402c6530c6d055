//! The built-in CNI plugin: an address, a veth and routes for each pod.
//!
//! Start with [`main`], which answers one call of the CNI protocol ([`call`], [`config`]), and with
//! [`setup_host`], which a node calls once. [`attach`] wires a pod, [`ipam`] gives addresses out, [`policy`] waits
//! for the rules of network policies, [`rules`] is
//! the text of the nftables tables for masquerading and host ports.
//!
//! There is no bridge: a pod's address is a /32 behind its own veth, and the host routes to it. The pod's
//! gateway is a link-local address that nobody has; a permanent neighbour entry answers for it. So traffic
//! between pods is routed and passes the forward hook like any other, which Services and policies rely on.
//!
//! What always holds: a container has at most one address per family and interface name; DEL and GC succeed
//! on what is half there or gone; the files in the state directory are the only memory.

mod attach;
mod call;
mod cidr;
mod config;
mod error;
mod host;
mod ipam;
mod policy;
mod rules;

pub use call::main;
pub use cidr::Cidr;
pub use error::Error;
pub use host::{enable_forwarding, reset, setup_host};
