//! Several nodes on one machine, by `trierarch dev`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use e2e::{Namespace, binary, eventually, images, succeed};

/// A cluster in a namespace that stands for the host.
struct Dev {
    host: Namespace,
    folder: tempfile::TempDir,
    name: String,
}

impl Dev {
    fn up(nodes: u8) -> Self {
        let folder = tempfile::Builder::new().prefix("e2e-").tempdir().unwrap();
        let host = Namespace::new();
        // Names of cgroups and namespaces are the machine's.
        let name = format!("t{}", std::process::id());
        let dev = Dev { host, folder, name };
        println!("{}", succeed(dev.dev("up").arg(format!("--nodes={nodes}"))));
        dev
    }

    fn dev(&self, command: &str) -> Command {
        let mut dev = self.host.command(binary());
        dev.args(["dev", "--name", &self.name, "--dev-dir"]).arg(self.folder.path()).args(command.split(' '));
        dev
    }

    fn kubectl(&self, arguments: &str) -> String {
        let mut kubectl = self.host.command("kubectl");
        let kubeconfig =
            self.folder.path().join(&self.name).join(format!("{}-1/admin.kubeconfig", self.name));
        succeed(kubectl.arg("--kubeconfig").arg(kubeconfig).args(arguments.split_whitespace()))
    }

    fn node(&self, number: u8) -> String {
        format!("{}-{number}", self.name)
    }

    /// What is in the kernel and on disk of this cluster.
    fn traces(&self) -> String {
        let netns = succeed(Command::new("ip").args(["netns", "list"]));
        let of_cluster = |text: &str| -> Vec<String> {
            text.lines().filter(|line| line.contains(&self.name)).map(str::to_owned).collect()
        };
        let links = succeed(self.host.command("ip").args(["-o", "link"]));
        let links: Vec<&str> = links.lines().filter(|line| line.contains("tridev")).collect();
        let rules = succeed(self.host.command("nft").args(["list", "tables"]));
        let mounts = of_cluster(&std::fs::read_to_string("/proc/self/mounts").unwrap());
        let processes = of_cluster(&succeed(Command::new("ps").args(["-eo", "args"])));
        let processes: Vec<_> = processes.iter().filter(|line| line.contains("--data-dir")).collect();
        let cgroups: Vec<_> = ["", "memory", "pids", "cpu"]
            .iter()
            .map(|controller| format!("/sys/fs/cgroup/{controller}/trierarch-dev/{}", self.name))
            .filter(|path| std::path::Path::new(path).exists())
            .collect();
        let files = std::fs::read_dir(self.folder.path()).unwrap().count();
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

fn pod(name: &str, node: &str) -> String {
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

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

/// Asks from within a pod.
fn ask(dev: &Dev, pod: &str, host: &str, port: u16) -> Result<String, String> {
    let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {host} {port}");
    let kubeconfig = dev.folder.path().join(&dev.name).join(format!("{}-1/admin.kubeconfig", dev.name));
    let mut kubectl = dev.host.command("kubectl");
    kubectl.arg("--kubeconfig").arg(kubeconfig).args(["exec", pod, "--", "/bin/sh", "-c", &script]);
    let output = kubectl.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if said.contains("one from ") {
        Ok(said)
    } else {
        Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr)))
    }
}

#[test]
fn pods_of_two_nodes_reach_each_other_and_nothing_stays() {
    let dev = Dev::up(2);
    let archive = dev.folder.path().join(&dev.name).join("web.tar");
    std::fs::write(&archive, images::web("test.local/web:v1", "one")).unwrap();
    succeed(dev.dev("load").arg(&archive));
    let manifest = dev.folder.path().join(&dev.name).join("pods.yaml");
    std::fs::write(&manifest, pod("a", &dev.node(1)) + &pod("b", &dev.node(2)) + SERVICE).unwrap();
    dev.kubectl(&format!("apply -f {}", manifest.display()));
    dev.kubectl("wait --for=condition=Ready pod/a pod/b --timeout=60s");
    let address = |pod: &str| dev.kubectl(&format!("get pod {pod} -o jsonpath={{.status.podIP}}"));
    for (from, to) in [("a", "b"), ("b", "a")] {
        let to = address(to);
        eventually("pod to pod across nodes", || ask(&dev, from, &to, 8080));
    }
    let service = dev.kubectl("get service web -o jsonpath={.spec.clusterIP}");
    for from in ["a", "b"] {
        eventually("the Service's name resolves on every node", || {
            let said = dev.kubectl(&format!("exec {from} -- nslookup web.default.svc.cluster.local"));
            if said.contains(&service) { Ok(()) } else { Err(said) }
        });
        let mut seen = std::collections::BTreeSet::new();
        eventually("both pods answer by the Service", || {
            let said = ask(&dev, from, &service, 80)?;
            seen.extend(["a", "b"].into_iter().filter(|pod| said.contains(&format!("one from {pod}\n"))));
            if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?} {said}")) }
        });
    }
    assert!(dev.kubectl("logs b").contains("one serves"), "the second node's kubelet is believed");

    // Rights of a node end at the node.
    let second = dev.folder.path().join(&dev.name).join(dev.node(2)).join("kubelet.kubeconfig");
    for forbidden in ["get secrets -A".to_owned(), format!("label node {} stolen=yes", dev.node(1))] {
        let mut kubectl = dev.host.command("kubectl");
        let said = e2e::fail(kubectl.arg("--kubeconfig").arg(&second).args(forbidden.split(' ')));
        assert!(said.contains("orbidden"), "{said}");
    }

    let b = address("b");
    succeed(dev.dev("cut-node").arg(dev.node(2)));
    ask(&dev, "a", &b, 8080).expect_err("a node that is cut off answers nobody");
    succeed(dev.dev("heal-node").arg(dev.node(2)));
    eventually("healed", || ask(&dev, "a", &b, 8080));

    succeed(dev.dev("stop-node").arg(dev.node(2)));
    let listed = succeed(&mut dev.dev("list"));
    assert!(listed.contains("1/2"), "{listed}");
    succeed(dev.dev("up").arg("--nodes=2"));
    dev.kubectl("wait --for=condition=Ready pod/b --timeout=60s");
    succeed(&mut dev.dev("down"));
    assert_eq!(dev.traces(), "");
}
