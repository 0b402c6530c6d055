//! A range of pod addresses for every node, cut from the cluster's. What is taken is read from the nodes
//! themselves: there is no other record that could disagree.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use api::Object;
use api::core::v1::Node;
use client::PatchType;
use controller_runtime::{EventRecorder, Informer, WorkQueue};
use serde_json::json;

use crate::context::Context;
use crate::objects::is_deleting;
use crate::{Config, Error};

/// A node's ranges may be at most so much smaller than the cluster's.
///
/// Upstream: pkg/controller/nodeipam/ipam/cidrset/cidr_set.go clusterSubnetMaxDiff
const MAX_BITS: u8 = 16;

/// A range that is cut into equal ones.
#[derive(Clone, Debug, PartialEq)]
struct Pool {
    base: u128,
    width: u8,
    node_mask: u8,
    count: u128,
}

impl Pool {
    fn parse(cidr: &str, node_mask: u8) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Config(format!("cluster CIDR {cidr:?}: {why}"));
        let (address, mask) = cidr.split_once('/').ok_or_else(|| wrong("is not an address and a mask"))?;
        let address: IpAddr = address.parse().map_err(|_| wrong("is not an address and a mask"))?;
        let mask: u8 = mask.parse().map_err(|_| wrong("is not an address and a mask"))?;
        let (bits, width) = match address {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
            IpAddr::V6(v6) => (u128::from(v6), 128),
        };
        if mask > node_mask || node_mask > width || node_mask - mask > MAX_BITS {
            return Err(wrong(&format!("nodes cannot get ranges of /{node_mask} from it")));
        }
        let host_bits = u32::from(width - mask);
        let base = bits.checked_shr(host_bits).unwrap_or(0).checked_shl(host_bits).unwrap_or(0);
        Ok(Pool { base, width, node_mask, count: 1 << (node_mask - mask) })
    }

    fn range(&self, index: u128) -> String {
        let start = self.base + (index << (self.width - self.node_mask));
        let address = match self.width {
            32 => IpAddr::V4(Ipv4Addr::from(start as u32)),
            _ => IpAddr::V6(Ipv6Addr::from(start)),
        };
        format!("{address}/{}", self.node_mask)
    }

    /// The indexes of our ranges that a taken range covers: it may have been made with another mask.
    fn covered(&self, cidr: &str) -> impl Iterator<Item = u128> + use<> {
        let parsed =
            cidr.split_once('/').and_then(|(a, m)| Some((a.parse::<IpAddr>().ok()?, m.parse::<u8>().ok()?)));
        let range = parsed.and_then(|(address, mask)| {
            let (bits, width) = match address {
                IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
                IpAddr::V6(v6) => (u128::from(v6), 128),
            };
            if width != self.width || mask > width {
                return None;
            }
            let shift = self.width - self.node_mask;
            let size = 1u128.checked_shl(u32::from(width - mask)).map_or(u128::MAX, |size| size - 1);
            let last = bits.saturating_add(size).checked_sub(self.base)? >> shift;
            let first = bits.saturating_sub(self.base) >> shift;
            (first < self.count).then(|| first..=last.min(self.count - 1))
        });
        range.into_iter().flatten()
    }

    /// The lowest free range.
    fn free<'a>(&self, taken: impl Iterator<Item = &'a str>) -> Option<String> {
        let taken: HashSet<u128> = taken.flat_map(|cidr| self.covered(cidr)).collect();
        (0..self.count).find(|index| !taken.contains(index)).map(|index| self.range(index))
    }
}

fn pools(config: &Config) -> Result<Vec<Pool>, Error> {
    let cidrs = config.cluster_cidr.split(',').map(str::trim).filter(|cidr| !cidr.is_empty());
    let mask = |cidr: &str| {
        if cidr.contains(':') { config.node_cidr_mask_ipv6 } else { config.node_cidr_mask }
    };
    cidrs.map(|cidr| Pool::parse(cidr, mask(cidr))).collect()
}

/// Whether the configuration can be worked with.
pub(crate) fn check(config: &Config) -> Result<(), Error> {
    pools(config).map(drop)
}

fn ranges(node: &Node) -> Vec<&str> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all: Vec<_> = spec.pod_cidrs.iter().flatten().map(String::as_str).collect();
    if all.is_empty() { spec.pod_cidr.iter().map(String::as_str).collect() } else { all }
}

struct Controller {
    nodes: Informer<Node>,
    pools: Vec<Pool>,
    events: EventRecorder,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let Ok(pools) = pools(&context.config) else { return };
    if pools.is_empty() {
        return;
    }
    let nodes: Informer<Node> = context.informers.informer();
    let controller = Arc::new(Controller { nodes, pools, events: context.events("cidrAllocator") });
    if !context.synced().await {
        return;
    }
    let queue = WorkQueue::new();
    let (this, keys) = (controller.clone(), queue.clone());
    controller.nodes.subscribe(move |event| {
        let node = event.object();
        if matches!(event, controller_runtime::Event::Deleted(_)) {
            // Its range is free for a node that found none.
            let waiting = this.nodes.list().into_iter().filter(|node| ranges(node).is_empty());
            waiting.for_each(|node| keys.add(node.name().to_owned()));
        } else if ranges(node).is_empty() {
            keys.add(node.name().to_owned());
        }
    });
    // One worker: two must not take the same range.
    context.work(&controller, &queue, 1, Controller::reconcile).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, name: String) -> Result<(), Error> {
        let Some(node) = self.nodes.get(&name).filter(|node| !is_deleting(&**node)) else { return Ok(()) };
        if !ranges(&node).is_empty() {
            return Ok(());
        }
        let all = self.nodes.list();
        let taken = || all.iter().flat_map(|node| ranges(node));
        let free: Option<Vec<_>> = self.pools.iter().map(|pool| pool.free(taken())).collect();
        let Some(free) = free else {
            let message = format!("Node {name} status is now: CIDRNotAvailable");
            self.events.normal(&*node, "CIDRNotAvailable", message);
            return Ok(());
        };
        let patch = json!({
            "metadata": {"uid": node.uid(), "resourceVersion": node.metadata.resource_version},
            "spec": {"podCIDR": free[0], "podCIDRs": free},
        });
        self.nodes.patch(&node, None, PatchType::Merge, &patch).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_the_lowest_free() {
        let check = |cidr: &str, mask: u8, taken: &[&str], expected: Option<&str>| {
            let pool = Pool::parse(cidr, mask).unwrap();
            assert_eq!(pool.free(taken.iter().copied()).as_deref(), expected, "{cidr} {taken:?}");
        };
        check("10.42.0.0/16", 24, &[], Some("10.42.0.0/24"));
        check("10.42.0.0/16", 24, &["10.42.0.0/24", "10.42.2.0/24"], Some("10.42.1.0/24"));
        check("10.42.7.9/16", 24, &["10.42.0.0/23"], Some("10.42.2.0/24"));
        check("10.42.0.0/24", 25, &["10.42.0.0/25", "10.42.0.128/25"], None);
        check("10.42.0.0/24", 24, &["0.0.0.0/0"], None);
        check("10.42.0.0/24", 24, &["10.99.0.0/24", "nonsense", "fd00::/64"], Some("10.42.0.0/24"));
        check("10.42.0.0/24", 25, &["10.42.0.64/26"], Some("10.42.0.128/25"));
        check("fd00:10::/56", 64, &["fd00:10::/64"], Some("fd00:10:0:1::/64"));
    }

    #[test]
    fn wrong_ranges_are_refused() {
        for (cidr, mask) in
            [("10.0.0.0", 24), ("10.0.0.0/25", 24), ("10.0.0.0/4", 24), ("x/16", 24), ("10.0.0.0/16", 40)]
        {
            assert!(Pool::parse(cidr, mask).is_err(), "{cidr} {mask}");
        }
    }
}
