//! Measures the network from outside: `cargo xtask bench net`.
//!
//! Everything happens in a network namespace of its own that stands for the host: a development cluster of three
//! nodes ([`cluster`]), a Service proxy alone beside it, and clients that go through that proxy ([`traffic`]). What is
//! told of a change is told by packets, not by looking at rules: the time until a connection ends up elsewhere.

mod cluster;
mod traffic;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use linux::netlink::{Netlink, Route};

use cluster::Cluster;

/// Measure the network: Services by the thousand, connections, throughput, DNS, development clusters
#[derive(Parser)]
#[command(name = "cargo xtask bench net", max_term_width = 100)]
struct Options {
    /// The `trierarch` to measure
    #[arg(long, value_name = "PATH")]
    binary: PathBuf,
    /// How many Services, in turn
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000])]
    services: Vec<usize>,
    /// How many changes, of which the median and the worst are told
    #[arg(long, default_value_t = 21)]
    changes: usize,
    /// How long traffic is measured each time
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    seconds: u64,
}

fn main() -> std::process::ExitCode {
    match run(&Options::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-net: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn row(what: &str, value: impl std::fmt::Display) {
    println!("| {what} | {value} |");
}

fn run(options: &Options) -> anyhow::Result<()> {
    println!("| | seen |\n|---|---|");
    let begun = Instant::now();
    let cluster = Cluster::up(&options.binary, 3)?;
    row("`dev up --nodes 3` to all Ready", format!("{:.1} s", begun.elapsed().as_secs_f64()));
    for count in &options.services {
        services(&cluster, *count, options)?;
    }
    let seconds = Duration::from_secs(options.seconds);
    traffic_by_service(&cluster, seconds)?;
    names(&cluster, options.changes, seconds)
}

/// The address of the Service that is measured, behind all the others.
const MEASURED: &str = "10.43.200.1";
const PORT: u16 = 80;

fn measured() -> SocketAddr {
    SocketAddr::new(MEASURED.parse().expect("a literal address"), PORT)
}

/// The first load, memory and one change, with so many Services.
fn services(cluster: &Cluster, count: usize, options: &Options) -> anyhow::Result<()> {
    cluster.fill(count)?;
    let first = traffic::Server::start(&cluster.node, b'a')?;
    let second = traffic::Server::start(&cluster.node, b'b')?;
    cluster.lead_to(MEASURED, first.address)?;

    let begun = Instant::now();
    let proxy = cluster.proxy()?;
    row(&format!("{count} Services: start of a proxy to the rules in force"), milliseconds(begun.elapsed()));
    row(
        &format!("{count} Services: memory of that proxy"),
        format!("{} MB", proxy.resident_bytes()? / 1_000_000),
    );
    reach_services(cluster)?;
    let mut times = Vec::new();
    for at in 0..options.changes {
        let (to, letter) = if at % 2 == 0 { (&second, b'b') } else { (&first, b'a') };
        let begun = Instant::now();
        cluster.lead_to(MEASURED, to.address)?;
        let written = begun.elapsed();
        traffic::until_answered(&cluster.host, measured(), letter)?;
        times.push((begun.elapsed() - written, written));
    }
    times.sort();
    let (median, worst) = (times[times.len() / 2].0, times[times.len() - 1].0);
    let text = format!("{} median, {} worst of {}", milliseconds(median), milliseconds(worst), times.len());
    row(
        &format!("{count} Services: one endpoint's change, from the API's answer to a connection there"),
        text,
    );
    proxy.stop();
    Ok(())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// Routes to Services out of the namespace of the clients, as a default route does on a machine.
fn reach_services(cluster: &Cluster) -> anyhow::Result<()> {
    let route = async {
        let netlink = Netlink::open()?;
        let link = netlink
            .links()
            .await?
            .into_iter()
            .find(|link| link.name.starts_with("tridev") && !link.name.contains('n'));
        let link = link.context("the cluster has a bridge")?.index;
        let destination: IpAddr = "10.43.0.0".parse()?;
        anyhow::Ok(netlink.add_route(&Route { destination, prefix_length: 16, gateway: None, link }).await?)
    };
    cluster.host.run(|| cluster::block_on(route))??;
    Ok(())
}

fn traffic_by_service(cluster: &Cluster, time: Duration) -> anyhow::Result<()> {
    let server = traffic::Server::start(&cluster.node, b'a')?;
    cluster.lead_to(MEASURED, server.address)?;
    let proxy = cluster.proxy()?;
    reach_services(cluster)?;
    traffic::until_answered(&cluster.host, measured(), b'a')?;
    for (what, target) in [("direct", server.address), ("through a Service", measured())] {
        let rate = traffic::connections(&cluster.host, target, time)?;
        row(&format!("connections, {what}"), format!("{rate:.0} /s"));
        let bytes = traffic::throughput(&cluster.host, target, time)?;
        row(&format!("throughput, {what}"), format!("{:.2} GB/s", bytes / 1e9));
    }
    proxy.stop();
    Ok(())
}

/// Questions, and how fresh the answers are.
fn names(cluster: &Cluster, changes: usize, time: Duration) -> anyhow::Result<()> {
    let server = cluster.dns;
    let name = format!("measured.{}.svc.cluster.local", cluster::NAMESPACE);
    let other = format!("headless.{}.svc.cluster.local", cluster::NAMESPACE);
    let ips = ["192.0.2.50", "192.0.2.51"].map(|ip| ip.parse::<IpAddr>().expect("a literal address"));
    cluster.headless(ips[0])?;
    traffic::until_named(&cluster.host, server, &other, ips[0])?;
    let rate = traffic::questions(&cluster.host, server, &name, time)?;
    row("DNS questions answered", format!("{rate:.0} /s"));
    let mut times = Vec::new();
    for at in 0..changes {
        let ip = ips[(at + 1) % 2];
        cluster.headless(ip)?;
        let begun = Instant::now();
        traffic::until_named(&cluster.host, server, &other, ip)?;
        times.push(begun.elapsed());
    }
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    let text = format!("{} median, {} worst of {}", milliseconds(median), milliseconds(worst), times.len());
    row("an endpoint's change, from the API's answer to the DNS answer of another node", text);
    Ok(())
}
