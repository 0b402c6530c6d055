//! Questions about who someone is: created, answered, never stored.

pub mod selfsubjectreviews;
pub mod tokenreviews;
