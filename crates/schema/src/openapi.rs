//! The OpenAPI documents: one of version 3 per group version, and one of version 2 for all.
//!
//! Made from the tables, from the descriptions that come with k8s-openapi, and from what the server serves, given
//! as [`Kind`]s. Making one takes milliseconds and megabytes, so a server makes it when asked.
//!
//! What clients read in them: kubectl finds `fieldValidation` among the parameters of PATCH and so leaves
//! validation to the server; explain walks the schemas; client-side apply reads merge keys.

mod discovery;
mod operations;
mod protobuf;
mod render;
mod schemas;

use serde_json::{Map, Value, json};

pub use protobuf::v2_protobuf;
use schemas::Schemas;

/// A kind that is served, with its routes.
#[derive(Clone, Debug, Default)]
pub struct Kind {
    pub group: String,
    pub version: String,
    pub kind: String,
    /// The lower-case plural in URLs.
    pub plural: String,
    pub namespaced: bool,
    /// `get`, `list`, `create`, `update`, `patch`, `delete`, `deletecollection`, `watch`.
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
    /// For custom resources: their OpenAPI v3 schema. Built-in kinds have theirs in the tables.
    pub schema: Option<Value>,
    /// The kind of a list of them, when there is a schema.
    pub list_kind: String,
}

/// A subresource, and the kind that it speaks.
#[derive(Clone, Debug, Default)]
pub struct Subresource {
    pub name: String,
    pub group: String,
    pub version: String,
    pub kind: String,
    pub verbs: Vec<String>,
}

/// Which language a document is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

/// The version 3 document of one group version: `kinds` are those of it. `release` is the server's version.
pub fn v3(kinds: &[Kind], release: &str) -> Value {
    let mut schemas = Schemas::new(Dialect::V3);
    schemas.about = kinds.first().map(|kind| (kind.group.clone(), kind.version.clone()));
    let paths = paths(kinds, &mut schemas);
    v3_document(paths, schemas, release)
}

/// The names of the version 3 documents besides those of group versions, given all kinds.
pub fn v3_others(kinds: &[Kind]) -> Vec<String> {
    discovery::documents(kinds)
}

/// One of [`v3_others`].
pub fn v3_other(name: &str, release: &str) -> Option<Value> {
    let mut schemas = Schemas::new(Dialect::V3);
    let mut paths = Map::new();
    discovery::add(name, &mut schemas, &mut paths).then(|| v3_document(paths, schemas, release))
}

fn v3_document(paths: Map<String, Value>, schemas: Schemas, release: &str) -> Value {
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": release},
        "paths": paths,
        "components": {"schemas": schemas.finish(), "securitySchemes": {"BearerToken": bearer_token()}},
    })
}

/// The version 2 document of all kinds.
pub fn v2(kinds: &[Kind], release: &str) -> Value {
    let mut schemas = Schemas::new(Dialect::V2);
    let mut paths = paths(kinds, &mut schemas);
    for name in discovery::documents(kinds) {
        discovery::add(&name, &mut schemas, &mut paths);
    }
    let parameters = render::share_parameters(&mut paths);
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": release},
        "paths": paths,
        "definitions": schemas.finish(),
        "parameters": parameters,
        "security": [{"BearerToken": []}],
        "securityDefinitions": {"BearerToken": bearer_token()},
    })
}

fn bearer_token() -> Value {
    json!({
        "description": "Bearer Token authentication",
        "in": "header",
        "name": "authorization",
        "type": "apiKey",
    })
}

fn paths(kinds: &[Kind], schemas: &mut Schemas) -> Map<String, Value> {
    let mut paths = Map::new();
    for kind in kinds {
        let root = format!("{}/", operations::root(&kind.group, &kind.version));
        if !paths.contains_key(&root) {
            discovery::add_version(&kind.group, &kind.version, schemas, &mut paths);
        }
        operations::add(kind, schemas, &mut paths);
    }
    paths
}

#[cfg(test)]
mod tests;
