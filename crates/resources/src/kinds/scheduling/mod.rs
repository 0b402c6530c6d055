//! Priorities.

pub mod priorityclasses;
