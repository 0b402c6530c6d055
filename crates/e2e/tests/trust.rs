//! What the installation refuses, and what a container cannot do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt;

use e2e::{Cluster, eventually, fail, images};

#[test]
fn secure_as_installed() {
    let cluster = Cluster::start();
    cluster.import(&images::web("test.local/web:v1", "one"));

    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(cluster.data_dir()), 0o700, "the store holds every Secret");
    assert_eq!(mode(&cluster.data_dir().join("admin.kubeconfig")), 0o600);

    for namespace in ["default", "kube-system", "kube-public"] {
        let said = fail(&mut cluster.kubectl(&format!("delete namespace {namespace}")));
        let words = format!("namespaces \"{namespace}\" is forbidden: this namespace may not be deleted");
        assert!(said.contains(&words), "{said}");
    }
    let anonymous = |path: &str| {
        let url = format!("https://{}:6443{path}", e2e::NODE_IP);
        let mut curl = cluster.namespace.command("curl");
        curl.args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", &url]);
        e2e::succeed(&mut curl)
    };
    assert_eq!(anonymous("/readyz"), "200");
    assert_eq!(anonymous("/api/v1/secrets"), "403");

    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: limited}
spec:
  containers:
  - name: web
    image: test.local/web:v1
    resources: {limits: {memory: 32Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: root}
spec:
  containers:
  - name: web
    image: test.local/web:v1
    securityContext: {runAsNonRoot: true}
",
    );
    cluster.kubectl_prints("wait --for=condition=Ready pod/limited --timeout=60s");
    let escape = "for file in $(ls -d /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null); \
                  do echo 900000000 > $file || exit 1; done; exit 0";
    let said = fail(cluster.kubectl("exec limited -- /bin/sh").args(["-c", escape]));
    assert!(said.contains("Read-only file system"), "{said}");
    eventually("a container that would run as root is refused", || {
        let waiting = cluster.get("pod root")["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        let refused = waiting["reason"] == "CreateContainerConfigError"
            && waiting["message"].as_str().unwrap_or_default().contains("image will run as root");
        if refused { Ok(()) } else { Err(waiting.to_string()) }
    });
}

#[test]
fn a_static_manifest_becomes_a_pod_of_the_node() {
    let cluster = Cluster::start();
    cluster.import(&images::web("test.local/web:v1", "one"));
    let manifest = "{apiVersion: v1, kind: Pod, metadata: {name: fixed}, \
                    spec: {containers: [{name: web, image: 'test.local/web:v1'}]}}";
    let file = cluster.data_dir().join("manifests/fixed.yaml");
    std::fs::write(&file, manifest).unwrap();
    let pod = eventually("its mirror runs", || {
        let output = cluster.kubectl("get pod fixed-node-1 -o json").output().unwrap();
        let pod: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if pod["status"]["phase"] == "Running" { Ok(pod) } else { Err(pod["status"].to_string()) }
    });
    assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "Node");
    std::fs::remove_file(&file).unwrap();
    eventually("it goes with its manifest", || {
        let output = cluster.kubectl("get pod fixed-node-1").output().unwrap();
        if output.status.success() {
            Err(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Ok(())
        }
    });
}
