//! Work that finishes.

pub mod cronjobs;
mod job_policies;
pub mod jobs;
