//! The words of the Kubernetes API, as pure values: no I/O, no async, no clock, no randomness.
//!
//! Start with [`gvk`] (what an object is), then [`status`] (what a server answers when it cannot) and
//! [`field`] (what is wrong with an object). The rest are the API's small dialects: [`selector`]s,
//! [`quantity`], [`time`], [`names`], [`versions`], [`jsonpath`], [`sysctl`].
//!
//! What always holds: every message worded here is upstream's, because clients match on it.

pub mod field;
pub mod gvk;
pub mod jsonpath;
pub mod names;
pub mod objectmeta;
pub mod quantity;
pub mod selector;
pub mod status;
pub mod sysctl;
pub mod time;
pub mod versions;

pub use gvk::{GroupKind, GroupResource, GroupVersion, GroupVersionKind, GroupVersionResource};
pub use status::Status;
