use serde_json::{Value, json};

use super::*;
use crate::objects::tests::{arcs, at, pod};

fn set(spec: Value) -> StatefulSet {
    let mut full = json!({
        "selector": {"matchLabels": {"app": "web"}}, "serviceName": "peers", "replicas": 3,
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}},
    });
    for (key, value) in spec.as_object().unwrap() {
        full[key] = value.clone();
    }
    StatefulSet::from_value(json!({"metadata": {"namespace": "ns", "name": "s", "uid": "s"}, "spec": full}))
        .unwrap()
}

/// `ordinal:revision`, after `!` when it is not ready, `-` when it is going, `F` when it has failed.
fn pods(text: &str) -> Vec<Arc<Pod>> {
    arcs(text.split_whitespace().map(|text| {
        let (ordinal, revision) = text.trim_start_matches(['!', '-', 'F']).split_once(':').unwrap();
        let name = format!("s-{ordinal}");
        let phase = if text.contains('F') { "Failed" } else { "Running" };
        let mut pod = pod(&name, phase, !text.contains(['!', 'F']));
        let labels = pod.metadata.labels.as_mut().unwrap();
        labels.insert(REVISION_LABEL.to_owned(), revision.to_owned());
        labels.insert("statefulset.kubernetes.io/pod-name".to_owned(), name);
        if text.contains('-') {
            pod.metadata.deletion_timestamp = pod.metadata.creation_timestamp.clone();
        }
        pod
    }))
}

fn decided(set: &StatefulSet, present: &str, claims: &[PersistentVolumeClaim], seconds: i64) -> Plan {
    let claim = |name: &str| claims.iter().find(|claim| claim.name() == name).cloned().map(Arc::new);
    let template = &set.spec.as_ref().unwrap().template;
    decide(&Observed {
        set,
        pods: &pods(present),
        claim: &claim,
        current: Revision { name: "old", template },
        update: Revision { name: "new", template },
        collisions: 0,
        now: at(seconds),
    })
}

fn shown(plan: &Plan) -> String {
    let steps = plan.steps.iter().map(|step| match step {
        Step::Create(pod, claims) => {
            let claims: String = claims.iter().map(|claim| format!("+{}", claim.name())).collect();
            format!("create {}:{}{claims}", pod.name(), revision(pod))
        }
        Step::CreateClaims(pod, claims) => format!("claims {} {}", pod.name(), claims.len()),
        Step::SetOwners(claim, owners) => {
            let kinds: Vec<_> = owners.iter().map(|owner| owner.kind.as_str()).collect();
            format!("own {} {}", claim.name(), kinds.join("+"))
        }
        Step::Update(pod) => format!("update {}", pod.name()),
        Step::Delete(pod) => format!("delete {}", pod.name()),
    });
    steps.collect::<Vec<_>>().join(", ")
}

fn check(spec: Value, present: &str, expected: &str) {
    let plan = decided(&set(spec.clone()), present, &[], 10_000);
    assert_eq!(shown(&plan), expected, "{spec} {present}");
}

#[test]
fn pods_come_and_go_in_order() {
    check(json!({}), "", "create s-0:new");
    check(json!({}), "!0:new", "");
    check(json!({}), "0:new", "create s-1:new");
    check(json!({}), "0:new 2:new", "create s-1:new");
    check(json!({}), "0:new 1:new 2:new", "");
    check(json!({}), "F0:new", "delete s-0");
    check(json!({"replicas": 1}), "0:new 1:new 2:new", "delete s-2");
    check(json!({"replicas": 1}), "0:new 1:new -2:new", "");
    check(json!({"replicas": 1}), "!0:new 1:new 2:new", "");
    check(json!({"replicas": 1}), "0:new 1:new !2:new", "delete s-2");
    check(json!({"replicas": 1}), "0:new !1:new 2:new", "delete s-2");
    check(json!({"ordinals": {"start": 5}, "replicas": 2}), "5:new", "create s-6:new");
    check(json!({"ordinals": {"start": 1}, "replicas": 2}), "0:new 1:new 2:new", "delete s-0");
}

#[test]
fn parallel_pods_come_and_go_at_once() {
    let parallel = |replicas: i32| json!({"podManagementPolicy": "Parallel", "replicas": replicas});
    check(parallel(3), "", "create s-0:new, create s-1:new, create s-2:new");
    check(parallel(3), "!0:new", "create s-1:new, create s-2:new");
    check(parallel(1), "0:new !1:new 2:new", "delete s-2, delete s-1");
}

#[test]
fn rolling_goes_from_the_last_to_the_partition() {
    let rolling =
        |update: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": update}});
    check(rolling(json!({"partition": 0})), "0:old 1:old 2:old", "delete s-2");
    check(rolling(json!({"partition": 0})), "0:old 1:old 2:new", "delete s-1");
    check(rolling(json!({"partition": 0})), "0:old 1:old !2:new", "");
    check(rolling(json!({"partition": 2})), "0:old 1:old 2:new", "");
    check(rolling(json!({"partition": 2})), "0:old", "create s-1:old");
    check(rolling(json!({"partition": 2})), "0:old 1:old", "create s-2:new");
    check(
        rolling(json!({"partition": 0, "maxUnavailable": 2})),
        "0:old 1:old 2:old",
        "delete s-2, delete s-1",
    );
    check(rolling(json!({"maxUnavailable": "34%"})), "0:old 1:old 2:old", "delete s-2");
    check(json!({"podManagementPolicy": "Parallel"}), "0:old 1:old !2:old", "delete s-2");
    check(json!({"podManagementPolicy": "Parallel"}), "0:old !1:old !2:new", "");
    check(json!({"updateStrategy": {"type": "OnDelete"}}), "0:old 1:old 2:old", "");
    check(json!({"updateStrategy": {"type": "OnDelete"}}), "0:old 1:old", "create s-2:new");
}

#[test]
fn claims_come_before_pods_and_outlive_them() {
    let spec = |scaled: &str, deleted: &str, replicas: i32| {
        json!({
            "replicas": replicas, "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
            "persistentVolumeClaimRetentionPolicy": {"whenScaled": scaled, "whenDeleted": deleted},
        })
    };
    let claim = |ordinal: i32, owners: Value| {
        let metadata =
            json!({"namespace": "ns", "name": format!("data-s-{ordinal}"), "ownerReferences": owners});
        PersistentVolumeClaim::from_value(json!({ "metadata": metadata })).unwrap()
    };
    let by_pod = |uid: &str| json!([{"apiVersion": "v1", "kind": "Pod", "name": "s-1", "uid": uid, "controller": true}]);
    let by_other =
        json!([{"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "o", "controller": true}]);
    let check = |spec: Value, present: &str, claims: &[PersistentVolumeClaim], expected: &str| {
        assert_eq!(shown(&decided(&set(spec), present, claims, 10_000)), expected, "{present} {claims:?}");
    };
    let (first, second) = (claim(0, json!([])), claim(1, json!([])));
    check(spec("Retain", "Retain", 1), "", &[], "create s-0:new+data-s-0");
    check(spec("Retain", "Retain", 1), "", std::slice::from_ref(&first), "create s-0:new");
    check(spec("Retain", "Retain", 1), "0:new", std::slice::from_ref(&first), "");
    check(spec("Retain", "Delete", 1), "0:new", std::slice::from_ref(&first), "own data-s-0 StatefulSet");
    check(
        spec("Delete", "Retain", 1),
        "0:new 1:new",
        &[first.clone(), second],
        "own data-s-1 Pod, delete s-1",
    );
    check(
        spec("Delete", "Retain", 1),
        "0:new 1:new",
        &[first.clone(), claim(1, by_pod("uid-s-1"))],
        "delete s-1",
    );
    check(
        spec("Delete", "Retain", 2),
        "0:new 1:new",
        &[first.clone(), claim(1, by_pod("uid-s-1"))],
        "own data-s-1 ",
    );
    check(spec("Delete", "Retain", 2), "0:new", &[first, claim(1, by_pod("gone"))], "");
    let plan = decided(&set(spec("Retain", "Delete", 1)), "0:new", &[claim(0, by_other)], 10_000);
    assert_eq!((shown(&plan).as_str(), plan.conflicts.as_slice()), ("", ["data-s-0".to_owned()].as_slice()));
}

#[test]
fn a_pod_has_a_name_a_place_and_its_claims() {
    let set = set(json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]}));
    let Step::Create(pod, claims) = decided(&set, "", &[], 0).steps.remove(0) else { panic!("a pod is due") };
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("s-0"), Some("peers")));
    let volume = &spec.volumes.as_ref().unwrap()[0];
    assert_eq!(volume.persistent_volume_claim.as_ref().unwrap().claim_name, "data-s-0");
    assert_eq!(label(&*pod, "apps.kubernetes.io/pod-index"), Some("0"));
    assert_eq!(label(&*pod, "statefulset.kubernetes.io/pod-name"), Some("s-0"));
    assert_eq!(label(&claims[0], "app"), Some("web"));
}

#[test]
fn the_status_moves_on_when_all_are_updated() {
    let numbers = |present: &str, seconds: i64, spec: Value| {
        let plan = decided(&set(spec), present, &[], seconds);
        let status = plan.status;
        let numbers = [
            status.replicas,
            status.ready_replicas.unwrap(),
            status.available_replicas.unwrap(),
            status.current_replicas.unwrap(),
            status.updated_replicas.unwrap(),
        ];
        (numbers, status.current_revision.unwrap(), plan.again)
    };
    assert_eq!(numbers("0:old 1:old !2:new", 100, json!({})), ([3, 2, 2, 2, 1], "old".into(), None));
    assert_eq!(numbers("0:new 1:new 2:new", 100, json!({})), ([3, 3, 3, 3, 3], "new".into(), None));
    let slow = json!({"minReadySeconds": 30});
    let again = Some(Duration::from_secs(20));
    assert_eq!(numbers("0:old 1:old 2:old", 10, slow), ([3, 3, 0, 3, 0], "old".into(), again));
}
