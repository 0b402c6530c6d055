//! `trierarch proxy`: upstream's kube-proxy.

use std::path::PathBuf;

use clap::Args;
use proxy::{Metrics, NodePorts};
use serde::Deserialize;

use super::plain_serving::{self, address};
use super::{client_of, read_config, say_ready};
use crate::host;

/// Upstream: cmd/kube-proxy/app/options.go
#[derive(Args)]
pub struct Proxy {
    /// The kubeconfig file that says how to reach the API server, and as whom [default: the configuration's]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// A file with a KubeProxyConfiguration; what it says counts more than flags
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The name of this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Addresses of pods; what comes from elsewhere is masqueraded
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "10.42.0.0/16")]
    pub cluster_cidr: Vec<String>,
    /// At which of the node's addresses node ports are: ranges, or `primary` for those that the Node object names
    /// [default: primary]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Where to answer health checks
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: String,
    /// Where to answer scrapers; empty for not at all
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: String,
    /// How Services are made: nftables is the only way here
    #[arg(long, value_name = "MODE", default_value = "nftables", value_parser = ["nftables"])]
    pub proxy_mode: String,
    /// Hold traffic to network policies; `false` where another part does
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub network_policies: bool,
    /// The directory that `trierarch cri-server` is given too, so that pods start under the rules of network
    /// policies; without it rules follow a pod's start
    #[arg(long, value_name = "DIR")]
    pub network_policy_dir: Option<PathBuf>,
}

/// The fields of a KubeProxyConfiguration that mean something here. Any other is refused by name and line.
///
/// Upstream: kube-proxy/config/v1alpha1/types.go KubeProxyConfiguration
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Configuration {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    client_connection: ClientConnection,
    hostname_override: Option<String>,
    healthz_bind_address: Option<String>,
    metrics_bind_address: Option<String>,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
    mode: Option<String>,
    node_port_addresses: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ClientConnection {
    kubeconfig: Option<PathBuf>,
}

pub async fn run(args: Proxy) -> anyhow::Result<()> {
    let file = match &args.config {
        Some(path) => read_config(path, "kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration")?,
        None => Configuration::default(),
    };
    let mode = file.mode.as_deref().unwrap_or_default();
    anyhow::ensure!(
        matches!(mode, "" | "nftables"),
        "mode {mode:?} is not possible: Services are nftables here"
    );
    let kubeconfig = file.client_connection.kubeconfig.or(args.kubeconfig);
    let kubeconfig = kubeconfig.ok_or_else(|| {
        anyhow::anyhow!("--kubeconfig, or clientConnection.kubeconfig in --config, is needed")
    })?;
    host::check_can_run_containers("")?;
    let client = client_of(&kubeconfig, "kube-proxy")?;
    let cidrs = |text: String| text.split(',').map(str::to_owned).collect();
    let config = proxy::Config {
        node_name: file.hostname_override.or(args.hostname_override).map_or_else(host::hostname, Ok)?,
        cluster_cidrs: file.cluster_cidr.map_or(args.cluster_cidr, cidrs),
        healthz_address: address(&file.healthz_bind_address.unwrap_or(args.healthz_bind_address), 10256)?,
        node_ports: NodePorts::parse(&file.node_port_addresses.unwrap_or(args.nodeport_addresses))?,
        clock: host::clock(),
        metrics: Metrics::default(),
    };
    let counted = config.metrics.clone();
    let metrics = address(&file.metrics_bind_address.unwrap_or(args.metrics_bind_address), 10249)?;
    let policies = netpol::Config {
        node_name: config.node_name.clone(),
        dir: args.network_policy_dir.map(std::path::absolute).transpose()?,
    };
    let policies = args.network_policies.then(|| netpol::Agent::new(policies)).transpose()?;
    let shutdown = host::shutdown_signal()?;
    let metrics = match metrics {
        Some(address) => Some(host::listen(address).await?),
        None => None,
    };
    let metrics = async {
        if let Some(listener) = metrics {
            plain_serving::serve(listener, "nftables", move || counted.text(), shutdown.clone()).await;
        }
        anyhow::Ok(())
    };
    let run = async { anyhow::Ok(proxy::run(config, client.clone(), shutdown.clone()).await?) };
    let hold = async {
        if let Some(policies) = policies {
            policies.run(client.clone(), shutdown.clone()).await?;
        }
        Ok(())
    };
    tokio::try_join!(run, hold, metrics, say_ready("Service proxy", client.clone(), shutdown.clone()))?;
    Ok(())
}
