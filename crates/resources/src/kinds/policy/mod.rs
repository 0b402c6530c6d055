//! What disruptions are allowed.

pub mod poddisruptionbudgets;
