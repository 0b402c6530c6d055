//! The executor: events of the API server become dirty Services, dirty Services become one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Object;
use api::core::v1::{Node, Service};
use api::discovery::v1::EndpointSlice;
use client::Client;
use controller_runtime::{Clock, Event, Filter, Informer, InformerFactory};
use linux::netlink::Netlink;
use linux::nft::{Family, Steps, has_table};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::element::{Frontend, Protocol};
use crate::endpoints::Here;
use crate::health::{Answer, Health, Servers, State};
use crate::metrics::{Metrics, Starved, Watched};
use crate::range::Range;
use crate::ruleset::{Frame, NodePorts, Ruleset, TABLE};
use crate::service::{self, Rest, Wanted};
use crate::slice::Slice;
use crate::{Config, Error};

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);

const BY_SERVICE: &str = "service";
/// The taint with which the autoscaler of clusters announces the end of a node.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Keeps the table as the API server's Services want it until shutdown.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    for range in &config.cluster_cidrs {
        if Range::parse(range).is_none() {
            return Err(Error::ClusterCidr(range.clone()));
        }
    }
    // The informers end with their own token, so that whatever way this ends they do.
    let stop = shutdown.child_token();
    let _stop_informers = stop.clone().drop_guard();
    let factory = InformerFactory::new(client, stop.clone());
    let view = View::new(&factory, &config.node_name);
    let dirty = Arc::new(Dirty { metrics: config.metrics.clone(), ..Dirty::default() });
    view.subscribe(&dirty);
    factory.start();

    let (state, seen) = watch::channel(State::default());
    let health = Health { state: seen, clock: config.clock.clone(), metrics: config.metrics.clone() };
    let servers = Servers::new(health, stop.clone());
    if let Some(address) = config.healthz_address {
        servers.serve_proxy(address).await?;
    }
    let mut proxy = Proxy::new(&config, view, servers);
    // The kernel takes chains and rules while the API server says what Services there are.
    let (synced, ()) = tokio::join!(factory.synced(), proxy.lay_out());
    if synced {
        let ended = tokio::select! {
            () = stop.cancelled() => Ok(()),
            error = proxy.follow(&dirty, &state) => Err(error),
        };
        stop.cancel();
        proxy.servers.join().await;
        factory.stopped().await;
        return ended;
    }
    stop.cancel();
    proxy.servers.join().await;
    factory.stopped().await;
    Ok(())
}

/// What the API server says.
struct View {
    services: Informer<Service>,
    slices: Informer<Slice>,
    nodes: Informer<Node>,
    node_name: String,
}

/// Services that changed since they were last taken.
#[derive(Default)]
struct Dirty {
    services: Mutex<BTreeSet<String>>,
    all: AtomicBool,
    wake: Notify,
    metrics: Metrics,
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

impl View {
    fn new(factory: &InformerFactory, node_name: &str) -> Self {
        let slices = factory.reduced::<EndpointSlice, Slice>(Filter::default());
        slices.add_index(BY_SERVICE, |slice| slice.service.iter().map(|name| name.to_string()).collect());
        View {
            services: factory.informer(),
            slices,
            nodes: factory.filtered(Filter::fields(format!("metadata.name={node_name}"))),
            node_name: node_name.to_owned(),
        }
    }

    fn subscribe(&self, dirty: &Arc<Dirty>) {
        let services = dirty.clone();
        self.services.subscribe(move |event| {
            services.metrics.changed(Watched::Service);
            services.add(Some(event.object().key()));
        });
        let slices = dirty.clone();
        self.slices.subscribe(move |event| {
            slices.metrics.changed(Watched::Endpoints);
            for slice in [Some(event.object()), event.old()].into_iter().flatten() {
                if let Some(service) = &slice.service {
                    slices.add(Some(service.to_string()));
                }
            }
        });
        let nodes = dirty.clone();
        self.nodes.subscribe(move |event: &Event<Node>| {
            let seen = |node: &Node| (zone(node), addresses(node), is_eligible(node));
            if event.old().map(|old| seen(old)) != Some(seen(event.object()))
                || matches!(event, Event::Deleted(_))
            {
                nodes.add(None);
            }
        });
    }

    fn here(&self) -> Here {
        let node = self.nodes.get(&self.node_name);
        Here {
            node: self.node_name.clone(),
            zone: node.as_ref().and_then(|node| zone(node)),
            addresses: node.map(|node| addresses(&node)).unwrap_or_default(),
        }
    }

    fn wanted(&self, service: &str, here: &Here) -> Wanted {
        let Some(object) = self.services.get(service) else { return Wanted::default() };
        let slices = self.slices.by_index(BY_SERVICE, service);
        let slices: Vec<&Slice> = slices.iter().map(|slice| &**slice).collect();
        service::wanted(&object, &slices, here)
    }
}

/// Whether balancers may send traffic to the node.
// Upstream: pkg/proxy/healthcheck/proxy_health.go NodeEligible
fn is_eligible(node: &Node) -> bool {
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    node.metadata.deletion_timestamp.is_none() && !taints.any(|taint| taint.key == TO_BE_DELETED)
}

/// The node's first address of each family; internal ones go before external ones.
// Upstream: pkg/util/node/node.go GetNodeHostIPs
fn addresses(node: &Node) -> Vec<IpAddr> {
    let all = || node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let of = |kind: &'static str| all().filter(move |address| address.type_ == kind);
    let ips = of("InternalIP").chain(of("ExternalIP"));
    let ips = ips.filter_map(|address| address.address.parse::<IpAddr>().ok());
    let mut found: Vec<IpAddr> = Vec::new();
    for ip in ips {
        if !found.iter().any(|other| other.is_ipv6() == ip.is_ipv6()) {
            found.push(ip);
        }
    }
    found
}

fn zone(node: &Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").cloned()
}

/// The state of the kernel's table, as far as this process brought it there.
struct Proxy {
    view: View,
    ruleset: Ruleset,
    /// What Services want besides elements, which the ruleset keeps; of those that want any of it.
    wanted: BTreeMap<String, Rest>,
    /// Whether the kernel's table is what `ruleset` says; if not, it is written whole.
    is_in_step: bool,
    servers: Servers,
    /// How many ports have no endpoint here though their policy is Local.
    starved: BTreeMap<Starved, usize>,
    node_ports: NodePorts,
    clock: Clock,
    metrics: Metrics,
}

impl Proxy {
    fn new(config: &Config, view: View, servers: Servers) -> Self {
        let node_ports = config.node_ports.clone();
        let frame = Frame { cluster_cidrs: config.cluster_cidrs.clone(), node_ports: node_ports.clone() };
        Proxy {
            view,
            ruleset: Ruleset::new(frame),
            wanted: BTreeMap::new(),
            is_in_step: false,
            servers,
            starved: BTreeMap::new(),
            node_ports,
            clock: config.clock.clone(),
            metrics: config.metrics.clone(),
        }
    }

    /// Makes the table, empty of Services, where none is yet: until they are known they do not work either way. What
    /// fails here is tried again, and told of, with the first change.
    async fn lay_out(&mut self) {
        // Services work by what is there, and shall at every moment.
        if !has_tables() {
            self.is_in_step = apply(Steps::of_text(self.ruleset.text())).await.is_ok();
        }
    }

    /// Carries out every change. Ends only where nothing can be done ever: without nft.
    async fn follow(&mut self, dirty: &Dirty, state: &watch::Sender<State>) -> Error {
        let mut retry = FIRST_RETRY;
        let mut udp = BTreeMap::new();
        dirty.add(None);
        loop {
            dirty.wake.notified().await;
            let queued = self.clock.now();
            self.metrics.queued(queued);
            state.send_modify(|state| {
                state.pending_since.get_or_insert(queued);
            });
            let begun = tokio::time::Instant::now();
            let (services, all) = dirty.take();
            let is_full = all || !self.is_in_step;
            let applied = apply(self.decide(services, all, &mut udp)).await;
            self.metrics.synced(begun.elapsed(), is_full, applied.is_ok(), self.clock.now());
            if applied.is_ok() {
                let node = self.view.nodes.get(&self.view.node_name);
                let is_node_eligible = node.is_some_and(|node| is_eligible(&node));
                let last_updated = Some(self.clock.now());
                state.send_replace(State { last_updated, pending_since: None, is_node_eligible });
            }
            self.settle_health().await;
            match applied {
                Ok(()) => {
                    self.is_in_step = true;
                    retry = FIRST_RETRY;
                    cut_flows(std::mem::take(&mut udp), &self.metrics).await;
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

    /// Brings the ruleset up to date and returns what does the same to the kernel's table. Frontends of UDP whose
    /// endpoints changed are added to `udp`.
    fn decide(
        &mut self,
        mut services: BTreeSet<String>,
        all: bool,
        udp: &mut BTreeMap<Frontend, BTreeSet<SocketAddr>>,
    ) -> Steps {
        if all {
            services.extend(self.ruleset.services().map(str::to_owned));
            services.extend(self.wanted.keys().cloned());
            services.extend(self.view.services.list().iter().map(|service| service.key()));
        }
        let here = self.view.here();
        self.ruleset.set_node(&here.addresses);
        for service in services {
            let Wanted { elements, rest } = self.view.wanted(&service, &here);
            let before = self.wanted.remove(&service).unwrap_or_default();
            if before.udp != rest.udp {
                udp.extend(rest.udp.clone());
            }
            self.count_starved(&before.starved, &rest.starved);
            self.ruleset.set(&service, elements);
            if rest != Rest::default() {
                self.wanted.insert(service, rest);
            }
        }
        let change = self.ruleset.settle();
        if self.is_in_step { change.steps() } else { Steps::of_text(self.ruleset.text()) }
    }

    fn count_starved(&mut self, before: &[Starved], after: &[Starved]) {
        for starved in after {
            *self.starved.entry(*starved).or_default() += 1;
        }
        for starved in before {
            self.starved.entry(*starved).and_modify(|count| *count -= 1);
        }
        for starved in before.iter().chain(after) {
            self.metrics.starved(*starved, self.starved.get(starved).copied().unwrap_or(0));
        }
    }

    async fn settle_health(&mut self) {
        let mut ports = HashMap::new();
        for (service, wanted) in &self.wanted {
            let Some(health) = wanted.health else { continue };
            let (namespace, name) = service.split_once('/').unwrap_or_default();
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            let local_endpoints = health.local_endpoints;
            ports.insert(health.port, Answer::Service { namespace, name, local_endpoints });
        }
        let addresses = if ports.is_empty() { Vec::new() } else { self.health_addresses().await };
        self.servers.settle(ports, &addresses).await;
    }

    /// Where the ports of health checks are: where node ports are.
    async fn health_addresses(&self) -> Vec<IpAddr> {
        let primary = self.view.here().addresses;
        if self.node_ports == NodePorts::All {
            return vec![Ipv6Addr::UNSPECIFIED.into()];
        }
        if self.node_ports == NodePorts::Primary {
            return primary;
        }
        let present = async { Netlink::open()?.addresses(None).await };
        match present.await {
            Ok(present) => {
                let present = present.into_iter().map(|(address, _)| address);
                present.filter(|address| self.node_ports.are_at(*address, &primary)).collect()
            }
            Err(error) => {
                tracing::warn!(%error, "the node's addresses cannot be listed; health checks are at all");
                vec![Ipv6Addr::UNSPECIFIED.into()]
            }
        }
    }
}

/// Whether an earlier proxy left a table; so too when the kernel does not say.
fn has_tables() -> bool {
    [Family::Ip, Family::Ip6].into_iter().any(|family| has_table(family, TABLE).unwrap_or(true))
}

async fn apply(steps: Steps) -> Result<(), Error> {
    let applied = tokio::task::spawn_blocking(|| steps.apply()).await;
    Ok(applied.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
}

/// Cuts the UDP flows to these frontends that lead anywhere but to their endpoints.
// Upstream: pkg/proxy/conntrack/cleanup.go CleanStaleEntries
async fn cut_flows(udp: BTreeMap<Frontend, BTreeSet<SocketAddr>>, metrics: &Metrics) {
    if udp.is_empty() {
        return;
    }
    let begun = tokio::time::Instant::now();
    let cut = tokio::task::spawn_blocking(move || {
        let mut counts = [0; 2];
        linux::conntrack::delete(|flow| {
            let is_stale = is_stale(flow, &udp);
            counts[usize::from(flow.destination.is_ipv6())] += usize::from(is_stale);
            is_stale
        })
        .map(|cut| (cut, counts))
    })
    .await;
    let cut = cut.map(|cut| {
        cut.map(|(cut, counts)| {
            for (is_ipv6, count) in [(false, counts[0]), (true, counts[1])] {
                metrics.cut(begun.elapsed(), is_ipv6, count);
            }
            cut
        })
    });
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
