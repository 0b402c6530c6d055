//! The scheduler at work: events in, decisions out.
//!
//! One loop owns the queue and the cluster. Informers tell it only which key changed; it reads the newest state
//! itself, so that it never works through events that are history. Bindings and status writes run in the
//! background, so many at most, and report back to the loop.

mod binding;
mod group;
mod placements;
mod preempting;

use std::collections::HashMap;
use std::sync::Arc;

use api::Object;
use api::core::v1::Pod;
use client::Client;
use controller_runtime::{
    Clock, Deed, EventType, InformerFactory, LeaderElector, SeriesRecorder, WorkQueue, reference,
};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::PodInfo;
use crate::budgets::Budgets;
use crate::cluster::{Change, Cluster, is_terminal, is_waiting, node_differs};
use crate::configuration::Configuration;
use crate::cycle::{Scheduler, Unschedulable};
use crate::extender::Extender;
use crate::informers::{BY_NODE, Informers, Key};
use crate::metrics::{Metrics, Outcome};
use crate::plugins::Point;
use crate::preemption::Hopeless;
use crate::profile::Profile;
use crate::queue::{Backoff, Queue};
use crate::resources;
use crate::writes::{Nomination, Written, report, unscheduled_status};

use self::binding::Pending;
use self::preempting::Evictions;

/// How many bindings and other writes may be under way.
const MAX_WRITES: usize = 128;

pub struct Config {
    pub configuration: Configuration,
    pub clock: Clock,
    /// Seeds the choice among equally good nodes.
    pub seed: u64,
    /// What is counted, for whoever asks.
    pub metrics: Metrics,
    /// The name of the machine, for events.
    pub host: String,
    /// Who this is among several schedulers, of which only one works; `None` when there is only this one.
    pub identity: Option<String>,
}

/// Schedules as this client until the shutdown, by caches that others of the process may read too.
pub async fn run(
    config: Config,
    client: Client,
    informers: InformerFactory,
    shutdown: CancellationToken,
) -> Result<(), client::Error> {
    let informers = informers.acting_as(client.clone());
    let Some(identity) = config.identity.clone() else {
        Loop::start(config, client, informers, shutdown).await;
        return Ok(());
    };
    let elector =
        LeaderElector::new(client.clone(), "kube-system", "kube-scheduler", &identity, config.clock.clone());
    elector.run(&shutdown, |leading| Loop::start(config, client, informers, leading)).await;
    Ok(())
}

struct Loop {
    /// By the name that pods give.
    profiles: HashMap<String, Arc<Profile>>,
    extenders: Arc<[Extender]>,
    clock: Clock,
    client: Client,
    events: HashMap<String, SeriesRecorder>,
    informers: Informers,
    keys: WorkQueue<Key>,
    cluster: Cluster,
    /// `None` when they have to be read again.
    budgets: Option<Budgets>,
    queue: Queue,
    scheduler: Scheduler,
    pending: HashMap<String, Pending>,
    writes: JoinSet<Written>,
    metrics: Metrics,
    /// The attempts that have not ended: their pods are not bound yet.
    attempts: HashMap<String, Attempt>,
    /// Groups may name a topology.
    topologies: bool,
    /// The evictions under way, by the uid of the pod that they make room for.
    preempting: HashMap<String, Evictions>,
    /// The pods that were refused last time, with the profile's name and the plugins that did.
    refusals: HashMap<String, (String, Vec<&'static str>)>,
}

struct Attempt {
    begun: Instant,
    /// How many it is of the pod's.
    number: u32,
    /// Since when the pod waits.
    since: Instant,
    /// Nothing but the pod's long sleep had it tried.
    overslept: bool,
}

impl Loop {
    async fn start(config: Config, client: Client, factory: InformerFactory, shutdown: CancellationToken) {
        let keys = WorkQueue::new();
        let Configuration { gates, profiles, extenders, initial_backoff, max_backoff } = config.configuration;
        let informers = Informers::new(&factory, &keys, gates);
        let mut events = HashMap::new();
        let mut deliveries = Vec::new();
        for profile in &profiles {
            let name = &profile.scheduler_name;
            let (recorder, delivery) =
                SeriesRecorder::new(client.clone(), name, &config.host, config.clock.clone());
            events.insert(name.clone(), recorder);
            deliveries.push(delivery.run(shutdown.clone()));
        }
        factory.start();
        let this = Loop {
            profiles: profiles.into_iter().map(|p| (p.scheduler_name.clone(), p)).collect(),
            extenders,
            clock: config.clock,
            client,
            events,
            informers,
            keys,
            cluster: Cluster::default(),
            budgets: None,
            queue: Queue::new(Backoff { initial: initial_backoff, max: max_backoff }),
            scheduler: Scheduler::new(config.seed),
            pending: HashMap::new(),
            writes: JoinSet::new(),
            metrics: config.metrics,
            attempts: HashMap::new(),
            topologies: gates.topologies,
            preempting: HashMap::new(),
            refusals: HashMap::new(),
        };
        let work = async {
            if factory.synced().await {
                this.work(&shutdown).await;
            }
        };
        tokio::join!(work, futures::future::join_all(deliveries));
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
            self.metrics.waiting(self.queue.depth());
            let (nodes, pods, assumed) = self.cluster.size();
            self.metrics.known(nodes, pods, assumed);
            self.metrics.under_way(self.writes.len());
            let room = self.writes.len() < MAX_WRITES;
            if room && let Some(pod) = self.queue.pop(Instant::now()) {
                self.schedule(pod).await;
                tokio::task::yield_now().await;
                continue;
            }
            let moment = self.queue.next_moment().filter(|_| room);
            let deadline = self.pending.values().filter_map(Pending::deadline).min();
            let moment = moment.into_iter().chain(deadline).min();
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
                () = ring => self.advance(),
            }
        }
        // What was decided is carried out.
        while self.writes.join_next().await.is_some() {}
    }

    /// Brings the cluster and the queue up to date about one key.
    fn observe(&mut self, key: &Key) {
        let begun = Instant::now();
        let change = match key {
            Key::Pod(key) => self.observe_pod(key),
            Key::Node(name) => self.observe_node(name),
            Key::Namespace(name) => {
                let namespace = self.informers.namespaces.get(name);
                let labels = namespace.map(|n| n.metadata.labels.clone().unwrap_or_default());
                self.cluster.set_namespace(name, labels);
                Some(Change::Other)
            }
            Key::Service(key) => {
                self.informers.observe_service(key, &mut self.cluster);
                None
            }
            Key::Owner(owner, key) => {
                self.informers.observe_owner(*owner, key, &mut self.cluster);
                None
            }
            Key::Budgets => {
                self.budgets = None;
                Some(Change::Other)
            }
            Key::Group(key) => {
                let group = self.informers.pod_groups.as_ref().and_then(|groups| groups.get(key));
                self.cluster.pod_groups.set(key, group);
                self.look_at_group(key);
                Some(Change::Group(key.clone()))
            }
            Key::Claim(key) => Some(self.informers.observe_claim(key, &mut self.cluster)),
            Key::Device(kind, key) => Some(self.informers.observe_device(*kind, key, &mut self.cluster)),
            Key::Storage(kind, key) => Some(self.informers.observe_storage(*kind, key, &mut self.cluster)),
        };
        if let Some(change) = change {
            if matches!(change, Change::Claim { .. } | Change::Volumes | Change::Devices)
                || self.pending.values().any(Pending::waits_for_permit)
            {
                self.advance();
            }
            self.wake(&change);
            self.metrics.handled(change.kind().event(), begun.elapsed());
        }
        self.keys.done(key);
    }

    fn wake(&mut self, change: &Change) {
        let (profiles, kind) = (&self.profiles, change.kind());
        let (preempting, cluster) = (&self.preempting, &self.cluster);
        let concerned = |plugin: &str| profiles.values().any(|profile| profile.is_concerned(plugin, kind));
        let may_help = |pod: &PodInfo, refused_by: &[&str]| {
            if preempting.get(pod.uid()).is_some_and(|evictions| evictions.hold_back(cluster)) {
                return false;
            }
            let profile = profiles.get(pod.scheduler_name());
            profile.is_some_and(|profile| profile.may_help(refused_by, pod, change))
        };
        let (ready, backing_off) = self.queue.wake(concerned, may_help, Instant::now());
        self.metrics.incoming("active", kind.event(), ready);
        self.metrics.incoming("backoff", kind.event(), backing_off);
    }

    fn observe_pod(&mut self, key: &str) -> Option<Change> {
        let Some(pod) = self.informers.pods.get(key) else {
            self.forgive(key);
            let waited = self.stop_waiting(key);
            let withdrawn = self.cluster.withdraw(key);
            self.abandon(key);
            let gone = self.cluster.remove_pod(key);
            // Its room was kept, too, while it only waited for it.
            return gone.or(waited.filter(|_| withdrawn).map(Change::PodGone));
        };
        if is_waiting(&pod) {
            return self.observe_waiting(key, pod);
        }
        self.stop_waiting(key);
        self.cluster.withdraw(key);
        if let Some(info) = self.cluster.confirm(key, &pod) {
            return Some(Change::PodPlaced(info));
        }
        let known = self.cluster.pod(key).is_some_and(|known| same_for_scheduling(known, &pod));
        if known && !self.cluster.is_assumed(key) {
            return None;
        }
        self.cluster.set_pod(Arc::new(PodInfo::new(pod)))
    }

    /// The pod waits for a node no more.
    fn stop_waiting(&mut self, key: &str) -> Option<Arc<PodInfo>> {
        let waited = self.queue.get(key).cloned();
        waited.iter().for_each(|pod| self.cluster.pod_groups.leave(pod));
        self.queue.remove(key);
        waited
    }

    /// A pod that has no node.
    fn observe_waiting(&mut self, key: &str, pod: Arc<Pod>) -> Option<Change> {
        let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
        let profile = self.profiles.get(name.unwrap_or("default-scheduler")).cloned()?;
        let placed = self.cluster.pod(key).map(|placed| placed.uid() == pod.uid());
        if placed == Some(true) && self.cluster.is_assumed(key) {
            return None;
        }
        let info = Arc::new(PodInfo::new(pod));
        self.abandon(key);
        let gone = placed.and_then(|_| self.cluster.remove_pod(key));
        match info.nominated_node() {
            Some(node) => self.cluster.nominate(info.clone(), node),
            None => drop(self.cluster.withdraw(key)),
        }
        let begun = Instant::now();
        self.cluster.pod_groups.wait(&info);
        let group = info.group.clone();
        let held_back = profile.is_held_back(&info, &self.cluster);
        let status = if held_back { "UnschedulableAndUnresolvable" } else { "Success" };
        self.metrics.step(Point::PreEnqueue, status, &profile.scheduler_name, begun.elapsed());
        if self.queue.set(info, held_back, Instant::now()) {
            self.metrics.incoming(if held_back { "gated" } else { "active" }, "UnscheduledPodAdd", 1);
            // It may be the last that others of its group waited for.
            if let Some(group) = group {
                self.look_at_group(&group);
                self.wake(&Change::Group(group));
            }
        }
        gone
    }

    fn observe_node(&mut self, name: &str) -> Option<Change> {
        let Some(node) = self.informers.nodes.get(name) else {
            return self.cluster.remove_node(name);
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

    async fn schedule(&mut self, pod: Arc<PodInfo>) {
        if let Some(group) = pod.group.clone().filter(|_| self.informers.pod_groups.is_some()) {
            return self.schedule_group(pod, group).await;
        }
        let Some(profile) = self.profiles.get(pod.scheduler_name()).cloned() else { return };
        self.begin(&pod);
        let node = match self.place(&profile, &pod).await {
            Ok(Ok(node)) => node,
            Ok(Err(against)) => return self.refuse(&profile, &pod, *against).await,
            Err(why) => return self.give_up(&profile, &pod, &why),
        };
        self.cluster.withdraw(&pod.key);
        let begun = Instant::now();
        let reserved = profile.reserve(&pod, &node, &mut self.cluster);
        let status = if reserved.is_ok() { "Success" } else { "Error" };
        self.metrics.step(Point::Reserve, status, &profile.scheduler_name, begun.elapsed());
        let writes = match reserved {
            Ok(writes) => writes,
            Err(why) => return self.give_up(&profile, &pod, &why),
        };
        self.cluster.assume(pod.clone(), &node);
        self.placed(&profile, pod, node, writes);
    }

    /// Chooses a node for the pod.
    async fn place(
        &mut self,
        profile: &Profile,
        pod: &PodInfo,
    ) -> Result<Result<String, Box<Unschedulable>>, String> {
        let begun = Instant::now();
        let placed = if self.extenders.is_empty() {
            Ok(self.scheduler.place(profile, pod, &mut self.cluster))
        } else {
            self.scheduler.place_with(&self.extenders, profile, pod, &mut self.cluster).await
        };
        self.metrics.algorithm(begun.elapsed());
        self.metrics.cycle(&profile.scheduler_name, &std::mem::take(&mut self.scheduler.spent));
        placed
    }

    /// Tells why the pod could not be placed this time, for no lack of nodes.
    fn give_up(&mut self, profile: &Profile, pod: &Arc<PodInfo>, why: &str) {
        self.ended(Outcome::Error, profile, &pod.key);
        self.tell(profile, pod, why, Nomination::AsItIs, "SchedulerError");
        self.queue.failed(&pod.key, Instant::now());
        self.metrics.incoming("backoff", "ScheduleAttemptFailure", 1);
    }

    /// Counts an attempt that has ended.
    fn ended(&mut self, outcome: Outcome, profile: &Profile, key: &str) {
        let Some(Attempt { begun, number, since, overslept }) = self.attempts.remove(key) else { return };
        self.metrics.attempt(outcome, &profile.scheduler_name, begun.elapsed());
        if outcome == Outcome::Scheduled {
            self.metrics.scheduled(number, since.elapsed(), overslept);
        }
    }

    /// An event and a condition say why the pod has no node.
    fn tell(
        &mut self,
        profile: &Profile,
        pod: &Arc<PodInfo>,
        message: &str,
        nomination: Nomination,
        reason: &str,
    ) {
        if let Some(events) = self.events.get(&profile.scheduler_name) {
            let note = truncated(message);
            let (kind, reason, action) = (EventType::Warning, "FailedScheduling", "Scheduling");
            events.tell(reference(&*pod.pod), None, Deed { kind, reason, action, note });
        }
        if let Some(patch) = unscheduled_status(&pod.pod, message, nomination, reason, &self.clock) {
            self.writes.spawn(report(self.client.clone(), pod.clone(), patch));
        }
    }

    /// No node will do: tells so, and makes room if that can be.
    async fn refuse(&mut self, profile: &Profile, pod: &Arc<PodInfo>, mut against: Unschedulable) {
        let writes = profile.relieve(&against.refused_by, pod, &self.cluster);
        self.release(writes);
        let (mut candidate, mut nomination) = (None, Nomination::AsItIs);
        if against.nodes == 0 {
            nomination = Nomination::None;
            self.cluster.withdraw(&pod.key);
        } else if profile.preemption.is_some() {
            self.metrics.preemption();
            let begun = Instant::now();
            match self.room_for(profile, pod, &against).await {
                Ok(room) => candidate = room,
                Err(why) => {
                    if matches!(why, Hopeless::NoCandidate(_)) {
                        nomination = Nomination::None;
                        self.cluster.withdraw(&pod.key);
                    }
                    against.preemption = Some(why.to_string());
                }
            }
            let status = if candidate.is_some() { "Success" } else { "Unschedulable" };
            self.metrics.step(Point::PostFilter, status, &profile.scheduler_name, begun.elapsed());
        }
        if let Some(candidate) = &candidate {
            nomination = Nomination::To(&candidate.node);
        }
        let refusal = against.to_string();
        self.tell(profile, pod, &refusal, nomination, "Unschedulable");
        if let Some(candidate) = candidate {
            self.metrics.victims(candidate.victims.len());
            self.cluster.nominate(pod.clone(), &candidate.node);
            self.preempt(profile, pod, candidate);
        }
        self.sleep(profile, pod, against);
    }

    /// No node will do, and nothing is done about it here: tells so.
    fn refused(
        &mut self,
        profile: &Profile,
        pod: &Arc<PodInfo>,
        against: Unschedulable,
        nomination: Nomination,
    ) {
        self.tell(profile, pod, &against.to_string(), nomination, "Unschedulable");
        self.sleep(profile, pod, against);
    }

    /// The pod waits until something may help it.
    fn sleep(&mut self, profile: &Profile, pod: &PodInfo, against: Unschedulable) {
        self.ended(Outcome::Unschedulable, profile, &pod.key);
        self.metrics.unschedulable(&profile.scheduler_name, &against.refused_by, true);
        let refusal = (profile.scheduler_name.clone(), against.refused_by.clone());
        self.refusals.insert(pod.key.clone(), refusal);
        let sleeps = self.queue.refused(&pod.key, against.refused_by, Instant::now());
        self.metrics.incoming(if sleeps { "unschedulable" } else { "backoff" }, "ScheduleAttemptFailure", 1);
    }

    /// The pod counts as refused no more.
    fn forgive(&mut self, key: &str) {
        if let Some((profile, plugins)) = self.refusals.remove(key) {
            self.metrics.unschedulable(&profile, &plugins, false);
        }
    }

    fn written(&mut self, written: Result<Written, tokio::task::JoinError>) {
        let (pod, node, error) = match written {
            Ok(Written::Prepared { key, outcome }) => return self.prepared(&key, outcome),
            Ok(Written::Bound { pod, node, outcome: Ok(()), took }) => {
                self.metrics.step(Point::Bind, "Success", pod.scheduler_name(), took);
                if let Some(profile) = self.profiles.get(pod.scheduler_name()).cloned() {
                    self.ended(Outcome::Scheduled, &profile, &pod.key);
                }
                if let Some(events) = self.events.get(pod.scheduler_name()) {
                    let (namespace, name) = (pod.pod.namespace(), pod.pod.name());
                    let note = format!("Successfully assigned {namespace}/{name} to {node}");
                    let (kind, reason, action) = (EventType::Normal, "Scheduled", "Binding");
                    events.tell(reference(&*pod.pod), None, Deed { kind, reason, action, note });
                }
                if let Some(profile) = self.profiles.get(pod.scheduler_name()) {
                    let begun = Instant::now();
                    profile.bound(&pod, &node);
                    self.metrics.step(Point::PostBind, "Success", &profile.scheduler_name, begun.elapsed());
                }
                return;
            }
            Ok(Written::Bound { pod, node, outcome: Err(error), took }) => {
                self.metrics.step(Point::Bind, "Error", pod.scheduler_name(), took);
                (pod, node, error)
            }
            Ok(Written::Evicted { eviction, gone, took }) => {
                self.metrics.evicted(gone, took);
                return self.evicted(&eviction, gone);
            }
            Ok(Written::Reported) | Err(_) => return,
        };
        tracing::warn!(pod = pod.key, node, error = &error as &dyn std::error::Error, "cannot bind");
        if let Some(profile) = self.profiles.get(pod.scheduler_name()).cloned() {
            self.ended(Outcome::Error, &profile, &pod.key);
            let writes = profile.unreserve(&pod, &mut self.cluster);
            self.release(writes);
        }
        if let Some(change) = self.cluster.forget(&pod.key) {
            self.wake(&change);
        }
        if error.is_not_found() {
            // The pod is gone, or the informer is about to say where it is.
            self.keys.add(Key::Pod(pod.key.clone()));
        } else {
            self.queue.failed(&pod.key, Instant::now());
        }
    }
}

/// As much of a message as an event takes.
///
/// Upstream: pkg/scheduler/schedule_one.go truncateMessage
fn truncated(message: &str) -> String {
    const MAX: usize = 1024;
    const SUFFIX: &str = " ...";
    if message.len() <= MAX {
        return message.to_owned();
    }
    let mut end = MAX - SUFFIX.len();
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{SUFFIX}", &message[..end])
}

/// Whether a placed pod counts for the same as before: most of its updates are of its status.
fn same_for_scheduling(known: &PodInfo, new: &Pod) -> bool {
    let of = |pod: &Pod| {
        let status = pod.status.as_ref();
        let started = status.and_then(|status| status.start_time.as_ref()).is_some();
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let evicted = conditions.iter().any(|c| c.type_ == "DisruptionTarget" && c.status == "True");
        (
            pod.metadata.generation,
            pod.metadata.deletion_timestamp.is_some(),
            is_terminal(pod),
            started,
            evicted,
        )
    };
    let old = &*known.pod;
    old.uid() == new.uid()
        && of(old) == of(new)
        && old.metadata.labels == new.metadata.labels
        && known.requests == resources::of_pod(new)
}
