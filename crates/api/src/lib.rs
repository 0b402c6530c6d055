//! The typed objects of Kubernetes 1.36 and, as data, the facts of every field.
//!
//! [`Object`] is what typed code needs of a kind. All its (de)serialisation is instantiated here, once, so
//! that the crates above do not compile serde for a hundred kinds again. Untyped code works on
//! `serde_json::Value` trees under the direction of [`tables`].

mod complete;
pub mod descriptions;
mod object;
pub mod tables;

pub use k8s_openapi::ByteString;
pub use k8s_openapi::api::*;
pub use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
pub use k8s_openapi::apimachinery::pkg as machinery;
pub use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
pub use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
pub use k8s_openapi::kube_aggregator::pkg::apis::apiregistration;
pub use object::{DecodeError, Object};
