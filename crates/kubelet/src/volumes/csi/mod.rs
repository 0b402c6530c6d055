//! Volumes of drivers that speak the Container Storage Interface.
//!
//! A driver registers ([`Csi`] is the handler of its plugin) and is told of in the cluster ([`node`]). A pod's
//! volume is first wanted, which the node's status says so that it be attached; then staged for the node and
//! published to the pod ([`mount`]), grown ([`expand`]), and taken away in the reverse order ([`unmount`]).
//! [`source`] reads what the driver is told from the objects, [`record`] writes down on disk what the driver is
//! asked before it is asked, and [`ledger`] holds who uses what. One at a time asks a driver about a volume.

mod driver;
mod expand;
mod ledger;
mod mount;
mod node;
pub mod record;
pub mod source;
mod stats;
#[cfg(test)]
mod tests;
mod unmount;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::Object;
use api::core::v1::{Node, SecretReference};
use api::storage::v1::CSIDriver;
use async_trait::async_trait;
use client::Client;
use controller_runtime::{Clock, EventRecorder, Informer, WorkQueue, run_workers};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use self::mount::REFRESH;

use self::driver::{Driver, Drivers};
use self::ledger::{Key, Ledger, Progress};
use self::node::DriverNode;
use super::tokens::Tokens;
use crate::backoff::Backoff;
use crate::objects::Wakers;
use crate::paths::Paths;
use crate::plugins::{Handler, Plugin};

/// The kind of plugins that are drivers.
pub const PLUGIN_KIND: &str = "CSIPlugin";

/// How many volumes are unstaged at the same time.
const LEAVERS: usize = 4;
// Upstream: pkg/util/goroutinemap/exponentialbackoff/exponential_backoff.go
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(122);
/// A driver that may say how many volumes a node can have is not asked more often.
const LEAST_UPDATE_SECONDS: i64 = 10;

/// What the volumes of drivers need of the kubelet.
pub struct Parts {
    pub paths: Paths,
    pub node_name: String,
    /// Tells one run of the machine from another.
    pub boot_id: String,
    pub client: Client,
    pub clock: Clock,
    pub tokens: Arc<Tokens>,
    pub kinds: Informer<CSIDriver>,
    pub wakers: Wakers,
    pub recorder: EventRecorder,
}

/// The volumes of all drivers.
pub struct Csi {
    parts: Parts,
    drivers: Drivers,
    ledger: Mutex<Ledger>,
    /// What the node was last said to use, and what it was last seen to have.
    seen: Mutex<Seen>,
    in_use_changed: Notify,
    leaving: WorkQueue<Key>,
    /// By volume: how long one that failed is left alone.
    backoff: Mutex<Backoff>,
    /// How often drivers have registered.
    registrations: AtomicU64,
}

#[derive(Default)]
struct Seen {
    in_use: Vec<String>,
    /// Names of volumes that the Node's status says are in use, and attached.
    of_node: (Vec<String>, Vec<String>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn of_node(node: &Node) -> (Vec<String>, Vec<String>) {
    let status = node.status.as_ref();
    let in_use = status.and_then(|s| s.volumes_in_use.clone()).unwrap_or_default();
    let attached = status.and_then(|s| s.volumes_attached.as_ref()).into_iter().flatten();
    (in_use, attached.map(|volume| volume.name.clone()).collect())
}

impl Csi {
    /// Knows at once what a former kubelet has left staged and published.
    pub fn new(parts: Parts) -> Self {
        let mut ledger = Ledger::default();
        let found = record::scan(&parts.paths);
        let progress = |place: record::Place| match place.is_complete(&parts.boot_id) {
            true => Progress::Done,
            false => Progress::Uncertain,
        };
        for volume in &found.staged {
            ledger.set_staged(volume, progress(parts.paths.csi_stage(volume)));
        }
        for (volume, pod) in &found.published {
            ledger.set_published(volume, pod, progress(parts.paths.csi_publication(volume, pod)));
        }
        Csi {
            parts,
            drivers: Drivers::default(),
            ledger: Mutex::new(ledger),
            seen: Mutex::default(),
            in_use_changed: Notify::new(),
            leaving: WorkQueue::new(),
            backoff: Mutex::new(Backoff::new(FIRST_DELAY, LONGEST_DELAY)),
            registrations: AtomicU64::new(0),
        }
    }

    /// How often drivers have registered: what one of them could not do, it may do now.
    pub fn registrations(&self) -> u64 {
        self.registrations.load(Ordering::Relaxed)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// Makes the node's CSINode be there and unstages what nobody uses, until the shutdown.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let this = self.clone();
        self.parts.kinds.subscribe(move |_| this.tell_if_changed());
        let this = self.clone();
        let leave = move |key: Key| {
            let this = this.clone();
            async move { this.leave(&key).await }
        };
        let unstaging = run_workers("csi", &self.leaving, LEAVERS, &shutdown, leave);
        tokio::join!(unstaging, self.announce(&shutdown));
    }

    /// Makes the CSINode, then asks drivers for their limits as often as they want to be.
    async fn announce(&self, shutdown: &CancellationToken) {
        let mut delay = FIRST_DELAY;
        while let Err(error) = node::ensure(&self.parts.client, &self.parts.node_name).await {
            tracing::debug!(error, "cannot make the node's CSINode yet");
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(delay) => delay = (delay * 2).min(LONGEST_DELAY),
            }
        }
        let mut due = BTreeMap::new();
        let changed = Arc::new(Notify::new());
        let told = changed.clone();
        self.parts.kinds.subscribe(move |_| told.notify_one());
        loop {
            let next = self.update_limits(&mut due).await;
            let wait = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = changed.notified() => {}
                () = wait => {}
            }
        }
    }

    /// Asks the drivers whose time has come. Returns when the next one's comes.
    // Upstream: pkg/volume/csi/csi_node_updater.go
    async fn update_limits(
        &self,
        due: &mut BTreeMap<String, tokio::time::Instant>,
    ) -> Option<tokio::time::Instant> {
        let period = |kind: &CSIDriver| {
            let seconds = kind.spec.node_allocatable_update_period_seconds.filter(|s| *s > 0)?;
            Some(Duration::from_secs(seconds.max(LEAST_UPDATE_SECONDS).unsigned_abs()))
        };
        let now = tokio::time::Instant::now();
        let periods: BTreeMap<String, Duration> = self
            .parts
            .kinds
            .list()
            .iter()
            .filter_map(|kind| Some((kind.name().to_owned(), period(kind)?)))
            .collect();
        due.retain(|name, _| periods.contains_key(name));
        for (name, period) in periods {
            let at = due.entry(name.clone()).or_insert(now + period);
            if *at <= now {
                *at = now + period;
                self.update_limit(&name).await;
            }
        }
        due.values().min().copied()
    }

    /// Asks a driver anew how many volumes this node can have.
    async fn update_limit(&self, name: &str) {
        let Ok(driver) = self.drivers.get(name) else { return };
        let updated = match driver.info().await {
            Ok(info) => {
                let told = DriverNode::new(name, info);
                node::refresh(&self.parts.client, &self.parts.node_name, &told).await
            }
            Err(failure) => Err(failure.why),
        };
        if let Err(error) = updated {
            tracing::warn!(driver = name, error, "cannot bring a driver's limit up to date");
        }
    }

    /// The volumes that must stay attached to this node, as nodes call them.
    // Upstream: pkg/kubelet/volumemanager/volume_manager.go GetVolumesInUse
    pub fn in_use(&self) -> Vec<String> {
        self.ledger().in_use(|driver| self.is_attached(driver))
    }

    /// Returns when [`in_use`](Self::in_use) may have changed.
    pub async fn in_use_changed(&self) {
        self.in_use_changed.notified().await;
    }

    fn tell_if_changed(&self) {
        let in_use = self.in_use();
        let mut seen = lock(&self.seen);
        if seen.in_use != in_use {
            seen.in_use = in_use;
            self.in_use_changed.notify_one();
        }
    }

    /// Wakes the pods that wait for their volumes if the node has others than before.
    pub fn node_changed(&self, node: &Node) {
        let now = of_node(node);
        let before = std::mem::replace(&mut lock(&self.seen).of_node, now.clone());
        if before != now {
            let waiting = self.ledger().waiting();
            waiting.iter().for_each(|uid| self.parts.wakers.wake(uid));
        }
    }

    /// Unstages what nobody uses. To be called when the node's pods are known.
    pub fn sweep(&self) {
        let leavers = self.ledger().leavers();
        leavers.into_iter().for_each(|key| self.leaving.add(key));
    }

    fn kind(&self, driver: &str) -> Option<Arc<CSIDriver>> {
        self.parts.kinds.get(driver)
    }

    /// Whether the driver's volumes are attached to nodes by the control plane: those of an unknown one are.
    // Upstream: pkg/volume/csi/csi_plugin.go skipAttach
    fn is_attached(&self, driver: &str) -> bool {
        self.kind(driver).and_then(|kind| kind.spec.attach_required).unwrap_or(true)
    }

    /// What a secret holds, as drivers are told it.
    // Upstream: pkg/volume/csi/csi_util.go getCredentialsFromSecret
    async fn secret(&self, what: &str, secret: &SecretReference) -> Result<BTreeMap<String, String>, String> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (namespace, name) = (text(&secret.namespace), text(&secret.name));
        let found = self.parts.client.get::<api::core::v1::Secret>(&namespace, &name).await;
        let found = found.map_err(|error| {
            format!(
                "fetching {what} {namespace}/{name} failed: kubernetes.io/csi: failed to find the secret \
                 {name} in the namespace {namespace} with error: {error}"
            )
        })?;
        let words =
            |(key, value): (String, api::ByteString)| (key, String::from_utf8_lossy(&value.0).into_owned());
        Ok(found.data.unwrap_or_default().into_iter().map(words).collect())
    }
}

#[async_trait]
impl Handler for Csi {
    fn validate(&self, plugin: &Plugin) -> Result<(), String> {
        let checked = Driver::new(plugin).and_then(|driver| self.drivers.check(&driver));
        checked.map_err(|why| {
            let (name, endpoint) = (&plugin.name, plugin.endpoint.display());
            format!("validation failed for CSI Driver {name} at endpoint {endpoint}: {why}")
        })
    }

    // Upstream: pkg/volume/csi/csi_plugin.go RegisterPlugin
    async fn register(&self, plugin: &Plugin) -> Result<(), String> {
        let driver = Driver::new(plugin)?;
        self.drivers.check(&driver)?;
        let info = driver.info().await.map_err(|failure| failure.why)?;
        let told = DriverNode::new(&plugin.name, info);
        self.drivers.add(driver);
        if let Err(error) = node::install(&self.parts.client, &self.parts.node_name, &told).await {
            self.deregister(plugin).await;
            return Err(error);
        }
        // Who waited for it need not wait longer.
        self.registrations.fetch_add(1, Ordering::Relaxed);
        lock(&self.backoff).forget(&format!("{}^", plugin.name));
        self.parts.wakers.wake_all();
        for key in self.ledger().leavers().into_iter().filter(|(driver, _)| *driver == plugin.name) {
            self.leaving.forget(&key);
            self.leaving.add(key);
        }
        Ok(())
    }

    async fn deregister(&self, plugin: &Plugin) {
        if !self.drivers.remove(plugin) {
            return;
        }
        let told = node::uninstall(&self.parts.client, &self.parts.node_name, &plugin.name).await;
        if let Err(error) = told {
            tracing::warn!(driver = plugin.name, error, "cannot tell that a driver is gone");
        }
    }
}
