//! What outlives what: containers that die, servers that are killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
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
    run_pod(cluster)
}

fn run_pod(cluster: Cluster) -> Cluster {
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

/// For pods that disk pressure neither keeps away nor evicts.
const CRITICAL: &str = "
  priorityClassName: system-node-critical
  tolerations:
  - {operator: Exists}
";

/// A server on a disk of its own, with a pod that stays whatever happens, and that pod's address.
fn cluster_on_disk(mebibytes: u32) -> (Cluster, String) {
    let mut cluster = Cluster::stopped_on_disk(mebibytes);
    cluster.start_server();
    cluster.import(&images::web("test.local/web:v1", "one"));
    cluster.apply(&format!("{}{CRITICAL}", POD.trim_end()));
    cluster.kubectl_prints("wait --for=condition=Ready pod/web --timeout=60s");
    let address = format!("http://{}:8080/", cluster.get("pod web")["status"]["podIP"].as_str().unwrap());
    (cluster, address)
}

fn runs_on(cluster: &Cluster, address: &str) {
    assert_eq!(cluster.curl(address).as_deref(), Some("one from web\n"), "the pod runs on");
    let pod = cluster.get("pod web");
    assert_eq!(container(&pod)["restartCount"], 0, "{pod}");
}

/// ConfigMaps of some size, by number, until the disk is full.
struct Kept {
    text: String,
    file: tempfile::NamedTempFile,
    count: usize,
}

impl Kept {
    fn new() -> Self {
        let text = "x".repeat(200_000);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, &text).unwrap();
        Kept { text, file, count: 0 }
    }

    /// One more; what kubectl says when it is refused.
    fn create(&mut self, cluster: &Cluster) -> Result<(), String> {
        let from = self.file.path().display();
        let mut create =
            cluster.kubectl(&format!("create configmap kept-{} --from-file=text={from}", self.count));
        let output = create.env("KUBECACHEDIR", "/dev/null").output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        self.count += 1;
        Ok(())
    }

    /// The store may have some room that it took before.
    fn until_refused(&mut self, cluster: &Cluster) {
        let refused = (0..500).find_map(|_| self.create(cluster).err());
        let why = refused.expect("a full disk refuses");
        assert!(why.contains("No space left on device"), "{why}");
    }

    fn all_are_there(&self, cluster: &Cluster) {
        let all = cluster.get("configmaps");
        let kept = all["items"].as_array().unwrap().iter();
        let kept = kept.filter(|map| map["metadata"]["name"].as_str().unwrap().starts_with("kept-"));
        let kept: Vec<&Value> = kept.collect();
        assert_eq!(kept.len(), self.count, "what was answered is there, what was refused is not");
        assert!(kept.iter().all(|map| map["data"]["text"] == self.text.as_str()));
    }
}

/// Answered is kept, refused is not there, and what runs runs on.
#[test]
fn a_full_disk_refuses_writes_and_loses_nothing() {
    let (mut cluster, address) = cluster_on_disk(192);
    let second = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&second, images::web("test.local/web:v2", "two")).unwrap();
    let import = |cluster: &Cluster| {
        let output = cluster.trierarch("image import").arg(second.path()).output().unwrap();
        output.status.success().then_some(()).ok_or(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let mut kept = Kept::new();
    for is_killed in [false, true] {
        let filler = cluster.fill_disk();
        kept.until_refused(&cluster);
        kept.all_are_there(&cluster);
        runs_on(&cluster, &address);
        if !is_killed {
            let why = import(&cluster).unwrap_err();
            assert!(why.contains("No space left on device"), "{why}");
        }
        if is_killed {
            cluster.kill_server();
        }
        drop(filler);
        if is_killed {
            cluster.start_server();
        }
        eventually("there is room again", || kept.create(&cluster));
        kept.all_are_there(&cluster);
        import(&cluster).unwrap();
        runs_on(&cluster, &address);
        assert_eq!(cluster.kubectl_prints("exec web -- hostname"), "web\n");
    }
    cluster.kubectl_prints("delete pod web --timeout=60s");
}

const NOISY: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: noisy
spec:
  containers:
  - name: noisy
    image: test.local/web:v1
    command: [cat, /dev/zero]
";

/// The node takes the room back by itself, though the API takes no word of it meanwhile.
#[test]
fn a_log_that_fills_the_disk_ends_its_pod_alone() {
    // A node wants 500 MiB to be free.
    let (cluster, address) = cluster_on_disk(640);
    cluster.apply(NOISY);
    let pod = eventually("the noisy pod is evicted", || {
        let pod = cluster.get("pod noisy");
        let why = pod["status"]["reason"].clone();
        if why == "Evicted" { Ok(pod) } else { Err(pod["status"].to_string()) }
    });
    assert!(pod["status"]["message"].as_str().unwrap().contains("ephemeral-storage"), "{pod}");
    let file = cluster.data_dir().join("room");
    eventually("there is room again", || {
        let written = std::fs::write(&file, vec![1; 64 << 20]);
        std::fs::remove_file(&file).and(written).map_err(|error| error.to_string())
    });
    eventually("the API takes words again", || Kept::new().create(&cluster));
    cluster.import(&images::web("test.local/web:v2", "two"));
    runs_on(&cluster, &address);
    cluster.kubectl_prints("delete pod noisy web --timeout=60s");
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

/// What pods have of the machine: loop devices, links' addresses, and addresses that the network gave.
fn machine(cluster: &Cluster) -> (usize, Vec<String>, usize) {
    let devices = std::fs::read_dir("/sys/block").unwrap().flatten();
    let files =
        devices.filter_map(|device| std::fs::read_to_string(device.path().join("loop/backing_file")).ok());
    let backed = files.filter(|file| Path::new(file).starts_with(cluster.data_dir())).count();
    let run = |command: &str| {
        let mut words = command.split(' ');
        let output = cluster.namespace.command(words.next().unwrap()).args(words).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let addresses = run("ip -o address");
    let addresses = addresses.lines().filter(|line| !line.contains("fe80"));
    // The link, the family and the address.
    let addresses =
        addresses.map(|line| line.split_whitespace().skip(1).take(3).collect::<Vec<_>>().join(" "));
    let addresses = addresses.collect();
    // Before the first pod there is no such folder.
    let given = std::fs::read_dir(cluster.data_dir().join("cni/addresses")).map_or(0, Iterator::count);
    (backed, addresses, given)
}

#[test]
fn pods_come_back_after_a_reboot_and_leave_nothing_when_they_go() {
    let cluster = Cluster::start();
    cluster.import(&images::web("test.local/web:v1", "one"));
    let before_pods = machine(&cluster);
    let mut cluster = run_pod(cluster);
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
        let after = machine(&cluster);
        if (folders, sandboxes, mounts.len(), cgroups.len()) == (0, 0, 0, 0)
            && links <= 2
            && after == before_pods
        {
            return Ok(());
        }
        Err(format!(
            "{folders} folders, {sandboxes} sandboxes, {links} links, {mounts:?}, {cgroups:?}, {after:?}; before {before_pods:?}"
        ))
    });
}
