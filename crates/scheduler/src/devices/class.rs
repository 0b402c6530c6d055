//! [`DeviceClass`]: a class of devices as informers hold it.

use api::core::v1::ConfigMap;
use api::meta::ObjectMeta;
use api::resource::v1::DeviceClassSpec;
use api::{DecodeError, Object};
use serde_json::{Value, json};

#[derive(Clone, Debug, Default)]
pub struct DeviceClass {
    metadata: ObjectMeta,
    /// None when it cannot be read: the class is then as good as absent.
    pub spec: Option<DeviceClassSpec>,
}

impl Object for DeviceClass {
    const GROUP: &'static str = "resource.k8s.io";
    const VERSION: &'static str = "v1";
    const KIND: &'static str = "DeviceClass";
    const RESOURCE: &'static str = "deviceclasses";
    const NAMESPACED: bool = false;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }

    fn from_slice(json: &[u8]) -> Result<Self, DecodeError> {
        Self::from_value(serde_json::from_slice(json).unwrap_or_default())
    }

    fn from_value(mut object: Value) -> Result<Self, DecodeError> {
        let spec = serde_json::from_value(object["spec"].take());
        if let Err(error) = &spec {
            tracing::warn!(class = %object["metadata"]["name"], %error, "a device class cannot be read");
        }
        // A borrowed kind carries the decoding, so that the error is worded as any other.
        let carrier = ConfigMap::from_value(json!({ "metadata": object["metadata"].take() }))?;
        Ok(DeviceClass { metadata: carrier.metadata, spec: spec.ok() })
    }

    fn to_vec(&self) -> Vec<u8> {
        self.to_value().to_string().into_bytes()
    }

    fn to_value(&self) -> Value {
        let api_version = Self::api_version();
        json!({"apiVersion": api_version, "kind": Self::KIND, "metadata": self.metadata, "spec": self.spec})
    }
}
