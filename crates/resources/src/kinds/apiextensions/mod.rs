//! Kinds that users add.

pub mod approval;
pub mod conversion;
pub mod customresourcedefinitions;
mod defaults;
mod names;
mod schemas;
mod spec;
