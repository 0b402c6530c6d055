//! Routes to the pods of other nodes, where the nodes share a link: each node's pod range by the node's address.
//!
//! Start with [`wanted`], the decider. A node that is on no link of ours gets no route here: what leads to it is
//! for a tunnel. What always holds: routes whose node is gone go too, those of this node's own pods are never
//! touched, and other routes out of the cluster's ranges are nobody's business here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::core::v1::Node;
use client::Client;
use controller_runtime::{Informer, InformerFactory};
use linux::netlink::{Netlink, Route};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::Error;

/// How long to wait before a change that the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Config {
    /// The node that this is.
    pub node_name: String,
    /// Where pods are.
    pub cluster_cidrs: Vec<String>,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: IpAddr,
    length: u8,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (first, length) = text.split_once('/')?;
        let range = Range { first: first.parse().ok()?, length: length.parse().ok()? };
        (range.length <= if range.first.is_ipv4() { 32 } else { 128 }).then_some(range)
    }

    fn contains(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
            IpAddr::V6(address) => u128::from(address),
        };
        let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
        self.first.is_ipv4() == address.is_ipv4() && bits(self.first) & mask == bits(address) & mask
    }
}

/// A link with an address of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub link: u32,
    pub address: IpAddr,
    pub prefix_length: u8,
}

/// The routes to the pods of all other nodes that can be reached without another hop.
///
/// Upstream: k8s.io/cloud-provider's route controller does this for clouds; flannel calls it `host-gw`
pub fn wanted(nodes: &[Arc<Node>], own_name: &str, attached: &[Attached]) -> Vec<Route> {
    let mut routes = Vec::new();
    for node in nodes.iter().filter(|node| node.name() != own_name) {
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let internal: Vec<IpAddr> = addresses
            .filter(|address| address.type_ == "InternalIP")
            .filter_map(|address| address.address.parse().ok())
            .collect();
        for range in pod_ranges(node) {
            let gateway = internal.iter().find(|address| address.is_ipv4() == range.first.is_ipv4());
            let Some(gateway) = gateway else { continue };
            let link = attached.iter().find(|attached| {
                let subnet = Range { first: attached.address, length: attached.prefix_length };
                attached.address != *gateway && subnet.contains(*gateway)
            });
            let Some(link) = link else { continue };
            routes.push(Route {
                destination: range.first,
                prefix_length: range.length,
                gateway: Some(*gateway),
                link: link.link,
            });
        }
    }
    routes
}

fn pod_ranges(node: &Node) -> Vec<Range> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all: Vec<&String> = match &spec.pod_cidrs {
        Some(ranges) if !ranges.is_empty() => ranges.iter().collect(),
        _ => spec.pod_cidr.iter().collect(),
    };
    all.into_iter().filter_map(|text| Range::parse(text)).collect()
}

/// What is to be deleted and added so that of all routes into the cluster's ranges by another node only the wanted
/// ones are there.
fn difference(present: &[Route], wanted: &[Route], cluster: &[Range]) -> (Vec<Route>, Vec<Route>) {
    let ours = |route: &&Route| {
        route.gateway.is_some() && cluster.iter().any(|range| range.contains(route.destination))
    };
    let stale = present.iter().filter(ours).filter(|route| !wanted.contains(route)).cloned().collect();
    let missing = wanted.iter().filter(|route| !present.contains(route)).cloned().collect();
    (stale, missing)
}

/// Keeps routes to the pods of other nodes until the shutdown.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let cluster = ranges(&config.cluster_cidrs)?;
    let stop = shutdown.child_token();
    let _stop_informers = stop.clone().drop_guard();
    let factory = InformerFactory::new(client, stop.clone());
    let nodes = factory.informer::<Node>();
    let changed = Arc::new(Notify::new());
    let told = changed.clone();
    let differs = |old: &Node, new: &Node| {
        pod_ranges(old) != pod_ranges(new)
            || old.status.as_ref().map(|s| &s.addresses) != new.status.as_ref().map(|s| &s.addresses)
    };
    nodes.subscribe(move |event| match event {
        controller_runtime::Event::Updated { old, new } if !differs(old, new) => {}
        _ => told.notify_one(),
    });
    factory.start();
    if factory.synced().await {
        let netlink = Netlink::open().map_err(Error::Routes)?;
        loop {
            let again = match apply(&netlink, &nodes, &config.node_name, &cluster).await {
                Ok(()) => None,
                Err(error) => {
                    tracing::warn!(%error, "routes to other nodes cannot be kept");
                    Some(RETRY)
                }
            };
            let retry = async {
                match again {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = changed.notified() => {}
                () = retry => {}
            }
        }
    }
    stop.cancel();
    factory.stopped().await;
    Ok(())
}

fn ranges(texts: &[String]) -> Result<Vec<Range>, Error> {
    texts.iter().map(|text| Range::parse(text).ok_or_else(|| Error::ClusterCidr(text.clone()))).collect()
}

async fn apply(
    netlink: &Netlink,
    nodes: &Informer<Node>,
    own_name: &str,
    cluster: &[Range],
) -> std::io::Result<()> {
    let mut attached = Vec::new();
    let indexes: BTreeSet<u32> = netlink.links().await?.iter().map(|link| link.index).collect();
    for link in indexes {
        let addresses = netlink.addresses(Some(link)).await?;
        attached.extend(addresses.into_iter().map(|(address, prefix_length)| Attached {
            link,
            address,
            prefix_length,
        }));
    }
    let wanted = wanted(&nodes.list(), own_name, &attached);
    bring(netlink, &wanted, cluster).await
}

async fn bring(netlink: &Netlink, wanted: &[Route], cluster: &[Range]) -> std::io::Result<()> {
    for ipv6 in [false, true] {
        if !cluster.iter().any(|range| range.first.is_ipv6() == ipv6) {
            continue;
        }
        let present = netlink.routes(ipv6).await?;
        let wanted: Vec<Route> =
            wanted.iter().filter(|route| route.destination.is_ipv6() == ipv6).cloned().collect();
        let (stale, missing) = difference(&present, &wanted, cluster);
        for route in stale {
            netlink.delete_route(&route).await?;
        }
        for route in missing {
            netlink.add_route(&route).await?;
        }
    }
    Ok(())
}

/// Takes the routes to the pods of other nodes away.
pub async fn reset(cluster_cidrs: &[String]) -> Result<(), Error> {
    let cluster = ranges(cluster_cidrs)?;
    let netlink = Netlink::open().map_err(Error::Routes)?;
    bring(&netlink, &[], &cluster).await.map_err(Error::Routes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, address: &str, pods: &str) -> Arc<Node> {
        let node = json!({
            "metadata": {"name": name}, "spec": {"podCIDR": pods, "podCIDRs": [pods]},
            "status": {"addresses": [
                {"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address},
            ]},
        });
        Arc::new(Node::from_value(node).unwrap())
    }

    fn route(destination: &str, gateway: Option<&str>, link: u32) -> Route {
        let range = Range::parse(destination).unwrap();
        let gateway = gateway.map(|text| text.parse().unwrap());
        Route { destination: range.first, prefix_length: range.length, gateway, link }
    }

    #[test]
    fn other_nodes_on_a_link_of_ours_get_a_route() {
        let attached = [
            Attached { link: 1, address: "127.0.0.1".parse().unwrap(), prefix_length: 8 },
            Attached { link: 2, address: "192.0.2.1".parse().unwrap(), prefix_length: 24 },
            Attached { link: 2, address: "fd00::1".parse().unwrap(), prefix_length: 64 },
        ];
        let nodes = [
            node("own", "192.0.2.1", "10.42.0.0/24"),
            node("near", "192.0.2.2", "10.42.1.0/24"),
            node("far", "198.51.100.2", "10.42.2.0/24"),
            node("six", "fd00::2", "fd42:0:0:1::/64"),
            node("mixed", "192.0.2.3", "fd42:0:0:2::/64"),
            node("new", "192.0.2.4", ""),
        ];
        assert_eq!(
            wanted(&nodes, "own", &attached),
            [route("10.42.1.0/24", Some("192.0.2.2"), 2), route("fd42:0:0:1::/64", Some("fd00::2"), 2)]
        );
    }

    #[test]
    fn only_routes_of_other_nodes_go() {
        let cluster = [Range::parse("10.42.0.0/16").unwrap()];
        let own_pod = route("10.42.0.5/32", None, 7);
        let default = route("0.0.0.0/0", Some("192.0.2.9"), 2);
        let stays = route("10.42.1.0/24", Some("192.0.2.2"), 2);
        let goes = route("10.42.2.0/24", Some("192.0.2.3"), 2);
        let comes = route("10.42.3.0/24", Some("192.0.2.4"), 2);
        let present = [own_pod, default, stays.clone(), goes.clone()];
        assert_eq!(difference(&present, &[stays, comes.clone()], &cluster), (vec![goes], vec![comes]));
    }

    #[test]
    fn the_kernel_is_brought_to_what_is_wanted() {
        let namespace = linux::netns::NetNs::anonymous().expect("making a network namespace needs root");
        let check = async || {
            let netlink = Netlink::open().unwrap();
            let link = netlink.link("lo").await.unwrap().unwrap().index;
            netlink.set_up(link).await.unwrap();
            netlink.add_address(link, "192.0.2.1".parse().unwrap(), 24).await.unwrap();
            let cluster = [Range::parse("10.42.0.0/16").unwrap()];
            let one = route("10.42.1.0/24", Some("192.0.2.2"), link);
            let two = route("10.42.2.0/24", Some("192.0.2.3"), link);
            bring(&netlink, std::slice::from_ref(&one), &cluster).await.unwrap();
            bring(&netlink, std::slice::from_ref(&two), &cluster).await.unwrap();
            let routes = netlink.routes(false).await.unwrap();
            assert!(routes.contains(&two) && !routes.contains(&one), "{routes:?}");
            bring(&netlink, &[], &cluster).await.unwrap();
            assert!(!netlink.routes(false).await.unwrap().contains(&two));
        };
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        namespace.run(|| runtime().block_on(check())).unwrap();
    }
}
