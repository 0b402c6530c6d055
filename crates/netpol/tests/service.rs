//! Policies and translation: Services, a pod that reaches itself through one, the cluster's DNS, open connections.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::networking::v1::NetworkPolicy;
use linux::netns::NetNs;
use linux::nft::{Protocol, Steps};
use netpol::cluster::{Cluster, Pod};
use netpol::object::{NamedPort, PodFacts, Resolver};
use netpol::policy::Policy;
use serde_json::{Value, json};
use testkit::network::{self, Host};

const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(500);
const SERVICE: &str = "10.43.0.7:80";
const DNS: &str = "10.43.0.10:53";

/// A node with pods `a` and `b` of namespace `x`, a Service that leads to `a`'s port 8080, and a DNS that leads to
/// port 10053 of a host that is no pod.
struct World {
    node: NetNs,
    pods: Vec<Host>,
    outside: Host,
    cluster: Cluster,
}

impl World {
    fn new() -> Self {
        let node = network::node(&["192.0.2.1".parse().unwrap()]);
        let address = |text: &str| [text.parse::<IpAddr>().unwrap()];
        let pods = vec![
            network::join(&node, 1, &address("10.42.0.1")),
            network::join(&node, 2, &address("10.42.0.2")),
        ];
        let outside = network::join(&node, 3, &address("198.51.100.7"));
        let mut world = World { node, pods, outside, cluster: Cluster::default() };
        // What the Service proxy does, as far as policies see it.
        world.apply(Steps::of_text(
            "add table ip proxy
            add chain ip proxy prerouting { type nat hook prerouting priority -100; }
            add chain ip proxy postrouting { type nat hook postrouting priority 100; }
            add rule ip proxy prerouting ip daddr 10.43.0.7 tcp dport 80 dnat to 10.42.0.1:8080
            add rule ip proxy prerouting ip daddr 10.43.0.10 udp dport 53 dnat to 198.51.100.7:10053
            add rule ip proxy postrouting ct status dnat ip saddr 10.42.0.1 ip daddr 10.42.0.1 masquerade
            "
            .to_owned(),
        ));
        let route = async {
            let netlink = linux::netlink::Netlink::open().unwrap();
            let link = netlink.link("veth3").await.unwrap().unwrap().index;
            let destination = "10.43.0.0".parse().unwrap();
            let route = linux::netlink::Route { destination, prefix_length: 16, gateway: None, link };
            netlink.add_route(&route).await.unwrap();
        };
        world.node.run(|| network::block_on(route)).unwrap();
        let name = |text: &str, name: &str| [(text.to_owned(), name.to_owned())].into();
        for (number, pod) in ["a", "b"].into_iter().enumerate() {
            let facts = PodFacts { namespace: "x".into(), labels: name("pod", pod), ..PodFacts::default() };
            let addresses = world.pods[number].addresses.clone();
            let model = Pod { facts: Some(Arc::new(facts)), addresses, is_subject: true, is_peer: true };
            world.cluster.set_pod(pod, Some(model));
        }
        world.cluster.set_resolver(Some(Resolver {
            namespace: "kube-system".to_owned(),
            labels: name("k8s-app", "kube-dns"),
            addresses: vec!["10.43.0.10".parse().unwrap()],
            ports: vec![NamedPort { name: "dns".to_owned(), protocol: Protocol::Udp, number: 53 }],
        }));
        world.cluster.settle();
        world.apply(world.cluster.steps());
        world
    }

    fn apply(&self, steps: Steps) {
        let text = steps.before.clone();
        let applied = self.node.run(|| steps.apply()).unwrap();
        applied.unwrap_or_else(|error| panic!("{error}\n{text}"));
    }

    /// The one policy there is, of namespace `x`.
    fn set(&mut self, spec: Value) {
        let policy = json!({"metadata": {"name": "p", "namespace": "x"}, "spec": spec});
        let policy = Policy::read(&NetworkPolicy::from_value(policy).unwrap());
        self.cluster.set_policy("x/p", Some(Arc::new(policy)));
        let change = self.cluster.settle().steps();
        self.apply(change);
    }

    /// A server in pod `a` that sends back what it gets, on one connection after another.
    fn serve(&self) {
        let listener = self.pods[0].namespace.run(|| TcpListener::bind("0.0.0.0:8080").unwrap()).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
    }
}

fn connect(from: &NetNs, target: &str, patience: Duration) -> Option<TcpStream> {
    let target: SocketAddr = target.parse().unwrap();
    let stream = from.run(|| TcpStream::connect_timeout(&target, patience).ok()).unwrap();
    stream.inspect(|stream| stream.set_read_timeout(Some(PATIENCE)).unwrap())
}

fn echo(mut stream: &TcpStream) {
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

#[test]
fn policies_see_the_pod_behind_a_service() {
    let mut world = World::new();
    world.serve();
    let (a, b) = (world.pods[0].namespace.try_clone().unwrap(), world.pods[1].namespace.try_clone().unwrap());
    let is_open = |from: &NetNs, expected: bool| {
        let stream = connect(from, SERVICE, if expected { PATIENCE } else { SILENCE });
        assert_eq!(stream.is_some(), expected);
        stream.inspect(echo);
    };
    world.set(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    is_open(&b, false);
    is_open(&a, true);
    // The port is the pod's, not the Service's.
    let ingress = |port: u16| {
        json!({"podSelector": {"matchLabels": {"pod": "a"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"pod": "b"}}}], "ports": [{"port": port}]}]})
    };
    world.set(ingress(80));
    is_open(&b, false);
    world.set(ingress(8080));
    is_open(&b, true);
    is_open(&world.outside.namespace, false);
    // The pod's own node, which probes it.
    assert!(connect(&world.node, "10.42.0.1:8080", PATIENCE).is_some());
}

#[test]
fn an_open_connection_stays_and_a_new_one_is_refused() {
    let mut world = World::new();
    world.serve();
    let b = world.pods[1].namespace.try_clone().unwrap();
    let open = connect(&b, "10.42.0.1:8080", PATIENCE).unwrap();
    echo(&open);
    world.set(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    assert!(connect(&b, "10.42.0.1:8080", SILENCE).is_none());
    echo(&open);
}

#[test]
fn the_clusters_dns_is_reached_as_its_pods_would_be() {
    let mut world = World::new();
    let server = world.outside.namespace.run(|| UdpSocket::bind("0.0.0.0:10053").unwrap()).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((length, from)) = server.recv_from(&mut buffer) {
            server.send_to(&buffer[..length], from).unwrap();
        }
    });
    let a = world.pods[0].namespace.try_clone().unwrap();
    let asks = |target: &str, expected: bool| {
        let client = a.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        client.set_read_timeout(Some(if expected { PATIENCE } else { SILENCE })).unwrap();
        client.send_to(b"?", target).unwrap();
        assert_eq!(client.recv(&mut [0; 16]).is_ok(), expected, "{target}");
    };
    let egress = |rules: Value| json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": rules});
    asks(DNS, true);
    world.set(egress(json!([])));
    asks(DNS, false);
    let pods = json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}});
    world.set(egress(json!([{"to": [pods], "ports": [{"port": 53, "protocol": "UDP"}]}])));
    asks(DNS, true);
    asks("198.51.100.7:10053", false);
    world.set(egress(json!([{"ports": [{"port": 10053, "protocol": "UDP"}]}])));
    asks("198.51.100.7:10053", true);
}
