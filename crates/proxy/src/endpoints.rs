//! Which endpoints a Service uses from this node: readiness, traffic policies, topology hints.

use std::net::{IpAddr, SocketAddr};

use api::core::v1::ServicePort;

use crate::slice::{Slice, SlicePort};

/// Where the proxy runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    pub node: String,
    /// The node's `topology.kubernetes.io/zone` label.
    pub zone: Option<String>,
    /// The node's own address of each family that it has.
    pub addresses: Vec<IpAddr>,
}

/// One endpoint of one port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub is_local: bool,
    pub is_ready: bool,
    pub is_serving: bool,
    pub is_terminating: bool,
    pub zone_hints: Vec<String>,
    pub node_hints: Vec<String>,
}

impl Endpoint {
    fn is_fallback(&self) -> bool {
        self.is_serving && self.is_terminating
    }
}

/// What a port's traffic goes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Usable {
    /// For the Cluster policy.
    pub cluster: Vec<SocketAddr>,
    /// For the Local policy.
    pub local: Vec<SocketAddr>,
    /// Whether any endpoint of the cluster could serve, here or elsewhere.
    pub has_any: bool,
}

/// The endpoints of one port of a Service in one address family, in the order of their addresses, each once.
pub fn of_port<'a>(
    slices: impl IntoIterator<Item = &'a Slice>,
    port: &ServicePort,
    ipv6: bool,
    here: &Here,
) -> Vec<Endpoint> {
    let (name, protocol) =
        (port.name.as_deref().unwrap_or_default(), port.protocol.as_deref().unwrap_or("TCP"));
    let mut endpoints = Vec::new();
    for slice in slices.into_iter().filter(|slice| slice.is_ipv6 == ipv6) {
        let named = slice.ports.iter().find(|port| &*port.name == name && &*port.protocol == protocol);
        let Some(SlicePort { number, .. }) = named else { continue };
        endpoints.extend(slice.members.iter().map(|member| Endpoint {
            address: SocketAddr::new(member.address, *number),
            is_local: member.node.as_deref() == Some(&here.node),
            is_ready: member.is_ready,
            is_serving: member.is_serving,
            is_terminating: member.is_terminating,
            zone_hints: member.zone_hints.clone(),
            node_hints: member.node_hints.clone(),
        }));
    }
    // While a pod moves between slices it is in both for a moment; the ready one counts.
    endpoints.sort_by_key(|endpoint| (endpoint.address, !endpoint.is_ready));
    endpoints.dedup_by_key(|endpoint| endpoint.address);
    endpoints
}

/// Chooses among the endpoints of a port.
// Upstream: pkg/proxy/topology.go CategorizeEndpoints
pub fn usable(endpoints: &[Endpoint], here: &Here) -> Usable {
    let addresses = |is_used: &dyn Fn(&Endpoint) -> bool| -> Vec<SocketAddr> {
        endpoints.iter().filter(|endpoint| is_used(endpoint)).map(|endpoint| endpoint.address).collect()
    };
    let or_else = |first: Vec<SocketAddr>, is_used: &dyn Fn(&Endpoint) -> bool| {
        if first.is_empty() { addresses(is_used) } else { first }
    };
    let is_near = nearness(endpoints, here);
    let cluster = addresses(&|endpoint| endpoint.is_ready && is_near(endpoint));
    let local = addresses(&|endpoint| endpoint.is_ready && endpoint.is_local);
    Usable {
        cluster: or_else(cluster, &Endpoint::is_fallback),
        local: or_else(local, &|endpoint| endpoint.is_fallback() && endpoint.is_local),
        has_any: endpoints.iter().any(|endpoint| endpoint.is_ready || endpoint.is_fallback()),
    }
}

/// Hints count only if every ready endpoint has one and at least one leads here.
// Upstream: pkg/proxy/topology.go topologyModeFromHints
fn nearness<'a>(endpoints: &[Endpoint], here: &'a Here) -> Box<dyn Fn(&Endpoint) -> bool + 'a> {
    let for_node = |endpoint: &Endpoint| endpoint.node_hints.contains(&here.node);
    let for_zone =
        |endpoint: &Endpoint| here.zone.as_ref().is_some_and(|zone| endpoint.zone_hints.contains(zone));
    let ready = || endpoints.iter().filter(|endpoint| endpoint.is_ready);
    if ready().all(|endpoint| !endpoint.node_hints.is_empty()) && ready().any(for_node) {
        return Box::new(for_node);
    }
    if ready().all(|endpoint| !endpoint.zone_hints.is_empty()) && ready().any(for_zone) {
        return Box::new(for_zone);
    }
    Box::new(|_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `1` is ready, `1t` serves while it terminates, `1x` does not serve; `@` is on this node; `/z` and `%n`
    /// are zone and node hints.
    fn endpoints(text: &str) -> Vec<Endpoint> {
        text.split_whitespace()
            .map(|word| {
                let number = word[..1].parse().unwrap();
                let hint = |mark: char| word.split_once(mark).map(|(_, rest)| rest[..1].to_owned());
                Endpoint {
                    address: SocketAddr::new(IpAddr::from([10, 0, 0, number]), 80),
                    is_local: word.contains('@'),
                    is_ready: !word.contains(['t', 'x']),
                    is_serving: !word.contains('x'),
                    is_terminating: word.contains(['t', 'x']),
                    zone_hints: hint('/').into_iter().collect(),
                    node_hints: hint('%').into_iter().collect(),
                }
            })
            .collect()
    }

    #[test]
    fn choices() {
        let here = Here { node: "n".to_owned(), zone: Some("z".to_owned()), ..Here::default() };
        let cases = [
            ("", "", "", false),
            ("1 2@ 3", "123", "2", true),
            ("1 2t@ 3x", "1", "2", true),
            ("1t 2t@ 3x@", "12", "2", true),
            ("1x 2x@", "", "", false),
            ("1/z 2/y@", "1", "2", true),
            ("1/y 2/y@", "12", "2", true),
            ("1/z 2@", "12", "2", true),
            ("1/z 2/yt 3t", "1", "", true),
            ("1%n/y 2%m/z", "1", "", true),
            ("1%m/y 2%m/z", "2", "", true),
        ];
        for (text, cluster, local, has_any) in cases {
            let found = usable(&endpoints(text), &here);
            let short = |addresses: &[SocketAddr]| -> String {
                addresses
                    .iter()
                    .map(|a| a.ip().to_string().trim_start_matches("10.0.0.").to_owned())
                    .collect()
            };
            let expected = (cluster.to_owned(), local.to_owned(), has_any);
            assert_eq!((short(&found.cluster), short(&found.local), found.has_any), expected, "{text}");
        }
    }

    #[test]
    fn a_port_is_found_by_name_and_protocol_in_every_slice() {
        let slice = |text: &str| -> Slice {
            let slice: api::discovery::v1::EndpointSlice = api::Object::from_slice(text.as_bytes()).unwrap();
            slice.into()
        };
        let slices = [
            slice(
                r#"{"addressType":"IPv4","ports":[{"name":"web","port":8080,"protocol":"TCP"},{"name":"dns","port":53,
                "protocol":"UDP"}],"endpoints":[{"addresses":["10.0.0.2"],"nodeName":"n"},{"addresses":["10.0.0.1"],
                "conditions":{"ready":false,"serving":true,"terminating":true}}]}"#,
            ),
            slice(
                r#"{"addressType":"IPv4","ports":[{"name":"web","port":9090}],"endpoints":[{"addresses":["10.0.0.3"]},
                {"addresses":["junk"]},{"addresses":[]}]}"#,
            ),
            slice(
                r#"{"addressType":"IPv6","ports":[{"name":"web","port":1}],"endpoints":[{"addresses":["fd00::1"]}]}"#,
            ),
            slice(
                r#"{"addressType":"IPv4","ports":[{"name":"web"}],"endpoints":[{"addresses":["10.0.0.9"]}]}"#,
            ),
        ];
        let here = Here { node: "n".to_owned(), ..Here::default() };
        let port = ServicePort { name: Some("web".to_owned()), port: 80, ..Default::default() };
        let found = of_port(&slices, &port, false, &here);
        let addresses: Vec<_> = found.iter().map(|endpoint| endpoint.address.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:9090"]);
        assert!(found[1].is_local && found[1].is_ready && found[0].is_terminating);
        assert_eq!(of_port(&slices, &port, true, &here).len(), 1);
    }
}
