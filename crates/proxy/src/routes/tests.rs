use std::net::UdpSocket;
use std::os::fd::AsFd;

use linux::netlink::{Route, VethPair};
use linux::netns::NetNs;
use serde_json::Value;

use super::decide::{Attached, Tunnelled, Wanted, wanted};
use super::*;

fn node(name: &str, address: &str, pods: &[&str]) -> Node {
    let node = json!({
        "metadata": {"name": name, "annotations": {VTEP: decide::own_vtep(name, address.parse().unwrap())}},
        "spec": {"podCIDR": pods.first(), "podCIDRs": pods},
        "status": {"addresses": [
            {"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address},
        ]},
    });
    Node::from_value(node).unwrap()
}

fn route(destination: &str, gateway: Option<&str>, link: u32) -> Route {
    let range = Range::parse(destination).unwrap();
    let gateway = gateway.map(|text| text.parse().unwrap());
    Route { destination: range.first(), prefix_length: range.length(), gateway, link }
}

/// The ways of node `own`, as `10.42.1.0/24 via 192.0.2.2` and `10.42.2.0/24 tunnel 198.51.100.2`.
fn ways(nodes: Vec<Node>, node_ip: &str, backend: Backend) -> Vec<String> {
    let attach = |link, address: &str, prefix_length| {
        let address = address.parse().unwrap();
        Attached { link, mtu: 1500, address, prefix_length }
    };
    let attached = [attach(1, "127.0.0.1", 8), attach(2, "192.0.2.1", 24), attach(2, "2001:db8::1", 64)];
    let own = Own { name: "own", node_ip: node_ip.parse().unwrap(), backend, attached: &attached };
    let nodes: Vec<Arc<Node>> = nodes.into_iter().map(Arc::new).collect();
    let found = wanted(&nodes, &own);
    let direct = found.direct.iter().map(|route| {
        assert_eq!(route.link, 2);
        format!("{}/{} via {}", route.destination, route.prefix_length, route.gateway.unwrap())
    });
    let tunnelled = found.tunnelled.iter().map(|peer| {
        let Tunnelled { pods, gateway, host, .. } = peer;
        format!("{}/{} tunnel {host} {gateway}", pods.first(), pods.length())
    });
    direct.chain(tunnelled).collect()
}

#[test]
fn each_node_is_reached_by_the_shortest_way_that_there_is() {
    let nodes = || {
        let mut silent = node("silent", "198.51.100.9", &["10.42.9.0/24"]);
        silent.metadata.annotations = None;
        vec![
            node("own", "192.0.2.1", &["10.42.0.0/24"]),
            node("near", "192.0.2.2", &["10.42.1.0/24", "fd42:0:0:1::/64"]),
            node("far", "198.51.100.2", &["10.42.2.0/24"]),
            node("six", "2001:db8::2", &["fd42:0:0:3::/64"]),
            node("new", "192.0.2.4", &[]),
            node("junk", "192.0.2.5", &["10.42.5.0/33"]),
            silent,
        ]
    };
    let check = |node_ip, backend, expected: &[&str]| {
        assert_eq!(ways(nodes(), node_ip, backend), expected, "{node_ip} {backend:?}");
    };
    check(
        "192.0.2.1",
        Backend::Vxlan,
        &[
            "10.42.1.0/24 via 192.0.2.2",
            "fd42:0:0:3::/64 via 2001:db8::2",
            "fd42:0:0:1::/64 tunnel 192.0.2.2 fd42:0:0:1::1",
            "10.42.2.0/24 tunnel 198.51.100.2 10.42.2.1",
        ],
    );
    check(
        "192.0.2.1",
        Backend::VxlanOnly,
        &[
            "10.42.1.0/24 tunnel 192.0.2.2 10.42.1.1",
            "fd42:0:0:1::/64 tunnel 192.0.2.2 fd42:0:0:1::1",
            "10.42.2.0/24 tunnel 198.51.100.2 10.42.2.1",
        ],
    );
    check("2001:db8::1", Backend::VxlanOnly, &["fd42:0:0:3::/64 tunnel 2001:db8::2 fd42:0:0:3::1"]);
    check("192.0.2.1", Backend::HostGw, &["10.42.1.0/24 via 192.0.2.2", "fd42:0:0:3::/64 via 2001:db8::2"]);
}

#[test]
fn annotations_of_others_are_believed_only_where_they_make_sense() {
    let with = |vtep: Value| {
        let mut far = node("far", "198.51.100.2", &["10.42.2.0/24"]);
        far.metadata.annotations = Some([(VTEP.to_owned(), vtep.to_string())].into());
        ways(vec![far], "192.0.2.1", Backend::Vxlan)
    };
    assert_eq!(with(json!({"address": "198.51.100.3", "mac": "02:00:00:00:00:01"})).len(), 1);
    for vtep in [
        json!({"address": "198.51.100.3", "mac": "03:00:00:00:00:01"}),
        json!({"address": "198.51.100.3", "mac": "02:00:00:00:01"}),
        json!({"address": "198.51.100.3", "mac": "02:00:00:00:00:00:01"}),
        json!({"address": "192.0.2.1", "mac": "02:00:00:00:00:01"}),
        json!({"address": "2001:db8::2", "mac": "02:00:00:00:00:01"}),
        json!({"address": "nowhere", "mac": "02:00:00:00:00:01"}),
        json!("junk"),
    ] {
        assert_eq!(with(vtep.clone()), [""; 0], "{vtep}");
    }
}

#[test]
fn only_routes_of_other_nodes_go() {
    let cluster = [Range::parse("10.42.0.0/16").unwrap()];
    let own_pod = route("10.42.0.5/32", None, 7);
    let default = route("0.0.0.0/0", Some("192.0.2.9"), 2);
    let stays = route("10.42.1.0/24", Some("192.0.2.2"), 2);
    let goes = route("10.42.2.0/24", Some("192.0.2.3"), 2);
    let comes = route("10.42.3.0/24", Some("192.0.2.4"), 2);
    let mut present = vec![own_pod, default, stays.clone(), goes.clone()];
    present.retain(|route| kernel::is_ours(route, &cluster));
    assert_eq!(kernel::difference(&present, &[stays, comes.clone()]), (vec![goes], vec![comes]));
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Two nodes that share no link, and the router between them. A pod of each is an address of its loopback.
struct Apart {
    nodes: [NetNs; 2],
    router: NetNs,
}

const ADDRESSES: [&str; 2] = ["192.0.2.1", "198.51.100.1"];
const GATEWAYS: [&str; 2] = ["192.0.2.254", "198.51.100.254"];
const PODS: [[&str; 2]; 2] = [["10.42.0.5", "fd42::5"], ["10.42.1.5", "fd42:0:0:1::5"]];
const RANGES: [[&str; 2]; 2] = [["10.42.0.0/24", "fd42::/64"], ["10.42.1.0/24", "fd42:0:0:1::/64"]];

impl Apart {
    fn new() -> Self {
        let make = || NetNs::anonymous().expect("making a network namespace needs root");
        let apart = Apart { nodes: [make(), make()], router: make() };
        for side in 0..2 {
            apart.cable(side);
        }
        apart.router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap()).unwrap();
        apart
    }

    fn cable(&self, side: usize) {
        let address: IpAddr = ADDRESSES[side].parse().unwrap();
        let gateway: IpAddr = GATEWAYS[side].parse().unwrap();
        let number = u8::try_from(side).unwrap();
        let name = format!("port{side}");
        let outside = async {
            let netlink = Netlink::open().unwrap();
            let pair = VethPair {
                name: &name,
                mac: [2, 0, 0, 0, 1, number],
                peer_name: "eth0",
                peer_mac: [2, 0, 0, 0, 2, number],
                peer_namespace: self.nodes[side].as_fd(),
                mtu: Some(1400),
            };
            netlink.create_veth(&pair).await.unwrap();
            let port = netlink.link(&name).await.unwrap().unwrap().index;
            netlink.add_address(port, gateway, 24).await.unwrap();
        };
        self.router.run(|| block_on(outside)).unwrap();
        let inside = async {
            let netlink = Netlink::open().unwrap();
            let lo = netlink.link("lo").await.unwrap().unwrap().index;
            netlink.set_up(lo).await.unwrap();
            for pod in PODS[side] {
                let pod: IpAddr = pod.parse().unwrap();
                netlink.add_address(lo, pod, if pod.is_ipv4() { 32 } else { 128 }).await.unwrap();
            }
            let eth0 = netlink.link("eth0").await.unwrap().unwrap().index;
            netlink.set_up(eth0).await.unwrap();
            netlink.add_address(eth0, address, 24).await.unwrap();
            let everywhere = "0.0.0.0".parse().unwrap();
            let default =
                Route { destination: everywhere, prefix_length: 0, gateway: Some(gateway), link: eth0 };
            netlink.add_route(&default).await.unwrap();
        };
        self.nodes[side].run(|| block_on(inside)).unwrap();
    }

    /// Brings a node to what these nodes say.
    fn settle(&self, side: usize, nodes: &[Node]) {
        let settle = async {
            let name = format!("node{side}");
            let netlink = Netlink::open().unwrap();
            let attached = kernel::attached(&netlink).await.unwrap();
            let node_ip = ADDRESSES[side].parse().unwrap();
            let own = Own { name: &name, node_ip, backend: Backend::Vxlan, attached: &attached };
            let nodes: Vec<Arc<Node>> = nodes.iter().cloned().map(Arc::new).collect();
            let tunnel = kernel::Tunnel {
                local: node_ip,
                mac: decide::mac(&name),
                addresses: decide::tunnel_addresses(&nodes, &name),
            };
            let cluster = ["10.42.0.0/16", "fd42::/56"].map(|range| Range::parse(range).unwrap());
            kernel::bring(&netlink, &wanted(&nodes, &own), &tunnel, &cluster).await.unwrap();
        };
        self.nodes[side].run(|| block_on(settle)).unwrap();
    }

    /// Everything of a node that can leak: links, and routes, neighbours and addresses in all tables.
    fn traces(&self, side: usize) -> Vec<String> {
        let look = async {
            let netlink = Netlink::open().unwrap();
            let mut traces = Vec::new();
            for link in netlink.links().await.unwrap() {
                traces.extend(
                    netlink.addresses(Some(link.index)).await.unwrap().iter().map(|a| format!("{a:?}")),
                );
                let forwarding = netlink.forwarding(link.index).await.unwrap();
                traces.extend(forwarding.iter().map(|entry| format!("{entry:?}")));
                let neighbours = netlink.permanent_neighbours(link.index).await.unwrap();
                traces.extend(neighbours.iter().map(|entry| format!("{entry:?}")));
                traces.push(link.name);
            }
            for ipv6 in [false, true] {
                let routes = netlink.routes(ipv6).await.unwrap();
                // The kernel's own routes of its own addresses come when it has found nobody to have them.
                let set = routes.iter().filter(|route| route.gateway.is_some());
                traces.extend(set.map(|route| format!("{route:?}")));
            }
            traces
        };
        self.nodes[side].run(|| block_on(look)).unwrap()
    }

    /// Whether datagrams get from a pod of one node to one of the other and back.
    fn pods_talk(&self, family: usize) -> bool {
        let bind = |side: usize| {
            let bind = || UdpSocket::bind((PODS[side][family].parse::<IpAddr>().unwrap(), 7)).unwrap();
            let socket = self.nodes[side].run(bind).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            socket
        };
        let (one, other) = (bind(0), bind(1));
        let mut buffer = [0; 2000];
        // As long as it may be, and not to be cut: 1400 outside.
        let longest = if family == 0 { 1350 - 28 } else { 1350 - 48 };
        let sent = one.send_to(&buffer[..longest], other.local_addr().unwrap());
        let Ok((length, from)) = sent.and_then(|_| other.recv_from(&mut buffer)) else { return false };
        assert_eq!((length, from), (longest, one.local_addr().unwrap()));
        other.send_to(b"answer", from).is_ok() && one.recv_from(&mut buffer).is_ok()
    }
}

#[test]
fn pods_of_nodes_that_share_no_link_talk_through_the_tunnel_and_nothing_leaks() {
    let apart = Apart::new();
    let both: Vec<Node> =
        (0..2).map(|side| node(&format!("node{side}"), ADDRESSES[side], &RANGES[side])).collect();
    let before = apart.traces(0);
    assert!(!apart.pods_talk(0));
    for side in [0, 1, 0, 1] {
        apart.settle(side, &both);
    }
    assert!(apart.pods_talk(0) && apart.pods_talk(1));
    let joined = apart.traces(0);
    apart.settle(0, &both);
    assert_eq!(apart.traces(0), joined, "what is there already stays as it is");

    // The other node comes back with other pods, at another address: what led to it before is gone.
    let moved = vec![both[0].clone(), node("node1", "198.51.100.7", &["10.42.7.0/24"])];
    apart.settle(0, &moved);
    let traces = apart.traces(0).join("\n");
    assert!(!traces.contains("198.51.100.1") && !traces.contains("10.42.1."), "{traces}");
    assert!(traces.contains("198.51.100.7") && traces.contains("10.42.7.0"), "{traces}");
    apart.settle(0, &both);
    assert!(apart.pods_talk(0) && apart.pods_talk(1));
    // This node gets another range.
    let ranged = vec![node("node0", ADDRESSES[0], &["10.42.9.0/24"]), both[1].clone()];
    apart.settle(0, &ranged);
    let traces = apart.traces(0).join("\n");
    assert!(traces.contains("10.42.9.1") && !traces.contains("10.42.0.1"), "{traces}");

    apart.settle(0, &both[..1]);
    assert_eq!(apart.traces(0), before, "nothing is left when the other node is gone");
}

#[test]
fn a_plain_route_takes_the_place_of_the_tunnel() {
    let apart = Apart::new();
    let both: Vec<Node> =
        (0..2).map(|side| node(&format!("node{side}"), ADDRESSES[side], &RANGES[side])).collect();
    apart.settle(0, &both);
    assert!(apart.traces(0).iter().any(|trace| trace == "trierarch-vxlan"));
    let near = vec![both[0].clone(), node("node1", "192.0.2.77", &["10.42.1.0/24"])];
    apart.settle(0, &near);
    let traces = apart.traces(0).join("\n");
    assert!(!traces.contains("trierarch-vxlan") && traces.contains("192.0.2.77"), "{traces}");
    let nothing = Wanted::default();
    assert_eq!(
        wanted(
            &[],
            &Own {
                name: "n",
                node_ip: ADDRESSES[0].parse().unwrap(),
                backend: Backend::Vxlan,
                attached: &[]
            }
        ),
        nothing
    );
}
