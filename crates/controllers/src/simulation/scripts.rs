//! Scripts with exact output: what people and machines do, and below it every write that the controllers make because
//! of it, word for word. They are to be read: one for each controller, in `scripts/`.
//!
//! A script is prose, commands and output, parted by empty lines. A command is its line and, where it takes one, an
//! object in the lines below; `----` ends it, and what follows up to the next empty line is the output.
//! `UPDATE_EXPECT=1` writes what happens into the scripts. The commands are the functions of [`Stage`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use apimachinery::GroupVersionResource;
use apiserver::ApiServer;
use apiserver::seams::UserInfo;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use client::{Client, DeleteOptions, Error, PatchType, Propagation, Resource, Transport};
use controller_runtime::{Clock, InformerFactory};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::recording::{Line, Recorder, aliased, told};
use crate::{Clients, Config, SigningAuthority, table};

/// So long without a write is rest.
const QUIET: Duration = Duration::from_secs(3);
/// What has not come to rest by then never will.
const PATIENCE: Duration = Duration::from_secs(600);
const BEAT: Duration = Duration::from_secs(10);

/// A cluster with a node, `n1`, all controllers and nobody else: the commands do what the scheduler and kubelets would.
struct Stage {
    server: Arc<ApiServer>,
    client: Client,
    log: Arc<Mutex<Vec<Line>>>,
    /// Names that the server made up, and what they are called in the script.
    aliases: BTreeMap<String, String>,
    /// Nodes that are heard of.
    alive: Vec<String>,
    addresses: u8,
    shutdown: CancellationToken,
}

fn transport(server: &Arc<ApiServer>, name: &str) -> Arc<dyn Transport> {
    let groups = vec!["system:masters".to_owned(), "system:authenticated".to_owned()];
    server.in_process(UserInfo { name: name.to_owned(), groups, ..Default::default() })
}

/// The resource of an object, by its kind.
fn resource_of(api_version: &str, kind: &str) -> Resource {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let mut table = resources::table().iter();
    let found = table.find(|row| {
        row.kind == kind && (api_version.is_empty() || (row.group == group && row.version == version))
    });
    let row = found.unwrap_or_else(|| panic!("there is no kind {api_version} {kind}"));
    let gvr = GroupVersionResource::new(row.group.clone(), row.version.clone(), row.plural.clone());
    Resource { gvr, namespaced: row.scope == ::resources::Scope::Namespaced }
}

impl Stage {
    async fn start() -> Self {
        let began = Instant::now();
        let epoch: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        // No two looks see the same moment, as events are named by theirs.
        let looks = AtomicU64::new(0);
        let looks = Arc::new(move || jiff::SignedDuration::from_nanos(looks.fetch_add(1, Relaxed) as i64));
        let now = move || epoch + jiff::SignedDuration::try_from(began.elapsed()).unwrap() + looks();
        let config = apiserver::Config { clock: Arc::new(now.clone()), ..apiserver::testing::config() };
        let server = apiserver::testing::cluster(config).await;
        let (shutdown, log) = (CancellationToken::new(), Arc::default());
        let recorded = {
            let (server, log) = (server.clone(), Arc::clone(&log));
            let order = AtomicUsize::new(0);
            move |who: &str| {
                let (inner, order) = (transport(&server, who), order.fetch_add(1, Relaxed));
                Client::new(
                    Arc::new(Recorder { who: who.to_owned(), order, inner, log: Arc::clone(&log) }),
                    who,
                )
            }
        };
        let config = Config {
            signing_authority: Some(authority()),
            sign_token: Some(Arc::new(|_| Ok("token".to_owned()))),
            ..Config::plain(Clock::new(now))
        };
        let informers = InformerFactory::new(recorded("kube-controller-manager"), shutdown.clone());
        let clients = Clients { informers, of_account: Arc::new(recorded) };
        server.tasks.spawn(crate::run(config, clients, shutdown.clone()));
        let client = Client::new(transport(&server, "people"), "people");
        let mut stage = Stage {
            server,
            client,
            log,
            aliases: BTreeMap::new(),
            alive: Vec::new(),
            addresses: 1,
            shutdown,
        };
        stage.node("n1").await.expect("there is no node yet");
        stage.settle().await;
        stage.log.lock().unwrap().clear();
        stage
    }

    /// Lets so much time go by.
    async fn pass(&self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(BEAT)).await;
            for node in &self.alive {
                self.beat(node).await;
            }
        }
    }

    async fn beat(&self, node: &str) {
        let now = jiff::Timestamp::from_second(self.server.now()).unwrap();
        let spec = json!({
            "holderIdentity": node, "leaseDurationSeconds": 40,
            "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        });
        let leases = resource_of("coordination.k8s.io/v1", "Lease");
        let (namespace, patch) = ("kube-node-lease", json!({ "spec": spec }));
        let renewed = self.client.patch_value(&leases, namespace, node, None, PatchType::Merge, &patch).await;
        if renewed.is_err_and(|error| error.is_not_found()) {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"namespace": namespace, "name": node}, "spec": spec,
            });
            self.client.create_value(&leases, namespace, None, &lease).await.unwrap();
        }
    }

    async fn settle(&mut self) {
        let began = Instant::now();
        loop {
            let before = self.log.lock().unwrap().len();
            self.pass(QUIET).await;
            if self.log.lock().unwrap().len() == before {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "there is no rest");
        }
    }

    /// The name behind one of the script.
    fn real<'a>(&'a self, name: &'a str) -> &'a str {
        self.aliases.iter().find(|(_, alias)| *alias == name).map_or(name, |(real, _)| real)
    }

    /// `Kind namespace/name`, or `Kind name`, as a command has it.
    fn named<'a>(&'a self, words: &mut impl Iterator<Item = &'a str>) -> (Resource, &'a str, &'a str) {
        let kind = words.next().expect("a kind");
        let (api_version, kind) = kind.rsplit_once('/').unwrap_or(("", kind));
        let name = words.next().expect("a name");
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        (resource_of(api_version, kind), namespace, self.real(name))
    }

    /// Does one command; an answer of the server that is none of the controllers' is its output.
    async fn command(&mut self, line: &str, body: &str) -> Result<(), Error> {
        let mut words = line.split_whitespace();
        match words.next().expect("a command") {
            "create" => {
                let user = words.next().map(|_as| words.next().expect("a user"));
                return self.create(user, body).await;
            }
            "node" => return self.node(words.next().expect("a name")).await,
            "silence" => {
                let node = words.next().expect("a name");
                self.alive.retain(|alive| alive != node);
            }
            "patch" => {
                let (resource, namespace, name) = self.named(&mut words);
                let patch = yaml(body);
                let patch_type = PatchType::Merge;
                self.client.patch_value(&resource, namespace, name, None, patch_type, &patch).await?;
            }
            "status" => {
                let (resource, namespace, name) = self.named(&mut words);
                let patch = json!({ "status": yaml(body) });
                let (part, patch_type) = (Some("status"), PatchType::Merge);
                self.client.patch_value(&resource, namespace, name, part, patch_type, &patch).await?;
            }
            "approve" => {
                let (resource, namespace, name) = self.named(&mut words);
                let mut request = self.client.get_value(&resource, namespace, name).await?;
                request["status"]["conditions"] =
                    json!([{"type": "Approved", "status": "True", "reason": "People"}]);
                self.client.update_value(&resource, namespace, name, Some("approval"), &request).await?;
            }
            "delete" => {
                let (resource, namespace, name) = self.named(&mut words);
                let propagation_policy = words.next().map(|how| match how {
                    "foreground" => Propagation::Foreground,
                    "orphan" => Propagation::Orphan,
                    other => panic!("there is no propagation {other}"),
                });
                let options = DeleteOptions { propagation_policy, ..Default::default() };
                self.client.delete_value(&resource, namespace, name, &options).await?;
            }
            "bind" => return self.pods(words.next().unwrap_or("n1"), false).await,
            "run" => return self.pods(words.next().unwrap_or("n1"), true).await,
            "wait" => {
                let span: jiff::Span = words.next().expect("a time").parse().expect("a time");
                let span = jiff::SignedDuration::try_from(span).expect("seconds, minutes or hours");
                self.pass(span.unsigned_abs()).await;
            }
            other => panic!("there is no command {other}"),
        }
        Ok(())
    }

    async fn create(&self, user: Option<&str>, body: &str) -> Result<(), Error> {
        let client = match user {
            Some(user) => Client::new(transport(&self.server, user), user),
            None => self.client.clone(),
        };
        let body = body.replace("@REQUEST@", &request("jane", "", &[]));
        let body =
            body.replace("@SERVING@", &request("system:node:n1", "system:nodes", &["n1", "192.0.2.10"]));
        for object in body.split("\n---\n").map(yaml) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let resource = resource_of(&text(&object["apiVersion"]), &text(&object["kind"]));
            let namespace = text(&object["metadata"]["namespace"]);
            let created = client.create_value(&resource, &namespace, None, &object).await?;
            if object.get("status").is_some() {
                let (name, patch) = (text(&created["metadata"]["name"]), json!({"status": object["status"]}));
                let (part, patch_type) = (Some("status"), PatchType::Merge);
                self.client.patch_value(&resource, &namespace, &name, part, patch_type, &patch).await?;
            }
        }
        Ok(())
    }

    /// A node that is ready, and beats.
    async fn node(&mut self, name: &str) -> Result<(), Error> {
        let room = json!({"cpu": "4", "memory": "8Gi", "pods": "20"});
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {
                "capacity": room, "allocatable": room,
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
                "addresses": [{"type": "InternalIP", "address": format!("192.0.2.{}", self.alive.len() + 10)}],
            },
        });
        self.client.create_value(&resource_of("v1", "Node"), "", None, &node).await?;
        self.alive.push(name.to_owned());
        self.beat(name).await;
        Ok(())
    }

    /// What the scheduler and kubelets do for pods: all get a node, start if they are to run, and go if they are
    /// to. In the order of their names in the script.
    async fn pods(&mut self, node: &str, run: bool) -> Result<(), Error> {
        let resource = resource_of("v1", "Pod");
        let mut pods = self.client.list_values(&resource, None, &Default::default()).await?.items;
        pods.sort_by_key(|pod| aliased(&self.aliases, pod["metadata"]["name"].as_str().unwrap_or_default()));
        for pod in pods {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                let options = DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
                self.client.delete_value(&resource, &namespace, &name, &options).await?;
                continue;
            }
            if pod["spec"]["nodeName"].is_null() {
                let binding = json!({
                    "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                    "target": {"kind": "Node", "name": node},
                });
                self.client.create_value(&resource, &namespace, Some((&name, "binding")), &binding).await?;
            }
            if run && pod["status"]["phase"] == "Pending" {
                self.addresses += 1;
                let ip = format!("10.42.0.{}", self.addresses);
                let patch = json!({"status": {
                    "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                    "conditions": [{
                        "type": "Ready", "status": "True", "lastTransitionTime": jiff::Timestamp::from_second(self.server.now()).unwrap(),
                    }],
                }});
                let (part, patch_type) = (Some("status"), PatchType::Merge);
                self.client.patch_value(&resource, &namespace, &name, part, patch_type, &patch).await?;
            }
        }
        Ok(())
    }

    /// Plays a script and returns it with what really happened.
    async fn play(&mut self, script: &str) -> String {
        let mut played = String::new();
        let mut lines = script.lines().peekable();
        while let Some(line) = lines.next() {
            played.push_str(line);
            played.push('\n');
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut body = String::new();
            for line in lines.by_ref() {
                played.push_str(line);
                played.push('\n');
                if line == "----" {
                    break;
                }
                body.push_str(line);
                body.push('\n');
            }
            while lines.next_if(|line| !line.is_empty()).is_some() {}
            if let Err(error) = self.command(line, &body).await {
                writeln!(played, "refused: {error}").unwrap();
            }
            self.settle().await;
            let log = std::mem::take(&mut *self.log.lock().unwrap());
            played.push_str(&told(log, &mut self.aliases));
        }
        played
    }
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error} in\n{text}"))
}

fn authority() -> SigningAuthority {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    SigningAuthority {
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
        longest: Duration::from_secs(365 * 24 * 3600),
    }
}

/// What somebody would ask a certificate with.
fn request(name: &str, group: &str, addresses: &[&str]) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let addresses: Vec<String> = addresses.iter().map(|address| (*address).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(addresses).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if !group.is_empty() {
        params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
    }
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    BASE64.encode(params.serialize_request(&key).unwrap().pem().unwrap())
}

/// The scripts' paths, in the order of their names.
fn scripts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/simulation/scripts");
    let mut scripts: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    scripts
}

#[test]
fn every_controller_has_a_script() {
    let text: String = scripts().iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let acts = |name: &&str| {
        let who = table::service_account(name).unwrap_or("kube-controller-manager");
        text.lines().any(|line| line.strip_prefix(who).is_some_and(|rest| rest.starts_with(' ')))
    };
    let absent: Vec<_> = table::names().filter(|name| !acts(name)).collect();
    // One acts after a year without use, which is too long for a script; the others' kinds are off by default.
    assert_eq!(
        absent,
        [
            "legacy-serviceaccount-token-cleaner-controller",
            "storage-version-migrator-controller",
            "podgroup-protection-controller"
        ]
    );
}

#[test]
fn scripts_play_as_they_are_written() {
    for path in scripts() {
        let script = std::fs::read_to_string(&path).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let played = runtime.unwrap().block_on(async {
            let mut stage = Stage::start().await;
            let played = stage.play(&script).await;
            stage.shutdown.cancel();
            stage.server.shutdown.cancel();
            played
        });
        expect_test::expect_file![path].assert_eq(&played);
    }
}
