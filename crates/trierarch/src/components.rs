//! Each part alone, as upstream's programs are run.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use client::Client;
use client::kubeconfig::{self, Kubeconfig};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::certificates::Current;
use crate::control_plane::{ControlPlane, Settings};
use crate::pki::Pair;
use crate::{cli, host, parts};

/// A client by a kubeconfig's current context.
pub fn client_of(path: &Path, user_agent: &str) -> anyhow::Result<Client> {
    let config = Kubeconfig::read(path)?;
    Ok(kubeconfig::client(&config, None, &format!("{user_agent}/{}", env!("CARGO_PKG_VERSION")))?)
}

/// Who this process is among others that would do the same work.
fn identity() -> anyhow::Result<String> {
    Ok(format!("{}_{}", host::hostname()?, uuid::Uuid::new_v4()))
}

pub async fn scheduler(args: cli::Scheduler) -> anyhow::Result<()> {
    let client = client_of(&args.access.kubeconfig, "kube-scheduler")?;
    let identity = args.election.leader_elect.then(identity).transpose()?;
    let config = scheduler::Config {
        scheduler_name: "default-scheduler".into(),
        clock: host::clock(),
        seed: rand::random(),
        identity,
    };
    Ok(scheduler::run(config, client, host::shutdown_signal()?).await?)
}

pub async fn controller_manager(args: cli::ControllerManager) -> anyhow::Result<()> {
    let client = client_of(&args.access.kubeconfig, "kube-controller-manager")?;
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let config = controllers::Config {
        node_cidr_mask: node_cidr_mask(&args.cluster_cidr)?,
        cluster_cidr: args.cluster_cidr,
        root_ca_pem: read(&args.root_ca_file)?,
        clock: host::clock(),
        disabled: Vec::new(),
    };
    let shutdown = host::shutdown_signal()?;
    if !args.election.leader_elect {
        return Ok(controllers::run(config, client, shutdown).await?);
    }
    let lease = "kube-controller-manager";
    let elector = controller_runtime::LeaderElector::new(
        client.clone(),
        "kube-system",
        lease,
        &identity()?,
        host::clock(),
    );
    let mut outcome = Ok(());
    let lead = |leading: CancellationToken| {
        let outcome = &mut outcome;
        async move { *outcome = controllers::run(config, client, leading).await }
    };
    let held = elector.run(&shutdown, lead).await;
    outcome?;
    anyhow::ensure!(held, "another controller manager took the lease {lease}");
    Ok(())
}

/// Each node gets 256 addresses of IPv4, or as upstream does of IPv6.
pub fn node_cidr_mask(cluster_cidr: &str) -> anyhow::Result<u8> {
    let range = host::cidr("--cluster-cidr", cluster_cidr)?;
    Ok(if range.0.is_ipv4() { 24.max(range.1) } else { 64.max(range.1) })
}

pub async fn proxy(args: cli::Proxy) -> anyhow::Result<()> {
    host::check_can_run_containers()?;
    let client = client_of(&args.access.kubeconfig, "kube-proxy")?;
    let config = proxy::Config {
        node_name: args.hostname_override.map_or_else(host::hostname, Ok)?,
        cluster_cidrs: vec![args.cluster_cidr],
        healthz_address: Some(SocketAddr::from(([0, 0, 0, 0], 10256))),
    };
    Ok(proxy::run(config, client, host::shutdown_signal()?).await?)
}

pub async fn dns(args: cli::Dns) -> anyhow::Result<()> {
    let client = client_of(&args.access.kubeconfig, "coredns")?;
    let config = dns::Config {
        bind_addresses: vec![SocketAddr::new(args.bind_address, args.port)],
        cluster_domain: args.cluster_domain,
        upstreams: dns::upstreams(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        service_addresses: Vec::new(),
    };
    Ok(dns::run(config, client, host::shutdown_signal()?).await?)
}

pub async fn kubelet(args: cli::Kubelet) -> anyhow::Result<()> {
    host::check_can_run_containers()?;
    let client = client_of(&args.access.kubeconfig, "kubelet")?;
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let pair = Pair { certificate: read(&args.tls_cert_file)?, key: read(&args.tls_private_key_file)? };
    let node_name = args.hostname_override.map_or_else(host::hostname, Ok)?;
    let node_ip = args.node_ip.map_or_else(host::node_ip, Ok)?;
    let config = kubelet::Config {
        cri_endpoint: args.container_runtime_endpoint,
        pod_logs_dir: "/var/log/pods".into(),
        static_pod_path: args.pod_manifest_path,
        cluster_dns: args.cluster_dns,
        cluster_domain: args.cluster_domain,
        cgroup_root: args.cgroup_root.into(),
        port: args.port,
        tls: Some(kubelet::ServingTls {
            certificate: Current::new(&pair)?,
            client_ca: read(&args.client_ca_file)?.into_bytes(),
        }),
        ..kubelet::Config::new(&node_name, node_ip, &args.root_dir, host::clock())
    };
    let config = kubelet::Config { root_dir: args.root_dir, ..config };
    Ok(kubelet::run(config, client, host::shutdown_signal()?).await?)
}

pub async fn cri_server(args: cli::CriServer) -> anyhow::Result<()> {
    host::check_can_run_containers()?;
    let data_dir = std::path::absolute(&args.data.data_dir)?;
    parts::make_private(&data_dir)?;
    let mut config = parts::engine_config(&data_dir, "/", &[args.service_cidr])?;
    if let Some(socket) = args.socket {
        config.socket = std::path::absolute(socket)?;
    }
    if let Some(runtime) = args.oci_runtime {
        config.oci_runtime = vec![runtime.display().to_string()];
    }
    if let cri_server::CniConfig::Plugins { conf_dir, bin_dirs, .. } = &mut config.cni {
        *conf_dir = args.cni_conf_dir;
        bin_dirs.insert(0, args.cni_bin_dir);
    }
    Ok(cri_server::run(config, host::shutdown_signal()?).await?)
}

pub async fn apiserver(args: cli::Apiserver) -> anyhow::Result<()> {
    let service_range = host::cidr("--service-cidr", &args.network.service_cidr)?;
    let data_dir = std::path::absolute(&args.data.data_dir)?;
    let settings = Settings {
        kubeconfig: data_dir.join("admin.kubeconfig"),
        data_dir,
        bind_address: args.bind_address,
        port: args.secure_port,
        node_name: host::hostname()?,
        node_ip: args.advertise_address.map_or_else(host::node_ip, Ok)?,
        service_ip: host::nth_address(service_range, 1),
        network: args.network,
    };
    let address = SocketAddr::new(args.bind_address, args.secure_port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let shutdown = host::shutdown_signal()?;
    let control_plane = ControlPlane::start(&settings, listener, shutdown.clone()).await?;
    shutdown.cancelled().await;
    control_plane.stopped().await;
    Ok(())
}
