//! The version 2 definitions against upstream's, which are among the facts: read from `swagger.json` in the folder
//! that `TRIERARCH_UPSTREAM_FACTS` names, or in `../shared/upstream` beside the repository. Without it only the
//! document's own shape is checked. Routes are compared where they are known, in the API server's tests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use api::tables;
use schema::openapi::{self, Kind};
use serde_json::Value;

fn kinds() -> Vec<Kind> {
    let with_list =
        |gvk: &tables::Gvk| tables::kind(gvk.group, gvk.version, &format!("{}List", gvk.kind)).is_some();
    tables::definitions()
        .iter()
        .filter_map(|d| d.gvk)
        .filter(with_list)
        .filter(|gvk| !matches!(gvk.group, "meta.k8s.io" | "apidiscovery.k8s.io"))
        .map(|gvk| Kind {
            group: gvk.group.into(),
            version: gvk.version.into(),
            kind: gvk.kind.into(),
            plural: format!("{}s", gvk.kind.to_lowercase()),
            namespaced: true,
            verbs: ["get", "list", "create", "patch"].map(str::to_owned).to_vec(),
            ..Kind::default()
        })
        .collect()
}

/// Takes away what depends on the kinds that are served, and the texts.
fn comparable(schema: &Value, ours: &Value) -> (Value, Value) {
    fn strip(value: &mut Value) {
        if let Value::Object(map) = value {
            for word in ["description", "x-kubernetes-group-version-kind"] {
                if word != "description" || map.get(word).is_some_and(Value::is_string) {
                    map.remove(word);
                }
            }
            if let Some(Value::Array(required)) = map.get_mut("required") {
                required.sort_by_key(Value::to_string);
            }
            map.values_mut().for_each(strip);
        }
    }
    let (mut schema, mut ours) = (schema.clone(), ours.clone());
    strip(&mut schema);
    strip(&mut ours);
    (schema, ours)
}

#[test]
fn definitions_are_upstreams() {
    let document = openapi::v2(&kinds(), "v1.36.0");
    let definitions = document["definitions"].as_object().unwrap();
    assert!(definitions.len() > 400, "{}", definitions.len());
    let facts = std::env::var_os("TRIERARCH_UPSTREAM_FACTS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/upstream"),
        PathBuf::from,
    );
    let Ok(text) = std::fs::read(facts.join("swagger.json")) else {
        eprintln!("no upstream facts: the definitions were not compared");
        return;
    };
    let upstream: Value = serde_json::from_slice(&text).unwrap();
    let mut different = Vec::new();
    for (name, ours) in definitions {
        let Some(theirs) = upstream["definitions"].get(name) else {
            different.push(format!("{name} is not upstream's"));
            continue;
        };
        let (theirs, ours) = comparable(theirs, ours);
        if theirs != ours {
            different.push(format!("{name}:\n  {theirs}\n  {ours}"));
        }
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}
