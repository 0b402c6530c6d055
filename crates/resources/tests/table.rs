//! What must hold for every row of the table, and the table against upstream's discovery documents.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use resources::{Context, ResourceDef, Scope, table};
use serde_json::{Value, json};

/// The facts of upstream, which lie beside the workspace where they are at hand.
fn upstream(path: &str) -> Option<Value> {
    let start: PathBuf = env!("CARGO_MANIFEST_DIR").into();
    let found =
        start.ancestors().map(|dir| dir.join("shared/upstream").join(path)).find(|p| Path::exists(p))?;
    let text = std::fs::read_to_string(found).expect("the file is there");
    Some(serde_json::from_str(&text).expect("it is JSON"))
}

/// A few lines of the discovery documents, for where they are not at hand.
fn sample() -> BTreeMap<String, Value> {
    let list = |items: Value| json!({"resources": items});
    let all = json!(["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]);
    let status = json!(["get", "patch", "update"]);
    BTreeMap::from([(
        "apps/v1".to_owned(),
        list(json!([
            {"name": "controllerrevisions", "singularName": "controllerrevision", "namespaced": true,
                "kind": "ControllerRevision", "verbs": all},
            {"name": "daemonsets", "singularName": "daemonset", "namespaced": true, "kind": "DaemonSet", "verbs": all,
                "shortNames": ["ds"], "categories": ["all"]},
            {"name": "daemonsets/status", "namespaced": true, "kind": "DaemonSet", "verbs": status},
            {"name": "deployments", "singularName": "deployment", "namespaced": true, "kind": "Deployment",
                "verbs": all, "shortNames": ["deploy"], "categories": ["all"]},
            {"name": "deployments/scale", "namespaced": true, "kind": "Scale", "group": "autoscaling",
                "version": "v1", "verbs": status},
            {"name": "deployments/status", "namespaced": true, "kind": "Deployment", "verbs": status},
            {"name": "replicasets", "singularName": "replicaset", "namespaced": true, "kind": "ReplicaSet",
                "verbs": all, "shortNames": ["rs"], "categories": ["all"]},
            {"name": "replicasets/scale", "namespaced": true, "kind": "Scale", "group": "autoscaling",
                "version": "v1", "verbs": status},
            {"name": "replicasets/status", "namespaced": true, "kind": "ReplicaSet", "verbs": status},
            {"name": "statefulsets", "singularName": "statefulset", "namespaced": true, "kind": "StatefulSet",
                "verbs": all, "shortNames": ["sts"], "categories": ["all"]},
            {"name": "statefulsets/scale", "namespaced": true, "kind": "Scale", "group": "autoscaling",
                "version": "v1", "verbs": status},
            {"name": "statefulsets/status", "namespaced": true, "kind": "StatefulSet", "verbs": status},
        ])),
    )])
}

/// The documents of the group versions that a default server serves.
fn documents() -> BTreeMap<String, Value> {
    let Some(groups) = upstream("discovery/apis.json") else { return sample() };
    let core = upstream("discovery/api__v1.json").expect("the core group is there when the others are");
    let mut documents = BTreeMap::from([("v1".to_owned(), core)]);
    for group in groups["groups"].as_array().expect("groups") {
        for version in group["versions"].as_array().expect("versions") {
            let name = version["groupVersion"].as_str().expect("a group version");
            let stable =
                version["version"].as_str().is_some_and(|v| !v.contains("alpha") && !v.contains("beta"));
            if stable {
                let file = format!("discovery/apis__{}.json", name.replace('/', "__"));
                documents
                    .insert(name.to_owned(), upstream(&file).expect("a document for every group version"));
            }
        }
    }
    documents
}

fn api_version(def: &ResourceDef) -> String {
    if def.group.is_empty() { def.version.to_string() } else { format!("{}/{}", def.group, def.version) }
}

/// A row and its subresources as discovery lists them.
fn discovered(def: &ResourceDef) -> Vec<Value> {
    let verbs = |verbs: &[resources::Verb]| verbs.iter().map(|v| v.as_str()).collect::<Vec<_>>();
    let namespaced = def.scope == Scope::Namespaced;
    let mut row = json!({"name": def.plural, "singularName": def.singular, "namespaced": namespaced,
        "kind": def.kind, "verbs": verbs(&def.verbs)});
    if !def.short_names.is_empty() {
        row["shortNames"] = json!(def.short_names);
    }
    if !def.categories.is_empty() {
        row["categories"] = json!(def.categories);
    }
    let mut rows = vec![row];
    for sub in &def.subresources {
        let mut row = json!({"name": format!("{}/{}", def.plural, sub.name), "namespaced": namespaced,
            "kind": sub.kind.kind, "verbs": verbs(&sub.verbs)});
        if let Some(foreign) = resources::row::foreign_group_version(def, sub) {
            row["group"] = json!(foreign.group);
            row["version"] = json!(foreign.version);
        }
        rows.push(row);
    }
    rows
}

#[test]
fn discovery_is_upstreams() {
    for (group_version, document) in documents() {
        let clean = |resource: &Value| {
            let mut resource = resource.clone();
            let fields = resource.as_object_mut().expect("a resource is an object");
            fields.remove("storageVersionHash");
            // Subresources have no singular name.
            fields.retain(|name, value| name != "singularName" || value != "");
            resource
        };
        let expected: Vec<Value> =
            document["resources"].as_array().expect("resources").iter().map(clean).collect();
        let own = table().iter().filter(|def| api_version(def) == group_version);
        let mut actual: Vec<Value> = own.flat_map(|def| discovered(def)).collect();
        let name = |v: &Value| v["name"].as_str().unwrap_or_default().to_owned();
        actual.sort_by_key(name);
        let mut expected = expected;
        expected.sort_by_key(name);
        let names = |rows: &[Value]| rows.iter().map(name).collect::<Vec<_>>();
        assert_eq!(names(&actual), names(&expected), "{group_version}");
        for (actual, expected) in actual.iter().zip(&expected) {
            assert_eq!(actual, expected, "{group_version}");
        }
    }
}

#[test]
fn every_row_is_whole() {
    let mut seen = Vec::new();
    for def in table() {
        let gvr = def.gvr();
        assert!(!seen.contains(&gvr), "{gvr} is there twice");
        seen.push(gvr.clone());
        assert!(def.columns.iter().any(|c| c.format == "name"), "{gvr} shows no name");
        let mut sorted = def.subresources.clone();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let names = |subs: &[resources::Subresource]| subs.iter().map(|s| s.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&def.subresources), names(&sorted), "{gvr}");
        // What is stored under one prefix is stored in one version.
        for other in table().iter().filter(|o| o.storage_prefix == def.storage_prefix) {
            let version = resources::convert::storage_api_version;
            assert_eq!(version(def), version(other), "{gvr} and {}", other.gvr());
        }
    }
}

/// Shapes that no client should send and a strategy must bear.
fn odd_objects() -> Vec<Value> {
    let shapes = [
        json!(null),
        json!([]),
        json!({}),
        json!("text"),
        json!({"metadata": null, "spec": null, "status": null}),
        json!({"metadata": [], "spec": [], "status": "x", "data": 3, "webhooks": {}, "rules": "x", "subsets": 1}),
        json!({"metadata": {"name": "a", "labels": [], "annotations": "x"}, "spec": {"containers": {}, "template": 3,
            "ports": "x", "selector": 7, "volumes": [null, 1, {}], "strategy": [], "jobTemplate": "x"}}),
        json!({"metadata": {"name": "a"}, "spec": {"containers": [null, 1, "x", {}, {"ports": [null], "env": [3],
            "resources": {"limits": {"cpu": {}}}, "livenessProbe": 3}], "template": {"spec": {"containers": [1]}}}}),
    ];
    shapes.to_vec()
}

#[test]
fn nothing_that_comes_in_panics() {
    let groups = ["system:masters".to_owned()];
    let context = Context {
        now: 1_000,
        random: [7; 16],
        user: "u",
        uid: "1",
        groups: &groups,
        extra: &BTreeMap::new(),
    };
    for def in table() {
        for odd in odd_objects() {
            let mut object = odd.clone();
            def.strategy.default(&mut object);
            def.strategy.prepare_create(&context, &mut object);
            def.strategy.validate(&object);
            def.strategy.warnings(&object, None);
            for old in odd_objects() {
                let mut new = odd.clone();
                def.strategy.prepare_update(&context, &mut new, &old);
                def.strategy.validate_update(&new, &old);
                def.strategy.prepare_status_update(&context, &mut new, &old);
                def.strategy.validate_status_update(&new, &old);
                def.strategy.generation_changed(&new, &old);
            }
            def.strategy.deletion(&odd, Some(i64::MIN));
            let cells = (def.cells)(&odd, 1_000);
            // Upstream tells an address's age without saying so.
            let undeclared = usize::from(def.plural == "ipaddresses");
            assert_eq!(
                cells.len(),
                def.columns.len() + undeclared,
                "{} has a cell for each column",
                def.gvr()
            );
            for field in &def.selectable_fields {
                (field.value)(&odd);
            }
            let mut converted = odd.clone();
            resources::convert::to_storage(def, &mut converted);
            resources::convert::from_storage(def, &mut converted);
        }
    }
}

/// Every fixture has all fields set; defaulting must leave what is set alone, and twice is once.
#[test]
fn defaults_are_idempotent() {
    for def in table() {
        let group = if def.group.is_empty() { "core" } else { &def.group };
        let file = format!("fixtures/{group}.{}.{}.json", def.version, def.kind);
        let object = upstream(&file).unwrap_or_else(|| json!({"metadata": {"name": "a"}, "spec": {}}));
        let mut once = object.clone();
        def.strategy.default(&mut once);
        let mut twice = once.clone();
        def.strategy.default(&mut twice);
        assert_eq!(once, twice, "{}", def.gvr());
    }
}

#[test]
fn fields_of_converted_kinds_read_what_is_stored() {
    let event = json!({
        "involvedObject": {"kind": "Pod", "name": "p"}, "reportingComponent": "c", "reason": "r", "type": "Normal"
    });
    for (group, path, expected) in [
        ("", "source", "c"),
        ("", "involvedObject.name", "p"),
        ("events.k8s.io", "reportingController", "c"),
        ("events.k8s.io", "regarding.kind", "Pod"),
        ("events.k8s.io", "regarding.name", "p"),
        ("events.k8s.io", "reason", "r"),
    ] {
        let def = table().iter().find(|def| def.plural == "events" && def.group == group).unwrap();
        let field = def.selectable_fields.iter().find(|field| field.path == path).unwrap();
        assert_eq!((field.value)(&event), expected, "{path}");
    }
}
