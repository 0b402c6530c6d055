//! Replicas by load.

pub mod horizontalpodautoscalers;
