//! Devices for pods.

pub mod deviceclasses;
pub mod resourceclaims;
pub mod resourceclaimtemplates;
pub mod resourceslices;
