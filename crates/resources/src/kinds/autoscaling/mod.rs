//! Replicas by load.

pub mod horizontalpodautoscalers;
mod validation;
