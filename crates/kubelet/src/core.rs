//! What all parts of a kubelet share, and its start and end.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::core::v1::{Node, Pod, Service};
use apimachinery::quantity::Quantity;
use client::Client;
use client::delegated::Delegated;
use controller_runtime::{EventRecorder, EventType, Informer, InformerFactory};
use cri::v1 as pb;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::container::config::Memory;
use crate::container::dns::{Resolver, parse_resolv_conf};
use crate::container::downward::Surroundings;
use crate::devices::{self, Devices};
use crate::dra::{self, Dra};
use crate::images::Images;
use crate::node::Machine;
use crate::node::allocatable::{self, Resources};
use crate::objects::{ObjectCache, Wakers};
use crate::paths::Paths;
use crate::plugins::Handlers;
use crate::pod_state::PodState;
use crate::pods;
use crate::pressure::{self, Pressure};
use crate::probe::Tools;
use crate::probe::metrics::Metrics as ProbeMetrics;
use crate::pulled_images::PulledImages;
use crate::runtime::{CriRuntime, Runtime};
use crate::shutdown::{self, Shutdown};
use crate::status::publisher::Publisher;
use crate::userns::Ranges;
use crate::volumes::Volumes;
use crate::volumes::csi::{self, Csi};
use crate::volumes::tokens::Tokens;
use crate::{Config, Error, cgroup, log_rotation, node, pleg, plugins, server};

/// Shared by all parts; nothing in here changes but behind its own lock.
pub struct Core {
    pub config: Config,
    pub client: Client,
    /// Asks the API server who may ask this kubelet.
    pub access: Delegated,
    pub runtime: Arc<dyn Runtime>,
    pub runtime_name: String,
    pub runtime_version: String,
    pub recorder: EventRecorder,
    pub wakers: Wakers,
    pub volumes: Volumes,
    pub images: Images,
    /// The back-off of restarts, by pod UID, container name and hash.
    pub restarts: Mutex<Backoff>,
    pub publisher: Publisher,
    pub services: Informer<Service>,
    pub machine: Machine,
    pub paths: Paths,
    /// UIDs of pods whose containers changed, for followers of logs.
    pub changes: broadcast::Sender<String>,
    pub network_ready: AtomicBool,
    /// The pods that have workers, by UID, as last seen.
    pub pods: Mutex<HashMap<String, Arc<Pod>>>,
    /// UIDs of pods whose resize waits for others to make room.
    pub deferred_resizes: Mutex<BTreeSet<String>>,
    pub pressure: Pressure,
    pub shutdown: Shutdown,
    /// The Node as last seen in the API.
    pub node: Mutex<Option<Arc<Node>>>,
    /// What the runtime's handlers can do, as it last said.
    pub handlers: Mutex<Vec<pb::RuntimeHandler>>,
    pub probe_metrics: Arc<ProbeMetrics>,
    pub devices: Arc<Devices>,
    pub dra: Arc<Dra>,
    /// The ids of pods that have their own.
    pub user_namespaces: Ranges,
}

impl Core {
    pub fn host_ips(&self) -> Vec<String> {
        self.config.node_ips.iter().map(ToString::to_string).collect()
    }

    /// What pods may have of the node's own resources.
    pub fn allocatable(&self) -> Resources {
        let capacity = allocatable::capacity(&self.machine, self.config.max_pods);
        allocatable::allocatable(&capacity, &self.config.reserved(), &self.config.eviction)
    }

    /// The node's memory, as containers are to have it.
    pub fn memory(&self) -> Memory {
        Memory {
            capacity: self.machine.memory,
            swap_capacity: self.machine.swap,
            swap_is_limited: self.machine.swap_is_limited,
            swap_behavior: self.config.swap_behavior,
            huge_pages: self.machine.huge_pages.clone(),
        }
    }

    /// The Node as last seen in the API.
    pub fn node(&self) -> Option<Arc<Node>> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The node's own resolver configuration, as it is now.
    pub fn node_resolver(&self) -> Resolver {
        parse_resolv_conf(&std::fs::read_to_string(&self.config.resolv_conf).unwrap_or_default())
    }

    pub fn surroundings(&self, pod: &Pod, state: &PodState) -> Surroundings {
        let host_ips = self.host_ips();
        let pod_ips = if crate::pod::host_network(pod) { host_ips.clone() } else { state.ips().to_vec() };
        let allocatable = self.allocatable();
        let of = |name: &str| allocatable.get(name);
        Surroundings {
            pod_ips,
            host_ips,
            allocatable_milli_cpu: of("cpu").map_or(0, Quantity::milli_value),
            allocatable_memory: of("memory").map_or(0, Quantity::value),
            allocatable_ephemeral_storage: of("ephemeral-storage").map_or(0, Quantity::value),
        }
    }

    /// The pods that are not over.
    pub fn alive(&self) -> Vec<Arc<Pod>> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.values().filter(|pod| !crate::pod::is_terminal_phase(crate::pod::phase(pod))).cloned().collect()
    }

    /// Whether the runtime's usual handler makes what is mounted below a read-only volume read-only too.
    pub fn recursive_read_only(&self) -> bool {
        let handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let usual = handlers.iter().find(|known| known.name.is_empty());
        usual.and_then(|known| known.features.as_ref()).is_some_and(|f| f.recursive_read_only_mounts)
    }

    /// Notes whether a pod's resize waits for room.
    pub fn defer_resize(&self, pod_uid: &str, waits: bool) {
        let mut deferred = self.deferred_resizes.lock().unwrap_or_else(PoisonError::into_inner);
        if waits {
            deferred.insert(pod_uid.to_owned());
        } else {
            deferred.remove(pod_uid);
        }
    }

    /// There may be room now: those that wait for it ask again.
    pub fn retry_resizes(&self) {
        let deferred = self.deferred_resizes.lock().unwrap_or_else(PoisonError::into_inner);
        deferred.iter().for_each(|uid| self.wakers.wake(uid));
    }

    pub fn probe_tools(&self) -> Tools {
        Tools {
            runtime: self.runtime.clone(),
            recorder: self.recorder.clone(),
            clock: self.config.clock.clone(),
            metrics: self.probe_metrics.clone(),
        }
    }

    /// Notes what the runtime says of itself.
    pub fn learn_handlers(&self, answer: &pb::StatusResponse) {
        *self.handlers.lock().unwrap_or_else(PoisonError::into_inner) = answer.runtime_handlers.clone();
    }

    /// Whether the runtime gives pods of this handler user namespaces.
    pub fn supports_user_namespaces(&self, handler: &str) -> bool {
        let handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = handlers.iter().find(|known| known.name == handler);
        known.and_then(|known| known.features.as_ref()).is_some_and(|f| f.user_namespaces)
    }
}

/// The waits of containers that crash.
// Upstream: pkg/kubelet/kubelet.go newCrashLoopBackOff
fn restarts(longest: Duration) -> Mutex<Backoff> {
    Mutex::new(Backoff::new(Duration::from_secs(10).min(longest), longest))
}

/// Runs a kubelet on the runtime at the configured endpoint until the shutdown. Containers go on running.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let mut delay = Duration::from_millis(20);
    let channel = loop {
        // The engine may be starting at this moment, in this very process.
        match cri::connect(&config.cri_endpoint).await {
            Ok(channel) => break channel,
            Err(error @ cri::Error::Endpoint { .. }) => return Err(Error::Connect(error)),
            Err(error) if delay > Duration::from_secs(5) => return Err(Error::Connect(error)),
            Err(error) => tracing::debug!(%error, "waiting for the container runtime"),
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => delay = delay * 3 / 2,
            () = shutdown.cancelled() => return Ok(()),
        }
    };
    run_with(config, client, Arc::new(CriRuntime::new(channel)), shutdown).await
}

/// Runs a kubelet on a runtime of the caller's.
pub async fn run_with(
    config: Config,
    client: Client,
    runtime: Arc<dyn Runtime>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    // Everything ends with this, whether we are told to stop or a part fails.
    let shutdown = shutdown.child_token();
    let _stop = shutdown.clone().drop_guard();
    let client = client.named("kubelet/v1.36.2");
    let paths = Paths::new(&config.root_dir, &config.pod_logs_dir);
    for dir in [paths.pods(), paths.logs().to_owned(), paths.seccomp()] {
        let what = format!("the directory {}", dir.display());
        std::fs::create_dir_all(&dir).map_err(|source| Error::Prepare { what, source })?;
    }
    let version = runtime.version().await.map_err(Error::Runtime)?;
    let status = runtime.status().await.map_err(Error::Runtime)?;
    let machine = Machine::read(&config.root_dir);
    cgroup::create_classes(&config.cgroup_root, machine.milli_cpu).map_err(Error::Cgroup)?;
    let clock = config.clock.clone();
    let (recorder, delivery) =
        EventRecorder::new(client.clone(), "kubelet", &config.node_name, clock.clone());
    if let Err(error) = cgroup::enforce_allocatable(&config, &machine) {
        let message = format!(
            "Failed to update Node Allocatable Limits {:?}: {}",
            config.cgroup_root.join("kubepods"),
            crate::worker::with_causes(&error)
        );
        let about = node::reference(&config.node_name);
        recorder.event_about(about, EventType::Warning, "FailedNodeAllocatableEnforcement", message);
    }
    let informers = InformerFactory::new(client.clone(), shutdown.clone());
    let services = informers.informer::<Service>();
    let wakers = Wakers::default();
    let tokens = Arc::new(Tokens::new(client.clone(), clock.clone()));
    let csi = Arc::new(Csi::new(csi::Parts {
        paths: paths.clone(),
        node_name: config.node_name.clone(),
        boot_id: machine.boot_id.clone(),
        client: client.clone(),
        clock: clock.clone(),
        tokens: tokens.clone(),
        kinds: informers.informer(),
        wakers: wakers.clone(),
        recorder: recorder.clone(),
    }));
    let volumes = Volumes::new(
        paths.clone(),
        client.clone(),
        clock.clone(),
        ObjectCache::new(client.clone(), wakers.clone(), shutdown.clone()),
        ObjectCache::new(client.clone(), wakers.clone(), shutdown.clone()),
        tokens,
        csi.clone(),
    );
    let dra = Arc::new(Dra::open(config.root_dir.clone(), client.clone()));
    let core = Arc::new(Core {
        images: Images::new(runtime.clone(), clock, PulledImages::new(paths.image_manager())),
        restarts: restarts(config.max_restart_wait),
        publisher: Publisher::new(client.clone()),
        access: Delegated::new(client.clone()),
        runtime_name: version.runtime_name,
        runtime_version: version.runtime_version,
        changes: broadcast::Sender::new(256),
        network_ready: AtomicBool::new(false),
        pods: Mutex::default(),
        deferred_resizes: Mutex::default(),
        pressure: Pressure::default(),
        shutdown: Shutdown::default(),
        node: Mutex::default(),
        handlers: Mutex::new(status.runtime_handlers),
        probe_metrics: Arc::default(),
        devices: Arc::new(Devices::open(paths.device_plugins(), wakers.clone())),
        dra: dra.clone(),
        user_namespaces: Ranges::open(paths.clone(), config.max_pods),
        config,
        client,
        runtime,
        recorder,
        wakers,
        volumes,
        services,
        machine,
        paths,
    });
    let mut parts: JoinSet<Result<(), Error>> = JoinSet::new();
    if let Some(tls) = core.config.tls.clone() {
        let address = SocketAddr::new(core.config.address, core.config.port);
        let listener = server::listen(address, &tls).await?;
        parts.spawn(server::run(core.clone(), listener, shutdown.clone()));
    }
    let publisher = core.publisher.clone();
    let stop = shutdown.clone();
    parts.spawn(async move {
        delivery.run(stop).await;
        Ok(())
    });
    let stop = shutdown.clone();
    parts.spawn(async move {
        publisher.run(stop).await;
        Ok(())
    });
    parts.spawn(node::run(core.clone(), informers.clone(), shutdown.clone()));
    parts.spawn(pods::run(core.clone(), informers.clone(), shutdown.clone()));
    parts.spawn(pressure::run(core.clone(), shutdown.clone()));
    parts.spawn(shutdown::run(core.clone(), shutdown.clone()));
    parts.spawn(log_rotation::run(core.clone(), shutdown.clone()));
    let (registry, stop) = (core.paths.plugin_registry(), shutdown.clone());
    let handlers = Handlers::from([
        (csi::PLUGIN_KIND, csi.clone() as Arc<dyn plugins::Handler>),
        (dra::PLUGIN_KIND, dra as Arc<dyn plugins::Handler>),
    ]);
    parts.spawn(async move {
        tokio::join!(plugins::run(registry, handlers, stop.clone()), csi.run(stop));
        Ok(())
    });
    parts.spawn(devices::run(core.devices.clone(), shutdown.clone()));
    parts.spawn(devices::serve(core.clone(), core.paths.pod_resources(), shutdown.clone()));
    parts.spawn(pleg::run(core.clone(), shutdown.clone()));
    informers.start();
    let mut outcome = Ok(());
    while let Some(ended) = parts.join_next().await {
        let result = ended.unwrap_or(Ok(()));
        if result.is_err() && outcome.is_ok() {
            outcome = result;
        }
        shutdown.cancel();
    }
    informers.stopped().await;
    outcome
}
