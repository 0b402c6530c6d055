//! Work that finishes.

pub mod cronjobs;
pub mod jobs;
