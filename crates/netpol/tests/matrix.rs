//! Every path between three namespaces of three pods, for policy after policy: real packets through the kernel's
//! table, over TCP and UDP, IPv4 and IPv6.
//!
//! Each case says which paths its policies leave open. The same pods go through the cases of a test one after
//! another, so that a case also shows that nothing of the one before it stayed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::networking::v1::NetworkPolicy;
use linux::netns::NetNs;
use linux::nft::{Protocol, Steps};
use netpol::cluster::{Cluster, Pod};
use netpol::object::{NamedPort, PodFacts};
use netpol::policy::Policy;
use serde_json::{Value, json};
use testkit::network::{self, Host, block_on};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::task::JoinSet;

/// How long an answer may take that has to come.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long no answer is waited for. Packets that pass take microseconds; on a busy machine, some milliseconds.
const SILENCE: Duration = Duration::from_millis(300);

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];
/// What every pod serves, and how it names it.
const PORTS: [(Protocol, u16); 4] =
    [(Protocol::Tcp, 80), (Protocol::Tcp, 81), (Protocol::Udp, 80), (Protocol::Udp, 81)];
/// Namespaces are 10.42.1.0/24 to 10.42.3.0/24, and pods .1 to .3 in them.
const NODE: [&str; 2] = ["192.0.2.1", "fd00:0:0:ff::1"];

/// One path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Path {
    /// Namespace and pod.
    from: (&'static str, &'static str),
    to: (&'static str, &'static str),
    port: (Protocol, u16),
}

impl Path {
    /// `x` is any pod of the namespace, `x/a` the pod.
    fn is(end: (&str, &str), text: &str) -> bool {
        match text.split_once('/') {
            Some(pod) => end == pod,
            None => end.0 == text,
        }
    }

    fn to(&self, any: &[&str]) -> bool {
        any.iter().any(|text| Self::is(self.to, text))
    }

    fn from(&self, any: &[&str]) -> bool {
        any.iter().any(|text| Self::is(self.from, text))
    }

    fn tcp(&self, port: u16) -> bool {
        self.port == (Protocol::Tcp, port)
    }

    fn udp(&self, port: u16) -> bool {
        self.port == (Protocol::Udp, port)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((from, pod), (to, other), (protocol, port)) = (self.from, self.to, self.port);
        write!(f, "{from}/{pod} to {to}/{other} {} {port}", protocol.name())
    }
}

struct World {
    node: NetNs,
    pods: BTreeMap<(&'static str, &'static str), Host>,
    facts: BTreeMap<(&'static str, &'static str), PodFacts>,
    cluster: Cluster,
    /// Names of the policies there are.
    policies: Vec<String>,
    /// What the table is without policies.
    empty: String,
}

fn addresses(namespace: usize, pod: usize) -> [IpAddr; 2] {
    let (namespace, pod) = (namespace + 1, pod + 1);
    [format!("10.42.{namespace}.{pod}"), format!("fd00:0:0:{namespace}::{pod}")]
        .map(|text| text.parse().unwrap())
}

/// Answers everything on every port until the runtime ends.
async fn serve(tasks: &mut JoinSet<()>) {
    for (protocol, port) in PORTS {
        let any = SocketAddr::new("::".parse::<IpAddr>().unwrap(), port);
        match protocol {
            Protocol::Tcp => {
                let listener = TcpListener::bind(any).await.unwrap();
                tasks.spawn(async move { while listener.accept().await.is_ok() {} });
            }
            _ => {
                let socket = UdpSocket::bind(any).await.unwrap();
                tasks.spawn(async move {
                    let mut buffer = [0; 16];
                    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                        let _ = socket.send_to(&buffer[..length], from).await;
                    }
                });
            }
        }
    }
}

/// Whether somebody answers, waiting as long as the answer that is expected deserves.
async fn answers(protocol: Protocol, target: SocketAddr, expected: bool) -> bool {
    let patience = if expected { PATIENCE } else { SILENCE };
    let attempt = async {
        match protocol {
            Protocol::Tcp => {
                let socket = if target.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() };
                socket.unwrap().connect(target).await.is_ok()
            }
            _ => {
                let any = if target.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
                let socket = UdpSocket::bind(any).await.unwrap();
                socket.connect(target).await.unwrap();
                socket.send(b"?").await.unwrap();
                socket.recv(&mut [0; 16]).await.is_ok()
            }
        }
    };
    tokio::time::timeout(patience, attempt).await.unwrap_or(false)
}

impl World {
    fn new() -> Self {
        let node = network::node(&NODE.map(|text| text.parse().unwrap()));
        let mut world = World {
            node,
            pods: BTreeMap::new(),
            facts: BTreeMap::new(),
            cluster: Cluster::default(),
            policies: Vec::new(),
            empty: String::new(),
        };
        for (n, namespace) in NAMESPACES.into_iter().enumerate() {
            world.label_namespace(namespace, &[]);
            for (p, pod) in PODS.into_iter().enumerate() {
                let number = u8::try_from(n * 3 + p + 1).unwrap();
                let host = network::join(&world.node, number, &addresses(n, p));
                let inside = host.namespace.try_clone().unwrap();
                let (ready, is_ready) = std::sync::mpsc::channel();
                std::thread::spawn(move || {
                    inside.run(|| {
                        block_on(async {
                            let mut tasks = JoinSet::new();
                            serve(&mut tasks).await;
                            ready.send(()).unwrap();
                            tasks.join_all().await;
                        });
                    })
                });
                is_ready.recv().unwrap();
                world.pods.insert((namespace, pod), host);
                world.label_pod((namespace, pod), &[]);
            }
        }
        world.settle_whole();
        world.empty = world.listed();
        world
    }

    /// Gives a namespace its own labels and these.
    fn label_namespace(&mut self, namespace: &str, more: &[(&str, &str)]) {
        let own = [("ns", namespace), ("kubernetes.io/metadata.name", namespace)];
        let labels =
            own.iter().chain(more).map(|(key, value)| (key.to_string(), value.to_string())).collect();
        self.cluster.set_namespace(namespace, Some(labels));
    }

    /// Gives a pod its own labels and these.
    fn label_pod(&mut self, (namespace, pod): (&'static str, &'static str), more: &[(&str, &str)]) {
        let labels = [("pod", pod)].iter().chain(more).map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let named = |(protocol, number): (Protocol, u16)| NamedPort {
            name: format!("serve-{number}-{}", protocol.name()),
            protocol,
            number,
        };
        let facts = PodFacts {
            namespace: namespace.to_owned(),
            labels,
            ports: PORTS.map(named).to_vec(),
            ..PodFacts::default()
        };
        self.facts.insert((namespace, pod), facts);
        self.tell_pod((namespace, pod));
    }

    fn tell_pod(&mut self, pod: (&'static str, &'static str)) {
        let model = Pod {
            facts: Some(Arc::new(self.facts[&pod].clone())),
            addresses: self.pods[&pod].addresses.clone(),
            is_subject: true,
            is_peer: true,
        };
        self.cluster.set_pod(&format!("{}/{}", pod.0, pod.1), Some(model));
    }

    /// Puts these policies in place of those there are; each is a namespace and a spec.
    fn set(&mut self, policies: &[(&str, Value)]) {
        for name in std::mem::take(&mut self.policies) {
            self.cluster.set_policy(&name, None);
        }
        for (number, (namespace, spec)) in policies.iter().enumerate() {
            self.put(&format!("p{number}"), namespace, spec);
        }
    }

    fn put(&mut self, name: &str, namespace: &str, spec: &Value) {
        let policy = json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
        let policy = Policy::read(&NetworkPolicy::from_value(policy).unwrap());
        let key = format!("{namespace}/{name}");
        self.cluster.set_policy(&key, Some(Arc::new(policy)));
        if !self.policies.contains(&key) {
            self.policies.push(key);
        }
    }

    fn apply(&self, steps: Steps) {
        let text = steps.before.clone();
        let applied = self.node.run(|| steps.apply()).unwrap();
        applied.unwrap_or_else(|error| panic!("{error}\n{text}"));
    }

    fn settle_whole(&mut self) {
        self.cluster.settle();
        self.apply(self.cluster.steps());
    }

    fn listed(&self) -> String {
        self.node.run(|| linux::nft::list_table_text("inet", netpol::table::TABLE)).unwrap().unwrap()
    }

    /// Brings the kernel up to date by the difference, and tries every path over both families.
    fn check(&mut self, what: &str, is_open: impl Fn(&Path) -> bool) {
        let change = self.cluster.settle().steps();
        self.apply(change);
        // A flow of UDP that was let through is let through on, and ports come again by chance.
        self.node.run(|| linux::conntrack::delete(|_| true)).unwrap().unwrap();
        // Nobody can keep a pod from itself.
        let is_open = |path: &Path| path.from == path.to || is_open(path);
        let world: &World = self;
        let mut sources: Vec<(&NetNs, Vec<(Path, bool)>)> = Vec::new();
        for (from, host) in &world.pods {
            let paths = world.paths(*from).map(|path| (path, is_open(&path)));
            sources.push((&host.namespace, paths.collect()));
        }
        // Its own node reaches every pod, to probe it.
        sources.push((&world.node, world.paths(("node", "")).map(|path| (path, true)).collect()));
        let wrong: Vec<String> = std::thread::scope(|scope| {
            let try_source = |(namespace, paths)| scope.spawn(move || world.try_paths(namespace, paths));
            let threads: Vec<_> = sources.into_iter().map(try_source).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert!(wrong.is_empty(), "{what}:\n  {}\n{}", wrong.join("\n  "), world.listed());
    }

    fn paths(&self, from: (&'static str, &'static str)) -> impl Iterator<Item = Path> {
        self.pods.keys().flat_map(move |to| PORTS.map(|port| Path { from, to: *to, port }))
    }

    /// What is not as expected.
    fn try_paths(&self, namespace: &NetNs, paths: Vec<(Path, bool)>) -> Vec<String> {
        let all = async {
            let mut tasks = JoinSet::new();
            for (path, expected) in paths {
                for address in &self.pods[&path.to].addresses {
                    let target = SocketAddr::new(*address, path.port.1);
                    tasks.spawn(async move {
                        let answered = answers(path.port.0, target, expected).await;
                        let words = if answered { "is open" } else { "is closed" };
                        (answered != expected).then(|| format!("{path} ({target}) {words}"))
                    });
                }
            }
            tasks.join_all().await.into_iter().flatten().collect()
        };
        namespace.run(|| block_on(all)).unwrap()
    }

    /// Takes all policies away: everything is open, and nothing of them is left in the table.
    fn end(mut self) {
        self.set(&[]);
        self.check("without policies", |_| true);
        assert_eq!(self.listed(), self.empty, "what policies left");
    }
}

type Case = (&'static str, Vec<(&'static str, Value)>, fn(&Path) -> bool);

fn check(cases: Vec<Case>) {
    let mut world = World::new();
    for (what, policies, is_open) in cases {
        world.set(&policies);
        world.check(what, is_open);
    }
    world.end();
}

fn pods(label: &str) -> Value {
    json!({"matchLabels": {"pod": label}})
}

fn namespaces(label: &str) -> Value {
    json!({"matchLabels": {"ns": label}})
}

#[test]
fn defaults() {
    check(vec![
        ("deny ingress to x", vec![("x", json!({"podSelector": {}}))], |p| !p.to(&["x"])),
        (
            "deny ingress to x, said",
            vec![("x", json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": []}))],
            |p| !p.to(&["x"]),
        ),
        ("deny egress of x", vec![("x", json!({"podSelector": {}, "policyTypes": ["Egress"]}))], |p| {
            !p.from(&["x"])
        }),
        ("deny both", vec![("x", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))], |p| {
            !p.to(&["x"]) && !p.from(&["x"])
        }),
        ("deny ingress everywhere", NAMESPACES.map(|ns| (ns, json!({"podSelector": {}}))).to_vec(), |_| {
            false
        }),
        ("allow all ingress", vec![("x", json!({"podSelector": {}, "ingress": [{}]}))], |_| true),
        (
            "allow all egress",
            vec![("x", json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}))],
            |_| true,
        ),
        (
            "egress without types rules ingress as well",
            vec![("x", json!({"podSelector": {}, "egress": [{}]}))],
            |p| !p.to(&["x"]),
        ),
        ("deny one pod", vec![("x", json!({"podSelector": pods("a")}))], |p| !p.to(&["x/a"])),
        ("a selector of nothing here", vec![("x", json!({"podSelector": pods("nobody")}))], |_| true),
        (
            "pods by an expression",
            vec![(
                "x",
                json!({"podSelector": {"matchExpressions": [
                    {"key": "pod", "operator": "NotIn", "values": ["a"]}, {"key": "pod", "operator": "Exists"},
                ]}}),
            )],
            |p| !p.to(&["x/b", "x/c"]),
        ),
        (
            "a denial and an opening of the same pod",
            vec![
                ("x", json!({"podSelector": {}})),
                ("x", json!({"podSelector": pods("b"), "ingress": [{}]})),
            ],
            |p| !p.to(&["x/a", "x/c"]),
        ),
    ]);
}

#[test]
fn ingress_by_peers() {
    let from = |peers: Value| json!({"podSelector": pods("a"), "ingress": [{"from": peers}]});
    check(vec![
        ("own namespace, by pod", vec![("x", from(json!([{"podSelector": pods("b")}])))], |p| {
            !p.to(&["x/a"]) || p.from(&["x/b"])
        }),
        ("own namespace, all pods", vec![("x", from(json!([{"podSelector": {}}])))], |p| {
            !p.to(&["x/a"]) || p.from(&["x"])
        }),
        ("a namespace", vec![("x", from(json!([{"namespaceSelector": namespaces("y")}])))], |p| {
            !p.to(&["x/a"]) || p.from(&["y"])
        }),
        ("all namespaces", vec![("x", from(json!([{"namespaceSelector": {}}])))], |_| true),
        (
            "pod and namespace together",
            vec![("x", from(json!([{"namespaceSelector": namespaces("y"), "podSelector": pods("b")}])))],
            |p| !p.to(&["x/a"]) || p.from(&["y/b"]),
        ),
        (
            "pod or namespace apart",
            vec![("x", from(json!([{"namespaceSelector": namespaces("y")}, {"podSelector": pods("b")}])))],
            |p| !p.to(&["x/a"]) || p.from(&["y", "x/b"]),
        ),
        (
            "the same pod of all namespaces",
            vec![("x", from(json!([{"namespaceSelector": {}, "podSelector": pods("c")}])))],
            |p| !p.to(&["x/a"]) || p.from(&["x/c", "y/c", "z/c"]),
        ),
        (
            "namespaces by an expression",
            vec![(
                "x",
                from(json!([{"namespaceSelector": {"matchExpressions": [
                {"key": "ns", "operator": "NotIn", "values": ["x"]}]}}])),
            )],
            |p| !p.to(&["x/a"]) || p.from(&["y", "z"]),
        ),
        (
            "a namespace by its name, pods by an expression",
            vec![(
                "x",
                from(json!([{
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "z"}},
                    "podSelector": {"matchExpressions": [{"key": "pod", "operator": "In", "values": ["a", "b"]}]},
                }])),
            )],
            |p| !p.to(&["x/a"]) || p.from(&["z/a", "z/b"]),
        ),
        (
            "a label that nobody has",
            vec![(
                "x",
                from(json!([{"podSelector": {"matchExpressions": [
            {"key": "no", "operator": "Exists"}]}}])),
            )],
            |p| !p.to(&["x/a"]),
        ),
        (
            "two rules are one or the other",
            vec![(
                "x",
                json!({"podSelector": {}, "ingress": [
            {"from": [{"namespaceSelector": namespaces("y")}]}, {"from": [{"podSelector": pods("a")}]}]}),
            )],
            |p| !p.to(&["x"]) || p.from(&["y", "x/a"]),
        ),
        (
            "policies unite",
            vec![
                ("x", from(json!([{"podSelector": pods("b")}]))),
                ("x", from(json!([{"namespaceSelector": namespaces("z")}]))),
            ],
            |p| !p.to(&["x/a"]) || p.from(&["x/b", "z"]),
        ),
        (
            "policies of different namespaces share a selector",
            vec![
                ("x", from(json!([{"namespaceSelector": namespaces("z")}]))),
                ("y", from(json!([{"namespaceSelector": namespaces("z")}]))),
            ],
            |p| !p.to(&["x/a", "y/a"]) || p.from(&["z"]),
        ),
    ]);
}

#[test]
fn ports() {
    let ingress =
        |ports: Value| vec![("x", json!({"podSelector": pods("a"), "ingress": [{"ports": ports}]}))];
    let egress = |ports: Value| {
        vec![(
            "x",
            json!({"podSelector": pods("a"), "policyTypes": ["Egress"], "egress": [{"ports": ports}]}),
        )]
    };
    check(vec![
        ("a number is TCP", ingress(json!([{"port": 80}])), |p| !p.to(&["x/a"]) || p.tcp(80)),
        ("UDP by number", ingress(json!([{"port": 81, "protocol": "UDP"}])), |p| {
            !p.to(&["x/a"]) || p.udp(81)
        }),
        (
            "several ports",
            ingress(json!([{"port": 80}, {"port": 81}, {"port": 80, "protocol": "UDP"}])),
            |p| !p.to(&["x/a"]) || !p.udp(81),
        ),
        ("a protocol without a port", ingress(json!([{"protocol": "UDP"}])), |p| {
            !p.to(&["x/a"]) || p.udp(80) || p.udp(81)
        }),
        ("a protocol that nobody speaks", ingress(json!([{"protocol": "SCTP"}])), |p| !p.to(&["x/a"])),
        ("a range", ingress(json!([{"port": 79, "endPort": 80}])), |p| !p.to(&["x/a"]) || p.tcp(80)),
        (
            "ranges that overlap",
            ingress(json!([{"port": 70, "endPort": 80}, {"port": 75, "endPort": 90}])),
            |p| !p.to(&["x/a"]) || p.tcp(80) || p.tcp(81),
        ),
        ("a name", ingress(json!([{"port": "serve-81-tcp"}])), |p| !p.to(&["x/a"]) || p.tcp(81)),
        ("a name of UDP", ingress(json!([{"port": "serve-80-udp", "protocol": "UDP"}])), |p| {
            !p.to(&["x/a"]) || p.udp(80)
        }),
        ("a name of another protocol", ingress(json!([{"port": "serve-80-udp"}])), |p| !p.to(&["x/a"])),
        (
            "a name and a number",
            ingress(json!([{"port": "serve-81-tcp"}, {"port": 80, "protocol": "UDP"}])),
            |p| !p.to(&["x/a"]) || p.tcp(81) || p.udp(80),
        ),
        (
            "ports for peers alone",
            vec![(
                "x",
                json!({"podSelector": {}, "ingress": [
                    {"from": [{"namespaceSelector": namespaces("y")}], "ports": [{"port": 80}]},
                    {"from": [{"namespaceSelector": namespaces("z")}], "ports": [{"port": "serve-81-udp", "protocol": "UDP"}]},
                ]}),
            )],
            |p| !p.to(&["x"]) || (p.from(&["y"]) && p.tcp(80)) || (p.from(&["z"]) && p.udp(81)),
        ),
        ("egress to a number", egress(json!([{"port": 80}])), |p| !p.from(&["x/a"]) || p.tcp(80)),
        ("egress to a range", egress(json!([{"port": 81, "endPort": 90, "protocol": "UDP"}])), |p| {
            !p.from(&["x/a"]) || p.udp(81)
        }),
        ("egress to a name", egress(json!([{"port": "serve-80-tcp"}])), |p| !p.from(&["x/a"]) || p.tcp(80)),
        (
            "egress to a name of peers",
            vec![(
                "x",
                json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
                    {"to": [{"namespaceSelector": namespaces("y"), "podSelector": pods("b")}],
                     "ports": [{"port": "serve-80-tcp"}]},
                ]}),
            )],
            |p| !p.from(&["x"]) || (p.to(&["y/b"]) && p.tcp(80)),
        ),
    ]);
}

#[test]
fn addresses_and_egress() {
    let block = |cidr: &str, six: &str, except: &[&str], except_six: &[&str]| json!([{"ipBlock": {"cidr": cidr, "except": except}}, {"ipBlock": {"cidr": six, "except": except_six}}]);
    let from = |peers: Value| vec![("x", json!({"podSelector": pods("a"), "ingress": [{"from": peers}]}))];
    let to = |peers: Value| {
        vec![("x", json!({"podSelector": pods("a"), "policyTypes": ["Egress"], "egress": [{"to": peers}]}))]
    };
    check(vec![
        ("from a block", from(block("10.42.2.0/24", "fd00:0:0:2::/64", &[], &[])), |p| {
            !p.to(&["x/a"]) || p.from(&["y"])
        }),
        (
            "from a block but for exceptions",
            from(block(
                "10.42.0.0/16",
                "fd00::/48",
                &["10.42.2.0/24", "10.42.3.1/32"],
                &["fd00:0:0:2::/64", "fd00:0:0:3::1/128"],
            )),
            |p| !p.to(&["x/a"]) || (!p.from(&["y"]) && !p.from(&["z/a"])),
        ),
        (
            "another block opens what is excepted",
            from(json!([
                {"ipBlock": {"cidr": "10.42.0.0/16", "except": ["10.42.2.0/24"]}}, {"ipBlock": {"cidr": "10.42.2.2/32"}},
                {"ipBlock": {"cidr": "::/0", "except": ["fd00:0:0:2::/64"]}}, {"ipBlock": {"cidr": "fd00:0:0:2::2/128"}},
            ])),
            |p| !p.to(&["x/a"]) || !p.from(&["y/a", "y/c"]),
        ),
        ("from everywhere", from(block("0.0.0.0/0", "::/0", &[], &[])), |_| true),
        ("to a block", to(block("10.42.2.2/31", "fd00:0:0:2::2/127", &[], &[])), |p| {
            !p.from(&["x/a"]) || p.to(&["y/b", "y/c"])
        }),
        (
            "to a block but for exceptions",
            to(block("0.0.0.0/0", "::/0", &["10.42.3.0/24"], &["fd00:0:0:3::/64"])),
            |p| !p.from(&["x/a"]) || !p.to(&["z"]),
        ),
        (
            "to a block or pods",
            to(json!([
                {"ipBlock": {"cidr": "10.42.2.1/32"}}, {"ipBlock": {"cidr": "fd00:0:0:2::1/128"}}, {"podSelector": pods("b")},
            ])),
            |p| !p.from(&["x/a"]) || p.to(&["y/a", "x/b"]),
        ),
        (
            "to the named port of a block",
            vec![(
                "x",
                json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{
                "to": block("10.42.2.0/24", "fd00:0:0:2::/64", &[], &[]), "ports": [{"port": "serve-81-tcp"}]}]}),
            )],
            |p| !p.from(&["x"]) || (p.to(&["y"]) && p.tcp(81)),
        ),
        ("to a pod of the namespace", to(json!([{"podSelector": pods("b")}])), |p| {
            !p.from(&["x/a"]) || p.to(&["x/b"])
        }),
        ("to a namespace", to(json!([{"namespaceSelector": namespaces("z")}])), |p| {
            !p.from(&["x/a"]) || p.to(&["z"])
        }),
        (
            "to a pod of another namespace",
            to(json!([{"namespaceSelector": namespaces("z"), "podSelector": pods("c")}])),
            |p| !p.from(&["x/a"]) || p.to(&["z/c"]),
        ),
        (
            "both ways at once",
            vec![(
                "x",
                json!({"podSelector": pods("a"), "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"namespaceSelector": namespaces("y")}], "ports": [{"port": 80}]}],
                "egress": [{"to": [{"namespaceSelector": namespaces("z")}], "ports": [{"port": 81}]}]}),
            )],
            |p| {
                (!p.to(&["x/a"]) || (p.from(&["y"]) && p.tcp(80)))
                    && (!p.from(&["x/a"]) || (p.to(&["z"]) && p.tcp(81)))
            },
        ),
        (
            "what may leave must also be let in",
            vec![
                (
                    "x",
                    json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
                    {"to": [{"namespaceSelector": namespaces("y")}]}]}),
                ),
                ("y", json!({"podSelector": pods("a")})),
            ],
            |p| (!p.from(&["x"]) || p.to(&["y"])) && !p.to(&["y/a"]),
        ),
        (
            "an egress policy and one that closes ingress",
            vec![
                ("x", json!({"podSelector": pods("a"), "policyTypes": ["Egress"], "egress": [{}]})),
                ("x", json!({"podSelector": pods("a"), "policyTypes": ["Ingress", "Egress"]})),
            ],
            |p| !p.to(&["x/a"]),
        ),
    ]);
}

#[test]
fn what_changes_is_followed() {
    let mut world = World::new();
    let from_b = json!({"podSelector": pods("a"), "ingress": [{"from": [{"podSelector": pods("b")}]}]});
    world.put("p", "x", &from_b);
    world.check("from b", |p| !p.to(&["x/a"]) || p.from(&["x/b"]));
    world.put(
        "p",
        "x",
        &json!({"podSelector": pods("a"), "ingress": [{"from": [{"podSelector": pods("c")}]}]}),
    );
    world.check("the rule changes", |p| !p.to(&["x/a"]) || p.from(&["x/c"]));
    world.put(
        "p",
        "x",
        &json!({"podSelector": pods("b"), "ingress": [{"from": [{"podSelector": pods("c")}]}]}),
    );
    world.check("the selector changes", |p| !p.to(&["x/b"]) || p.from(&["x/c"]));
    world.put("p", "x", &json!({"podSelector": pods("b"), "policyTypes": ["Egress"]}));
    world.check("the direction changes", |p| !p.from(&["x/b"]));

    world.put("p", "x", &json!({"podSelector": {"matchLabels": {"role": "db"}},
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "web"}}, "podSelector": {"matchLabels": {"role": "web"}}}]}]}));
    world.check("nobody is meant yet", |_| true);
    world.label_pod(("x", "a"), &[("role", "db")]);
    world.check("a pod comes to be meant", |p| !p.to(&["x/a"]));
    world.label_pod(("y", "b"), &[("role", "web")]);
    world.check("a peer by its own labels alone", |p| !p.to(&["x/a"]));
    world.label_namespace("y", &[("team", "web")]);
    world.check("and by its namespace's", |p| !p.to(&["x/a"]) || p.from(&["y/b"]));
    world.label_pod(("y", "c"), &[("role", "web")]);
    world.check("one more peer", |p| !p.to(&["x/a"]) || p.from(&["y/b", "y/c"]));
    world.label_namespace("y", &[]);
    world.check("the namespace loses its label", |p| !p.to(&["x/a"]));
    world.label_namespace("y", &[("team", "web")]);
    world.label_pod(("y", "b"), &[]);
    world.check("a peer loses its label", |p| !p.to(&["x/a"]) || p.from(&["y/c"]));
    world.label_pod(("x", "a"), &[]);
    world.check("the pod is meant no more", |_| true);

    world.set(&[("x", from_b.clone()), ("x", json!({"podSelector": {}}))]);
    world.check("closed but for one", |p| !p.to(&["x"]) || (p.to(&["x/a"]) && p.from(&["x/b"])));
    world.cluster.set_pod("x/b", None);
    world.check("a peer that is gone is let through no more", |p| !p.to(&["x/a", "x/c"]));
    world.tell_pod(("x", "b"));
    world.check("until it is back", |p| !p.to(&["x"]) || (p.to(&["x/a"]) && p.from(&["x/b"])));
    // The whole table over again, as after a restart, is the same.
    let before = world.listed();
    world.settle_whole();
    assert_eq!(world.listed(), before);
    world.cluster.set_policy("x/p1", None);
    world.check("one of two policies goes", |p| !p.to(&["x/a"]) || p.from(&["x/b"]));
    world.end();
}
