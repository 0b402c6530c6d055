//! The executor: events of the API server become dirty Services, dirty Services become one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Object;
use api::core::v1::{Node, Service};
use api::discovery::v1::EndpointSlice;
use client::Client;
use controller_runtime::{Event, Filter, Informer, InformerFactory};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::element::{Frontend, Protocol};
use crate::endpoints::Here;
use crate::health::{Answer, Servers};
use crate::ruleset::{Frame, Ruleset};
use crate::service::{self, Wanted};
use crate::{Config, Error};

/// How long events are gathered after the first: a rollout's come in bursts, and a transaction costs a process.
const GATHER: Duration = Duration::from_millis(5);
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);

const BY_SERVICE: &str = "service";

/// Keeps the table as the API server's Services want it until shutdown.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    for range in &config.cluster_cidrs {
        if !service::is_range(range) {
            return Err(Error::ClusterCidr(range.clone()));
        }
    }
    // The informers end with their own token, so that whatever way this ends they do.
    let stop = shutdown.child_token();
    let _stop_informers = stop.clone().drop_guard();
    let factory = InformerFactory::new(client, stop.clone());
    let view = View::new(&factory, &config.node_name);
    let dirty = Arc::new(Dirty::default());
    view.subscribe(&dirty);
    factory.start();

    let (healthy, answer) = watch::channel(Answer::Proxy { is_healthy: false });
    let servers = Servers::new(stop.clone());
    if let Some(address) = config.healthz_address {
        servers.serve_proxy(address, answer).await?;
    }
    if factory.synced().await {
        let mut proxy = Proxy::new(&config, view, servers);
        let ended = tokio::select! {
            () = stop.cancelled() => Ok(()),
            error = proxy.follow(&dirty, &healthy) => Err(error),
        };
        stop.cancel();
        proxy.servers.join().await;
        factory.stopped().await;
        return ended;
    }
    stop.cancel();
    servers.join().await;
    factory.stopped().await;
    Ok(())
}

/// What the API server says.
struct View {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    nodes: Informer<Node>,
    node_name: String,
}

/// Services that changed since they were last taken.
#[derive(Default)]
struct Dirty {
    services: Mutex<BTreeSet<String>>,
    all: AtomicBool,
    wake: Notify,
}

impl Dirty {
    fn add(&self, service: Option<String>) {
        match service {
            Some(service) => {
                self.services.lock().unwrap_or_else(PoisonError::into_inner).insert(service);
            }
            None => self.all.store(true, Ordering::SeqCst),
        }
        self.wake.notify_one();
    }

    /// The Services that changed, and whether all have to be looked at.
    fn take(&self) -> (BTreeSet<String>, bool) {
        let services = std::mem::take(&mut *self.services.lock().unwrap_or_else(PoisonError::into_inner));
        (services, self.all.swap(false, Ordering::SeqCst))
    }
}

/// The Service that a slice belongs to.
fn owner(slice: &EndpointSlice) -> Option<String> {
    let labels = slice.metadata.labels.as_ref()?;
    if service::is_foreign(Some(labels)) {
        return None;
    }
    Some(format!("{}/{}", slice.namespace(), labels.get("kubernetes.io/service-name")?))
}

impl View {
    fn new(factory: &InformerFactory, node_name: &str) -> Self {
        let slices = factory.informer::<EndpointSlice>();
        slices.add_index(BY_SERVICE, |slice| owner(slice).into_iter().collect());
        View {
            services: factory.informer(),
            slices,
            nodes: factory.filtered(Filter::fields(format!("metadata.name={node_name}"))),
            node_name: node_name.to_owned(),
        }
    }

    fn subscribe(&self, dirty: &Arc<Dirty>) {
        let services = dirty.clone();
        self.services.subscribe(move |event| services.add(Some(event.object().key())));
        let slices = dirty.clone();
        self.slices.subscribe(move |event| {
            for slice in [Some(event.object()), event.old()].into_iter().flatten() {
                if let Some(service) = owner(slice) {
                    slices.add(Some(service));
                }
            }
        });
        let nodes = dirty.clone();
        self.nodes.subscribe(move |event: &Event<Node>| {
            if event.old().map(|old| zone(old)) != Some(zone(event.object())) {
                nodes.add(None);
            }
        });
    }

    fn here(&self) -> Here {
        let node = self.nodes.get(&self.node_name);
        Here { node: self.node_name.clone(), zone: node.and_then(|node| zone(&node)) }
    }

    fn wanted(&self, service: &str, here: &Here) -> Wanted {
        let Some(object) = self.services.get(service) else { return Wanted::default() };
        let slices = self.slices.by_index(BY_SERVICE, service);
        let slices: Vec<&EndpointSlice> = slices.iter().map(|slice| &**slice).collect();
        service::wanted(&object, &slices, here)
    }
}

fn zone(node: &Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").cloned()
}

/// The state of the kernel's table, as far as this process brought it there.
struct Proxy {
    view: View,
    ruleset: Ruleset,
    wanted: BTreeMap<String, Wanted>,
    /// Whether the kernel's table is what `ruleset` says; if not, it is written whole.
    is_in_step: bool,
    servers: Servers,
}

impl Proxy {
    fn new(config: &Config, view: View, servers: Servers) -> Self {
        let ruleset = Ruleset::new(Frame { cluster_cidrs: config.cluster_cidrs.clone() });
        Proxy { view, ruleset, wanted: BTreeMap::new(), is_in_step: false, servers }
    }

    /// Carries out every change. Ends only where nothing can be done ever: without nft.
    async fn follow(&mut self, dirty: &Dirty, healthy: &watch::Sender<Answer>) -> Error {
        let mut retry = FIRST_RETRY;
        let mut udp = BTreeMap::new();
        dirty.add(None);
        loop {
            dirty.wake.notified().await;
            tokio::time::sleep(GATHER).await;
            let (services, all) = dirty.take();
            let batch = self.decide(services, all, &mut udp);
            let applied = apply(batch).await;
            healthy.send_replace(Answer::Proxy { is_healthy: applied.is_ok() });
            self.settle_health(applied.is_ok()).await;
            match applied {
                Ok(()) => {
                    self.is_in_step = true;
                    retry = FIRST_RETRY;
                    cut_flows(std::mem::take(&mut udp)).await;
                }
                Err(error @ Error::Table(linux::nft::Error::Missing)) => return error,
                Err(error) => {
                    tracing::error!(%error, "the table cannot be brought up to date; it will be written anew");
                    self.is_in_step = false;
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(LAST_RETRY);
                    dirty.wake.notify_one();
                }
            }
        }
    }

    /// Brings the ruleset up to date and returns the text that does the same to the kernel's table. Frontends
    /// of UDP whose endpoints changed are added to `udp`.
    fn decide(
        &mut self,
        mut services: BTreeSet<String>,
        all: bool,
        udp: &mut BTreeMap<Frontend, BTreeSet<SocketAddr>>,
    ) -> String {
        if all {
            services.extend(self.wanted.keys().cloned());
            services.extend(self.view.services.list().iter().map(|service| service.key()));
        }
        let here = self.view.here();
        for service in services {
            let wanted = self.view.wanted(&service, &here);
            let before = self.wanted.remove(&service).unwrap_or_default();
            if before == wanted {
                if wanted != Wanted::default() {
                    self.wanted.insert(service, wanted);
                }
                continue;
            }
            if before.udp != wanted.udp {
                udp.extend(wanted.udp.clone());
            }
            self.ruleset.set(&service, wanted.elements.clone());
            if wanted != Wanted::default() {
                self.wanted.insert(service, wanted);
            }
        }
        let change = self.ruleset.settle();
        if self.is_in_step { change.text() } else { self.ruleset.text() }
    }

    async fn settle_health(&mut self, is_healthy: bool) {
        let mut ports = HashMap::new();
        for (service, wanted) in &self.wanted {
            let Some(health) = wanted.health else { continue };
            let (namespace, name) = service.split_once('/').unwrap_or_default();
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            let local_endpoints = health.local_endpoints;
            ports.insert(health.port, Answer::Service { namespace, name, local_endpoints, is_healthy });
        }
        self.servers.settle(ports).await;
    }
}

async fn apply(batch: String) -> Result<(), Error> {
    if batch.is_empty() {
        return Ok(());
    }
    let applied = tokio::task::spawn_blocking(move || linux::nft::apply(&batch)).await;
    Ok(applied.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
}

/// Cuts the UDP flows to these frontends that lead anywhere but to their endpoints.
// Upstream: pkg/proxy/conntrack/cleanup.go CleanStaleEntries
async fn cut_flows(udp: BTreeMap<Frontend, BTreeSet<SocketAddr>>) {
    if udp.is_empty() {
        return;
    }
    let cut =
        tokio::task::spawn_blocking(move || linux::conntrack::delete(|flow| is_stale(flow, &udp))).await;
    match cut.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
        Ok(0) => {}
        Ok(count) => tracing::debug!(count, "cut UDP flows whose endpoint is gone"),
        Err(error) => tracing::warn!(%error, "cannot cut UDP flows whose endpoint is gone"),
    }
}

fn is_stale(flow: &linux::conntrack::Flow, udp: &BTreeMap<Frontend, BTreeSet<SocketAddr>>) -> bool {
    const UDP: u8 = 17;
    let (address, port, protocol) = (flow.destination.ip(), flow.destination.port(), Protocol::Udp);
    let frontends = [
        Frontend::Address { address, protocol, port },
        Frontend::NodePort { ipv6: address.is_ipv6(), protocol, port },
    ];
    flow.protocol == UDP
        && frontends
            .iter()
            .filter_map(|frontend| udp.get(frontend))
            .any(|live| !live.contains(&flow.reply_source))
}
