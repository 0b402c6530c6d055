use api::Object;
use api::networking::v1::NetworkPolicy;
use expect_test::{Expect, expect};
use serde_json::{Value as Json, json};

use super::*;

fn facts(namespace: &str, label: &str) -> PodFacts {
    let port = |name: &str, protocol, number| NamedPort { name: name.to_owned(), protocol, number };
    PodFacts {
        namespace: namespace.to_owned(),
        labels: [("app".to_owned(), label.to_owned())].into(),
        ports: vec![port("web", Protocol::Tcp, 8080), port("dns", Protocol::Udp, 53)],
        ..PodFacts::default()
    }
}

/// A pod of this node at 10.0.0.`number` and fd00::`number`.
fn pod(namespace: &str, label: &str, number: u8) -> Pod {
    Pod {
        facts: Some(Arc::new(facts(namespace, label))),
        addresses: vec![IpAddr::from([10, 0, 0, number]), format!("fd00::{number:x}").parse().unwrap()],
        is_subject: true,
        is_peer: true,
    }
}

fn elsewhere(pod: Pod) -> Pod {
    Pod { is_subject: false, ..pod }
}

fn policy(namespace: &str, spec: Json) -> Option<Arc<Policy>> {
    let policy = json!({"metadata": {"name": "p", "namespace": namespace}, "spec": spec});
    Some(Arc::new(Policy::read(&NetworkPolicy::from_value(policy).unwrap())))
}

fn labels(app: &str) -> Option<Labels> {
    Some([("app".to_owned(), app.to_owned())].into())
}

fn check(cluster: &mut Cluster, expected: Expect) {
    expected.assert_eq(&cluster.settle().text());
}

#[test]
fn a_change_names_only_what_changes() {
    let mut cluster = Cluster::default();
    cluster.set_namespace("x", labels("x"));
    cluster.set_pod("x/a", Some(pod("x", "a", 1)));
    cluster.set_pod("x/b", Some(elsewhere(pod("x", "b", 2))));
    check(&mut cluster, expect![""]);
    let from = |label: &str| {
        policy(
            "x",
            json!({"podSelector": {"matchLabels": {"app": "a"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": label}}}], "ports": [{"port": 80}]}]}),
        )
    };
    cluster.set_policy("x/p", from("b"));
    check(
        &mut cluster,
        expect![[r#"
        add set inet trierarch-netpol pods4-1 { type ipv4_addr; }
        add set inet trierarch-netpol pods6-1 { type ipv6_addr; }
        add chain inet trierarch-netpol ingress-policy-1 { comment "x/p"; }
        add chain inet trierarch-netpol ingress-pods-1
        flush chain inet trierarch-netpol ingress-policy-1
        add rule inet trierarch-netpol ingress-policy-1 ip saddr @pods4-1 tcp dport 80 accept
        add rule inet trierarch-netpol ingress-policy-1 ip6 saddr @pods6-1 tcp dport 80 accept
        flush chain inet trierarch-netpol ingress-pods-1
        add rule inet trierarch-netpol ingress-pods-1 jump ingress-policy-1
        add rule inet trierarch-netpol ingress-pods-1 drop
        add element inet trierarch-netpol ingress4 { 10.0.0.1 : goto ingress-pods-1 }
        add element inet trierarch-netpol ingress6 { fd00::1 : goto ingress-pods-1 }
        add element inet trierarch-netpol pods4-1 { 10.0.0.2 }
        add element inet trierarch-netpol pods6-1 { fd00::2 }
        add element inet trierarch-netpol self4 { 10.0.0.1 . 10.0.0.1 }
        add element inet trierarch-netpol self6 { fd00::1 . fd00::1 }
    "#]],
    );
    // A peer comes.
    cluster.set_pod("x/c", Some(pod("x", "b", 3)));
    check(
        &mut cluster,
        expect![[r#"
        add element inet trierarch-netpol pods4-1 { 10.0.0.3 }
        add element inet trierarch-netpol pods6-1 { fd00::3 }
    "#]],
    );
    // The policy means others.
    cluster.set_policy("x/p", from("c"));
    check(
        &mut cluster,
        expect![[r#"
        add set inet trierarch-netpol pods4-2 { type ipv4_addr; }
        add set inet trierarch-netpol pods6-2 { type ipv6_addr; }
        add chain inet trierarch-netpol ingress-policy-1 { comment "x/p"; }
        flush chain inet trierarch-netpol ingress-policy-1
        add rule inet trierarch-netpol ingress-policy-1 ip saddr @pods4-2 tcp dport 80 accept
        add rule inet trierarch-netpol ingress-policy-1 ip6 saddr @pods6-2 tcp dport 80 accept
        delete set inet trierarch-netpol pods4-1
        delete set inet trierarch-netpol pods6-1
    "#]],
    );
    // A pod of this node comes to be meant by it.
    cluster.set_pod("x/d", Some(pod("x", "a", 4)));
    check(
        &mut cluster,
        expect![[r#"
        add element inet trierarch-netpol ingress4 { 10.0.0.4 : goto ingress-pods-1 }
        add element inet trierarch-netpol ingress6 { fd00::4 : goto ingress-pods-1 }
        add element inet trierarch-netpol self4 { 10.0.0.4 . 10.0.0.4 }
        add element inet trierarch-netpol self6 { fd00::4 . fd00::4 }
    "#]],
    );
    // Nothing of it is left.
    cluster.set_policy("x/p", None);
    check(
        &mut cluster,
        expect![[r#"
        delete element inet trierarch-netpol ingress4 { 10.0.0.1 : goto ingress-pods-1, 10.0.0.4 : goto ingress-pods-1 }
        delete element inet trierarch-netpol ingress6 { fd00::1 : goto ingress-pods-1, fd00::4 : goto ingress-pods-1 }
        delete element inet trierarch-netpol self4 { 10.0.0.1 . 10.0.0.1, 10.0.0.4 . 10.0.0.4 }
        delete element inet trierarch-netpol self6 { fd00::1 . fd00::1, fd00::4 . fd00::4 }
        delete chain inet trierarch-netpol ingress-pods-1
        delete chain inet trierarch-netpol ingress-policy-1
        delete set inet trierarch-netpol pods4-2
        delete set inet trierarch-netpol pods6-2
    "#]],
    );
    assert!(cluster.claims.is_empty() && cluster.sets.is_empty() && cluster.profiles.is_empty());
    assert!(cluster.compiled.is_empty() && cluster.isolation.is_empty() && cluster.chains.is_empty());
}

#[test]
fn the_whole_table() {
    let mut cluster = Cluster::default();
    cluster.set_namespace("x", labels("x"));
    cluster.set_namespace("kube-system", labels("system"));
    cluster.set_resolver(Some(Resolver {
        namespace: "kube-system".to_owned(),
        labels: [("k8s-app".to_owned(), "kube-dns".to_owned())].into(),
        addresses: vec![IpAddr::from([10, 43, 0, 10])],
        ports: vec![NamedPort { name: "dns".to_owned(), protocol: Protocol::Udp, number: 53 }],
    }));
    cluster.set_pod("x/a", Some(pod("x", "a", 1)));
    cluster.set_pod("x/b", Some(pod("x", "b", 2)));
    cluster.set_policy("x/deny", policy("x", json!({"podSelector": {}})));
    cluster.set_policy(
        "x/web",
        policy(
            "x",
            json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"ports": [{"port": "web"}, {"port": 81}, {"port": 90, "endPort": 99}]},
                {"from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.8/32"]}},
                    {"namespaceSelector": {}}]},
            ],
            "egress": [
                {"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
                    "ports": [{"port": 53, "protocol": "UDP"}]},
                {"to": [{"ipBlock": {"cidr": "2001:db8::/32"}}], "ports": [{"protocol": "SCTP"}]},
                {"to": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": "web"}]},
            ]}),
        ),
    );
    cluster.settle();
    expect![[r#"
        add table inet trierarch-netpol
        delete table inet trierarch-netpol
        add table inet trierarch-netpol
        add map inet trierarch-netpol ingress4 { type ipv4_addr : verdict; }
        add map inet trierarch-netpol egress4 { type ipv4_addr : verdict; }
        add set inet trierarch-netpol self4 { type ipv4_addr . ipv4_addr; }
        add set inet trierarch-netpol resolvers4 { type ipv4_addr; }
        add set inet trierarch-netpol resolves4 { type ipv4_addr . inet_proto; }
        add map inet trierarch-netpol ingress6 { type ipv6_addr : verdict; }
        add map inet trierarch-netpol egress6 { type ipv6_addr : verdict; }
        add set inet trierarch-netpol self6 { type ipv6_addr . ipv6_addr; }
        add set inet trierarch-netpol resolvers6 { type ipv6_addr; }
        add set inet trierarch-netpol resolves6 { type ipv6_addr . inet_proto; }
        add chain inet trierarch-netpol egress { type filter hook forward priority 0; }
        add rule inet trierarch-netpol egress ct state established,related accept
        add rule inet trierarch-netpol egress ip saddr . ip daddr @self4 accept
        add rule inet trierarch-netpol egress ct original ip daddr @resolvers4 ip saddr . meta l4proto @resolves4 accept
        add rule inet trierarch-netpol egress ip saddr vmap @egress4
        add rule inet trierarch-netpol egress ip6 saddr . ip6 daddr @self6 accept
        add rule inet trierarch-netpol egress ct original ip6 daddr @resolvers6 ip6 saddr . meta l4proto @resolves6 accept
        add rule inet trierarch-netpol egress ip6 saddr vmap @egress6
        add chain inet trierarch-netpol ingress { type filter hook forward priority 1; }
        add rule inet trierarch-netpol ingress ct state established,related accept
        add rule inet trierarch-netpol ingress ip saddr . ip daddr @self4 accept
        add rule inet trierarch-netpol ingress ip daddr vmap @ingress4
        add rule inet trierarch-netpol ingress ip6 saddr . ip6 daddr @self6 accept
        add rule inet trierarch-netpol ingress ip6 daddr vmap @ingress6
        add set inet trierarch-netpol ports4-1 { type ipv4_addr . inet_proto . inet_service; }
        add set inet trierarch-netpol ports6-1 { type ipv6_addr . inet_proto . inet_service; }
        add set inet trierarch-netpol pods4-2 { type ipv4_addr; }
        add set inet trierarch-netpol pods6-2 { type ipv6_addr; }
        add set inet trierarch-netpol pods4-3 { type ipv4_addr; }
        add set inet trierarch-netpol pods6-3 { type ipv6_addr; }
        add set inet trierarch-netpol pods4-4 { type ipv4_addr; }
        add set inet trierarch-netpol pods6-4 { type ipv6_addr; }
        add set inet trierarch-netpol ports4-5 { type ipv4_addr . inet_proto . inet_service; }
        add set inet trierarch-netpol ports6-5 { type ipv6_addr . inet_proto . inet_service; }
        add chain inet trierarch-netpol ingress-policy-1 { comment "x/deny"; }
        add chain inet trierarch-netpol ingress-policy-2 { comment "x/web"; }
        add chain inet trierarch-netpol egress-policy-2 { comment "x/web"; }
        add chain inet trierarch-netpol ingress-pods-1
        add chain inet trierarch-netpol ingress-pods-3
        add chain inet trierarch-netpol egress-pods-2
        flush chain inet trierarch-netpol ingress-policy-1
        flush chain inet trierarch-netpol ingress-policy-2
        add rule inet trierarch-netpol ingress-policy-2 tcp dport { 81, 90-99 } accept
        add rule inet trierarch-netpol ingress-policy-2 ip daddr . meta l4proto . th dport @ports4-1 accept
        add rule inet trierarch-netpol ingress-policy-2 ip6 daddr . meta l4proto . th dport @ports6-1 accept
        add rule inet trierarch-netpol ingress-policy-2 ip saddr @pods4-2 accept
        add rule inet trierarch-netpol ingress-policy-2 ip6 saddr @pods6-2 accept
        add rule inet trierarch-netpol ingress-policy-2 ip saddr { 192.0.2.0-192.0.2.7, 192.0.2.9-192.0.2.255 } accept
        flush chain inet trierarch-netpol egress-policy-2
        add rule inet trierarch-netpol egress-policy-2 ip daddr @pods4-3 udp dport 53 accept
        add rule inet trierarch-netpol egress-policy-2 ip6 daddr @pods6-3 udp dport 53 accept
        add rule inet trierarch-netpol egress-policy-2 ip6 daddr 2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff sctp dport 0-65535 accept
        add rule inet trierarch-netpol egress-policy-2 ip daddr @pods4-4 ip daddr . meta l4proto . th dport @ports4-5 accept
        add rule inet trierarch-netpol egress-policy-2 ip6 daddr @pods6-4 ip6 daddr . meta l4proto . th dport @ports6-5 accept
        flush chain inet trierarch-netpol ingress-pods-1
        add rule inet trierarch-netpol ingress-pods-1 jump ingress-policy-1
        add rule inet trierarch-netpol ingress-pods-1 jump ingress-policy-2
        add rule inet trierarch-netpol ingress-pods-1 drop
        flush chain inet trierarch-netpol ingress-pods-3
        add rule inet trierarch-netpol ingress-pods-3 jump ingress-policy-1
        add rule inet trierarch-netpol ingress-pods-3 drop
        flush chain inet trierarch-netpol egress-pods-2
        add rule inet trierarch-netpol egress-pods-2 jump egress-policy-2
        add rule inet trierarch-netpol egress-pods-2 drop
        add element inet trierarch-netpol egress4 { 10.0.0.1 : goto egress-pods-2 }
        add element inet trierarch-netpol egress6 { fd00::1 : goto egress-pods-2 }
        add element inet trierarch-netpol ingress4 { 10.0.0.1 : goto ingress-pods-1, 10.0.0.2 : goto ingress-pods-3 }
        add element inet trierarch-netpol ingress6 { fd00::1 : goto ingress-pods-1, fd00::2 : goto ingress-pods-3 }
        add element inet trierarch-netpol pods4-2 { 10.0.0.1, 10.0.0.2 }
        add element inet trierarch-netpol pods4-4 { 10.0.0.2 }
        add element inet trierarch-netpol pods6-2 { fd00::1, fd00::2 }
        add element inet trierarch-netpol pods6-4 { fd00::2 }
        add element inet trierarch-netpol ports4-1 { 10.0.0.1 . tcp . 8080 }
        add element inet trierarch-netpol ports4-5 { 10.0.0.2 . tcp . 8080 }
        add element inet trierarch-netpol ports6-1 { fd00::1 . tcp . 8080 }
        add element inet trierarch-netpol ports6-5 { fd00::2 . tcp . 8080 }
        add element inet trierarch-netpol resolvers4 { 10.43.0.10 }
        add element inet trierarch-netpol resolves4 { 10.0.0.1 . udp }
        add element inet trierarch-netpol resolves6 { fd00::1 . udp }
        add element inet trierarch-netpol self4 { 10.0.0.1 . 10.0.0.1, 10.0.0.2 . 10.0.0.2 }
        add element inet trierarch-netpol self6 { fd00::1 . fd00::1, fd00::2 . fd00::2 }
    "#]].assert_eq(&cluster.text());
}

/// Where a pod's packets go: whether it is isolated in each direction.
fn is_isolated(cluster: &Cluster, number: u8) -> [bool; 2] {
    let elements: Vec<&Element> = cluster.claims.elements().map(|(element, _)| element).collect();
    Direction::BOTH
        .map(|direction| elements.contains(&&Element::Isolated(direction, IpAddr::from([10, 0, 0, number]))))
}

#[test]
fn who_is_isolated() {
    let deny =
        || policy("x", json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"]}));
    let mut cluster = Cluster::default();
    cluster.set_policy("x/deny", deny());
    for (name, pod, expected) in [
        ("selected", pod("x", "a", 1), [false, true]),
        ("with other labels", pod("x", "b", 2), [false, false]),
        ("of another namespace", pod("y", "a", 3), [false, false]),
        ("of another node", elsewhere(pod("x", "a", 4)), [false, false]),
        ("nobody knows what", Pod { facts: None, ..pod("x", "b", 5) }, [true, true]),
        ("left behind", Pod { is_peer: false, ..pod("x", "a", 6) }, [false, true]),
    ] {
        let number = match pod.addresses[0] {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => unreachable!("the first address is IPv4"),
        };
        cluster.set_pod(name, Some(pod));
        cluster.settle();
        assert_eq!(is_isolated(&cluster, number), expected, "{name}");
        cluster.set_pod(name, None);
        cluster.settle();
        assert_eq!(is_isolated(&cluster, number), [false, false], "{name}");
    }
}

#[test]
fn the_clusters_dns_is_let_through_as_its_pods_would_be() {
    let selector = json!({"matchLabels": {"k8s-app": "kube-dns"}});
    let here = json!({"matchLabels": {"app": "system"}});
    for (egress, udp, tcp) in [
        (json!([]), false, false),
        (json!([{}]), true, true),
        (json!([{"ports": [{"port": 53, "protocol": "UDP"}]}]), true, false),
        (json!([{"ports": [{"port": 53}]}]), false, true),
        (json!([{"ports": [{"port": 10053, "protocol": "UDP"}]}]), false, false),
        (json!([{"to": [{"namespaceSelector": here, "podSelector": selector}]}]), true, true),
        (
            json!([{"to": [{"namespaceSelector": here}], "ports": [{"port": "dns", "protocol": "UDP"}]}]),
            true,
            false,
        ),
        (json!([{"to": [{"podSelector": selector}]}]), false, false),
        (json!([{"to": [{"ipBlock": {"cidr": "10.43.0.0/16"}}]}]), true, true),
        (json!([{"to": [{"ipBlock": {"cidr": "10.0.0.0/16"}}]}]), false, false),
    ] {
        let mut cluster = Cluster::default();
        cluster.set_namespace("kube-system", labels("system"));
        let port = |name: &str, protocol| NamedPort { name: name.to_owned(), protocol, number: 53 };
        cluster.set_resolver(Some(Resolver {
            namespace: "kube-system".to_owned(),
            labels: [("k8s-app".to_owned(), "kube-dns".to_owned())].into(),
            addresses: vec![IpAddr::from([10, 43, 0, 10])],
            ports: vec![port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)],
        }));
        cluster.set_pod("x/a", Some(pod("x", "a", 1)));
        cluster.set_policy(
            "x/p",
            policy("x", json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": egress})),
        );
        cluster.settle();
        let elements: Vec<Element> = cluster.claims.elements().map(|(element, _)| *element).collect();
        let resolves =
            |protocol| elements.contains(&Element::Resolves(IpAddr::from([10, 0, 0, 1]), protocol));
        assert_eq!((resolves(Protocol::Udp), resolves(Protocol::Tcp)), (udp, tcp), "{egress}");
    }
}

/// The table without the numbers that its names have, which tell of the way there: chains and sets are named by
/// what is in them.
fn meaning(cluster: &Cluster) -> BTreeSet<String> {
    let mut names: Vec<(String, String)> = Vec::new();
    for (number, set) in &cluster.sets {
        for name in ["pods4", "pods6", "ports4", "ports6"] {
            names.push((format!("@{name}-{number} "), format!("@{name}-{set:?} ")));
        }
    }
    for chain in cluster.chains.keys().filter(|chain| matches!(chain, Chain::Policy(..))) {
        names.push((format!("jump {chain};"), format!("jump {}", cluster.chains[chain].comment)));
    }
    // The end of a rule is marked, so that one number is not the beginning of another.
    let rename =
        |text: &str| names.iter().fold(format!("{text};"), |text, (from, to)| text.replace(from, to));
    let body = |chain: &Chain| {
        let rules: BTreeSet<String> = cluster.chains[chain].rules.iter().map(|rule| rename(rule)).collect();
        format!("{rules:?}")
    };
    let chains = cluster.chains.keys().map(|chain| match chain {
        Chain::Policy(direction, _) => {
            format!("{direction:?} {} {}", cluster.chains[chain].comment, body(chain))
        }
        Chain::Pods(direction, _) => format!("{direction:?} {}", body(chain)),
    });
    let elements = cluster.claims.elements().map(|(element, value)| match (element, value) {
        (Element::Member(set, member), _) => format!("{:?} has {member:?}", cluster.sets[set]),
        (Element::Isolated(direction, address), Value::Chain(number)) => {
            format!("{direction:?} {address} to {}", body(&Chain::Pods(*direction, *number)))
        }
        other => format!("{other:?}"),
    });
    chains.chain(elements).collect()
}

/// Numbers that look random and are the same for a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
}

fn random_policy(random: &mut Random, namespace: &str) -> Option<Arc<Policy>> {
    let selector = |random: &mut Random| match random.below(3) {
        0 => json!({}),
        1 => json!({"matchLabels": {"app": random.one(&["a", "b"])}}),
        _ => {
            json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": [random.one(&["a", "b"])]}]})
        }
    };
    let rule = |random: &mut Random, side: &str| {
        let peers: Vec<Json> = (0..random.below(3))
            .map(|_| match random.below(4) {
                0 => json!({"podSelector": selector(random)}),
                1 => json!({"namespaceSelector": selector(random)}),
                2 => json!({"namespaceSelector": selector(random), "podSelector": selector(random)}),
                _ => json!({"ipBlock": {"cidr": "10.0.0.0/29"}}),
            })
            .collect();
        let ports = [json!({"port": 80}), json!({"port": "web"}), json!({"port": "dns", "protocol": "UDP"})];
        let ports: Vec<Json> = (0..random.below(3)).map(|_| random.one(&ports)).collect();
        json!({side: peers, "ports": ports})
    };
    let types = random.one(&[json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])]);
    let ingress: Vec<Json> = (0..random.below(3)).map(|_| rule(random, "from")).collect();
    let egress: Vec<Json> = (0..random.below(3)).map(|_| rule(random, "to")).collect();
    let spec =
        json!({"podSelector": selector(random), "policyTypes": types, "ingress": ingress, "egress": egress});
    policy(namespace, spec)
}

/// Whatever the way, the outcome is that of what is there; and the kernel takes every step of it.
#[test]
fn the_way_there_does_not_matter() {
    let resolver = Resolver {
        namespace: "z".to_owned(),
        labels: labels("a").unwrap(),
        addresses: vec![IpAddr::from([10, 0, 0, 6])],
        ports: vec![NamedPort { name: "dns".to_owned(), protocol: Protocol::Udp, number: 53 }],
    };
    let kernels =
        [(); 2].map(|()| linux::netns::NetNs::anonymous().expect("making a network namespace needs root"));
    for seed in 0..6 {
        let mut random = Random(seed);
        let mut cluster = Cluster::default();
        let (mut namespaces, mut pods, mut policies) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        cluster.settle();
        let mut batches = vec![(cluster.text(), cluster.steps())];
        for _ in 0..120 {
            let namespace = random.one(&["x", "y", "z"]);
            match random.below(6) {
                5 => cluster.set_resolver(random.one(&[Some(resolver.clone()), None])),
                0 => {
                    let labels = random.one(&[labels("a"), labels("b"), None]);
                    namespaces.insert(namespace, labels.clone());
                    cluster.set_namespace(namespace, labels);
                }
                1 | 2 => {
                    let number = random.below(8);
                    let name = format!("pod {number}");
                    let made = pod(namespace, random.one(&["a", "b"]), u8::try_from(number).unwrap() + 1);
                    let made = random.one(&[Some(made.clone()), Some(elsewhere(made)), None]);
                    pods.insert(name.clone(), made.clone());
                    cluster.set_pod(&name, made);
                }
                _ => {
                    let name = format!("{namespace}/{}", random.below(3));
                    let made = random_policy(&mut random, namespace).filter(|_| random.below(3) > 0);
                    policies.insert(name.clone(), made.clone());
                    cluster.set_policy(&name, made);
                }
            }
            if random.below(3) > 0 {
                let change = cluster.settle();
                batches.push((change.text(), change.steps()));
            }
        }
        cluster.set_resolver(Some(resolver.clone()));
        let change = cluster.settle();
        batches.push((change.text(), change.steps()));
        let listed = batches.into_iter().map(|(text, steps)| both_ways(&kernels, seed, text, steps));
        assert!(listed.max() > Some(20), "seed {seed}: the table is never filled");
        both_ways(&kernels, seed, cluster.text(), cluster.steps());
        let mut fresh = Cluster::default();
        fresh.set_resolver(Some(resolver.clone()));
        policies.into_iter().for_each(|(name, policy)| fresh.set_policy(&name, policy));
        pods.into_iter().for_each(|(name, pod)| fresh.set_pod(&name, pod));
        namespaces.into_iter().for_each(|(name, labels)| fresh.set_namespace(name, labels));
        fresh.settle();
        assert_eq!(meaning(&cluster), meaning(&fresh), "seed {seed}");
    }
}

/// Applies a change as text and in steps; the outcome is the same, of so many lines.
fn both_ways(
    [by_text, by_steps]: &[linux::netns::NetNs; 2],
    seed: u64,
    text: String,
    steps: linux::nft::Steps,
) -> usize {
    let list = || linux::nft::list_table_text(table::FAMILY, table::TABLE).unwrap();
    let [expected, found] = [
        by_text.run(|| linux::nft::apply(&text).map(|()| list())),
        by_steps.run(|| steps.apply().map(|()| list())),
    ]
    .map(|applied| {
        let listed = applied.unwrap().unwrap_or_else(|error| panic!("seed {seed}: {error}\n{text}"));
        testkit::network::sorted_rules(&listed)
    });
    assert_eq!(found, expected, "seed {seed}: {text}");
    found.len()
}
