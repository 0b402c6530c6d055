use std::path::PathBuf;

use serde_json::Value;

use super::*;
use crate::testing;

/// Upstream's documents, which are not part of the repository.
fn oracle() -> Option<PathBuf> {
    let given = std::env::var_os("TRIERARCH_UPSTREAM_FACTS").map(PathBuf::from);
    let beside = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/upstream"));
    Some(given.unwrap_or_else(beside).join("discovery")).filter(|path| path.is_dir())
}

/// A document as upstream's, less the groups and versions that a default server does not serve.
fn sorted(mut document: Value) -> Value {
    if let Some(list) = document.get_mut("resources").and_then(Value::as_array_mut) {
        list.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    }
    document
}

#[tokio::test]
async fn every_group_version_is_told_as_upstream_tells_it() {
    let server = testing::server().await;
    let table = server.registry.table();
    let small = resource_list(&table, "apps", "v1");
    assert!(small["resources"].as_array().unwrap().iter().any(|r| r["name"] == "deployments/scale"));
    let Some(oracle) = oracle() else { return };
    let mut versions: Vec<(String, String)> = vec![(String::new(), "v1".into())];
    for (group, served) in groups(&table) {
        versions.extend(served.iter().map(|v| (group.to_owned(), (*v).to_owned())));
    }
    let mut differences = Vec::new();
    for (group, version) in versions {
        let file = if group.is_empty() {
            format!("api__{version}.json")
        } else {
            format!("apis__{group}__{version}.json")
        };
        let expected: Value = serde_json::from_slice(&std::fs::read(oracle.join(&file)).unwrap()).unwrap();
        let (expected, got) = (sorted(expected), sorted(resource_list(&table, &group, &version)));
        for resource in expected["resources"].as_array().unwrap() {
            let name = &resource["name"];
            if ["mutatingadmissionpolicies", "mutatingadmissionpolicybindings", "customresourcedefinitions"]
                .contains(&name.as_str().unwrap())
            {
                // Upstream still stores these as v1beta1, which we do not serve.
                continue;
            }
            let ours = got["resources"].as_array().unwrap().iter().find(|r| &r["name"] == name);
            if ours != Some(resource) {
                differences.push(format!("{file}: {resource} is {ours:?}"));
            }
        }
        if expected["resources"].as_array().unwrap().len() != got["resources"].as_array().unwrap().len() {
            differences.push(format!("{file}: more resources than upstream"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test]
async fn the_aggregated_form_is_upstreams() {
    let server = testing::server().await;
    let table = server.registry.table();
    let ours = aggregated(&table, false);
    let Some(oracle) = oracle() else { return };
    let expected: Value =
        serde_json::from_slice(&std::fs::read(oracle.join("aggregated_v2.json")).unwrap()).unwrap();
    for group in ours["items"].as_array().unwrap() {
        let name = &group["metadata"]["name"];
        let theirs =
            expected["items"].as_array().unwrap().iter().find(|g| &g["metadata"]["name"] == name).unwrap();
        for version in group["versions"].as_array().unwrap() {
            let theirs =
                theirs["versions"].as_array().unwrap().iter().find(|v| v["version"] == version["version"]);
            assert_eq!(Some(version), theirs, "{name}");
        }
    }
}
