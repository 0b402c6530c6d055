//! Container runtimes.

pub mod runtimeclasses;
