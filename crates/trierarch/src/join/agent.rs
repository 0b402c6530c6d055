//! `trierarch agent`: makes this machine a node of a cluster whose control plane is elsewhere.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use client::Client;
use tokio_util::sync::CancellationToken;

use super::objects::ClusterNetwork;
use super::token::Join;
use super::{NodeCertificates, kubeconfig_of_token, pin};
use crate::node::{self, Identity};
use crate::renewal::write_private;
use crate::running::Running;
use crate::{cli, components, host, parts};

/// How long to wait between two attempts to reach a server that is not there.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Args)]
#[command(args_override_self = true)]
pub struct Agent {
    #[command(flatten)]
    pub data: cli::DataDir,
    /// Where the API server is: https://HOST:6443
    #[arg(long, value_name = "URL", required_unless_present = "config")]
    pub server: Option<String>,
    /// What `trierarch token create` printed; needed the first time
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<Join>,
    #[command(flatten)]
    pub node: cli::Node,
    /// A file with these flags in YAML: `server: https://…`
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

pub async fn run(args: Agent) -> anyhow::Result<()> {
    let server = args.server.clone().context("--server is needed")?;
    pin::host_and_port(&server)?;
    let (labels, taints) =
        (components::labels(&args.node.node_labels)?, components::taints(&args.node.register_with_taints)?);
    host::check_can_run_containers("")?;
    let name = args.node.node_name.clone().map_or_else(host::hostname, Ok)?;
    node::check_ports(&host::node_ips(&args.node.node_ip, &[])?)?;
    let data_dir = std::path::absolute(&args.data.data_dir)?;
    if parts::store_dir(&data_dir).exists() {
        bail!("{} is the data directory of a server", data_dir.display());
    }
    let kubeconfig = data_dir.join("kubelet.kubeconfig");
    if !kubeconfig.exists() && args.token.is_none() {
        bail!("--token is needed to join: `trierarch token create` on the server prints one");
    }
    let shutdown = host::shutdown_signal()?;
    parts::make_private(&data_dir)?;
    let certificates =
        |ips: &[IpAddr]| NodeCertificates::new(&data_dir.join("pki"), &name, ips, host::clock());
    if let Some(join) = args.token.as_ref().filter(|_| !kubeconfig.exists()) {
        first_join(&server, join, &certificates(&[]), &data_dir, &kubeconfig, &shutdown).await?;
    }
    let client = components::client_of(&kubeconfig, "kubelet")?;
    // Which families the node needs an address of, only the cluster knows.
    let network = network_of(&client, &data_dir, &shutdown).await?;
    let ips = host::node_ips(&args.node.node_ip, &host::cidrs("--cluster-cidr", &network.cluster_cidrs)?)?;
    node::check_ports(&ips)?;
    let certificates = certificates(&ips);
    let serving = certificates.serving(&client, &shutdown).await?;
    let plan = node::Plan {
        network,
        data_dir,
        name,
        ips,
        cgroup_root: args.node.cgroup_root,
        engine_endpoint: args.node.container_runtime_endpoint,
        labels,
        taints,
    };
    let identity = Identity {
        kubelet: client.clone(),
        proxy: client.named("kube-proxy"),
        serving,
        authority: components::authority_of(&kubeconfig)?,
    };
    let mut running = Running::new(shutdown.clone());
    running.spawn("certificates", async move { certificates.renew(client, true, shutdown).await });
    plan.start(&mut running, identity).await?;
    running.wait().await
}

/// Finds the server to be the right one, and gets the node's first certificate from it.
async fn first_join(
    server: &str,
    join: &Join,
    certificates: &NodeCertificates,
    data_dir: &Path,
    kubeconfig: &Path,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let authority =
        until_reached(server, shutdown, async || pin::authority_of(server, join.pin).await).await?;
    let bootstrap = data_dir.join("bootstrap.kubeconfig");
    write_private(&bootstrap, &kubeconfig_of_token(server, &authority, &join.token))?;
    let joined = certificates.join(&bootstrap, kubeconfig, shutdown).await;
    // The token is of no more use here, and of use to others.
    std::fs::remove_file(&bootstrap)?;
    joined
}

/// What the cluster tells its nodes; without the API server, what it told last time.
async fn network_of(
    client: &Client,
    data_dir: &Path,
    shutdown: &CancellationToken,
) -> anyhow::Result<ClusterNetwork> {
    let remembered = ClusterNetwork::remembered(data_dir);
    until_reached("the API server", shutdown, async || match ClusterNetwork::of_cluster(client).await {
        Err(error) => remembered.clone().ok_or(error),
        told => told,
    })
    .await
}

/// Tries again while nobody answers; any answer is one.
async fn until_reached<T>(
    server: &str,
    shutdown: &CancellationToken,
    attempt: impl AsyncFn() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut complained = false;
    loop {
        let error = match attempt().await {
            Ok(reached) => return Ok(reached),
            Err(error) => error,
        };
        let refused = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
        let absent = refused.clone().any(|io| io.get_ref().is_none())
            || matches!(error.downcast_ref::<client::Error>(), Some(client::Error::Transport(_)));
        if !absent {
            return Err(error);
        }
        if !complained {
            tracing::warn!("waits for {server}: {}", crate::logging::one_line(&error));
            complained = true;
        }
        tokio::select! {
            () = shutdown.cancelled() => bail!("stopped before {server} was reached"),
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}
