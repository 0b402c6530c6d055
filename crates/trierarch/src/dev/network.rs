//! The network of a cluster: a bridge on the host, and a link to it for each node's namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context;
use linux::netlink::{Netlink, Route, VethPair};
use linux::netns::{self, NetNs};

use super::state::{Cluster, NodeState};

fn prefix_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

/// Upstream: every node's link has this name in kind, and in what people try by hand
const NODE_LINK: &str = "eth0";

/// The names of all links of this machine.
pub async fn links() -> anyhow::Result<Vec<String>> {
    Ok(Netlink::open()?.links().await?.into_iter().map(|link| link.name).collect())
}

/// Makes what is missing.
pub async fn make(cluster: &Cluster) -> anyhow::Result<()> {
    let netlink = Netlink::open()?;
    netlink.create_bridge(&cluster.bridge()).await.context("cannot make a bridge")?;
    let bridge = link(&netlink, &cluster.bridge()).await?;
    for gateway in cluster.gateways() {
        netlink.add_address(bridge, gateway, prefix_length(gateway)).await?;
    }
    for node in &cluster.nodes {
        attach(&netlink, bridge, cluster, node)
            .await
            .with_context(|| format!("cannot make the network of {}", node.name))?;
    }
    masquerade(cluster)
}

async fn link(netlink: &Netlink, name: &str) -> anyhow::Result<u32> {
    let found = netlink.link(name).await?;
    Ok(found.with_context(|| format!("there is no link {name}"))?.index)
}

/// A namespace that can reach, and be reached by, the host and the other nodes.
async fn attach(netlink: &Netlink, bridge: u32, cluster: &Cluster, node: &NodeState) -> anyhow::Result<()> {
    let path = cluster.namespace(node);
    let namespace = match NetNs::create(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => NetNs::open(&path)?,
        made => made?,
    };
    let port = cluster.port(node);
    if netlink.link(&port).await?.is_none() {
        // Locally administered, and different for every node of every cluster of this machine.
        let mac = |side: u8| [0x02, 0x74, 0x72, side, cluster.slot, node.number];
        let pair = VethPair {
            name: &port,
            mac: mac(0),
            peer_name: NODE_LINK,
            peer_mac: mac(1),
            peer_namespace: std::os::fd::AsFd::as_fd(&namespace),
            mtu: None,
        };
        netlink.create_veth(&pair).await?;
    }
    let index = link(netlink, &port).await?;
    netlink.set_bridge(index, bridge).await?;
    netlink.set_up(index).await?;
    let addresses: Vec<(IpAddr, IpAddr)> = node.ips.iter().copied().zip(cluster.gateways()).collect();
    // It starts a runtime of its own, which this one's threads must not.
    tokio::task::spawn_blocking(move || namespace.run(|| configure(&addresses))).await??
}

/// Inside a node's namespace: addresses, each with its gateway.
fn configure(addresses: &[(IpAddr, IpAddr)]) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let netlink = Netlink::open()?;
        netlink.set_up(link(&netlink, "lo").await?).await?;
        let eth0 = link(&netlink, NODE_LINK).await?;
        netlink.set_up(eth0).await?;
        for (ip, gateway) in addresses {
            netlink.add_address(eth0, *ip, prefix_length(*ip)).await?;
            let everywhere: IpAddr =
                if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let default =
                Route { destination: everywhere, prefix_length: 0, gateway: Some(*gateway), link: eth0 };
            netlink.add_route(&default).await?;
        }
        Ok(())
    })
}

fn table(cluster: &Cluster) -> String {
    format!("trierarch-dev-{}", cluster.slot)
}

/// What nodes send to the world goes by the host's address.
fn masquerade(cluster: &Cluster) -> anyhow::Result<()> {
    for gateway in cluster.gateways() {
        cni::enable_forwarding(gateway.is_ipv6())?;
        let ip = if gateway.is_ipv4() { "ip" } else { "ip6" };
        let (table, subnet) = (table(cluster), format!("{gateway}/{}", prefix_length(gateway)));
        linux::nft::apply(&format!(
            "table {ip} {table}\ndelete table {ip} {table}\ntable {ip} {table} {{\n chain postrouting {{\n  \
             type nat hook postrouting priority srcnat; policy accept;\n  \
             {ip} saddr {subnet} {ip} daddr != {subnet} masquerade\n }}\n}}\n"
        ))?;
    }
    Ok(())
}

/// Takes a node off the network, as a pulled cable would.
pub async fn cut(cluster: &Cluster, node: &NodeState) -> anyhow::Result<()> {
    let netlink = Netlink::open()?;
    Ok(netlink.set_down(link(&netlink, &cluster.port(node)).await?).await?)
}

pub async fn heal(cluster: &Cluster, node: &NodeState) -> anyhow::Result<()> {
    let netlink = Netlink::open()?;
    Ok(netlink.set_up(link(&netlink, &cluster.port(node)).await?).await?)
}

/// Takes all of it away; what is not there is no error.
pub async fn remove(cluster: &Cluster) -> anyhow::Result<()> {
    let netlink = Netlink::open()?;
    let ports = cluster.nodes.iter().map(|node| cluster.port(node));
    for name in ports.chain([cluster.bridge()]) {
        if let Some(link) = netlink.link(&name).await? {
            netlink.delete_link(link.index).await?;
        }
    }
    for node in &cluster.nodes {
        netns::remove(cluster.namespace(node))?;
    }
    for family in ["ip", "ip6"] {
        linux::nft::delete_table(family, &table(cluster))?;
    }
    Ok(())
}
