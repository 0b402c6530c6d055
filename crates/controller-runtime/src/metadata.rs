//! [`Metadata`]: what the garbage collector and the namespace controller keep of an object of any kind.

use api::meta::{ObjectMeta, OwnerReference};
use serde_json::Value;

use crate::store::Cached;

/// The part of an object that is the same in every kind. Which kind it is says the informer that holds it.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub owner_references: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
    pub deleting: bool,
}

impl Metadata {
    pub(crate) fn from_value(mut object: Value) -> Result<Self, api::DecodeError> {
        // A borrowed kind carries the decoding, so that the error is worded as any other.
        let metadata = serde_json::json!({ "metadata": object["metadata"].take() });
        let carrier = <api::core::v1::ConfigMap as api::Object>::from_value(metadata)?;
        let ObjectMeta { namespace, name, uid, resource_version, .. } = carrier.metadata;
        Ok(Metadata {
            namespace: namespace.unwrap_or_default(),
            name: name.unwrap_or_default(),
            uid: uid.unwrap_or_default(),
            resource_version: resource_version.unwrap_or_default(),
            owner_references: carrier.metadata.owner_references.unwrap_or_default(),
            finalizers: carrier.metadata.finalizers.unwrap_or_default(),
            deleting: carrier.metadata.deletion_timestamp.is_some(),
        })
    }
}

impl Cached for Metadata {
    fn key(&self) -> String {
        if self.namespace.is_empty() {
            self.name.clone()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }

    fn uid(&self) -> &str {
        &self.uid
    }

    fn resource_version(&self) -> &str {
        &self.resource_version
    }
}
