//! The server as it runs: real questions over UDP and TCP in a namespace of its own, an upstream beside it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata::A};
use linux::netlink::Netlink;
use linux::netns::NetNs;
use serde_json::json;
use testkit::FakeServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

const SERVER: &str = "127.0.0.1:10053";
const UPSTREAM: &str = "127.0.0.2:53";
/// An upstream that never answers.
const SILENT: &str = "127.0.0.3:53";

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    question_with(name, kind, None)
}

/// A question of one who takes so much in a packet.
fn question_with(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.add_query(Query::query(name.parse().unwrap(), kind));
    message.to_vec().unwrap()
}

async fn ask_udp(name: &str, kind: RecordType) -> Message {
    Message::from_vec(&packet(name, &question(name, kind)).await).unwrap()
}

/// The packet that answers a question over UDP.
async fn packet(name: &str, question: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut buffer = [0; 4096];
    // The server may not be there yet.
    for _ in 0..100 {
        let sent = socket.send_to(question, SERVER).await;
        let answer = tokio::time::timeout(Duration::from_millis(500), socket.recv_from(&mut buffer)).await;
        if let (Ok(_), Ok(Ok((length, _)))) = (sent, answer) {
            return buffer[..length].to_vec();
        }
        tokio::task::yield_now().await;
    }
    panic!("no answer about {name}");
}

async fn ask_tcp(name: &str, kind: RecordType) -> Message {
    let mut stream = TcpStream::connect(SERVER).await.unwrap();
    let question = question(name, kind);
    stream.write_u16(u16::try_from(question.len()).unwrap()).await.unwrap();
    stream.write_all(&question).await.unwrap();
    let length = stream.read_u16().await.unwrap();
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

/// Knows `example.org` and nothing else.
async fn upstream() {
    let socket = UdpSocket::bind(UPSTREAM).await.unwrap();
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let asked = Message::from_vec(&buffer[..length]).unwrap();
        let query = asked.queries[0].clone();
        let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata.recursion_available = true;
        answer.add_query(query.clone());
        if query.name().to_lowercase() == "example.org.".parse::<Name>().unwrap() {
            let data = RData::A(A([192, 0, 2, 80].into()));
            answer.add_answer(Record::from_rdata(query.name().clone(), 60, data));
        } else {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
    }
}

async fn scenario() {
    let netlink = Netlink::open().unwrap();
    let lo = netlink.link("lo").await.unwrap().unwrap().index;
    netlink.set_up(lo).await.unwrap();
    let (server, client) = FakeServer::new();
    server.put("/api/v1/namespaces", json!({"metadata": {"name": "shop"}}));
    let ext = json!({"type": "ExternalName", "externalName": "example.org"});
    server.put("/api/v1/services", json!({"metadata": {"name": "ext", "namespace": "shop"}, "spec": ext}));
    server.put(
        "/api/v1/services",
        json!({"metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": "10.43.0.10", "clusterIPs": ["10.43.0.10"]}}),
    );
    let many: Vec<_> = (1..=100).map(|number| json!({"addresses": [format!("10.42.0.{number}")]})).collect();
    server.put(
        "/api/v1/services",
        json!({"metadata": {"name": "many", "namespace": "shop"}, "spec": {"clusterIP": "None", "clusterIPs": ["None"]}}),
    );
    server.put(
        "/apis/discovery.k8s.io/v1/endpointslices",
        json!({"metadata": {"name": "many-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "many"}},
            "addressType": "IPv4", "ports": [], "endpoints": many}),
    );
    let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
    let metrics = dns::Metrics::default();
    let _silent = UdpSocket::bind(SILENT).await.unwrap();
    let config = dns::Config {
        bind_addresses: vec![address(SERVER)],
        cluster_domain: "cluster.local".to_owned(),
        upstreams: vec![address(SERVER), address(SILENT), address(UPSTREAM)],
        service_addresses: vec!["10.43.0.10".parse().unwrap()],
        metrics: metrics.clone(),
    };
    let shutdown = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(upstream());
    let running = tokio::spawn(dns::run(config, client, shutdown.clone()));

    let kube_dns = ask_udp("kube-dns.kube-system.svc.cluster.local.", RecordType::A).await;
    assert_eq!(addresses(&kube_dns), ["10.43.0.10"]);
    assert!(kube_dns.metadata.authoritative && kube_dns.metadata.recursion_available);
    assert_eq!(addresses(&ask_udp("example.org.", RecordType::A).await), ["192.0.2.80"]);
    assert_eq!(addresses(&ask_tcp("example.org.", RecordType::A).await), ["192.0.2.80"]);
    let unknown = ask_udp("nothing.example.", RecordType::A).await;
    assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
    let alias = ask_udp("ext.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(addresses(&alias), ["example.org.", "192.0.2.80"]);
    let absent = ask_udp("none.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!((absent.metadata.response_code, absent.authorities.len()), (ResponseCode::NXDomain, 1));

    // Too much for UDP without EDNS: cut, and whole over TCP.
    let cut = ask_udp("many.shop.svc.cluster.local.", RecordType::A).await;
    assert!(cut.metadata.truncation && cut.answers.len() < 100);
    assert_eq!(ask_tcp("many.shop.svc.cluster.local.", RecordType::A).await.answers.len(), 100);

    // As much as the asker takes, but never more than what any path carries.
    for (payload, most) in [(100, 512), (512, 512), (900, 900), (4096, 1232)] {
        let name = "many.shop.svc.cluster.local.";
        let packet = packet(name, &question_with(name, RecordType::A, Some(payload))).await;
        assert!(packet.len() <= most && packet.len() > most - 100, "{payload}: {}", packet.len());
        let answer = Message::from_vec(&packet).unwrap();
        assert!(answer.metadata.truncation && answer.edns.is_some(), "{payload}");
    }
    let first = |answer: &Message| answer.answers[0].data.to_string();
    let mut firsts = std::collections::BTreeSet::new();
    for _ in 0..3 {
        firsts.insert(first(&ask_tcp("many.shop.svc.cluster.local.", RecordType::A).await));
    }
    assert_eq!(firsts.len(), 3, "addresses take turns in being the first");

    let new = json!({"clusterIP": "10.43.0.77", "clusterIPs": ["10.43.0.77"]});
    server.put("/api/v1/services", json!({"metadata": {"name": "new", "namespace": "shop"}, "spec": new}));
    let appears = async {
        while ask_udp("new.shop.svc.cluster.local.", RecordType::A).await.answers.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), appears).await.expect("a new Service has a name at once");
    let counted = metrics.text();
    for words in [
        "zone=\"cluster.local.\",rcode=\"NXDOMAIN\",plugin=\"kubernetes\"} 1",
        "zone=\".\",rcode=\"NXDOMAIN\",plugin=\"forward\"} 1",
        "zone=\".\",proto=\"tcp\",family=\"1\",type=\"A\"} 1",
    ] {
        assert!(counted.contains(words), "{words} is not in\n{counted}");
    }
    shutdown.cancel();
    running.await.unwrap().unwrap();
    tasks.shutdown().await;
}

#[test]
fn questions_are_answered() {
    let namespace = NetNs::anonymous().expect("making a network namespace needs root");
    namespace
        .run(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(scenario())
        })
        .unwrap();
}
