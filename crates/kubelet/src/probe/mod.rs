//! Probes: [`state`] decides what outcomes mean, [`run`] makes one attempt, and [`Probes`] keeps a task for each
//! probe of a pod's running containers.

pub mod run;
pub mod state;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::core::v1::{Container, Pod, Probe};
use controller_runtime::{Clock, EventRecorder};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::run::{Attempt, Outcome};
use self::state::ProbeState;
use crate::actions::{ProbeResult, ProbeResults};
use crate::events::PodEvents;
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
type Board = Arc<Mutex<HashMap<Key, ProbeResult>>>;

/// What probes need beside their pod.
#[derive(Clone)]
pub struct Tools {
    pub runtime: Arc<dyn Runtime>,
    pub recorder: EventRecorder,
    pub clock: Clock,
}

/// The probes of one pod.
pub struct Probes {
    tools: Tools,
    waker: Arc<Notify>,
    board: Board,
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
            board: Board::default(),
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
            self.lock().remove(&key);
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
            self.lock().insert(key.clone(), result);
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

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, ProbeResult>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The results that make containers restart.
    pub fn results(&self) -> ProbeResults {
        let mut results = ProbeResults::default();
        for ((id, kind), result) in self.lock().iter() {
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
        let board = self.lock();
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

/// One probe of one container.
struct Task {
    tools: Tools,
    waker: Arc<Notify>,
    board: Board,
    key: Key,
    waits_for_start: bool,
    pod: Arc<Pod>,
    container: Container,
    probe: Probe,
    pod_ip: String,
    started_at: i64,
    initial: Option<ProbeResult>,
}

impl Task {
    // Upstream: pkg/kubelet/prober/worker.go doProbe
    async fn run(self) {
        let seconds = |s: Option<i32>, or: u64| {
            Duration::from_secs(s.and_then(|s| u64::try_from(s).ok()).unwrap_or(or))
        };
        let period = seconds(self.probe.period_seconds, 10).max(Duration::from_secs(1));
        let initial_delay = seconds(self.probe.initial_delay_seconds, 0);
        let alive = self.tools.clock.now().as_nanosecond() - i128::from(self.started_at);
        let alive = Duration::from_nanos(u64::try_from(alive).unwrap_or(0));
        tokio::time::sleep(initial_delay.saturating_sub(alive)).await;
        let mut state = ProbeState::new(
            self.initial,
            self.probe.success_threshold.unwrap_or(1).max(1) as u32,
            self.probe.failure_threshold.unwrap_or(3).max(1) as u32,
        );
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.waits_for_start && !self.started() {
                continue;
            }
            let success = self.attempt(seconds(self.probe.timeout_seconds, 1)).await;
            let Some(success) = success else { continue };
            if let Some(result) = state.observe(success) {
                self.board.lock().unwrap_or_else(PoisonError::into_inner).insert(self.key.clone(), result);
                self.waker.notify_one();
                let decided = match self.key.1 {
                    // The container restarts, or has started: either way this probe is over.
                    ProbeKind::Startup => true,
                    ProbeKind::Liveness => result == ProbeResult::Failure,
                    ProbeKind::Readiness => false,
                };
                if decided {
                    return std::future::pending().await;
                }
            }
        }
    }

    fn started(&self) -> bool {
        let key = (self.key.0.clone(), ProbeKind::Startup);
        self.board.lock().unwrap_or_else(PoisonError::into_inner).get(&key) == Some(&ProbeResult::Success)
    }

    /// One attempt; `None` when nothing can be said.
    async fn attempt(&self, timeout: Duration) -> Option<bool> {
        let attempt = Attempt {
            runtime: self.tools.runtime.as_ref(),
            container_id: &self.key.0,
            container: &self.container,
            probe: &self.probe,
            pod_ip: &self.pod_ip,
            timeout,
        };
        let events = PodEvents { recorder: &self.tools.recorder, pod: &self.pod };
        let name = self.key.1.name();
        match attempt.run().await {
            Outcome::Success => Some(true),
            Outcome::Warning(text) => {
                events.warning(
                    &self.container.name,
                    "ProbeWarning",
                    &format!("{name} probe warning: {text}"),
                );
                Some(true)
            }
            Outcome::Failure(text) => {
                events.warning(&self.container.name, "Unhealthy", &format!("{name} probe failed: {text}"));
                Some(false)
            }
            Outcome::Unknown(text) => {
                let message = format!("{name} probe errored and resulted in unknown state: {text}");
                events.warning(&self.container.name, "Unhealthy", &message);
                None
            }
        }
    }
}
