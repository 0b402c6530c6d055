//! [`Identity`]: for caches that keep a part of an object.

use api::Object;

/// How an object is told from its namesakes and from its earlier states.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// `namespace/name`, or `name` for cluster-scoped objects.
    pub key: String,
    pub uid: String,
    pub resource_version: String,
}

impl Identity {
    pub fn of(object: &impl Object) -> Self {
        Identity {
            key: object.key(),
            uid: object.uid().to_owned(),
            resource_version: object.metadata().resource_version.clone().unwrap_or_default(),
        }
    }
}

/// Implements [`Cached`](crate::Cached) by the field `identity`.
#[macro_export]
macro_rules! cached_by_identity {
    ($($kind:ty),*) => {$(
        impl $crate::Cached for $kind {
            fn key(&self) -> String {
                self.identity.key.clone()
            }

            fn uid(&self) -> &str {
                &self.identity.uid
            }

            fn resource_version(&self) -> &str {
                &self.identity.resource_version
            }
        }
    )*};
}
