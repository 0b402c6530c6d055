use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::*;

/// A node in a namespace of its own, with pods in theirs, and a state directory.
struct Node {
    namespace: NetNs,
    dir: tempfile::TempDir,
}

struct Pod {
    namespace: NetNs,
    path: String,
}

impl Node {
    fn new() -> Self {
        let namespace = NetNs::anonymous().expect("making a network namespace needs root");
        let node = Node { namespace, dir: tempfile::tempdir().unwrap() };
        node.namespace
            .run(|| {
                attach::runtime().unwrap().block_on(async {
                    let netlink = linux::netlink::Netlink::open().unwrap();
                    let lo = netlink.link("lo").await.unwrap().unwrap().index;
                    netlink.set_up(lo).await.unwrap();
                    netlink.add_address(lo, "192.0.2.1".parse().unwrap(), 32).await.unwrap();
                    netlink.add_address(lo, "2001:db8::1".parse().unwrap(), 128).await.unwrap();
                });
                host::setup_host(&["10.42.0.0/16", "fd42::/56"].map(|range| range.parse().unwrap())).unwrap();
            })
            .unwrap();
        node
    }

    fn pod(&self, name: &str) -> Pod {
        let path = self.dir.path().join("netns").join(name);
        let namespace = NetNs::create(&path).unwrap();
        Pod { namespace, path: path.to_str().unwrap().to_owned() }
    }

    fn call(
        &self,
        command: &str,
        container: &str,
        netns: &str,
        extra: &Value,
    ) -> Result<Option<Value>, Error> {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "trierarch", "type": "trierarch-cni",
            "podCIDRs": ["10.42.0.0/24", "fd42::/120"], "stateDir": self.dir.path().join("state"), "mtu": 1400,
        });
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let environment = |name: &str| match name {
            "CNI_COMMAND" => Some(command.to_owned()),
            "CNI_CONTAINERID" => Some(container.to_owned()),
            "CNI_NETNS" => Some(netns.to_owned()),
            "CNI_IFNAME" => Some("eth0".to_owned()),
            _ => None,
        };
        self.namespace.run(|| answer(&environment, config.to_string().as_bytes())).unwrap()
    }

    fn links(&self) -> usize {
        self.namespace
            .run(|| {
                attach::runtime()
                    .unwrap()
                    .block_on(async { linux::netlink::Netlink::open().unwrap().links().await.unwrap().len() })
            })
            .unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        linux::netns::remove(&self.path).unwrap();
    }
}

fn address(result: &Value, index: usize) -> IpAddr {
    result["ips"][index]["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()
}

const PATIENCE: Duration = Duration::from_secs(5);

/// Listens in `server` on `port`, connects from `client` to `target`, and returns whom the server saw.
fn connect(server: &NetNs, port: u16, client: &NetNs, target: SocketAddr) -> SocketAddr {
    let any = if target.is_ipv6() { "[::]" } else { "0.0.0.0" };
    let listener = server.run(|| TcpListener::bind(format!("{any}:{port}")).unwrap()).unwrap();
    let stream = client.run(|| TcpStream::connect_timeout(&target, PATIENCE)).unwrap();
    let stream = stream.unwrap_or_else(|error| panic!("{target}: {error}"));
    let peer = listener.accept().unwrap().1;
    drop(stream);
    peer
}

#[test]
fn pods_reach_each_other_and_the_node_and_leave_nothing_behind() {
    let node = Node::new();
    let (a, b) = (node.pod("a"), node.pod("b"));
    let started = Instant::now();
    let first = node.call("ADD", "aaaa", &a.path, &json!({})).unwrap().unwrap();
    let took = started.elapsed();
    let second = node.call("ADD", "bbbb", &b.path, &json!({})).unwrap().unwrap();
    assert_eq!(first["ips"][0], json!({"address": "10.42.0.2/32", "gateway": "169.254.1.1", "interface": 1}));
    assert_eq!(second["ips"][1]["address"], "fd42::3/128");
    assert!(took < Duration::from_millis(200), "an ADD took {took:?}");
    eprintln!("ADD took {took:?}");

    let target = address(&second, 0);
    assert_eq!(connect(&b.namespace, 80, &a.namespace, (target, 80).into()).ip(), address(&first, 0));
    assert_eq!(
        connect(&b.namespace, 80, &a.namespace, (address(&second, 1), 80).into()).ip(),
        address(&first, 1)
    );
    let node_address = IpAddr::from([192, 0, 2, 1]);
    assert_eq!(
        connect(&node.namespace, 81, &a.namespace, (node_address, 81).into()).ip(),
        address(&first, 0)
    );
    assert_eq!(
        connect(&a.namespace, 82, &node.namespace, (address(&first, 0), 82).into()).ip(),
        node_address
    );

    node.call("CHECK", "aaaa", &a.path, &json!({})).unwrap();
    // Asked again, the same container keeps its address.
    let again = node.call("ADD", "aaaa", &a.path, &json!({})).unwrap().unwrap();
    assert_eq!(again, first);
    assert_eq!(connect(&b.namespace, 80, &a.namespace, (target, 80).into()).ip(), address(&first, 0));

    assert_eq!(node.links(), 3);
    node.call("DEL", "aaaa", "/gone", &json!({})).unwrap();
    node.call("DEL", "aaaa", "", &json!({})).unwrap();
    assert_eq!(node.call("CHECK", "aaaa", &a.path, &json!({})).unwrap_err().code(), 100);
    let keep = json!({"cni.dev/valid-attachments": [{"containerID": "bbbb", "ifname": "eth0"}]});
    node.call("GC", "bbbb", "", &keep).unwrap();
    assert_eq!(node.links(), 2);
    node.call("GC", "bbbb", "", &json!({"cni.dev/valid-attachments": []})).unwrap();
    assert_eq!(node.links(), 1);
}

#[test]
fn what_leaves_the_cluster_is_masqueraded() {
    let node = Node::new();
    let pod = node.pod("a");
    let result = node.call("ADD", "aaaa", &pod.path, &json!({})).unwrap().unwrap();
    // Another machine, reached by a plain veth.
    let outside = NetNs::anonymous().unwrap();
    let addresses = [IpAddr::from([198, 51, 100, 7])];
    let attachment = Attachment::new("outside", "eth0").unwrap();
    node.namespace.run(|| attach::add(&attachment, &outside, &addresses, None).unwrap()).unwrap();
    let seen = connect(&outside, 80, &pod.namespace, (addresses[0], 80).into());
    assert_eq!(seen.ip(), IpAddr::from([192, 0, 2, 1]));
    // What comes in is not: the pod sees its caller.
    let seen = connect(&pod.namespace, 80, &outside, (address(&result, 0), 80).into());
    assert_eq!(seen.ip(), addresses[0]);
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    let node = Node::new();
    let (a, b) = (node.pod("a"), node.pod("b"));
    let ports = json!({"runtimeConfig": {"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 9090, "containerPort": 90, "protocol": "tcp", "hostIP": "127.0.0.1"},
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
    ]}});
    let first = node.call("ADD", "aaaa", &a.path, &ports).unwrap().unwrap();
    node.call("ADD", "bbbb", &b.path, &json!({})).unwrap();
    let node_address = IpAddr::from([192, 0, 2, 1]);
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    let node_address_v6: IpAddr = "2001:db8::1".parse().unwrap();
    for client in [&node.namespace, &b.namespace, &a.namespace] {
        connect(&a.namespace, 80, client, (node_address, 8080).into());
        connect(&a.namespace, 80, client, (node_address_v6, 8080).into());
    }
    connect(&a.namespace, 80, &node.namespace, (loopback, 8080).into());
    connect(&a.namespace, 90, &node.namespace, (loopback, 9090).into());

    let server = a.namespace.run(|| UdpSocket::bind("0.0.0.0:53").unwrap()).unwrap();
    let client = b.namespace.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"question", (node_address, 5353)).unwrap();
    let mut buffer = [0; 64];
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    server.send_to(b"answer", from).unwrap();
    assert_eq!(client.recv_from(&mut buffer).unwrap().1, SocketAddr::new(node_address, 5353));

    let taken = node.call("ADD", "cccc", &node.pod("c").path, &ports).unwrap_err();
    assert_eq!(taken.code(), 101, "{taken:?}");
    let flows = || node.namespace.run(|| linux::conntrack::list().unwrap()).unwrap();
    let to_pod = address(&first, 0);
    assert!(flows().iter().any(|flow| flow.protocol == 17 && flow.reply_source.ip() == to_pod));
    node.call("DEL", "aaaa", &a.path, &json!({})).unwrap();
    assert!(!flows().iter().any(|flow| flow.protocol == 17 && flow.reply_source.ip() == to_pod));
    let listed = node.namespace.run(|| linux::nft::list_table_text("ip", rules::TABLE).unwrap()).unwrap();
    assert!(!listed.contains("8080") && !listed.contains("10.42.0.2"), "{listed}");
    let state = node.dir.path().join("state");
    node.namespace.run(|| host::reset(&state).unwrap()).unwrap();
    assert_eq!(node.links(), 1);
    assert!(!state.exists());
}

#[test]
fn an_add_that_fails_half_way_leaves_nothing() {
    let node = Node::new();
    let (a, b) = (node.pod("a"), node.pod("b"));
    let ports = |host_ip: &str| {
        let mapping =
            |port| json!({"hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": host_ip});
        json!({"runtimeConfig": {"portMappings": [mapping(8081), mapping(8080)]}})
    };
    let taken = json!({"runtimeConfig": {"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    ]}});
    node.call("ADD", "aaaa", &a.path, &taken).unwrap();
    let traces = |pod: &Pod| {
        let rules = ["ip", "ip6"].map(|family| {
            node.namespace.run(|| linux::nft::list_table_text(family, rules::TABLE).unwrap()).unwrap()
        });
        let held = std::fs::read_dir(node.dir.path().join("state").join("addresses")).unwrap();
        let mut held: Vec<_> = held.map(|entry| entry.unwrap().file_name()).collect();
        held.sort();
        let inside = pod.namespace.run(|| {
            let links = async { linux::netlink::Netlink::open().unwrap().links().await.unwrap().len() };
            attach::runtime().unwrap().block_on(links)
        });
        (rules, held, node.links(), inside.unwrap())
    };
    let before = traces(&b);
    // The second of two host ports leads elsewhere already, in one family and in the other.
    for host_ip in ["", "0.0.0.0", "::"] {
        assert_eq!(node.call("ADD", "bbbb", &b.path, &ports(host_ip)).unwrap_err().code(), 101);
        assert_eq!(traces(&b), before, "{host_ip:?}");
    }
    // The second family has no address left.
    let narrow = json!({"podCIDRs": ["10.42.0.0/24", "fd42:9::/128"]});
    assert_eq!(node.call("ADD", "bbbb", &b.path, &narrow).unwrap_err().code(), 11);
    assert_eq!(traces(&b), before);
    // The pod has an interface of that name already.
    node.call("ADD", "other", &b.path, &json!({})).unwrap();
    let with_other = traces(&b);
    assert_eq!(node.call("ADD", "bbbb", &b.path, &json!({})).unwrap_err().code(), 5);
    assert_eq!(traces(&b), with_other);
}

#[test]
fn bad_calls_get_the_codes_of_the_specification() {
    let call = |command: &str, stdin: &str| {
        let environment = |name: &str| (name == "CNI_COMMAND").then(|| command.to_owned());
        answer(&environment, stdin.as_bytes())
    };
    let good = r#"{"cniVersion":"1.0.0","podCIDRs":["10.0.0.0/24"],"stateDir":"/nowhere"}"#;
    let cases = [
        ("", good, 4),
        ("ADD", good, 4),
        ("DANCE", good, 4),
        ("ADD", "{", 6),
        ("STATUS", r#"{"cniVersion":"0.1.0","stateDir":"/x"}"#, 1),
        ("STATUS", r#"{"stateDir":"/x"}"#, 7),
    ];
    for (command, stdin, code) in cases {
        let error = call(command, stdin).unwrap_err();
        assert_eq!(error.code(), code, "{command} {stdin}");
        assert_eq!(refusal(&error, stdin.as_bytes())["code"], code);
    }
    assert_eq!(call("STATUS", good).unwrap(), None);
    let versions = call("VERSION", "").unwrap().unwrap();
    assert_eq!(versions["supportedVersions"], json!(["1.0.0", "1.1.0"]));
}
