//! What a row of the table holds.

use std::borrow::Cow;
use std::sync::Arc;

use apimachinery::gvk::Name;
use apimachinery::{GroupKind, GroupResource, GroupVersionKind, GroupVersionResource};
use serde_json::Value;

use crate::custom::Custom;
use crate::features::Features;
use crate::strategy::Strategy;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// The verbs of the API, in the alphabetical order in which discovery lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Create,
    Delete,
    DeleteCollection,
    Get,
    List,
    Patch,
    Update,
    Watch,
}

impl Verb {
    /// The eight that most kinds have.
    pub const ALL: &'static [Verb] = &[
        Verb::Create,
        Verb::Delete,
        Verb::DeleteCollection,
        Verb::Get,
        Verb::List,
        Verb::Patch,
        Verb::Update,
        Verb::Watch,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Create => "create",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Patch => "patch",
            Verb::Update => "update",
            Verb::Watch => "watch",
        }
    }
}

/// `status`, `scale`, `exec`: a second way to the same object.
#[derive(Clone, Debug)]
pub struct Subresource {
    pub name: Name,
    /// The kind that the subresource reads and writes; for `status` the resource's own.
    pub kind: GroupVersionKind,
    pub verbs: Cow<'static, [Verb]>,
}

/// A column of `kubectl get`.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    pub name: Name,
    /// `string`, `integer`, `number`, `boolean`, `date`.
    pub column_type: Name,
    /// `name` for the first column, else empty.
    pub format: Name,
    pub description: Name,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: i32,
}

/// A cell of a table row: a string, a number, a boolean or null.
pub type Cell = Value;

/// The cells of one object, one for each column. `now` is in seconds since the epoch, for ages.
pub type Cells = Arc<dyn Fn(&Value, i64) -> Vec<Cell> + Send + Sync>;

/// The value of a selectable field of an object, empty when unset, as upstream's field labels have it.
pub type FieldValue = Arc<dyn Fn(&Value) -> String + Send + Sync>;

/// A field that `--field-selector` knows, besides `metadata.name` and `metadata.namespace`.
#[derive(Clone)]
pub struct SelectableField {
    pub path: Name,
    pub value: FieldValue,
}

/// One kind in one version: a row of the table.
#[derive(Clone)]
pub struct ResourceDef {
    pub group: Name,
    pub version: Name,
    pub kind: Name,
    /// The lower-case plural in URLs.
    pub plural: Name,
    pub singular: Name,
    pub short_names: Vec<Name>,
    pub categories: Vec<Name>,
    pub scope: Scope,
    pub verbs: Cow<'static, [Verb]>,
    pub subresources: Vec<Subresource>,
    /// The definition in the schema tables: `io.k8s.api.core.v1.Pod`. Empty for custom kinds.
    pub schema: Name,
    /// Where objects are stored, below `/registry/`: `pods`, `services/specs`, `apps` kinds as upstream.
    pub storage_prefix: Name,
    /// The version that is stored; other versions are converted.
    pub storage_version: Name,
    pub columns: Vec<Column>,
    pub cells: Cells,
    pub selectable_fields: Vec<SelectableField>,
    pub strategy: Arc<dyn Strategy>,
    /// The kind of a list of them.
    pub list_kind: Name,
    /// For kinds that a CustomResourceDefinition added.
    pub custom: Option<Arc<Custom>>,
    /// What every request for the kind is warned of: that its version is deprecated.
    pub deprecation: Option<Name>,
    /// What of what is off by default is on: fields of the kind may depend on it.
    pub features: Features,
}

impl ResourceDef {
    pub fn gvk(&self) -> GroupVersionKind {
        GroupVersionKind { group: self.group.clone(), version: self.version.clone(), kind: self.kind.clone() }
    }

    pub fn gvr(&self) -> GroupVersionResource {
        GroupVersionResource {
            group: self.group.clone(),
            version: self.version.clone(),
            resource: self.plural.clone(),
        }
    }

    pub fn group_resource(&self) -> GroupResource {
        GroupResource { group: self.group.clone(), resource: self.plural.clone() }
    }

    pub fn group_kind(&self) -> GroupKind {
        GroupKind { group: self.group.clone(), kind: self.kind.clone() }
    }

    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}
