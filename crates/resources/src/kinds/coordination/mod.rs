//! Leases, and who could hold them.

pub mod leasecandidates;
pub mod leases;
pub mod strategy;
