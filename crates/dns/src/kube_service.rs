//! The Service by which pods know the servers. These run in no pod, so the Service has no selector, and its endpoints
//! are the nodes that say of themselves, by an annotation, that they run one.
//!
//! Start with [`slices`], the decider. Each endpoint is hinted to its own node: a pod asks the server of its node, and
//! those of others only where its own has none.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::core::v1::{Node, Service};
use api::discovery::v1::EndpointSlice;
use client::{Client, DeleteOptions, PatchType};
use controller_runtime::{Event, Filter, Informer, InformerFactory};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cluster::SERVICE_LABEL;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
const MANAGED_BY: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "trierarch-dns");
/// The annotation of a Node that runs a server: its port.
const PORT: &str = "trierarch.io/dns-port";
/// How many endpoints the API takes in one slice.
const MAX_ENDPOINTS: usize = 1000;
const RETRY: Duration = Duration::from_secs(2);

/// Says on the Node that a server runs there, as soon as there is a Node and whenever it says otherwise.
pub async fn announce(client: Client, node_name: String, port: u16, shutdown: CancellationToken) {
    let stop = shutdown.child_token();
    let _stop_informers = stop.clone().drop_guard();
    let factory = InformerFactory::new(client.clone(), stop.clone());
    let nodes: Informer<Node> = factory.filtered(Filter::fields(format!("metadata.name={node_name}")));
    let changed = Arc::new(Notify::new());
    let told = changed.clone();
    nodes.subscribe(move |_| told.notify_one());
    factory.start();
    loop {
        let said = say(&client, nodes.get(&node_name), port).await;
        if !go_on(said, "cannot say that this node runs a DNS server", &changed, &stop).await {
            break;
        }
    }
    stop.cancel();
    factory.stopped().await;
}

async fn say(client: &Client, node: Option<Arc<Node>>, port: u16) -> Result<(), client::Error> {
    let Some(node) = node.filter(|node| dns_port(node) != Some(port)) else { return Ok(()) };
    let patch = json!({"metadata": {"uid": node.uid(), "annotations": {PORT: port.to_string()}}});
    client.patch::<Node>("", node.name(), None, PatchType::Merge, &patch).await.map(drop)
}

/// Keeps the Service `kube-dns` at these addresses, one a family, and its EndpointSlices as the nodes are.
pub async fn keep_service(client: Client, cluster_ips: Vec<IpAddr>, shutdown: CancellationToken) {
    let stop = shutdown.child_token();
    let _stop_informers = stop.clone().drop_guard();
    let factory = InformerFactory::new(client.clone(), stop.clone());
    let nodes: Informer<Node> = factory.informer();
    let (label, manager) = MANAGED_BY;
    let present: Informer<EndpointSlice> = factory.filtered(Filter::labels(format!("{label}={manager}")));
    let changed = Arc::new(Notify::new());
    let told = changed.clone();
    nodes.subscribe(move |event| match event {
        Event::Updated { old, new } if seen(old) == seen(new) => {}
        _ => told.notify_one(),
    });
    let told = changed.clone();
    present.subscribe(move |_| told.notify_one());
    factory.start();
    if factory.synced().await {
        loop {
            let settled = settle(&client, &cluster_ips, &nodes, &present).await;
            if !go_on(settled, "the Service kube-dns cannot be kept", &changed, &stop).await {
                break;
            }
        }
    }
    stop.cancel();
    factory.stopped().await;
}

/// Waits for a change, or for the moment to try again what failed; `false` at the shutdown.
async fn go_on(
    acted: Result<(), client::Error>,
    complaint: &str,
    changed: &Notify,
    stop: &CancellationToken,
) -> bool {
    if let Err(error) = &acted {
        tracing::warn!(error = error as &dyn std::error::Error, "{complaint}");
    }
    let retry =
        async { if acted.is_err() { tokio::time::sleep(RETRY).await } else { std::future::pending().await } };
    tokio::select! {
        () = stop.cancelled() => false,
        () = changed.notified() => true,
        () = retry => true,
    }
}

async fn settle(
    client: &Client,
    cluster_ips: &[IpAddr],
    nodes: &Informer<Node>,
    present: &Informer<EndpointSlice>,
) -> Result<(), client::Error> {
    ensure::<Service>(client, service(cluster_ips)).await?;
    settle_slices(client, present, slices(&nodes.list(), cluster_ips)).await
}

async fn settle_slices(
    client: &Client,
    present: &Informer<EndpointSlice>,
    wanted: Vec<EndpointSlice>,
) -> Result<(), client::Error> {
    for slice in &wanted {
        let existing = present.get_in(NAMESPACE, slice.name());
        let same = existing.as_ref().is_some_and(|existing| {
            existing.endpoints == slice.endpoints
                && existing.ports == slice.ports
                && existing.metadata.labels == slice.metadata.labels
        });
        if same {
            continue;
        }
        ensure::<EndpointSlice>(client, serde_json::to_value(slice).unwrap_or_default()).await?;
    }
    for slice in present.list() {
        let is_wanted =
            slice.namespace() == NAMESPACE && wanted.iter().any(|wanted| wanted.name() == slice.name());
        if is_wanted || slice.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let options = DeleteOptions::uid(slice.uid());
        match client.delete::<EndpointSlice>(slice.namespace(), slice.name(), &options).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Merges ours into the object that is there, so that labels and the like of others stay, or creates it. Not the
/// other way round: a Service that is there holds its address, and creating it again would be refused for that.
async fn ensure<T: Object>(client: &Client, wanted: Value) -> Result<(), client::Error> {
    let object = T::from_value(wanted.clone()).expect("the manifest has the shape of its kind");
    match client.patch::<T>(NAMESPACE, object.name(), None, PatchType::Merge, &wanted).await {
        Err(error) if error.is_not_found() => client.create(&object).await.map(drop),
        patched => patched.map(drop),
    }
}

/// Without a selector, so that no controller writes its endpoints.
fn service(cluster_ips: &[IpAddr]) -> Value {
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol, "targetPort": 53});
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {
                "k8s-app": "kube-dns",
                "kubernetes.io/cluster-service": "true",
                "kubernetes.io/name": "CoreDNS",
            },
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ips.first(),
            "clusterIPs": cluster_ips,
            "ipFamilyPolicy": if cluster_ips.len() > 1 { "RequireDualStack" } else { "SingleStack" },
            "trafficDistribution": "PreferSameNode",
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    })
}

fn dns_port(node: &Node) -> Option<u16> {
    node.metadata.annotations.as_ref()?.get(PORT)?.parse().ok()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn address(node: &Node, ipv6: bool) -> Option<IpAddr> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let mut internal = addresses.filter(|address| address.type_ == "InternalIP");
    internal.find_map(|address| address.address.parse().ok().filter(|ip: &IpAddr| ip.is_ipv6() == ipv6))
}

/// What of a node an endpoint depends on.
fn seen(node: &Node) -> (Option<u16>, bool, [Option<IpAddr>; 2]) {
    (dns_port(node), is_ready(node), [false, true].map(|ipv6| address(node, ipv6)))
}

/// The slices that lead to the servers: for each family of the Service, one for each port that servers have.
fn slices(nodes: &[Arc<Node>], cluster_ips: &[IpAddr]) -> Vec<EndpointSlice> {
    let mut nodes: Vec<&Arc<Node>> = nodes.iter().collect();
    nodes.sort_by_key(|node| node.name());
    let mut ports: Vec<u16> = nodes.iter().filter_map(|node| dns_port(node)).collect();
    ports.sort_unstable();
    ports.dedup();
    let mut slices = Vec::new();
    for ipv6 in cluster_ips.iter().map(IpAddr::is_ipv6) {
        for port in &ports {
            let servers = nodes.iter().filter(|node| dns_port(node) == Some(*port));
            let endpoints: Vec<Value> = servers
                .filter_map(|node| {
                    let (address, ready) = (address(node, ipv6)?, is_ready(node));
                    Some(json!({
                        "addresses": [address],
                        "nodeName": node.name(),
                        "conditions": {"ready": ready, "serving": ready, "terminating": false},
                        "hints": {"forNodes": [{"name": node.name()}]},
                    }))
                })
                .take(MAX_ENDPOINTS)
                .collect();
            if !endpoints.is_empty() {
                slices.push(slice(ipv6, *port, &endpoints));
            }
        }
    }
    slices
}

fn slice(ipv6: bool, port: u16, endpoints: &[Value]) -> EndpointSlice {
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let (label, manager) = MANAGED_BY;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{NAME}-{}-{port}", family.to_ascii_lowercase()),
            "namespace": NAMESPACE,
            "labels": {SERVICE_LABEL: NAME, label: manager},
        },
        "addressType": family,
        "ports": [
            {"name": "dns", "port": port, "protocol": "UDP"},
            {"name": "dns-tcp", "port": port, "protocol": "TCP"},
        ],
        "endpoints": endpoints,
    });
    Object::from_value(slice).expect("the manifest has the shape of its kind")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ips: &[&str], port: Option<u16>, ready: bool) -> Arc<Node> {
        let addresses: Vec<Value> =
            ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        let mut node = json!({
            "metadata": {"name": name, "annotations": {}},
            "status": {
                "addresses": addresses,
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "Unknown" }}],
            },
        });
        if let Some(port) = port {
            node["metadata"]["annotations"][PORT] = port.to_string().into();
        }
        Arc::new(Node::from_value(node).unwrap())
    }

    /// As `kube-dns-ipv4-10053: one/192.0.2.1 (two/192.0.2.2)`: those in parentheses are not ready.
    fn check(nodes: &[Arc<Node>], cluster_ips: &[&str], expected: &[&str]) {
        let cluster_ips: Vec<IpAddr> = cluster_ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let found = slices(nodes, &cluster_ips).into_iter().map(|slice| {
            let endpoints = slice.endpoints.clone().unwrap_or_default().into_iter().map(|endpoint| {
                let node = endpoint.node_name.unwrap_or_default();
                let hints = endpoint.hints.and_then(|hints| hints.for_nodes).unwrap_or_default();
                assert_eq!(hints[0].name, node);
                let text = format!("{node}/{}", endpoint.addresses[0]);
                let ready = endpoint.conditions.and_then(|conditions| conditions.ready);
                if ready == Some(true) { text } else { format!("({text})") }
            });
            format!("{}: {}", slice.name(), endpoints.collect::<Vec<_>>().join(" "))
        });
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn every_node_that_runs_a_server_is_an_endpoint() {
        let nodes = [
            node("two", &["192.0.2.2"], Some(10053), false),
            node("one", &["192.0.2.1", "2001:db8::1"], Some(10053), true),
            node("none", &["192.0.2.3"], None, true),
        ];
        check(&nodes, &["10.43.0.10"], &["kube-dns-ipv4-10053: one/192.0.2.1 (two/192.0.2.2)"]);
        check(
            &nodes,
            &["fd43::a", "10.43.0.10"],
            &["kube-dns-ipv6-10053: one/2001:db8::1", "kube-dns-ipv4-10053: one/192.0.2.1 (two/192.0.2.2)"],
        );
        let other = node("other", &["192.0.2.4"], Some(53), true);
        check(
            &[nodes[1].clone(), other],
            &["10.43.0.10"],
            &["kube-dns-ipv4-53: other/192.0.2.4", "kube-dns-ipv4-10053: one/192.0.2.1"],
        );
        check(&nodes[2..], &["10.43.0.10"], &[]);
    }

    #[test]
    fn the_service_has_an_address_of_each_family() {
        let ips: Vec<IpAddr> = vec!["10.43.0.10".parse().unwrap(), "fd43::a".parse().unwrap()];
        let spec = |ips: &[IpAddr]| {
            let service: Service = Object::from_value(service(ips)).unwrap();
            service.spec.unwrap()
        };
        assert_eq!(spec(&ips).cluster_ips.unwrap(), ["10.43.0.10", "fd43::a"]);
        assert_eq!(spec(&ips[..1]).ip_family_policy.as_deref(), Some("SingleStack"));
    }
}
