//! A cluster run piece by piece, as upstream's programs are: each part a process, each by its own kubeconfig.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use e2e::{NODE_IP, Namespace, Piece, binary, eventually, images, succeed};

struct Pieces {
    namespace: Namespace,
    folder: tempfile::TempDir,
    /// The last is the first to end.
    running: Vec<Piece>,
}

impl Pieces {
    fn path(&self, of: &str) -> String {
        self.folder.path().join(of).display().to_string()
    }

    fn cgroup(&self) -> String {
        format!("/{}", self.namespace.name())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(binary());
        for argument in arguments {
            let argument = argument.replace("DIR", &self.folder.path().display().to_string());
            command.arg(argument.replace("CGROUP", &self.cgroup()).replace("NODE_IP", NODE_IP));
        }
        command
    }

    fn start(&mut self, words: &str, arguments: &[&str]) {
        let piece = Piece::start(&mut self.command(arguments));
        piece.wait_for(words);
        self.running.push(piece);
    }

    fn kubectl(&self, arguments: &str) -> String {
        let mut kubectl = self.namespace.command("kubectl");
        kubectl.arg("--kubeconfig").arg(self.path("api/admin.kubeconfig"));
        succeed(kubectl.args(arguments.split_whitespace()))
    }

    fn status_of(&self, url: &str) -> String {
        let mut curl = self.namespace.command("curl");
        succeed(curl.args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", url]))
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        while self.running.pop().is_some() {}
        let reset = ["reset", "--data-dir=DIR/engine", "--root-dir=DIR/kubelet", "--cgroup-root=CGROUP"];
        let reset = self.command(&reset).status();
        if !reset.is_ok_and(|status| status.success()) {
            eprintln!("cannot reset the pieces");
        }
    }
}

const KUBELET: &str = "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
podLogsDir: LOGS
maxPods: 20
evictionHard: {memory.available: 10Mi}
syncFrequency: 0s
";

const APPLICATION: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: 'test.local/web:v1'}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

fn start() -> Pieces {
    let folder = tempfile::Builder::new().prefix("e2e-").tempdir().unwrap();
    let mut pieces = Pieces { namespace: Namespace::new(), folder, running: Vec::new() };
    let kubelet = KUBELET.replace("LOGS", &pieces.path("logs"));
    std::fs::write(pieces.path("kubelet.yaml"), kubelet).unwrap();
    pieces.start("the API is ready", &["apiserver", "--data-dir=DIR/api", "--advertise-address=NODE_IP"]);
    pieces.start(
        "the controller manager is ready",
        &[
            "controller-manager",
            "--kubeconfig=DIR/api/controller-manager.kubeconfig",
            "--cluster-signing-cert-file=DIR/api/pki/ca.crt",
            "--cluster-signing-key-file=DIR/api/pki/ca.key",
            "--service-account-private-key-file=DIR/api/pki/sa.key",
            "--controllers=*,-cronjob-controller",
        ],
    );
    pieces.start("the scheduler is ready", &["scheduler", "--kubeconfig=DIR/api/scheduler.kubeconfig"]);
    pieces.start(
        "the container engine is ready",
        &["cri-server", "--data-dir=DIR/engine", "--cgroup-root=CGROUP"],
    );
    pieces.start(
        "the kubelet is ready",
        &[
            "kubelet",
            "--bootstrap-kubeconfig=DIR/api/bootstrap-kubelet.kubeconfig",
            "--kubeconfig=DIR/kubelet.kubeconfig",
            "--config=DIR/kubelet.yaml",
            "--root-dir=DIR/kubelet",
            "--container-runtime-endpoint=unix://DIR/engine/cri.sock",
            // On the API server's own machine nobody may ask for a certificate of its address.
            "--tls-cert-file=DIR/api/pki/kubelet-server.crt",
            "--tls-private-key-file=DIR/api/pki/kubelet-server.key",
            "--hostname-override=node-1",
            "--node-ip=NODE_IP",
            "--node-labels=tier=front",
            "--register-with-taints=example.org/new=yes:PreferNoSchedule",
            "--cgroup-root=CGROUP",
        ],
    );
    pieces.start(
        "the Service proxy is ready",
        &["proxy", "--kubeconfig=DIR/api/proxy.kubeconfig", "--hostname-override=node-1"],
    );
    pieces
}

#[test]
fn a_cluster_in_pieces_runs_a_deployment() {
    let pieces = start();
    let archive = pieces.path("image.tar");
    std::fs::write(&archive, images::web("test.local/web:v1", "one")).unwrap();
    succeed(&mut pieces.command(&["image", "import", "--data-dir=DIR/engine", &archive]));
    pieces.kubectl("wait --for=condition=Ready node/node-1 --timeout=60s");
    let manifest = pieces.path("web.yaml");
    std::fs::write(&manifest, APPLICATION).unwrap();
    pieces.kubectl(&format!("apply -f {manifest}"));
    pieces.kubectl("rollout status deployment/web --timeout=60s");
    let node: serde_json::Value = serde_json::from_str(&pieces.kubectl("get node node-1 -o json")).unwrap();
    assert_eq!(node["metadata"]["labels"]["tier"], "front");
    assert_eq!(node["spec"]["taints"][0]["key"], "example.org/new");
    assert_eq!(node["status"]["capacity"]["pods"], "20");

    // The Service leads to the pods, and the kubelet's certificate is one that the API server believes.
    let address = pieces.kubectl("get service web -o jsonpath={.spec.clusterIP}");
    eventually("the Service answers", || {
        let url = format!("http://{address}/");
        let output =
            pieces.namespace.command("curl").args(["-sS", "--max-time", "3", &url]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said.starts_with("one from web-") { Ok(()) } else { Err(said) }
    });
    assert!(pieces.kubectl("logs deployment/web").contains("one serves"));

    // Each controller is an account of its own, with no more rights than upstream gives it.
    pieces.kubectl(
        "get serviceaccounts -n kube-system deployment-controller replicaset-controller node-controller",
    );
    let rights = "auth can-i create pods --as=system:serviceaccount:kube-system:deployment-controller";
    let mut kubectl = pieces.namespace.command("kubectl");
    kubectl.arg("--kubeconfig").arg(pieces.path("api/admin.kubeconfig")).args(rights.split(' '));
    assert_eq!(String::from_utf8_lossy(&kubectl.output().unwrap().stdout).trim(), "no");

    for port in [10257, 10259] {
        for path in ["healthz", "livez", "readyz"] {
            assert_eq!(pieces.status_of(&format!("https://127.0.0.1:{port}/{path}")), "200");
        }
        assert_eq!(pieces.status_of(&format!("https://127.0.0.1:{port}/metrics")), "403");
    }
    let lease = pieces.kubectl("get lease -n kube-system kube-scheduler -o jsonpath={.spec.holderIdentity}");
    assert!(!lease.is_empty());

    assert!(Path::new(&pieces.path("kubelet/pki/kubelet-client.crt")).exists(), "it asked for its identity");
}

#[test]
fn a_part_that_cannot_work_says_so_in_one_line() {
    let namespace = Namespace::new();
    let folder = tempfile::tempdir().unwrap();
    let at = |file: &str| folder.path().join(file).display().to_string();
    std::fs::write(
        at("scheduler.yaml"),
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nwrong: 1\n",
    )
    .unwrap();
    std::fs::write(at("server.yaml"), "secure-port: 7443\nno-such: 1\n").unwrap();
    for (arguments, words) in [
        (format!("scheduler --kubeconfig {}", at("none")), "none: No such file or directory"),
        (format!("scheduler --kubeconfig x --config {}", at("scheduler.yaml")), "line 3"),
        (format!("server --config {}", at("server.yaml")), "line 2"),
        (
            format!("apiserver --data-dir {} --etcd-servers http://127.0.0.1:2379", at("api")),
            "no etcd backend",
        ),
        (format!("apiserver --data-dir {} --tls-cert-file x", at("api")), "must be given together"),
        (
            "controller-manager --kubeconfig x --controllers=-nobody".into(),
            "not in the list of known controllers",
        ),
        (format!("kubelet --kubeconfig {}", at("none")), "give --bootstrap-kubeconfig"),
        (format!("kubelet --kubeconfig {} --node-labels =x", at("none")), "is not KEY=VALUE"),
        ("server --no-node --cluster-cidr 10.0.0.0/8 --service-cidr 10.43.0.0/16".into(), "overlap"),
        (
            format!("agent --data-dir {} --server https://127.0.0.1:1 --node-ip {NODE_IP}", at("a")),
            "--token is needed",
        ),
        (format!("dev down --dev-dir {}", at("dev")), "there is no cluster \"dev\""),
    ] {
        let said = e2e::fail(namespace.command(binary()).args(arguments.split(' ')));
        assert!(said.contains(words) && said.lines().count() == 1, "{arguments}: {said}");
    }
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "nothing is touched: {left:?}");
}
