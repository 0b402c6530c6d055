//! What outlives what: containers that die, servers that are killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use e2e::{Cluster, eventually, images, succeed};
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

/// Takes what a reboot takes from a machine whose server is not running: processes, mounts, sockets and cgroups.
fn lose_run_time_state(cluster: &Cluster) {
    let sandboxes = cluster.data_dir().join("engine/sandboxes");
    let shims = std::fs::read_dir(sandboxes).unwrap().flatten().map(|entry| entry.path().join("shim.pid"));
    let shims = shims.filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok());
    let shims = shims.filter_map(rustix::process::Pid::from_raw);
    for process in shims.chain(cluster.processes()) {
        // One may end with another.
        let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
    }
    for mount in cluster.mounts() {
        succeed(Command::new("umount").arg("--lazy").arg(mount));
    }
    std::fs::remove_dir_all(cluster.data_dir().join("engine/s")).unwrap();
    eventually("the containers are gone", || match cluster.processes().len() {
        0 => Ok(()),
        left => Err(format!("{left} processes")),
    });
}

#[test]
fn pods_come_back_after_a_reboot_and_leave_nothing_when_they_go() {
    let mut cluster = cluster_with_pod();
    let before = cluster.get("pod web");
    for round in 1..=2 {
        cluster.kill_server();
        lose_run_time_state(&cluster);
        cluster.start_server();
        let after = eventually("the pod runs again", || {
            let pod = cluster.get("pod web");
            let runs = container(&pod)["restartCount"] == round && container(&pod)["ready"] == true;
            if runs { Ok(pod) } else { Err(pod["status"].to_string()) }
        });
        assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
        let address = format!("http://{}:8080/", after["status"]["podIP"].as_str().unwrap());
        assert_eq!(cluster.curl(&address).as_deref(), Some("one from web\n"));
        let ours = cluster.pod_cgroups().len();
        assert_eq!(ours, 1, "no container runs twice: {:?}", cluster.pod_cgroups());
    }
    cluster.kubectl_prints("delete pod web --timeout=60s");
    eventually("nothing of the pod stays", || {
        let pods = cluster.data_dir().join("kubelet/pods");
        let folders = std::fs::read_dir(pods).unwrap().count();
        let sandboxes = std::fs::read_dir(cluster.data_dir().join("engine/sandboxes")).unwrap().count();
        let links = cluster.namespace.command("ip").args(["-o", "link"]).output().unwrap().stdout;
        let links = String::from_utf8(links).unwrap().lines().filter(|line| line.contains("veth")).count();
        let (mounts, cgroups) = (cluster.mounts(), cluster.pod_cgroups());
        // The two ends of the machine's own link are all that is left, and the engine's program.
        let mounts: Vec<_> = mounts.iter().filter(|mount| !mount.ends_with("engine/program")).collect();
        if (folders, sandboxes, mounts.len(), cgroups.len()) == (0, 0, 0, 0) && links <= 2 {
            return Ok(());
        }
        Err(format!("{folders} folders, {sandboxes} sandboxes, {links} links, {mounts:?}, {cgroups:?}"))
    });
}
