//! Leases.

pub mod leases;
