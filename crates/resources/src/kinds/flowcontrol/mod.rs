//! Fairness between requests.

pub mod flowschemas;
pub mod prioritylevelconfigurations;
