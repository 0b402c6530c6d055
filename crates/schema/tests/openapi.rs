//! The version 2 document against upstream's, which is among the facts: read from `UPSTREAM_SWAGGER`, or from
//! `../shared/upstream/swagger.json` beside the repository. Without it only the document's own shape is checked.

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

/// Takes away what our documents leave out: descriptions, unions, the list type of lists that declare none.
fn comparable(schema: &Value, ours: &Value) -> (Value, Value) {
    fn strip(value: &mut Value) {
        if let Value::Object(map) = value {
            for word in [
                "description",
                "x-kubernetes-unions",
                "x-kubernetes-list-type",
                "x-kubernetes-group-version-kind",
            ] {
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
    let path = std::env::var_os("UPSTREAM_SWAGGER").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/upstream/swagger.json"),
        PathBuf::from,
    );
    let Ok(text) = std::fs::read(path) else { return };
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
