//! Every kind in JSON, YAML and protobuf: the three decode to the same object and encode back.
//!
//! The fixtures of all kinds are upstream's facts and not part of the repository: they are read from
//! the folder `fixtures` in that which `TRIERARCH_UPSTREAM_FACTS` names, or in `../shared/upstream` beside it. The
//! samples are, and always read.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api::tables::{self, Definition};
use apimachinery::GroupVersion;
use schema::{decode, protobuf};
use serde_json::Value;

fn folders() -> Vec<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let facts = std::env::var_os("TRIERARCH_UPSTREAM_FACTS")
        .map_or_else(|| manifest.join("../../../shared/upstream"), PathBuf::from);
    [manifest.join("tests/samples"), facts.join("fixtures")].into_iter().filter(|f| f.is_dir()).collect()
}

fn definition(object: &Value, file: &str) -> Option<&'static Definition> {
    match (object["apiVersion"].as_str(), object["kind"].as_str()) {
        (Some(api_version), Some(kind)) => {
            let version = GroupVersion::parse(api_version)?;
            tables::kind(&version.group, &version.version, kind)
        }
        // A WatchEvent has neither.
        _ if file.contains("WatchEvent") => tables::kind("", "v1", "WatchEvent"),
        _ => None,
    }
}

fn check(folder: &Path, name: &str, json: &Value, definition: &'static Definition) {
    let text = std::fs::read(folder.join(format!("{name}.json"))).unwrap();
    let decoded = decode::json(&text, definition, decode::Strictness::Report).unwrap();
    assert!(decoded.problems.is_empty(), "{name}: {:?}", decoded.problems);
    assert_eq!(decoded.object, *json, "{name}: JSON");

    if let Ok(yaml) = std::fs::read(folder.join(format!("{name}.yaml"))) {
        let from_yaml = decode::yaml(&yaml, definition, decode::Strictness::Report).unwrap();
        assert!(from_yaml.problems.is_empty(), "{name}: {:?}", from_yaml.problems);
        assert_eq!(from_yaml.object, *json, "{name}: YAML");
    }
    let bytes = std::fs::read(folder.join(format!("{name}.pb"))).unwrap();
    let envelope = protobuf::open(&bytes).unwrap();
    let mut from_protobuf = protobuf::decode_message(envelope.message, definition).unwrap();
    if !envelope.kind.is_empty() {
        from_protobuf["apiVersion"] = envelope.api_version.into();
        from_protobuf["kind"] = envelope.kind.into();
    }
    assert_eq!(from_protobuf, *json, "{name}: protobuf");
    assert_eq!(protobuf::encode(json, definition).unwrap(), bytes, "{name}: protobuf back");
    let as_cbor = schema::cbor::encode(json, Some(definition));
    assert_eq!(schema::cbor::decode(&as_cbor).unwrap(), *json, "{name}: CBOR");
}

#[test]
fn every_kind_is_the_same_in_every_encoding() {
    let mut checked = 0;
    let mut unknown: BTreeMap<String, usize> = BTreeMap::new();
    for folder in folders() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            let Some(name) = file.strip_suffix(".json") else { continue };
            let json: Value = serde_json::from_slice(&std::fs::read(folder.join(&file)).unwrap()).unwrap();
            match definition(&json, name) {
                Some(definition) => {
                    check(&folder, name, &json, definition);
                    checked += 1;
                }
                None => {
                    *unknown.entry(json["apiVersion"].as_str().unwrap_or_default().into()).or_default() += 1
                }
            }
        }
    }
    // Only versions that a default server does not serve are not in the tables.
    for version in unknown.keys() {
        assert!(version.contains("alpha") || version.contains("beta"), "{unknown:?}");
    }
    eprintln!("{checked} kinds were checked");
    assert!(checked >= 3);
}
