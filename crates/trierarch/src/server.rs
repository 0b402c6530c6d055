//! `trierarch server`: control plane and node in one process.
//!
//! What may fail is asked first, before anything is touched; then the parts start, each as soon as what it needs
//! is there. They talk to the API server as they would over the network, by an identity of their own, only that
//! the request is a function call.

use std::net::SocketAddr;
use std::sync::Arc;

use controller_runtime::{InformerFactory, QueueMetrics};
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
    let listener = host::listen(SocketAddr::new(plan.settings.bind_address, args.secure_port)).await?;
    if let Some(node) = &plan.node {
        node::check_ports(&node.ips)?;
    }
    let mut running = Running::new(shutdown.clone());
    // The API outlives the parts, so that they can say what they did last.
    let api_stop = CancellationToken::new();
    let control_plane = Arc::new(ControlPlane::start(&plan.settings, listener, api_stop.clone()).await?);
    start_control_plane(&mut running, &plan, &control_plane)?;
    if let Some(node) = &plan.node {
        start_node(&mut running, node, &control_plane).await?;
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
    disabled_controllers: Vec<String>,
    node: Option<node::Plan>,
}

impl Plan {
    fn new(args: &cli::Server) -> anyhow::Result<Self> {
        let flags = &args.network;
        let cluster_ranges = host::cidrs("--cluster-cidr", &flags.cluster_cidr)?;
        let service_ranges = host::cidrs("--service-cidr", &flags.service_cidr)?;
        host::check_apart(("--cluster-cidr", &cluster_ranges), ("--service-cidr", &service_ranges))?;
        // What the `kubernetes` Service leads to is of its family.
        let node_ips = host::node_ips(&args.node.node_ip, &service_ranges)?;
        if !args.no_node {
            host::check_can_run_containers(", or give --no-node for a control plane only")?;
        }
        let network = ClusterNetwork {
            cluster_cidrs: cluster_ranges.iter().map(|(first, length)| format!("{first}/{length}")).collect(),
            service_cidrs: service_ranges.iter().map(|(first, length)| format!("{first}/{length}")).collect(),
            cluster_domain: flags.cluster_domain.clone(),
            cluster_dns: service_ranges.iter().map(|range| host::nth_address(*range, 10)).collect(),
            network_backend: flags.network_backend,
        };
        let data_dir = std::path::absolute(&args.data.data_dir)?;
        let settings = Settings {
            kubeconfig: args.write_kubeconfig.clone().unwrap_or_else(|| data_dir.join("admin.kubeconfig")),
            data_dir,
            bind_address: args.bind_address.unwrap_or_else(|| host::any_address(&node_ips)),
            port: args.secure_port,
            node_name: args.node.node_name.clone().map_or_else(host::hostname, Ok)?,
            node_ips,
            service_ranges,
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
            ips: settings.node_ips.clone(),
            network: network.clone(),
            cgroup_root: args.node.cgroup_root.clone(),
            engine_endpoint: args.node.container_runtime_endpoint.clone(),
            labels: components::labels(&args.node.node_labels)?,
            taints: components::taints(&args.node.register_with_taints)?,
        };
        let disabled_controllers = components::disabled_controllers(&args.controllers)?;
        Ok(Plan { settings, network, disabled_controllers, node: (!args.no_node).then_some(node) })
    }
}

/// The parts of the control plane beside the API server. Each controller acts with the rights that it has
/// upstream and no more.
fn start_control_plane(
    running: &mut Running,
    plan: &Plan,
    control_plane: &Arc<ControlPlane>,
) -> anyhow::Result<()> {
    let cluster = host::cidrs("--cluster-cidr", &plan.network.cluster_cidrs)?;
    let (node_cidr_mask, node_cidr_mask_ipv6) = components::node_cidr_masks(&cluster, [None; 3])?;
    let (root_ca_pem, signing_authority, sign_token) = {
        let pki = control_plane.renewal.pki();
        let sign_token = components::token_signer(pki.service_account_key())?;
        (pki.authority().to_owned(), pki.signing_authority(), sign_token)
    };
    let metrics = QueueMetrics::default();
    let queues = metrics.clone();
    control_plane.metrics().also(move |registry| queues.register(registry));
    let config = controllers::Config {
        node_cidr_mask,
        node_cidr_mask_ipv6,
        cluster_cidr: plan.network.cluster_cidrs.join(","),
        root_ca_pem,
        signing_authority: Some(signing_authority),
        sign_token: Some(sign_token),
        clock: host::clock(),
        disabled: plan.disabled_controllers.clone(),
        options: controllers::Options {
            features: plan.settings.requests.features,
            ..controllers::Options::default()
        },
        metrics,
    };
    let shutdown = running.shutdown.clone();
    // One cache of each kind for the whole control plane.
    let client = control_plane.client("system:kube-controller-manager", &[]);
    let informers = InformerFactory::new(client, shutdown.clone());
    // The clients hold the API server, not this.
    let accounts = control_plane.accounts();
    let clients = controllers::Clients {
        informers: informers.clone(),
        of_account: Arc::new(move |name| accounts.client(name)),
    };
    running.spawn("controllers", controllers::run(config, clients, shutdown.clone()));
    let metrics = scheduler::Metrics::default();
    let scheduling = metrics.clone();
    control_plane.metrics().also(move |registry| scheduling.register(registry));
    let config = scheduler::Config {
        configuration: scheduler::Configuration::with(components::gates(plan.settings.requests.features)),
        clock: host::clock(),
        seed: rand::random(),
        metrics,
        host: host::hostname()?,
        identity: None,
    };
    let client = control_plane.client("system:kube-scheduler", &[]);
    running.spawn("scheduler", scheduler::run(config, client, informers, shutdown.clone()));
    running.spawn("certificates", control_plane.renewal.clone().run(shutdown.clone()));
    let admin = control_plane.client("system:kube-dns", &["system:masters"]);
    let cluster_dns = plan.network.cluster_dns.clone();
    running.spawn("Service of the DNS", async move {
        dns::keep_service(admin, cluster_dns, shutdown).await;
        anyhow::Ok(())
    });
    Ok(())
}

/// The parts of the node.
async fn start_node(
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
    plan.start(running, identity).await?;
    let local_path = controllers::LocalPath {
        node_name: plan.name.clone(),
        root: plan.data_dir.join("storage"),
        clock: host::clock(),
    };
    let admin = control_plane.client("system:local-path-provisioner", &["system:masters"]);
    let volumes = controllers::run_local_path(local_path, admin, running.shutdown.clone());
    running.spawn("local volumes", volumes);
    Ok(())
}
