//! Services in the kernel: a node and its pods as network namespaces, real connections through the table.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use api::Object;
use api::core::v1::Service;
use api::discovery::v1::EndpointSlice;
use linux::netlink::{Netlink, Route, VethPair};
use linux::netns::NetNs;
use linux::nft::Steps;
use proxy::NodePorts;
use proxy::endpoints::Here;
use proxy::ruleset::{Frame, Ruleset, TABLE};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(5);
const NODE: &str = "192.0.2.1";

/// A namespace with a veth to the node, and the address it has there.
struct Host {
    namespace: NetNs,
    address: IpAddr,
}

/// A node whose pods are 10.42.0.1 and up, and a machine outside the cluster.
struct Node {
    namespace: NetNs,
    pods: Vec<Host>,
    outside: Host,
    ruleset: Ruleset,
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn up(netlink: &Netlink, name: &str) -> u32 {
    let index = netlink.link(name).await.unwrap().unwrap().index;
    netlink.set_up(index).await.unwrap();
    index
}

fn join(node: &NetNs, number: u8, address: &str) -> Host {
    let host = Host { namespace: NetNs::anonymous().unwrap(), address: address.parse().unwrap() };
    let gateway: IpAddr = "169.254.1.1".parse().unwrap();
    let name = format!("veth{number}");
    let (near_mac, far_mac) = ([2, 0, 0, 0, 1, number], [2, 0, 0, 0, 2, number]);
    let make = async {
        let netlink = Netlink::open().unwrap();
        let peer_namespace = host.namespace.as_fd();
        let pair = VethPair {
            name: &name,
            mac: near_mac,
            peer_name: "eth0",
            peer_mac: far_mac,
            peer_namespace,
            mtu: None,
        };
        netlink.create_veth(&pair).await.unwrap();
        let link = up(&netlink, &name).await;
        netlink.add_permanent_neighbour(link, host.address, far_mac).await.unwrap();
    };
    node.run(|| block_on(make)).unwrap();
    let inside = async {
        let netlink = Netlink::open().unwrap();
        up(&netlink, "lo").await;
        let link = up(&netlink, "eth0").await;
        netlink.add_address(link, host.address, 32).await.unwrap();
        netlink.add_permanent_neighbour(link, gateway, near_mac).await.unwrap();
        netlink
            .add_route(&Route { destination: gateway, prefix_length: 32, gateway: None, link })
            .await
            .unwrap();
        let everywhere = "0.0.0.0".parse().unwrap();
        let default = Route { destination: everywhere, prefix_length: 0, gateway: Some(gateway), link };
        netlink.add_route(&default).await.unwrap();
    };
    host.namespace.run(|| block_on(inside)).unwrap();
    let route = async {
        let netlink = Netlink::open().unwrap();
        let link = up(&netlink, &name).await;
        netlink
            .add_route(&Route { destination: host.address, prefix_length: 32, gateway: None, link })
            .await
            .unwrap();
    };
    node.run(|| block_on(route)).unwrap();
    host
}

impl Node {
    fn new(pods: u8) -> Self {
        let namespace = NetNs::anonymous().expect("making a network namespace needs root");
        namespace
            .run(|| {
                std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
                block_on(async {
                    let netlink = Netlink::open().unwrap();
                    let lo = up(&netlink, "lo").await;
                    netlink.add_address(lo, NODE.parse().unwrap(), 32).await.unwrap();
                });
            })
            .unwrap();
        let joined =
            (1..=pods).map(|number| join(&namespace, number, &format!("10.42.0.{number}"))).collect();
        let outside = join(&namespace, 200, "198.51.100.7");
        // As on a node with a default route: Services are somewhere outside.
        let route = async {
            let netlink = Netlink::open().unwrap();
            let link = up(&netlink, "veth200").await;
            let destination = "10.43.0.0".parse().unwrap();
            netlink.add_route(&Route { destination, prefix_length: 16, gateway: None, link }).await.unwrap();
        };
        namespace.run(|| block_on(route)).unwrap();
        let ruleset =
            Ruleset::new(Frame { cluster_cidrs: vec!["10.42.0.0/16".to_owned()], ..Frame::default() });
        let node = Node { namespace, pods: joined, outside, ruleset };
        node.apply(Steps::of_text(node.ruleset.text()));
        node
    }

    fn apply(&self, steps: Steps) {
        let text = steps.before.clone();
        self.namespace.run(|| steps.apply()).unwrap().unwrap_or_else(|error| panic!("{error}\n{text}"));
    }

    /// Changes the Service `shop/web` by one transaction, as the proxy does.
    fn set(&mut self, spec: &Value, endpoints: &Value) {
        let service: Service =
            Object::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec,
                "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}}))
            .unwrap();
        let protocol = spec["ports"][0]["protocol"].clone();
        let slice: EndpointSlice = Object::from_value(json!({"addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": protocol}], "endpoints": endpoints}))
        .unwrap();
        let addresses = vec![NODE.parse().unwrap()];
        let here = Here { node: "here".to_owned(), addresses, ..Here::default() };
        let wanted = proxy::service::wanted(&service, &[&slice.into()], &here);
        self.ruleset.set("shop/web", wanted.elements);
        let change = self.ruleset.settle();
        self.apply(change.steps());
    }

    fn remove(&mut self) {
        self.ruleset.set("shop/web", Default::default());
        let change = self.ruleset.settle();
        self.apply(change.steps());
    }

    /// Servers that say which pod they are and whom they see, in every pod.
    fn serve(&self) {
        for (number, pod) in self.pods.iter().enumerate() {
            let listener = pod.namespace.run(|| TcpListener::bind("0.0.0.0:8080").unwrap()).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let mut stream: TcpStream = stream;
                    let _ = write!(stream, "{} {}", number + 1, stream.peer_addr().unwrap().ip());
                }
            });
        }
    }
}

/// Which pod answered, and whom it saw.
fn ask(from: &NetNs, target: &str) -> Result<(u8, String), std::io::ErrorKind> {
    let target: SocketAddr = target.parse().unwrap();
    from.run(|| {
        let patience = if cfg!(debug_assertions) { Duration::from_secs(1) } else { PATIENCE };
        let mut stream = TcpStream::connect_timeout(&target, patience).map_err(|error| error.kind())?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|error| error.kind())?;
        let (pod, peer) = text.split_once(' ').unwrap();
        Ok((pod.parse().unwrap(), peer.to_owned()))
    })
    .unwrap()
}

/// The pods that answer over many connections.
fn answering(from: &NetNs, target: &str) -> BTreeSet<u8> {
    (0..40).map(|_| ask(from, target).unwrap_or_else(|error| panic!("{target}: {error}")).0).collect()
}

fn spec(more: &Value) -> Value {
    let mut spec = json!({"type": "ClusterIP", "clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

/// Endpoints by pod number: `1` here, `-1` on another node, both ready.
fn endpoints(pods: &[i8]) -> Value {
    let endpoint = |pod: &i8| {
        let node = if *pod > 0 { "here" } else { "elsewhere" };
        json!({"addresses": [format!("10.42.0.{}", pod.abs())], "nodeName": node, "conditions": {"ready": true}})
    };
    pods.iter().map(endpoint).collect()
}

const CLUSTER_IP: &str = "10.43.0.7:80";

#[test]
fn a_cluster_ip_leads_to_every_endpoint_and_follows_changes() {
    let mut node = Node::new(3);
    node.serve();
    node.set(&spec(&json!({})), &endpoints(&[1, 2]));
    let client = node.pods[2].namespace.try_clone().unwrap();
    assert_eq!(answering(&client, CLUSTER_IP), [1, 2].into());
    assert_eq!(ask(&client, CLUSTER_IP).unwrap().1, "10.42.0.3", "pods are seen as themselves");
    assert_eq!(answering(&node.namespace, CLUSTER_IP), [1, 2].into());
    // A pod reaches itself through the Service.
    node.set(&spec(&json!({})), &endpoints(&[1]));
    assert_eq!(answering(&node.pods[0].namespace, CLUSTER_IP), [1].into());
    node.set(&spec(&json!({})), &endpoints(&[2, 3]));
    assert_eq!(answering(&client, CLUSTER_IP), [2, 3].into());
    // From outside the cluster the answer has to come back through the node.
    assert_eq!(ask(&node.outside.namespace, CLUSTER_IP).unwrap().1, NODE);

    node.set(&spec(&json!({})), &endpoints(&[]));
    assert_eq!(ask(&client, CLUSTER_IP), Err(std::io::ErrorKind::ConnectionRefused));
    assert_eq!(ask(&node.namespace, CLUSTER_IP), Err(std::io::ErrorKind::ConnectionRefused));
    node.set(&spec(&json!({})), &endpoints(&[3]));
    assert_eq!(
        ask(&client, "10.43.0.7:81"),
        Err(std::io::ErrorKind::ConnectionRefused),
        "a port it does not have"
    );
    node.remove();
    let listed = node.namespace.run(|| linux::nft::list_table_text("ip", TABLE).unwrap()).unwrap();
    assert!(!listed.contains("10.43.0.7") && !listed.contains("pick-"), "{listed}");
}

#[test]
fn a_node_port_masquerades_or_keeps_the_source_by_policy() {
    let mut node = Node::new(3);
    node.serve();
    let ports = json!([{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}]);
    let target = format!("{NODE}:30080");
    node.set(&spec(&json!({"type": "NodePort", "ports": ports})), &endpoints(&[1, -2]));
    assert_eq!(answering(&node.outside.namespace, &target), [1, 2].into());
    assert_eq!(ask(&node.outside.namespace, &target).unwrap().1, NODE);
    assert_eq!(answering(&node.namespace, &target), [1, 2].into());
    assert_eq!(answering(&node.pods[2].namespace, &target), [1, 2].into());

    let local = json!({"type": "NodePort", "ports": ports, "externalTrafficPolicy": "Local"});
    node.set(&spec(&local), &endpoints(&[1, -2]));
    assert_eq!(answering(&node.outside.namespace, &target), [1].into());
    assert_eq!(ask(&node.outside.namespace, &target).unwrap().1, "198.51.100.7");
    assert_eq!(answering(&node.pods[2].namespace, &target), [1, 2].into(), "inside, any endpoint will do");
    node.set(&spec(&local), &endpoints(&[-2]));
    assert_eq!(
        ask(&node.outside.namespace, &target),
        Err(std::io::ErrorKind::TimedOut),
        "dropped, not refused"
    );
    assert_eq!(answering(&node.pods[2].namespace, &target), [2].into());
    node.set(&spec(&local), &endpoints(&[]));
    assert_eq!(ask(&node.outside.namespace, &target), Err(std::io::ErrorKind::ConnectionRefused));
}

#[test]
fn affinity_keeps_a_client_at_its_endpoint_until_the_endpoint_goes() {
    let mut node = Node::new(4);
    node.serve();
    let sticky = spec(&json!({"sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}}));
    node.set(&sticky, &endpoints(&[1, 2, 3]));
    let client = node.pods[3].namespace.try_clone().unwrap();
    let first = answering(&client, CLUSTER_IP);
    assert_eq!(first.len(), 1, "{first:?}");
    let kept = *first.first().unwrap();
    // Others may go: the client stays.
    let fewer: Vec<i8> = [1, 2, 3].into_iter().filter(|pod| *pod == kept as i8 || *pod % 2 == 0).collect();
    node.set(&sticky, &endpoints(&fewer));
    assert_eq!(answering(&client, CLUSTER_IP), first);
    // Its endpoint goes: it moves, and stays there.
    let others: Vec<i8> = [1, 2, 3].into_iter().filter(|pod| *pod != kept as i8).collect();
    node.set(&sticky, &endpoints(&others));
    let second = answering(&client, CLUSTER_IP);
    assert_eq!(second.len(), 1, "{second:?}");
    assert_ne!(first, second);
    node.set(&sticky, &endpoints(&[1, 2, 3]));
    assert_eq!(answering(&client, CLUSTER_IP), second);
}

#[test]
fn affinity_lasts_while_a_client_comes_and_ends_when_it_stays_away() {
    let mut node = Node::new(3);
    node.serve();
    let timeout = Duration::from_secs(3);
    let sticky = spec(&json!({"sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": timeout.as_secs()}}}));
    node.set(&sticky, &endpoints(&[1, 2]));
    let client = node.pods[2].namespace.try_clone().unwrap();
    let remembered = |node: &Node| {
        let listed = node.namespace.run(|| linux::nft::list_table_text("ip", TABLE).unwrap()).unwrap();
        listed.contains("10.42.0.3 . 10.43.0.7 . tcp . 80 timeout 3s")
    };
    assert!(!remembered(&node));
    // Every connection begins the time anew.
    let first = ask(&client, CLUSTER_IP).unwrap();
    let begun = std::time::Instant::now();
    while begun.elapsed() < timeout + timeout / 2 {
        assert_eq!(ask(&client, CLUSTER_IP).unwrap(), first);
        std::thread::sleep(Duration::from_millis(100));
    }
    // Forgotten, it goes wherever chance leads: sooner or later elsewhere.
    let moved = (0..30).any(|_| {
        let left = std::time::Instant::now();
        while remembered(&node) {
            assert!(left.elapsed() < timeout * 3, "still remembered after {:?}", left.elapsed());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(left.elapsed() > timeout / 2, "forgotten after {:?}", left.elapsed());
        ask(&client, CLUSTER_IP).unwrap() != first
    });
    assert!(moved);
}

#[test]
fn a_load_balancer_address_admits_only_its_source_ranges() {
    let mut node = Node::new(2);
    node.serve();
    let target = "203.0.113.9:80";
    let open = spec(&json!({"type": "LoadBalancer", "externalIPs": ["203.0.113.10"]}));
    node.set(&open, &endpoints(&[1]));
    assert_eq!(ask(&node.outside.namespace, target).unwrap(), (1, NODE.to_owned()));
    assert_eq!(ask(&node.outside.namespace, "203.0.113.10:80").unwrap().0, 1);
    let closed = spec(&json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/8"]}));
    node.set(&closed, &endpoints(&[1]));
    assert_eq!(ask(&node.outside.namespace, target), Err(std::io::ErrorKind::TimedOut));
    assert_eq!(ask(&node.pods[1].namespace, target).unwrap().0, 1);
    let admitted = spec(&json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["198.51.100.0/24"]}));
    node.set(&admitted, &endpoints(&[1]));
    assert_eq!(ask(&node.outside.namespace, target).unwrap().0, 1);
}

#[test]
fn udp_is_translated_too() {
    let mut node = Node::new(2);
    let udp = spec(&json!({"ports": [{"name": "http", "port": 53, "protocol": "UDP"}]}));
    node.set(&udp, &endpoints(&[1]));
    let server = node.pods[0].namespace.run(|| UdpSocket::bind("0.0.0.0:8080").unwrap()).unwrap();
    let client = node.pods[1].namespace.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"question", "10.43.0.7:53").unwrap();
    let mut buffer = [0; 64];
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(from.ip(), node.pods[1].address);
    server.send_to(b"answer", from).unwrap();
    assert_eq!(client.recv_from(&mut buffer).unwrap().1.to_string(), "10.43.0.7:53");
}

#[test]
fn ten_thousand_services_load_and_change_quickly() {
    let mut node = Node::new(0);
    let here = Here { node: "here".to_owned(), ..Here::default() };
    for number in 0..10_000u32 {
        let ip = format!("10.{}.{}.{}", 43 + number / 60_000, number / 250, number % 250 + 1);
        let service: Service = Object::from_value(json!({"metadata": {"name": "s", "namespace": "n"},
            "spec": spec(&json!({"clusterIP": ip, "clusterIPs": [ip]}))}))
        .unwrap();
        let slice: EndpointSlice = Object::from_value(json!({"addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints(&[1, -2])}))
        .unwrap();
        let wanted = proxy::service::wanted(&service, &[&slice.into()], &here);
        node.ruleset.set(&number.to_string(), wanted.elements);
    }
    let started = std::time::Instant::now();
    let change = node.ruleset.settle();
    node.apply(change.steps());
    let loaded = started.elapsed();
    let started = std::time::Instant::now();
    node.set(&spec(&json!({"clusterIP": "10.43.200.1", "clusterIPs": ["10.43.200.1"]})), &endpoints(&[1]));
    let changed = started.elapsed();
    eprintln!("10,000 Services load in {loaded:?}, one more takes {changed:?}");
    assert!(loaded < Duration::from_secs(30) && changed < Duration::from_secs(1), "{loaded:?} {changed:?}");
}

#[test]
fn node_ports_are_at_the_primary_address_alone() {
    let mut node = Node::new(1);
    node.serve();
    let second = async {
        let netlink = Netlink::open().unwrap();
        let lo = up(&netlink, "lo").await;
        netlink.add_address(lo, "192.0.2.2".parse().unwrap(), 32).await.unwrap();
    };
    node.namespace.run(|| block_on(second)).unwrap();
    let ports = json!([{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}]);
    let spec = spec(&json!({"type": "NodePort", "ports": ports}));
    let both = ["192.0.2.1:30080", "192.0.2.2:30080"];
    let reached = |node: &Node| both.map(|target| ask(&node.outside.namespace, target).is_ok());
    node.set(&spec, &endpoints(&[1]));
    assert_eq!(reached(&node), [true, true]);
    for (node_ports, expected) in [
        (NodePorts::Primary, [true, false]),
        (NodePorts::Ranges(vec!["192.0.2.2/32".to_owned()]), [false, true]),
        (NodePorts::Ranges(vec!["fd00::/8".to_owned()]), [true, true]),
    ] {
        node.ruleset = Ruleset::new(Frame { node_ports, ..Frame::default() });
        node.ruleset.set_node(&[NODE.parse().unwrap()]);
        node.ruleset.settle();
        node.apply(Steps::of_text(node.ruleset.text()));
        node.set(&spec, &endpoints(&[1]));
        assert_eq!(reached(&node), expected);
        // Nothing anywhere is refused at the same addresses; elsewhere nobody listens, which is refused too.
        node.set(&spec, &endpoints(&[]));
        assert_eq!(reached(&node), [false, false]);
    }
}

#[test]
fn a_node_itself_needs_leave_to_use_a_guarded_balancer() {
    let mut node = Node::new(1);
    node.serve();
    let target = "203.0.113.9:80";
    // Where nodes are the balancer, its address is the node's.
    let balancer = async {
        let netlink = Netlink::open().unwrap();
        let lo = up(&netlink, "lo").await;
        netlink.add_address(lo, "203.0.113.9".parse().unwrap(), 32).await.unwrap();
    };
    node.namespace.run(|| block_on(balancer)).unwrap();
    let admits = |range: &str| spec(&json!({"type": "LoadBalancer", "loadBalancerSourceRanges": [range]}));
    node.set(&admits("198.51.100.0/24"), &endpoints(&[1]));
    assert_eq!(ask(&node.namespace, target), Err(std::io::ErrorKind::TimedOut));
    node.set(&admits("192.0.2.0/24"), &endpoints(&[1]));
    assert_eq!(ask(&node.namespace, target).unwrap().0, 1);
}

/// A packet of SCTP with one chunk: the kernel need not have sockets for it, only translation.
fn sctp(from: u16, to: u16, tag: u32, kind: u8) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([kind, 0, 0, 20]);
    // What the sender calls itself, its window, its streams out and in, its first number.
    packet.extend([7u32.to_be_bytes(), 0x10000u32.to_be_bytes()].concat());
    packet.extend([0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// Sends and receives whole packets of SCTP.
fn raw_sctp(namespace: &NetNs) -> UdpSocket {
    use rustix::net::{AddressFamily, SocketType, ipproto, socket};
    let socket = namespace.run(|| socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::SCTP)).unwrap());
    let socket = UdpSocket::from(socket.unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Who sent the next packet, from which port to which, and whether its sum is right.
fn receive_sctp(socket: &UdpSocket) -> (IpAddr, u16, u16, bool) {
    let mut buffer = [0; 256];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    let packet = &buffer[usize::from(buffer[0] & 0xf) * 4..length];
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let mut without_sum = packet.to_vec();
    without_sum[8..12].fill(0);
    (from.ip(), port(0), port(2), packet[8..12] == crc32c(&without_sum).to_le_bytes())
}

#[test]
fn sctp_is_translated_both_ways() {
    let mut node = Node::new(2);
    let ports = json!([{"name": "http", "port": 80, "protocol": "SCTP"}]);
    node.set(&spec(&json!({"ports": ports})), &endpoints(&[1]));
    let (server, client) = (raw_sctp(&node.pods[0].namespace), raw_sctp(&node.pods[1].namespace));
    let (init, init_ack) = (1, 2);
    client.send_to(&sctp(5000, 80, 0, init), "10.43.0.7:0").unwrap();
    let pod = node.pods[1].address;
    assert_eq!(receive_sctp(&server), (pod, 5000, 8080, true));
    server.send_to(&sctp(8080, 5000, 7, init_ack), (pod, 0)).unwrap();
    assert_eq!(receive_sctp(&client), ("10.43.0.7".parse().unwrap(), 80, 5000, true));
    // The port of TCP by that number is another one, which the Service does not have.
    assert_eq!(ask(&node.pods[1].namespace, CLUSTER_IP), Err(std::io::ErrorKind::ConnectionRefused));
}
