//! The proxy as it runs: objects of an API server become a table, and UDP flows follow their endpoints.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use linux::netlink::Netlink;
use linux::netns::NetNs;
use proxy::{Metrics, NodePorts};
use serde_json::{Value, json};
use testkit::FakeServer;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

fn slice(address: &str) -> Value {
    json!({"metadata": {"name": "dns-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "dns"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 5353, "protocol": "UDP"}],
        "endpoints": [{"addresses": [address], "nodeName": "here", "conditions": {"ready": true}}]})
}

/// Asks until somebody answers: a table in the making drops or refuses what comes too early.
async fn ask(client: &UdpSocket, target: SocketAddr) -> String {
    let mut buffer = [0; 64];
    for _ in 0..100 {
        let sent = client.send_to(b"question", target).await;
        let answer = tokio::time::timeout(Duration::from_millis(100), client.recv_from(&mut buffer)).await;
        if let (Ok(_), Ok(Ok((length, _)))) = (sent, answer) {
            return String::from_utf8_lossy(&buffer[..length]).into_owned();
        }
    }
    panic!("nobody answered at {target}");
}

async fn answer(address: &'static str) {
    let server = UdpSocket::bind((address, 5353)).await.unwrap();
    let mut buffer = [0; 64];
    loop {
        let (_, from) = server.recv_from(&mut buffer).await.unwrap();
        server.send_to(address.as_bytes(), from).await.unwrap();
    }
}

async fn scenario() {
    let netlink = Netlink::open().unwrap();
    let lo = netlink.link("lo").await.unwrap().unwrap().index;
    netlink.set_up(lo).await.unwrap();
    for address in ["192.0.2.1", "192.0.2.2"] {
        netlink.add_address(lo, address.parse().unwrap(), 32).await.unwrap();
    }
    let services = "10.43.0.0".parse().unwrap();
    let route = linux::netlink::Route { destination: services, prefix_length: 16, gateway: None, link: lo };
    netlink.add_route(&route).await.unwrap();

    let (server, client) = FakeServer::new();
    server.put(
        "/api/v1/services",
        json!({"metadata": {"name": "dns", "namespace": "shop"}, "spec": {"clusterIP": "10.43.0.10",
            "clusterIPs": ["10.43.0.10"], "ports": [{"port": 53, "protocol": "UDP"}]}}),
    );
    server.put(
        "/api/v1/nodes",
        json!({"metadata": {"name": "here"}, "status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"},
        ]}}),
    );
    server.put(SLICES, slice("192.0.2.1"));
    let config = proxy::Config {
        node_name: "here".to_owned(),
        cluster_cidrs: vec!["10.42.0.0/16".to_owned()],
        healthz_address: Some("127.0.0.1:10256".parse().unwrap()),
        node_ports: NodePorts::Primary,
        clock: controller_runtime::Clock::new(|| jiff::Timestamp::UNIX_EPOCH),
        metrics: Metrics::default(),
    };
    let shutdown = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(answer("192.0.2.1"));
    tasks.spawn(answer("192.0.2.2"));
    let proxy = tokio::spawn(proxy::run(config, client, shutdown.clone()));

    let asker = UdpSocket::bind("192.0.2.1:0").await.unwrap();
    let target = "10.43.0.10:53".parse().unwrap();
    assert_eq!(ask(&asker, target).await, "192.0.2.1");
    // The same socket is the same flow: it has to be cut to reach the new endpoint.
    server.put(SLICES, slice("192.0.2.2"));
    let moved = async {
        while ask(&asker, target).await != "192.0.2.2" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), moved).await.expect("the flow follows its endpoint");

    let health = tokio::net::TcpStream::connect("127.0.0.1:10256").await.unwrap();
    health.writable().await.unwrap();
    health.try_write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    health.readable().await.unwrap();
    let mut buffer = [0; 256];
    let length = health.try_read(&mut buffer).unwrap();
    assert!(buffer[..length].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..length]));

    shutdown.cancel();
    proxy.await.unwrap().unwrap();
    assert!(linux::nft::list_table_text("ip", proxy::ruleset::TABLE).unwrap().contains("10.43.0.10"));
    tasks.shutdown().await;
}

#[test]
fn udp_flows_follow_their_endpoints() {
    let namespace = NetNs::anonymous().expect("making a network namespace needs root");
    namespace
        .run(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(scenario())
        })
        .unwrap();
}
