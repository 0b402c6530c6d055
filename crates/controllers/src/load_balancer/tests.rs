use serde_json::{Value, json};

use super::*;

fn node(name: &str, ips: &[&str], ready: bool) -> Arc<Node> {
    let addresses: Vec<Value> = ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    let node = json!({
        "metadata": {"name": name},
        "status": {
            "addresses": addresses,
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        },
    });
    Arc::new(Node::from_value(node).unwrap())
}

fn changed<T: Object + serde::Serialize>(object: &Arc<T>, change: Value) -> Arc<T> {
    let mut value = serde_json::to_value(&**object).unwrap();
    fn merge(into: &mut Value, from: &Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                from.iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
            }
            (into, from) => *into = from.clone(),
        }
    }
    merge(&mut value, &change);
    Arc::new(T::from_value(value).unwrap())
}

/// A Service on these ports, made in the order of the numbers.
fn service(name: &str, made: u8, ports: &[u16]) -> Arc<Service> {
    let ports: Vec<Value> = ports.iter().map(|port| json!({"port": port, "protocol": "TCP"})).collect();
    let service = json!({
        "metadata": {
            "name": name, "namespace": "shop", "creationTimestamp": format!("2026-01-01T00:00:{made:02}Z"),
        },
        "spec": {"type": "LoadBalancer", "ports": ports, "ipFamilies": ["IPv4"]},
    });
    Arc::new(Service::from_value(service).unwrap())
}

/// Endpoints of a Service: node, address, and whether it is ready.
fn slice(service: &str, port: u16, endpoints: &[(&str, &str, bool)]) -> Arc<EndpointSlice> {
    let endpoint = |(node, address, ready): &(&str, &str, bool)| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": ready}});
    let slice = json!({
        "metadata": {"name": service, "namespace": "shop", "labels": {SERVICE_NAME: service}},
        "addressType": "IPv4", "ports": [{"port": port, "protocol": "TCP"}],
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    });
    Arc::new(EndpointSlice::from_value(slice).unwrap())
}

/// What each Service gets, as `web: 192.0.2.1 192.0.2.2 (taken 192.0.2.3)`.
fn check(services: &[Arc<Service>], nodes: &[Arc<Node>], slices: &[Arc<EndpointSlice>], expected: &[&str]) {
    let list = |addresses: &BTreeSet<IpAddr>| {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let found = decide(services, nodes, slices);
    let found: Vec<String> = found
        .iter()
        .map(|(key, share)| {
            let name = key.trim_start_matches("shop/");
            let taken = if share.taken.is_empty() {
                String::new()
            } else {
                format!(" (taken {})", list(&share.taken))
            };
            format!("{name}: {}{taken}", list(&share.addresses))
        })
        .collect();
    assert_eq!(found, expected);
}

fn two_nodes() -> [Arc<Node>; 2] {
    [node("a", &["192.0.2.1", "2001:db8::1"], true), node("b", &["192.0.2.2"], true)]
}

#[test]
fn a_service_gets_the_addresses_of_the_nodes_that_may_carry_it() {
    let web = service("web", 1, &[80]);
    let both = &["web: 192.0.2.1 192.0.2.2"];
    check(std::slice::from_ref(&web), &two_nodes(), &[], both);
    let [a, b] = two_nodes();
    for unfit in [
        node("b", &["192.0.2.2"], false),
        changed(&b, json!({"metadata": {"labels": {EXCLUDED: ""}}})),
        changed(&b, json!({"spec": {"taints": [{"key": TO_BE_DELETED, "effect": "NoSchedule"}]}})),
    ] {
        check(std::slice::from_ref(&web), &[a.clone(), unfit], &[], &["web: 192.0.2.1"]);
    }
    let outer = json!({"status": {"addresses": [
        {"type": "InternalIP", "address": "192.0.2.2"}, {"type": "ExternalIP", "address": "203.0.113.2"},
    ]}});
    let outside = [a, changed(&b, outer)];
    check(std::slice::from_ref(&web), &outside, &[], &["web: 192.0.2.1 203.0.113.2"]);
    let dual = changed(&web, json!({"spec": {"ipFamilies": ["IPv6", "IPv4"]}}));
    check(&[dual], &two_nodes(), &[], &["web: 192.0.2.1 192.0.2.2 2001:db8::1"]);
}

#[test]
fn an_address_that_is_asked_for_is_the_one() {
    let asks = |address: &str, families: Value| {
        let spec = json!({"spec": {"loadBalancerIP": address, "ipFamilies": families}});
        [changed(&service("web", 1, &[80]), spec)]
    };
    let [a, b] = two_nodes();
    let outer = json!({"status": {"addresses": [
        {"type": "InternalIP", "address": "192.0.2.2"}, {"type": "ExternalIP", "address": "203.0.113.2"},
    ]}});
    let nodes = [a, changed(&b, outer)];
    for (address, families, expected) in [
        ("192.0.2.1", json!(["IPv4"]), "web: 192.0.2.1"),
        ("203.0.113.2", json!(["IPv4"]), "web: 203.0.113.2"),
        ("192.0.2.2", json!(["IPv4"]), "web: 192.0.2.2"),
        ("2001:db8::1", json!(["IPv4", "IPv6"]), "web: 192.0.2.1 203.0.113.2 2001:db8::1"),
        ("2001:db8::1", json!(["IPv4"]), "web: 192.0.2.1 203.0.113.2"),
        ("198.51.100.1", json!(["IPv4"]), "web: 192.0.2.1 203.0.113.2"),
        ("junk", json!(["IPv4"]), "web: 192.0.2.1 203.0.113.2"),
    ] {
        check(&asks(address, families), &nodes, &[], &[expected]);
    }
    // Who asks for what a node has, but cannot carry just now, gets nothing else meanwhile.
    let unfit = [node("a", &["192.0.2.1"], false), node("b", &["192.0.2.2"], true)];
    check(&asks("192.0.2.1", json!(["IPv4"])), &unfit, &[], &["web: "]);
    let older = service("older", 0, &[80]);
    let [web] = asks("192.0.2.1", json!(["IPv4"]));
    check(&[older, web], &two_nodes(), &[], &["older: 192.0.2.1 192.0.2.2", "web:  (taken 192.0.2.1)"]);
}

#[test]
fn only_services_without_a_class_are_ours() {
    let web = service("web", 1, &[80]);
    check(
        &[changed(&web, json!({"spec": {"loadBalancerClass": "example.com/other"}}))],
        &two_nodes(),
        &[],
        &[],
    );
    check(&[changed(&web, json!({"spec": {"type": "NodePort"}}))], &two_nodes(), &[], &[]);
    check(
        &[changed(&web, json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}))],
        &two_nodes(),
        &[],
        &[],
    );
}

#[test]
fn policy_local_means_nodes_with_ready_endpoints() {
    let web = changed(&service("web", 1, &[80]), json!({"spec": {"externalTrafficPolicy": "Local"}}));
    let check = |slices: &[Arc<EndpointSlice>], expected: &str| {
        check(std::slice::from_ref(&web), &two_nodes(), slices, &[expected]);
    };
    check(&[], "web: ");
    check(&[slice("web", 8080, &[("a", "10.42.0.5", false), ("b", "10.42.1.5", true)])], "web: 192.0.2.2");
    check(&[slice("other", 8080, &[("a", "10.42.0.5", true)])], "web: ");
}

#[test]
fn a_port_belongs_to_who_had_it_first() {
    let (old, new) = (service("old", 1, &[80]), service("new", 2, &[80, 81]));
    let taken = "new:  (taken 192.0.2.1 192.0.2.2)";
    check(&[new.clone(), old.clone()], &two_nodes(), &[], &[taken, "old: 192.0.2.1 192.0.2.2"]);
    // What it has it keeps, though the other is older.
    let has = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}}});
    check(
        &[changed(&new, has), old.clone()],
        &two_nodes(),
        &[],
        &["new: 192.0.2.1 (taken 192.0.2.2)", "old: 192.0.2.2 (taken 192.0.2.1)"],
    );
    let udp = changed(&new, json!({"spec": {"ports": [{"port": 80, "protocol": "UDP"}]}}));
    check(&[udp, old], &two_nodes(), &[], &["new: 192.0.2.1 192.0.2.2", "old: 192.0.2.1 192.0.2.2"]);
}

#[test]
fn what_listens_on_a_node_is_never_taken() {
    for port in [10250, PROXY_HEALTH_PORT] {
        check(&[service("web", 1, &[port])], &two_nodes(), &[], &["web:  (taken 192.0.2.1 192.0.2.2)"]);
    }
    // The API server of node a is an endpoint of a Service; so is what a Service leads to on its own port.
    let api = slice("kubernetes", 6443, &[("a", "192.0.2.1", true)]);
    let web = service("web", 1, &[6443]);
    check(std::slice::from_ref(&web), &two_nodes(), &[api], &["web: 192.0.2.2 (taken 192.0.2.1)"]);
    let own = slice("web", 6443, &[("a", "192.0.2.1", true)]);
    check(&[web], &two_nodes(), &[own], &["web: 192.0.2.1 192.0.2.2"]);
}
