//! Addresses behind Services.

pub mod endpointslices;
