//! The engine: the sandboxes and containers there are, and what happens to them.
//!
//! `sandbox` and `container` hold the operations, `shims` watches the processes below, `adopt` finds again what
//! an earlier engine left, `program` is what it starts, `exec` runs commands, `reset` takes everything away. Records are files; what a
//! container does now is told by its shim and kept in a watch channel that those who wait for its end read.

mod adopt;
mod container;
mod exec;
mod facts;
mod program;
mod reset;
mod sandbox;
mod shims;
mod usage;

pub use reset::reset;

pub(crate) use container::Container;
pub(crate) use exec::{ExecRequest, ExecStreams, Stdio};
pub(crate) use facts::device as device_at;
pub(crate) use sandbox::InNamespaces;
pub(crate) use sandbox::Sandbox;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Error;
use crate::config::Config;
use crate::images::Store;
use crate::streaming::Tickets;

/// What happened to a container, for `GetContainerEvents`.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub container: String,
    pub sandbox: String,
    pub kind: cri::v1::ContainerEventType,
    pub at: i64,
}

/// A subscriber that lags further than this loses events and falls back to listing, as the kubelet does anyway.
const EVENTS_KEPT: usize = 1024;

#[derive(Debug, Default)]
struct Pods {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
    containers: BTreeMap<String, Arc<Container>>,
}

/// One engine.
#[derive(Debug)]
pub(crate) struct Engine {
    pub config: Config,
    pub images: Arc<Store>,
    pub tickets: Tickets,
    pub facts: facts::Machine,
    pods: Mutex<Pods>,
    pod_cidrs: Mutex<Vec<String>>,
    events: broadcast::Sender<Event>,
    /// Who waits for the end of an exec, by its id.
    execs: Mutex<BTreeMap<String, oneshot::Sender<i32>>>,
    usage: Mutex<BTreeMap<String, usage::Sample>>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data behind each of these locks is whole after every statement, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Opens the engine's directories and adopts what runs.
    pub(crate) async fn open(
        mut config: Config,
        tickets: Tickets,
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, Error> {
        for dir in [config.sandboxes(), config.state.join("s"), config.root.join("containers")] {
            std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        }
        program::protect(&mut config)?;
        let pod_cidrs: Vec<String> = read_json(&config.state.join("pod-cidrs.json")).unwrap_or_default();
        let engine = Arc::new(Self {
            images: Arc::new(Store::open(&config.root)?),
            facts: facts::Machine::read(),
            tickets,
            pods: Mutex::default(),
            pod_cidrs: Mutex::new(pod_cidrs),
            events: broadcast::channel(EVENTS_KEPT).0,
            execs: Mutex::default(),
            usage: Mutex::default(),
            shutdown,
            tasks: TaskTracker::new(),
            config,
        });
        engine.adopt_all().await?;
        Ok(engine)
    }

    /// Waits for the engine's own tasks; containers are none of them.
    pub(crate) async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub(crate) fn now(&self) -> i64 {
        self.config.clock.now()
    }

    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Error> {
        by_id(&lock(&self.pods).sandboxes, id)
            .ok_or_else(|| Error::NotFound { kind: "pod sandbox", id: id.to_owned() })
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        by_id(&lock(&self.pods).containers, id)
            .ok_or_else(|| Error::NotFound { kind: "container", id: id.to_owned() })
    }

    pub(crate) fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        lock(&self.pods).sandboxes.values().cloned().collect()
    }

    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.pods).containers.values().cloned().collect()
    }

    pub(crate) fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let mut containers = self.containers();
        containers.retain(|container| container.record.sandbox == sandbox);
        containers
    }

    pub(crate) fn pod_cidrs(&self) -> Vec<String> {
        lock(&self.pod_cidrs).clone()
    }

    /// The kubelet tells the node's pod CIDRs, several separated by commas.
    pub(crate) fn set_pod_cidrs(&self, cidrs: &str) -> Result<(), Error> {
        let cidrs: Vec<String> =
            cidrs.split(',').filter(|cidr| !cidr.is_empty()).map(str::to_owned).collect();
        if cidrs.is_empty() {
            return Ok(());
        }
        write_json(&self.config.state.join("pod-cidrs.json"), &cidrs)?;
        *lock(&self.pod_cidrs) = cidrs;
        Ok(())
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    pub(crate) fn shutdown_token(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    fn publish(&self, container: &Container, kind: cri::v1::ContainerEventType) {
        let event = Event {
            container: container.id.clone(),
            sandbox: container.record.sandbox.clone(),
            kind,
            at: self.now(),
        };
        // Nobody listening is the usual case.
        let _ = self.events.send(event);
    }
}

/// Full ids, or the beginnings of one that are unambiguous, as people type them.
fn by_id<T: Clone>(map: &BTreeMap<String, T>, id: &str) -> Option<T> {
    if let Some(found) = map.get(id) {
        return Some(found.clone());
    }
    if id.len() < 8 {
        return None;
    }
    let mut matching = map.range(id.to_owned()..).take_while(|(known, _)| known.starts_with(id));
    let found = matching.next().map(|(_, found)| found.clone());
    found.filter(|_| matching.next().is_none())
}

/// A new id of 64 hex digits.
pub(crate) fn new_id() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Writes a record so that it is there whole or not at all.
fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), Error> {
    let bytes = serde_json::to_vec(value).map_err(|e| Error::Invalid(e.to_string()))?;
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, bytes).map_err(Error::io(&temporary))?;
    std::fs::rename(&temporary, path).map_err(Error::io(path))
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Invalid(format!("the work was cut short: {error}"))),
    }
}
