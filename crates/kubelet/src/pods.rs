//! Which pods this node has, and a worker for each: from the API, from manifests, and what a former kubelet left.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Object;
use api::core::v1::Pod;
use controller_runtime::{Event, Filter, InformerFactory};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::static_pods::{self, Mirrors};
use crate::status::Verdict;
use crate::worker::{Desired, Worker, remove_orphan};
use crate::{Error, admit, cgroup, pod, pod_state};

/// Changes that await the loop: the newest of each pod.
#[derive(Clone, Default)]
pub struct Inbox {
    changes: Arc<Mutex<HashMap<String, Change>>>,
    arrived: Arc<Notify>,
}

#[derive(Clone)]
pub enum Change {
    Present(Arc<Pod>),
    Gone,
}

impl Inbox {
    pub fn put(&self, uid: &str, change: Change) {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), change);
        self.arrived.notify_one();
    }

    fn take(&self) -> HashMap<String, Change> {
        std::mem::take(&mut self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How often left-overs are looked for.
const ORPHANS: Duration = Duration::from_secs(120);

/// Runs the workers of all pods until the shutdown.
pub async fn run(
    core: Arc<Core>,
    informers: InformerFactory,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let inbox = Inbox::default();
    let mirrors = Mirrors::new(core.clone());
    let informer =
        informers.filtered::<Pod>(Filter::fields(format!("spec.nodeName={}", core.config.node_name)));
    let (from_api, seen_mirrors) = (inbox.clone(), mirrors.clone());
    informer.subscribe(move |event| {
        let pod = event.object();
        if pod::is_mirror(pod) {
            seen_mirrors.observe(pod, matches!(event, Event::Deleted(_)));
            return;
        }
        match event {
            Event::Deleted(pod) => from_api.put(pod.uid(), Change::Gone),
            Event::Updated { old, new } => {
                // The same name under another UID is another pod.
                if old.uid() != new.uid() {
                    from_api.put(old.uid(), Change::Gone);
                }
                from_api.put(new.uid(), Change::Present(new.clone()));
            }
            Event::Added(pod) => from_api.put(pod.uid(), Change::Present(pod.clone())),
        }
    });
    let mut tasks = JoinSet::new();
    if core.config.static_pod_path.is_some() {
        tasks.spawn(static_pods::run(core.clone(), inbox.clone(), mirrors, shutdown.clone()));
    }
    let mut workers = Workers { core: core.clone(), running: HashMap::new(), tasks: JoinSet::new() };
    let mut orphans = tokio::time::interval(ORPHANS);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = inbox.arrived.notified() => {
                if workers.apply(inbox.take(), &shutdown) {
                    workers.share_cpu();
                }
                core.retry_resizes();
            }
            Some(ended) = workers.tasks.join_next() => {
                if let Ok(uid) = ended {
                    workers.running.remove(&uid);
                    workers.pods().remove(&uid);
                    core.defer_resize(&uid, false);
                    core.retry_resizes();
                }
            }
            _ = orphans.tick(), if informer.has_synced() => workers.collect_orphans().await,
            true = informer.synced(), if !informer.has_synced() => orphans.reset_immediately(),
        }
    }
    while workers.tasks.join_next().await.is_some() {}
    while tasks.join_next().await.is_some() {}
    Ok(())
}

struct Workers {
    core: Arc<Core>,
    running: HashMap<String, watch::Sender<Desired>>,
    tasks: JoinSet<String>,
}

impl Workers {
    fn pods(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Pod>>> {
        self.core.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells each worker of its change, and starts those that are new, oldest pod first. True when a pod came or
    /// went.
    fn apply(&mut self, changes: HashMap<String, Change>, shutdown: &CancellationToken) -> bool {
        let mut fresh = Vec::new();
        let mut any = false;
        for (uid, change) in changes {
            match (change, self.running.get(&uid)) {
                (Change::Gone, Some(worker)) => {
                    worker.send_modify(|d| d.removed = true);
                    any = true;
                }
                (Change::Gone, None) => {}
                (Change::Present(pod), Some(worker)) => {
                    let before = self.pods().insert(uid, pod.clone());
                    any |= before.is_none_or(|before| before.spec != pod.spec);
                    worker.send_modify(|d| d.pod = pod);
                }
                (Change::Present(pod), None) => fresh.push(pod),
            }
        }
        any |= !fresh.is_empty();
        fresh.sort_by_key(|p| p.metadata.creation_timestamp.clone());
        for pod in fresh {
            self.start(pod, shutdown);
        }
        any
    }

    fn start(&mut self, pod: Arc<Pod>, shutdown: &CancellationToken) {
        let uid = pod.uid().to_owned();
        let rejected = self.refusal(&pod);
        if let Some(verdict) = &rejected {
            let events = crate::events::PodEvents { recorder: &self.core.recorder, pod: &pod };
            events.warning("", &verdict.reason, &verdict.message);
        }
        self.pods().insert(uid.clone(), pod.clone());
        let (sender, desired) = watch::channel(Desired { pod, removed: false, rejected });
        self.tasks.spawn(Worker::new(self.core.clone(), desired).run(shutdown.clone()));
        self.running.insert(uid, sender);
    }

    fn refusal(&self, pod: &Arc<Pod>) -> Option<Verdict> {
        if pod::is_terminal_phase(pod::phase(pod)) || pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        // A pod that ran here before was taken once and stays taken.
        if pod
            .status
            .as_ref()
            .is_some_and(|s| s.start_time.is_some() && s.phase.as_deref() == Some("Running"))
        {
            return None;
        }
        let early = self.core.shutdown.refusal().or_else(|| self.core.pressure.refusal(pod));
        if early.is_some() {
            return early;
        }
        if let Some(refusal) = self.core.config.sysctls.refusal(pod) {
            return Some(refusal);
        }
        let node = self.core.node()?;
        let rejected: BTreeSet<String> = self
            .running
            .iter()
            .filter(|(_, w)| w.borrow().rejected.is_some())
            .map(|(uid, _)| uid.clone())
            .collect();
        let pods = self.pods();
        let others = pods.values().filter(|p| p.uid() != pod.uid() && !rejected.contains(p.uid()));
        let others: Vec<&Pod> =
            others.filter(|p| !pod::is_terminal_phase(pod::phase(p))).map(AsRef::as_ref).collect();
        admit::check(pod, &others, &node)
    }

    fn share_cpu(&self) {
        let pods = self.pods();
        let alive = pods.values().filter(|p| !pod::is_terminal_phase(pod::phase(p))).map(AsRef::as_ref);
        if let Err(error) = cgroup::update_burstable(&self.core.config.cgroup_root, alive) {
            tracing::warn!(
                error = crate::worker::with_causes(&error),
                "cannot set the burstable pods' share"
            );
        }
    }

    /// Ends and removes what runs or lies here for pods that do not exist.
    async fn collect_orphans(&self) {
        let Ok(known) = pod_state::known_pods(self.core.runtime.as_ref()).await else { return };
        let on_disk = std::fs::read_dir(self.core.paths.pods()).into_iter().flatten().filter_map(Result::ok);
        let on_disk = on_disk.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let all: BTreeSet<String> = known.into_keys().chain(on_disk).collect();
        let orphans: Vec<String> = all.into_iter().filter(|uid| !self.running.contains_key(uid)).collect();
        let removals = orphans.iter().map(|uid| async move {
            if let Err(error) = remove_orphan(&self.core, uid).await {
                tracing::warn!(pod = uid, error, "cannot remove what is left of a pod");
            }
        });
        futures::future::join_all(removals).await;
        self.core.volumes.csi.sweep();
    }
}
