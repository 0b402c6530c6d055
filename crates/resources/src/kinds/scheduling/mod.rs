//! What matters to the scheduler besides pods and nodes.

pub mod podgroups;
pub mod priorityclasses;
pub mod workloads;
