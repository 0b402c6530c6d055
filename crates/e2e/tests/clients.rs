//! Clients that people have do real work against a control plane: every kubectl of this machine, and the Python client.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use e2e::{Cluster, Piece, fail, succeed};

/// A control plane without nodes, in a namespace of its own.
struct ControlPlane {
    /// Ends before its data directory goes.
    server: Option<Piece>,
    cluster: Cluster,
}

impl ControlPlane {
    fn start() -> Self {
        let mut plane = ControlPlane { server: None, cluster: Cluster::stopped() };
        plane.run();
        plane
    }

    fn run(&mut self) {
        let server =
            Piece::start(self.cluster.trierarch("server --no-node").args(["--node-ip", e2e::NODE_IP]));
        server.wait_for("the API is ready");
        self.server = Some(server);
    }

    fn restart(&mut self) {
        let ended = self.server.take().unwrap().end();
        assert!(ended.success(), "{ended}");
        self.run();
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.cluster.data_dir().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

/// `kubectl`, and those whose names tell their version: `kubectl.1.29` and so on.
fn kubectls() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap();
    let in_folder = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = std::env::split_paths(&path)
        .flat_map(in_folder)
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name == "kubectl" || name.starts_with("kubectl.1.")
        })
        .collect();
    found.sort();
    found.dedup_by(|a, b| a.file_name() == b.file_name());
    assert!(!found.is_empty(), "there is no kubectl");
    found
}

/// One kubectl with a namespace of its own in the cluster.
struct Kubectl<'c> {
    plane: &'c ControlPlane,
    program: &'c Path,
}

impl Kubectl<'_> {
    fn command(&self, arguments: &str) -> Command {
        self.plane.cluster.kubectl_by(self.program, arguments)
    }

    fn prints(&self, arguments: &str) -> String {
        succeed(&mut self.command(arguments))
    }

    fn apply(&self, options: &str, manifest: &str) -> String {
        let file = self.plane.file("manifest.yaml", manifest);
        succeed(self.command(&format!("apply {options} -f")).arg(file))
    }
}

const PAIR: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: one, labels: {set: a}}
data: {k: first}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: two, labels: {set: a}}
";

const ONE: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: one, labels: {set: a}}
data: {k: second}
";

const WIDGETS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {
      size: {type: integer, default: 7, description: How large it is}}}}}}
    additionalPrinterColumns: [{name: Size, type: integer, jsonPath: .spec.size}]
  - name: v1alpha1
    served: true
    storage: false
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

/// Two versions whose fields have other names, with a webhook that renames them.
const CONVERTED: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: lamps.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: lamps, singular: lamp, kind: Lamp}
  conversion:
    strategy: Webhook
    webhook:
      conversionReviewVersions: [v1]
      clientConfig: {url: 'https://127.0.0.1:PORT/convert', caBundle: BUNDLE}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {
      brightness: {type: integer}}}}}}
  - name: v1beta1
    served: true
    storage: false
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {
      level: {type: integer}}}}}}
";
const CONVERTER_PORT: &str = "9443";

/// A webhook that runs in the cluster's namespace until dropped, and its certificate in PEM.
fn converter(plane: &ControlPlane) -> (Piece, String) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let certificate = plane.file("converter.pem", &made.cert.pem());
    let key = plane.file("converter.key", &made.signing_key.serialize_pem());
    let script = plane.file("convert.py", include_str!("clients/convert.py"));
    let mut command = plane.cluster.namespace.command("python3");
    let webhook = Piece::start(command.arg(script).arg(CONVERTER_PORT).arg(certificate).arg(key));
    webhook.wait_for("converts");
    (webhook, made.cert.pem())
}

fn conversion(kubectl: &Kubectl<'_>) {
    let (_webhook, certificate) = converter(kubectl.plane);
    let bundle = base64::engine::general_purpose::STANDARD.encode(certificate);
    kubectl.apply("", &CONVERTED.replace("PORT", CONVERTER_PORT).replace("BUNDLE", &bundle));
    kubectl.prints("wait --for=condition=Established crd/lamps.example.com --timeout=30s");
    kubectl
        .apply("", "apiVersion: example.com/v1beta1\nkind: Lamp\nmetadata: {name: desk}\nspec: {level: 3}\n");
    assert_eq!(kubectl.prints("get lamps.v1.example.com desk -o jsonpath={.spec}"), r#"{"brightness":3}"#);
    let patch = r#"--patch={"spec":{"brightness":5}}"#;
    kubectl.prints(&format!("patch lamps.v1.example.com desk --type=merge {patch}"));
    assert_eq!(
        kubectl.prints("get lamps.v1beta1.example.com -o jsonpath={.items[0].spec}"),
        r#"{"level":5}"#
    );
    kubectl.prints("delete crd lamps.example.com");
}

fn objects(kubectl: &Kubectl<'_>) {
    kubectl.apply("", PAIR);
    let file = kubectl.plane.file("one.yaml", ONE);
    let changed = fail(kubectl.command("diff -f").arg(&file));
    assert!(changed.contains("-  k: first") && changed.contains("+  k: second"), "{changed}");
    let pruned = kubectl.apply("--prune -l set=a --prune-allowlist=core/v1/ConfigMap", ONE);
    assert!(pruned.contains("configmap/two pruned"), "{pruned}");
    succeed(kubectl.command("diff -f").arg(&file));

    let editor = kubectl.plane.file("editor.sh", "#!/bin/sh\nexec sed -i 's/^  k: .*/  k: edited/' \"$1\"\n");
    let mut edit = kubectl.command("edit configmap one");
    edit.env("KUBE_EDITOR", format!("sh {}", editor.display()));
    succeed(&mut edit);
    assert_eq!(kubectl.prints("get configmap one -o jsonpath={.data.k}"), "edited");

    let mine = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shared}\ndata: {k: mine}\n";
    let theirs = mine.replace("mine", "theirs");
    kubectl.apply("--server-side --field-manager=me", mine);
    let theirs = kubectl.plane.file("theirs.yaml", &theirs);
    let conflict = fail(kubectl.command("apply --server-side --field-manager=them -f").arg(&theirs));
    assert!(conflict.contains("conflict with \"me\": .data.k"), "{conflict}");
    succeed(kubectl.command("apply --server-side --field-manager=them --force-conflicts -f").arg(&theirs));
    assert_eq!(kubectl.prints("get configmap shared -o jsonpath={.data.k}"), "theirs");
    let unknown =
        kubectl.plane.file("unknown.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\nx: y\n");
    let refused = fail(kubectl.command("apply -f").arg(unknown));
    assert!(refused.contains("unknown field \"x\""), "{refused}");
    kubectl.prints("delete configmap one shared");
}

fn workloads(kubectl: &Kubectl<'_>) {
    kubectl.prints("create deployment web --image=web");
    kubectl.prints("wait --for=jsonpath={.status.replicas}=1 deployment/web --timeout=30s");
    kubectl.prints("scale deployment web --replicas=2");
    kubectl.prints("wait --for=jsonpath={.status.replicas}=2 deployment/web --timeout=30s");
    kubectl.prints("set image deployment/web web=other");
    let all = kubectl.prints("get all");
    for kind in ["pod/web-", "deployment.apps/web", "replicaset.apps/web-", "service/kubernetes"] {
        assert!(all.contains(kind), "{all}");
    }
    let explained = kubectl.prints("explain deployment.spec.replicas");
    assert!(
        explained.contains("replicas <integer>") && explained.contains("Number of desired pods"),
        "{explained}"
    );
    kubectl.prints("delete deployment web");
}

fn custom_resources(kubectl: &Kubectl<'_>) {
    kubectl.apply("", WIDGETS);
    kubectl.prints("wait --for=condition=Established crd/widgets.example.com --timeout=30s");
    kubectl.apply("", "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w}\nspec: {}\n");
    let table = kubectl.prints("get wd");
    assert!(table.contains("SIZE") && table.contains('7'), "{table}");
    let other = kubectl.prints("get widgets.v1alpha1.example.com w -o jsonpath={.apiVersion}/{.spec.size}");
    assert_eq!(other, "example.com/v1alpha1/7");
    assert!(kubectl.prints("get all").contains("widget.example.com/w"));
    assert!(kubectl.prints("explain widget.spec.size").contains("How large it is"));
    kubectl.prints("delete crd widgets.example.com");
}

/// The minor version that a kubectl says it has.
fn minor(kubectl: &Path) -> u32 {
    let said = succeed(Command::new(kubectl).args(["version", "--client", "--output=json"]));
    let version: serde_json::Value = serde_json::from_str(&said).unwrap();
    let minor = version["clientVersion"]["minor"].as_str().unwrap();
    minor.trim_end_matches('+').parse().unwrap()
}

#[test]
fn every_kubectl_does_its_work() {
    let plane = ControlPlane::start();
    // Debian's is of before much that is done here.
    let (programs, old): (Vec<_>, Vec<_>) = kubectls().into_iter().partition(|program| minor(program) >= 27);
    eprintln!("too old: {old:?}");
    for program in programs {
        eprintln!("with {}", program.display());
        let kubectl = Kubectl { plane: &plane, program: &program };
        objects(&kubectl);
        workloads(&kubectl);
        custom_resources(&kubectl);
        conversion(&kubectl);
    }
}

/// A watch that was broken off by a restart goes on where it was.
#[test]
fn a_watch_goes_on_after_a_restart() {
    let mut plane = ControlPlane::start();
    let programs = kubectls();
    let path = "/api/v1/namespaces/default/configmaps";
    let from = {
        let kubectl = Kubectl { plane: &plane, program: &programs[0] };
        let list: serde_json::Value =
            serde_json::from_str(&kubectl.prints(&format!("get --raw {path}"))).unwrap();
        kubectl.prints("create configmap early");
        list["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    };
    plane.restart();
    let kubectl = Kubectl { plane: &plane, program: &programs[0] };
    kubectl.prints("create configmap late");
    let events = kubectl.prints(&format!("get --raw {path}?watch=1&timeoutSeconds=1&resourceVersion={from}"));
    let names: Vec<String> = events
        .lines()
        .map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            format!("{} {}", event["type"], event["object"]["metadata"]["name"])
        })
        .filter(|name| name.contains("early") || name.contains("late"))
        .collect();
    assert_eq!(names, ["\"ADDED\" \"early\"", "\"ADDED\" \"late\""]);
}

#[test]
fn the_python_client_does_its_work() {
    let plane = ControlPlane::start();
    let folder = tempfile::tempdir().unwrap();
    let python = folder.path().join("bin/python");
    succeed(Command::new("python3").args(["-m", "venv"]).arg(folder.path()));
    succeed(Command::new(&python).args(["-m", "pip", "install", "--quiet", "kubernetes>=31"]));
    let script = plane.file("work.py", include_str!("clients/work.py"));
    let mut run = plane.cluster.namespace.command(&python);
    run.arg(script).arg(plane.cluster.data_dir().join("admin.kubeconfig"));
    assert_eq!(succeed(&mut run), "all is well\n");
}
