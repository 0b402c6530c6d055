//! The agent as it runs: objects of an API server and questions of the CNI plugin become a table.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use linux::netns::NetNs;
use serde_json::json;
use testkit::FakeServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

const PODS: &str = "/api/v1/pods";
const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";

fn write(dir: &Path, id: &str, pod: &str, uid: &str, address: &str) {
    let sandbox = json!({"namespace": "x", "name": pod, "uid": uid, "addresses": [address]});
    std::fs::write(dir.join("pods").join(id), sandbox.to_string()).unwrap();
}

/// Asks as the CNI plugin does.
async fn ask(dir: &Path, id: &str) -> String {
    let mut stream = UnixStream::connect(dir.join("agent.sock")).await.unwrap();
    stream.write_all(format!("{id}\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(20), read).await.unwrap().unwrap();
    answer
}

fn table() -> String {
    linux::nft::list_table_text("inet", netpol::table::TABLE).unwrap()
}

async fn scenario(dir: &Path) {
    let (server, client) = FakeServer::new();
    let pod = |name: &str| {
        json!({"metadata": {"name": name, "namespace": "x", "labels": {"app": name}},
            "spec": {"nodeName": "here", "containers": []}})
    };
    server.put("/api/v1/namespaces", json!({"metadata": {"name": "x"}}));
    server.put(PODS, pod("a"));
    let config = netpol::Config { node_name: "here".to_owned(), dir: Some(dir.to_owned()) };
    let agent = netpol::Agent::new(config.clone()).unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(agent.run(client.clone(), shutdown.clone()));

    // Without policies a pod is let go at once, and leaves nothing in the table.
    write(dir, "s1", "a", "a", "10.42.0.5");
    assert_eq!(ask(dir, "s1").await, "ok\n");
    assert!(!table().contains("10.42.0.5"));
    // A policy that came before the pod is in force when the answer is there, before the API server knows an address.
    server
        .put(POLICIES, json!({"metadata": {"name": "deny", "namespace": "x"}, "spec": {"podSelector": {}}}));
    server.put(PODS, pod("b"));
    write(dir, "s2", "b", "b", "10.42.0.6");
    assert_eq!(ask(dir, "s2").await, "ok\n");
    let listed = table();
    assert!(
        listed.contains("10.42.0.5 : goto ingress-pods-1") && listed.contains("10.42.0.6 : goto"),
        "{listed}"
    );
    // What the API server does not know is not let go.
    write(dir, "s3", "c", "c", "10.42.0.7");
    assert_eq!(ask(dir, "s3").await, "the API server knows no pod x/c\n");
    write(dir, "s4", "b", "other", "10.42.0.8");
    assert_eq!(ask(dir, "s4").await, "the pod x/b is another one by now\n");
    assert_eq!(ask(dir, "../s1").await, "ok\n", "no id of a sandbox, so none that is there");
    // A sandbox that goes takes its rules with it.
    std::fs::remove_file(dir.join("pods/s2")).unwrap();
    assert_eq!(ask(dir, "s2").await, "ok\n");
    assert!(table().contains("10.42.0.5") && !table().contains("10.42.0.6"), "{}", table());

    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert!(table().contains("10.42.0.5"), "the table stays in force");
    // One that starts again knows by the files what is here; of s3 and s4 nobody knows what they are, and nothing is
    // let through.
    std::fs::remove_file(dir.join("pods/s4")).unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(netpol::Agent::new(config).unwrap().run(client, shutdown.clone()));
    assert_eq!(ask(dir, "s1").await, "ok\n");
    let listed = table();
    assert!(listed.contains("10.42.0.5 : goto") && listed.contains("10.42.0.7 : goto"), "{listed}");
    assert!(!listed.contains("10.42.0.8"), "{listed}");
    shutdown.cancel();
    running.await.unwrap().unwrap();
    netpol::reset().unwrap();
    assert!(linux::nft::list_table("inet", netpol::table::TABLE).unwrap_err().is_not_found());
}

#[test]
fn a_pod_waits_for_its_rules() {
    let namespace = NetNs::anonymous().expect("making a network namespace needs root");
    let dir = tempfile::tempdir().unwrap();
    namespace
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(scenario(dir.path()));
        })
        .unwrap();
}
