//! Discovery: what is served, told from the table.
//!
//! Upstream: apiserver/pkg/endpoints/discovery

use std::cmp::Reverse;
use std::sync::Arc;

use apimachinery::Status;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Method, StatusCode, header};
use resources::{ResourceDef, Verb};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::aggregation::priorities;
use crate::body::{Body, Response};
use crate::encode;
use crate::handle::{ApiServer, Asked};
use crate::negotiate::clauses;
use crate::registry::{Resource, Table};

/// The groups but for the core one in upstream's order, each with its versions, the preferred first.
fn groups(table: &Table) -> Vec<(&str, Vec<&str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for row in table.rows().iter().filter(|row| !row.def.group.is_empty()) {
        let (group, version) = (&*row.def.group, &*row.def.version);
        match groups.iter_mut().find(|(g, _)| *g == group) {
            Some((_, versions)) if versions.contains(&version) => {}
            Some((_, versions)) => versions.push(version),
            None => groups.push((group, vec![version])),
        }
    }
    for (_, versions) in &mut groups {
        versions.sort_by(|a, b| apimachinery::versions::compare(b, a));
    }
    groups.sort_by_key(|(group, _)| (Reverse(priorities::of_group(group)), *group));
    groups
}

fn api_group(group: &str, versions: &[&str]) -> Value {
    let entry = |version: &str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({
        "name": group,
        "versions": versions.iter().map(|v| entry(v)).collect::<Vec<_>>(),
        "preferredVersion": entry(versions[0]),
    })
}

fn rows<'t>(table: &'t Table, group: &str, version: &str) -> Vec<&'t Arc<Resource>> {
    let mut rows: Vec<_> =
        table.rows().iter().filter(|row| row.def.group == group && row.def.version == version).collect();
    rows.sort_by(|a, b| a.def.plural.cmp(&b.def.plural));
    rows
}

fn verbs(verbs: &[Verb]) -> Value {
    let mut names: Vec<&str> = verbs.iter().map(|v| v.as_str()).collect();
    names.sort_unstable();
    json!(names)
}

/// Objects of a custom kind whose definition is being deleted can only be read and deleted.
fn served_verbs(def: &ResourceDef) -> Value {
    let terminating = def.custom.as_ref().is_some_and(|custom| custom.versions.is_terminating());
    let kept = |verb: &&Verb| !terminating || !matches!(verb, Verb::Create | Verb::Patch | Verb::Update);
    if def.custom.is_some() {
        let shown = VERBS_OF_CUSTOM.iter().filter(|verb| def.verbs.contains(verb)).filter(kept);
        return shown.map(|verb| verb.as_str()).collect();
    }
    let kept: Vec<Verb> = def.verbs.iter().filter(kept).copied().collect();
    verbs(&kept)
}

/// The order in which upstream lists the verbs of custom kinds.
///
/// Upstream: apiextensions-apiserver/pkg/apiserver/customresource_discovery_controller.go sync
const VERBS_OF_CUSTOM: &[Verb] = &[
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Create,
    Verb::Update,
    Verb::Watch,
];

/// Upstream: apiserver/pkg/endpoints/discovery/storageversionhash.go
fn storage_version_hash(resource: &Resource) -> String {
    let gvk = resource.storage_gvk();
    let digest = Sha256::digest(format!("{}/{}/{}", gvk.group, gvk.version, gvk.kind));
    STANDARD.encode(&digest[..8])
}

/// The APIResourceList of a group version.
pub fn resource_list(table: &Table, group: &str, version: &str) -> Value {
    let mut list: Vec<(String, Value)> = Vec::new();
    for row in rows(table, group, version) {
        let def = &row.def;
        let mut entry = json!({
            "name": def.plural, "singularName": def.singular, "namespaced": def.namespaced(), "kind": def.kind,
            "verbs": served_verbs(def),
        });
        if !def.short_names.is_empty() {
            entry["shortNames"] = json!(def.short_names);
        }
        if !def.categories.is_empty() {
            entry["categories"] = json!(def.categories);
        }
        if row.cache.is_some() {
            entry["storageVersionHash"] = storage_version_hash(row).into();
        }
        list.push((def.plural.to_string(), entry));
        for subresource in &def.subresources {
            let name = format!("{}/{}", def.plural, subresource.name);
            let kind = &subresource.kind;
            let mut entry = json!({
                "name": name, "singularName": "", "namespaced": def.namespaced(), "kind": kind.kind,
                "verbs": verbs(&subresource.verbs),
            });
            if kind.group != def.group || kind.version != def.version {
                entry["group"] = json!(kind.group);
                entry["version"] = json!(kind.version);
            }
            list.push((name, entry));
        }
    }
    list.sort_by(|(a, _), (b, _)| a.cmp(b));
    let entries: Vec<Value> = list.into_iter().map(|(_, entry)| entry).collect();
    let group_version = apimachinery::GroupVersion::new(group.to_owned(), version.to_owned()).to_string();
    let mut document =
        json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": entries});
    if !group.is_empty() {
        document["apiVersion"] = "v1".into();
    }
    document
}

fn response_kind(def: &ResourceDef, kind: &apimachinery::GroupVersionKind) -> Value {
    if kind.group == def.group && kind.version == def.version {
        return json!({"group": "", "version": "", "kind": kind.kind});
    }
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

fn aggregated_resource(def: &ResourceDef) -> Value {
    let mut entry = json!({
        "resource": def.plural, "responseKind": response_kind(def, &def.gvk()),
        "scope": if def.namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": def.singular, "verbs": served_verbs(def),
    });
    if !def.short_names.is_empty() {
        entry["shortNames"] = json!(def.short_names);
    }
    if !def.categories.is_empty() {
        entry["categories"] = json!(def.categories);
    }
    let mut subresources: Vec<_> = def.subresources.iter().collect();
    subresources.sort_by(|a, b| a.name.cmp(&b.name));
    if !subresources.is_empty() {
        let one = |s: &&resources::Subresource| json!({"subresource": s.name, "responseKind": response_kind(def, &s.kind), "verbs": verbs(&s.verbs)});
        entry["subresources"] = subresources.iter().map(one).collect();
    }
    entry
}

/// The APIGroupDiscoveryList of the core group, or of all others.
pub fn aggregated(table: &Table, core: bool) -> Value {
    let groups = if core { vec![("", vec!["v1"])] } else { groups(table) };
    let item = |(group, versions): &(&str, Vec<&str>)| {
        let version = |version: &&str| {
            let resources: Vec<Value> =
                rows(table, group, version).iter().map(|row| aggregated_resource(&row.def)).collect();
            json!({"version": version, "freshness": "Current", "resources": resources})
        };
        let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
        json!({"metadata": metadata, "versions": versions.iter().map(version).collect::<Vec<_>>()})
    };
    let items: Vec<Value> = groups.iter().map(item).collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    })
}

/// The plain documents: `/apis` and below.
pub fn document(table: &Table, advertised: &str, path: &str) -> Result<Value, Status> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api"] => Ok(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": advertised}],
        })),
        ["apis"] => {
            let groups: Vec<Value> =
                groups(table).iter().map(|(group, versions)| api_group(group, versions)).collect();
            Ok(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", group] => {
            let groups = groups(table);
            let (group, versions) =
                groups.iter().find(|(g, _)| g == group).ok_or_else(Status::page_not_found)?;
            let mut document = api_group(group, versions);
            document["kind"] = "APIGroup".into();
            document["apiVersion"] = "v1".into();
            Ok(document)
        }
        ["api", version] if table.serves_version("", version) => Ok(resource_list(table, "", version)),
        ["apis", group, version] if table.serves_version(group, version) => {
            Ok(resource_list(table, group, version))
        }
        [""] => {
            let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
            for (group, versions) in groups(table) {
                paths.push(format!("/apis/{group}"));
                paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
            }
            let others =
                ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"];
            paths.extend(others.map(str::to_owned));
            Ok(json!({"paths": paths}))
        }
        _ => Err(Status::page_not_found()),
    }
}

pub fn handle(server: &Arc<ApiServer>, asked: &Asked, path: &str) -> Result<Response, Status> {
    if !matches!(asked.parts.method, Method::GET | Method::HEAD) {
        return Err(Status::method_not_allowed());
    }
    let table = server.registry.table();
    if matches!(path, "/api" | "/apis")
        && let Some(version) = wants_aggregated(&asked.parts.headers)
    {
        let mut document = aggregated(&table, path == "/api");
        document["apiVersion"] = format!("apidiscovery.k8s.io/{version}").into();
        if path == "/apis" {
            server.aggregation.join_discovery(&mut document);
        }
        return Ok(aggregated_response(asked, version, &document));
    }
    let advertised = std::net::SocketAddr::from(server.config.advertise).to_string();
    let document = with_others(server, path, document(&table, &advertised, path))?;
    let negotiated = server.config.forms.accept(&asked.parts.headers, false)?;
    Ok(encode::value(negotiated.format, StatusCode::OK, &document))
}

/// A plain document with the groups of aggregated API servers.
fn with_others(server: &ApiServer, path: &str, own: Result<Value, Status>) -> Result<Value, Status> {
    if path == "/apis" {
        let mut list = own?;
        server.aggregation.join_groups(&mut list);
        return Ok(list);
    }
    match path.strip_prefix("/apis/").filter(|group| !group.contains('/')) {
        None => own,
        Some(group) => {
            let (own, absent) = match own {
                Ok(own) => (Some(own), Status::page_not_found()),
                Err(absent) => (None, absent),
            };
            server.aggregation.join_group(group, own).ok_or(absent)
        }
    }
}

/// The version of the aggregated form, when that is what the client wants most of what is there.
fn wants_aggregated(headers: &http::HeaderMap) -> Option<&'static str> {
    for clause in clauses(headers) {
        let json = matches!(clause.media_type, "application/json" | "*/*" | "application/*");
        match (json, clause.parameter("as"), clause.parameter("g"), clause.parameter("v")) {
            (true, Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2")) => {
                return Some("v2");
            }
            (true, Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2beta1")) => {
                return Some("v2beta1");
            }
            (true, None, _, _) => return None,
            _ => {}
        }
    }
    None
}

fn aggregated_response(asked: &Asked, version: &str, document: &Value) -> Response {
    let body = document.to_string();
    let etag = format!("\"{}\"", hex(&Sha256::digest(&body)));
    let matches = asked
        .parts
        .headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|given| given.as_bytes() == etag.as_bytes());
    let mut response = match matches {
        true => Response::new(Body::empty()),
        false => Response::new(Body::Full(body.into())),
    };
    if matches {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let content_type = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    for (name, value) in [(header::CONTENT_TYPE, content_type), (header::ETAG, etag)] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests;
