//! [`Object`]: a typed kind, and the list of kinds that typed code uses.

use apimachinery::{GroupVersionKind, GroupVersionResource};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::complete::complete;
use crate::meta::ObjectMeta;
use crate::tables;

/// An object that does not have the shape of its kind.
#[derive(Debug)]
pub struct DecodeError {
    kind: &'static str,
    source: serde_json::Error,
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not a valid {}", self.kind)
    }
}

impl std::error::Error for DecodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// A kind that the API serves, as a Rust type.
pub trait Object: Clone + Default + std::fmt::Debug + Send + Sync + 'static {
    const GROUP: &'static str;
    const VERSION: &'static str;
    const KIND: &'static str;
    /// The lower-case plural in URLs.
    const RESOURCE: &'static str;
    const NAMESPACED: bool;

    fn metadata(&self) -> &ObjectMeta;
    fn metadata_mut(&mut self) -> &mut ObjectMeta;
    fn from_slice(json: &[u8]) -> Result<Self, DecodeError>;
    fn from_value(object: Value) -> Result<Self, DecodeError>;
    /// JSON with `apiVersion` and `kind`.
    fn to_vec(&self) -> Vec<u8>;
    /// A tree with `apiVersion` and `kind`.
    fn to_value(&self) -> Value;

    fn gvk() -> GroupVersionKind {
        GroupVersionKind::from_static(Self::GROUP, Self::VERSION, Self::KIND)
    }

    fn gvr() -> GroupVersionResource {
        GroupVersionResource::from_static(Self::GROUP, Self::VERSION, Self::RESOURCE)
    }

    /// `v1`, `apps/v1`: as it stands in the object and in owner references.
    fn api_version() -> String {
        Self::gvk().group_version().to_string()
    }

    /// Empty while the object has none.
    fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// Empty for cluster-scoped objects.
    fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or_default()
    }

    fn uid(&self) -> &str {
        self.metadata().uid.as_deref().unwrap_or_default()
    }

    /// `namespace/name`, or `name` for cluster-scoped objects: the key of stores and queues.
    fn key(&self) -> String {
        if Self::NAMESPACED {
            format!("{}/{}", self.namespace(), self.name())
        } else {
            self.name().to_owned()
        }
    }
}

/// Reads an object again that could not be read as it is, for `source`: with what it lacks.
fn incomplete<T: Object + DeserializeOwned>(
    mut object: Value,
    gvk: &GroupVersionKind,
    source: serde_json::Error,
) -> Result<T, DecodeError> {
    if let Some(definition) = tables::kind(&gvk.group, &gvk.version, &gvk.kind) {
        complete(&mut object, definition);
    }
    T::deserialize(object).map_err(|_| DecodeError { kind: T::KIND, source })
}

macro_rules! objects {
    ($($type:ty, $namespaced:literal;)+) => {$(
        impl Object for $type {
            const GROUP: &'static str = <$type as k8s_openapi::Resource>::GROUP;
            const VERSION: &'static str = <$type as k8s_openapi::Resource>::VERSION;
            const KIND: &'static str = <$type as k8s_openapi::Resource>::KIND;
            const RESOURCE: &'static str = <$type as k8s_openapi::Resource>::URL_PATH_SEGMENT;
            const NAMESPACED: bool = $namespaced;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }

            fn from_slice(json: &[u8]) -> Result<Self, DecodeError> {
                serde_json::from_slice(json).or_else(|source| {
                    let object = serde_json::from_slice(json);
                    incomplete(object.unwrap_or_default(), &Self::gvk(), source)
                })
            }

            fn from_value(object: Value) -> Result<Self, DecodeError> {
                Self::deserialize(&object).or_else(|source| incomplete(object, &Self::gvk(), source))
            }

            fn to_vec(&self) -> Vec<u8> {
                serde_json::to_vec(self).expect("a typed object has no keys but strings")
            }

            fn to_value(&self) -> Value {
                serde_json::to_value(self).expect("a typed object has no keys but strings")
            }
        }
    )+};
}

objects! {
    crate::core::v1::ConfigMap, true;
    crate::core::v1::Endpoints, true;
    crate::core::v1::Event, true;
    crate::core::v1::LimitRange, true;
    crate::core::v1::Namespace, false;
    crate::core::v1::Node, false;
    crate::core::v1::PersistentVolume, false;
    crate::core::v1::PersistentVolumeClaim, true;
    crate::core::v1::Pod, true;
    crate::core::v1::ReplicationController, true;
    crate::core::v1::ResourceQuota, true;
    crate::core::v1::Secret, true;
    crate::core::v1::Service, true;
    crate::core::v1::ServiceAccount, true;
    crate::apps::v1::ControllerRevision, true;
    crate::apps::v1::DaemonSet, true;
    crate::apps::v1::Deployment, true;
    crate::apps::v1::ReplicaSet, true;
    crate::apps::v1::StatefulSet, true;
    crate::autoscaling::v2::HorizontalPodAutoscaler, true;
    crate::batch::v1::CronJob, true;
    crate::batch::v1::Job, true;
    crate::certificates::v1::CertificateSigningRequest, false;
    crate::coordination::v1::Lease, true;
    crate::coordination::v1beta1::LeaseCandidate, true;
    crate::discovery::v1::EndpointSlice, true;
    crate::events::v1::Event, true;
    crate::networking::v1::NetworkPolicy, true;
    crate::networking::v1::ServiceCIDR, false;
    crate::networking::v1::IPAddress, false;
    crate::node::v1::RuntimeClass, false;
    crate::policy::v1::PodDisruptionBudget, true;
    crate::rbac::v1::ClusterRole, false;
    crate::rbac::v1::ClusterRoleBinding, false;
    crate::rbac::v1::Role, true;
    crate::rbac::v1::RoleBinding, true;
    crate::resource::v1::DeviceClass, false;
    crate::resource::v1::ResourceClaim, true;
    crate::resource::v1::ResourceClaimTemplate, true;
    crate::resource::v1::ResourceSlice, false;
    crate::scheduling::v1::PriorityClass, false;
    crate::scheduling::v1alpha2::PodGroup, true;
    crate::storage::v1::CSIDriver, false;
    crate::storage::v1::CSINode, false;
    crate::storage::v1::CSIStorageCapacity, true;
    crate::storage::v1::StorageClass, false;
    crate::storage::v1::VolumeAttachment, false;
    crate::storagemigration::v1beta1::StorageVersionMigration, false;
}
