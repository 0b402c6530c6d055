//! The Node object: registered, kept true, and its Lease renewed; and the machine's own upkeep.

pub mod allocatable;
mod machine;
mod object;
mod upkeep;

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use api::Object;
use api::coordination::v1::{Lease, LeaseSpec};
use api::core::v1::{Node, NodeStatus};
use client::{PatchType, Resource};
use controller_runtime::{EventRecorder, EventType, Filter, Informer, InformerFactory};
use cri::v1 as pb;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::core::Core;
use crate::runtime::describe;
use crate::status::patch;
pub use machine::Machine;
pub use object::reference;
pub use upkeep::{Ages, free_images};

const LEASE_NAMESPACE: &str = "kube-node-lease";
pub const LEASE_SECONDS: i32 = 40;
const RENEW: Duration = Duration::from_secs(10);
/// How often the status is written although nothing changed.
pub const REPORT: Duration = Duration::from_secs(300);
/// How often a runtime that is ready is asked again.
const CHECK: Duration = Duration::from_secs(30);

/// Keeps the node's objects until the shutdown.
pub async fn run(
    core: Arc<Core>,
    informers: InformerFactory,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let name = core.config.node_name.clone();
    let informer = informers.filtered::<Node>(Filter::fields(format!("metadata.name={name}")));
    let seen = Arc::new(tokio::sync::Notify::new());
    let (told, shared) = (seen.clone(), core.clone());
    informer.subscribe(move |event| {
        let node = (!matches!(event, controller_runtime::Event::Deleted(_))).then(|| event.object().clone());
        *shared.node.lock().unwrap_or_else(PoisonError::into_inner) = node.clone();
        if let Some(node) = node {
            shared.volumes.csi.node_changed(&node);
        }
        told.notify_one();
    });
    let mut keeper =
        Keeper { core, informer, pod_cidr: String::new(), reported: None, ready: false, images: None };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = keeper.keep(&seen) => {}
    }
    Ok(())
}

struct Keeper {
    core: Arc<Core>,
    informer: Informer<Node>,
    /// The range that the runtime was told.
    pod_cidr: String,
    reported: Option<tokio::time::Instant>,
    ready: bool,
    images: Option<Vec<pb::Image>>,
}

impl Keeper {
    async fn keep(&mut self, seen: &tokio::sync::Notify) {
        self.informer.synced().await;
        let mut delay = Duration::from_millis(50);
        while self.core.config.register
            && let Err(error) = self.register().await
        {
            tracing::debug!(%error, "cannot register the node yet");
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_secs(7));
        }
        let about = object::reference(&self.core.config.node_name);
        self.core.recorder.event_about(about, EventType::Normal, "Starting", "Starting kubelet.");
        upkeep::look_at_images(&self.core).await;
        let mut renew = tokio::time::interval(RENEW);
        let mut upkeep = tokio::time::interval(REPORT);
        upkeep.tick().await;
        let mut check = Box::pin(tokio::time::sleep(Duration::ZERO));
        let mut retry = Duration::from_millis(50);
        let shared = self.core.clone();
        let mut shutting_down = shared.shutdown.watch();
        loop {
            tokio::select! {
                _ = renew.tick() => self.renew_lease().await,
                _ = upkeep.tick() => {
                    self.images = None;
                    upkeep::collect_images(&self.core).await;
                }
                () = shared.pressure.changed() => self.check().await,
                Ok(()) = shutting_down.changed() => self.check().await,
                () = shared.volumes.csi.in_use_changed() => self.check().await,
                () = shared.devices.changed() => self.check().await,
                () = seen.notified() => {
                    if self.tell_pod_cidr().await {
                        self.check().await;
                    }
                }
                () = &mut check => {
                    self.check().await;
                    // A runtime that is starting has no event to tell that it is ready.
                    retry = if self.ready { Duration::from_millis(50) } else { (retry * 2).min(Duration::from_secs(5)) };
                    let next = if self.ready { CHECK } else { retry };
                    check.as_mut().reset(tokio::time::Instant::now() + next);
                }
            }
        }
    }

    async fn register(&mut self) -> Result<(), client::Error> {
        let node = object::initial(&self.core);
        match self.core.client.create(&node).await {
            Ok(node) => drop(self.informer.assume(node)),
            Err(error) if error.is_already_exists() => self.adopt(&node).await?,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The node is there from an earlier start: bring its labels and annotations up to date.
    async fn adopt(&self, wanted: &Node) -> Result<(), client::Error> {
        let metadata = serde_json::json!({
            "labels": wanted.metadata.labels,
            "annotations": wanted.metadata.annotations,
        });
        let patch = serde_json::json!({ "metadata": metadata });
        let name = &self.core.config.node_name;
        let node = self.core.client.patch::<Node>("", name, None, PatchType::Strategic, &patch).await?;
        self.informer.assume(node);
        Ok(())
    }

    /// Passes the node's pod range on to the runtime. True when that is news.
    async fn tell_pod_cidr(&mut self) -> bool {
        let node = self.informer.get(&self.core.config.node_name);
        let cidrs = node.as_ref().and_then(|n| n.spec.as_ref()).map(|s| match (&s.pod_cidrs, &s.pod_cidr) {
            (Some(all), _) if !all.is_empty() => all.join(","),
            (_, one) => one.clone().unwrap_or_default(),
        });
        let cidr = cidrs.unwrap_or_default();
        if cidr.is_empty() || cidr == self.pod_cidr {
            return false;
        }
        match self.core.runtime.set_pod_cidr(&cidr).await {
            Ok(()) => {
                self.pod_cidr = cidr;
                true
            }
            Err(error) => {
                tracing::warn!(error = %describe(&error), "the runtime does not take the pod range");
                false
            }
        }
    }

    /// Asks the runtime how it is, and reports the node if anything changed or it is time.
    async fn check(&mut self) {
        if self.pod_cidr.is_empty() {
            self.tell_pod_cidr().await;
        }
        let health = self.core.runtime.status().await;
        let mut problems = object::problems(&health);
        if let Ok(answer) = &health {
            self.core.learn_handlers(answer);
        }
        if self.core.shutdown.has_begun() {
            problems.push("node is shutting down".to_owned());
        }
        let network = !problems.iter().any(|p| p.contains("NetworkReady")) && health.is_ok();
        let before = self.core.network_ready.swap(network, Ordering::Relaxed);
        if network && !before {
            self.core.wakers.wake_all();
        }
        if self.images.is_none() {
            self.images = self.core.runtime.images().await.ok();
        }
        let Some(node) = self.informer.get(&self.core.config.node_name) else {
            if self.core.config.register
                && let Err(error) = self.register().await
            {
                tracing::debug!(%error, "cannot register the node yet");
            }
            return;
        };
        let images = self.images.as_deref().unwrap_or_default();
        let status = object::status(&self.core, node.status.as_ref(), &problems, images);
        let due = self.reported.is_none_or(|at| at.elapsed() >= REPORT);
        let ready = object::is_ready(&status);
        if due || object::differs(node.status.as_ref(), &status) {
            match self.write(&node, &status).await {
                Ok(()) => self.reported = Some(tokio::time::Instant::now()),
                Err(error) => {
                    tracing::warn!(%error, "cannot report the node's status yet");
                    self.ready = false;
                    return;
                }
            }
        }
        if ready != self.ready {
            record(&self.core.recorder, &self.core.config.node_name, ready);
        }
        self.ready = ready;
    }

    async fn write(&self, node: &Node, status: &NodeStatus) -> Result<(), client::Error> {
        let value = |s: &NodeStatus| serde_json::to_value(s).unwrap_or(Value::Null);
        let old = node.status.as_ref().map(value).unwrap_or_default();
        let mut new = value(status);
        // What others wrote into the status and we do not know stays.
        for (key, before) in old.as_object().into_iter().flatten() {
            if new.get(key).is_none() {
                new[key] = before.clone();
            }
        }
        let Some(patch) = patch::diff(&old, &new, None) else { return Ok(()) };
        let nodes = Resource::of::<Node>();
        let name = &self.core.config.node_name;
        let written =
            self.core.client.patch_value(&nodes, "", name, Some("status"), PatchType::Strategic, &patch);
        if let Ok(node) = Node::from_value(written.await?) {
            self.informer.assume(node);
        }
        Ok(())
    }

    // Upstream: k8s.io/component-helpers/apimachinery/lease/controller.go
    async fn renew_lease(&self) {
        let name = &self.core.config.node_name;
        let now = self.core.config.clock.micro_time();
        let renewed = match self.core.client.get::<Lease>(LEASE_NAMESPACE, name).await {
            Ok(mut lease) => {
                let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
                spec.renew_time = Some(now);
                spec.holder_identity = Some(name.clone());
                spec.lease_duration_seconds = Some(LEASE_SECONDS);
                self.core.client.update(&lease).await.map(drop)
            }
            Err(error) if error.is_not_found() => {
                let node = self.informer.get(name);
                let lease = object::lease(name, node.as_deref(), now, LEASE_NAMESPACE, LEASE_SECONDS);
                self.core.client.create(&lease).await.map(drop)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = renewed {
            tracing::debug!(%error, "cannot renew the node's lease");
        }
    }
}

fn record(recorder: &EventRecorder, name: &str, ready: bool) {
    let reason = if ready { "NodeReady" } else { "NodeNotReady" };
    let message = format!("Node {name} status is now: {reason}");
    recorder.event_about(object::reference(name), EventType::Normal, reason, message);
}
