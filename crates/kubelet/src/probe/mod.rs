//! Probes: [`state`] decides what outcomes mean, [`run`] makes one attempt, [`task`] makes one after the other, and
//! [`Probes`] keeps a task for each probe of a pod's running containers. [`metrics`] counts them all.

pub mod metrics;
pub mod run;
pub mod state;
mod task;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use api::core::v1::{Container, Pod, Probe};
use controller_runtime::{Clock, EventRecorder};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::metrics::Metrics;
use self::task::Task;
use crate::actions::{ProbeResult, ProbeResults};
use crate::pod::{self, is_sidecar};
use crate::pod_state::{ContainerRecord, PodState};
use crate::runtime::Runtime;
use crate::status::Readiness;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

    pub fn name(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }

    fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

type Key = (String, ProbeKind);

/// The results so far, and who waits for one.
#[derive(Default)]
struct Board {
    results: Mutex<HashMap<Key, ProbeResult>>,
    changed: Notify,
}

impl Board {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, ProbeResult>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, key: &Key, result: ProbeResult) {
        self.lock().insert(key.clone(), result);
        self.changed.notify_waiters();
    }

    /// Waits until the container has started, as its startup probe says.
    async fn started(&self, container_id: &str) {
        let key = (container_id.to_owned(), ProbeKind::Startup);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.lock().get(&key) == Some(&ProbeResult::Success) {
                return;
            }
            changed.await;
        }
    }
}

/// What probes need beside their pod.
#[derive(Clone)]
pub struct Tools {
    pub runtime: Arc<dyn Runtime>,
    pub recorder: EventRecorder,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
}

/// The probes of one pod.
pub struct Probes {
    tools: Tools,
    waker: Arc<Notify>,
    board: Arc<Board>,
    tasks: JoinSet<()>,
    running: HashMap<Key, CancellationToken>,
    /// Containers that were ready before this kubelet began: they stay so until a probe says otherwise.
    ready_before: BTreeSet<String>,
}

impl Probes {
    pub fn new(tools: Tools, waker: Arc<Notify>) -> Self {
        Probes {
            tools,
            waker,
            board: Arc::default(),
            tasks: JoinSet::new(),
            running: HashMap::new(),
            ready_before: BTreeSet::new(),
        }
    }

    /// Remembers which containers the API says are ready, when a kubelet takes over a running pod.
    pub fn adopt(&mut self, pod: &Pod) {
        let statuses = pod.status.iter().flat_map(pod::all_statuses).filter(|s| s.ready);
        let ids = statuses
            .filter_map(|s| s.container_id.as_deref()?.split_once("://").map(|(_, id)| id.to_owned()));
        self.ready_before.extend(ids);
    }

    /// Starts and stops tasks so that each probe of each running container has one. `terminating` pods are
    /// probed for readiness alone.
    pub fn sync(&mut self, pod: &Arc<Pod>, state: &PodState, terminating: bool) {
        while self.tasks.try_join_next().is_some() {}
        let mut wanted = BTreeSet::new();
        let probed =
            pod::containers(pod).iter().chain(pod::init_containers(pod).iter().filter(|c| is_sidecar(c)));
        for container in probed {
            let Some(record) = state.running().find(|r| r.name == container.name) else { continue };
            for kind in ProbeKind::ALL {
                let Some(probe) = kind.of(container) else { continue };
                if terminating && kind != ProbeKind::Readiness {
                    continue;
                }
                let key = (record.id.clone(), kind);
                wanted.insert(key.clone());
                if !self.running.contains_key(&key) {
                    self.start(key, pod, container, probe, record, state.ips().first().cloned());
                }
            }
        }
        let gone: Vec<Key> = self.running.keys().filter(|k| !wanted.contains(*k)).cloned().collect();
        for key in gone {
            if let Some(token) = self.running.remove(&key) {
                token.cancel();
            }
            self.board.lock().remove(&key);
        }
    }

    fn start(
        &mut self,
        key: Key,
        pod: &Arc<Pod>,
        container: &Container,
        probe: &Probe,
        record: &ContainerRecord,
        pod_ip: Option<String>,
    ) {
        let initial = match key.1 {
            ProbeKind::Startup => None,
            ProbeKind::Liveness => Some(ProbeResult::Success),
            ProbeKind::Readiness if self.ready_before.contains(&record.id) => Some(ProbeResult::Success),
            ProbeKind::Readiness => Some(ProbeResult::Failure),
        };
        if let Some(result) = initial {
            self.board.set(&key, result);
        }
        let token = CancellationToken::new();
        let task = Task {
            tools: self.tools.clone(),
            waker: self.waker.clone(),
            board: self.board.clone(),
            waits_for_start: container.startup_probe.is_some() && key.1 != ProbeKind::Startup,
            key: key.clone(),
            pod: pod.clone(),
            container: container.clone(),
            probe: probe.clone(),
            pod_ip: pod_ip
                .or_else(|| pod.status.as_ref().and_then(|s| s.host_ip.clone()))
                .unwrap_or_default(),
            started_at: record.started_at,
            adopted: self.ready_before.contains(&record.id),
            initial,
        };
        let stop = token.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task.run() => {}
                () = stop.cancelled() => {}
            }
        });
        self.running.insert(key, token);
    }

    /// The results that make containers restart.
    pub fn results(&self) -> ProbeResults {
        let mut results = ProbeResults::default();
        for ((id, kind), result) in self.board.lock().iter() {
            match kind {
                ProbeKind::Liveness => results.liveness.insert(id.clone(), *result),
                ProbeKind::Startup => results.startup.insert(id.clone(), *result),
                ProbeKind::Readiness => None,
            };
        }
        results
    }

    /// Which of the running containers have started and are ready, as far as probes decide it.
    pub fn readiness(&self, pod: &Pod, state: &PodState) -> Readiness {
        let board = self.board.lock();
        let passed = |id: &str, kind| board.get(&(id.to_owned(), kind)) == Some(&ProbeResult::Success);
        let mut readiness = Readiness::default();
        for container in pod::containers(pod).iter().chain(pod::init_containers(pod)) {
            let Some(record) = state.running().find(|r| r.name == container.name) else { continue };
            if container.startup_probe.is_some() {
                readiness.started.insert(record.id.clone(), passed(&record.id, ProbeKind::Startup));
            }
            if container.readiness_probe.is_some() {
                readiness.ready.insert(record.id.clone(), passed(&record.id, ProbeKind::Readiness));
            }
        }
        readiness
    }
}
