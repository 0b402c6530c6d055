//! Strategies through the table, as the API server calls them: an object in, what is wrong with it out.

use std::collections::BTreeMap;

use resources::{Context, ResourceDef, table};
use serde_json::{Value, json};

static EXTRA: BTreeMap<String, Vec<String>> = BTreeMap::new();

fn def(plural: &str) -> &'static ResourceDef {
    let found = table().iter().find(|def| def.plural == plural && def.version == def.storage_version);
    found.unwrap_or_else(|| panic!("{plural} is in the table"))
}

fn context() -> Context<'static> {
    Context { now: 1_000, random: [0; 16], user: "u", uid: "", groups: &[], extra: &EXTRA }
}

/// What is wrong with a new object.
fn create(plural: &str, object: &Value) -> Vec<String> {
    let strategy = &def(plural).strategy;
    let mut object = object.clone();
    strategy.default(&mut object);
    strategy.prepare_create(&context(), &mut object);
    strategy.validate(&object).iter().map(ToString::to_string).collect()
}

/// What is wrong with an update that changes one value of a good object.
fn update(plural: &str, object: &Value, pointer: &str, value: Value) -> Vec<String> {
    let strategy = &def(plural).strategy;
    let mut old = object.clone();
    strategy.default(&mut old);
    let mut new = old.clone();
    strategy.prepare_create(&context(), &mut old);
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    new.pointer_mut(parent).expect("the parent is there")[name] = value;
    strategy.default(&mut new);
    strategy.prepare_update(&context(), &mut new, &old);
    strategy.validate_update(&new, &old).iter().map(ToString::to_string).collect()
}

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
}

fn workload(extra: Value) -> Value {
    let mut spec = json!({"selector": {"matchLabels": {"app": "a"}}, "template": template()});
    for (key, value) in extra.as_object().expect("an object") {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": "w", "namespace": "n"}, "spec": spec})
}

fn service(extra: Value) -> Value {
    let mut spec = json!({"ports": [{"port": 80}], "clusterIP": "10.43.0.9"});
    for (key, value) in extra.as_object().expect("an object") {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec})
}

#[test]
fn workloads_are_checked() {
    for plural in ["deployments", "replicasets", "statefulsets", "daemonsets"] {
        assert_eq!(create(plural, &workload(json!({}))), Vec::<String>::new(), "{plural}");
        assert_eq!(
            create(plural, &workload(json!({"selector": {"matchLabels": {"app": "b"}}}))),
            [
                "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template \
              `labels`"
            ],
            "{plural}"
        );
    }
    assert_eq!(
        create("deployments", &workload(json!({"selector": null}))),
        ["spec.selector: Required value"]
    );
    assert_eq!(
        create("deployments", &workload(json!({"replicas": -1}))),
        ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]
    );
    let still = json!({"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}});
    assert_eq!(
        create("deployments", &workload(still)),
        ["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"]
    );
    assert_eq!(
        update("deployments", &workload(json!({})), "/spec/selector", json!({"matchLabels": {"app": "b"}}))
            .last(),
        Some(
            &"spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"b\"}}: field is immutable".to_owned()
        )
    );
    let errors = update("statefulsets", &workload(json!({})), "/spec/serviceName", json!("s"));
    assert!(errors[0].starts_with("spec: Forbidden: updates to statefulset spec for fields other than"));
}

#[test]
fn services_are_checked() {
    let taken = json!({"clusterIP": "10.43.0.9"});
    for (extra, expected) in [
        (json!({}), vec![]),
        (json!({"type": "NodePort"}), vec![]),
        (json!({"clusterIP": "None", "ports": null}), vec![]),
        (json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": null, "ports": null}), vec![]),
        (json!({"ports": []}), vec!["spec.ports: Required value"]),
        (
            json!({"ports": [{"port": 0}]}),
            vec![
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            ],
        ),
        (
            json!({"ports": [{"port": 1}, {"port": 2}]}),
            vec!["spec.ports[0].name: Required value", "spec.ports[1].name: Required value"],
        ),
        (
            json!({"type": "Any"}),
            vec![
                "spec.type: Unsupported value: \"Any\": supported values: \"ClusterIP\", \"ExternalName\", \
                 \"LoadBalancer\", \"NodePort\"",
                "spec.internalTrafficPolicy: Required value",
            ],
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 30080}]}),
            vec!["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
        ),
        (
            json!({"type": "NodePort", "clusterIP": "None"}),
            vec![
                "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
            ],
        ),
    ] {
        assert_eq!(create("services", &service(extra.clone())), expected, "{extra}");
    }
    let errors = update("services", &service(taken), "/spec/clusterIP", json!("10.43.0.10"));
    assert_eq!(errors, ["spec.clusterIPs[0]: Invalid value: [\"10.43.0.10\"]: may not change once set"]);
}

#[test]
fn services_keep_what_was_allocated() {
    let strategy = &def("services").strategy;
    let mut old = service(json!({"type": "NodePort", "clusterIPs": ["10.43.0.9"], "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack", "ports": [{"port": 80, "nodePort": 30080}]}));
    strategy.default(&mut old);
    let mut new = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    strategy.default(&mut new);
    strategy.prepare_update(&context(), &mut new, &old);
    for pointer in ["/spec/clusterIP", "/spec/clusterIPs", "/spec/ipFamilies", "/spec/ports/0/nodePort"] {
        assert_eq!(new.pointer(pointer), old.pointer(pointer), "{pointer}");
    }
    assert_eq!(strategy.validate_update(&new, &old), []);
    let mut inner = old.clone();
    inner["spec"]["type"] = json!("ClusterIP");
    strategy.default(&mut inner);
    strategy.prepare_update(&context(), &mut inner, &old);
    assert_eq!(inner.pointer("/spec/ports/0/nodePort"), None, "a ClusterIP service has no node ports");
    assert_eq!(inner.pointer("/spec/externalTrafficPolicy"), None);
    assert_eq!(strategy.validate_update(&inner, &old), []);
}

#[test]
fn data_is_checked() {
    let config_map = |extra: Value| json!({"metadata": {"name": "c"}, "data": extra});
    assert_eq!(create("configmaps", &config_map(json!({"a.b": "c"}))), Vec::<String>::new());
    assert!(
        create("configmaps", &config_map(json!({"a/b": "c"})))[0]
            .starts_with("data[a/b]: Invalid value: \"a/b\"")
    );
    assert_eq!(
        create("configmaps", &config_map(json!({"a": "x".repeat(1024 * 1024 + 1)}))),
        ["<nil>: Too long: may not be more than 1048576 bytes"]
    );
    let frozen = json!({"metadata": {"name": "c"}, "immutable": true, "data": {"a": "b"}});
    assert_eq!(
        update("configmaps", &frozen, "/data/a", json!("c")),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    let secret = json!({"metadata": {"name": "s"}, "type": "kubernetes.io/tls", "data": {"tls.crt": ""}});
    assert_eq!(create("secrets", &secret), ["data[tls.key]: Required value"]);
    let opaque = json!({"metadata": {"name": "s"}, "stringData": {"a": "b"}});
    let mut defaulted = opaque.clone();
    def("secrets").strategy.default(&mut defaulted);
    assert_eq!(defaulted, json!({"metadata": {"name": "s"}, "type": "Opaque", "data": {"a": "Yg=="}}));
    assert_eq!(
        update("secrets", &opaque, "/type", json!("x/y")),
        ["type: Invalid value: \"x/y\": field is immutable"]
    );
}

#[test]
fn namespaces_have_their_label_and_finalizer() {
    let mut namespace = json!({"metadata": {"name": "a"}});
    let strategy = &def("namespaces").strategy;
    strategy.default(&mut namespace);
    strategy.prepare_create(&context(), &mut namespace);
    assert_eq!(
        namespace,
        json!({"metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
    );
    assert_eq!(strategy.validate(&namespace), []);
    assert!(!strategy.validate_name("a.b").is_empty());
}

#[test]
fn nodes_keep_their_range() {
    let node =
        json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.42.0.0/24"}, "status": {"phase": "x"}});
    assert_eq!(create("nodes", &node), Vec::<String>::new());
    assert_eq!(update("nodes", &node, "/spec/unschedulable", json!(true)), Vec::<String>::new());
    // Of the two forms of the range the single one counts.
    assert_eq!(update("nodes", &node, "/spec/podCIDRs", json!(["10.42.1.0/24"])), Vec::<String>::new());
    assert_eq!(
        update("nodes", &node, "/spec/podCIDR", json!("10.42.1.0/24")),
        ["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"]
    );
    let tainted = json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "k"}]}});
    assert_eq!(create("nodes", &tainted), ["metadata.taints[0].effect: Required value"]);
}

#[test]
fn others_are_checked() {
    for (plural, object, expected) in [
        (
            "leases",
            json!({"spec": {"leaseDurationSeconds": 0}}),
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
        ),
        (
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["127.0.0.1"]}]}),
            "endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range \
             (127.0.0.0/8, ::1/128)",
        ),
        (
            "endpoints",
            json!({"subsets": [{}]}),
            "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
        ),
        (
            "events",
            json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "b"}}),
            "involvedObject.namespace: Invalid value: \"b\": does not match event.namespace",
        ),
        (
            "rolebindings",
            json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User"}]}),
            "subjects[0].name: Required value",
        ),
        (
            "jobs",
            json!({"metadata": {"uid": "u"}, "spec": {"template": template()}}),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ),
        (
            "ingresses",
            json!({"spec": {}}),
            "spec: Invalid value: []: either `defaultBackend` or `rules` must be specified",
        ),
        (
            "poddisruptionbudgets",
            json!({"spec": {"minAvailable": "x"}}),
            "spec.minAvailable: Invalid value: \"x\": a valid percent string must be a numeric string followed by an \
             ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
        ),
        (
            "horizontalpodautoscalers",
            json!({"spec": {"maxReplicas": 0, "scaleTargetRef": {"kind": "D", "name": "d"}}}),
            "spec.maxReplicas: Required value: must be set and greater than 0",
        ),
    ] {
        let errors = create(plural, &object);
        assert_eq!(errors.first().map(String::as_str), Some(expected), "{plural}: {errors:?}");
    }
}
