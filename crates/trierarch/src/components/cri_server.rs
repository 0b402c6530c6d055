//! `trierarch cri-server`: the container engine, for any CRI client.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::{cli, host, parts};

#[derive(Args)]
pub struct CriServer {
    #[command(flatten)]
    pub data: cli::DataDir,
    /// The socket to listen on [default: <DATA_DIR>/cri.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The OCI runtime to run containers with, as `runc` or `crun` [default: the built-in one]
    #[arg(long, value_name = "COMMAND")]
    pub oci_runtime: Option<PathBuf>,
    /// Addresses of Services, which pods reach through this node
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "10.43.0.0/16")]
    pub service_cidr: Vec<String>,
    /// The cgroup under which the cgroups of pods that name no parent are made
    #[arg(long, value_name = "CGROUP", default_value = "/")]
    pub cgroup_root: String,
    /// Where CNI plugins are configured; the built-in network is used while there is no configuration
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins are
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// The directory that `trierarch proxy` is given too: pods of the built-in network start when the rules of
    /// network policies are in force for them [default: they do not wait]
    #[arg(long, value_name = "DIR")]
    pub network_policy_dir: Option<PathBuf>,
}

/// The engine listens within a moment, and when it does not it fails.
const FIRST_LOOK: Duration = Duration::from_millis(20);

pub async fn run(args: CriServer) -> anyhow::Result<()> {
    host::check_can_run_containers("")?;
    host::cidrs("--service-cidr", &args.service_cidr)?;
    let data_dir = std::path::absolute(&args.data.data_dir)?;
    parts::make_private(&data_dir)?;
    let policy_dir = args.network_policy_dir.map(std::path::absolute).transpose()?;
    let mut config =
        parts::engine_config(&data_dir, &args.cgroup_root, &args.service_cidr, policy_dir.as_deref())?;
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
    let socket = config.socket.clone();
    let shutdown = host::shutdown_signal()?;
    let engine = cri_server::run(config, shutdown.clone());
    let ready = async {
        while cri::connect(&format!("unix://{}", socket.display())).await.is_err() {
            tokio::time::sleep(FIRST_LOOK).await;
        }
        tracing::info!(socket = %socket.display(), "the container engine is ready");
        Ok(())
    };
    tokio::try_join!(engine, ready)?;
    Ok(())
}
