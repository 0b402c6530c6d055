//! The resource table: every kind that the API server serves is one row, a [`ResourceDef`]. Routes, discovery,
//! OpenAPI, printer columns, RBAC verbs and storage keys all derive from it; a CustomResourceDefinition builds
//! the same row at run time.
//!
//! Start with [`definition`] (what a row holds), then [`strategy`] (what a kind may do differently), then any
//! file of `kinds/`, which [`row`] and [`rules`] keep short. [`table()`] lists the rows. What pods and templates
//! of pods share is in `podspec`; checks that several kinds share are in `validate`.
//!
//! What always holds: nothing here reads a clock, a store or the network; what a strategy needs of the world
//! comes in its [`strategy::Context`]. Objects are trees whose structure the schema has already checked, but
//! nothing here relies on it: what is missing or of another type reads as unset.

pub mod convert;
pub mod custom;
pub mod definition;
pub mod disabled;
pub mod features;
pub mod get;
mod kinds;
mod podspec;
mod prelude;
mod print;
pub mod quota;
pub mod row;
pub mod rules;
pub mod strategy;
pub mod table;
pub mod validate;

pub use definition::{Cell, Column, ResourceDef, Scope, Subresource, Verb};
pub use kinds::admission::expressions;
pub use kinds::core::pods::update as pods;
pub use kinds::core::services::{addresses as service_addresses, externally_accessible, needs_health_check};
pub use kinds::metrics::rows as resource_metrics;
pub use podspec::{qos_class, validate_tolerations};
pub use strategy::{Context, Deletion, Strategy};
pub use table::table;
