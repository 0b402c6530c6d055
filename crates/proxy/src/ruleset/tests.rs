use api::Object;
use api::core::v1::Service;
use api::discovery::v1::EndpointSlice;
use expect_test::{Expect, expect};
use serde_json::json;
use testkit::network::sorted_rules;

use super::*;
use crate::element::Frontend;
use crate::endpoints::Here;

/// The elements of a Service `shop/web` on port 80 with endpoints at those addresses.
fn wanted(spec: serde_json::Value, endpoints: &[&str]) -> BTreeMap<Key, Value> {
    let mut full = json!({"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]});
    full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let service: Service = Object::from_value(json!({"metadata": {}, "spec": full})).unwrap();
    let endpoints: Vec<_> = endpoints.iter().map(|a| json!({"addresses": [a], "nodeName": "here"})).collect();
    let slice: EndpointSlice = Object::from_value(json!({"addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080}]}))
    .unwrap();
    let here = Here { node: "here".to_owned(), ..Here::default() };
    crate::service::wanted(&service, &[&slice.into()], &here).elements
}

fn change(ruleset: &mut Ruleset, service: &str, elements: BTreeMap<Key, Value>) -> String {
    ruleset.set(service, elements);
    ruleset.settle().text()
}

fn check(actual: &str, expected: Expect) {
    expected.assert_eq(actual);
}

#[test]
fn a_change_names_only_what_changes() {
    let mut ruleset = Ruleset::default();
    let cluster_ip = || json!({"ports": [{"name": "http", "port": 80}]});
    check(
        &change(&mut ruleset, "shop/web", wanted(cluster_ip(), &["10.42.0.5", "10.42.0.6"])),
        expect![[r#"
        add chain ip trierarch-proxy pick-2
        add rule ip trierarch-proxy pick-2 meta mark set numgen random mod 2 offset 0x0 goto translate
        add element ip trierarch-proxy cluster-ips { 10.43.0.7 }
        add element ip trierarch-proxy endpoints { 10.43.0.7 . tcp . 80 . 0x0 : 10.42.0.5 . 8080, 10.43.0.7 . tcp . 80 . 0x1 : 10.42.0.6 . 8080 }
        add element ip trierarch-proxy hairpin { 10.42.0.5 . 10.42.0.5, 10.42.0.6 . 10.42.0.6 }
        add element ip trierarch-proxy services { 10.43.0.7 . tcp . 80 : goto pick-2 }
    "#]],
    );
    check(
        &change(&mut ruleset, "shop/web", wanted(cluster_ip(), &["10.42.0.5", "10.42.0.7"])),
        expect![[r#"
        delete element ip trierarch-proxy endpoints { 10.43.0.7 . tcp . 80 . 0x1 : 10.42.0.6 . 8080 }
        delete element ip trierarch-proxy hairpin { 10.42.0.6 . 10.42.0.6 }
        add element ip trierarch-proxy endpoints { 10.43.0.7 . tcp . 80 . 0x1 : 10.42.0.7 . 8080 }
        add element ip trierarch-proxy hairpin { 10.42.0.7 . 10.42.0.7 }
    "#]],
    );
    check(&change(&mut ruleset, "shop/web", wanted(cluster_ip(), &["10.42.0.5", "10.42.0.7"])), expect![""]);
    check(
        &change(&mut ruleset, "shop/web", wanted(cluster_ip(), &[])),
        expect![[r#"
        delete element ip trierarch-proxy endpoints { 10.43.0.7 . tcp . 80 . 0x0 : 10.42.0.5 . 8080, 10.43.0.7 . tcp . 80 . 0x1 : 10.42.0.7 . 8080 }
        delete element ip trierarch-proxy hairpin { 10.42.0.5 . 10.42.0.5, 10.42.0.7 . 10.42.0.7 }
        delete element ip trierarch-proxy services { 10.43.0.7 . tcp . 80 : goto pick-2 }
        add element ip trierarch-proxy refused-services { 10.43.0.7 . tcp . 80 : goto refuse }
        delete chain ip trierarch-proxy pick-2
    "#]],
    );
    check(
        &change(&mut ruleset, "shop/web", BTreeMap::new()),
        expect![[r#"
        delete element ip trierarch-proxy cluster-ips { 10.43.0.7 }
        delete element ip trierarch-proxy refused-services { 10.43.0.7 . tcp . 80 : goto refuse }
    "#]],
    );
    assert!(ruleset.claims.is_empty() && ruleset.picks.is_empty());
}

#[test]
fn policies_and_affinity_in_text() {
    let mut ruleset = Ruleset::default();
    let local = json!({"type": "NodePort", "externalTrafficPolicy": "Local"});
    check(
        &change(&mut ruleset, "shop/web", wanted(local, &["10.42.0.5"])),
        expect![[r#"
        add chain ip trierarch-proxy pick-1
        add rule ip trierarch-proxy pick-1 meta mark set 0x0 goto translate
        add chain ip trierarch-proxy pick-port-1
        add rule ip trierarch-proxy pick-port-1 meta mark set 0x0 goto translate-port
        add chain ip trierarch-proxy pick-port-1-local
        add rule ip trierarch-proxy pick-port-1-local meta mark set 0x10000 goto translate-port
        add element ip trierarch-proxy cluster-ips { 10.43.0.7 }
        add element ip trierarch-proxy endpoints { 10.43.0.7 . tcp . 80 . 0x0 : 10.42.0.5 . 8080 }
        add element ip trierarch-proxy hairpin { 10.42.0.5 . 10.42.0.5 }
        add element ip trierarch-proxy node-port-endpoints { tcp . 30080 . 0x0 : 10.42.0.5 . 8080, tcp . 30080 . 0x10000 : 10.42.0.5 . 8080 }
        add element ip trierarch-proxy node-ports { tcp . 30080 : goto pick-port-1 }
        add element ip trierarch-proxy node-ports-from-outside { tcp . 30080 : goto pick-port-1-local }
        add element ip trierarch-proxy services { 10.43.0.7 . tcp . 80 : goto pick-1 }
    "#]],
    );
    let sticky = json!({"type": "NodePort", "sessionAffinity": "ClientIP"});
    check(
        &change(&mut ruleset, "shop/web", wanted(sticky, &["10.42.0.5", "10.42.0.6"])),
        expect![[r#"
        add chain ip trierarch-proxy pick-2-sticky-10800
        add rule ip trierarch-proxy pick-2-sticky-10800 meta mark set ip saddr . ip daddr . meta l4proto . th dport map @affinity update @affinity { ip saddr . ip daddr . meta l4proto . th dport timeout 10800s : meta mark } dnat ip to ip daddr . meta l4proto . th dport . meta mark map @endpoints
        add rule ip trierarch-proxy pick-2-sticky-10800 delete @affinity { ip saddr . ip daddr . meta l4proto . th dport : meta mark }
        add rule ip trierarch-proxy pick-2-sticky-10800 meta mark set numgen random mod 2 offset 0x0
        add rule ip trierarch-proxy pick-2-sticky-10800 meta mark set ip daddr . meta l4proto . th dport . meta mark map @slots
        add rule ip trierarch-proxy pick-2-sticky-10800 update @affinity { ip saddr . ip daddr . meta l4proto . th dport timeout 10800s : meta mark }
        add rule ip trierarch-proxy pick-2-sticky-10800 goto translate
        add chain ip trierarch-proxy pick-port-2-masquerade-sticky-10800
        add rule ip trierarch-proxy pick-port-2-masquerade-sticky-10800 meta mark set ip saddr . meta l4proto . th dport map @node-port-affinity update @node-port-affinity { ip saddr . meta l4proto . th dport timeout 10800s : meta mark } dnat ip to meta l4proto . th dport . meta mark map @node-port-endpoints
        add rule ip trierarch-proxy pick-port-2-masquerade-sticky-10800 delete @node-port-affinity { ip saddr . meta l4proto . th dport : meta mark }
        add rule ip trierarch-proxy pick-port-2-masquerade-sticky-10800 meta mark set numgen random mod 2 offset 0x40000000
        add rule ip trierarch-proxy pick-port-2-masquerade-sticky-10800 meta mark set meta l4proto . th dport . meta mark map @node-port-slots
        add rule ip trierarch-proxy pick-port-2-masquerade-sticky-10800 update @node-port-affinity { ip saddr . meta l4proto . th dport timeout 10800s : meta mark }
        add rule ip trierarch-proxy pick-port-2-masquerade-sticky-10800 goto translate-port
        delete element ip trierarch-proxy endpoints { 10.43.0.7 . tcp . 80 . 0x0 : 10.42.0.5 . 8080 }
        delete element ip trierarch-proxy node-port-endpoints { tcp . 30080 . 0x0 : 10.42.0.5 . 8080, tcp . 30080 . 0x10000 : 10.42.0.5 . 8080 }
        delete element ip trierarch-proxy node-ports { tcp . 30080 : goto pick-port-1 }
        delete element ip trierarch-proxy node-ports-from-outside { tcp . 30080 : goto pick-port-1-local }
        delete element ip trierarch-proxy services { 10.43.0.7 . tcp . 80 : goto pick-1 }
        add element ip trierarch-proxy endpoints { 10.43.0.7 . tcp . 80 . 0x9bf1c59c : 10.42.0.6 . 8080, 10.43.0.7 . tcp . 80 . 0xa6cdd513 : 10.42.0.5 . 8080 }
        add element ip trierarch-proxy hairpin { 10.42.0.6 . 10.42.0.6 }
        add element ip trierarch-proxy node-port-endpoints { tcp . 30080 . 0xdbf1c59c : 10.42.0.6 . 8080, tcp . 30080 . 0xe6cdd513 : 10.42.0.5 . 8080 }
        add element ip trierarch-proxy node-port-slots { tcp . 30080 . 0x40000000 : 0xe6cdd513, tcp . 30080 . 0x40000001 : 0xdbf1c59c }
        add element ip trierarch-proxy node-ports { tcp . 30080 : goto pick-port-2-masquerade-sticky-10800 }
        add element ip trierarch-proxy services { 10.43.0.7 . tcp . 80 : goto pick-2-sticky-10800 }
        add element ip trierarch-proxy slots { 10.43.0.7 . tcp . 80 . 0x0 : 0xa6cdd513, 10.43.0.7 . tcp . 80 . 0x1 : 0x9bf1c59c }
        delete chain ip trierarch-proxy pick-1
        delete chain ip trierarch-proxy pick-port-1
        delete chain ip trierarch-proxy pick-port-1-local
    "#]],
    );
}

#[test]
fn the_frame() {
    let ruleset = Ruleset::new(Frame { cluster_cidrs: vec!["10.42.0.0/16".to_owned()], ..Frame::default() });
    let text = ruleset.text();
    let ipv4 = text.split_once("add table ip6").unwrap().0;
    check(
        ipv4,
        expect![[r#"
        add table ip trierarch-proxy
        delete table ip trierarch-proxy
        add table ip trierarch-proxy
        add map ip trierarch-proxy services { type ipv4_addr . inet_proto . inet_service : verdict; }
        add map ip trierarch-proxy services-from-outside { type ipv4_addr . inet_proto . inet_service : verdict; }
        add map ip trierarch-proxy refused-services { type ipv4_addr . inet_proto . inet_service : verdict; }
        add map ip trierarch-proxy endpoints { type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service; }
        add map ip trierarch-proxy slots { type ipv4_addr . inet_proto . inet_service . mark : mark; }
        add map ip trierarch-proxy affinity { type ipv4_addr . ipv4_addr . inet_proto . inet_service : mark; size 65535; flags dynamic,timeout; timeout 3h; }
        add map ip trierarch-proxy node-ports { type inet_proto . inet_service : verdict; }
        add map ip trierarch-proxy node-ports-from-outside { type inet_proto . inet_service : verdict; }
        add map ip trierarch-proxy refused-node-ports { type inet_proto . inet_service : verdict; }
        add map ip trierarch-proxy node-port-endpoints { type inet_proto . inet_service . mark : ipv4_addr . inet_service; }
        add map ip trierarch-proxy node-port-slots { type inet_proto . inet_service . mark : mark; }
        add map ip trierarch-proxy node-port-affinity { type ipv4_addr . inet_proto . inet_service : mark; size 65535; flags dynamic,timeout; timeout 3h; }
        add set ip trierarch-proxy cluster-ips { type ipv4_addr; }
        add set ip trierarch-proxy hairpin { type ipv4_addr . ipv4_addr; }
        add set ip trierarch-proxy guarded { type ipv4_addr . inet_proto . inet_service; }
        add set ip trierarch-proxy allowed { type ipv4_addr . inet_proto . inet_service . ipv4_addr; flags interval; }
        add chain ip trierarch-proxy guard { type filter hook prerouting priority -110; }
        add chain ip trierarch-proxy guard-output { type filter hook output priority -110; }
        add chain ip trierarch-proxy prerouting { type nat hook prerouting priority -100; }
        add chain ip trierarch-proxy output { type nat hook output priority -100; }
        add chain ip trierarch-proxy forget-choice { type filter hook prerouting priority -99; }
        add chain ip trierarch-proxy refuse-input { type filter hook input priority -90; }
        add chain ip trierarch-proxy refuse-forward { type filter hook forward priority -90; }
        add chain ip trierarch-proxy refuse-output { type filter hook output priority -90; }
        add chain ip trierarch-proxy postrouting { type nat hook postrouting priority 100; }
        add chain ip trierarch-proxy services
        add chain ip trierarch-proxy from-outside
        add chain ip trierarch-proxy translate
        add chain ip trierarch-proxy translate-port
        add chain ip trierarch-proxy refuse
        add rule ip trierarch-proxy guard ct state new ip daddr . meta l4proto . th dport @guarded ip daddr . meta l4proto . th dport . ip saddr != @allowed drop
        add rule ip trierarch-proxy guard-output ct state new ip daddr . meta l4proto . th dport @guarded ip daddr . meta l4proto . th dport . ip saddr != @allowed drop
        add rule ip trierarch-proxy prerouting ip saddr != { 10.42.0.0/16 } jump from-outside
        add rule ip trierarch-proxy prerouting jump services
        add rule ip trierarch-proxy output jump services
        add rule ip trierarch-proxy from-outside ip daddr . meta l4proto . th dport vmap @services-from-outside
        add rule ip trierarch-proxy from-outside fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @node-ports-from-outside
        add rule ip trierarch-proxy services ip daddr . meta l4proto . th dport vmap @services
        add rule ip trierarch-proxy services fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @node-ports
        add rule ip trierarch-proxy translate dnat ip to ip daddr . meta l4proto . th dport . meta mark map @endpoints
        add rule ip trierarch-proxy translate-port dnat ip to meta l4proto . th dport . meta mark map @node-port-endpoints
        add rule ip trierarch-proxy forget-choice ct state new ct status dnat meta mark set meta mark & 0x40000000
        add rule ip trierarch-proxy refuse meta l4proto tcp reject with tcp reset
        add rule ip trierarch-proxy refuse reject
        add rule ip trierarch-proxy postrouting ct status dnat ip saddr . ip daddr @hairpin masquerade fully-random
        add rule ip trierarch-proxy postrouting ct status dnat meta mark & 0x40000000 != 0 masquerade fully-random
        add rule ip trierarch-proxy postrouting ct status dnat fib saddr type local masquerade fully-random
        add rule ip trierarch-proxy refuse-input ct state new ip daddr . meta l4proto . th dport vmap @refused-services
        add rule ip trierarch-proxy refuse-input ct state new fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @refused-node-ports
        add rule ip trierarch-proxy refuse-input ct state new ip daddr @cluster-ips goto refuse
        add rule ip trierarch-proxy refuse-forward ct state new ip daddr . meta l4proto . th dport vmap @refused-services
        add rule ip trierarch-proxy refuse-forward ct state new fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @refused-node-ports
        add rule ip trierarch-proxy refuse-forward ct state new ip daddr @cluster-ips goto refuse
        add rule ip trierarch-proxy refuse-output ct state new ip daddr . meta l4proto . th dport vmap @refused-services
        add rule ip trierarch-proxy refuse-output ct state new fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @refused-node-ports
        add rule ip trierarch-proxy refuse-output ct state new ip daddr @cluster-ips goto refuse
        add rule ip trierarch-proxy postrouting ct status dnat ip saddr != { 10.42.0.0/16 } ct original ip daddr @cluster-ips masquerade fully-random
    "#]],
    );
}

#[test]
fn what_two_services_want_is_the_first_ones_until_it_goes() {
    let mut ruleset = Ruleset::default();
    let external = |ip: &str| {
        json!({"clusterIP": ip, "clusterIPs": [ip], "externalIPs": ["203.0.113.1"],
        "ports": [{"name": "http", "port": 80}]})
    };
    change(&mut ruleset, "b", wanted(external("10.43.0.8"), &["10.42.0.8"]));
    let text = change(&mut ruleset, "a", wanted(external("10.43.0.7"), &["10.42.0.7"]));
    assert!(text.contains(
        "delete element ip trierarch-proxy endpoints { 203.0.113.1 . tcp . 80 . 0x40000000 : 10.42.0.8"
    ));
    let text = change(&mut ruleset, "a", BTreeMap::new());
    assert!(text.contains("203.0.113.1 . tcp . 80 . 0x40000000 : 10.42.0.8 . 8080"), "{text}");
    assert_eq!(change(&mut ruleset, "none", BTreeMap::new()), "");
}

#[test]
fn the_kernel_takes_every_text() {
    let namespace = linux::netns::NetNs::anonymous().expect("making a network namespace needs root");
    namespace
        .run(|| {
            let cluster_cidrs = vec!["10.42.0.0/16".to_owned(), "fd42::/56".to_owned()];
            let mut ruleset = Ruleset::new(Frame { cluster_cidrs, ..Frame::default() });
            let apply = |text: &str| linux::nft::apply(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            apply(&ruleset.text());
            let kinds = [
                json!({"type": "NodePort"}),
                json!({"type": "NodePort", "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"}),
                json!({"type": "LoadBalancer", "externalIPs": ["203.0.113.1"], "internalTrafficPolicy": "Local"}),
                json!({"sessionAffinity": "ClientIP"}),
            ];
            for kind in &kinds {
                for endpoints in [&["10.42.0.5", "10.42.0.6"][..], &["10.42.0.6"], &[]] {
                    let text = change(&mut ruleset, "shop/web", wanted(kind.clone(), endpoints));
                    apply(&text);
                    // Whole, the same state is taken just as well, twice in a row.
                    apply(&ruleset.text());
                }
            }
            apply(&change(&mut ruleset, "shop/web", BTreeMap::new()));
            let listed = linux::nft::list_table_text("ip", TABLE).unwrap();
            assert!(!listed.contains("pick-") && !listed.contains("10.43"), "{listed}");
            crate::reset().unwrap();
            crate::reset().unwrap();
            assert!(linux::nft::list_table("ip", TABLE).unwrap_err().is_not_found());
        })
        .unwrap();
}

/// What a namespace's tables hold.
fn listed(namespace: &linux::netns::NetNs) -> Vec<String> {
    let list = |family| linux::nft::list_table_text(family, TABLE).unwrap();
    sorted_rules(&namespace.run(|| list("ip") + &list("ip6")).unwrap())
}

#[test]
fn steps_do_what_the_text_says() {
    let [by_text, by_steps] =
        [(); 2].map(|()| linux::netns::NetNs::anonymous().expect("making a network namespace needs root"));
    let mut ruleset = Ruleset::new(Frame { node_ports: NodePorts::Primary, ..Frame::default() });
    by_steps.run(|| linux::nft::apply(&ruleset.text())).unwrap().unwrap();
    ruleset.set_node(&["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]);
    let change = ruleset.settle();
    let check = |text: String, steps: Steps| {
        by_text.run(|| linux::nft::apply(&text)).unwrap().unwrap();
        by_steps.run(|| steps.apply()).unwrap().unwrap();
        assert_eq!(listed(&by_steps), listed(&by_text), "{text}");
    };
    check(ruleset.text(), change.steps());
    let ipv6 = json!({"clusterIP": "fd43::7", "clusterIPs": ["fd43::7"], "externalIPs": ["2001:db8::7"]});
    let kinds = [
        json!({"type": "NodePort", "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"}),
        json!({"type": "LoadBalancer", "externalIPs": ["203.0.113.1"], "internalTrafficPolicy": "Local"}),
        ipv6,
    ];
    let guard = |range: &str| {
        let frontend = Frontend::Address {
            address: "203.0.113.9".parse().unwrap(),
            protocol: linux::nft::Protocol::Tcp,
            port: 80,
        };
        let range = Range::parse(range).unwrap();
        BTreeMap::from([
            (Key::Guarded(frontend), Value::Present),
            (Key::Allowed(frontend, range), Value::Present),
            (Key::FromOutside(frontend), Value::Untouched),
            (Key::Refused(frontend), Value::Discard),
        ])
    };
    for kind in &kinds {
        for endpoints in [&["10.42.0.5", "10.42.0.6"][..], &["10.42.0.6"], &[]] {
            ruleset.set("shop/web", wanted(kind.clone(), endpoints));
            ruleset.set("shop/guard", guard(if endpoints.len() == 1 { "10.0.0.0/9" } else { "10.1.2.3/32" }));
            let change = ruleset.settle();
            check(change.text(), change.steps());
            check(ruleset.text(), Steps::default());
        }
    }
    ruleset.set("shop/web", BTreeMap::new());
    ruleset.set("shop/guard", BTreeMap::new());
    let change = ruleset.settle();
    check(change.text(), change.steps());
}

#[test]
fn node_ports_are_where_they_are_wanted() {
    let texts = |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
    let destination = |text: &str| {
        let node_ports = NodePorts::parse(&texts(text)).unwrap();
        [false, true].map(|ipv6| node_ports.destination(ipv6))
    };
    let all = ["fib daddr type local ip daddr != 127.0.0.0/8", "fib daddr type local ip6 daddr != ::1/128"];
    let primary = ["ip daddr @node-port-addresses", "ip6 daddr @node-port-addresses"];
    assert_eq!(destination(""), primary);
    assert_eq!(destination("primary"), primary);
    assert_eq!(destination("0.0.0.0/0"), all);
    assert_eq!(
        destination("192.0.2.7/24 192.0.2.9/32 10.0.0.0/8"),
        ["fib daddr type local ip daddr { 10.0.0.0/8, 192.0.2.0/24 }", all[1]]
    );
    assert!(NodePorts::parse(&texts("primary 10.0.0.0/8")).is_err());
    assert!(NodePorts::parse(&texts("eth0")).is_err());
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let ranges = NodePorts::parse(&texts("192.0.2.0/24")).unwrap();
    for (address, is_there) in [("192.0.2.1", true), ("198.51.100.1", false), ("2001:db8::1", true)] {
        assert_eq!(ranges.are_at(ip(address), &[]), is_there, "{address}");
    }
    assert!(NodePorts::Primary.are_at(ip("192.0.2.1"), &[ip("192.0.2.1")]));
    assert!(!NodePorts::Primary.are_at(ip("192.0.2.2"), &[ip("192.0.2.1")]));
}

#[test]
fn ranges_of_sources_do_not_overlap_and_concern_their_family() {
    let balanced = |ranges: serde_json::Value, ingress: &str, node: &str| -> Vec<String> {
        let service: Service = api::Object::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"],
                "ports": [{"port": 80}], "loadBalancerSourceRanges": ranges},
            "status": {"loadBalancer": {"ingress": [{"ip": ingress}]}},
        }))
        .unwrap();
        let here = Here { addresses: vec![node.parse().unwrap()], ..Here::default() };
        let wanted = crate::service::wanted(&service, &[], &here).elements;
        let guards = wanted.keys().filter(|key| matches!(key, Key::Guarded(_) | Key::Allowed(..)));
        guards.map(|key| format!("{} {key}", key.set())).collect()
    };
    assert!(balanced(json!(["fd00::/8"]), "203.0.113.9", "192.0.2.1").is_empty());
    assert_eq!(
        balanced(json!([" 10.9.0.0/16 ", "10.0.0.1/8", "junk"]), "203.0.113.9", "192.0.2.1"),
        ["guarded 203.0.113.9 . tcp . 80", "allowed 203.0.113.9 . tcp . 80 . 10.0.0.0/8"]
    );
    // The node may come, and has the balancer's address.
    assert_eq!(
        balanced(json!(["192.0.2.0/24"]), "203.0.113.9", "192.0.2.1")[1..],
        ["allowed 203.0.113.9 . tcp . 80 . 192.0.2.0/24", "allowed 203.0.113.9 . tcp . 80 . 203.0.113.9/32"]
    );
    assert_eq!(balanced(json!(["192.0.2.0/24"]), "192.0.2.9", "192.0.2.1").len(), 2);
}
