//! The parts of a node, whether the control plane is in the same process or elsewhere: container engine, kubelet,
//! masquerading, routes to the pods of other nodes, network policies, the Service proxy, and a server of the cluster
//! DNS.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use api::Object;
use api::coordination::v1::Lease;
use api::core::v1::{Node, Taint};
use client::{Client, ListOptions, WatchEvent};
use tokio_util::sync::CancellationToken;

use crate::certificates::Current;
use crate::components::plain_serving;
use crate::join::objects::ClusterNetwork;
use crate::running::Running;
use crate::{host, parts};

/// Upstream: pkg/cluster/ports/ports.go
const KUBELET_PORT: u16 = 10250;
const PROXY_HEALTH_PORT: u16 = 10256;
const PROXY_METRICS_PORT: u16 = 10249;

/// How often to look whether a kubelet that was just started has renewed its lease.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a node is told.
pub struct Plan {
    pub data_dir: PathBuf,
    pub name: String,
    /// One a family; the first is the one that others use.
    pub ips: Vec<IpAddr>,
    pub network: ClusterNetwork,
    pub cgroup_root: String,
    /// The CRI socket of another engine; the built-in one when there is none.
    pub engine_endpoint: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
}

/// As whom the parts of a node act, and how they show themselves.
pub struct Identity {
    pub kubelet: Client,
    pub proxy: Client,
    pub serving: Arc<Current>,
    /// PEM of the authorities of those who may call the kubelet.
    pub authority: String,
}

/// Fails, before anything is touched, when a port of the node is taken or an address is not this machine's.
pub fn check_ports(ips: &[IpAddr]) -> anyhow::Result<()> {
    for port in [KUBELET_PORT, PROXY_HEALTH_PORT, dns::DEFAULT_PORT] {
        for ip in ips {
            let address = SocketAddr::new(*ip, port);
            std::net::TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        }
    }
    Ok(())
}

impl Plan {
    /// Starts all parts.
    pub async fn start(&self, running: &mut Running, identity: Identity) -> anyhow::Result<()> {
        self.network.remember(&self.data_dir)?;
        let ip = *self.ips.first().context("a node has an address")?;
        let backend = self.network.network_backend.into();
        let policy_dir = parts::policy_dir(&self.data_dir);
        let service_cidrs = &self.network.service_cidrs;
        let mut engine =
            parts::engine_config(&self.data_dir, &self.cgroup_root, service_cidrs, Some(&policy_dir))?;
        if let cri_server::CniConfig::Plugins { builtin, .. } = &mut engine.cni {
            builtin.mtu = proxy::routes::pod_mtu(ip, backend).await?;
        }
        // It listens before the kubelet starts the first pod.
        let policies = netpol::Config { node_name: self.name.clone(), dir: Some(policy_dir) };
        let policies = netpol::Agent::new(policies)?;
        running.spawn("network policies", policies.run(identity.proxy.clone(), running.shutdown.clone()));
        let endpoint = match &self.engine_endpoint {
            Some(endpoint) => endpoint.clone(),
            None => {
                let endpoint = format!("unix://{}", engine.socket.display());
                running.spawn("container engine", cri_server::run(engine, running.shutdown.clone()));
                endpoint
            }
        };
        let kubelet = kubelet::Config {
            cri_endpoint: endpoint,
            cluster_dns: self.network.cluster_dns.clone(),
            cluster_domain: self.network.cluster_domain.clone(),
            cgroup_root: PathBuf::from(&self.cgroup_root),
            static_pod_path: Some(self.data_dir.join("manifests")),
            node_labels: self.labels.clone(),
            taints: self.taints.clone(),
            tls: Some(kubelet::ServingTls {
                certificate: identity.serving,
                client_ca: identity.authority.into_bytes(),
            }),
            node_ips: self.ips.clone(),
            address: host::any_address(&self.ips),
            port: KUBELET_PORT,
            ..kubelet::Config::new(&self.name, ip, &self.data_dir, host::clock())
        };
        let log = log_ready(self.name.clone(), identity.kubelet.clone(), running.shutdown.clone());
        running.spawn("log of the node", log);
        running.spawn("kubelet", kubelet::run(kubelet, identity.kubelet.clone(), running.shutdown.clone()));
        let proxy = proxy::Config {
            node_name: self.name.clone(),
            cluster_cidrs: self.network.cluster_cidrs.clone(),
            healthz_address: Some(SocketAddr::new(ip, PROXY_HEALTH_PORT)),
            node_ports: proxy::NodePorts::Primary,
            clock: host::clock(),
            metrics: proxy::Metrics::default(),
        };
        let names = dns::Metrics::default();
        let (of_proxy, of_names) = (proxy.metrics.clone(), names.clone());
        // Two texts with one end.
        let tell = move || of_proxy.text().trim_end_matches("# EOF\n").to_owned() + &of_names.text();
        running.spawn("metrics of the network", serve_metrics(tell, running.shutdown.clone()));
        let routes = proxy::routes::Config {
            node_name: self.name.clone(),
            node_ip: ip,
            cluster_cidrs: self.network.cluster_cidrs.clone(),
            backend,
        };
        self.start_dns(running, identity.kubelet.named("coredns"), names);
        let shutdown = running.shutdown.clone();
        let keep = async move {
            let kept = proxy::routes::run(routes, identity.kubelet, shutdown).await;
            kept.context("the way to the pods of other nodes cannot be kept")
        };
        running.spawn("routes", keep);
        running.spawn("network", network(proxy, identity.proxy, running.shutdown.clone()));
        Ok(())
    }
}

impl Plan {
    /// The DNS of this node, which says so on the Node once it answers.
    fn start_dns(&self, running: &mut Running, client: Client, metrics: dns::Metrics) {
        let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let config = dns::Config {
            bind_addresses: self.ips.iter().map(|ip| SocketAddr::new(*ip, dns::DEFAULT_PORT)).collect(),
            cluster_domain: self.network.cluster_domain.clone(),
            upstreams: dns::upstreams(&resolv_conf),
            service_addresses: self.network.cluster_dns.clone(),
            metrics,
        };
        let name = self.name.clone();
        let shutdown = running.shutdown.clone();
        running.spawn("cluster DNS", async move {
            let announce = dns::announce(client.clone(), name, dns::DEFAULT_PORT, shutdown.clone());
            let (answered, ()) = tokio::join!(dns::run(config, client, shutdown), announce);
            anyhow::Ok(answered?)
        });
    }
}

/// Serves what is counted of Services and names, to scrapers on this machine, where upstream's proxy serves it. A
/// node works without.
async fn serve_metrics(
    metrics: impl Fn() -> String + Clone + Send + 'static,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    match host::listen(SocketAddr::from(([127, 0, 0, 1], PROXY_METRICS_PORT))).await {
        Ok(listener) => plain_serving::serve(listener, "nftables", metrics, shutdown).await,
        Err(error) => {
            tracing::warn!("the network's metrics are not served: {}", crate::logging::one_line(&error));
        }
    }
    Ok(())
}

/// Masquerading and Services.
async fn network(config: proxy::Config, client: Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    let range =
        |text: &String| text.parse().map_err(|_| anyhow::anyhow!("--cluster-cidr {text:?} is not a CIDR"));
    let ranges: Vec<cni::Cidr> = config.cluster_cidrs.iter().map(range).collect::<anyhow::Result<_>>()?;
    tokio::task::spawn_blocking(move || cni::setup_host(&ranges)).await??;
    proxy::run(config, client, shutdown).await.context("the Service proxy failed")
}

/// Says once that the node is Ready, by the word of a kubelet that runs now: its lease is newer than this process.
async fn log_ready(name: String, client: Client, shutdown: CancellationToken) -> Result<(), client::Error> {
    let begun = host::clock().now();
    let renewed = |lease: &Lease| {
        let time = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref());
        time.is_some_and(|time| time.0 >= begun)
    };
    let ready = |node: &Node| {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let watch = async {
        // A node may read its lease and not watch it.
        while !client.get::<Lease>("kube-node-lease", &name).await.is_ok_and(|lease| renewed(&lease)) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        wait_for::<Node>(&client, &name, ready).await?;
        tracing::info!(node = name, "the node is Ready");
        Ok(())
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        outcome = watch => outcome,
    }
}

/// Watches one object of the whole cluster until it is as hoped.
async fn wait_for<T: Object>(
    client: &Client,
    name: &str,
    hoped: impl Fn(&T) -> bool,
) -> Result<(), client::Error> {
    let only = ListOptions::fields(format!("metadata.name={name}"));
    loop {
        let mut watch = client.watch::<T>(None, &only).await?;
        while let Some(Ok(event)) = watch.next().await {
            if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event
                && hoped(&object)
            {
                return Ok(());
            }
        }
    }
}
