//! `trierarch server`: control plane and node in one process.
//!
//! What may fail is asked first, before anything is touched; then the parts start, each as soon as what it needs
//! is there. They talk to the API server as they would over the network, by an identity of their own, only that
//! the request is a function call.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use api::Object;
use api::coordination::v1::Lease;
use api::core::v1::Node;
use client::{Client, ListOptions, WatchEvent};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::control_plane::{ControlPlane, Settings};
use crate::pki::Leaf;
use crate::{cli, components, host, parts};

/// How long parts may take to end after the signal, before they are left behind.
const PATIENCE: Duration = Duration::from_secs(10);

/// Upstream: pkg/cluster/ports/ports.go
const KUBELET_PORT: u16 = 10250;
const PROXY_HEALTH_PORT: u16 = 10256;

pub async fn run(args: cli::Server) -> anyhow::Result<()> {
    let plan = Plan::new(&args)?;
    let shutdown = host::shutdown_signal()?;
    let address = SocketAddr::new(args.bind_address, args.secure_port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    if plan.with_node {
        plan.check_ports()?;
    }
    let mut server = Server::new(shutdown.clone());
    // The API outlives the parts, so that they can say what they did last.
    let api_stop = CancellationToken::new();
    let control_plane = Arc::new(ControlPlane::start(&plan.settings, listener, api_stop.clone()).await?);
    server.control_plane(&plan, &control_plane)?;
    if plan.with_node {
        server.node(&plan, &control_plane)?;
    }
    let outcome = server.wait().await;
    api_stop.cancel();
    match Arc::into_inner(control_plane) {
        Some(control_plane) => control_plane.stopped().await,
        None => tracing::warn!("a part that did not end still uses the API server"),
    }
    outcome
}

/// What the flags come to, checked.
struct Plan {
    settings: Settings,
    with_node: bool,
    engine_endpoint: Option<String>,
    cgroup_root: String,
    dns_ip: IpAddr,
}

impl Plan {
    fn new(args: &cli::Server) -> anyhow::Result<Self> {
        host::cidr("--cluster-cidr", &args.network.cluster_cidr)?;
        let service_range = host::cidr("--service-cidr", &args.network.service_cidr)?;
        if !args.no_node {
            host::check_can_run_containers()?;
        }
        let data_dir = std::path::absolute(&args.data.data_dir)?;
        let kubeconfig = args.write_kubeconfig.clone().unwrap_or_else(|| data_dir.join("admin.kubeconfig"));
        let settings = Settings {
            data_dir,
            kubeconfig,
            bind_address: args.bind_address,
            port: args.secure_port,
            node_name: args.node_name.clone().map_or_else(host::hostname, Ok)?,
            node_ip: args.node_ip.map_or_else(host::node_ip, Ok)?,
            service_ip: host::nth_address(service_range, 1),
            network: args.network.clone(),
        };
        Ok(Plan {
            settings,
            with_node: !args.no_node,
            engine_endpoint: args.container_runtime_endpoint.clone(),
            cgroup_root: args.cgroup_root.clone(),
            dns_ip: host::nth_address(service_range, 10),
        })
    }

    /// Fails, before anything is touched, when a port of the node is taken or its address is not this machine's.
    fn check_ports(&self) -> anyhow::Result<()> {
        for port in [KUBELET_PORT, PROXY_HEALTH_PORT, dns::DEFAULT_PORT] {
            let address = SocketAddr::new(self.settings.node_ip, port);
            std::net::TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        }
        Ok(())
    }

    fn data_dir(&self) -> &Path {
        &self.settings.data_dir
    }
}

/// The parts that run. The first that ends ends all.
struct Server {
    shutdown: CancellationToken,
    parts: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Server {
    fn new(shutdown: CancellationToken) -> Self {
        Server { shutdown, parts: JoinSet::new() }
    }

    fn spawn<E>(&mut self, name: &'static str, part: impl Future<Output = Result<(), E>> + Send + 'static)
    where
        anyhow::Error: From<E>,
    {
        self.parts.spawn(async move { (name, part.await.map_err(anyhow::Error::from)) });
    }

    /// The parts of the control plane beside the API server.
    fn control_plane(&mut self, plan: &Plan, control_plane: &Arc<ControlPlane>) -> anyhow::Result<()> {
        let settings = &plan.settings;
        let config = controllers::Config {
            node_cidr_mask: components::node_cidr_mask(&settings.network.cluster_cidr)?,
            cluster_cidr: settings.network.cluster_cidr.clone(),
            root_ca_pem: control_plane.pki().authority().to_owned(),
            clock: host::clock(),
            disabled: Vec::new(),
        };
        let client = control_plane.client("system:kube-controller-manager", &["system:masters"]);
        self.spawn("controllers", controllers::run(config, client, self.shutdown.clone()));

        let config = scheduler::Config {
            scheduler_name: "default-scheduler".into(),
            clock: host::clock(),
            seed: rand::random(),
            identity: None,
        };
        let client = control_plane.client("system:kube-scheduler", &[]);
        self.spawn("scheduler", scheduler::run(config, client, self.shutdown.clone()));
        self.spawn("certificates", control_plane.renewal(settings.clone(), self.shutdown.clone()));
        Ok(())
    }

    /// The parts of the node.
    fn node(&mut self, plan: &Plan, control_plane: &Arc<ControlPlane>) -> anyhow::Result<()> {
        let settings = &plan.settings;
        let service_cidrs = [settings.network.service_cidr.clone()];
        let engine = parts::engine_config(plan.data_dir(), &plan.cgroup_root, &service_cidrs)?;
        let endpoint = match &plan.engine_endpoint {
            Some(endpoint) => endpoint.clone(),
            None => {
                let endpoint = format!("unix://{}", engine.socket.display());
                self.spawn("container engine", cri_server::run(engine, self.shutdown.clone()));
                endpoint
            }
        };
        let node_user = format!("system:node:{}", settings.node_name);
        let node_client = control_plane.client(&node_user, &["system:nodes"]);
        let kubelet = kubelet::Config {
            cri_endpoint: endpoint,
            cluster_dns: vec![plan.dns_ip],
            cluster_domain: settings.network.cluster_domain.clone(),
            cgroup_root: PathBuf::from(&plan.cgroup_root),
            static_pod_path: Some(plan.data_dir().join("manifests")),
            tls: Some(kubelet::ServingTls {
                certificate: control_plane.certificate(Leaf::KubeletServer),
                client_ca: control_plane.pki().authority().as_bytes().to_vec(),
            }),
            ..kubelet::Config::new(&settings.node_name, settings.node_ip, plan.data_dir(), host::clock())
        };
        self.spawn("kubelet", kubelet::run(kubelet, node_client, self.shutdown.clone()));
        let clients = Clients {
            proxy: control_plane.client("system:kube-proxy", &[]),
            admin: control_plane.client("system:kube-dns", &["system:masters"]),
        };
        self.spawn("network", network(settings.clone(), plan.dns_ip, clients, self.shutdown.clone()));
        // A node may not watch its lease.
        let watcher = control_plane.client("system:apiserver", &["system:masters"]);
        self.spawn("log of the node", log_ready(settings.node_name.clone(), watcher, self.shutdown.clone()));
        Ok(())
    }

    /// Waits for the signal, or for a part that ends without it; then for all parts.
    async fn wait(mut self) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        loop {
            let ended = tokio::select! {
                () = self.shutdown.cancelled() => break,
                ended = self.parts.join_next() => ended,
            };
            match ended {
                // The log of the node has done its work.
                Some(Ok((_, Ok(())))) => {}
                Some(Ok((name, Err(error)))) => {
                    outcome = Err(error.context(format!("the {name} failed")));
                    break;
                }
                Some(Err(panic)) => {
                    outcome = Err(anyhow::anyhow!(panic).context("a part panicked"));
                    break;
                }
                None => break,
            }
        }
        self.shutdown.cancel();
        let end = async {
            while let Some(ended) = self.parts.join_next().await {
                if let Ok((name, Err(error))) = ended {
                    tracing::warn!("the {name} ended badly: {error:#}");
                }
            }
        };
        if tokio::time::timeout(PATIENCE, end).await.is_err() {
            tracing::warn!("some parts did not end within {} s", PATIENCE.as_secs());
        }
        outcome
    }
}

/// The clients of the network's parts.
struct Clients {
    proxy: Client,
    /// Of the DNS, which publishes itself too.
    admin: Client,
}

/// Masquerading, Services and names.
async fn network(
    settings: Settings,
    dns_ip: IpAddr,
    clients: Clients,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let cluster_cidr = settings.network.cluster_cidr.clone();
    let range =
        cluster_cidr.parse().map_err(|_| anyhow::anyhow!("--cluster-cidr {cluster_cidr:?} is not a CIDR"))?;
    tokio::task::spawn_blocking(move || cni::setup_host(&[range])).await??;
    let proxy = proxy::Config {
        node_name: settings.node_name.clone(),
        cluster_cidrs: vec![cluster_cidr],
        healthz_address: Some(SocketAddr::new(settings.node_ip, PROXY_HEALTH_PORT)),
    };
    let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let dns = dns::Config {
        bind_addresses: vec![SocketAddr::new(settings.node_ip, dns::DEFAULT_PORT)],
        cluster_domain: settings.network.cluster_domain.clone(),
        upstreams: dns::upstreams(&resolv_conf),
        service_addresses: vec![dns_ip],
    };
    let publish =
        dns::ensure_service(&clients.admin, dns_ip, &settings.node_name, settings.node_ip, dns::DEFAULT_PORT);
    tokio::try_join!(
        async {
            proxy::run(proxy, clients.proxy.clone(), shutdown.clone())
                .await
                .context("the Service proxy failed")
        },
        async {
            dns::run(dns, clients.admin.clone(), shutdown.clone()).await.context("the cluster DNS failed")
        },
        async { publish.await.context("cannot publish the cluster DNS") },
    )?;
    Ok(())
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
        wait_for::<Lease>(&client, Some("kube-node-lease"), &name, renewed).await?;
        wait_for::<Node>(&client, None, &name, ready).await?;
        tracing::info!(node = name, "the node is Ready");
        Ok(())
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        outcome = watch => outcome,
    }
}

/// Watches one object until it is as hoped.
async fn wait_for<T: Object>(
    client: &Client,
    namespace: Option<&str>,
    name: &str,
    hoped: impl Fn(&T) -> bool,
) -> Result<(), client::Error> {
    let only = ListOptions::fields(format!("metadata.name={name}"));
    loop {
        let mut watch = client.watch::<T>(namespace, &only).await?;
        while let Some(Ok(event)) = watch.next().await {
            if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event
                && hoped(&object)
            {
                return Ok(());
            }
        }
    }
}
