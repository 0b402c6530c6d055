//! The scheduler: finds a node for every pod that has none, and says why when there is none.
//!
//! Start with [`cycle`]: how one pod is placed, a pure function of the [`cluster`] as the scheduler knows it.
//! What a node must offer and which of several is best is asked of [`plugins`], each a file; what they said holds for
//! the next pod that is alike, as a [`memo`] knows; [`framework`]
//! says what a plugin is, a [`profile`] which of them are asked, and [`configuration`] reads profiles from a file. Pods of one [`pod_groups`] group are tried together.
//! When a pod fits nowhere, [`preemption`] says whom to evict, as far as [`budgets`] let it. [`tally`] keeps count of what pods want to know
//! of other pods. [`queue`] decides which pod comes next and when a
//! refused one is tried again; an [`extender`] is somebody else's say in it. [`run()`] feeds events of its [`informers`] into all that, and [`writes`] carry
//! decisions out.
//!
//! What always holds:
//! - The scheduler's state belongs to one loop; nothing in it is locked or awaited.
//! - A placed pod is assumed at once and bound in the background: its room and its volumes are taken before the
//!   API knows.
//! - A refused pod sleeps until something happens that may make it fit; nothing polls.

pub mod budgets;
pub mod cluster;
pub mod configuration;
pub mod cycle;
mod devices;
pub mod extender;
pub mod framework;
mod groups;
mod informers;
pub mod memo;
mod metrics;
mod node;
pub mod plugins;
mod pod;
mod pod_groups;
pub mod preemption;
pub mod profile;
pub mod queue;
mod resources;
mod run;
pub mod tally;
mod volumes;
mod writes;

#[cfg(test)]
mod testing;

pub use configuration::Configuration;
pub use metrics::Metrics;
pub use node::NodeInfo;
pub use pod::PodInfo;
pub use profile::Profile;
pub use resources::Resources;
pub use run::{Config, run};
