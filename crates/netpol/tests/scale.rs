//! Ten thousand pods and a thousand policies: it works, and how long it takes is printed, not asserted.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use api::Object;
use api::networking::v1::NetworkPolicy;
use linux::netns::NetNs;
use netpol::cluster::{Cluster, Pod};
use netpol::object::PodFacts;
use netpol::policy::Policy;
use serde_json::{Value, json};

const NAMESPACES: usize = 100;

fn pod(number: usize, app: usize, is_subject: bool) -> Pod {
    let labels = [("app".to_owned(), format!("app-{app}"))].into();
    let namespace = format!("ns-{}", number % NAMESPACES);
    let [.., high, low] = u32::try_from(number).unwrap().to_be_bytes();
    Pod {
        facts: Some(Arc::new(PodFacts { namespace, labels, ..PodFacts::default() })),
        addresses: vec![IpAddr::from([10, 42, high, low])],
        is_subject,
        is_peer: true,
    }
}

fn policy(number: usize, port: u16) -> Arc<Policy> {
    let (app, peer) = (number / NAMESPACES, number / NAMESPACES + 1);
    let other = format!("ns-{}", (number + 1) % NAMESPACES);
    let spec: Value = json!({"podSelector": {"matchLabels": {"app": format!("app-{app}")}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [
                {"podSelector": {"matchLabels": {"app": format!("app-{peer}")}}},
                {"namespaceSelector": {"matchLabels": {"name": other}}},
            ], "ports": [{"port": port}]}],
        "egress": [{"to": [{"podSelector": {}}]}, {"ports": [{"port": 53, "protocol": "UDP"}]}]});
    let namespace = format!("ns-{}", number % NAMESPACES);
    let policy = json!({"metadata": {"name": format!("p{number}"), "namespace": namespace}, "spec": spec});
    Arc::new(Policy::read(&NetworkPolicy::from_value(policy).unwrap()))
}

fn resident_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

/// `local` of ten thousand pods are on this node; a thousand policies select ten apps in each of a hundred
/// namespaces.
fn measure(local: usize) {
    let namespace = NetNs::anonymous().expect("making a network namespace needs root");
    let apply = |what: &str, cluster: &mut Cluster, is_first: bool| {
        let begun = Instant::now();
        let change = cluster.settle();
        let steps = if is_first { cluster.steps() } else { change.steps() };
        let decided = begun.elapsed();
        let applied = namespace.run(|| steps.apply()).unwrap();
        applied.unwrap_or_else(|error| panic!("{error}"));
        let all = begun.elapsed();
        println!("{local} of 10,000 pods here: {what}: decided in {decided:.1?}, in force after {all:.1?}");
        change
    };
    let before = resident_mib();
    let mut cluster = Cluster::default();
    for number in 0..NAMESPACES {
        let name = format!("ns-{number}");
        cluster.set_namespace(&name, Some([("name".to_owned(), name.clone())].into()));
    }
    for number in 0..10_000 {
        // Every namespace has pods of each of its ten apps.
        let app = number / NAMESPACES % 10;
        cluster.set_pod(&format!("pod-{number}"), Some(pod(number, app, number % (10_000 / local) == 0)));
    }
    for number in 0..1_000 {
        cluster.set_policy(&format!("p{number}"), Some(policy(number, 80)));
    }
    apply("first load", &mut cluster, true);
    println!("{local} of 10,000 pods here: the decider grew by {} MiB", resident_mib() - before);
    cluster.set_pod("new", Some(pod(10_001, 1, true)));
    assert!(!apply("a pod of this node", &mut cluster, false).is_empty());
    cluster.set_pod("new", Some(pod(10_001, 1, false)));
    apply("a pod that leaves", &mut cluster, false);
    cluster.set_pod("far", Some(pod(10_100, 1, false)));
    apply("a pod elsewhere", &mut cluster, false);
    cluster.set_policy("p0", Some(policy(0, 81)));
    assert!(apply("a policy's port", &mut cluster, false).text().contains("tcp dport 81"));
    cluster.set_policy("p0", None);
    apply("a policy that goes", &mut cluster, false);
    cluster.set_namespace("ns-1", Some([("name".to_owned(), "other".to_owned())].into()));
    apply("a namespace's label", &mut cluster, false);
}

#[test]
fn a_node_of_a_hundred_pods() {
    measure(100);
}

#[test]
fn all_pods_on_one_node() {
    measure(10_000);
}
