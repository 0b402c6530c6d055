//! All controllers against the real API server over memory storage, with what happens chosen by a seed: whatever the
//! order, everything comes to rest as it was asked for, and nothing is left over.
//!
//! `SIM_SEED` runs one seed, `SIM_COUNT` so many from it on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use api::core::v1::{Namespace, Node, Pod};
use apiserver::ApiServer;
use apiserver::seams::UserInfo;
use client::{Client, DeleteOptions, ListOptions, PatchType, Propagation, Resource};
use controller_runtime::{Clock, InformerFactory};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::objects::{controller_of, is_deleting, is_ready, is_terminal, node_name};

const NAMESPACE: &str = "sim";
const STEPS: usize = 40;
/// What has not come to rest by then never will.
const ROUNDS: usize = 400;

struct World {
    random: StdRng,
    server: Arc<ApiServer>,
    client: Client,
    /// What each workload was last asked to have; `None` once it was deleted.
    wanted: BTreeMap<String, Option<i32>>,
}

fn workload(kind: &str, name: &str, replicas: i32) -> Value {
    let mut spec = json!({
        "replicas": replicas, "selector": {"matchLabels": {"app": name}},
        "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "one"}]},
        },
    });
    if kind == "StatefulSet" {
        spec["serviceName"] = json!("none");
    }
    json!({"metadata": {"namespace": NAMESPACE, "name": name}, "spec": spec})
}

impl World {
    async fn begin(seed: u64, shutdown: CancellationToken) -> Self {
        let began = tokio::time::Instant::now();
        let epoch: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let now = move || epoch + jiff::SignedDuration::try_from(began.elapsed()).unwrap();
        let config = apiserver::Config { clock: Arc::new(now), ..apiserver::testing::config() };
        let server = apiserver::testing::server_with(Arc::new(storage::memory::Memory::new()), config).await;
        let user =
            UserInfo { name: "sim".into(), groups: vec!["system:masters".into()], ..Default::default() };
        let client = Client::new(server.in_process(user), "sim");
        let config = Config::plain(Clock::new(now));
        let informers = InformerFactory::new(client.clone(), shutdown.clone());
        server.tasks.spawn(crate::run(config, informers, shutdown));
        let world = World { random: StdRng::seed_from_u64(seed), server, client, wanted: BTreeMap::new() };
        let namespace = Namespace::from_value(json!({"metadata": {"name": NAMESPACE}})).unwrap();
        world.client.create(&namespace).await.unwrap();
        world
    }

    async fn list<T: Object>(&self) -> Vec<T> {
        self.client.list::<T>(Some(NAMESPACE), &ListOptions::default()).await.unwrap().items
    }

    /// One thing that people or machines do.
    async fn step(&mut self) {
        let stateful = self.random.random_bool(0.3);
        let name = format!("{}{}", if stateful { "s" } else { "d" }, self.random.random_range(0..3));
        let replicas = self.random.random_range(0..6);
        match self.random.random_range(0..10) {
            0..=3 => match self.wanted.get(&name) {
                Some(Some(_)) => self.patch(&name, stateful, json!({"spec": {"replicas": replicas}})).await,
                _ => self.create(&name, stateful, replicas).await,
            },
            4 => {
                let image = format!("image-{}", self.random.random_range(0..4));
                let containers = json!([{"name": "c", "image": image}]);
                self.patch(
                    &name,
                    stateful,
                    json!({"spec": {"template": {"spec": {"containers": containers}}}}),
                )
                .await;
            }
            5 => self.delete(&name, stateful).await,
            6 | 7 => self.hurt(true).await,
            _ => self.hurt(false).await,
        }
    }

    async fn create(&mut self, name: &str, stateful: bool, replicas: i32) {
        let kind = if stateful { "StatefulSet" } else { "Deployment" };
        let object = workload(kind, name, replicas);
        let created = match stateful {
            true => self.client.create(&StatefulSet::from_value(object).unwrap()).await.map(drop),
            false => self.client.create(&Deployment::from_value(object).unwrap()).await.map(drop),
        };
        // One of the name may still be going.
        if created.is_ok() {
            self.wanted.insert(name.to_owned(), Some(replicas));
        }
    }

    async fn patch(&mut self, name: &str, stateful: bool, patch: Value) {
        let client = &self.client;
        let patched = match stateful {
            true => {
                client.patch::<StatefulSet>(NAMESPACE, name, None, PatchType::Merge, &patch).await.map(drop)
            }
            false => {
                client.patch::<Deployment>(NAMESPACE, name, None, PatchType::Merge, &patch).await.map(drop)
            }
        };
        let replicas = patch["spec"]["replicas"].as_i64().and_then(|number| i32::try_from(number).ok());
        if let (Ok(()), Some(replicas), Some(Some(wanted))) = (patched, replicas, self.wanted.get_mut(name)) {
            *wanted = replicas;
        }
    }

    async fn delete(&mut self, name: &str, stateful: bool) {
        let how = [Propagation::Background, Propagation::Foreground][self.random.random_range(0..2)];
        let options = DeleteOptions { propagation_policy: Some(how), ..Default::default() };
        let deleted = match stateful {
            true => self.client.delete::<StatefulSet>(NAMESPACE, name, &options).await,
            false => self.client.delete::<Deployment>(NAMESPACE, name, &options).await,
        };
        if deleted.is_ok() {
            self.wanted.insert(name.to_owned(), None);
        }
    }

    /// A pod is deleted, or fails.
    async fn hurt(&mut self, delete: bool) {
        let pods: Vec<Pod> = self.list().await;
        if pods.is_empty() {
            return;
        }
        let pod = &pods[self.random.random_range(0..pods.len())];
        // It may be gone by now, which is fine.
        if delete {
            drop(self.client.delete::<Pod>(NAMESPACE, pod.name(), &DeleteOptions::default()).await);
        } else {
            let patch = json!({"status": {"phase": "Failed"}});
            let patched =
                self.client.patch::<Pod>(NAMESPACE, pod.name(), Some("status"), PatchType::Merge, &patch);
            drop(patched.await);
        }
    }

    /// What the scheduler and the kubelets do, for each pod or not yet.
    async fn play(&mut self, lazily: bool) {
        for pod in self.list::<Pod>().await {
            if lazily && self.random.random_bool(0.5) {
                continue;
            }
            let name = pod.name();
            if is_deleting(&pod) {
                let options =
                    DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::uid(pod.uid()) };
                drop(self.client.delete::<Pod>(NAMESPACE, name, &options).await);
            } else if node_name(&pod).is_empty() {
                let binding = json!({
                    "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "uid": pod.uid()},
                    "target": {"kind": "Node", "name": "n1"},
                });
                let pods = Resource::of::<Pod>();
                drop(self.client.create_value(&pods, NAMESPACE, Some((name, "binding")), &binding).await);
            } else if !is_ready(&pod) && !is_terminal(&pod) {
                let patch = json!({"metadata": {"uid": pod.uid()}, "status": {
                    "phase": "Running", "podIP": "10.42.0.9", "podIPs": [{"ip": "10.42.0.9"}],
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                }});
                let running =
                    self.client.patch::<Pod>(NAMESPACE, name, Some("status"), PatchType::Merge, &patch);
                drop(running.await);
            }
        }
    }

    /// A node that beats, so that its pods are let live.
    async fn beat(&self) {
        let now = jiff::Timestamp::from_second(self.server.now()).unwrap().to_string();
        let conditions = json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": now}]);
        let node = json!({"metadata": {"name": "n1"}, "status": {"conditions": conditions}});
        match self.client.create(&Node::from_value(node.clone()).unwrap()).await {
            Err(error) if error.is_already_exists() => {
                let patch = json!({"status": node["status"]});
                let beaten = self.client.patch::<Node>("", "n1", Some("status"), PatchType::Merge, &patch);
                beaten.await.unwrap();
            }
            created => drop(created.unwrap()),
        }
    }

    /// Until a minute passes in which nothing but the node's heart moves.
    async fn rest(&mut self) -> bool {
        let mut quiet = 0;
        for _ in 0..ROUNDS {
            self.beat().await;
            let before = self.server.registry.progress();
            self.play(false).await;
            tokio::time::sleep(Duration::from_secs(20)).await;
            quiet = if self.server.registry.progress() == before { quiet + 1 } else { 0 };
            if quiet == 3 {
                return true;
            }
        }
        false
    }

    async fn check(&self, seed: u64) {
        let pods: Vec<Pod> = self.list().await;
        let sets: Vec<ReplicaSet> = self.list().await;
        let mut owners: BTreeSet<String> = sets.iter().map(|set| set.uid().to_owned()).collect();
        owners.extend(self.list::<StatefulSet>().await.iter().map(|set| set.uid().to_owned()));
        owners.extend(self.list::<Deployment>().await.iter().map(|set| set.uid().to_owned()));
        for metadata in pods.iter().map(|pod| &pod.metadata).chain(sets.iter().map(|set| &set.metadata)) {
            let references = metadata.owner_references.iter().flatten();
            let controllers = references.filter(|owner| owner.controller == Some(true)).count();
            assert!(controllers <= 1, "seed {seed}: {:?} has two owners", metadata.name);
            let owner = controller_of(metadata).map(|owner| &owner.uid);
            let alive = owner.is_some_and(|uid| owners.contains(uid));
            assert!(alive, "seed {seed}: {:?} is left over", metadata.name);
        }
        for (name, wanted) in &self.wanted {
            let of_name = |pod: &&Pod| crate::objects::label(*pod, "app") == Some(name);
            let alive: Vec<_> =
                pods.iter().filter(of_name).filter(|pod| !is_terminal(pod) && !is_deleting(*pod)).collect();
            let expected = usize::try_from(wanted.unwrap_or(0)).unwrap();
            assert_eq!(alive.len(), expected, "seed {seed}: {name} wants {wanted:?}");
            assert!(alive.iter().all(|pod| is_ready(pod)), "seed {seed}: {name} is not ready");
        }
    }
}

async fn run(seed: u64) {
    let shutdown = CancellationToken::new();
    let mut world = World::begin(seed, shutdown.clone()).await;
    for _ in 0..STEPS {
        world.beat().await;
        world.step().await;
        let millis = world.random.random_range(0..4000);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        world.play(true).await;
    }
    assert!(world.rest().await, "seed {seed}: there is no rest");
    world.check(seed).await;
    shutdown.cancel();
    world.server.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_all_comes_to_rest() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("SIM_SEED").unwrap_or(1);
    for seed in first..first + number("SIM_COUNT").unwrap_or(2) {
        run(seed).await;
    }
}
