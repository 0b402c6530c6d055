use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use api::Object;
use api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use api::storage::v1::{StorageClass, VolumeAttachment};
use serde_json::{Value, json};

use super::attach_detach::{self, Attachable};
use super::claim_plan::{self, ClaimPlan, View};
use super::volume_plan::{self, Reclaim, VolumePlan};
use super::{BIND_COMPLETED, PROVISIONED_BY, SELECTED_NODE, binder, ephemeral, local_path};
use crate::objects::tests::at;

fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            patch.into_iter().for_each(|(key, value)| merge(target.entry(key).or_insert(json!({})), value));
        }
        (target, patch) => *target = patch,
    }
}

fn claim(patch: Value) -> PersistentVolumeClaim {
    let mut object = json!({
        "metadata": {"namespace": "ns", "name": "data", "uid": "c1"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "2Gi"}}},
        "status": {"phase": "Pending"},
    });
    merge(&mut object, patch);
    PersistentVolumeClaim::from_value(object).unwrap()
}

fn volume(name: &str, patch: Value) -> PersistentVolume {
    let mut object = json!({
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "5Gi"},
            "persistentVolumeReclaimPolicy": "Delete", "hostPath": {"path": "/x"},
        },
        "status": {"phase": "Available"},
    });
    merge(&mut object, patch);
    PersistentVolume::from_value(object).unwrap()
}

fn class(name: &str, mode: &str, is_default: bool) -> StorageClass {
    let default = if is_default { "true" } else { "false" };
    StorageClass::from_value(json!({
        "metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": default}},
        "provisioner": "p", "volumeBindingMode": mode,
    }))
    .unwrap()
}

fn decide(
    claim: &PersistentVolumeClaim,
    volumes: &[PersistentVolume],
    classes: &[StorageClass],
    pods: &[&str],
) -> String {
    let view = View {
        volumes: &volumes.iter().collect::<Vec<_>>(),
        classes: &classes.iter().collect::<Vec<_>>(),
        waiting_pods: &pods.iter().map(|pod| (*pod).to_owned()).collect::<Vec<_>>(),
    };
    match claim_plan::decide(claim, &view) {
        ClaimPlan::Pending(None) => "pending".to_owned(),
        ClaimPlan::Pending(Some(tell)) => format!("pending: {}", tell.message),
        ClaimPlan::AssignClass(class) => format!("class {class}"),
        ClaimPlan::Provision(by) => format!("provision by {by}"),
        ClaimPlan::CannotProvision(tell) => format!("cannot: {}", tell.message),
        ClaimPlan::Bind(volume) => format!("bind {volume}"),
        ClaimPlan::Lost(tell) => format!("lost: {}", tell.reason),
    }
}

#[test]
fn a_free_claim_takes_the_smallest_volume_that_does() {
    let any = claim(json!({}));
    let volumes = [
        volume("small", json!({"spec": {"capacity": {"storage": "1Gi"}}})),
        volume("large", json!({"spec": {"capacity": {"storage": "9Gi"}}})),
        volume("fits", json!({})),
        volume(
            "shared",
            json!({"spec": {"accessModes": ["ReadWriteOnce", "ReadWriteMany"], "capacity": {"storage": "2Gi"}}}),
        ),
        volume("block", json!({"spec": {"volumeMode": "Block", "capacity": {"storage": "2Gi"}}})),
        volume("other", json!({"spec": {"storageClassName": "fast", "capacity": {"storage": "2Gi"}}})),
        volume(
            "taken",
            json!({"spec": {"claimRef": {"namespace": "ns", "name": "b", "uid": "c2"}, "capacity": {"storage": "2Gi"}}}),
        ),
        volume(
            "released",
            json!({"status": {"phase": "Released"}, "spec": {"capacity": {"storage": "2Gi"}}}),
        ),
    ];
    assert_eq!(decide(&any, &volumes, &[], &[]), "bind fits");
    let shared = claim(json!({"spec": {"accessModes": ["ReadWriteMany"]}}));
    assert_eq!(decide(&shared, &volumes, &[], &[]), "bind shared");
    let reserved = volume(
        "mine",
        json!({"spec": {"claimRef": {"namespace": "ns", "name": "data"}, "capacity": {"storage": "9Gi"}}}),
    );
    assert_eq!(decide(&any, &[volumes[2].clone(), reserved], &[], &[]), "bind mine");
    let labelled = claim(json!({"spec": {"selector": {"matchLabels": {"disk": "ssd"}}}}));
    assert!(decide(&labelled, &volumes, &[], &[]).starts_with("pending"));
    let ssd = volume("ssd", json!({"metadata": {"labels": {"disk": "ssd"}}}));
    assert_eq!(decide(&labelled, &[ssd], &[], &[]), "bind ssd");
}

#[test]
fn what_a_claim_waits_for() {
    let classes = [class("now", "Immediate", false), class("later", "WaitForFirstConsumer", true)];
    let of_class = |class: &str| claim(json!({"spec": {"storageClassName": class}}));
    let mut unsaid = claim(json!({}));
    unsaid.spec.as_mut().unwrap().storage_class_name = None;
    let mut selected = of_class("later");
    selected.metadata.annotations = Some([(SELECTED_NODE.to_owned(), "n1".to_owned())].into());
    let none = "pending: no persistent volumes available for this claim and no storage class is set";
    for (claim, pods, expected) in [
        (claim(json!({})), &[][..], none),
        (unsaid, &[], "class later"),
        (of_class("now"), &[], "provision by p"),
        (of_class("later"), &[], "pending: waiting for first consumer to be created before binding"),
        (of_class("later"), &["a"], "pending: waiting for pod a to be scheduled"),
        (of_class("later"), &["a", "b"], "pending: waiting for pods a,b to be scheduled"),
        (selected, &[], "provision by p"),
        (of_class("gone"), &[], "cannot: storageclass.storage.k8s.io \"gone\" not found"),
    ] {
        assert_eq!(decide(&claim, &[], &classes, pods), expected, "{claim:?}");
    }
    // The scheduler chooses: what is free is not taken.
    let free = volume("v", json!({"spec": {"storageClassName": "later"}}));
    assert!(decide(&of_class("later"), &[free], &classes, &[]).starts_with("pending"));
}

#[test]
fn a_named_volume_is_checked() {
    let named = claim(json!({"spec": {"volumeName": "v"}}));
    let with = |patch| decide(&named, &[volume("v", patch)], &[], &[]);
    assert_eq!(decide(&named, &[], &[], &[]), "pending");
    assert_eq!(with(json!({})), "bind v");
    assert_eq!(
        with(json!({"spec": {"capacity": {"storage": "1Gi"}}})),
        "pending: Cannot bind to requested volume \"v\": requested PV is too small"
    );
    assert_eq!(
        with(json!({"spec": {"claimRef": {"namespace": "ns", "name": "data", "uid": "c1"}}})),
        "bind v"
    );
    assert_eq!(
        with(json!({"spec": {"claimRef": {"namespace": "ns", "name": "other"}}})),
        "pending: volume \"v\" already bound to a different claim."
    );
}

#[test]
fn a_bound_claim_may_lose_its_volume() {
    let annotations = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}});
    let mut bound = claim(annotations);
    assert_eq!(decide(&bound, &[], &[], &[]), "lost: ClaimLost");
    bound.spec.as_mut().unwrap().volume_name = Some("v".into());
    assert_eq!(decide(&bound, &[], &[], &[]), "lost: ClaimLost");
    assert_eq!(decide(&bound, &[volume("v", json!({}))], &[], &[]), "bind v");
    let others = volume("v", json!({"spec": {"claimRef": {"namespace": "ns", "name": "data", "uid": "c0"}}}));
    assert_eq!(decide(&bound, &[others], &[], &[]), "lost: ClaimMisbound");
}

#[test]
fn volumes_follow_their_claims() {
    let bound = |patch| {
        let mut object = json!({"spec": {"claimRef": {"namespace": "ns", "name": "data", "uid": "c1"}}});
        merge(&mut object, patch);
        volume("v", object)
    };
    let elsewhere = claim(json!({"spec": {"volumeName": "w"}}));
    let by_controller = json!({"metadata": {"annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}}});
    let provisioned = json!({"metadata": {"annotations": {PROVISIONED_BY: "p"}}});
    for (volume, claim, expected) in [
        (volume("v", json!({})), None, VolumePlan::Available),
        (volume("v", json!({"spec": {"claimRef": {"name": "data"}}})), None, VolumePlan::Available),
        (bound(json!({})), None, VolumePlan::Released(Reclaim::Delete)),
        (bound(json!({})), Some(claim(json!({}))), VolumePlan::AskClaim),
        (bound(json!({})), Some(claim(json!({"spec": {"volumeMode": "Block"}}))), VolumePlan::Mismatch),
        (bound(json!({})), Some(claim(json!({"spec": {"volumeName": "v"}}))), VolumePlan::Bound),
        (bound(provisioned), Some(elsewhere.clone()), VolumePlan::Released(Reclaim::Delete)),
        (bound(by_controller), Some(elsewhere.clone()), VolumePlan::Unbind { entirely: true }),
        (bound(json!({})), Some(elsewhere), VolumePlan::Unbind { entirely: false }),
    ] {
        assert_eq!(volume_plan::decide(&volume, claim.as_ref()), expected, "{volume:?}");
    }
}

#[test]
fn binding_is_written_once_on_both() {
    let (free, wanting) = (volume("v", json!({})), claim(json!({})));
    let bound = binder::bound_volume(&free, &wanting).unwrap();
    assert_eq!(crate::objects::annotation(&bound, super::BOUND_BY_CONTROLLER), Some("yes"));
    assert!(binder::bound_volume(&bound, &wanting).is_none());
    let named = binder::bound_claim(&wanting, "v").unwrap();
    assert!(binder::bound_claim(&named, "v").is_none());
    let status = binder::claim_status(&named, "Bound", Some(&bound)).unwrap().unwrap();
    assert_eq!(status.status.as_ref().unwrap().capacity.as_ref().unwrap()["storage"].0, "5Gi");
    assert!(binder::claim_status(&status, "Bound", Some(&bound)).unwrap().is_none());
}

#[test]
fn an_ephemeral_volume_gets_a_claim_of_the_pod() {
    let pod = Pod::from_value(json!({
        "metadata": {"namespace": "ns", "name": "web", "uid": "p1"},
        "spec": {"containers": [], "volumes": [{"name": "tmp", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]},
    }))
    .unwrap();
    let volume = &pod.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0];
    let claim = ephemeral::decide(&pod, volume, None).unwrap().unwrap();
    assert_eq!(claim.name(), "web-tmp");
    assert_eq!(ephemeral::decide(&pod, volume, Some(&claim)), Ok(None));
    let mut foreign = claim;
    foreign.metadata.owner_references = None;
    assert_eq!(
        ephemeral::decide(&pod, volume, Some(&foreign)).unwrap_err(),
        "PVC ns/web-tmp was not created for pod ns/web (pod is not owner)"
    );
}

#[test]
fn local_folders_are_only_ours() {
    let class = class("local-path", "WaitForFirstConsumer", true);
    let root = Path::new("/data/storage");
    let made = local_path::volume_for(&claim(json!({})), &class, "host", "/data/storage/pvc-c1_ns_data");
    assert_eq!(made.name(), "pvc-c1");
    assert_eq!(local_path::folder(&made, root).unwrap(), root.join("pvc-c1_ns_data"));
    let mut elsewhere = made.clone();
    for path in
        ["/etc", "/data/storage", "/data/storage/..", "/data/storage/a/b", "/data/storage/a/../../etc"]
    {
        elsewhere.spec.as_mut().unwrap().host_path.as_mut().unwrap().path = path.into();
        assert_eq!(local_path::folder(&elsewhere, root), None, "{path}");
    }
    let mut foreign = made.clone();
    foreign.metadata.annotations = None;
    assert_eq!(local_path::folder(&foreign, root), None);

    assert!(!local_path::is_done(&made));
    let mut released = made;
    released.status.get_or_insert_default().phase = Some("Released".into());
    assert!(local_path::is_done(&released));
    released.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Retain".into());
    assert!(!local_path::is_done(&released));
    for (patch, refused) in [
        (json!({}), false),
        (json!({"spec": {"accessModes": ["ReadWriteMany"]}}), true),
        (json!({"spec": {"volumeMode": "Block"}}), true),
    ] {
        assert_eq!(local_path::refusal(&claim(patch)).is_some(), refused);
    }
}

fn csi(name: &str, mode: &str) -> Attachable {
    let csi =
        json!({"spec": {"accessModes": [mode], "csi": {"driver": "d", "volumeHandle": format!("h-{name}")}}});
    Attachable::of(&volume(name, csi)).unwrap()
}

fn attachment(volume: &Attachable, attached: bool) -> (Attachable, Arc<VolumeAttachment>) {
    let object = json!({
        "metadata": {"name": volume.attachment_name("n1")},
        "spec": {"attacher": "d", "nodeName": "n1", "source": {"persistentVolumeName": volume.volume}},
        "status": {"attached": attached},
    });
    (volume.clone(), Arc::new(VolumeAttachment::from_value(object).unwrap()))
}

#[test]
fn volumes_come_to_nodes_and_leave_when_unmounted() {
    let (a, b) = (csi("a", "ReadWriteOnce"), csi("b", "ReadWriteMany"));
    assert_eq!(a.unique_name(), "kubernetes.io/csi/d^h-a");
    let node = |in_use: &[&str], ready: &str, taints: Value| {
        Node::from_value(json!({
            "metadata": {"name": "n1"}, "spec": {"taints": taints},
            "status": {"volumesInUse": in_use, "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    };
    let plan =
        |node: &Node, wanted: &[Attachable], attached: &[_], elsewhere: &[&str], since: Option<i64>| {
            let waiting = since.map(|since| HashMap::from([("a".to_owned(), at(since))])).unwrap_or_default();
            attach_detach::decide(&attach_detach::View {
                node,
                wanted,
                attached,
                elsewhere: &elsewhere.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(),
                waiting_since: &waiting,
                now: at(1000),
            })
        };
    let idle = node(&[], "True", json!([]));
    let wanted = plan(&idle, &[a.clone(), b.clone()], &[], &["a", "b"], None);
    assert_eq!((wanted.attach, wanted.blocked), (vec![b], vec!["a".to_owned()]));
    let told = plan(&idle, std::slice::from_ref(&a), &[attachment(&a, true)], &[], None).told;
    assert_eq!(told, ["kubernetes.io/csi/d^h-a"]);
    assert!(plan(&idle, std::slice::from_ref(&a), &[attachment(&a, false)], &[], None).told.is_empty());

    let name = a.attachment_name("n1");
    let in_use = ["kubernetes.io/csi/d^h-a"];
    let out = json!([{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]);
    for (node, since, detached) in [
        (node(&[], "True", json!([])), None, true),
        (node(&in_use, "True", json!([])), None, false),
        (node(&in_use, "True", json!([])), Some(0), false),
        (node(&in_use, "False", json!([])), Some(900), false),
        (node(&in_use, "False", json!([])), Some(0), true),
        (node(&in_use, "True", out), None, true),
    ] {
        let plan = plan(&node, &[], &[attachment(&a, true)], &[], since);
        assert_eq!(plan.detach.contains(&name), detached, "{node:?} {since:?}");
        assert_eq!(plan.told.is_empty(), detached);
    }
}

#[test]
fn who_has_the_volume() {
    let users = |list: &[(&str, &str)]| -> Vec<(String, String)> {
        list.iter().map(|(namespace, name)| ((*namespace).to_owned(), (*name).to_owned())).collect()
    };
    let cases = [
        (users(&[]), "Volume is already exclusively attached to one node and can't be attached to another"),
        (users(&[("n", "a"), ("n", "b")]), "Volume is already used by pod(s) a, b"),
        (users(&[("m", "a")]), "Volume is already used by 1 pod(s) in different namespaces"),
        (
            users(&[("m", "a"), ("n", "b")]),
            "Volume is already used by pod(s) b and 1 pod(s) in different namespaces",
        ),
    ];
    for (users, want) in cases {
        assert_eq!(attach_detach::multi_attach("n", &users), want);
    }
}
