//! The nftables text of the plugin: table `trierarch-cni` in families `ip` and `ip6`.
//!
//! What always holds: the skeleton can be applied again at any time and leaves the elements alone; only
//! elements differ from node to node.

use std::fmt::Write;
use std::net::IpAddr;

use crate::Cidr;
use crate::config::PortMapping;

pub(crate) const TABLE: &str = "trierarch-cni";

pub(crate) fn family(ipv6: bool) -> &'static str {
    if ipv6 { "ip6" } else { "ip" }
}

/// The table without elements. Chains are emptied and written anew; sets and maps keep what they hold.
///
/// Host ports are translated shortly before Services, so that a host port wins over a node port, as it does
/// where a process listens. What comes in from outside for a loopback address is dropped before conntrack
/// sees it, because host ports on 127.0.0.1 need `route_localnet`, which would open the host's loopback.
pub(crate) fn skeleton(ipv6: bool) -> String {
    let (ip, address, loopback, multicast) = if ipv6 {
        ("ip6", "ipv6_addr", "::1/128", "ff00::/8")
    } else {
        ("ip", "ipv4_addr", "127.0.0.0/8", "224.0.0.0/4")
    };
    let on = format!("{ip} {TABLE}");
    let chains = [
        ("unspoof", "type filter hook prerouting priority -300;"),
        ("prerouting", "type nat hook prerouting priority -105;"),
        ("output", "type nat hook output priority -105;"),
        ("postrouting", "type nat hook postrouting priority 95;"),
        ("host-port", ""),
    ];
    let rules = [
        ("unspoof", format!("iifname != lo {ip} daddr {loopback} drop")),
        ("prerouting", "fib daddr type local jump host-port".to_owned()),
        ("output", "fib daddr type local jump host-port".to_owned()),
        (
            "host-port",
            format!("dnat {ip} to {ip} daddr . meta l4proto . th dport map @host-ports-of-address"),
        ),
        ("host-port", format!("dnat {ip} to meta l4proto . th dport map @host-ports")),
        ("postrouting", format!("{ip} saddr . {ip} daddr @host-port-hairpin ct status dnat masquerade")),
        ("postrouting", format!("{ip} saddr {loopback} oifname != lo ct status dnat masquerade")),
        (
            "postrouting",
            format!(
                "{ip} saddr @cluster {ip} daddr != @cluster {ip} daddr != {multicast} masquerade fully-random"
            ),
        ),
    ];
    let mut text = format!("add table {on}\n");
    let _ = writeln!(text, "add set {on} cluster {{ type {address}; flags interval; }}");
    let _ = writeln!(
        text,
        "add map {on} host-ports {{ type inet_proto . inet_service : {address} . inet_service; }}"
    );
    let _ = writeln!(
        text,
        "add map {on} host-ports-of-address {{ type {address} . inet_proto . inet_service : {address} . inet_service; }}"
    );
    let _ = writeln!(text, "add set {on} host-port-hairpin {{ type {address} . {address}; }}");
    for (chain, hook) in chains {
        let body = if hook.is_empty() { String::new() } else { format!(" {{ {hook} }}") };
        let _ = writeln!(text, "add chain {on} {chain}{body}\nflush chain {on} {chain}");
    }
    for (chain, rule) in rules {
        let _ = writeln!(text, "add rule {on} {chain} {rule}");
    }
    text
}

/// The ranges whose traffic to elsewhere is masqueraded: the cluster's, of one family.
pub(crate) fn cluster_ranges(ipv6: bool, ranges: &[Cidr]) -> String {
    let on = format!("{} {TABLE}", family(ipv6));
    let mut text = format!("flush set {on} cluster\n");
    for range in ranges.iter().filter(|range| range.is_ipv6() == ipv6) {
        let _ = writeln!(text, "add element {on} cluster {{ {range} }}");
    }
    text
}

/// The elements of one host port: what they are in, and what they are.
fn elements(mapping: &PortMapping, pod: IpAddr) -> [(&'static str, String); 2] {
    let target = format!("{pod} . {}", mapping.container_port);
    let port = format!("{} . {}", mapping.protocol.name(), mapping.host_port);
    let published = match mapping.host_address() {
        Some(host) => ("host-ports-of-address", format!("{host} . {port} : {target}")),
        None => ("host-ports", format!("{port} : {target}")),
    };
    [published, ("host-port-hairpin", format!("{pod} . {pod}"))]
}

/// Publishes the host ports of a pod. A port that leads elsewhere already makes the kernel refuse the batch.
pub(crate) fn publish(mappings: &[PortMapping], pod: IpAddr) -> String {
    let mut text = skeleton(pod.is_ipv6());
    let on = format!("{} {TABLE}", family(pod.is_ipv6()));
    for mapping in mappings {
        for (set, element) in elements(mapping, pod) {
            let _ = writeln!(text, "add element {on} {set} {{ {element} }}");
        }
    }
    text
}

/// Takes one host port of a pod back. It is added first, since deleting what is not there would be refused;
/// a port that by now leads to another pod refuses the addition, and so stays.
pub(crate) fn unpublish(mapping: &PortMapping, pod: IpAddr) -> String {
    let on = format!("{} {TABLE}", family(pod.is_ipv6()));
    let mut text = publish(std::slice::from_ref(mapping), pod);
    for (set, element) in elements(mapping, pod) {
        let _ = writeln!(text, "delete element {on} {set} {{ {element} }}");
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn text_of_a_published_port() {
        let json = r#"[{"hostPort":80,"containerPort":8080,"protocol":"tcp"},
            {"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"192.0.2.1"}]"#;
        let mappings: Vec<PortMapping> = serde_json::from_str(json).unwrap();
        let text = publish(&mappings, "10.42.0.5".parse().unwrap());
        let elements = text.strip_prefix(&skeleton(false)).unwrap();
        expect![[r#"
            add element ip trierarch-cni host-ports { tcp . 80 : 10.42.0.5 . 8080 }
            add element ip trierarch-cni host-port-hairpin { 10.42.0.5 . 10.42.0.5 }
            add element ip trierarch-cni host-ports-of-address { 192.0.2.1 . udp . 53 : 10.42.0.5 . 53 }
            add element ip trierarch-cni host-port-hairpin { 10.42.0.5 . 10.42.0.5 }
        "#]]
        .assert_eq(elements);
    }

    #[test]
    fn the_kernel_takes_both_families_again_and_again() {
        let namespace = linux::netns::NetNs::anonymous().expect("making a network namespace needs root");
        let ranges: Vec<Cidr> = vec!["10.42.0.0/16".parse().unwrap(), "fd42::/56".parse().unwrap()];
        namespace
            .run(|| {
                for ipv6 in [false, true, false, true] {
                    linux::nft::apply(&(skeleton(ipv6) + &cluster_ranges(ipv6, &ranges))).unwrap();
                    let listed = linux::nft::list_table_text(family(ipv6), TABLE).unwrap();
                    assert_eq!(listed.matches("masquerade").count(), 3, "{listed}");
                }
            })
            .unwrap();
    }
}
