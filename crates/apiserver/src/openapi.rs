//! `/openapi/v2` and `/openapi/v3`: documents made from the table when first asked for, and kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use apimachinery::Status;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use schema::openapi::{Kind, Subresource};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::body::{Body, Response};
use crate::discovery::hex;
use crate::handle::{ApiServer, Asked};
use crate::health::VERSION;
use crate::registry::{Resource, Table};

#[derive(Clone)]
struct Document {
    body: Bytes,
    hash: String,
}

impl Document {
    fn new(value: &Value) -> Self {
        Document::of(Bytes::from(value.to_string()))
    }

    fn of(body: Bytes) -> Self {
        Document { hash: hex(&Sha256::digest(&body)), body }
    }
}

const JSON: &str = "application/json";

/// Gnostic's message of a version 2 document.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// The name that older clients know it by.
const OLD_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// How a version 2 document is wanted; `None` for a form that there is not.
///
/// Upstream: kube-openapi/pkg/handler/handler.go RegisterOpenAPIVersionedService
fn form(accept: &str) -> Option<&'static str> {
    if accept.trim().is_empty() {
        return Some(JSON);
    }
    accept.split(',').find_map(|entry| match entry.split(';').next().unwrap_or_default().trim() {
        PROTOBUF | OLD_PROTOBUF => Some(PROTOBUF),
        JSON | "application/*" | "*/*" => Some(JSON),
        _ => None,
    })
}

/// The documents that were asked for, for one table.
#[derive(Default)]
pub struct Documents(Mutex<HashMap<String, (usize, Document)>>);

impl Documents {
    /// `path` is `v2`, `v2-protobuf`, or the group version's path for version 3 (`apis/apps/v1`).
    fn get(&self, table: &Arc<Table>, path: &str) -> Option<Document> {
        let made_for = Arc::as_ptr(table) as usize;
        let kept = self
            .lock()
            .get(path)
            .filter(|(table, _)| *table == made_for)
            .map(|(_, document)| document.clone());
        if kept.is_some() {
            return kept;
        }
        let kinds: Vec<Kind> = match path {
            "v2" | "v2-protobuf" => table.rows().iter().map(|row| kind(row)).collect(),
            _ => table.rows().iter().filter(|row| group_path(row) == path).map(|row| kind(row)).collect(),
        };
        if kinds.is_empty() {
            return None;
        }
        let document = match path {
            "v2" => Document::new(&schema::openapi::v2(&kinds, VERSION)),
            "v2-protobuf" => {
                let document = schema::openapi::v2(&kinds, VERSION);
                Document::of(schema::openapi::v2_protobuf(&document).into())
            }
            _ => Document::new(&schema::openapi::v3(&kinds, VERSION)),
        };
        self.lock().insert(path.to_owned(), (made_for, document.clone()));
        Some(document)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (usize, Document)>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn group_path(row: &Resource) -> String {
    match &*row.def.group {
        "" => format!("api/{}", row.def.version),
        group => format!("apis/{group}/{}", row.def.version),
    }
}

fn kind(row: &Resource) -> Kind {
    let def = &row.def;
    let verbs = |verbs: &[resources::Verb]| verbs.iter().map(|v| v.as_str().to_owned()).collect::<Vec<_>>();
    Kind {
        group: def.group.to_string(),
        version: def.version.to_string(),
        kind: def.kind.to_string(),
        plural: def.plural.to_string(),
        namespaced: def.namespaced(),
        verbs: verbs(&def.verbs),
        subresources: def
            .subresources
            .iter()
            .map(|s| Subresource {
                name: s.name.to_string(),
                group: s.kind.group.to_string(),
                version: s.kind.version.to_string(),
                kind: s.kind.kind.to_string(),
                verbs: verbs(&s.verbs),
            })
            .collect(),
        schema: None,
    }
}

pub fn handle(server: &Arc<ApiServer>, asked: &Asked, path: &str) -> Result<Response, Status> {
    let table = server.registry.table();
    match path {
        "/openapi/v2" => {
            let accept = asked.parts.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
            let form = form(accept.unwrap_or_default());
            let form = form.ok_or_else(|| Status::not_acceptable(&[JSON, PROTOBUF]))?;
            let path = if form == PROTOBUF { "v2-protobuf" } else { "v2" };
            let document = server.openapi.get(&table, path).ok_or_else(Status::page_not_found)?;
            Ok(respond(asked, &document, form))
        }
        "/openapi/v3" => {
            let mut paths = Map::new();
            for row in table.rows() {
                let path = group_path(row);
                if paths.contains_key(&path) {
                    continue;
                }
                let document = server.openapi.get(&table, &path).ok_or_else(Status::page_not_found)?;
                let url = format!("/openapi/v3/{path}?hash={}", document.hash);
                paths.insert(path, json!({"serverRelativeURL": url}));
            }
            Ok(respond(asked, &Document::new(&json!({"paths": paths})), JSON))
        }
        _ => {
            let group = path.strip_prefix("/openapi/v3/").ok_or_else(Status::page_not_found)?;
            let document = server.openapi.get(&table, group).ok_or_else(Status::page_not_found)?;
            Ok(respond(asked, &document, JSON))
        }
    }
}

fn respond(asked: &Asked, document: &Document, content_type: &'static str) -> Response {
    let etag = format!("\"{}\"", document.hash);
    let given = asked.parts.headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let known = given.is_some_and(|given| given.split(',').any(|tag| tag.trim() == etag));
    let body = if known { Body::empty() } else { Body::Full(document.body.clone()) };
    let mut response = Response::new(body);
    *response.status_mut() = if known { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_there_is_wins() {
        for (accept, expected) in [
            ("", Some(JSON)),
            ("*/*", Some(JSON)),
            ("application/com.github.proto-openapi.spec.v2@v1.0+protobuf", Some(PROTOBUF)),
            (
                "application/com.github.proto-openapi.spec.v2.v1.0+protobuf, application/json;q=0.9",
                Some(PROTOBUF),
            ),
            ("text/html, application/json", Some(JSON)),
            ("text/html", None),
        ] {
            assert_eq!(form(accept), expected, "{accept}");
        }
    }
}
