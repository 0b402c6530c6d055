//! Devices for pods.

pub mod deviceclasses;
mod devices;
pub mod resourceclaims;
pub mod resourceclaimtemplates;
pub mod resourceslices;
