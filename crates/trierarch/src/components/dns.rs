//! `trierarch dns`: the cluster DNS.

use std::net::{IpAddr, SocketAddr};

use clap::Args;

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
    };
    let shutdown = host::shutdown_signal()?;
    let run = async { anyhow::Ok(dns::run(config, client.clone(), shutdown.clone()).await?) };
    tokio::try_join!(run, say_ready("cluster DNS", client.clone(), shutdown.clone()))?;
    Ok(())
}
