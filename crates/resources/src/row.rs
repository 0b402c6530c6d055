//! A builder that makes rows cheap to write: a plain kind is a handful of lines.

use std::borrow::Cow;
use std::sync::Arc;

use apimachinery::gvk::Name;
use apimachinery::{GroupVersion, GroupVersionKind};
use serde_json::Value;

use crate::definition::{Cell, Column, ResourceDef, Scope, SelectableField, Subresource, Verb};
use crate::features::Features;
use crate::get;
use crate::strategy::{Plain, Strategy};

const STATUS_VERBS: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];

/// A row in the making.
pub struct Row(ResourceDef);

impl Row {
    /// A namespaced kind of a group version such as `apps/v1`, with the eight verbs.
    pub fn namespaced(group_version: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self::new(group_version, kind, plural, Scope::Namespaced)
    }

    /// A cluster-scoped kind, with the eight verbs.
    pub fn cluster(group_version: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self::new(group_version, kind, plural, Scope::Cluster)
    }

    fn new(group_version: &'static str, kind: &'static str, plural: &'static str, scope: Scope) -> Self {
        let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
        Row(ResourceDef {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            plural: plural.into(),
            singular: kind.to_lowercase().into(),
            short_names: Vec::new(),
            categories: Vec::new(),
            scope,
            verbs: Cow::Borrowed(Verb::ALL),
            subresources: Vec::new(),
            schema: schema_name(group, version, kind).into(),
            storage_prefix: plural.into(),
            storage_version: version.into(),
            columns: columns("Name,Created At:date"),
            cells: Arc::new(created_at),
            selectable_fields: Vec::new(),
            strategy: Arc::new(Plain),
            list_kind: format!("{kind}List").into(),
            custom: None,
            deprecation: None,
            features: Features::NONE,
        })
    }

    pub fn short(mut self, names: &[&'static str]) -> Self {
        self.0.short_names = names.iter().map(|n| Name::from(*n)).collect();
        self
    }

    pub fn category(mut self, category: &'static str) -> Self {
        self.0.categories.push(category.into());
        self
    }

    pub fn verbs(mut self, verbs: &'static [Verb]) -> Self {
        self.0.verbs = Cow::Borrowed(verbs);
        self
    }

    /// The `status` subresource.
    pub fn status(self) -> Self {
        let kind = self.0.gvk();
        self.subresource_of("status", kind, STATUS_VERBS)
    }

    /// The `scale` subresource.
    pub fn scale(self) -> Self {
        self.subresource("scale", "autoscaling/v1", "Scale", STATUS_VERBS)
    }

    pub fn subresource(
        self,
        name: &'static str,
        group_version: &'static str,
        kind: &'static str,
        verbs: &'static [Verb],
    ) -> Self {
        let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
        self.subresource_of(name, GroupVersionKind::from_static(group, version, kind), verbs)
    }

    fn subresource_of(mut self, name: &'static str, kind: GroupVersionKind, verbs: &'static [Verb]) -> Self {
        self.0.subresources.push(Subresource { name: name.into(), kind, verbs: Cow::Borrowed(verbs) });
        self.0.subresources.sort_by(|a, b| a.name.cmp(&b.name));
        self
    }

    /// Where objects are stored, when it is not the plural.
    pub fn prefix(mut self, prefix: &'static str) -> Self {
        self.0.storage_prefix = prefix.into();
        self
    }

    /// The version in which objects are stored, when it is not this one.
    pub fn stored(mut self, version: &'static str) -> Self {
        self.0.storage_version = version.into();
        self
    }

    /// Columns in the short form of [`columns`], and what fills them.
    pub fn columns(mut self, names: &str, cells: fn(&Value, i64) -> Vec<Cell>) -> Self {
        self.0.columns = columns(names);
        self.0.cells = Arc::new(cells);
        self
    }

    /// Selectable fields that are scalars at their own path.
    pub fn fields(mut self, paths: &[&'static str]) -> Self {
        for path in paths {
            let path: &'static str = path;
            self = self.field(path, move |object| get::scalar(object, path));
        }
        self
    }

    /// A selectable field with a value of its own making.
    pub fn field(
        mut self,
        path: &'static str,
        value: impl Fn(&Value) -> String + Send + Sync + 'static,
    ) -> Self {
        self.0.selectable_fields.push(SelectableField { path: path.into(), value: Arc::new(value) });
        self
    }

    pub fn strategy(mut self, strategy: impl Strategy) -> Self {
        self.0.strategy = Arc::new(strategy);
        self
    }

    /// What every request for the kind is warned of.
    pub fn deprecated(mut self, warning: &'static str) -> Self {
        self.0.deprecation = Some(warning.into());
        self
    }

    pub fn build(self) -> Arc<ResourceDef> {
        Arc::new(self.0)
    }
}

/// The name of a kind's definition in the schema tables.
fn schema_name(group: &str, version: &str, kind: &str) -> String {
    match group {
        "" => format!("io.k8s.api.core.{version}.{kind}"),
        "apiextensions.k8s.io" => {
            format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{version}.{kind}")
        }
        "apiregistration.k8s.io" => {
            format!("io.k8s.kube-aggregator.pkg.apis.apiregistration.{version}.{kind}")
        }
        _ => format!("io.k8s.api.{}.{version}.{kind}", group.split('.').next().unwrap_or(group)),
    }
}

/// Reads columns from a comma-separated text: `Name,Ready:integer,+Node`. The type is `string` when not given;
/// `+` marks those that only `-o wide` shows; those called Name and Attacher have the format `name`.
pub fn columns(names: &str) -> Vec<Column> {
    names
        .split(',')
        .map(|text| {
            let (text, column_type) = text.split_once(':').unwrap_or((text, "string"));
            let (name, priority) = text.strip_prefix('+').map_or((text, 0), |wide| (wide, 1));
            Column {
                name: name.to_owned().into(),
                column_type: column_type.to_owned().into(),
                format: if matches!(name, "Name" | "Attacher") { "name".into() } else { "".into() },
                description: "".into(),
                priority,
            }
        })
        .collect()
}

/// The cells of kinds without columns of their own.
///
/// Upstream: apiserver/pkg/registry/rest/table.go
pub fn created_at(object: &Value, _now: i64) -> Vec<Cell> {
    vec![get::name(object).into(), get::text(object, "metadata.creationTimestamp").into()]
}

/// The group version of a subresource's kind as discovery shows it: only when it is not the resource's own.
pub fn foreign_group_version(def: &ResourceDef, subresource: &Subresource) -> Option<GroupVersion> {
    let own = GroupVersion { group: def.group.clone(), version: def.version.clone() };
    let of_kind = subresource.kind.group_version();
    (of_kind != own).then_some(of_kind)
}
