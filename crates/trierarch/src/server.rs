//! `trierarch server`: control plane and node in one process.
//!
//! What may fail is asked first, before anything is touched; then the parts start, each as soon as what it needs
//! is there. They talk to the API server as they would over the network, by an identity of their own, only that
//! the request is a function call.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use client::Client;
use controller_runtime::QueueMetrics;
use tokio_util::sync::CancellationToken;

use crate::control_plane::{ControlPlane, NODE_PORTS, Settings};
use crate::join::objects::{self, ClusterNetwork};
use crate::node::{self, Identity};
use crate::pki::Leaf;
use crate::running::Running;
use crate::trust::Given;
use crate::{cli, components, host};

pub async fn run(args: cli::Server) -> anyhow::Result<()> {
    let plan = Plan::new(&args)?;
    let shutdown = host::shutdown_signal()?;
    let listener = host::listen(SocketAddr::new(args.bind_address, args.secure_port)).await?;
    if let Some(node) = &plan.node {
        node::check_ports(node.ip, &[dns::DEFAULT_PORT])?;
    }
    let mut running = Running::new(shutdown.clone());
    // The API outlives the parts, so that they can say what they did last.
    let api_stop = CancellationToken::new();
    let control_plane = Arc::new(ControlPlane::start(&plan.settings, listener, api_stop.clone()).await?);
    start_control_plane(&mut running, &plan, &control_plane)?;
    if let Some(node) = &plan.node {
        start_node(&mut running, node, &control_plane)?;
    }
    let outcome = running.wait().await;
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
    network: ClusterNetwork,
    node: Option<node::Plan>,
}

impl Plan {
    fn new(args: &cli::Server) -> anyhow::Result<Self> {
        let flags = &args.network;
        let cluster_range = host::cidr("--cluster-cidr", &flags.cluster_cidr)?;
        let service_range = host::cidr("--service-cidr", &flags.service_cidr)?;
        host::check_apart([("--cluster-cidr", cluster_range), ("--service-cidr", service_range)])?;
        if !args.no_node {
            host::check_can_run_containers(", or give --no-node for a control plane only")?;
        }
        let network = ClusterNetwork {
            cluster_cidr: flags.cluster_cidr.clone(),
            service_cidr: flags.service_cidr.clone(),
            cluster_domain: flags.cluster_domain.clone(),
            cluster_dns: host::nth_address(service_range, 10),
        };
        let data_dir = std::path::absolute(&args.data.data_dir)?;
        let settings = Settings {
            kubeconfig: args.write_kubeconfig.clone().unwrap_or_else(|| data_dir.join("admin.kubeconfig")),
            data_dir,
            bind_address: args.bind_address,
            port: args.secure_port,
            node_name: args.node_name.clone().map_or_else(host::hostname, Ok)?,
            node_ip: args.node_ip.map_or_else(host::node_ip, Ok)?,
            service_range,
            cluster_domain: flags.cluster_domain.clone(),
            node_ports: NODE_PORTS,
            requests: args.requests.settings()?,
            encryption: args.encryption_provider_config.clone(),
            given: Given::default(),
            in_pieces: false,
            objects: [objects::rights(), objects::network(&network), vec![controllers::local_path_class()]]
                .concat(),
        };
        let node = node::Plan {
            data_dir: settings.data_dir.clone(),
            name: settings.node_name.clone(),
            ip: settings.node_ip,
            network: network.clone(),
            cgroup_root: args.cgroup_root.clone(),
            engine_endpoint: args.container_runtime_endpoint.clone(),
            labels: components::labels(&args.node_labels)?,
            taints: components::taints(&args.register_with_taints)?,
        };
        Ok(Plan { settings, network, node: (!args.no_node).then_some(node) })
    }
}

/// The parts of the control plane beside the API server. Each controller acts with the rights that it has
/// upstream and no more.
fn start_control_plane(
    running: &mut Running,
    plan: &Plan,
    control_plane: &Arc<ControlPlane>,
) -> anyhow::Result<()> {
    let cluster_cidr = plan.network.cluster_cidr.clone();
    let (root_ca_pem, signing_authority, sign_token) = {
        let pki = control_plane.renewal.pki();
        let sign_token = components::token_signer(pki.service_account_key())?;
        (pki.authority().to_owned(), pki.signing_authority(), sign_token)
    };
    let metrics = QueueMetrics::default();
    let queues = metrics.clone();
    control_plane.metrics().also(move |registry| queues.register(registry));
    let config = controllers::Config {
        node_cidr_mask: components::node_cidr_mask(&cluster_cidr)?,
        cluster_cidr,
        root_ca_pem,
        signing_authority: Some(signing_authority),
        sign_token: Some(sign_token),
        clock: host::clock(),
        disabled: Vec::new(),
        options: controllers::Options::default(),
        metrics,
    };
    // The clients hold the API server, not this.
    let accounts = control_plane.accounts();
    let clients = controllers::Clients {
        shared: control_plane.client("system:kube-controller-manager", &[]),
        of_account: Arc::new(move |name| accounts.client(name)),
    };
    let shutdown = running.shutdown.clone();
    running.spawn("controllers", controllers::run(config, clients, shutdown.clone()));
    let config = scheduler::Config {
        configuration: scheduler::Configuration::default(),
        clock: host::clock(),
        seed: rand::random(),
        identity: None,
    };
    let client = control_plane.client("system:kube-scheduler", &[]);
    running.spawn("scheduler", scheduler::run(config, client, shutdown.clone()));
    running.spawn("certificates", control_plane.renewal.clone().run(shutdown));
    Ok(())
}

/// The parts of the node, and the cluster DNS.
fn start_node(
    running: &mut Running,
    plan: &node::Plan,
    control_plane: &Arc<ControlPlane>,
) -> anyhow::Result<()> {
    let identity = Identity {
        kubelet: control_plane.client(&format!("system:node:{}", plan.name), &["system:nodes"]),
        proxy: control_plane.client("system:kube-proxy", &[]),
        serving: control_plane.renewal.current(Leaf::KubeletServer),
        authority: control_plane.renewal.pki().authority().to_owned(),
    };
    plan.start(running, identity)?;
    let local_path = controllers::LocalPath {
        node_name: plan.name.clone(),
        root: plan.data_dir.join("storage"),
        clock: host::clock(),
    };
    let admin = control_plane.client("system:local-path-provisioner", &["system:masters"]);
    let volumes = controllers::run_local_path(local_path, admin, running.shutdown.clone());
    running.spawn("local volumes", volumes);
    let admin = control_plane.client("system:kube-dns", &["system:masters"]);
    let dns = cluster_dns(plan.network.clone(), plan.name.clone(), plan.ip, admin, running.shutdown.clone());
    running.spawn("cluster DNS", dns);
    Ok(())
}

/// The DNS, and the Service by which pods find it.
async fn cluster_dns(
    network: ClusterNetwork,
    node_name: String,
    node_ip: IpAddr,
    client: Client,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let dns = dns::Config {
        bind_addresses: vec![SocketAddr::new(node_ip, dns::DEFAULT_PORT)],
        cluster_domain: network.cluster_domain.clone(),
        upstreams: dns::upstreams(&resolv_conf),
        service_addresses: vec![network.cluster_dns],
    };
    let publish = dns::ensure_service(&client, network.cluster_dns, &node_name, node_ip, dns::DEFAULT_PORT);
    tokio::try_join!(async { Ok(dns::run(dns, client.clone(), shutdown.clone()).await?) }, async {
        publish.await.context("cannot publish the cluster DNS")
    },)?;
    Ok(())
}
