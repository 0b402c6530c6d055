//! A cluster run piece by piece, as upstream's programs are: each part a process, each by its own kubeconfig.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt;
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

    fn apply(&self, manifest: &str) {
        let file = self.path("manifest.yaml");
        std::fs::write(&file, manifest).unwrap();
        self.kubectl(&format!("apply -f {file}"));
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

fn new() -> Pieces {
    let folder = tempfile::Builder::new().prefix("e2e-").tempdir().unwrap();
    Pieces { namespace: Namespace::new(), folder, running: Vec::new() }
}

/// Starts every part; the container engine is told this besides.
fn start(mut pieces: Pieces, engine_flags: &[&str]) -> Pieces {
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
    let engine = ["cri-server", "--data-dir=DIR/engine", "--cgroup-root=CGROUP"];
    pieces.start("the container engine is ready", &[&engine, engine_flags].concat());
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

/// Runs the application until its Service leads to the pods.
fn run_application(pieces: &Pieces) {
    let archive = pieces.path("image.tar");
    std::fs::write(&archive, images::web("test.local/web:v1", "one")).unwrap();
    succeed(&mut pieces.command(&["image", "import", "--data-dir=DIR/engine", &archive]));
    pieces.kubectl("wait --for=condition=Ready node/node-1 --timeout=60s");
    pieces.apply(APPLICATION);
    pieces.kubectl("rollout status deployment/web --timeout=60s");
    let address = pieces.kubectl("get service web -o jsonpath={.spec.clusterIP}");
    eventually("the Service answers", || {
        let url = format!("http://{address}/");
        let output =
            pieces.namespace.command("curl").args(["-sS", "--max-time", "3", &url]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said.starts_with("one from web-") { Ok(()) } else { Err(said) }
    });
}

#[test]
fn a_cluster_in_pieces_runs_a_deployment() {
    let pieces = start(new(), &[]);
    run_application(&pieces);
    let node: serde_json::Value = serde_json::from_str(&pieces.kubectl("get node node-1 -o json")).unwrap();
    assert_eq!(node["metadata"]["labels"]["tier"], "front");
    assert_eq!(node["spec"]["taints"][0]["key"], "example.org/new");
    assert_eq!(node["status"]["capacity"]["pods"], "20");

    // The kubelet's certificate is one that the API server believes.
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

/// Two plugins in one: the first gives a pod a link, an address and routes, the last nothing, if it does not refuse.
const PLUGIN: &str = r#"#!/bin/sh
set -e
state=DIR/plugin
input=$(cat)
link=t$(echo "$CNI_CONTAINERID" | cut -c1-10)
echo "$CNI_COMMAND $(basename "$0")" >> $state/calls
inside="nsenter --net=$CNI_NETNS ip"
case "$CNI_COMMAND $(basename "$0")" in
"ADD test-first")
    number=2
    until mkdir "$state/addresses/$number" 2> /dev/null; do number=$((number + 1)); done
    echo "$CNI_CONTAINERID" > "$state/addresses/$number/owner"
    ip link add "$link" type veth peer name "$CNI_IFNAME" netns "$CNI_NETNS"
    ip link set "$link" up
    echo 1 > "/proc/sys/net/ipv4/conf/$link/proxy_arp"
    $inside address add "10.77.0.$number/32" dev "$CNI_IFNAME"
    $inside link set "$CNI_IFNAME" up
    $inside route add 169.254.1.1 dev "$CNI_IFNAME"
    $inside route add default via 169.254.1.1
    ip route add "10.77.0.$number" dev "$link"
    echo "{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.77.0.$number/32\"}]}" \
        | tee "$state/results/$CNI_CONTAINERID";;
"ADD test-last")
    if [ -e $state/refuse ]; then echo '{"cniVersion":"1.0.0","code":100,"msg":"the last one refuses"}'; exit 1; fi
    case "$input" in *prevResult*10.77.0.*) cat "$state/results/$CNI_CONTAINERID";; *) exit 1;; esac;;
"DEL test-last")
    # What was added is told when it is to go.
    case "$input" in *prevResult*10.77.0.*) echo told >> $state/calls;; esac;;
"DEL test-first")
    ip link delete "$link" 2> /dev/null || true
    for owner in "$state"/addresses/*/owner; do
        if [ "$(cat "$owner" 2> /dev/null)" = "$CNI_CONTAINERID" ]; then rm -r "$(dirname "$owner")"; fi
    done
    rm -f "$state/results/$CNI_CONTAINERID";;
esac
"#;

const NETWORK: &str =
    r#"{"cniVersion":"1.0.0","name":"test","plugins":[{"type":"test-first"},{"type":"test-last"}]}"#;

#[test]
fn plugins_that_a_configuration_names_connect_pods_and_may_fail_half_way() {
    let pieces = new();
    for folder in ["net.d", "bin", "plugin/addresses", "plugin/results"] {
        std::fs::create_dir_all(pieces.path(folder)).unwrap();
    }
    std::fs::write(pieces.path("net.d/10-test.conflist"), NETWORK).unwrap();
    let plugin = PLUGIN.replace("DIR", &pieces.folder.path().display().to_string());
    for name in ["bin/test-first", "bin/test-last"] {
        std::fs::write(pieces.path(name), &plugin).unwrap();
        std::fs::set_permissions(pieces.path(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let pieces = &start(pieces, &["--cni-conf-dir=DIR/net.d", "--cni-bin-dir=DIR/bin"]);
    let count = |folder: &str| std::fs::read_dir(pieces.path(folder)).unwrap().count();
    let calls = || std::fs::read_to_string(pieces.path("plugin/calls")).unwrap_or_default();
    let links = || succeed(pieces.namespace.command("ip").args(["-o", "link"])).lines().count();
    run_application(pieces);
    let address = pieces.kubectl("get pod -l app=web -o jsonpath={.items[0].status.podIP}");
    assert!(address.starts_with("10.77.0."), "{address}");
    let before = (links(), count("plugin/addresses"), count("plugin/results"));
    assert_eq!((before.1, before.2), (2, 2));

    // Half of the network is there when the last plugin refuses: it is taken back, each time.
    std::fs::write(pieces.path("plugin/refuse"), "").unwrap();
    pieces.apply(POD);
    eventually("the kubelet has tried twice, and says why", || {
        let events = pieces.kubectl("get events --field-selector involvedObject.name=late");
        let tries = calls().lines().filter(|call| *call == "ADD test-last").count();
        if events.contains("the last one refuses") && tries >= 4 { Ok(()) } else { Err(events) }
    });
    eventually("nothing of a failed network stays", || {
        let now = (links(), count("plugin/addresses"), count("plugin/results"));
        if now == before { Ok(()) } else { Err(format!("{now:?}, before {before:?}")) }
    });
    std::fs::remove_file(pieces.path("plugin/refuse")).unwrap();
    pieces.kubectl("wait --for=condition=Ready pod/late --timeout=60s");
    pieces.kubectl("delete pod/late deployment/web --timeout=60s");
    eventually("what plugins gave they took back", || {
        match (count("plugin/addresses"), count("plugin/results")) {
            (0, 0) => Ok(()),
            left => Err(format!("{left:?}")),
        }
    });
    assert!(calls().contains("told"), "{}", calls());
}

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: 'test.local/web:v1'}
";
