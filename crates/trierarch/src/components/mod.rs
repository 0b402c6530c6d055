//! Each part alone, as upstream's programs are run: a file per part, with its flags and what they come to.
//!
//! Flags have upstream's names where upstream has the flag. One that would mean nothing here does not exist, so
//! that it is refused rather than taken in silence.

pub mod apiserver;
mod auth_webhooks;
mod controller_flags;
pub mod controller_manager;
pub mod cri_server;
pub mod dns;
mod election;
pub mod kubelet;
mod kubelet_config;
mod kubelet_fields;
mod leadership;
mod oidc;
pub mod plain_serving;
pub mod proxy;
pub mod scheduler;
mod secure_serving;
mod serving_flags;

use std::path::{Path, PathBuf};

use clap::Args;
use client::Client;
use client::kubeconfig::{self, Kubeconfig};
use resources::features::{Feature, Features};

pub use controller_manager::{authority_of, disabled_controllers, node_cidr_masks, token_signer};
pub use election::duration;
pub use kubelet::{labels, taints};
pub use serving_flags::{ServingFlags, ServingSettings};

/// How a part that runs alone reaches the API server.
#[derive(Args, Clone)]
pub struct Access {
    /// The kubeconfig file that says how to reach the API server, and as whom
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
}

/// A client by a kubeconfig's current context.
pub fn client_of(path: &Path, user_agent: &str) -> anyhow::Result<Client> {
    let config = Kubeconfig::read(path)?;
    Ok(kubeconfig::client(&config, None, &user_agent_of(user_agent))?)
}

/// What of the features concerns the scheduler.
pub fn gates(features: Features) -> ::scheduler::plugins::Gates {
    ::scheduler::plugins::Gates {
        pod_groups: features.has(Feature::GenericWorkload),
        gangs: features.has(Feature::GangScheduling),
        topologies: features.has(Feature::TopologyAwareWorkloadScheduling),
    }
}

/// What `--feature-gates` switches on.
pub fn features(gates: &[String]) -> anyhow::Result<Features> {
    Features::parse(gates.iter().map(String::as_str))
        .map_err(|error| anyhow::anyhow!("--feature-gates: {error}"))
}

fn user_agent_of(component: &str) -> String {
    format!("{component}/{}", env!("CARGO_PKG_VERSION"))
}

/// Says that a part is at work, once the API server has answered it; until then it says what it waits for.
pub async fn say_ready(
    part: &'static str,
    client: Client,
    shutdown: tokio_util::sync::CancellationToken,
) -> anyhow::Result<()> {
    let mut complained = false;
    loop {
        match client.raw(http::Method::GET, "/version", None).await {
            Ok(_) => {
                tracing::info!("the {part} is ready");
                return Ok(());
            }
            Err(error) if !complained => {
                let error = crate::logging::one_line(&anyhow::Error::from(error));
                tracing::warn!("the {part} waits for the API server: {error}");
                complained = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
        }
    }
}

/// A configuration file of a part; what is wrong in it is told with its line.
pub fn read_config<T: serde::de::DeserializeOwned>(
    path: &Path,
    api_version: &str,
    kind: &str,
) -> anyhow::Result<T> {
    use anyhow::Context;
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    #[derive(Default)]
    struct Head {
        api_version: String,
        kind: String,
    }
    let text = crate::certificates::read(path)?;
    let wrong = || format!("{}", path.display());
    let head: Head = serde_saphyr::from_str(&text).with_context(wrong)?;
    anyhow::ensure!(
        head.api_version == api_version && head.kind == kind,
        "{}: it must say \"apiVersion: {api_version}\" and \"kind: {kind}\", not {:?} and {:?}",
        path.display(),
        head.api_version,
        head.kind
    );
    serde_saphyr::from_str(&text).with_context(wrong)
}
