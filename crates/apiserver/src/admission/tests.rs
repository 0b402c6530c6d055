use serde_json::{Value, json};

use super::fake::{Case, Fake, chain, context, user};
use super::tree::{at, text};
use super::*;

mod configured;
mod nodes;
mod optional;
mod quotas;
mod security;

pub(super) fn object(kind: &str, namespace: &str, name: &str, rest: Value) -> Value {
    let api_version = match kind {
        "StorageClass" | "VolumeAttributesClass" => "storage.k8s.io/v1",
        "PriorityClass" => "scheduling.k8s.io/v1",
        "PodGroup" | "Workload" => "scheduling.k8s.io/v1alpha2",
        "RuntimeClass" => "node.k8s.io/v1",
        "IngressClass" | "Ingress" => "networking.k8s.io/v1",
        "CertificateSigningRequest" => "certificates.k8s.io/v1",
        "Deployment" => "apps/v1",
        "Lease" => "coordination.k8s.io/v1",
        _ => "v1",
    };
    let mut object = rest;
    let mut metadata = json!({"name": name});
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    if let Some(given) = object.get("metadata").and_then(Value::as_object) {
        metadata.as_object_mut().unwrap().extend(given.clone());
    }
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.into();
    object["metadata"] = metadata;
    object
}

pub(super) fn pod(name: &str, spec: Value) -> Value {
    object("Pod", "shop", name, json!({"spec": spec}))
}

#[test]
fn the_plugins_are_in_upstreams_order() {
    expect_test::expect![[r#"
        NamespaceLifecycle
        LimitRanger
        ServiceAccount
        NodeRestriction
        TaintNodesByCondition
        PodSecurity
        Priority
        DefaultTolerationSeconds
        DefaultStorageClass
        StorageObjectInUseProtection
        PodGroupProtection
        PersistentVolumeClaimResize
        RuntimeClass
        CertificateApproval
        CertificateSigning
        ClusterTrustBundleAttest
        CertificateSubjectRestriction
        DefaultIngressClass
        PodTopologyLabels
        PodGroupWorkloadExists
        NodeDeclaredFeatureValidator
        JobValidation
        PodResizeValidator
        MutatingAdmissionPolicy
        MutatingAdmissionWebhook
        ValidatingAdmissionPolicy
        ValidatingAdmissionWebhook
        ResourceQuota
    "#]]
    .assert_eq(&(Selection::default().names().join("\n") + "\n"));
}

#[test]
fn namespaces_live_and_die() {
    let namespace =
        |name: &str, phase: &str| object("Namespace", "", name, json!({"status": {"phase": phase}}));
    let context = context([namespace("shop", "Active"), namespace("leaving", "Terminating")]);
    let map = |namespace: &str| object("ConfigMap", namespace, "m", json!({}));
    let cases = [
        (Case::create(map("shop")), ""),
        (Case::create(map("none")), "namespaces \"none\" not found"),
        (Case::update(map("none"), map("none")), "namespaces \"none\" not found"),
        (
            Case::create(map("leaving")),
            "configmaps \"m\" is forbidden: unable to create new content in namespace leaving because it is being \
             terminated",
        ),
        (Case::update(map("leaving"), map("leaving")), ""),
        (Case::delete(map("leaving")), ""),
        (Case::create(object("Node", "", "n", json!({}))), ""),
        (Case::delete(namespace("shop", "Active")), ""),
        (
            Case::delete(namespace("kube-system", "Active")),
            "namespaces \"kube-system\" is forbidden: this namespace may not be deleted",
        ),
    ];
    for (case, expected) in cases {
        assert_eq!(case.refusal(&context, "NamespaceLifecycle"), expected);
    }
    let status = Case::create(map("leaving")).admit(&context, "NamespaceLifecycle").unwrap_err();
    let cause = &status.details.unwrap().causes[0];
    assert_eq!((cause.reason.as_str(), cause.field.as_str()), ("NamespaceTerminating", "metadata.namespace"));
    assert_eq!(cause.message, "namespace leaving is being terminated");
}

#[test]
fn pods_get_an_account_and_its_token() {
    let context = context([object(
        "ServiceAccount",
        "shop",
        "default",
        json!({"imagePullSecrets": [{"name": "hub"}]}),
    )]);
    let spec = json!({"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]});
    let admitted = Case::create(pod("p", spec)).admitted(&context, "ServiceAccount");
    let spec = &admitted["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "hub"}]));
    let volume = &spec["volumes"][0];
    let name = text(volume, "name");
    assert_eq!((name.len(), &name[..16]), ("kube-api-access-xxxxx".len(), "kube-api-access-"));
    assert_eq!(
        volume["projected"],
        json!({"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
            ]}},
        ]})
    );
    let mount = json!([{"name": name, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]);
    assert_eq!(
        (&spec["containers"][0]["volumeMounts"], &spec["initContainers"][0]["volumeMounts"]),
        (&mount, &mount)
    );
}

#[test]
fn tokens_are_mounted_unless_someone_says_no() {
    let account = |name: &str, automount: Value| {
        object("ServiceAccount", "shop", name, json!({"automountServiceAccountToken": automount}))
    };
    let context =
        context([account("default", Value::Null), account("no", false.into()), account("yes", true.into())]);
    let place = "/var/run/secrets/kubernetes.io/serviceaccount";
    let cases = [
        (json!({"containers": [{}]}), 1),
        (json!({"containers": [{}], "automountServiceAccountToken": false}), 0),
        (json!({"containers": [{}], "serviceAccountName": "no"}), 0),
        (json!({"containers": [{}], "serviceAccountName": "no", "automountServiceAccountToken": true}), 1),
        (json!({"containers": [{}], "serviceAccountName": "yes", "automountServiceAccountToken": false}), 0),
        (json!({"containers": [{"volumeMounts": [{"name": "own", "mountPath": place}]}]}), 0),
        (json!({"containers": [{}], "volumes": [{"name": "kube-api-access-abcde"}]}), 1),
        (json!({"containers": []}), 0),
    ];
    for (spec, volumes) in cases {
        let admitted = Case::create(pod("p", spec.clone())).admitted(&context, "ServiceAccount");
        assert_eq!(admitted["spec"]["volumes"].as_array().map_or(0, Vec::len), volumes, "{spec}");
    }
}

#[test]
fn accounts_and_secrets_must_be_there() {
    let strict = json!({
        "metadata": {"annotations": {"kubernetes.io/enforce-mountable-secrets": "true"}},
        "secrets": [{"name": "mine"}],
    });
    let context = context([object("ServiceAccount", "shop", "strict", strict)]);
    let mirror = |spec: Value| {
        object(
            "Pod",
            "shop",
            "m",
            json!({
                "metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": spec,
            }),
        )
    };
    let strict = |mut spec: Value| {
        spec["serviceAccountName"] = "strict".into();
        pod("p", spec)
    };
    let env = |secret: &str| json!([{"name": "E", "valueFrom": {"secretKeyRef": {"name": secret}}}]);
    let cases = [
        (
            pod("p", json!({})),
            "pods \"p\" is forbidden: error looking up service account shop/default: serviceaccount \"default\" not found",
        ),
        (mirror(json!({})), ""),
        (
            mirror(json!({"serviceAccountName": "strict"})),
            "pods \"m\" is forbidden: a mirror pod may not reference service accounts",
        ),
        (
            mirror(json!({"volumes": [{"secret": {"secretName": "x"}}]})),
            "pods \"m\" is forbidden: a mirror pod may not reference secrets",
        ),
        (
            mirror(json!({"volumes": [{"projected": {"sources": [{"serviceAccountToken": {}}]}}]})),
            "pods \"m\" is forbidden: a mirror pod may not use ServiceAccountToken volume projections",
        ),
        (
            strict(
                json!({"volumes": [{"secret": {"secretName": "mine"}}], "containers": [{"env": env("mine")}]}),
            ),
            "",
        ),
        (
            strict(json!({"volumes": [{"secret": {"secretName": "x"}}]})),
            "pods \"p\" is forbidden: volume with secret.secretName=\"x\" is not allowed because service account \
             strict does not reference that secret",
        ),
        (
            strict(json!({"containers": [{"name": "c", "env": env("x")}]})),
            "pods \"p\" is forbidden: container c with envVar E referencing secret.secretName=\"x\" is not allowed \
             because service account strict does not reference that secret",
        ),
        (
            strict(json!({"imagePullSecrets": [{"name": "x"}]})),
            "pods \"p\" is forbidden: imagePullSecrets[0].name=\"x\" is not allowed because service account strict \
             does not reference that imagePullSecret",
        ),
    ];
    for (object, expected) in cases {
        assert_eq!(Case::create(object).refusal(&context, "ServiceAccount"), expected);
    }
}

#[test]
fn priority_comes_from_the_class() {
    let class = |name: &str, value: i64, default: bool| {
        let rest = json!({"value": value, "globalDefault": default, "preemptionPolicy": "Never"});
        object("PriorityClass", "", name, rest)
    };
    let plain = context([class("high", 1000, false)]);
    let defaulted = context([class("high", 1000, false), class("usual", 5, true)]);
    let spec = |context: &Context, spec: Value| {
        Case::create(pod("p", spec)).admitted(context, "Priority")["spec"].clone()
    };
    assert_eq!(spec(&plain, json!({})), json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}));
    let high = json!({"priorityClassName": "high", "priority": 1000, "preemptionPolicy": "Never"});
    assert_eq!(spec(&plain, json!({"priorityClassName": "high"})), high);
    assert_eq!(spec(&plain, high.clone()), high);
    let usual = json!({"priorityClassName": "usual", "priority": 5, "preemptionPolicy": "Never"});
    assert_eq!(spec(&defaulted, json!({})), usual);
    let cases = [
        (
            json!({"priorityClassName": "x"}),
            "pods \"p\" is forbidden: no PriorityClass with name x was found",
        ),
        (
            json!({"priority": 7}),
            "pods \"p\" is forbidden: the integer value of priority (7) must not be provided in pod spec; priority \
             admission controller computed 0 from the given PriorityClass name",
        ),
        (
            json!({"priorityClassName": "high", "preemptionPolicy": "PreemptLowerPriority"}),
            "pods \"p\" is forbidden: the string value of PreemptionPolicy (PreemptLowerPriority) must not be provided \
             in pod spec; priority admission controller computed Never from the given PriorityClass name",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(Case::create(pod("p", spec)).refusal(&plain, "Priority"), expected);
    }
    let again = Case::update(pod("p", high.clone()), pod("p", json!({"priorityClassName": "high"})));
    assert_eq!(again.admitted(&plain, "Priority")["spec"], high);
    let second = class("second", 1, true);
    assert_eq!(
        Case::create(second).refusal(&defaulted, "Priority"),
        "priorityclasses.scheduling.k8s.io \"second\" is forbidden: PriorityClass usual is already marked as default. \
         Only one default can exist"
    );
    let usual = class("usual", 6, true);
    assert_eq!(Case::update(usual.clone(), usual).refusal(&defaulted, "Priority"), "");
}

#[test]
fn pods_tolerate_lost_nodes_for_a_while() {
    let default = |condition: &str| {
        json!({
            "key": format!("node.kubernetes.io/{condition}"), "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": 300,
        })
    };
    let everything = json!({"operator": "Exists"});
    let own = json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"});
    let other = json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoSchedule"});
    let cases = [
        (json!([]), json!([default("not-ready"), default("unreachable")])),
        (json!([everything]), json!([everything])),
        (json!([own]), json!([own, default("unreachable")])),
        (json!([other]), json!([other, default("not-ready"), default("unreachable")])),
    ];
    for (given, expected) in cases {
        let admitted = Case::create(pod("p", json!({"tolerations": given})))
            .admitted(&context([]), "DefaultTolerationSeconds");
        assert_eq!(admitted["spec"]["tolerations"], expected);
    }
}

#[test]
fn classes_are_chosen_by_default() {
    let class = |kind: &str, name: &str, made: &str, annotation: &str| {
        object(
            kind,
            "",
            name,
            json!({"metadata": {
                "creationTimestamp": made, "annotations": {annotation: "true"},
            }}),
        )
    };
    let storage = "storageclass.kubernetes.io/is-default-class";
    let ingress = "ingressclass.kubernetes.io/is-default-class";
    let context = context([
        class("StorageClass", "old", "2026-01-01T00:00:00Z", storage),
        class("StorageClass", "b-new", "2026-02-01T00:00:00Z", storage),
        class("StorageClass", "a-new", "2026-02-01T00:00:00Z", storage),
        class("StorageClass", "newest", "2026-03-01T00:00:00Z", "x"),
        class("IngressClass", "web", "2026-01-01T00:00:00Z", ingress),
    ]);
    let claim = |rest: Value| object("PersistentVolumeClaim", "shop", "c", rest);
    let class_of = |object: Value, plugin: &str, path: &str| {
        at(&Case::create(object).admitted(&context, plugin), path).cloned()
    };
    let of_claim = |rest: Value| class_of(claim(rest), "DefaultStorageClass", "spec.storageClassName");
    assert_eq!(of_claim(json!({})), Some("a-new".into()));
    assert_eq!(of_claim(json!({"spec": {"storageClassName": ""}})), Some("".into()));
    let annotated = json!({"metadata": {"annotations": {"volume.beta.kubernetes.io/storage-class": "x"}}});
    assert_eq!(of_claim(annotated), None);
    let of_ingress = |rest: Value| {
        class_of(object("Ingress", "shop", "i", rest), "DefaultIngressClass", "spec.ingressClassName")
    };
    assert_eq!(of_ingress(json!({})), Some("web".into()));
    assert_eq!(of_ingress(json!({"spec": {"ingressClassName": "own"}})), Some("own".into()));
    assert_eq!(of_ingress(json!({"metadata": {"annotations": {"kubernetes.io/ingress.class": "x"}}})), None);
}

#[test]
fn storage_in_use_stays() {
    let cases = [
        ("PersistentVolume", json!(["kubernetes.io/pv-protection"])),
        ("PersistentVolumeClaim", json!(["kubernetes.io/pvc-protection"])),
        ("VolumeAttributesClass", json!(["kubernetes.io/vac-protection"])),
        ("Secret", Value::Null),
    ];
    for (kind, expected) in cases {
        let admitted = Case::create(object(kind, "", "x", json!({})))
            .admitted(&context([]), "StorageObjectInUseProtection");
        assert_eq!(admitted["metadata"]["finalizers"], expected, "{kind}");
    }
}

#[test]
fn a_group_stays_and_is_of_a_workload_that_knows_it() {
    let workload = |name: &str, metadata: Value| {
        let spec = json!({"podGroupTemplates": [{"name": "t"}]});
        object("Workload", "shop", name, json!({"spec": spec, "metadata": metadata}))
    };
    let leaving = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
    let context = context([workload("there", json!({})), workload("leaving", leaving)]);
    let group = |workload: &str, template: &str| {
        let reference = json!({"workload": {"workloadName": workload, "podGroupTemplateName": template}});
        object("PodGroup", "shop", "g", json!({"spec": {"podGroupTemplateRef": reference}}))
    };
    let refused =
        |why: &str| format!("podgroups.scheduling.k8s.io \"g\" is forbidden: PodGroup rejected: {why}");
    for (group, expected) in [
        (group("there", "t"), String::new()),
        (object("PodGroup", "shop", "g", json!({"spec": {"podGroupTemplateRef": null}})), String::new()),
        (group("none", "t"), refused("Workload \"none\" not found")),
        (group("leaving", "t"), refused("Workload \"leaving\" is being deleted")),
        (group("there", "u"), refused("PodGroupTemplate \"u\" not found in Workload \"there\"")),
    ] {
        assert_eq!(Case::create(group).refusal(&context, "PodGroupWorkloadExists"), expected);
    }
    let admitted = Case::create(group("there", "t")).admitted(&context, "PodGroupProtection");
    assert_eq!(admitted["metadata"]["finalizers"], json!(["scheduling.k8s.io/podgroup-protection"]));
}

#[test]
fn claims_grow_where_the_class_allows() {
    let class =
        |name: &str, grows: bool| object("StorageClass", "", name, json!({"allowVolumeExpansion": grows}));
    let context = context([class("grows", true), class("fixed", false)]);
    let claim = |class: &str, size: &str, phase: &str| {
        object(
            "PersistentVolumeClaim",
            "shop",
            "c",
            json!({
                "spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}},
                "status": {"phase": phase},
            }),
        )
    };
    let refused = "persistentvolumeclaims \"c\" is forbidden: only dynamically provisioned pvc can be resized and the \
                   storageclass that provisions the pvc must support resize";
    let cases = [
        ("grows", "1Gi", "2Gi", "Bound", ""),
        ("fixed", "1Gi", "2Gi", "Bound", refused),
        ("none", "1Gi", "2Gi", "Bound", refused),
        ("fixed", "1Gi", "1024Mi", "Bound", ""),
        (
            "grows",
            "1Gi",
            "2Gi",
            "Pending",
            "persistentvolumeclaims \"c\" is forbidden: Only bound persistent volume claims can be expanded",
        ),
    ];
    for (class, old, new, phase, expected) in cases {
        let case = Case::update(claim(class, old, phase), claim(class, new, phase));
        assert_eq!(
            case.refusal(&context, "PersistentVolumeClaimResize"),
            expected,
            "{class} {old} {new} {phase}"
        );
    }
}

#[test]
fn runtime_classes_shape_pods() {
    let context = context([object(
        "RuntimeClass",
        "",
        "vm",
        json!({
            "handler": "vm",
            "overhead": {"podFixed": {"memory": "64Mi"}},
            "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]},
        }),
    )]);
    let admitted =
        Case::create(pod("p", json!({"runtimeClassName": "vm"}))).admitted(&context, "RuntimeClass");
    assert_eq!(
        admitted["spec"],
        json!({
            "runtimeClassName": "vm", "overhead": {"memory": "64Mi"}, "nodeSelector": {"vm": "yes"},
            "tolerations": [{"key": "vm", "operator": "Exists"}],
        })
    );
    let cases = [
        (json!({}), ""),
        (
            json!({"runtimeClassName": "x"}),
            "pods \"p\" is forbidden: pod rejected: RuntimeClass \"x\" not found",
        ),
        (
            json!({"overhead": {"cpu": "1"}}),
            "pods \"p\" is forbidden: pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
        ),
        (
            json!({"runtimeClassName": "vm", "overhead": {"memory": "1Mi"}}),
            "pods \"p\" is forbidden: pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
        ),
        (
            json!({"runtimeClassName": "vm", "nodeSelector": {"vm": "no"}}),
            "pods \"p\" is forbidden: conflict: runtimeClass.scheduling.nodeSelector[vm] = yes; \
             pod.spec.nodeSelector[vm] = no",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(Case::create(pod("p", spec)).refusal(&context, "RuntimeClass"), expected);
    }
}

#[test]
fn limit_ranges_default_and_bound() {
    let range = object(
        "LimitRange",
        "shop",
        "r",
        json!({"spec": {"limits": [
            {
                "type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m", "memory": "10Mi"},
                "min": {"cpu": "50m"}, "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "10"},
            },
            {"type": "Pod", "max": {"cpu": "1500m"}},
            {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "5Gi"}},
        ]}}),
    );
    let context = context([range]);
    let admitted =
        Case::create(pod("p", json!({"containers": [{"name": "c"}]}))).admitted(&context, "LimitRanger");
    assert_eq!(
        admitted["spec"]["containers"][0]["resources"],
        json!({"requests": {"cpu": "100m", "memory": "10Mi"}, "limits": {"cpu": "500m"}})
    );
    assert_eq!(
        admitted["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu, memory request for container c; cpu limit for container c"
    );
    let container = |request: &str, limit: &str| json!({"name": "c", "resources": {"requests": {"cpu": request, "memory": "1Mi"}, "limits": {"cpu": limit}}});
    let of = |containers: Vec<Value>| pod("p", json!({"containers": containers}));
    let cases = [
        (of(vec![container("200m", "1")]), ""),
        (
            of(vec![container("10m", "40m")]),
            "pods \"p\" is forbidden: minimum cpu usage per Container is 50m, but request is 10m",
        ),
        (
            of(vec![container("1", "2")]),
            "pods \"p\" is forbidden: [maximum cpu usage per Container is 1, but limit is 2, maximum cpu usage per Pod \
             is 1500m, but limit is 2]",
        ),
        (
            of(vec![container("50m", "1")]),
            "pods \"p\" is forbidden: cpu max limit to request ratio per Container is 10, but provided ratio is 20.000000",
        ),
        (
            of(vec![container("900m", "1"), container("900m", "1")]),
            "pods \"p\" is forbidden: maximum cpu usage per Pod is 1500m, but limit is 2",
        ),
    ];
    for (object, expected) in cases {
        assert_eq!(Case::create(object).refusal(&context, "LimitRanger"), expected);
    }
    let claim = |size: &str| {
        let spec = json!({"spec": {"resources": {"requests": {"storage": size}}}});
        Case::create(object("PersistentVolumeClaim", "shop", "c", spec)).refusal(&context, "LimitRanger")
    };
    assert_eq!(claim("2Gi"), "");
    assert_eq!(
        claim("9Gi"),
        "persistentvolumeclaims \"c\" is forbidden: maximum storage usage per PersistentVolumeClaim is 5Gi, but \
         request is 9Gi"
    );
}

#[test]
fn pods_carry_the_place_of_their_node() {
    let labels = json!({"topology.kubernetes.io/zone": "z1", "kubernetes.io/hostname": "n1"});
    let context = context([object("Node", "", "n1", json!({"metadata": {"labels": labels}}))]);
    let binding = |node: &str| {
        let target = json!({"target": {"kind": "Node", "name": node}});
        Case::create(object("Binding", "shop", "p", target))
            .sub("pods", "p", "binding")
            .admitted(&context, "PodTopologyLabels")["metadata"]["labels"]
            .clone()
    };
    assert_eq!(binding("n1"), json!({"topology.kubernetes.io/zone": "z1"}));
    assert_eq!(binding("n2"), Value::Null);
    let placed = Case::create(pod("p", json!({"nodeName": "n1"}))).admitted(&context, "PodTopologyLabels");
    assert_eq!(placed["metadata"]["labels"]["topology.kubernetes.io/zone"], "z1");
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_the_default_account_of_a_new_namespace() {
    let lookup = Fake::new([object("Namespace", "", "shop", json!({"status": {"phase": "Active"}}))]);
    let chain = chain(&lookup);
    let late = async {
        tokio::time::sleep(Duration::from_millis(450)).await;
        lookup.put(object("ServiceAccount", "shop", "default", json!({})));
    };
    let mut case = Case::create(pod("p", json!({"containers": [{"name": "c"}]})));
    let (namespace, options) = ("shop".to_owned(), Value::Null);
    let (mut warnings, mut annotations) = (Vec::new(), Vec::new());
    let mut request = AdmissionRequest {
        operation: Operation::Create,
        user: &user("jane", &[]),
        gvk: apimachinery::GroupVersionKind::from_static("", "v1", "Pod"),
        gvr: apimachinery::GroupVersionResource::from_static("", "v1", "pods"),
        def: None,
        subresource: "",
        namespace: &namespace,
        name: "",
        object: &mut case.object,
        old_object: None,
        dry_run: false,
        options: &options,
        warnings: &mut warnings,
        annotations: &mut annotations,
    };
    let (result, ()) = tokio::join!(chain.mutate(&mut request), late);
    result.unwrap();
    assert_eq!(request.object["spec"]["serviceAccountName"], "default");
    assert_eq!(request.object["spec"]["priority"], 0, "the whole chain ran");
}
