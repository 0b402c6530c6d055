//! From a container's specification to the configuration that the runtime gets: pure.

pub mod config;
pub mod dns;
pub mod downward;
pub mod env;
pub mod expansion;
pub mod security;
