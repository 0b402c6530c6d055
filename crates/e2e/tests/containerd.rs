//! The kubelet on another engine: Debian's containerd, with folders and a socket of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use e2e::{Cluster, Piece, binary, eventually, images, succeed};

const PAUSE: &str = "test.local/pause:v1";
const WEB: &str = "test.local/web:v1";
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: 'test.local/web:v1', imagePullPolicy: Never, env: [{name: GREETING, value: hello}]}
";

/// Installs what is missing; the packages start nothing here.
fn install() {
    let there = ["/usr/bin/containerd", "/usr/sbin/runc", "/usr/lib/cni/loopback"];
    if there.iter().all(|file| Path::new(file).exists()) {
        return;
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["--quiet=2", "--yes"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        succeed(&mut command)
    };
    apt(&["update"]);
    apt(&["install", "--no-install-recommends", "containerd", "runc", "containernetworking-plugins"]);
}

/// Starts containerd, with our own network plugin for its pods.
fn containerd(cluster: &Cluster) -> Piece {
    let home = cluster.data_dir().join("containerd");
    let (plugins, networks) = (home.join("bin"), home.join("net.d"));
    for folder in [&plugins, &networks] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::os::unix::fs::symlink("/usr/lib/cni/loopback", plugins.join("loopback")).unwrap();
    let script = plugins.join("trierarch-cni");
    std::fs::write(&script, format!("#!/bin/sh\nexec {} cni\n", binary().display())).unwrap();
    succeed(Command::new("chmod").arg("755").arg(&script));
    let state = home.join("cni");
    let network = format!(
        r#"{{"cniVersion": "1.0.0", "name": "test", "plugins": [{{"type": "trierarch-cni", "podCIDRs": ["10.42.0.0/24"],
            "serviceCIDRs": ["10.43.0.0/16"], "stateDir": {state:?}}}]}}"#
    );
    std::fs::write(networks.join("10-test.conflist"), network).unwrap();
    let config = home.join("config.toml");
    // Tests may run without the right to protect a process from the kernel's memory killer.
    let text = format!(
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {PAUSE:?}\n\
         restrict_oom_score_adj = true\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {plugins:?}\n\
         conf_dir = {networks:?}\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = cluster.namespace.command("containerd");
    command.arg("--config").arg(config).arg("--root").arg(home.join("root"));
    command.arg("--state").arg(home.join("state")).arg("--address").arg(home.join("c.sock"));
    let engine = Piece::start(&mut command);
    engine.wait_for("successfully booted");
    for (name, image) in [(PAUSE, images::pause(PAUSE)), (WEB, images::web(WEB, "one"))] {
        let archive = home.join("image.tar");
        std::fs::write(&archive, image).unwrap();
        let mut import = Command::new("ctr");
        import.arg("--address").arg(home.join("c.sock")).args(["--namespace", "k8s.io", "image", "import"]);
        let said = succeed(import.arg("--snapshotter=overlayfs").arg(&archive));
        assert!(said.contains(name), "{said}");
    }
    engine
}

#[test]
fn pods_run_on_containerd() {
    install();
    let mut cluster = Cluster::stopped();
    let engine = containerd(&cluster);
    let socket = cluster.data_dir().join("containerd/c.sock");
    cluster.flags = vec![format!("--container-runtime-endpoint=unix://{}", socket.display())];
    cluster.start_server();
    let node = cluster.get("node node-1");
    let version = node["status"]["nodeInfo"]["containerRuntimeVersion"].as_str().unwrap().to_owned();
    assert!(version.starts_with("containerd://"), "{version}");

    cluster.apply(POD);
    cluster.kubectl_prints("wait --for=condition=Ready pod/web --timeout=60s");
    let address = |cluster: &Cluster| {
        let pod = cluster.get("pod web");
        format!("http://{}:8080/", pod["status"]["podIP"].as_str().unwrap())
    };
    assert_eq!(cluster.curl(&address(&cluster)).as_deref(), Some("one from web\n"));
    assert_eq!(cluster.kubectl_prints("exec web -- sh -c env").matches("GREETING=hello").count(), 1);
    assert!(cluster.kubectl_prints("logs web").contains("one serves"));

    // This containerd tells no events, so the kubelet has to look.
    let httpd = cluster.processes().into_iter().find(|pid| {
        let name = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        name.starts_with(b"httpd")
    });
    rustix::process::kill_process(httpd.unwrap(), rustix::process::Signal::KILL).unwrap();
    eventually("the container is restarted", || {
        let status = cluster.get("pod web")["status"]["containerStatuses"][0].clone();
        if status["restartCount"] == 1 && status["ready"] == true { Ok(()) } else { Err(status.to_string()) }
    });
    cluster.kubectl_prints("delete pod web --timeout=60s");
    eventually("nothing of the pod stays", || {
        let left = (cluster.processes().len(), cluster.pod_cgroups());
        if left == (0, Vec::new()) { Ok(()) } else { Err(format!("{left:?}")) }
    });
    cluster.stop_server();
    assert!(engine.end().success());
}
