//! The scheduler: finds a node for every pod that has none, and says why when there is none.
//!
//! Start with [`cycle`]: how one pod is placed, a pure function of the [`cluster`] as the scheduler knows it.
//! What a node must offer and which of several is best is asked of [`plugins`], each a file; [`framework`]
//! says what a plugin is. [`queue`] decides which pod comes next and when a refused one is tried again. [`run`]
//! feeds informer events into all that and carries decisions out.
//!
//! What always holds:
//! - The scheduler's state belongs to one loop; nothing in it is locked or awaited.
//! - A placed pod is assumed at once and bound in the background: its room is taken before the API knows.
//! - A refused pod sleeps until something happens that may make it fit; nothing polls.

pub mod cluster;
pub mod cycle;
pub mod framework;
mod node;
pub mod plugins;
mod pod;
mod preemption;
pub mod queue;
mod resources;
mod run;

pub use node::NodeInfo;
pub use pod::PodInfo;
pub use resources::Resources;
pub use run::{Config, run};
