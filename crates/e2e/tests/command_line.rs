//! The binary as a person meets it: the demo, its errors, and that nothing of it stays.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use e2e::{Cluster, binary, eventually, fail, succeed};

#[test]
fn the_demo_shows_three_pods_behind_a_service() {
    let cluster = Cluster::start();
    let shown = succeed(&mut cluster.trierarch("demo"));
    for words in [
        "pod/demo-",
        "(3 of 3,",
        "by ClusterIP 10.43.",
        "by node port 10.98.0.1:",
        "by DNS name demo.default",
    ] {
        assert!(shown.contains(words), "{words:?} in {shown}");
    }
    assert_eq!(shown.matches("Hello from demo-").count(), 9, "three pods by three ways: {shown}");
    let cleaned = succeed(&mut cluster.trierarch("demo --cleanup"));
    assert!(cleaned.ends_with("the demo is gone\n"), "{cleaned}");
    assert_eq!(cluster.get("pods")["items"], serde_json::json!([]));
}

#[test]
fn reset_takes_every_trace_away() {
    let mut cluster = Cluster::start();
    succeed(&mut cluster.trierarch("demo"));
    cluster.stop_server();
    assert!(mounts(&cluster).next().is_some(), "containers live on without the server");
    succeed(cluster.trierarch("reset").args(["--cgroup-root", &cluster.cgroup()]));
    let left: Vec<String> = mounts(&cluster).collect();
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(std::fs::read_dir(cluster.data_dir()).map(Iterator::count).unwrap_or(0), 0, "no file is left");
    let links = succeed(cluster.namespace.command("ip").args(["-o", "link"]));
    assert_eq!(links.lines().count(), 3, "lo, eth0 and uplink are left: {links}");
    assert_eq!(succeed(cluster.namespace.command("nft").args(["list", "ruleset"])), "");
    for controller in ["memory", "cpu", "pids", ""] {
        let cgroup = format!("/sys/fs/cgroup/{controller}{}", cluster.cgroup());
        assert!(!std::path::Path::new(&cgroup).exists(), "{cgroup} is left");
    }
    let processes = succeed(Command::new("ps").args(["-eo", "args"]));
    let data_dir = cluster.data_dir().display().to_string();
    assert!(!processes.lines().any(|line| line.contains(&data_dir)), "{processes}");
}

fn mounts(cluster: &Cluster) -> impl Iterator<Item = String> {
    let data_dir = cluster.data_dir().display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().filter(|line| line.contains(&data_dir)).map(str::to_owned).collect::<Vec<_>>().into_iter()
}

#[test]
fn what_cannot_work_gets_one_clear_line_and_touches_nothing() {
    let cluster = Cluster::start();
    let other = tempfile::tempdir().unwrap();
    let server = |folder: &std::path::Path| {
        let mut command = cluster.namespace.command(binary());
        command.args(["server", "--node-ip", e2e::NODE_IP, "--data-dir"]).arg(folder);
        command
    };
    let said = fail(&mut server(other.path()));
    assert_eq!(said, "trierarch: cannot listen on 0.0.0.0:6443: Address already in use (os error 98)\n");
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0, "nothing is touched");

    let said = fail(server(cluster.data_dir()).args(["--secure-port=7443", "--no-node"]));
    assert!(said.starts_with("trierarch: the data directory "), "{said}");
    assert!(said.contains("is in use by another process") && said.lines().count() == 1, "{said}");

    // An empty folder that anyone may enter, for a user who may do nothing else.
    let said = fail(
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(binary())
            .args(["server", "--data-dir", "/tmp/never-made"]),
    );
    assert_eq!(
        said,
        "trierarch: containers need root; run as root, or give --no-node for a control plane only\n"
    );

    let said = fail(Command::new(binary()).args(["server", "--cluster-cidr=10.42.0.0"]));
    assert!(said.starts_with("trierarch: --cluster-cidr \"10.42.0.0\" is not a CIDR"), "{said}");
}

#[test]
fn bad_manifests_get_the_path_of_the_field() {
    let cluster = Cluster::start();
    let create = |manifest: &str, validate: &str| {
        let file = cluster.data_dir().join("bad.yaml");
        std::fs::write(&file, manifest).unwrap();
        fail(cluster.kubectl("create").arg(validate).arg("-f").arg(file))
    };
    let pod = |container: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{container}]}}\n")
    };
    let said = create(&pod("{image: x}"), "--validate=false");
    assert!(said.contains("The Pod \"a\" is invalid: spec.containers[0].name: Required value"), "{said}");
    let said = create(&pod("{name: c, imag: x}"), "--validate=true");
    // An older kubectl looks by itself, into the OpenAPI that it is given.
    let words = [
        "strict decoding error: unknown field \"spec.containers[0].imag\"",
        "ValidationError(Pod.spec.containers[0]): unknown field \"imag\"",
    ];
    assert!(words.iter().any(|words| said.contains(words)), "{said}");
    let said = fail(&mut cluster.kubectl("get widgets"));
    assert_eq!(said, "error: the server doesn't have a resource type \"widgets\"\n");
    let said = fail(&mut cluster.kubectl("get pod nobody"));
    assert_eq!(said, "Error from server (NotFound): pods \"nobody\" not found\n");
    eventually("the node is still Ready", || {
        let node = cluster.kubectl_prints("get node node-1 --no-headers");
        if node.contains(" Ready ") { Ok(()) } else { Err(node) }
    });
}
