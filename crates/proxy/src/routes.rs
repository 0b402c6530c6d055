//! Routes to the pods of other nodes: plain ones where nodes share a link, through a VXLAN elsewhere.
//!
//! Start with [`decide::wanted`], the decider. Each node says in an annotation where its end of the tunnel is
//! ([`decide::Vtep`]); [`kernel`] brings links, neighbours and routes to what is wanted, by difference. What always
//! holds: what leads to a node that is gone goes too; a node that tunnels to nobody has no tunnel; routes of this
//! node's own pods are never touched, and other routes out of the cluster's ranges are nobody's business here.

mod decide;
mod kernel;

pub use kernel::{pod_mtu, reset};

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::core::v1::Node;
use client::{Client, PatchType};
use controller_runtime::{Event, Informer, InformerFactory};
use linux::netlink::{Change, Changes, Netlink};
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::Error;
use decide::{Own, Range, VTEP};

/// How long to wait before a change that the kernel or the API server refused is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How long events are gathered after the first: addresses and links come in bursts.
const GATHER: Duration = Duration::from_millis(10);

/// How packets reach the pods of other nodes. All nodes of a cluster have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Plain routes to nodes on a link of ours, a VXLAN to all others.
    #[default]
    Vxlan,
    /// A VXLAN to every node, for links that carry packets of known addresses only.
    VxlanOnly,
    /// Plain routes only: all nodes share a link, or other routers know the way.
    HostGw,
    /// Nothing: somebody else sees to it.
    None,
}

impl Backend {
    fn tunnels(self) -> bool {
        matches!(self, Backend::Vxlan | Backend::VxlanOnly)
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    /// The node that this is.
    pub node_name: String,
    /// Where other nodes reach it: packets of the tunnel come from this address.
    pub node_ip: IpAddr,
    /// Where pods are.
    pub cluster_cidrs: Vec<String>,
    pub backend: Backend,
}

/// Keeps the way to the pods of other nodes until the shutdown. The client may change the annotations of this
/// node.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let cluster = decide::ranges(&config.cluster_cidrs)?;
    if config.backend == Backend::None {
        reset(&config.cluster_cidrs).await?;
        return Ok(());
    }
    let stop = shutdown.child_token();
    let _stop_informers = stop.clone().drop_guard();
    let factory = InformerFactory::new(client.clone(), stop.clone());
    let nodes = factory.informer::<Node>();
    let changed = Arc::new(Notify::new());
    let told = changed.clone();
    nodes.subscribe(move |event| match event {
        Event::Updated { old, new } if !decide::differs(old, new) => {}
        _ => told.notify_one(),
    });
    factory.start();
    if factory.synced().await {
        let netlink = Netlink::open().map_err(Error::Routes)?;
        let changes = Changes::open().map_err(Error::Routes)?;
        let mut keeper = Keeper { config, cluster, client, nodes, netlink, changes, links: BTreeSet::new() };
        tokio::select! {
            () = stop.cancelled() => {}
            never = keeper.keep(&changed) => match never {},
        }
    }
    stop.cancel();
    factory.stopped().await;
    Ok(())
}

struct Keeper {
    config: Config,
    cluster: Vec<Range>,
    client: Client,
    nodes: Informer<Node>,
    netlink: Netlink,
    changes: Changes,
    /// The links that our routes go out by.
    links: BTreeSet<u32>,
}

impl Keeper {
    async fn keep(&mut self, changed: &Notify) -> std::convert::Infallible {
        loop {
            let mut failed = false;
            if let Err(error) = self.settle().await {
                tracing::warn!(%error, "the way to the pods of other nodes cannot be kept");
                failed = true;
            }
            if let Err(error) = self.publish().await {
                tracing::warn!(%error, "this node's end of the tunnel cannot be published");
                failed = true;
            }
            let retry =
                async { if failed { tokio::time::sleep(RETRY).await } else { std::future::pending().await } };
            tokio::select! {
                () = changed.notified() => {}
                () = concerns(&mut self.changes, &self.links) => tokio::time::sleep(GATHER).await,
                () = retry => {}
            }
        }
    }

    /// Brings the kernel to what the nodes say.
    async fn settle(&mut self) -> std::io::Result<()> {
        let attached = kernel::attached(&self.netlink).await?;
        let own = Own {
            name: &self.config.node_name,
            node_ip: self.config.node_ip,
            backend: self.config.backend,
            attached: &attached,
        };
        let nodes = self.nodes.list();
        let wanted = decide::wanted(&nodes, &own);
        let tunnel = kernel::Tunnel {
            local: self.config.node_ip,
            mac: decide::mac(&self.config.node_name),
            addresses: decide::tunnel_addresses(&nodes, &self.config.node_name),
        };
        self.links = kernel::bring(&self.netlink, &wanted, &tunnel, &self.cluster).await?;
        Ok(())
    }

    /// Says on the Node where this end of the tunnel is, if it does not yet.
    async fn publish(&self) -> Result<(), client::Error> {
        let Some(node) = self.nodes.get(&self.config.node_name) else { return Ok(()) };
        let own = self.config.backend.tunnels();
        let wanted = own.then(|| decide::own_vtep(&self.config.node_name, self.config.node_ip));
        let annotations = node.metadata.annotations.as_ref();
        if annotations.and_then(|all| all.get(VTEP)) == wanted.as_ref() {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": node.uid(), "annotations": {VTEP: wanted}}});
        self.client.patch::<Node>("", node.name(), None, PatchType::Merge, &patch).await.map(drop)
    }
}

/// Waits for a change in this namespace that routes may depend on.
async fn concerns(changes: &mut Changes, links: &BTreeSet<u32>) {
    loop {
        match changes.next().await {
            Some(Change::Link(index)) if !links.contains(&index) => {}
            Some(_) => return,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests;
