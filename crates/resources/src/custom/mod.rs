//! Custom kinds: the rows that a CustomResourceDefinition adds to the table at run time.
//!
//! [`rows`] makes them; from there on they go the way of all kinds. What such a row has besides is [`Custom`]: its
//! schema, which shapes every object on its way in and out, and how its versions are converted. [`strategy`] is
//! what the kind does, [`rules`] its expressions, [`columns`] its cells. [`status`] decides what a definition's
//! status says: which names it got, and whether it is served.
//!
//! Upstream: apiextensions-apiserver/pkg/apiserver/customresource_handler.go

mod columns;
pub mod rules;
pub mod status;
mod strategy;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use apimachinery::gvk::Name;
use apimachinery::jsonpath::JsonPath;
use apimachinery::{GroupVersion, GroupVersionKind, versions};
use schema::structural::embedded::{self, Malformed};
use schema::structural::{Structural, default, prune};
use serde_json::Value;

use crate::definition::{Column, ResourceDef, Scope, SelectableField, Subresource, Verb};
use crate::features::Features;
use crate::get::{is_true, list, set, text, texts};

const STATUS_VERBS: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];

/// How objects of one version become those of another.
#[derive(Clone, Debug, PartialEq)]
pub enum Conversion {
    /// Only the `apiVersion` changes.
    None,
    Webhook {
        /// `url` or `service`, with `caBundle`.
        client_config: Value,
        review_versions: Vec<String>,
    },
}

/// Where the replicas of a custom kind are, as paths of field names.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalePaths {
    pub spec_replicas: Vec<String>,
    pub status_replicas: Vec<String>,
    pub label_selector: Option<Vec<String>>,
}

/// What all versions of a custom kind share.
#[derive(Debug)]
pub struct Versions {
    /// The name of the definition.
    pub definition: String,
    pub group: String,
    pub kind: String,
    pub conversion: Conversion,
    /// By version, served or not.
    schemas: BTreeMap<String, Arc<Structural>>,
    /// Nothing is pruned, as before there were structural schemas.
    preserve_unknown: bool,
    /// The definition is being deleted: no object may be created.
    terminating: AtomicBool,
}

/// What a row of a custom kind has besides what every row has.
#[derive(Debug)]
pub struct Custom {
    pub versions: Arc<Versions>,
    /// Of the row's version.
    pub schema: Arc<Structural>,
    /// The schema as the definition declares it, for OpenAPI; null for none.
    pub declared: Value,
    pub has_status: bool,
    pub scale: Option<ScalePaths>,
}

/// Why an object of a custom kind has no such shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misshapen(pub String);

impl Versions {
    pub fn is_terminating(&self) -> bool {
        self.terminating.load(Ordering::Relaxed)
    }

    pub fn set_terminating(&self, terminating: bool) {
        self.terminating.store(terminating, Ordering::Relaxed);
    }

    fn schema(&self, api_version: &str) -> Option<&Arc<Structural>> {
        let group_version = GroupVersion::parse(api_version)?;
        self.schemas.get(&*group_version.version).filter(|_| group_version.group == self.group)
    }

    /// Prunes an object of any version and gives its metadata their shape. Gives the paths of unknown fields:
    /// those in the metadata, then those of the schema.
    ///
    /// Upstream: apiextensions-apiserver/pkg/apiserver/customresource_handler.go unstructuredSchemaCoercer
    pub fn shape(&self, object: &mut Value, malformed: Malformed) -> Result<Vec<String>, Misshapen> {
        let none = Arc::default();
        let schema = self.schema(text(object, "apiVersion")).unwrap_or(&none);
        let mut unknown = embedded::shape_own(object, malformed).map_err(Misshapen)?;
        if !self.preserve_unknown {
            unknown.extend(prune::object(object, schema));
            default::drop_nulls(object, Some(schema));
        }
        let inner = embedded::shape_embedded(object, schema, malformed);
        unknown.extend(inner.map_err(|error| Misshapen(error.to_string()))?);
        Ok(unknown)
    }

    /// Sets what the schema of the object's version defaults.
    pub fn default(&self, object: &mut Value) {
        if let Some(schema) = self.schema(text(object, "apiVersion")).cloned() {
            default::apply(object, &schema);
        }
    }

    /// An object as it was stored, in the version of then, with the defaults of now.
    pub fn read(&self, stored: &mut Value) {
        // What was stored once is never refused.
        let _ = self.shape(stored, Malformed::Drop);
        if stored.pointer("/metadata/generation").is_none() {
            set(stored, "metadata.generation", 1);
        }
        self.default(stored);
    }
}

/// Whether a definition has a condition with status True.
pub fn is_true_condition(definition: &Value, kind: &str) -> bool {
    list(definition, "status.conditions")
        .iter()
        .any(|condition| text(condition, "type") == kind && text(condition, "status") == "True")
}

/// Whether a definition's kinds are served: it has got its names.
pub fn is_served(definition: &Value) -> bool {
    let named = ["plural", "singular", "kind", "listKind"]
        .iter()
        .all(|name| !text(definition, &format!("status.acceptedNames.{name}")).is_empty());
    named && ["NamesAccepted", "Established"].iter().any(|kind| is_true_condition(definition, kind))
}

/// What of a definition its rows are made of: as long as it is equal, the rows stay.
pub fn essence(definition: &Value) -> Value {
    let field = |path: &str| definition.pointer(path).cloned().unwrap_or_default();
    Value::Array(vec![field("/metadata/uid"), field("/spec"), field("/status/acceptedNames")])
}

/// The rows of a definition: one for each version that is served.
pub fn rows(definition: &Value) -> Vec<Arc<ResourceDef>> {
    let versions = Arc::new(Versions {
        definition: text(definition, "metadata.name").to_owned(),
        group: text(definition, "spec.group").to_owned(),
        kind: text(definition, "status.acceptedNames.kind").to_owned(),
        conversion: conversion(definition),
        schemas: list(definition, "spec.versions")
            .iter()
            .map(|version| (text(version, "name").to_owned(), Arc::new(Structural::of(declared(version)))))
            .collect(),
        preserve_unknown: is_true(definition, "spec.preserveUnknownFields"),
        terminating: AtomicBool::new(is_true_condition(definition, "Terminating")),
    });
    let served = list(definition, "spec.versions").iter().filter(|version| is_true(version, "served"));
    served.map(|version| Arc::new(row(definition, version, &versions))).collect()
}

fn declared(version: &Value) -> &Value {
    version.pointer("/schema/openAPIV3Schema").unwrap_or(&Value::Null)
}

fn conversion(definition: &Value) -> Conversion {
    match text(definition, "spec.conversion.strategy") {
        "Webhook" => Conversion::Webhook {
            client_config: definition
                .pointer("/spec/conversion/webhook/clientConfig")
                .cloned()
                .unwrap_or_default(),
            review_versions: texts(definition, "spec.conversion.webhook.conversionReviewVersions")
                .into_iter()
                .map(str::to_owned)
                .collect(),
        },
        _ => Conversion::None,
    }
}

fn row(definition: &Value, version: &Value, versions: &Arc<Versions>) -> ResourceDef {
    let name = |field: &str| owned(text(definition, &format!("status.acceptedNames.{field}")));
    let names = |field: &str| -> Vec<Name> {
        texts(definition, &format!("status.acceptedNames.{field}")).into_iter().map(owned).collect()
    };
    let group = owned(text(definition, "spec.group"));
    let version_name = owned(text(version, "name"));
    let custom = Arc::new(custom(version, versions));
    let gvk = GroupVersionKind { group: group.clone(), version: version_name.clone(), kind: name("kind") };
    let storage = list(definition, "spec.versions").iter().find(|version| is_true(version, "storage"));
    let (columns, cells) = columns::of(version);
    ResourceDef {
        storage_prefix: format!("{group}/{}", name("plural")).into(),
        storage_version: owned(storage.map_or("", |version| text(version, "name"))),
        group,
        version: version_name,
        kind: name("kind"),
        plural: name("plural"),
        singular: name("singular"),
        short_names: names("shortNames"),
        categories: names("categories"),
        scope: match text(definition, "spec.scope") {
            "Cluster" => Scope::Cluster,
            _ => Scope::Namespaced,
        },
        verbs: Cow::Borrowed(Verb::ALL),
        subresources: subresources(&custom, gvk),
        schema: "".into(),
        columns,
        cells,
        selectable_fields: selectable_fields(version),
        strategy: Arc::new(strategy::CustomStrategy::new(custom.clone())),
        list_kind: name("listKind"),
        custom: Some(custom),
        deprecation: deprecation(definition, version).map(Name::from),
        features: Features::NONE,
    }
}

fn owned(text: &str) -> Name {
    Cow::Owned(text.to_owned())
}

fn custom(version: &Value, versions: &Arc<Versions>) -> Custom {
    let path = |field: &str| -> Vec<String> {
        let path = text(version, &format!("subresources.scale.{field}"));
        path.trim_start_matches('.').split('.').filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let scale = version.pointer("/subresources/scale").filter(|scale| !scale.is_null()).map(|_| ScalePaths {
        spec_replicas: path("specReplicasPath"),
        status_replicas: path("statusReplicasPath"),
        label_selector: Some(path("labelSelectorPath")).filter(|path| !path.is_empty()),
    });
    Custom {
        schema: versions.schemas.get(text(version, "name")).cloned().unwrap_or_default(),
        declared: declared(version).clone(),
        versions: versions.clone(),
        has_status: version.pointer("/subresources/status").is_some_and(|status| !status.is_null()),
        scale,
    }
}

fn subresources(custom: &Custom, gvk: GroupVersionKind) -> Vec<Subresource> {
    let mut found = Vec::new();
    let mut add = |name: &'static str, kind: GroupVersionKind| {
        found.push(Subresource { name: name.into(), kind, verbs: Cow::Borrowed(STATUS_VERBS) });
    };
    if custom.scale.is_some() {
        add("scale", GroupVersionKind::from_static("autoscaling", "v1", "Scale"));
    }
    if custom.has_status {
        add("status", gvk);
    }
    found
}

fn selectable_fields(version: &Value) -> Vec<SelectableField> {
    let field = |field: &Value| {
        let path = text(field, "jsonPath");
        let parsed = JsonPath::parse(path).ok()?;
        let value = move |object: &Value| match parsed.first(object) {
            Some(Value::Null) | None => String::new(),
            Some(value) => apimachinery::jsonpath::print(value),
        };
        Some(SelectableField { path: owned(path.trim_start_matches('.')), value: Arc::new(value) })
    };
    list(version, "selectableFields").iter().filter_map(field).collect()
}

/// What users of a deprecated version are told.
fn deprecation(definition: &Value, version: &Value) -> Option<String> {
    if !is_true(version, "deprecated") {
        return None;
    }
    if let Some(warning) = version.get("deprecationWarning").and_then(Value::as_str) {
        return Some(warning.to_owned());
    }
    let (group, kind) = (text(definition, "spec.group"), text(definition, "spec.names.kind"));
    let name = text(version, "name");
    let newer = list(definition, "spec.versions")
        .iter()
        .filter(|other| is_true(other, "served") && !is_true(other, "deprecated"))
        .map(|other| text(other, "name"))
        .filter(|other| versions::compare(name, other).is_lt())
        .max_by(|a, b| versions::compare(a, b));
    Some(match newer {
        Some(newer) => format!("{group}/{name} {kind} is deprecated; use {group}/{newer} {kind}"),
        None => format!("{group}/{name} {kind} is deprecated"),
    })
}

#[cfg(test)]
mod tests;
