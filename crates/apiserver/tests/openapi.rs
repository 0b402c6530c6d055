//! The OpenAPI documents that the server answers with, against upstream's: read from `swagger.json` in the folder
//! that `TRIERARCH_UPSTREAM_FACTS` names, or `../shared/upstream` beside the repository, and from the folder of
//! version 3 documents that `TRIERARCH_UPSTREAM_OPENAPI_V3` names. Without them each document is checked for its
//! own consistency.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use apiserver::ApiServer;
use apiserver::bootstrap::loopback_user;
use apiserver::handle::{Peer, RequestBody};
use apiserver::testing;
use http::Request;
use http_body_util::BodyExt;
use serde_json::Value;

async fn get(server: &Arc<ApiServer>, path: &str) -> Value {
    let request = Request::builder().uri(path).body(RequestBody::Ready(Vec::new().into())).unwrap();
    let response = server.handle(request, Peer::Local(loopback_user())).await;
    assert_eq!(response.status(), 200, "{path}");
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

fn facts() -> Option<PathBuf> {
    let given = std::env::var_os("TRIERARCH_UPSTREAM_FACTS").map(PathBuf::from);
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/upstream");
    Some(given.unwrap_or_else(beside)).filter(|path| path.is_dir())
}

/// Texts are no shapes, the order of sets means nothing, and a parameter that is referred to counts as if it stood
/// there. Upstream's documents come from a server with all alpha features.
fn comparable(value: &Value, document: &Value) -> Value {
    match value {
        Value::Object(map) => {
            if let Some(reference) = map.get("$ref").and_then(Value::as_str)
                && reference.starts_with("#/parameters/")
            {
                return comparable(document.pointer(&reference[1..]).unwrap(), document);
            }
            // A reference alone, and one that a description stands beside, are the same shape.
            if let (1, Some(Value::Array(all))) =
                (map.len() - usize::from(map.contains_key("description")), map.get("allOf"))
                && let [one] = &all[..]
            {
                return comparable(one, document);
            }
            let told = |(name, value): &(&String, &Value)| *name != "description" || !value.is_string();
            let fields = map.iter().filter(told);
            fields.map(|(name, value)| (name.clone(), comparable(value, document))).collect()
        }
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(|item| comparable(item, document)).collect();
            items.sort_by_key(Value::to_string);
            items.into()
        }
        other => other.clone(),
    }
}

fn differences(at: &str, theirs: &Value, ours: &Value, found: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let at = format!("{at} > {name}");
                differences(
                    &at,
                    a.get(name).unwrap_or(&Value::Null),
                    b.get(name).unwrap_or(&Value::Null),
                    found,
                );
            }
        }
        (theirs, ours) if theirs != ours => found.push(format!("{at}: {theirs}, ours {ours}")),
        _ => {}
    }
}

/// What a default server serves: no alpha or beta versions, and no logs of the node.
fn by_default(name: &str) -> bool {
    let experimental =
        |part: &str| part.strip_prefix('v').is_some_and(|v| v.starts_with(char::is_numeric) && v.len() > 2);
    !name.split(['/', '.']).any(experimental)
        && !name.starts_with("/logs/")
        && !name.contains("internal.apiserver.k8s.io")
        && !name.contains("storagemigration.k8s.io")
}

fn compare(theirs: &Value, ours: &Value, part: &str, found: &mut Vec<String>) {
    let none = serde_json::Map::new();
    let entries = |document: &Value| -> BTreeMap<String, Value> {
        let entries = document.pointer(part).and_then(Value::as_object).unwrap_or(&none);
        let entries = entries.iter().filter(|(name, _)| by_default(name));
        entries.map(|(name, value)| (name.clone(), comparable(value, document))).collect()
    };
    let (theirs, ours) = (entries(theirs), entries(ours));
    for (name, value) in &theirs {
        match ours.get(name) {
            Some(own) => differences(name, value, own, found),
            None => found.push(format!("{name} is missing")),
        }
    }
    found.extend(
        ours.keys().filter(|name| !theirs.contains_key(*name)).map(|n| format!("{n} is not upstream's")),
    );
}

/// Only alpha kinds hold it, so no default document does.
fn excused(difference: &str) -> bool {
    difference == "io.k8s.apimachinery.pkg.apis.meta.v1.GroupResource is missing"
}

fn check_references(document: &Value, value: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
            }
            map.values().for_each(|v| check_references(document, v));
        }
        Value::Array(items) => items.iter().for_each(|v| check_references(document, v)),
        _ => {}
    }
}

#[tokio::test]
async fn version_2_is_upstreams() {
    let server = testing::server().await;
    let ours = get(&server, "/openapi/v2").await;
    check_references(&ours, &ours);
    let spec = &ours["definitions"]["io.k8s.api.core.v1.Pod"];
    assert!(spec["description"].as_str().unwrap().starts_with("Pod is a collection of containers"));
    let Some(facts) = facts() else {
        eprintln!("no upstream facts: only references were checked");
        return;
    };
    let theirs: Value = serde_json::from_slice(&std::fs::read(facts.join("swagger.json")).unwrap()).unwrap();
    let mut found = Vec::new();
    compare(&theirs, &ours, "/paths", &mut found);
    compare(&theirs, &ours, "/definitions", &mut found);
    found.retain(|difference| !excused(difference));
    assert!(found.is_empty(), "{} differ:\n{}", found.len(), found.join("\n"));
}

#[tokio::test]
async fn version_3_is_upstreams() {
    let server = testing::server().await;
    let root = get(&server, "/openapi/v3").await;
    let folder = std::env::var_os("TRIERARCH_UPSTREAM_OPENAPI_V3").map(PathBuf::from);
    let mut found = Vec::new();
    let mut compared = 0;
    for (name, entry) in root["paths"].as_object().unwrap() {
        let ours = get(&server, entry["serverRelativeURL"].as_str().unwrap()).await;
        check_references(&ours, &ours);
        let Some(folder) = &folder else { continue };
        let file = folder.join(format!("{}_openapi.json", name.replace('/', "__")));
        let theirs: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        compare(&theirs, &ours, "/paths", &mut found);
        compare(&theirs, &ours, "/components/schemas", &mut found);
        compared += 1;
    }
    eprintln!("{compared} documents were compared with upstream's");
    found.sort();
    found.dedup();
    assert!(found.is_empty(), "{} differ:\n{}", found.len(), found.join("\n"));
}

#[tokio::test]
async fn a_known_document_is_not_sent_again() {
    let server = testing::server().await;
    let root = get(&server, "/openapi/v3").await;
    let url = root["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let (_, hash) = url.split_once("?hash=").unwrap();
    let request = Request::builder().uri(url).header("if-none-match", format!("\"{hash}\""));
    let request = request.body(RequestBody::Ready(Vec::new().into())).unwrap();
    assert_eq!(server.handle(request, Peer::Local(loopback_user())).await.status(), 304);
}
