//! Nodes whose kubelets only pretend to run containers. A node may be lost for a while, during which its containers
//! run on and nobody hears of them, or die for good.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::Object;
use api::coordination::v1::Lease;
use api::core::v1::{Node, Pod};
use client::{Client, DeleteOptions, PatchType};
use controller_runtime::{Clock, Filter, Informer, InformerFactory, WorkQueue};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::watchdog::Reality;

pub const NODES: usize = 4;
/// Upstream: pkg/kubelet/apis/config/v1beta1/defaults.go, a quarter of NodeLeaseDurationSeconds
pub const BEAT: Duration = Duration::from_secs(10);

/// What becomes of a pod, decided when it is first seen.
struct Fate {
    starts: Instant,
    /// For pods that end by themselves: when, and whether well.
    ends: Option<(Instant, bool)>,
    stops: Option<Instant>,
    told_running: bool,
}

struct Kubelet {
    node: String,
    client: Client,
    clock: Clock,
    pods: Informer<Pod>,
    queue: WorkQueue<String>,
    reality: Arc<Mutex<Reality>>,
    random: StdRng,
    fates: BTreeMap<String, Fate>,
}

fn is_job(pod: &Pod) -> bool {
    pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key("batch.kubernetes.io/job-name"))
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Renews a node's lease.
pub async fn beat_once(client: &Client, clock: &Clock, node: &str) {
    let now = clock.now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let spec = json!({"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": now});
    let patch = json!({"spec": spec});
    let renewed: Result<Lease, _> =
        client.patch("kube-node-lease", node, None, PatchType::Merge, &patch).await;
    if renewed.is_err_and(|error| error.is_not_found()) {
        let lease = json!({"metadata": {"namespace": "kube-node-lease", "name": node}, "spec": spec});
        // The node itself may be gone: then its lease goes with it, and comes with the next beat.
        drop(client.create(&Lease::from_value(lease).unwrap()).await);
    }
}

impl Kubelet {
    async fn run(mut self, stop: CancellationToken) {
        self.register().await;
        let mut beat = tokio::time::interval(BEAT);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = beat.tick() => beat_once(&self.client, &self.clock, &self.node).await,
                Some(key) = self.queue.next() => {
                    self.look(&key).await;
                    self.queue.done(&key);
                }
            }
        }
    }

    fn status(&self) -> Value {
        let room = json!({"cpu": "4", "memory": "8Gi", "pods": "20"});
        let now = self.clock.now().to_string();
        let ready = json!({
            "type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        });
        json!({"capacity": room, "allocatable": room, "conditions": [ready]})
    }

    async fn register(&self) {
        let labels = json!({"kubernetes.io/hostname": self.node, "kubernetes.io/os": "linux"});
        let node = json!({"metadata": {"name": self.node, "labels": labels}, "status": self.status()});
        let created = self.client.create(&Node::from_value(node).unwrap()).await;
        if let Err(error) = created {
            assert!(error.is_already_exists(), "{error}");
            let patch = json!({"status": self.status()});
            self.client
                .patch::<Node>("", &self.node, Some("status"), PatchType::Strategic, &patch)
                .await
                .unwrap();
        }
    }

    fn reality(&self) -> std::sync::MutexGuard<'_, Reality> {
        self.reality.lock().unwrap()
    }

    fn later(&mut self, most_millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(self.random.random_range(0..=most_millis))
    }

    fn wait(&self, key: &str, until: Instant) {
        self.queue.add_after(key.to_owned(), until - Instant::now() + Duration::from_millis(1));
    }

    async fn look(&mut self, key: &str) {
        let pod = self.pods.get(key);
        self.reality().keep_only(&self.node, key, pod.as_ref().map(|pod| pod.uid()));
        let Some(pod) = pod else { return };
        let uid = pod.uid().to_owned();
        if !self.fates.contains_key(&uid) {
            let starts = self.later(3000);
            let ends = is_job(&pod).then(|| (self.later(60_000), self.random.random_bool(0.85)));
            self.fates.insert(uid.clone(), Fate { starts, ends, stops: None, told_running: false });
        }
        let now = Instant::now();
        if pod.metadata.deletion_timestamp.is_some() {
            return self.stop(key, &pod).await;
        }
        if matches!(phase(&pod), "Succeeded" | "Failed") || self.reality().is_killed(&uid) {
            self.reality().keep_only(&self.node, key, None);
            return;
        }
        let fate = &self.fates[&uid];
        let (starts, ends, told) = (fate.starts, fate.ends, fate.told_running);
        if now < starts {
            return self.wait(key, starts);
        }
        self.reality().start(&self.node, &pod);
        if let Some((at, well)) = ends {
            if now >= at {
                self.reality().end(&self.node, &pod, well);
                let phase = if well { "Succeeded" } else { "Failed" };
                self.tell(key, &pod, json!({"phase": phase, "conditions": ready("False", &self.clock)}))
                    .await;
                return;
            }
            self.wait(key, at);
        }
        let says_ready = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let says_ready = says_ready.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
        if !told || !says_ready {
            let status = json!({
                "phase": "Running", "podIP": "10.42.0.9", "podIPs": [{"ip": "10.42.0.9"}],
                "conditions": ready("True", &self.clock),
            });
            self.tell(key, &pod, status).await;
        }
    }

    async fn stop(&mut self, key: &str, pod: &Pod) {
        let stops = match self.fates.get(pod.uid()).and_then(|fate| fate.stops) {
            Some(stops) => stops,
            None => {
                let stops = self.later(5000);
                self.fates.get_mut(pod.uid()).expect("a pod that was seen has a fate").stops = Some(stops);
                stops
            }
        };
        if Instant::now() < stops {
            return self.wait(key, stops);
        }
        self.reality().keep_only(&self.node, key, None);
        if !matches!(phase(pod), "Succeeded" | "Failed") {
            // The answer comes back as a change, and the pod is looked at again.
            return self
                .tell(key, pod, json!({"phase": "Failed", "conditions": ready("False", &self.clock)}))
                .await;
        }
        let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::uid(pod.uid()) };
        drop(self.client.delete::<Pod>(pod.namespace(), pod.name(), &options).await);
        self.fates.remove(pod.uid());
    }

    async fn tell(&mut self, key: &str, pod: &Pod, status: Value) {
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
        let told: Result<Pod, _> = self
            .client
            .patch(pod.namespace(), pod.name(), Some("status"), PatchType::Strategic, &patch)
            .await;
        match told {
            Ok(_) => {
                if let Some(fate) = self.fates.get_mut(pod.uid()) {
                    fate.told_running = true;
                }
            }
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(_) => self.wait(key, Instant::now() + Duration::from_secs(1)),
        }
    }
}

fn ready(status: &str, clock: &Clock) -> Value {
    let now = clock.now().to_string();
    let condition = |kind: &str| json!({"type": kind, "status": status, "lastTransitionTime": now});
    json!([condition("Ready"), condition("ContainersReady")])
}

/// How a node is.
enum State {
    Up(CancellationToken),
    /// Its containers run; nobody hears of it.
    Lost,
    /// Nothing runs on it any more.
    Dead,
}

pub struct Kubelets {
    client: Client,
    clock: Clock,
    reality: Arc<Mutex<Reality>>,
    random: StdRng,
    nodes: BTreeMap<String, State>,
}

impl Kubelets {
    pub async fn start(cluster: &Cluster, reality: Arc<Mutex<Reality>>, seed: u64) -> Self {
        let mut kubelets = Kubelets {
            client: cluster.client("kubelet"),
            clock: cluster.clock(),
            reality,
            random: StdRng::seed_from_u64(seed),
            nodes: BTreeMap::new(),
        };
        for number in 0..NODES {
            kubelets.boot(&format!("n{number}"));
        }
        kubelets
    }

    fn boot(&mut self, name: &str) {
        self.reality.lock().unwrap().lose(name, false);
        let stop = CancellationToken::new();
        let informers = InformerFactory::new(self.client.clone(), stop.clone());
        let pods = informers.filtered::<Pod>(Filter::fields(format!("spec.nodeName={name}")));
        let queue = WorkQueue::new();
        let keys = queue.clone();
        pods.subscribe(move |event| keys.add(event.object().key()));
        // What ran before and is gone by now is stopped.
        self.reality.lock().unwrap().keys(name).into_iter().for_each(|key| queue.add_after(key, BEAT));
        informers.start();
        let kubelet = Kubelet {
            node: name.to_owned(),
            client: self.client.clone(),
            clock: self.clock.clone(),
            pods,
            queue,
            reality: self.reality.clone(),
            random: StdRng::seed_from_u64(self.random.random()),
            fates: BTreeMap::new(),
        };
        tokio::spawn(kubelet.run(stop.clone()));
        self.nodes.insert(name.to_owned(), State::Up(stop));
    }

    /// Something happens to a node.
    pub async fn step(&mut self) {
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        let name = names[self.random.random_range(0..names.len())].clone();
        let dice = self.random.random_range(0..4);
        match (self.nodes.get(&name), dice) {
            (Some(State::Up(stop)), 0) => {
                stop.cancel();
                self.reality.lock().unwrap().lose(&name, true);
                self.nodes.insert(name, State::Lost);
            }
            (Some(State::Up(stop)), 1) => {
                stop.cancel();
                self.reality.lock().unwrap().die(&name);
                self.nodes.insert(name, State::Dead);
            }
            (Some(State::Up(_)), _) | (None, _) => {}
            // Somebody who knows that a machine is dead says so.
            (Some(State::Dead), 2) => drop(self.client.delete::<Node>("", &name, &Default::default()).await),
            (Some(State::Lost | State::Dead), _) => self.boot(&name),
        }
    }

    /// All nodes are well, and stay so.
    pub async fn recover(&mut self) {
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in names {
            if !matches!(self.nodes[&name], State::Up(_)) {
                self.boot(&name);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            let patch = json!({"spec": {"unschedulable": null}});
            self.client.patch::<Node>("", &name, None, PatchType::Merge, &patch).await.unwrap();
        }
    }

    pub fn stop(&self) {
        for state in self.nodes.values() {
            if let State::Up(stop) = state {
                stop.cancel();
            }
        }
    }
}
