//! `trierarch scheduler`: upstream's kube-scheduler.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use controller_runtime::InformerFactory;
use scheduler::plugins::Gates;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::election::Election;
use super::secure_serving::SecureServing;
use super::{client_of, features, gates, read_config, say_ready};
use crate::host;

/// Upstream: cmd/kube-scheduler/app/options/options.go
#[derive(Args)]
pub struct Scheduler {
    /// The kubeconfig file that says how to reach the API server, and as whom [default: the configuration's]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// A file with a KubeSchedulerConfiguration
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What is off by default and is to be on: `Name=true`, as upstream names it
    #[arg(long, value_name = "GATES", value_delimiter = ',')]
    pub feature_gates: Vec<String>,
    #[command(flatten)]
    pub election: Election,
    #[command(flatten)]
    pub serving: SecureServing,
}

/// What of a KubeSchedulerConfiguration concerns the process rather than the scheduling; the rest is
/// [`scheduler::Configuration`]'s.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Process {
    client_connection: ClientConnection,
    leader_election: LeaderElection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClientConnection {
    kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct LeaderElection {
    leader_elect: Option<bool>,
    lease_duration: Option<String>,
    renew_deadline: Option<String>,
    retry_period: Option<String>,
    resource_name: Option<String>,
    resource_namespace: Option<String>,
}

impl LeaderElection {
    /// What the file says counts where the flag was left at its default, which is how upstream merges them.
    fn over(self, mut flags: Election) -> anyhow::Result<Election> {
        let duration = |text: String| super::election::duration(&text).map_err(anyhow::Error::msg);
        if let Some(elect) = self.leader_elect {
            flags.leader_elect = elect;
        }
        if let Some(text) = self.lease_duration {
            flags.leader_elect_lease_duration = duration(text)?;
        }
        if let Some(text) = self.renew_deadline {
            flags.leader_elect_renew_deadline = duration(text)?;
        }
        if let Some(text) = self.retry_period {
            flags.leader_elect_retry_period = duration(text)?;
        }
        flags.leader_elect_resource_name = self.resource_name.or(flags.leader_elect_resource_name);
        if let Some(namespace) = self.resource_namespace {
            flags.leader_elect_resource_namespace = namespace;
        }
        Ok(flags)
    }
}

fn read(path: &Path, gates: Gates) -> anyhow::Result<(Process, scheduler::Configuration)> {
    let process = read_config(path, "kubescheduler.config.k8s.io/v1", "KubeSchedulerConfiguration")?;
    let text = crate::certificates::read(path)?;
    let configuration =
        scheduler::Configuration::parse(&text, gates).with_context(|| path.display().to_string())?;
    Ok((process, configuration))
}

pub async fn run(args: Scheduler) -> anyhow::Result<()> {
    let features = features(&args.feature_gates)?;
    let gates = gates(features);
    let (process, configuration) = match &args.config {
        Some(path) => read(path, gates)?,
        None => (Process::default(), scheduler::Configuration::with(gates)),
    };
    let kubeconfig = args.kubeconfig.or(process.client_connection.kubeconfig);
    let kubeconfig = kubeconfig.ok_or_else(|| {
        anyhow::anyhow!("--kubeconfig, or clientConnection.kubeconfig in --config, is needed")
    })?;
    let election = process.leader_election.over(args.election)?;
    let client = client_of(&kubeconfig, "kube-scheduler")?;
    let shutdown = host::shutdown_signal()?;
    let metrics = scheduler::Metrics::default();
    let config = scheduler::Config {
        configuration,
        clock: host::clock(),
        seed: rand::random(),
        metrics: metrics.clone(),
        host: host::hostname()?,
        identity: None,
    };
    let tell = move || metrics.text();
    let serving = args.serving.start(("kube-scheduler", 10259), &kubeconfig, tell, shutdown.clone()).await?;
    let work = async |leading: CancellationToken| {
        let informers = InformerFactory::new(client.clone(), leading.clone());
        Ok(scheduler::run(config, client.clone(), informers, leading).await?)
    };
    let lead = election.run("kube-scheduler", features, client.clone(), shutdown.clone(), work);
    let ((), ()) = tokio::try_join!(lead, say_ready("scheduler", client.clone(), shutdown.clone()))?;
    shutdown.cancel();
    serving.stopped().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<(Process, scheduler::Configuration)> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        super::read(file.path(), Gates::default())
    }

    const HEAD: &str = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";

    #[test]
    fn a_configuration_says_what_it_means_or_where_it_is_wrong() {
        let (process, scheduling) = read(&format!(
            "{HEAD}leaderElection: {{leaderElect: false}}\nprofiles:\n- schedulerName: mine\n"
        ))
        .unwrap();
        assert_eq!(process.leader_election.leader_elect, Some(false));
        assert_eq!(scheduling.profiles[0].scheduler_name, "mine");
        let refused = |text: &str| crate::logging::one_line(&read(text).map(drop).unwrap_err());
        let bad = refused(&format!("{HEAD}percentageOfNodes: 5\n"));
        assert!(bad.contains("percentageOfNodes") && bad.contains("line 3"), "{bad}");
        let bad = refused("apiVersion: v1\nkind: Pod\n");
        assert!(bad.contains("kubescheduler.config.k8s.io/v1"), "{bad}");
    }
}
