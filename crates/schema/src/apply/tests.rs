use api::tables;
use serde_json::json;

use super::*;

fn deployment() -> Typed {
    Typed::of(tables::kind("apps", "v1", "Deployment").unwrap())
}

fn writer(manager: &str, now: i64) -> Writer<'_> {
    Writer { manager, subresource: "", api_version: "apps/v1", now, resets: &[] }
}

fn base(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "namespace": "n"}, "spec": spec})
}

fn managed(object: &Value) -> Vec<(String, Value)> {
    let mut object = object.clone();
    open_owners(&mut object);
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries
        .iter()
        .map(|e| {
            (
                format!("{} {}", e["manager"].as_str().unwrap(), e["operation"].as_str().unwrap()),
                e["fieldsV1"].clone(),
            )
        })
        .collect()
}

fn apply_as(live: Option<&Value>, manager: &str, spec: Value, force: bool) -> Result<Value, Status> {
    let applied = apply(&deployment(), live, &base(spec), &writer(manager, 10), force)?;
    let definition = tables::kind("apps", "v1", "Deployment").unwrap();
    Ok(crate::decode::value(applied, definition, crate::decode::Strictness::Ignore).unwrap().object)
}

fn container(name: &str, more: Value) -> Value {
    let mut container = more;
    container["name"] = name.into();
    container
}

#[test]
fn create_and_update_track_their_writers() {
    let mut object = base(
        json!({"replicas": 1, "template": {"spec": {"containers": [container("c", json!({"image": "1"}))]}}}),
    );
    object["metadata"]["labels"] = json!({"a": "b"});
    track_update(&deployment(), None, &mut object, &writer("kubectl", 0));
    assert_eq!(
        managed(&object),
        [(
            "kubectl Update".to_owned(),
            json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}},
                "f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {
                    "k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}}}}}}})
        )]
    );
    assert_eq!(object["metadata"]["managedFields"][0]["time"], "1970-01-01T00:00:00Z");

    object["metadata"]["uid"] = "u".into();
    let mut scaled = object.clone();
    scaled["spec"]["replicas"] = 2.into();
    track_update(&deployment(), Some(&object), &mut scaled, &writer("other", 5));
    let fields = managed(&scaled);
    assert_eq!(fields[1], ("other Update".to_owned(), json!({"f:spec": {"f:replicas": {}}})));
    assert!(fields[0].1["f:spec"].get("f:replicas").is_none());

    let before = scaled.clone();
    track_update(&deployment(), Some(&before), &mut scaled, &writer("third", 9));
    assert_eq!(scaled, before, "a write that changes nothing leaves the managers alone");

    let mut status = scaled.clone();
    status["status"] = json!({"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]});
    let through_status = Writer { subresource: "status", ..writer("controller", 9) };
    track_update(&deployment(), Some(&scaled), &mut status, &through_status);
    open_owners(&mut status);
    let entry = &status["metadata"]["managedFields"][2];
    assert_eq!(entry["subresource"], "status");
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:status": {".": {}, "f:replicas": {}, "f:conditions": {".": {},
            "k:{\"type\":\"Available\"}": {".": {}, "f:status": {}, "f:type": {}}}}})
    );
}

#[test]
fn objects_without_managers_stay_without() {
    let live = json!({"metadata": {"uid": "u"}, "spec": {"replicas": 1}});
    let mut new = json!({"metadata": {"uid": "u"}, "spec": {"replicas": 2}});
    track_update(&deployment(), Some(&live), &mut new, &writer("m", 0));
    assert!(managed(&new).is_empty());
}

#[test]
fn conflicts_are_told_as_upstream_tells_them() {
    let mut live = base(json!({"replicas": 3, "paused": true}));
    track_update(&deployment(), None, &mut live, &writer("kubectl", 0));
    let status = apply_as(Some(&live), "me", json!({"replicas": 5}), false).unwrap_err();
    assert_eq!(
        status.message,
        "Apply failed with 1 conflict: conflict with \"kubectl\" using apps/v1: .spec.replicas"
    );
    assert_eq!(status.code, 409);
    let cause = &status.details.as_ref().unwrap().causes[0];
    assert_eq!(cause.reason, "FieldManagerConflict");
    assert_eq!(cause.message, "conflict with \"kubectl\" using apps/v1");
    assert_eq!(cause.field, ".spec.replicas");
    let status = apply_as(Some(&live), "me", json!({"replicas": 5, "paused": false}), false).unwrap_err();
    assert_eq!(
        status.message,
        "Apply failed with 2 conflicts: conflicts with \"kubectl\" using apps/v1:\n- .spec.paused\n- .spec.replicas"
    );

    let forced = apply_as(Some(&live), "me", json!({"replicas": 5}), true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 5);
    assert_eq!(
        managed(&forced),
        [
            ("me Apply".to_owned(), json!({"f:spec": {"f:replicas": {}}})),
            ("kubectl Update".to_owned(), json!({"f:spec": {"f:paused": {}}})),
        ]
    );
    // The same value is shared, not fought over.
    let shared = apply_as(Some(&live), "me", json!({"replicas": 3}), false).unwrap();
    assert_eq!(managed(&shared).len(), 2);
}

#[test]
fn what_is_no_longer_applied_goes_unless_another_holds_it() {
    let containers = |list: Value| json!({"replicas": 1, "template": {"spec": {"containers": list}}});
    let first = apply_as(
        None,
        "me",
        containers(json!([
            container("a", json!({"image": "1", "env": [{"name": "x", "value": "1"}]})),
            container("b", json!({"image": "2"}))
        ])),
        false,
    )
    .unwrap();
    let mut live = first.clone();
    live["metadata"]["uid"] = "u".into();
    let mut patched = live.clone();
    patched["spec"]["template"]["spec"]["containers"][0]["env"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "y", "value": "2"}));
    patched["spec"]["template"]["spec"]["containers"][1]["imagePullPolicy"] = "Always".into();
    track_update(&deployment(), Some(&live), &mut patched, &writer("other", 3));

    let second =
        apply_as(Some(&patched), "me", containers(json!([container("a", json!({"image": "1"}))])), false)
            .unwrap();
    assert_eq!(
        second["spec"],
        containers(json!([container("a", json!({"image": "1", "env": [{"name": "y", "value": "2"}]}))])),
    );
    let third = apply_as(Some(&second), "me", json!({}), false).unwrap();
    assert!(third["spec"].get("replicas").is_none());
}

#[test]
fn lists_keep_the_applied_order() {
    let volumes = |names: &[&str]| -> Value {
        let list: Vec<Value> = names.iter().map(|n| json!({"name": n, "emptyDir": {}})).collect();
        json!({"template": {"spec": {"volumes": list}}})
    };
    let live = base(volumes(&["a", "b", "c"]));
    let merged = walk::merge(&deployment(), &live, &base(volumes(&["b", "a", "d"])));
    let names: Vec<&str> = merged["spec"]["template"]["spec"]["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["b", "c", "a", "d"]);
}

#[test]
fn bad_patches_are_refused() {
    let refused = |patch: Value, message: &str| {
        let status = apply(&deployment(), None, &patch, &writer("me", 0), false).unwrap_err();
        assert_eq!(status.message, message);
    };
    refused(
        base(json!({"foo": 1})),
        "failed to create typed patch object (n/a; apps/v1, Kind=Deployment): .spec.foo: field not declared in schema",
    );
    refused(
        base(json!({"replicas": "x"})),
        "failed to create typed patch object (n/a; apps/v1, Kind=Deployment): .spec.replicas: expected numeric (int or float), got string",
    );
    refused(json!({"apiVersion": "v1", "kind": "Deployment"}), "invalid object type: /v1, Kind=Deployment");
    let mut patch = base(json!({}));
    patch["metadata"]["managedFields"] = json!([]);
    refused(patch, "metadata.managedFields must be nil");
    refused(
        base(json!({"template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}})),
        "failed to create typed patch object (n/a; apps/v1, Kind=Deployment): \
         .spec.template.spec.containers: duplicate entries for key [name=\"a\"]",
    );
}

#[test]
fn kubectl_takes_over_what_its_client_side_apply_wrote() {
    let mut live = base(json!({"replicas": 3}));
    live["metadata"]["annotations"] = json!({LAST_APPLIED: base(json!({"replicas": 3})).to_string()});
    track_update(&deployment(), None, &mut live, &writer("kubectl-client-side-apply", 0));
    let applied = apply_as(Some(&live), "kubectl", json!({"replicas": 5}), false).unwrap();
    assert_eq!(applied["spec"]["replicas"], 5);
    assert!(applied["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap().contains("\"replicas\":5"));
    assert!(apply_as(Some(&live), "me", json!({"replicas": 5}), false).is_err());
}

#[test]
fn unmanaged_objects_belong_to_before_first_apply() {
    let live = base(json!({"replicas": 3}));
    let status = apply_as(Some(&live), "me", json!({"replicas": 5}), false).unwrap_err();
    assert_eq!(
        status.message,
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn old_updaters_become_ancient() {
    let mut live = base(json!({"replicas": 0}));
    live["metadata"]["labels"] = json!({});
    for at in 0..20 {
        let mut new = live.clone();
        new["metadata"]["labels"][format!("l{at:02}")] = "x".into();
        track_update(&deployment(), Some(&live), &mut new, &writer(&format!("m{at:02}"), at));
        live = new;
    }
    let fields = managed(&live);
    assert_eq!(fields.len(), 10);
    assert_eq!(fields.iter().filter(|(m, _)| m.starts_with("ancient-changes")).count(), 1);
    let all: usize = fields
        .iter()
        .map(|(_, f)| f["f:metadata"]["f:labels"].as_object().unwrap().keys().filter(|k| *k != ".").count())
        .sum();
    assert_eq!(all, 20, "no field loses its owner");
}

#[test]
fn managers_come_from_user_agents() {
    assert_eq!(manager_of_user_agent("kubectl/v1.36.0 (linux/amd64)"), "kubectl");
    assert_eq!(manager_of_user_agent(""), "");
}
