//! Looking into a running pod, and requests for streams that cannot be streams.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Stdio};

use e2e::{Cluster, eventually, fail, images, succeed};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: 'test.local/web:v1'}
";

#[test]
fn a_debug_container_joins_a_running_pod() {
    let cluster = Cluster::start();
    cluster.import(&images::web("test.local/web:v1", "one"));
    cluster.apply(POD);
    cluster.kubectl_prints("wait --for=condition=Ready pod/web --timeout=60s");
    let before = cluster.get("pod web");
    assert_eq!(before["metadata"]["generation"], 1, "being bound to a node is no change of what is wanted");

    let mut debugged = before.clone();
    debugged["spec"]["ephemeralContainers"] = serde_json::json!([{
        "name": "looker", "image": "test.local/web:v1", "targetContainerName": "web",
        "command": ["/bin/sh", "-c", "echo looked; ls /proc/1/root/start"],
        "securityContext": {"capabilities": {"add": ["SYS_PTRACE"]}},
    }]);
    cluster.put("/api/v1/namespaces/default/pods/web/ephemeralcontainers", &debugged);
    eventually("the debug container sees the other's processes and files", || {
        let said = cluster.kubectl("logs web -c looker").output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        if said.contains("looked") && said.contains("/start") { Ok(()) } else { Err(said) }
    });
    let after = eventually("it ends and is not started again", || {
        let pod = cluster.get("pod web");
        let state = &pod["status"]["ephemeralContainerStatuses"][0]["state"];
        if state["terminated"]["exitCode"] == 0 { Ok(pod) } else { Err(state.to_string()) }
    });
    let container = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(container(&before), container(&after), "the pod goes on undisturbed");

    // A stream that asks for no upgrade is a bad request, not an endless one.
    for path in ["exec?command=ls&stdout=true", "attach?stdout=true", "portforward?ports=8080"] {
        let said =
            fail(cluster.kubectl("get --raw").arg(format!("/api/v1/namespaces/default/pods/web/{path}")));
        assert!(said.contains("(BadRequest)") && said.contains("pgrade request required"), "{path}: {said}");
    }
}

#[test]
fn reset_leaves_the_cgroups_of_others_alone() {
    let mut cluster = Cluster::start();
    cluster.stop_server();
    // Another data directory's pod, below the same root.
    let root = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"]
        .into_iter()
        .find(|root| std::path::Path::new(&format!("{root}{}/kubepods", cluster.cgroup())).is_dir());
    let other = format!("{}{}/kubepods/other", root.unwrap(), cluster.cgroup());
    std::fs::create_dir(&other).unwrap();
    let mut sleeper = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    std::fs::write(format!("{other}/cgroup.procs"), sleeper.id().to_string()).unwrap();
    let reset = cluster.trierarch("reset").args(["--cgroup-root", &cluster.cgroup()]).output().unwrap();
    let said = String::from_utf8_lossy(&reset.stderr).into_owned();
    assert!(reset.status.success() && said.contains("which pods of another data directory are in"), "{said}");
    assert!(sleeper.try_wait().unwrap().is_none(), "it was not killed");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    succeed(cluster.trierarch("reset").args(["--cgroup-root", &cluster.cgroup()]));
}
