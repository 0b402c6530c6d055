//! Plugins that run only when they are enabled.

use serde_json::{Value, json};

use super::super::fake::{Case, context, user};
use super::{object, pod};

fn namespace(metadata: Value) -> Value {
    object("Namespace", "", "shop", json!({"metadata": metadata}))
}

#[test]
fn they_refuse_in_upstreams_words() {
    let context = context([namespace(json!({}))]);
    let anti_affinity = json!({"affinity": {"podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}}});
    let service =
        |addresses: Value| object("Service", "shop", "s", json!({"spec": {"externalIPs": addresses}}));
    let owned = |blocks: bool| {
        object(
            "ConfigMap",
            "shop",
            "c",
            json!({"metadata": {"ownerReferences": [
            {"apiVersion": "v1", "kind": "Secret", "name": "s", "uid": "u", "blockOwnerDeletion": blocks}]}}),
        )
    };
    for (plugin, mut case, wanted) in [
        (
            "AlwaysDeny",
            Case::create(pod("p", json!({}))),
            "pods \"p\" is forbidden: admission control is denying all modifications",
        ),
        ("AlwaysAdmit", Case::create(pod("p", json!({}))), ""),
        (
            "NamespaceExists",
            Case::create(object("Pod", "nowhere", "p", json!({}))),
            "namespaces \"nowhere\" not found",
        ),
        ("NamespaceExists", Case::create(pod("p", json!({}))), ""),
        (
            "LimitPodHardAntiAffinityTopology",
            Case::create(pod("p", anti_affinity)),
            "pods \"p\" is forbidden: affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey zone but \
             only key kubernetes.io/hostname is allowed",
        ),
        (
            "DenyServiceExternalIPs",
            Case::create(service(json!(["10.0.0.1"]))),
            "services \"s\" is forbidden: Use of external IPs is denied by admission control",
        ),
        (
            "DenyServiceExternalIPs",
            Case::update(service(json!(["10.0.0.1", "10.0.0.2"])), service(json!(["10.0.0.1"]))),
            "",
        ),
        ("OwnerReferencesPermissionEnforcement", Case::create(owned(false)), ""),
        (
            "OwnerReferencesPermissionEnforcement",
            Case::create(owned(true)),
            "configmaps \"c\" is forbidden: cannot set blockOwnerDeletion if an ownerReference refers to a resource \
             you can't set finalizers on: , <nil>",
        ),
        (
            "OwnerReferencesPermissionEnforcement",
            Case::create(owned(true)).by(user("root", &["system:masters"])),
            "",
        ),
        (
            "OwnerReferencesPermissionEnforcement",
            Case::update(object("ConfigMap", "shop", "c", json!({})), owned(false)),
            "configmaps \"c\" is forbidden: cannot set an ownerRef on a resource you can't delete: , <nil>",
        ),
    ] {
        let refused = case.admit(&context, plugin).err().map(|status| status.message).unwrap_or_default();
        assert_eq!(refused, wanted, "{plugin}");
    }
}

#[test]
fn images_are_always_pulled() {
    let context = context([]);
    let spec = json!({
        "containers": [{"name": "c", "image": "a", "imagePullPolicy": "Never"}],
        "initContainers": [{"name": "i", "image": "b"}],
        "volumes": [{"name": "v", "image": {"reference": "c"}}, {"name": "w", "emptyDir": {}}],
    });
    let admitted = Case::create(pod("p", spec.clone())).admitted(&context, "AlwaysPullImages");
    assert_eq!(admitted["spec"]["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!(admitted["spec"]["initContainers"][0]["imagePullPolicy"], "Always");
    assert_eq!(admitted["spec"]["volumes"][0]["image"]["pullPolicy"], "Always");
    assert_eq!(admitted["spec"]["volumes"][1], json!({"name": "w", "emptyDir": {}}));
    let same = Case::update(pod("p", spec.clone()), pod("p", spec)).admitted(&context, "AlwaysPullImages");
    assert_eq!(same["spec"]["containers"][0]["imagePullPolicy"], "Never", "no image is new");
}

#[test]
fn who_asks_for_a_device_tolerates_its_taint() {
    let containers = json!([{"name": "c", "resources": {"requests": {"cpu": "1", "example.com/gpu": "1"}}}]);
    let admitted = Case::create(pod("p", json!({"containers": containers})))
        .admitted(&context([]), "ExtendedResourceToleration");
    let wanted = json!([{"key": "example.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]);
    assert_eq!(admitted["spec"]["tolerations"], wanted);
}

#[test]
fn a_namespace_chooses_the_nodes_of_its_pods() {
    let annotations = json!({"scheduler.alpha.kubernetes.io/node-selector": "disk=ssd, zone=a"});
    let context = context([namespace(json!({"annotations": annotations}))]);
    let plain = Case::create(pod("p", json!({"nodeSelector": {"x": "y"}})));
    let admitted = plain.admitted(&context, "PodNodeSelector");
    assert_eq!(admitted["spec"]["nodeSelector"], json!({"disk": "ssd", "x": "y", "zone": "a"}));
    let other = Case::create(pod("p", json!({"nodeSelector": {"zone": "b"}})));
    assert_eq!(
        other.refusal(&context, "PodNodeSelector"),
        "pods \"p\" is forbidden: pod node label selector conflicts with its namespace node label selector"
    );
}

#[test]
fn a_namespace_says_what_its_pods_tolerate_and_may() {
    let annotations = json!({
        "scheduler.alpha.kubernetes.io/defaultTolerations": r#"[{"key": "gpu", "operator": "Exists"}]"#,
        "scheduler.alpha.kubernetes.io/tolerationsWhitelist":
            r#"[{"key": "gpu", "operator": "Exists"}, {"key": "node.kubernetes.io/memory-pressure",
                 "operator": "Exists"}, {"key": "a", "operator": "Equal", "value": "b"}]"#,
    });
    let context = context([namespace(json!({"annotations": annotations}))]);
    let admitted = |spec: Value| {
        let admitted = Case::create(pod("p", spec)).admitted(&context, "PodTolerationRestriction");
        admitted["spec"]["tolerations"].clone()
    };
    assert_eq!(admitted(json!({})), json!([{"key": "gpu", "operator": "Exists"}]));
    // What a wider toleration covers goes; a pod with requests tolerates a node short of memory.
    let asks = json!({
        "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}],
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    });
    let pressure =
        json!({"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"});
    assert_eq!(admitted(asks), json!([{"key": "gpu", "operator": "Exists"}, pressure]));
    for (toleration, fine) in [
        (json!({"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"}), true),
        (json!({"key": "a", "operator": "Equal", "value": "c"}), false),
        (json!({"key": "a", "operator": "Exists"}), false),
        (json!({"operator": "Exists"}), false),
    ] {
        let case = Case::create(pod("p", json!({"tolerations": [toleration]})));
        let wanted = match fine {
            true => "",
            false => {
                "pod tolerations (possibly merged with namespace default tolerations) conflict with its namespace \
                 whitelist"
            }
        };
        assert_eq!(case.refusal(&context, "PodTolerationRestriction"), wanted, "{toleration}");
    }
}
