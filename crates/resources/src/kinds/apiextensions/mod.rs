//! Kinds that users add.

pub mod customresourcedefinitions;
