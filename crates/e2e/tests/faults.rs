//! What outlives what: containers that die, servers that are killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use e2e::{Cluster, eventually, images};
use serde_json::Value;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: test.local/web:v1
";

fn cluster_with_pod() -> Cluster {
    let cluster = Cluster::start();
    cluster.import(&images::web("test.local/web:v1", "one"));
    cluster.apply(POD);
    cluster.kubectl_prints("wait --for=condition=Ready pod/web --timeout=60s");
    cluster
}

fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

#[test]
fn a_killed_container_is_restarted() {
    let cluster = cluster_with_pod();
    let before = cluster.get("pod web");
    for process in cluster.processes() {
        rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("the process is there");
    }
    let after = eventually("the container is restarted", || {
        let pod = cluster.get("pod web");
        let restarted = container(&pod)["restartCount"] == 1 && container(&pod)["ready"] == true;
        if restarted { Ok(pod) } else { Err(container(&pod).to_string()) }
    });
    assert_ne!(container(&before)["containerID"], container(&after)["containerID"]);
    assert_eq!(before["status"]["podIP"], after["status"]["podIP"], "the sandbox lives on");
    assert!(container(&after)["lastState"]["terminated"].is_object());
}

#[test]
fn pods_outlive_the_server() {
    let mut cluster = cluster_with_pod();
    let before = cluster.get("pod web");
    let address = format!("http://{}:8080/", before["status"]["podIP"].as_str().unwrap());
    let same = |cluster: &Cluster| {
        let after = cluster.get("pod web");
        assert_eq!(before["status"]["podIP"], after["status"]["podIP"]);
        assert_eq!(container(&before)["containerID"], container(&after)["containerID"]);
        assert_eq!(container(&after)["restartCount"], 0);
    };
    for end in [Cluster::kill_server, Cluster::stop_server] {
        end(&mut cluster);
        assert_eq!(
            cluster.curl(&address).as_deref(),
            Some("one from web\n"),
            "the pod answers without the server"
        );
        cluster.start_server();
        same(&cluster);
        assert_eq!(cluster.curl(&address).as_deref(), Some("one from web\n"));
    }
    cluster.kubectl_prints("exec web -- hostname");
    cluster.kubectl_prints("delete pod web --timeout=60s");
}
