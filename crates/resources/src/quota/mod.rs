//! What objects cost, by the names that ResourceQuotas limit: admission charges a request by it, and the quota
//! controller counts again by it.

mod quantities;
mod usage;

pub use quantities::{Quantities, of_pod};
pub use usage::{class_of, concerns, count_name, in_scope, unsaid, usage};
