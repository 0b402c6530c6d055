//! `trierarch dns`: the cluster DNS.

use std::net::{IpAddr, SocketAddr};

use clap::Args;

use super::plain_serving::{self, address};
use super::{Access, client_of, say_ready};
use crate::host;

#[derive(Args)]
pub struct Dns {
    #[command(flatten)]
    pub access: Access,
    /// The address to listen on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// The port to listen on
    #[arg(long, value_name = "PORT", default_value_t = 53)]
    pub port: u16,
    /// Where to answer scrapers; empty for not at all
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9153")]
    pub metrics_bind_address: String,
    /// The DNS domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
}

pub async fn run(args: Dns) -> anyhow::Result<()> {
    let client = client_of(&args.access.kubeconfig, "coredns")?;
    let config = dns::Config {
        bind_addresses: vec![SocketAddr::new(args.bind_address, args.port)],
        cluster_domain: args.cluster_domain,
        upstreams: dns::upstreams(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        service_addresses: Vec::new(),
        metrics: dns::Metrics::default(),
    };
    let counted = config.metrics.clone();
    let listener = match address(&args.metrics_bind_address, 9153)? {
        Some(address) => Some(host::listen(address).await?),
        None => None,
    };
    let shutdown = host::shutdown_signal()?;
    let metrics = async {
        if let Some(listener) = listener {
            plain_serving::serve(listener, "", move || counted.text(), shutdown.clone()).await;
        }
        anyhow::Ok(())
    };
    let run = async { anyhow::Ok(dns::run(config, client.clone(), shutdown.clone()).await?) };
    tokio::try_join!(run, metrics, say_ready("cluster DNS", client.clone(), shutdown.clone()))?;
    Ok(())
}
