//! `/openapi/v2` and `/openapi/v3`: documents made from the table when first asked for, and kept packed.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, Weak};

use apimachinery::Status;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use schema::openapi::{self, Kind, Subresource};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::body::{Body, Response};
use crate::discovery::hex;
use crate::handle::{ApiServer, Asked};
use crate::health::VERSION;
use crate::registry::{Resource, Table};

/// A document as gzip.
type Packed = Bytes;

fn pack(document: &[u8]) -> Packed {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let written = packed.write_all(document).and_then(|()| packed.finish());
    written.expect("memory takes all").into()
}

fn unpack(packed: &Packed) -> Bytes {
    let mut document = Vec::new();
    let read = flate2::read::GzDecoder::new(&**packed).read_to_end(&mut document);
    read.expect("it was packed here");
    document.into()
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
pub struct Documents(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    table: Weak<Table>,
    /// The version 3 documents there are, and what tells their contents apart.
    hashes: Option<Arc<Vec<(String, String)>>>,
    documents: HashMap<String, Packed>,
}

impl Documents {
    fn lock(&self, table: &Arc<Table>) -> std::sync::MutexGuard<'_, Kept> {
        let mut kept = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !std::ptr::eq(kept.table.as_ptr(), Arc::as_ptr(table)) {
            *kept = Kept { table: Arc::downgrade(table), ..Kept::default() };
        }
        kept
    }

    /// The paths of all version 3 documents with the hash of each. A document is a function of the kinds, so these
    /// are hashed, and no document is made for it.
    fn hashes(&self, table: &Arc<Table>) -> Arc<Vec<(String, String)>> {
        if let Some(hashes) = &self.lock(table).hashes {
            return hashes.clone();
        }
        let mut groups: Vec<(String, Sha256)> = Vec::new();
        for row in table.rows() {
            let path = group_path(row);
            let at = groups.iter().position(|(known, _)| *known == path).unwrap_or_else(|| {
                groups.push((path, Sha256::new_with_prefix(VERSION)));
                groups.len() - 1
            });
            groups[at].1.update(format!("{:?}", kind(row)));
        }
        let kinds: Vec<Kind> = table.rows().iter().map(|row| kind(row)).collect();
        for path in openapi::v3_others(&kinds) {
            let hash = Sha256::new_with_prefix(VERSION).chain_update(&path);
            groups.push((path, hash));
        }
        let hashes: Vec<_> = groups.into_iter().map(|(path, hash)| (path, hex(&hash.finalize()))).collect();
        let hashes = Arc::new(hashes);
        self.lock(table).hashes = Some(hashes.clone());
        hashes
    }

    /// What tells the version 2 document apart: it is made of all that the others are made of.
    fn hash_of_all(&self, table: &Arc<Table>, path: &str) -> String {
        let mut hash = Sha256::new_with_prefix(path);
        self.hashes(table).iter().for_each(|(_, part)| hash.update(part));
        hex(&hash.finalize())
    }

    /// `path` is `v2`, `v2-protobuf`, or that of a version 3 document (`apis/apps/v1`).
    fn get(&self, table: &Arc<Table>, path: &str) -> Option<Packed> {
        if let Some(packed) = self.lock(table).documents.get(path) {
            return Some(packed.clone());
        }
        let kinds = |wanted: &dyn Fn(&Resource) -> bool| -> Vec<Kind> {
            table.rows().iter().filter(|row| wanted(row)).map(|row| kind(row)).collect()
        };
        let document = match path {
            "v2" => openapi::v2(&kinds(&|_| true), VERSION).to_string().into_bytes(),
            "v2-protobuf" => openapi::v2_protobuf(&openapi::v2(&kinds(&|_| true), VERSION)),
            _ => {
                let kinds = kinds(&|row| group_path(row) == path);
                let document = if kinds.is_empty() {
                    openapi::v3_other(path, VERSION)?
                } else {
                    openapi::v3(&kinds, VERSION)
                };
                document.to_string().into_bytes()
            }
        };
        let packed = pack(&document);
        self.lock(table).documents.insert(path.to_owned(), packed.clone());
        Some(packed)
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
        schema: def.custom.as_ref().map(|custom| declared(def, &custom.declared)),
        list_kind: def.list_kind.to_string(),
    }
}

/// The schema of a custom kind, with the fields that it can be selected by.
fn declared(def: &resources::ResourceDef, schema: &Value) -> Value {
    let mut schema = if schema.is_object() { schema.clone() } else { json!({}) };
    if !def.selectable_fields.is_empty() {
        let fields: Vec<Value> =
            def.selectable_fields.iter().map(|field| json!({"fieldPath": field.path})).collect();
        schema["x-kubernetes-selectable-fields"] = fields.into();
    }
    schema
}

pub fn handle(server: &Arc<ApiServer>, asked: &Asked, path: &str) -> Result<Response, Status> {
    let table = server.registry.table();
    let documents = &server.openapi;
    match path {
        "/openapi/v2" => {
            let accept = asked.parts.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
            let form = form(accept.unwrap_or_default());
            let form = form.ok_or_else(|| Status::not_acceptable(&[JSON, PROTOBUF]))?;
            if let Some((document, hash)) = with_others(server, &table, form) {
                return Ok(respond(asked, &document, &hash, form));
            }
            let path = if form == PROTOBUF { "v2-protobuf" } else { "v2" };
            let document = documents.get(&table, path).ok_or_else(Status::page_not_found)?;
            Ok(respond(asked, &document, &documents.hash_of_all(&table, path), form))
        }
        "/openapi/v3" => {
            let url = |(path, hash): &(String, String)| {
                let url = format!("/openapi/v3/{path}?hash={hash}");
                (path.clone(), json!({"serverRelativeURL": url}))
            };
            let mut paths: Map<String, Value> = documents.hashes(&table).iter().map(url).collect();
            server.aggregation.join_openapi_v3(&mut paths);
            let root = json!({"paths": paths}).to_string();
            let hash = hex(&Sha256::digest(&root));
            Ok(respond(asked, &pack(root.as_bytes()), &hash, JSON))
        }
        _ => {
            let path = path.strip_prefix("/openapi/v3/").ok_or_else(Status::page_not_found)?;
            let hashes = documents.hashes(&table);
            let (_, hash) = hashes.iter().find(|(p, _)| p == path).ok_or_else(Status::page_not_found)?;
            let document = documents.get(&table, path).ok_or_else(Status::page_not_found)?;
            Ok(respond(asked, &document, hash, JSON))
        }
    }
}

/// The version 2 document with what aggregated API servers serve, kept until one of them says something else;
/// `None` when there are none.
fn with_others(server: &ApiServer, table: &Arc<Table>, form: &str) -> Option<(Packed, String)> {
    let generation = server.aggregation.openapi_generation();
    if generation == 0 {
        return None;
    }
    let own = server.openapi.hash_of_all(table, form);
    let hash = hex(&Sha256::digest(format!("{own}/{generation}")));
    let key = format!("joined {form} {hash}");
    if let Some(packed) = server.openapi.lock(table).documents.get(&key) {
        return Some((packed.clone(), hash));
    }
    let own = unpack(&server.openapi.get(table, "v2")?);
    let mut document: Value = serde_json::from_slice(&own).ok()?;
    server.aggregation.join_openapi_v2(&mut document);
    let packed = match form {
        PROTOBUF => pack(&openapi::v2_protobuf(&document)),
        _ => pack(document.to_string().as_bytes()),
    };
    let kept = &mut server.openapi.lock(table).documents;
    kept.retain(|key, _| !key.starts_with(&format!("joined {form} ")));
    kept.insert(key, packed.clone());
    Some((packed, hash))
}

fn respond(asked: &Asked, document: &Packed, hash: &str, content_type: &'static str) -> Response {
    let given = |name: header::HeaderName| asked.parts.headers.get(name).and_then(|v| v.to_str().ok());
    let etag = format!("\"{hash}\"");
    let known =
        given(header::IF_NONE_MATCH).is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == etag));
    let packed = given(header::ACCEPT_ENCODING).is_some_and(|codings| {
        codings.split(',').any(|coding| coding.split(';').next().unwrap_or_default().trim() == "gzip")
    });
    let body = match (known, packed) {
        (true, _) => Body::empty(),
        (false, true) => Body::Full(document.clone()),
        (false, false) => Body::Full(unpack(document)),
    };
    let mut response = Response::new(body);
    *response.status_mut() = if known { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    if packed && !known {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
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
