//! What nodes may write, new nodes, and requests for certificates.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::super::fake::{Case, context, node, user};
use super::object;

fn mirror(change: impl Fn(&mut Value)) -> Value {
    let mut pod = object(
        "Pod",
        "shop",
        "m",
        json!({
            "metadata": {
                "annotations": {"kubernetes.io/config.mirror": "x"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1", "controller": true}],
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
        }),
    );
    change(&mut pod);
    pod
}

fn sample() -> super::Context {
    let placed = |name: &str, node: &str| {
        object(
            "Pod",
            "shop",
            name,
            json!({
                "metadata": {"uid": format!("{name}-uid")},
                "spec": {"nodeName": node, "volumes": [
                    {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
                ]},
            }),
        )
    };
    context([
        object("Node", "", "n1", json!({"metadata": {"uid": "u1"}})),
        placed("mine", "n1"),
        placed("other", "n2"),
    ])
}

#[test]
fn nodes_write_what_is_theirs() {
    let own = |rest: Value| object("Node", "", "n1", rest);
    let labels = |labels: Value| own(json!({"metadata": {"labels": labels}}));
    let pod = |name: &str, node: &str| object("Pod", "shop", name, json!({"spec": {"nodeName": node}}));
    let labelled = {
        let mut pod = pod("mine", "n1");
        pod["metadata"]["labels"] = json!({"a": "b"});
        pod
    };
    let lease = |namespace: &str, name: &str| object("Lease", namespace, name, json!({}));
    let token =
        |reference: Value| {
            Case::create(object("TokenRequest", "shop", "", json!({"spec": {"boundObjectRef": reference}})))
                .sub("serviceaccounts", "runner", "token")
        };
    let reference =
        |name: &str, uid: &str| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid});
    let eviction =
        |name: &str| Case::create(object("Eviction", "shop", name, json!({}))).sub("pods", name, "eviction");
    let status = |old: Value, new: Value, name: &str| Case::update(old, new).sub("pods", name, "status");
    let cases = [
        (Case::create(mirror(|_| {})), ""),
        (
            Case::create(mirror(|pod| pod["metadata"]["annotations"] = Value::Null)),
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node \"n1\" can only create mirror pods",
        ),
        (
            Case::create(mirror(|pod| pod["spec"]["nodeName"] = "n2".into())),
            "node \"n1\" can only create pods with spec.nodeName set to itself",
        ),
        (
            Case::create(mirror(|pod| pod["metadata"]["ownerReferences"] = Value::Null)),
            "node \"n1\" can only create pods with an owner reference set to itself",
        ),
        (
            Case::create(mirror(|pod| pod["metadata"]["ownerReferences"][0]["uid"] = "u2".into())),
            "node n1 UID mismatch: expected u2 got u1",
        ),
        (
            Case::create(mirror(|pod| {
                pod["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": "s"}}])
            })),
            "node \"n1\" can not create pods that reference secrets",
        ),
        (Case::delete(pod("mine", "n1")), ""),
        (
            Case::delete(pod("other", "n2")),
            "node \"n1\" can only delete pods with spec.nodeName set to itself",
        ),
        (
            Case::update(pod("mine", "n1"), pod("mine", "n1")),
            "unexpected operation \"UPDATE\", node \"n1\" can only create and delete mirror pods",
        ),
        (status(pod("mine", "n1"), pod("mine", "n1"), "mine"), ""),
        (
            status(pod("other", "n2"), pod("other", "n2"), "other"),
            "node \"n1\" can only update pod status for pods with spec.nodeName set to itself",
        ),
        (status(pod("mine", "n1"), labelled, "mine"), "node \"n1\" cannot update labels through pod status"),
        (eviction("mine"), ""),
        (eviction("other"), "node n1 can only evict pods with spec.nodeName set to itself"),
        (Case::create(labels(json!({"kubernetes.io/hostname": "n1", "own.example/x": "y"}))), ""),
        (
            Case::create(labels(json!({"node-restriction.kubernetes.io/x": "y"}))),
            "node \"n1\" is not allowed to set the following labels: node-restriction.kubernetes.io/x",
        ),
        (
            Case::update(own(json!({})), labels(json!({"node-role.kubernetes.io/admin": ""}))),
            "is not allowed to modify labels: node-role.kubernetes.io/admin",
        ),
        (Case::update(own(json!({})), labels(json!({"x.node.kubernetes.io/y": ""}))), ""),
        (
            Case::update(own(json!({})), own(json!({"spec": {"taints": [{"key": "a"}]}}))),
            "node \"n1\" is not allowed to modify taints",
        ),
        (
            Case::update(object("Node", "", "n2", json!({})), object("Node", "", "n2", json!({}))),
            "node \"n1\" is not allowed to modify node \"n2\"",
        ),
        (Case::create(lease("kube-node-lease", "n1")), ""),
        (
            Case::create(lease("kube-node-lease", "n2")),
            "can only access node lease with the same name as the requesting node",
        ),
        (
            Case::create(lease("shop", "n1")),
            "can only access leases in the \"kube-node-lease\" system namespace",
        ),
        (token(reference("mine", "mine-uid")), ""),
        (token(Value::Null), "node requested token not bound to a pod"),
        (token(reference("mine", "")), "node requested token with a pod binding without a uid"),
        (
            token(reference("mine", "x")),
            "the UID in the bound object reference (x) does not match the UID in record. The object might have been \
             deleted and then recreated",
        ),
        (
            token(reference("other", "other-uid")),
            "node requested token bound to a pod scheduled on a different node",
        ),
    ];
    let context = sample();
    for (case, expected) in cases {
        let message = case.by(node("n1")).refusal(&context, "NodeRestriction");
        let why = message.split_once(" is forbidden: ").map_or(message.as_str(), |(_, why)| why);
        assert_eq!(why, expected);
    }
}

#[test]
fn a_node_gets_tokens_for_the_audiences_of_its_pods() {
    let request = json!({"spec": {
        "audiences": ["vault"],
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "mine", "uid": "mine-uid"},
    }});
    let case =
        Case::create(object("TokenRequest", "shop", "", request)).sub("serviceaccounts", "runner", "token");
    assert_eq!(
        case.by(node("n1")).refusal(&sample(), "NodeRestriction"),
        "serviceaccounts \"runner\" is forbidden: audience \"vault\" not found in pod spec volume, system:node:n1 is \
         not authorized to request tokens for this audience"
    );
}

#[test]
fn others_are_not_restricted() {
    let other = object("Node", "", "n2", json!({}));
    assert_eq!(Case::update(other.clone(), other).refusal(&sample(), "NodeRestriction"), "");
}

#[test]
fn new_nodes_are_not_ready() {
    let taint = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]);
    for given in [json!({}), json!({"spec": {"taints": taint}})] {
        let admitted =
            Case::create(object("Node", "", "n", given)).admitted(&sample(), "TaintNodesByCondition");
        assert_eq!(admitted["spec"]["taints"], taint);
    }
}

fn certificate_request(signer: &str, name: &str, group: &str) -> Value {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
    let request = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    object(
        "CertificateSigningRequest",
        "",
        "r",
        json!({
            "spec": {"signerName": signer, "request": STANDARD.encode(request)},
        }),
    )
}

#[test]
fn certificates_are_asked_for_and_signed_by_those_who_may() {
    let client = "kubernetes.io/kube-apiserver-client";
    let create = |request: Value| Case::create(request).refusal(&sample(), "CertificateSubjectRestriction");
    assert_eq!(create(certificate_request(client, "jane", "devs")), "");
    assert_eq!(
        create(certificate_request(client, "jane", "system:masters")),
        "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: use of \
         kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
    );
    assert_eq!(create(certificate_request("example.com/x", "jane", "system:masters")), "");
    let kubelet = "kubernetes.io/kube-apiserver-client-kubelet";
    let by_node = |name: &str| {
        Case::create(certificate_request(kubelet, name, "system:nodes"))
            .by(node("n1"))
            .refusal(&sample(), "NodeRestriction")
    };
    assert_eq!(by_node("system:node:n1"), "");
    assert!(by_node("system:node:n2").ends_with("can only create a node CSR with CN=system:node:n1"));

    let old = certificate_request(client, "jane", "devs");
    let signed = {
        let mut request = old.clone();
        request["status"] = json!({"certificate": "eA=="});
        request
    };
    let master = || user("root", &["system:masters"]);
    let update = |new: &Value, subresource: &'static str| {
        let mut case = Case::update(old.clone(), new.clone());
        case.subresource = subresource;
        case
    };
    let start = "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: user not permitted to";
    assert_eq!(
        update(&old, "approval").refusal(&sample(), "CertificateApproval"),
        format!("{start} approve requests with signerName \"{client}\"")
    );
    assert_eq!(update(&old, "approval").by(master()).refusal(&sample(), "CertificateApproval"), "");
    assert_eq!(
        update(&signed, "status").refusal(&sample(), "CertificateSigning"),
        format!("{start} sign requests with signerName \"{client}\"")
    );
    assert_eq!(update(&old, "status").refusal(&sample(), "CertificateSigning"), "");
    assert_eq!(update(&signed, "status").by(master()).refusal(&sample(), "CertificateSigning"), "");
}
