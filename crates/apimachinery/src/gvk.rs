//! Group, version and kind or resource: how the API names what an object is and where it is served.

use std::borrow::Cow;
use std::fmt;

/// A name that is static for built-in kinds and owned for those that CustomResourceDefinitions add.
pub type Name = Cow<'static, str>;

macro_rules! triple {
    ($(#[$doc:meta])* $name:ident { $($field:ident),+ }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            $(pub $field: Name,)+
        }

        impl $name {
            /// Names known at compile time.
            pub const fn from_static($($field: &'static str),+) -> Self {
                Self { $($field: Cow::Borrowed($field)),+ }
            }

            /// Names known only at run time.
            pub fn new($($field: impl Into<Name>),+) -> Self {
                Self { $($field: $field.into()),+ }
            }
        }
    };
}

triple!(
    /// An API group and a kind in it, whatever the version.
    GroupKind { group, kind }
);
triple!(
    /// An API group and a resource (the lower-case plural) in it, whatever the version.
    GroupResource { group, resource }
);
triple!(
    /// A kind in one version of its group.
    GroupVersionKind { group, version, kind }
);
triple!(
    /// A resource in one version of its group.
    GroupVersionResource { group, version, resource }
);
triple!(
    /// A version of a group, written `apps/v1`, or `v1` for the core group.
    GroupVersion { group, version }
);

impl GroupVersion {
    /// Reads an `apiVersion`: `v1` or `group/version`. `None` when it holds more than one slash.
    pub fn parse(api_version: &str) -> Option<Self> {
        match api_version.split_once('/') {
            None => Some(Self::new("", api_version.to_owned())),
            Some((_, version)) if version.contains('/') => None,
            Some((group, version)) => Some(Self::new(group.to_owned(), version.to_owned())),
        }
    }
}

impl fmt::Display for GroupVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.version)
        } else {
            write!(f, "{}/{}", self.group, self.version)
        }
    }
}

/// As upstream prints it in messages: `deployments.apps`, or `pods` for the core group.
impl fmt::Display for GroupResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.resource)
        } else {
            write!(f, "{}.{}", self.resource, self.group)
        }
    }
}

/// As upstream prints it in messages: `Deployment.apps`, or `Pod` for the core group.
impl fmt::Display for GroupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.kind)
        } else {
            write!(f, "{}.{}", self.kind, self.group)
        }
    }
}

/// As Go prints the struct: `apps/v1, Kind=Deployment`.
impl fmt::Display for GroupVersionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}, Kind={}", self.group, self.version, self.kind)
    }
}

/// As Go prints the struct: `apps/v1, Resource=deployments`.
impl fmt::Display for GroupVersionResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}, Resource={}", self.group, self.version, self.resource)
    }
}

impl GroupVersionKind {
    pub fn group_version(&self) -> GroupVersion {
        GroupVersion { group: self.group.clone(), version: self.version.clone() }
    }

    pub fn group_kind(&self) -> GroupKind {
        GroupKind { group: self.group.clone(), kind: self.kind.clone() }
    }
}

impl GroupVersionResource {
    pub fn group_version(&self) -> GroupVersion {
        GroupVersion { group: self.group.clone(), version: self.version.clone() }
    }

    pub fn group_resource(&self) -> GroupResource {
        GroupResource { group: self.group.clone(), resource: self.resource.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_versions_round_trip() {
        for api_version in ["v1", "apps/v1", "rbac.authorization.k8s.io/v1"] {
            assert_eq!(GroupVersion::parse(api_version).unwrap().to_string(), api_version);
        }
        assert_eq!(GroupVersion::parse("a/b/c"), None);
    }
}
