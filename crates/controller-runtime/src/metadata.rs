//! [`Metadata`]: what the garbage collector and the namespace controller keep of an object of any kind.

use api::meta::{ObjectMeta, OwnerReference};
use serde::Deserialize;
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

/// The same, before it is reduced: what else is in the object is passed by.
#[derive(Deserialize)]
struct Whole {
    metadata: ObjectMeta,
}

impl Metadata {
    pub(crate) fn from_slice(text: &[u8]) -> Result<Self, api::DecodeError> {
        match serde_json::from_slice(text) {
            Ok(Whole { metadata }) => Ok(Metadata::from(metadata)),
            Err(_) => Metadata::from_value(serde_json::from_slice(text).unwrap_or_default()),
        }
    }

    pub(crate) fn from_value(mut object: Value) -> Result<Self, api::DecodeError> {
        // A borrowed kind carries the decoding, so that the error is worded as any other.
        let metadata = serde_json::json!({ "metadata": object["metadata"].take() });
        <api::core::v1::ConfigMap as api::Object>::from_value(metadata)
            .map(|map| Metadata::from(map.metadata))
    }
}

impl From<ObjectMeta> for Metadata {
    fn from(metadata: ObjectMeta) -> Self {
        let ObjectMeta { namespace, name, uid, resource_version, .. } = metadata;
        Metadata {
            namespace: namespace.unwrap_or_default(),
            name: name.unwrap_or_default(),
            uid: uid.unwrap_or_default(),
            resource_version: resource_version.unwrap_or_default(),
            owner_references: metadata.owner_references.unwrap_or_default(),
            finalizers: metadata.finalizers.unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
        }
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
