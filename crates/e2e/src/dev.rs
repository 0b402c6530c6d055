//! A cluster of several nodes on this machine, by `trierarch dev`.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::{Namespace, binary, images, succeed};

/// A cluster in a namespace that stands for the host.
pub struct Dev {
    pub host: Namespace,
    folder: tempfile::TempDir,
    name: String,
}

impl Dev {
    /// Starts a cluster of so many nodes, with these flags.
    pub fn up(nodes: u8, flags: &[&str]) -> Self {
        let folder =
            tempfile::Builder::new().prefix("e2e-").tempdir().expect("a temporary folder can be made");
        let host = Namespace::new();
        // Names of cgroups and namespaces are the machine's.
        let name = format!("t{}", std::process::id());
        let dev = Dev { host, folder, name };
        println!("{}", succeed(dev.dev("up").arg(format!("--nodes={nodes}")).args(flags)));
        dev
    }

    /// A command about this cluster.
    pub fn dev(&self, command: &str) -> Command {
        let mut dev = self.host.command(binary());
        dev.args(["dev", "--name", &self.name, "--dev-dir"]).arg(self.folder.path()).args(command.split(' '));
        dev
    }

    /// A file in the cluster's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(&self.name).join(name)
    }

    /// kubectl as somebody whose kubeconfig is in the cluster's folder.
    pub fn kubectl_of(&self, kubeconfig: &str, arguments: &str) -> Command {
        let mut kubectl = self.host.command("kubectl");
        kubectl.arg("--kubeconfig").arg(self.file(kubeconfig)).args(arguments.split_whitespace());
        kubectl.env("KUBECACHEDIR", self.file("kubectl"));
        kubectl
    }

    fn admin(&self) -> String {
        format!("{}/admin.kubeconfig", self.node(1))
    }

    /// What kubectl prints; it must succeed.
    pub fn kubectl(&self, arguments: &str) -> String {
        succeed(&mut self.kubectl_of(&self.admin(), arguments))
    }

    /// A shell's work in a pod.
    pub fn shell(&self, pod: &str, script: &str) -> Command {
        let mut kubectl = self.kubectl_of(&self.admin(), &format!("exec {pod} --"));
        kubectl.args(["/bin/sh", "-c", script]);
        kubectl
    }

    pub fn apply(&self, manifest: &str) {
        let file = self.file("manifest.yaml");
        std::fs::write(&file, manifest).expect("the manifest can be written");
        self.kubectl(&format!("apply -f {}", file.display()));
    }

    /// Gives every node the image of [`images::web`].
    pub fn load_web(&self) {
        self.load(&images::web("test.local/web:v1", "one"));
    }

    /// Gives every node an image.
    pub fn load(&self, image: &[u8]) {
        let archive = self.file("image.tar");
        std::fs::write(&archive, image).expect("the archive can be written");
        succeed(self.dev("load").arg(&archive));
    }

    /// The name of a node, by its place from 1.
    pub fn node(&self, number: u8) -> String {
        format!("{}-{number}", self.name)
    }

    /// The process of a node.
    pub fn process(&self, number: u8) -> i32 {
        let state = std::fs::read(self.file("cluster.json")).expect("the cluster is remembered");
        let state: Value = serde_json::from_slice(&state).expect("what is remembered is JSON");
        let pid = state["nodes"][usize::from(number) - 1]["process"]["pid"].as_i64();
        pid.and_then(|pid| i32::try_from(pid).ok()).expect("the node has a process")
    }

    /// Kills the process of a node alone, as the kernel does where memory runs out, and waits until it is gone.
    pub fn kill(&self, number: u8) {
        let pid = self.process(number);
        let pidfd = linux::process::pidfd(pid).expect("the node runs");
        linux::process::kill(pid, 9).expect("the node can be killed");
        let ended = linux::process::ended(&pidfd, std::time::Duration::from_secs(10));
        assert!(ended.expect("an end can be waited for"), "node {number} does not end");
    }

    /// A command inside a node.
    pub fn inside(&self, number: u8, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace(number).display())).arg("--").arg(program);
        command
    }

    /// A node's network namespace.
    pub fn namespace(&self, number: u8) -> PathBuf {
        format!("/run/netns/trierarch-{}", self.node(number)).into()
    }

    /// What is in the kernel and on disk of this cluster.
    pub fn traces(&self) -> String {
        let netns = succeed(Command::new("ip").args(["netns", "list"]));
        let of_cluster = |text: &str| -> Vec<String> {
            text.lines().filter(|line| line.contains(&self.name)).map(str::to_owned).collect()
        };
        let links = succeed(self.host.command("ip").args(["-o", "link"]));
        let links: Vec<&str> = links.lines().filter(|line| line.contains("tridev")).collect();
        let rules = succeed(self.host.command("nft").args(["list", "tables"]));
        let mounts = of_cluster(&std::fs::read_to_string("/proc/self/mounts").expect("it can be read"));
        let processes = of_cluster(&succeed(Command::new("ps").args(["-eo", "args"])));
        let processes: Vec<_> = processes.iter().filter(|line| line.contains("--data-dir")).collect();
        let cgroups: Vec<_> = ["", "memory", "pids", "cpu"]
            .iter()
            .map(|controller| format!("/sys/fs/cgroup/{controller}/trierarch-dev/{}", self.name))
            .filter(|path| std::path::Path::new(path).exists())
            .collect();
        let files = std::fs::read_dir(self.folder.path()).expect("it can be read").count();
        let netns = of_cluster(&netns);
        if netns.is_empty()
            && links.is_empty()
            && rules.is_empty()
            && mounts.is_empty()
            && processes.is_empty()
            && cgroups.is_empty()
            && files == 0
        {
            return String::new();
        }
        format!("{netns:?} {links:?} {rules:?} {mounts:?} {processes:?} {cgroups:?} {files}")
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.folder.path().join(&self.name).exists() {
            // The test failed on its way there.
            let _ = self.dev("down").status();
        }
    }
}

/// A pod that serves its name on port 8080 of this node.
pub fn pod(name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: web, image: 'test.local/web:v1'}}
---
"
    )
}

/// What leads to all pods of [`pod`].
pub const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

/// How many of what can leak there are in a node: rules, links, routes, addresses.
pub fn counts(dev: &Dev, node: u8) -> Vec<(&'static str, usize)> {
    let count = |program: &str, arguments: &str| {
        let said = succeed(dev.inside(node, program).args(arguments.split(' ')));
        said.lines().count()
    };
    // Elements of nft are many on a line; each has a separator of its own.
    let rules = succeed(dev.inside(node, "nft").args(["list", "ruleset"]));
    vec![
        ("rules", rules.lines().count() + rules.matches(", ").count()),
        ("links", count("ip", "-o link")),
        ("routes", count("ip", "-4 route") + count("ip", "-6 route show proto static")),
        ("addresses", count("ip", "-o -4 address") + count("ip", "-o -6 address show scope global")),
        ("neighbours", count("ip", "neighbour show nud permanent")),
    ]
}

/// Asks from within a pod.
pub fn ask(dev: &Dev, pod: &str, host: &str, port: u16) -> Result<String, String> {
    let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {host} {port}");
    let output = dev.shell(pod, &script).output().expect("it can be read");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if said.contains("one from ") {
        Ok(said)
    } else {
        Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr)))
    }
}
