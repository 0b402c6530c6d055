//! The OpenAPI documents: one of version 3 per group version, and one of version 2 for all.
//!
//! Made from the tables and from what the server serves, given as [`Kind`]s. Making them takes milliseconds, so
//! a server makes them when first asked and keeps them.
//!
//! What clients read in them: kubectl finds `fieldValidation` among the parameters of PATCH and so leaves
//! validation to the server; explain walks the schemas; client-side apply reads merge keys. Descriptions are
//! absent.

mod operations;
mod protobuf;
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
    let paths = paths(kinds, &mut schemas);
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": release},
        "paths": paths,
        "components": {
            "schemas": schemas.finish(),
            "securitySchemes": {"BearerToken": {
                "description": "Bearer Token authentication",
                "in": "header",
                "name": "authorization",
                "type": "apiKey",
            }},
        },
    })
}

/// The version 2 document of all kinds.
pub fn v2(kinds: &[Kind], release: &str) -> Value {
    let mut schemas = Schemas::new(Dialect::V2);
    let paths = paths(kinds, &mut schemas);
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": release},
        "paths": paths,
        "definitions": schemas.finish(),
        "security": [{"BearerToken": []}],
        "securityDefinitions": {"BearerToken": {
            "description": "Bearer Token authentication",
            "in": "header",
            "name": "authorization",
            "type": "apiKey",
        }},
    })
}

fn paths(kinds: &[Kind], schemas: &mut Schemas) -> Map<String, Value> {
    let mut paths = Map::new();
    for kind in kinds {
        operations::add(kind, schemas, &mut paths);
    }
    paths
}

#[cfg(test)]
mod tests;
