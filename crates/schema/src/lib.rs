//! Schema-directed work on object trees.
//!
//! Everything here takes a `serde_json::Value` and the [`api::tables`] that describe it. Start with
//! [`decode`] (bytes to a tree that has the shape of its kind), then [`default`]. A patch becomes a new tree
//! in [`strategic`], [`patch`] or [`apply`]; a tree becomes protobuf in [`protobuf`]; and [`openapi`] tells
//! clients about it all.
//!
//! What always holds: no I/O, no clock, no randomness; no panic and no unbounded recursion on any input;
//! messages are worded as upstream words them, because clients match on them.

pub mod apply;
pub mod cbor;
pub mod decode;
pub mod default;
mod error;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod strategic;
pub mod structural;

pub use error::Error;
