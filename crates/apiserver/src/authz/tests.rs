use serde_json::{Value, json};

use super::*;
use crate::admission::fake::{Case, Fake, node, user};
use crate::admission::tree::{items, text};

fn role(kind: &str, namespace: &str, name: &str, rules: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
        "metadata": {"namespace": namespace, "name": name}, "rules": rules,
    })
}

fn binding(kind: &str, namespace: &str, name: &str, role: (&str, &str), subject: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
        "metadata": {"namespace": namespace, "name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role.0, "name": role.1},
        "subjects": [subject],
    })
}

/// `verb resource[/subresource][.group] [namespace/][name]`, or `verb /path`.
fn ask(request: &str) -> Attributes {
    let words: Vec<&str> = request.split_whitespace().collect();
    let mut attributes = Attributes { verb: words[0].to_owned(), ..Default::default() };
    if words[1].starts_with('/') {
        attributes.path = words[1].to_owned();
        return attributes;
    }
    attributes.is_resource = true;
    let (resource, group) = words[1].split_once('.').unwrap_or((words[1], ""));
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    attributes.resource = resource.to_owned();
    attributes.group = group.to_owned();
    attributes.subresource = subresource.to_owned();
    if let Some(place) = words.get(2) {
        let (namespace, name) = place.split_once('/').unwrap_or(("", place));
        attributes.namespace = namespace.to_owned();
        attributes.name = name.to_owned();
    }
    if let Some(selector) = words.get(3) {
        attributes.field_selector = (*selector).to_owned();
    }
    attributes
}

fn allows(authorizer: &Authorizer, user: &UserInfo, request: &str) -> bool {
    authorizer.allows(user, &ask(request))
}

fn reason(authorizer: &Authorizer, user: &UserInfo, request: &str) -> String {
    match authorizer.decide(user, &ask(request)).decision {
        Decision::Allow { reason } | Decision::Deny { reason } | Decision::NoOpinion { reason } => reason,
    }
}

fn sample() -> Arc<Fake> {
    let person = |name: &str| json!({"kind": "User", "name": name});
    Fake::new([
        role(
            "ClusterRole",
            "",
            "reader",
            json!([
                {"verbs": ["get", "list"], "apiGroups": ["", "apps"], "resources": ["pods", "pods/log", "deployments"]},
                {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/metrics/*"]},
            ]),
        ),
        role(
            "ClusterRole",
            "",
            "scaler",
            json!([
                {"verbs": ["update"], "apiGroups": ["*"], "resources": ["*/scale"]},
            ]),
        ),
        role(
            "Role",
            "shop",
            "one-secret",
            json!([
                {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["db"]},
            ]),
        ),
        role(
            "ClusterRole",
            "",
            "everything",
            json!([
                {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
            ]),
        ),
        binding("ClusterRoleBinding", "", "read-all", ("ClusterRole", "reader"), person("jane")),
        binding(
            "RoleBinding",
            "shop",
            "read-shop",
            ("ClusterRole", "reader"),
            json!({"kind": "Group", "name": "devs"}),
        ),
        binding("RoleBinding", "shop", "secret", ("Role", "one-secret"), person("joe")),
        binding("ClusterRoleBinding", "", "scale", ("ClusterRole", "scaler"), person("joe")),
        binding("ClusterRoleBinding", "", "broken", ("ClusterRole", "gone"), person("eve")),
        binding("RoleBinding", "shop", "broken", ("Role", "gone"), person("eve")),
        binding(
            "RoleBinding",
            "shop",
            "robot",
            ("ClusterRole", "everything"),
            json!({
                "kind": "ServiceAccount", "namespace": "robots", "name": "r2",
            }),
        ),
    ])
}

#[test]
fn rbac_allows_what_the_rules_say() {
    let authorizer = Authorizer::new(sample());
    let cases = [
        ("jane", "", "get pods shop/x", true),
        ("jane", "", "list deployments.apps", true),
        ("jane", "", "get pods/log shop/x", true),
        ("jane", "", "get pods/exec shop/x", false),
        ("jane", "", "delete pods shop/x", false),
        ("jane", "", "get deployments.extensions shop/x", false),
        ("jane", "", "get /healthz", true),
        ("jane", "", "get /healthz/etcd", false),
        ("jane", "", "get /metrics/slis", true),
        ("jane", "", "post /healthz", false),
        ("ann", "devs", "get pods shop/x", true),
        ("ann", "devs", "get pods home/x", false),
        ("ann", "devs", "list pods", false),
        ("ann", "devs", "get /healthz", false),
        ("joe", "", "get secrets shop/db", true),
        ("joe", "", "get secrets shop/other", false),
        ("joe", "", "list secrets shop/", false),
        ("joe", "", "update deployments/scale.apps home/x", true),
        ("joe", "", "update deployments.apps home/x", false),
        ("system:serviceaccount:robots:r2", "", "delete secrets shop/x", true),
        ("system:serviceaccount:shop:r2", "", "delete secrets shop/x", false),
        ("system:serviceaccount:robots:r2", "", "delete secrets robots/x", false),
        ("root", "system:masters", "delete nodes x", true),
        ("root", "system:masters", "delete /anything", true),
    ];
    for (name, group, request, expected) in cases {
        assert_eq!(allows(&authorizer, &user(name, &[group]), request), expected, "{name}: {request}");
    }
}

#[test]
fn rbac_says_why() {
    let authorizer = Authorizer::new(sample());
    assert_eq!(
        reason(&authorizer, &user("jane", &[]), "get pods shop/x"),
        "RBAC: allowed by ClusterRoleBinding \"read-all\" of ClusterRole \"reader\" to User \"jane\""
    );
    assert_eq!(
        reason(&authorizer, &user("system:serviceaccount:robots:r2", &[]), "get pods shop/x"),
        "RBAC: allowed by RoleBinding \"robot/shop\" of ClusterRole \"everything\" to ServiceAccount \"r2/robots\""
    );
    assert_eq!(
        reason(&authorizer, &user("eve", &[]), "get pods shop/x"),
        "RBAC: [clusterrole.rbac.authorization.k8s.io \"gone\" not found, \
         role.rbac.authorization.k8s.io \"gone\" not found]"
    );
    assert_eq!(
        reason(&authorizer, &user("eve", &[]), "get pods home/x"),
        "RBAC: clusterrole.rbac.authorization.k8s.io \"gone\" not found"
    );
    assert_eq!(reason(&authorizer, &user("nobody", &[]), "get pods home/x"), "");
}

#[test]
fn a_change_of_roles_takes_effect_at_once() {
    let lookup = sample();
    let authorizer = Authorizer::new(lookup.clone());
    let eve = user("eve", &[]);
    assert!(!allows(&authorizer, &eve, "get pods shop/x"));
    lookup.put(role(
        "Role",
        "shop",
        "gone",
        json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]),
    ));
    assert!(allows(&authorizer, &eve, "get pods shop/x"));
}

#[test]
fn refusals_read_as_upstream_words_them() {
    let jane = user("jane", &[]);
    let message = |request: &str, reason: &str| forbidden(&jane, &ask(request), reason).message;
    assert_eq!(
        message("list pods default/", ""),
        "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(
        message("get deployments/scale.apps web/x", "RBAC: gone"),
        "deployments.apps \"x\" is forbidden: User \"jane\" cannot get resource \"deployments/scale\" in API group \
         \"apps\" in the namespace \"web\": RBAC: gone"
    );
    assert_eq!(
        message("list nodes", ""),
        "nodes is forbidden: User \"jane\" cannot list resource \"nodes\" in API group \"\" at the cluster scope"
    );
    assert_eq!(message("get /metrics", ""), "forbidden: User \"jane\" cannot get path \"/metrics\"");
}

#[test]
fn rules_show_what_applies() {
    let authorizer = Authorizer::new(sample());
    let status = authorizer.rules(&user("joe", &[]), "shop");
    assert_eq!(
        status,
        json!({
            "resourceRules": [
                {"verbs": ["update"], "apiGroups": ["*"], "resources": ["*/scale"]},
                {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["db"]},
            ],
            "nonResourceRules": [],
            "incomplete": false,
        })
    );
    let status = authorizer.rules(&node("n1"), "shop");
    assert_eq!(status["incomplete"], true);
    assert_eq!(status["evaluationError"], "node authorizer does not support user rule resolution");
}

fn pod(namespace: &str, name: &str, node: &str, spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    });
    pod["spec"]["nodeName"] = node.into();
    pod
}

fn node_sample() -> Arc<Fake> {
    Fake::new([
        pod(
            "shop",
            "web",
            "n1",
            json!({
                "serviceAccountName": "runner",
                "imagePullSecrets": [{"name": "pull"}],
                "containers": [{
                    "name": "c",
                    "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env-secret", "key": "k"}}}],
                    "envFrom": [{"configMapRef": {"name": "env-map"}}],
                }],
                "volumes": [
                    {"name": "s", "secret": {"secretName": "volume-secret"}},
                    {"name": "p", "projected": {"sources": [{"configMap": {"name": "projected-map"}}]}},
                    {"name": "d", "persistentVolumeClaim": {"claimName": "data"}},
                    {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {}}},
                ],
            }),
        ),
        pod("shop", "other", "n2", json!({"serviceAccountName": "other", "containers": []})),
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv1"},
            "spec": {
                "claimRef": {"namespace": "shop", "name": "data"},
                "csi": {"driver": "d", "nodeStageSecretRef": {"namespace": "storage", "name": "stage"}},
            },
        }),
        json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": "va1"},
            "spec": {"nodeName": "n1"},
        }),
    ])
}

#[test]
fn nodes_reach_what_is_theirs() {
    let authorizer = Authorizer::new(node_sample());
    let cases = [
        ("get secrets shop/pull", true),
        ("get secrets shop/env-secret", true),
        ("watch secrets shop/volume-secret", true),
        ("get secrets storage/stage", true),
        ("get secrets shop/none", false),
        ("get secrets home/pull", false),
        ("list secrets shop/", false),
        ("update secrets shop/pull", false),
        ("get configmaps shop/env-map", true),
        ("get configmaps shop/projected-map", true),
        ("get configmaps shop/other", false),
        ("get persistentvolumeclaims shop/data", true),
        ("get persistentvolumeclaims shop/web-scratch", true),
        ("update persistentvolumeclaims/status shop/data", true),
        ("update persistentvolumeclaims shop/data", false),
        ("get persistentvolumes pv1", true),
        ("get persistentvolumes pv2", false),
        ("get volumeattachments.storage.k8s.io va1", true),
        ("create serviceaccounts/token shop/runner", true),
        ("create serviceaccounts/token shop/other", false),
        ("get serviceaccounts shop/runner", true),
        ("get leases.coordination.k8s.io kube-node-lease/n1", true),
        ("create leases.coordination.k8s.io kube-node-lease/", true),
        ("update leases.coordination.k8s.io kube-node-lease/n2", false),
        ("get leases.coordination.k8s.io shop/n1", false),
        ("get csinodes.storage.k8s.io n1", true),
        ("get csinodes.storage.k8s.io n2", false),
        ("get nodes n1", true),
        ("get nodes n2", false),
        ("list nodes", false),
        ("create nodes", true),
        ("patch nodes/status n1", true),
        ("delete nodes n1", false),
        ("get pods shop/web", true),
        ("get pods shop/other", false),
        ("list pods / spec.nodeName=n1", true),
        ("list pods / spec.nodeName=n2", false),
        ("list pods", false),
        ("patch pods/status shop/web", true),
        ("create pods/eviction shop/web", true),
        ("create pods/binding shop/web", false),
        ("list services", true),
        ("create events shop/", true),
        ("create certificatesigningrequests.certificates.k8s.io", true),
        ("list deployments.apps", false),
        ("get runtimeclasses.node.k8s.io x", true),
    ];
    for (request, expected) in cases {
        assert_eq!(allows(&authorizer, &node("n1"), request), expected, "{request}");
    }
}

#[test]
fn a_node_is_told_why_not() {
    let authorizer = Authorizer::new(node_sample());
    assert_eq!(
        reason(&authorizer, &node("n1"), "get secrets shop/none"),
        "no relationship found between node 'n1' and this object"
    );
    assert_eq!(
        reason(&authorizer, &node("n1"), "get nodes n2"),
        "node 'n1' cannot read 'n2', only its own Node object"
    );
    assert_eq!(reason(&authorizer, &node(""), "get nodes n2"), "unknown node for user \"system:node:\"");
    assert!(
        !allows(&authorizer, &user("system:node:n1", &[]), "get secrets shop/pull"),
        "the group is needed too"
    );
}

#[test]
fn what_a_node_reaches_follows_its_pods() {
    let lookup = node_sample();
    let authorizer = Authorizer::new(lookup.clone());
    let request = "get secrets shop/pull";
    assert!(allows(&authorizer, &node("n1"), request));
    lookup.remove("pods", "shop", "web");
    assert!(!allows(&authorizer, &node("n1"), request));
    lookup.put(pod("shop", "late", "n1", json!({"imagePullSecrets": [{"name": "pull"}]})));
    assert!(allows(&authorizer, &node("n1"), request));
    let mut mirror = pod("shop", "late", "n1", json!({"imagePullSecrets": [{"name": "pull"}]}));
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    lookup.put(mirror);
    assert!(!allows(&authorizer, &node("n1"), request));
}

#[test]
fn nobody_grants_what_they_do_not_hold() {
    let lookup = sample();
    let authorizer = Authorizer::new(lookup.clone());
    lookup.put(role("ClusterRole", "", "binder", json!([
        {"verbs": ["bind"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["everything"]},
    ])));
    lookup.put(binding(
        "ClusterRoleBinding",
        "",
        "bind",
        ("ClusterRole", "binder"),
        json!({"kind": "User", "name": "ben"}),
    ));
    let message = |object: Value, who: &UserInfo| {
        let mut case = Case::create(object).by(who.clone());
        case.run(|request| escalation::check(&authorizer, request))
            .err()
            .map(|s| s.message)
            .unwrap_or_default()
    };
    let jane = user("jane", &["devs"]);
    let held = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log"]}]);
    assert_eq!(message(role("Role", "shop", "fine", held), &jane), "");
    let more = json!([
        {"verbs": ["get", "delete", "watch"], "apiGroups": [""], "resources": ["pods"]},
        {"verbs": ["get"], "nonResourceURLs": ["/logs"]},
    ]);
    assert_eq!(
        message(role("Role", "shop", "more", more.clone()), &jane),
        "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"jane\" (groups=[\"devs\"]) is attempting to \
         grant RBAC permissions not currently held:\n\
         {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\" \"watch\"]}\n\
         {NonResourceURLs:[\"/logs\"], Verbs:[\"get\"]}"
    );
    assert_eq!(message(role("Role", "shop", "more", more), &user("root", &["system:masters"])), "");
    let bind =
        |role: (&str, &str)| binding("RoleBinding", "shop", "b", role, json!({"kind": "User", "name": "x"}));
    assert_eq!(message(bind(("ClusterRole", "reader")), &jane), "");
    assert!(message(bind(("ClusterRole", "everything")), &jane).contains("not currently held"));
    assert_eq!(message(bind(("ClusterRole", "everything")), &user("ben", &[])), "");
    assert_eq!(message(bind(("Role", "none")), &jane), "roles.rbac.authorization.k8s.io \"none\" not found");
}

#[test]
fn the_default_roles_are_upstreams() {
    let objects = bootstrap_objects();
    let count = |kind: &str| objects.iter().filter(|object| object["kind"] == kind).count();
    let counts = ["ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding"].map(count);
    assert_eq!(counts, [69, 7, 50, 7]);
    for object in &objects {
        assert_eq!(object["metadata"]["labels"]["kubernetes.io/bootstrapping"], "rbac-defaults");
        assert_eq!(object["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"], "true");
        let is_role = text(object, "kind").ends_with("Role");
        assert_eq!(object.get("rules").is_some(), is_role, "{object}");
        if is_role {
            assert!(!items(object, "rules").is_empty(), "{object}");
        }
    }
}

#[test]
fn aggregated_roles_are_filled() {
    let authorizer = {
        let fake = Fake::new(bootstrap_objects());
        for name in ["admin", "edit", "view"] {
            let subject = json!({"kind": "User", "name": name});
            fake.put(binding("ClusterRoleBinding", "", name, ("ClusterRole", name), subject));
        }
        Authorizer::new(fake)
    };
    let cases = [
        ("view", "get pods shop/x", true),
        ("view", "get secrets shop/x", false),
        ("view", "create pods shop/", false),
        ("edit", "get pods shop/x", true),
        ("edit", "get secrets shop/x", true),
        ("edit", "create deployments.apps shop/", true),
        ("edit", "create rolebindings.rbac.authorization.k8s.io shop/", false),
        ("admin", "create rolebindings.rbac.authorization.k8s.io shop/", true),
        ("admin", "create deployments.apps shop/", true),
        ("admin", "delete nodes x", false),
    ];
    for (name, request, expected) in cases {
        assert_eq!(allows(&authorizer, &user(name, &[]), request), expected, "{name}: {request}");
    }
    let everyone = user("anyone", &["system:authenticated"]);
    assert!(allows(&authorizer, &everyone, "get /apis"));
    assert!(allows(&authorizer, &everyone, "create selfsubjectaccessreviews.authorization.k8s.io"));
    let nobody = user("system:anonymous", &["system:unauthenticated"]);
    assert!(allows(&authorizer, &nobody, "get /version"));
    assert!(!allows(&authorizer, &nobody, "get /apis"));
    let scheduler = user("system:kube-scheduler", &[]);
    assert!(allows(&authorizer, &scheduler, "create pods/binding shop/x"));
}

#[tokio::test]
async fn nodes_reach_what_their_pods_came_to_refer_to() {
    let server = crate::testing::server().await;
    let authorizer = Authorizer::new(server.registry.clone());
    let may = || {
        let asked = [ask("get secrets shop/first"), ask("get secrets shop/second")];
        asked.map(|asked| authorizer.allows(&node("n1"), &asked))
    };
    let key = |name: &str| format!("/registry/pods/shop/{name}");
    let put = async |name: &str, on: &str| {
        let pod = pod("shop", name, on, json!({"imagePullSecrets": [{"name": name}], "containers": []}));
        let written =
            server.registry.put(&key(name), pod.to_string().into(), storage::Expect::Anything).await;
        written.unwrap();
    };
    assert_eq!(may(), [false, false]);
    put("first", "n1").await;
    put("second", "").await;
    assert_eq!(may(), [true, false]);
    put("second", "n1").await;
    assert_eq!(may(), [true, true]);
    put("first", "n2").await;
    server.registry.remove(&key("second"), storage::Expect::Anything).await.unwrap();
    assert_eq!(may(), [false, false]);
}
