//! What plugins do otherwise when they are told so at the start.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::fake::{Case, Fake, chain, configured, context, user};
use super::super::resource_quota;
use super::{object, pod};
use crate::seams::Lookup;

fn namespace(metadata: Value) -> Value {
    object("Namespace", "", "shop", json!({"metadata": metadata}))
}

fn security(fields: Value) -> Value {
    let mut document =
        json!({"apiVersion": "pod-security.admission.config.k8s.io/v1", "kind": "PodSecurityConfiguration"});
    document.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    document
}

#[test]
fn pods_are_held_to_the_clusters_standard_but_for_exemptions() {
    let document = security(json!({
        "defaults": {"enforce": "baseline", "enforce-version": "v1.30"},
        "exemptions": {"usernames": ["root"], "namespaces": ["free"], "runtimeClasses": ["kata"]},
    }));
    let privileged = |namespace: &str, more: Value| {
        let mut spec = json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Case::create(object("Pod", namespace, "p", json!({"spec": spec})))
    };
    let open = json!({"labels": {"pod-security.kubernetes.io/enforce": "privileged"}});
    for (metadata, case, wanted) in [
        (json!({}), privileged("shop", json!({})), "violates PodSecurity \"baseline:v1.30\": privileged"),
        (open, privileged("shop", json!({})), ""),
        (json!({}), privileged("free", json!({})), ""),
        (json!({}), privileged("shop", json!({})).by(user("root", &[])), ""),
        (json!({}), privileged("shop", json!({"runtimeClassName": "kata"})), ""),
    ] {
        let context = configured([namespace(metadata)], [("PodSecurity", document.clone())]).unwrap();
        let refused = case.refusal(&context, "PodSecurity");
        assert!(refused.contains(wanted) && refused.is_empty() == wanted.is_empty(), "{refused}");
    }
    let context = configured([], [("PodSecurity", document)]).unwrap();
    let labels = json!({"labels": {"pod-security.kubernetes.io/enforce": "restricted"}});
    let mut exempt = Case::create(object("Namespace", "", "free", json!({"metadata": labels})));
    exempt.admit(&context, "PodSecurity").unwrap();
    assert_eq!(
        exempt.warnings,
        [
            "namespace \"free\" is exempt from Pod Security, and the policy (enforce=restricted:v1.30) will be ignored"
        ]
    );
}

#[test]
fn wrong_documents_are_told_with_their_plugin() {
    let limits = |limits: Value| json!({"apiVersion": "eventratelimit.admission.k8s.io/v1alpha1", "kind": "Configuration", "limits": limits});
    for (plugin, document, wanted) in [
        (
            "PodSecurity",
            security(json!({"defaults": {"enforce": "x"}, "exemptions": {"usernames": ["a", "a", ""]}})),
            "[defaults.enforce: Invalid value: \"x\": must be one of privileged, baseline, restricted, \
             exemptions.usernames[1]: Duplicate value: \"a\", exemptions.usernames[2]: Invalid value: \"\": username \
             must not be empty]",
        ),
        ("PodSecurity", json!({"kind": "Pod"}), "no kind \"Pod\" is registered for version \"\""),
        ("EventRateLimit", limits(json!([])), "limits: Invalid value: []: must not be empty"),
        (
            "EventRateLimit",
            limits(json!([{"type": "Server", "qps": 1}])),
            "limits[0].burst: Invalid value: 0: must be positive",
        ),
        (
            "ImagePolicyWebhook",
            json!({"imagePolicy": {"allowTTL": 5000}}),
            "valid value is between 1s and 1800s, got 5000",
        ),
    ] {
        let why = configured([], [(plugin, document)]).err().unwrap();
        let told = format!("failed to initialize admission: couldn't init admission plugin {plugin:?}: ");
        assert_eq!(why.strip_prefix(&told), Some(wanted), "{why}");
    }
}

#[test]
fn the_cluster_chooses_nodes_for_namespaces_that_do_not() {
    let document = json!({"podNodeSelectorPluginConfig": {
        "clusterDefaultNodeSelector": "zone=a", "shop": "zone=a,disk=ssd",
    }});
    let context = configured([namespace(json!({}))], [("PodNodeSelector", document)]).unwrap();
    let plain = Case::create(pod("p", json!({"nodeSelector": {"disk": "ssd"}})));
    let admitted = plain.admitted(&context, "PodNodeSelector");
    assert_eq!(admitted["spec"]["nodeSelector"], json!({"disk": "ssd", "zone": "a"}));
    let other = Case::create(pod("p", json!({"nodeSelector": {"x": "y"}})));
    assert_eq!(
        other.refusal(&context, "PodNodeSelector"),
        "pods \"p\" is forbidden: pod node label selector labels conflict with its namespace whitelist"
    );
}

#[test]
fn the_cluster_says_what_pods_tolerate_where_namespaces_do_not() {
    let document = json!({
        "apiVersion": "podtolerationrestriction.admission.k8s.io/v1alpha1", "kind": "Configuration",
        "default": [{"key": "gpu", "operator": "Exists"}],
        "whitelist": [{"key": "gpu", "operator": "Exists"}],
    });
    let context = configured([namespace(json!({}))], [("PodTolerationRestriction", document)]).unwrap();
    let admitted = Case::create(pod("p", json!({}))).admitted(&context, "PodTolerationRestriction");
    assert_eq!(admitted["spec"]["tolerations"], json!([{"key": "gpu", "operator": "Exists"}]));
    let other = Case::create(pod("p", json!({"tolerations": [{"key": "a", "operator": "Exists"}]})));
    assert!(
        other.refusal(&context, "PodTolerationRestriction").ends_with("conflict with its cluster whitelist")
    );
}

#[tokio::test(start_paused = true)]
async fn events_are_taken_at_a_pace() {
    let document = json!({
        "apiVersion": "eventratelimit.admission.k8s.io/v1alpha1", "kind": "Configuration",
        "limits": [
            {"type": "Namespace", "qps": 1, "burst": 2, "cacheSize": 2},
            {"type": "User", "qps": 100, "burst": 4},
        ],
    });
    let context = configured([], [("EventRateLimit", document)]).unwrap();
    let event = |namespace: &str, name: &str| {
        let case = Case::create(object("Event", namespace, "e", json!({}))).by(user(name, &[]));
        case.refusal(&context, "EventRateLimit")
    };
    assert_eq!([event("a", "x"), event("a", "y")], ["", ""]);
    let refused = "Too many requests: limit reached on type Namespace for key a";
    assert_eq!(event("a", "z"), refused);
    assert_eq!(event("b", "x"), "");
    tokio::time::advance(std::time::Duration::from_secs(1)).await;
    assert_eq!([event("a", "x"), event("a", "x")], ["", refused]);
    // What was not used for longest makes room for others, and is forgotten.
    tokio::time::advance(std::time::Duration::from_millis(1)).await;
    assert_eq!([event("c", "z"), event("d", "z")], ["", ""]);
    assert_eq!(event("a", "z"), "");
}

#[test]
fn what_is_limited_is_not_used_without_a_quota() {
    let document = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "ResourceQuotaConfiguration",
        "limitedResources": [
            {"resource": "configmaps", "matchContains": ["configmaps"]},
            {"resource": "pods", "matchScopes": [
                {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]},
        ],
    });
    let limited = resource_quota::configured(Some(&document)).unwrap();
    let quota = |hard: Value, scopes: Value| {
        let spec = json!({"scopeSelector": {"matchExpressions": scopes}});
        let mut used = hard.clone();
        used.as_object_mut().unwrap().values_mut().for_each(|value| *value = "0".into());
        object("ResourceQuota", "shop", "q", json!({"spec": spec, "status": {"hard": hard, "used": used}}))
    };
    let map = || Case::create(object("ConfigMap", "shop", "c", json!({})));
    let important = || Case::create(pod("p", json!({"priorityClassName": "high"})));
    let scope = json!([{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]);
    for (quotas, mut case, wanted) in [
        (
            vec![],
            map(),
            "configmaps \"c\" is forbidden: insufficient quota to consume: configmaps,count/configmaps",
        ),
        (vec![quota(json!({"configmaps": "5", "count/configmaps": "5"}), json!([]))], map(), ""),
        (vec![], Case::create(object("Secret", "shop", "s", json!({}))), ""),
        (vec![], important(), "insufficient quota to match these scopes: [{PriorityClass In [high]}]"),
        (vec![quota(json!({"pods": "5"}), scope)], important(), ""),
        (vec![], Case::create(pod("p", json!({}))), ""),
    ] {
        let lookup = Fake::new(quotas);
        let chain = chain(&lookup);
        let dynamic: Arc<dyn Lookup> = lookup.clone();
        let charged =
            case.run(|request| futures::executor::block_on(chain.quota.charge(&*dynamic, &limited, request)));
        assert_eq!(charged.err().map(|status| status.message).unwrap_or_default(), wanted);
    }
}

#[test]
fn a_pod_grows_no_further_than_its_node() {
    let node = |labels: Value, features: Value| {
        let status = json!({"allocatable": {"cpu": "2", "memory": "1Gi"}, "declaredFeatures": features});
        object("Node", "", "n", json!({"metadata": {"labels": labels}, "status": status}))
    };
    let sized = |generation: i64, cpu: &str, more: Value| {
        let resources = json!({"requests": {"cpu": cpu, "memory": "1Gi"}});
        let mut spec = json!({"nodeName": "n", "containers": [{"name": "c", "resources": resources}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut pod = pod("p", spec);
        pod["metadata"]["generation"] = generation.into();
        pod
    };
    let linux = || node(json!({"kubernetes.io/os": "linux"}), json!([]));
    let resize = |new: Value| Case::update(sized(1, "1", json!({})), new).sub("pods", "p", "resize");
    let whole = json!({"resources": {"requests": {"cpu": "1"}}});
    for (node, plugin, case, wanted) in [
        (linux(), "PodResizeValidator", resize(sized(2, "2", json!({}))), ""),
        (
            linux(),
            "PodResizeValidator",
            resize(sized(2, "2500m", json!({}))),
            "pods \"p\" is forbidden: node didn't have enough allocatable resources: cpu, requested: 2500, \
             allocatable: 2000",
        ),
        (linux(), "PodResizeValidator", resize(sized(1, "3", json!({}))), ""),
        (
            node(json!({"kubernetes.io/os": "windows"}), json!([])),
            "PodResizeValidator",
            resize(sized(2, "2", json!({}))),
            "pods \"p\" is forbidden: pod resize is only supported on linux nodes, node \"n\" is \"windows\"",
        ),
        (
            linux(),
            "NodeDeclaredFeatureValidator",
            resize(sized(2, "1", whole.clone())),
            "pods \"p\" is forbidden: pod update requires features InPlacePodLevelResourcesVerticalScaling which are \
             not available on node \"n\"",
        ),
        (
            node(json!({}), json!(["InPlacePodLevelResourcesVerticalScaling"])),
            "NodeDeclaredFeatureValidator",
            resize(sized(2, "1", whole)),
            "",
        ),
    ] {
        assert_eq!(case.refusal(&context([node]), plugin), wanted);
    }
}
