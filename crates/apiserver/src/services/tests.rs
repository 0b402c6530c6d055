use super::*;
use crate::registry::cache::{Cache, State};
use crate::registry::object::Object;

fn cache(prefix: &str, objects: &[Value]) -> Cache {
    let object = |(at, value): (usize, &Value)| {
        let revision = at as u64 + 1;
        let key: Arc<str> = format!("{prefix}{}", value["metadata"]["name"].as_str().unwrap()).into();
        let entry =
            storage::Entry { key, value: value.to_string().into(), created: revision, modified: revision };
        Object::new(&entry)
    };
    let state = State::new(objects.iter().enumerate().map(object), objects.len() as u64);
    Cache::new(prefix.to_owned(), state)
}

/// A Service that has 10.0.0.1 and 30001, and an address that somebody took without one.
fn book(ranges: &[Value]) -> Book {
    let mut book = Book::default();
    book.follow_services(&cache(
        "/registry/services/specs/",
        &[json!({"metadata": {"name": "a"}, "spec": {
            "type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
            "ports": [{"port": 1, "nodePort": 30001}],
        }})],
    ));
    book.follow_addresses(&cache(
        "/registry/ipaddresses/",
        &[json!({"metadata": {"name": "10.0.0.3"}, "spec": {"parentRef": {"resource": "x", "name": "y"}}})],
    ));
    book.follow_ranges(&cache("/registry/servicecidrs/", ranges));
    book
}

fn allocate(book: Book, service: Value, old: Option<Value>) -> Result<Value, String> {
    allocate_of(&["10.0.0.0"], book, service, old)
}

/// From the first eight addresses of each range.
fn allocate_of(
    ranges: &[&str],
    mut book: Book,
    mut service: Value,
    old: Option<Value>,
) -> Result<Value, String> {
    let ranges: Vec<(IpAddr, u8)> = ranges
        .iter()
        .map(|first| (first.parse().unwrap(), if first.contains(':') { 125 } else { 29 }))
        .collect();
    let services = Services::new(&ranges, 30000..=30002);
    match services.allocate(&mut book, &mut service, old.as_ref(), [0; 16]) {
        Ok(_) => Ok(service["spec"].clone()),
        Err(Refusal::Invalid(errors)) => Err(errors[0].to_string()),
        Err(Refusal::Internal(why)) => Err(why),
    }
}

fn check(service: Value, expected: Result<Value, &str>) {
    let result = allocate(book(&[]), service.clone(), None);
    assert_eq!(result, expected.map_err(str::to_owned), "{service}");
}

#[test]
fn what_is_free_is_given_and_what_is_taken_is_refused() {
    check(
        json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}}),
        Ok(json!({
            "type": "NodePort", "clusterIP": "10.0.0.2", "clusterIPs": ["10.0.0.2"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "ports": [{"port": 80, "nodePort": 30000}],
        })),
    );
    let taken = |address: &str, why: &str| {
        format!("spec.clusterIPs: Invalid value: [\"{address}\"]: failed to allocate IP {address}: {why}")
    };
    for (address, why) in [
        ("10.0.0.1", "provided IP is already allocated"),
        ("10.0.0.3", "provided IP is already allocated"),
        ("10.0.1.1", "the provided network does not match the current range"),
    ] {
        check(
            json!({"spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address]}}),
            Err(&taken(address, why)),
        );
    }
    check(
        json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]}}),
        Err("spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated"),
    );
    check(
        json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 40000}]}}),
        Err(
            "spec.ports[0].nodePort: Invalid value: 40000: provided port is not in the valid range. The range of \
             valid ports is 30000-30002",
        ),
    );
    check(json!({"spec": {"type": "ExternalName"}}), Ok(json!({"type": "ExternalName"})));
}

#[test]
fn a_port_over_two_protocols_has_one_node_port() {
    let ports = json!([{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}, {"port": 54}]);
    let spec = allocate(book(&[]), json!({"spec": {"type": "NodePort", "ports": ports}}), None).unwrap();
    let given: Vec<u64> =
        spec["ports"].as_array().unwrap().iter().map(|p| p["nodePort"].as_u64().unwrap()).collect();
    assert_eq!(given, [30000, 30000, 30002]);
}

#[test]
fn families_are_filled_in_and_those_that_the_cluster_lacks_refused() {
    check(
        json!({"spec": {"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]}}),
        Ok(json!({
            "type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
        })),
    );
    check(
        json!({"spec": {"type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack"}}),
        Err(
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack \
             services",
        ),
    );
    check(
        json!({"spec": {"type": "ClusterIP", "ipFamilies": ["IPv6"]}}),
        Err("spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"),
    );
}

#[test]
fn a_cluster_of_both_families_gives_addresses_of_both() {
    let check = |ranges: [&str; 2], spec: Value, expected: Value| {
        let given = allocate_of(&ranges, book(&[]), json!({"spec": spec}), None).unwrap();
        let found = json!([given["clusterIPs"], given["ipFamilies"], given["ipFamilyPolicy"]]);
        assert_eq!(found, expected, "{spec}");
        assert_eq!(given["clusterIP"], given["clusterIPs"][0]);
    };
    let (four_first, six_first) = (["10.0.0.0", "fd00::"], ["fd00::", "10.0.0.0"]);
    check(four_first, json!({"type": "ClusterIP"}), json!([["10.0.0.2"], ["IPv4"], "SingleStack"]));
    check(six_first, json!({"type": "ClusterIP"}), json!([["fd00::1"], ["IPv6"], "SingleStack"]));
    for policy in ["PreferDualStack", "RequireDualStack"] {
        check(
            four_first,
            json!({"type": "ClusterIP", "ipFamilyPolicy": policy}),
            json!([["10.0.0.2", "fd00::1"], ["IPv4", "IPv6"], policy]),
        );
        check(
            four_first,
            json!({"type": "ClusterIP", "ipFamilyPolicy": policy, "ipFamilies": ["IPv6"]}),
            json!([["fd00::1", "10.0.0.2"], ["IPv6", "IPv4"], policy]),
        );
    }
    check(
        four_first,
        json!({"type": "ClusterIP", "clusterIP": "fd00::5", "clusterIPs": ["fd00::5"]}),
        json!([["fd00::5"], ["IPv6"], "SingleStack"]),
    );
    check(
        four_first,
        json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "selector": {"a": "b"}}),
        json!([["None"], ["IPv4"], "SingleStack"]),
    );
}

#[test]
fn addresses_come_from_the_ranges_that_are_ready() {
    let range = |name: &str, cidr: &str, ready: &str| {
        json!({
            "metadata": {"name": name}, "spec": {"cidrs": [cidr]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        })
    };
    let service = json!({"metadata": {"name": "s"}, "spec": {"type": "ClusterIP"}});
    let given = |ranges: &[Value]| {
        allocate(book(ranges), service.clone(), None)
            .map(|spec| spec["clusterIP"].as_str().unwrap().to_owned())
    };
    assert_eq!(given(&[range("a", "10.9.0.0/24", "True")]), Ok("10.9.0.17".to_owned()));
    let ranges = [range("a", "10.9.0.0/24", "False"), range("b", "10.8.0.0/29", "True")];
    assert_eq!(given(&ranges), Ok("10.8.0.1".to_owned()));
    assert_eq!(
        given(&[range("a", "10.9.0.0/24", "False")]),
        Err("failed to allocate a serviceIP for Service \"s\": range is full".to_owned())
    );
}

#[test]
fn an_update_keeps_what_it_has() {
    let old = json!({"spec": {
        "type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack", "ports": [{"port": 1, "nodePort": 30001}],
    }});
    assert_eq!(allocate(book(&[]), old.clone(), Some(old.clone())), Ok(old["spec"].clone()));
}
