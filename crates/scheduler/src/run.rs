//! The scheduler at work: events in, decisions out.
//!
//! One loop owns the queue and the cluster. Informers tell it only which key changed; it reads the newest state
//! itself, so that it never works through events that are history. Bindings and status writes run in the
//! background, so many at most, and report back to the loop.

use std::sync::Arc;

use api::Object;
use api::apps::v1::{ReplicaSet, StatefulSet};
use api::core::v1::{Namespace, Node, Pod, ReplicationController, Service};
use api::policy::v1::PodDisruptionBudget;
use apimachinery::selector::LabelSelector;
use client::{Client, DeleteOptions, PatchType, Resource};
use controller_runtime::{Clock, EventRecorder, Informer, InformerFactory, LeaderElector, WorkQueue};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Change, Cluster, is_waiting, node_differs};
use crate::cycle::{Scheduler, Unschedulable};
use crate::plugins::DEFAULT;
use crate::preemption::{self, Candidate};
use crate::queue::Queue;
use crate::{PodInfo, pod};

/// How many bindings and other writes may be under way.
const MAX_WRITES: usize = 128;

pub struct Config {
    pub scheduler_name: String,
    pub clock: Clock,
    /// Seeds the choice among equally good nodes.
    pub seed: u64,
    /// Who this is among several schedulers, of which only one works; `None` when there is only this one.
    pub identity: Option<String>,
}

/// Schedules until the shutdown.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), client::Error> {
    let Some(identity) = config.identity.clone() else {
        Loop::start(config, client, shutdown).await;
        return Ok(());
    };
    let elector =
        LeaderElector::new(client.clone(), "kube-system", "kube-scheduler", &identity, config.clock.clone());
    elector.run(&shutdown, |leading| Loop::start(config, client, leading)).await;
    Ok(())
}

/// What may have changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Pod(String),
    Node(String),
    Namespace(String),
    /// The Services and controllers of a namespace, whose selectors say which pods belong together.
    Groups(String),
    Budgets,
}

/// How a write of the background ended.
enum Written {
    Bound { pod: Arc<PodInfo>, node: String, outcome: Result<(), client::Error> },
    Reported,
}

struct Informers {
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    namespaces: Informer<Namespace>,
    services: Informer<Service>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    replication_controllers: Informer<ReplicationController>,
    budgets: Informer<PodDisruptionBudget>,
}

/// The index of pods by the node that they are on.
const BY_NODE: &str = "node";

struct Loop {
    scheduler_name: String,
    clock: Clock,
    client: Client,
    events: EventRecorder,
    informers: Informers,
    keys: WorkQueue<Key>,
    cluster: Cluster,
    queue: Queue,
    scheduler: Scheduler,
    writes: JoinSet<Written>,
}

impl Loop {
    async fn start(config: Config, client: Client, shutdown: CancellationToken) {
        let factory = InformerFactory::new(client.clone(), shutdown.clone());
        let keys = WorkQueue::new();
        let informers = Informers::new(&factory, &keys);
        let name = &config.scheduler_name;
        let (events, delivery) = EventRecorder::new(client.clone(), name, "", config.clock.clone());
        factory.start();
        let this = Loop {
            scheduler_name: config.scheduler_name,
            clock: config.clock,
            client,
            events,
            informers,
            keys,
            cluster: Cluster::default(),
            queue: Queue::default(),
            scheduler: Scheduler::new(DEFAULT, config.seed),
            writes: JoinSet::new(),
        };
        let work = async {
            if factory.synced().await {
                this.work(&shutdown).await;
            }
        };
        tokio::join!(work, delivery.run(shutdown.clone()));
        factory.stopped().await;
    }

    async fn work(mut self, shutdown: &CancellationToken) {
        while !shutdown.is_cancelled() {
            while !self.keys.is_empty() {
                match self.keys.next().await {
                    Some(key) => self.observe(&key),
                    None => return,
                }
            }
            while let Some(written) = self.writes.try_join_next() {
                self.written(written);
            }
            let room = self.writes.len() < MAX_WRITES;
            if room && let Some(pod) = self.queue.pop(Instant::now()) {
                self.schedule(pod);
                tokio::task::yield_now().await;
                continue;
            }
            let moment = self.queue.next_moment().filter(|_| room);
            let ring = async {
                match moment {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                key = self.keys.next() => match key {
                    Some(key) => self.observe(&key),
                    None => break,
                },
                Some(written) = self.writes.join_next() => self.written(written),
                () = ring => {}
            }
        }
        // What was decided is carried out.
        while self.writes.join_next().await.is_some() {}
    }

    /// Brings the cluster and the queue up to date about one key.
    fn observe(&mut self, key: &Key) {
        let change = match key {
            Key::Pod(key) => self.observe_pod(key),
            Key::Node(name) => self.observe_node(name),
            Key::Namespace(name) => {
                match self.informers.namespaces.get(name) {
                    Some(namespace) => {
                        let labels = namespace.metadata.labels.clone().unwrap_or_default();
                        self.cluster.namespaces.insert(name.clone(), labels);
                    }
                    None => drop(self.cluster.namespaces.remove(name)),
                }
                Some(Change::Other)
            }
            Key::Groups(namespace) => {
                let selectors = self.informers.selectors(namespace);
                if selectors.is_empty() {
                    self.cluster.groups.remove(namespace);
                } else {
                    self.cluster.groups.insert(namespace.clone(), selectors);
                }
                None
            }
            Key::Budgets => Some(Change::Other),
        };
        if let Some(change) = change {
            self.queue.wake(&change, self.scheduler.plugins(), Instant::now());
        }
        self.keys.done(key);
    }

    fn observe_pod(&mut self, key: &str) -> Option<Change> {
        let Some(pod) = self.informers.pods.get(key) else {
            self.queue.remove(key);
            self.cluster.withdraw(key);
            return self.cluster.remove_pod(key);
        };
        if is_waiting(&pod, &self.scheduler_name) {
            let placed = self.cluster.pod(key).map(|placed| placed.uid() == pod.uid());
            if placed == Some(true) && self.cluster.is_assumed(key) {
                return None;
            }
            let gone = placed.and_then(|_| self.cluster.remove_pod(key));
            let info = Arc::new(PodInfo::new(pod));
            match info.nominated_node() {
                Some(node) => self.cluster.nominate(info.clone(), node),
                None => self.cluster.withdraw(key),
            }
            self.queue.set(info, self.scheduler.plugins());
            return gone;
        }
        self.queue.remove(key);
        self.cluster.withdraw(key);
        let known = self.cluster.pod(key).is_some_and(|known| same_for_scheduling(&known.pod, &pod));
        if known && !self.cluster.is_assumed(key) {
            return None;
        }
        self.cluster.set_pod(Arc::new(PodInfo::new(pod)))
    }

    fn observe_node(&mut self, name: &str) -> Option<Change> {
        let Some(node) = self.informers.nodes.get(name) else {
            self.cluster.remove_node(name);
            return None;
        };
        match self.cluster.set_node(node)? {
            Change::NodeUpdated { old, new } if !node_differs(&old, &new) => None,
            Change::NodeAdded(node) => {
                for pod in self.informers.pods.by_index(BY_NODE, name) {
                    self.cluster.set_pod(Arc::new(PodInfo::new(pod)));
                }
                Some(Change::NodeAdded(node))
            }
            change => Some(change),
        }
    }

    fn schedule(&mut self, pod: Arc<PodInfo>) {
        match self.scheduler.place(&pod, &self.cluster) {
            Ok(node) => {
                self.cluster.withdraw(&pod.key);
                self.cluster.assume(pod.clone(), &node);
                self.writes.spawn(bind(self.client.clone(), pod, node));
            }
            Err(against) => self.refuse(&pod, against),
        }
    }

    /// No node will do: tells so, and makes room if that can be.
    fn refuse(&mut self, pod: &Arc<PodInfo>, mut against: Unschedulable) {
        let mut candidate = None;
        if against.nodes > 0 {
            let budgets = self.informers.budgets.list();
            match preemption::decide(self.scheduler.plugins(), pod, &self.cluster, &against, &budgets) {
                Ok(found) => candidate = Some(found),
                Err(why) => against.preemption = Some(why),
            }
        }
        let message = against.to_string();
        self.events.warning(&*pod.pod, "FailedScheduling", message.as_str());
        let nominated = candidate.as_ref().map(|candidate| candidate.node.clone());
        if let Some(patch) = unscheduled_status(&pod.pod, &message, nominated.as_deref(), &self.clock) {
            self.writes.spawn(report(self.client.clone(), pod.clone(), patch));
        }
        if let Some(candidate) = candidate {
            self.cluster.nominate(pod.clone(), &candidate.node);
            self.preempt(pod, candidate);
        }
        self.queue.refused(&pod.key, against.refused_by, Instant::now());
    }

    fn preempt(&mut self, pod: &PodInfo, candidate: Candidate) {
        for victim in candidate.victims {
            let message = format!("Preempted by pod {} on node {}", pod.uid(), candidate.node);
            self.events.normal(&*victim.pod, "Preempted", message);
            self.writes.spawn(evict(
                self.client.clone(),
                victim,
                self.scheduler_name.clone(),
                self.clock.clone(),
            ));
        }
    }

    fn written(&mut self, written: Result<Written, tokio::task::JoinError>) {
        let Ok(Written::Bound { pod, node, outcome }) = written else { return };
        let Err(error) = outcome else {
            let (namespace, name) = (pod.pod.namespace(), pod.pod.name());
            let message = format!("Successfully assigned {namespace}/{name} to {node}");
            self.events.normal(&*pod.pod, "Scheduled", message);
            return;
        };
        tracing::warn!(pod = pod.key, node, error = &error as &dyn std::error::Error, "cannot bind");
        if let Some(change) = self.cluster.forget(&pod.key) {
            self.queue.wake(&change, self.scheduler.plugins(), Instant::now());
        }
        if error.is_not_found() {
            // The pod is gone, or the informer is about to say where it is.
            self.keys.add(Key::Pod(pod.key.clone()));
        } else {
            self.queue.failed(&pod.key, Instant::now());
        }
    }
}

impl Informers {
    fn new(factory: &InformerFactory, keys: &WorkQueue<Key>) -> Self {
        let informers = Informers {
            pods: factory.informer(),
            nodes: factory.informer(),
            namespaces: factory.informer(),
            services: factory.informer(),
            replica_sets: factory.informer(),
            stateful_sets: factory.informer(),
            replication_controllers: factory.informer(),
            budgets: factory.informer(),
        };
        informers.pods.add_index(BY_NODE, |pod: &Pod| {
            pod.spec
                .iter()
                .filter_map(|spec| spec.node_name.clone())
                .filter(|name| !name.is_empty())
                .collect()
        });
        tell(&informers.pods, keys, |pod| Key::Pod(pod.key()));
        tell(&informers.nodes, keys, |node| Key::Node(node.key()));
        tell(&informers.namespaces, keys, |namespace| Key::Namespace(namespace.key()));
        tell(&informers.services, keys, |object| Key::Groups(object.namespace().to_owned()));
        tell(&informers.replica_sets, keys, |object| Key::Groups(object.namespace().to_owned()));
        tell(&informers.stateful_sets, keys, |object| Key::Groups(object.namespace().to_owned()));
        tell(&informers.replication_controllers, keys, |object| Key::Groups(object.namespace().to_owned()));
        tell(&informers.budgets, keys, |_| Key::Budgets);
        informers
    }

    /// The selectors of what groups pods in a namespace.
    fn selectors(&self, namespace: &str) -> Vec<LabelSelector> {
        let of_map = |map: Option<&pod::Labels>| {
            let map = map.filter(|map| !map.is_empty())?;
            Some(LabelSelector::from_map(map.iter().map(|(k, v)| (k.as_str(), v.as_str()))))
        };
        let services = self.services.by_namespace(namespace);
        let controllers = self.replication_controllers.by_namespace(namespace);
        let replica_sets = self.replica_sets.by_namespace(namespace);
        let stateful_sets = self.stateful_sets.by_namespace(namespace);
        let services = services.iter().filter_map(|s| of_map(s.spec.as_ref()?.selector.as_ref()));
        let controllers = controllers.iter().filter_map(|c| of_map(c.spec.as_ref()?.selector.as_ref()));
        let replica_sets =
            replica_sets.iter().filter_map(|r| Some(pod::selector(Some(&r.spec.as_ref()?.selector))));
        let stateful_sets =
            stateful_sets.iter().filter_map(|s| Some(pod::selector(Some(&s.spec.as_ref()?.selector))));
        services.chain(controllers).chain(replica_sets).chain(stateful_sets).collect()
    }
}

fn tell<T: Object + controller_runtime::Cached>(
    informer: &Informer<T>,
    keys: &WorkQueue<Key>,
    key: fn(&T) -> Key,
) {
    let keys = keys.clone();
    informer.subscribe(move |event| keys.add(key(event.object())));
}

/// Whether a placed pod counts for the same as before: most of its updates are of its status.
fn same_for_scheduling(old: &Pod, new: &Pod) -> bool {
    let terminal = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    let of = |pod: &Pod| (pod.metadata.generation, pod.metadata.deletion_timestamp.is_some(), terminal(pod));
    old.uid() == new.uid() && of(old) == of(new) && old.metadata.labels == new.metadata.labels
}

async fn bind(client: Client, pod: Arc<PodInfo>, node: String) -> Written {
    let (namespace, name) = (pod.pod.namespace(), pod.pod.name());
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"namespace": namespace, "name": name, "uid": pod.uid()},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let outcome =
        client.create_value(&Resource::of::<Pod>(), namespace, Some((name, "binding")), &binding).await;
    Written::Bound { outcome: outcome.map(drop), pod, node }
}

/// The patch that makes the pod's status say why it waits; `None` when it says so already.
fn unscheduled_status(pod: &Pod, message: &str, nominated: Option<&str>, clock: &Clock) -> Option<Value> {
    let status = pod.status.as_ref();
    let known =
        status.and_then(|s| s.conditions.as_ref()).into_iter().flatten().find(|c| c.type_ == "PodScheduled");
    let same_message = known.is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(message));
    let same_node = nominated.is_none() || status.and_then(|s| s.nominated_node_name.as_deref()) == nominated;
    if same_message && same_node {
        return None;
    }
    let since = known.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
    let mut patch = json!({"status": {"conditions": [{
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "observedGeneration": pod.metadata.generation,
        "lastTransitionTime": since.unwrap_or_else(|| clock.time()),
    }]}});
    if let Some(node) = nominated {
        patch["status"]["nominatedNodeName"] = node.into();
    }
    Some(patch)
}

async fn report(client: Client, pod: Arc<PodInfo>, patch: Value) -> Written {
    let patched = patch_status(&client, &pod, &patch).await;
    if let Some(error) = failure(patched) {
        tracing::warn!(
            pod = pod.key,
            error = &error as &dyn std::error::Error,
            "cannot report that a pod waits"
        );
    }
    Written::Reported
}

/// Tells a victim why, then deletes it.
async fn evict(client: Client, victim: Arc<PodInfo>, scheduler_name: String, clock: Clock) -> Written {
    let patch = json!({"status": {"conditions": [{
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": format!("{scheduler_name}: preempting to accommodate a higher priority pod"),
        "lastTransitionTime": clock.time(),
    }]}});
    let mut outcome = patch_status(&client, &victim, &patch).await;
    if outcome.is_ok() {
        let (namespace, name) = (victim.pod.namespace(), victim.pod.name());
        outcome = client.delete::<Pod>(namespace, name, &DeleteOptions::uid(victim.uid())).await;
    }
    if let Some(error) = failure(outcome) {
        tracing::warn!(pod = victim.key, error = &error as &dyn std::error::Error, "cannot preempt");
    }
    Written::Reported
}

async fn patch_status(client: &Client, pod: &PodInfo, patch: &Value) -> Result<(), client::Error> {
    let (namespace, name) = (pod.pod.namespace(), pod.pod.name());
    let resource = Resource::of::<Pod>();
    client
        .patch_value(&resource, namespace, name, Some("status"), PatchType::Strategic, patch)
        .await
        .map(drop)
}

/// What went wrong; a pod that is gone needs nothing more.
fn failure(outcome: Result<(), client::Error>) -> Option<client::Error> {
    outcome.err().filter(|error| !error.is_not_found())
}
