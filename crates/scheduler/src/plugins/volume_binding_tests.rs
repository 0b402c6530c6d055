use serde_json::json;

use super::*;
use crate::testing::{self, node_info, pod_info};

const PLUGIN: VolumeBinding = VolumeBinding { timeout: Duration::from_secs(600) };

fn claim(name: &str, class: &str, more: Value) -> Value {
    let mut claim = json!({"kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "5"},
        "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}});
    merge(&mut claim, more);
    claim
}

fn volume(name: &str, size: &str, node: &str) -> Value {
    json!({"kind": "PersistentVolume", "metadata": {"name": name, "resourceVersion": "7"},
        "spec": {"storageClassName": "local", "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": [node]}]}]}}},
        "status": {"phase": "Available"}})
}

fn class(name: &str, provisioner: &str, mode: &str) -> Value {
    json!({"kind": "StorageClass", "metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode})
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            more.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, more) => *into = more,
    }
}

fn cluster(objects: &[Value]) -> Cluster {
    let mut all = vec![
        class("local", NOT_PROVISIONED, "WaitForFirstConsumer"),
        class("made", "x.io/maker", "WaitForFirstConsumer"),
        class("now", "x.io/maker", "Immediate"),
    ];
    all.extend(objects.iter().cloned());
    let mut cluster = testing::cluster(&all);
    for name in ["a", "b"] {
        cluster.set_node(node_info(json!({"metadata": {"name": name}})).node.unwrap());
    }
    cluster
}

fn pod(claims: &[&str]) -> Arc<PodInfo> {
    let volumes = claims.iter().map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}}));
    pod_info(json!({"metadata": {"name": "p", "namespace": "default", "uid": "pod"},
        "spec": {"containers": [], "volumes": volumes.collect::<Vec<_>>()}}))
}

/// What is said of nodes `a` and `b`.
fn check(objects: &[Value], claims: &[&str], expected: &[&str]) {
    let (cluster, pod) = (cluster(objects), pod(claims));
    if let Some(refusal) = PLUGIN.refuse_all(&pod, &cluster) {
        return assert_eq!([refusal.words()], expected);
    }
    let filter = PLUGIN.filter(&pod, &cluster).unwrap();
    let said = cluster.nodes().map(|node| match filter.check(node) {
        Ok(()) => "fits".to_owned(),
        Err(refusal) => refusal.words(),
    });
    assert_eq!(said.collect::<Vec<_>>(), expected);
}

#[test]
fn pods_wait_for_claims_that_nobody_can_use() {
    check(&[], &["c"], &["persistentvolumeclaim \"c\" not found"]);
    let immediate = "pod has unbound immediate PersistentVolumeClaims";
    check(&[claim("c", "now", json!({}))], &["c"], &[immediate]);
    check(&[claim("c", "", json!({}))], &["c"], &[immediate]);
    let lost = claim("c", "now", json!({"spec": {"volumeName": "v"}, "status": {"phase": "Lost"}}));
    check(&[lost], &["c"], &["persistentvolumeclaim \"c\" bound to non-existent persistentvolume \"v\""]);
}

#[test]
fn bound_volumes_bind_their_pods() {
    let bound =
        json!({"metadata": {"annotations": { volumes::BIND_COMPLETED: "yes" }}, "spec": {"volumeName": "v"}});
    let bound = claim("c", "local", bound);
    check(&[bound.clone(), volume("v", "1Gi", "a")], &["c"], &["fits", NODE_CONFLICT]);
    check(&[bound], &["c"], &[VOLUME_MISSING, VOLUME_MISSING]);
}

#[test]
fn waiting_claims_take_what_a_node_has_or_may_get() {
    let waiting = claim("c", "local", json!({}));
    check(&[waiting.clone(), volume("v", "1Gi", "b")], &["c"], &[BIND_CONFLICT, "fits"]);
    check(&[waiting, volume("v", "1Mi", "b")], &["c"], &[BIND_CONFLICT, BIND_CONFLICT]);
    check(&[claim("c", "made", json!({}))], &["c"], &["fits", "fits"]);
    let chosen = claim("c", "made", json!({"metadata": {"annotations": { SELECTED_NODE: "b" }}}));
    check(&[chosen], &["c"], &[BIND_CONFLICT, "fits"]);
    let two = [claim("c", "local", json!({})), claim("d", "local", json!({})), volume("v", "1Gi", "a")];
    check(&two, &["c", "d"], &[BIND_CONFLICT, BIND_CONFLICT]);
}

#[test]
fn a_reserved_volume_is_nobody_elses() {
    let objects = [
        claim("c", "local", json!({})),
        claim("d", "local", json!({})),
        volume("v", "1Gi", "a"),
        volume("w", "2Gi", "a"),
    ];
    let mut cluster = cluster(&objects);
    let writes = PLUGIN.reserve(&pod(&["c"]), "a", &mut cluster).unwrap();
    assert_eq!(writes.len(), 1);
    assert_eq!((writes[0].name.as_str(), &writes[0].body["metadata"]["resourceVersion"]), ("v", &json!("7")));
    assert_eq!(writes[0].body["spec"]["claimRef"]["name"], "c");
    assert_eq!(PLUGIN.prepared(&pod(&["c"]), "a", &cluster), Prepared::Waiting);
    let other = PLUGIN.reserve(&pod(&["d"]), "a", &mut cluster).unwrap();
    assert_eq!(other[0].name, "w", "the smaller one is taken");
    PLUGIN.unreserve(&pod(&["c"]), &mut cluster);
    PLUGIN.unreserve(&pod(&["d"]), &mut cluster);
    assert_eq!(PLUGIN.reserve(&pod(&["d"]), "a", &mut cluster).unwrap()[0].name, "v");
}

#[test]
fn a_provisioned_claim_is_awaited_unless_the_provisioner_gives_up() {
    let mut cluster = cluster(&[claim("c", "made", json!({}))]);
    let pod = pod(&["c"]);
    let writes = PLUGIN.reserve(&pod, "b", &mut cluster).unwrap();
    assert_eq!(writes[0].body["metadata"]["annotations"], json!({ SELECTED_NODE: "b" }));
    assert_eq!(PLUGIN.prepared(&pod, "b", &cluster), Prepared::Waiting);
    let seen = |cluster: &mut Cluster, version: &str, more: Value| {
        let mut newer = claim("c", "made", more);
        newer["metadata"]["resourceVersion"] = version.into();
        let newer = PersistentVolumeClaim::from_value(newer).unwrap();
        cluster.volumes.claims.set("default/c", Some(Arc::new(newer)));
    };
    seen(&mut cluster, "6", json!({"metadata": {"annotations": { SELECTED_NODE: "b" }}}));
    assert_eq!(PLUGIN.prepared(&pod, "b", &cluster), Prepared::Waiting);
    seen(&mut cluster, "7", json!({}));
    assert!(matches!(PLUGIN.prepared(&pod, "b", &cluster), Prepared::Failed(_)));
    let bound =
        json!({"metadata": {"annotations": { volumes::BIND_COMPLETED: "yes" }}, "spec": {"volumeName": "v"}});
    seen(&mut cluster, "8", bound);
    assert_eq!(PLUGIN.prepared(&pod, "b", &cluster), Prepared::Ready);
}
