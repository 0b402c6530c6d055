//! Endpoints: the addresses behind a Service. EndpointSlices have taken their place; some clients still read them.

use crate::prelude::*;
use crate::validate::{PROTOCOLS, dns_label, each, endpoint_ip, ip, port_number, required_one_of};

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("v1", "Endpoints", "endpoints")
        .short(&["ep"])
        .deprecated("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        .prefix("services/endpoints")
        .columns("Name,Endpoints,Age", |o, now| cells![get::name(o), shown(o), age(o, now)])
        .strategy(Rules { default, validate, create_on_update: true, ..Rules::PLAIN })
        .build()
}

/// The first few addresses with their ports.
fn shown(endpoints: &Value) -> String {
    const SHOWN: usize = 3;
    let subsets = list(endpoints, "subsets");
    if subsets.is_empty() {
        return "<none>".to_owned();
    }
    let mut all = Vec::new();
    for subset in subsets {
        let addresses = list(subset, "addresses").iter().map(|a| text(a, "ip"));
        let ports = list(subset, "ports");
        if ports.is_empty() {
            all.extend(addresses.map(str::to_owned));
        } else {
            for port in ports {
                all.extend(addresses.clone().map(|a| host_port(a, number(port, "port"))));
            }
        }
    }
    let joined = all[..all.len().min(SHOWN)].join(",");
    if all.len() > SHOWN { format!("{joined} + {} more...", all.len() - SHOWN) } else { joined }
}

fn host_port(address: &str, port: i64) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn default(endpoints: &mut Value) {
    for subset in get::list_mut(endpoints, "subsets") {
        get::list_mut(subset, "ports").for_each(|port| get::default(port, "protocol", "TCP"));
    }
}

/// Upstream: pkg/apis/core/validation/validation.go validateEndpointSubsets
fn validate(endpoints: &Value) -> Errors {
    let mut errors = Errors::new();
    for (subset, at) in get::items(endpoints, "subsets", &path("subsets")) {
        if list(subset, "addresses").is_empty() && list(subset, "notReadyAddresses").is_empty() {
            errors.push(Error::required(&at, "must specify `addresses` or `notReadyAddresses`"));
        }
        for field in ["addresses", "notReadyAddresses"] {
            for (address, at) in get::items(subset, field, &at.child(field)) {
                errors.extend(validate_address(address, &at));
            }
        }
        let ports = get::items(subset, "ports", &at.child("ports"));
        let several = ports.len() > 1;
        for (port, at) in ports {
            errors.extend(validate_port(port, several, &at));
        }
    }
    errors
}

fn validate_address(address: &Value, at: &Path) -> Errors {
    let value = text(address, "ip");
    let mut errors = ip(value, &at.child("ip"));
    if !text(address, "hostname").is_empty() {
        errors.extend(dns_label(text(address, "hostname"), &at.child("hostname")));
    }
    if has(address, "nodeName") {
        let node = text(address, "nodeName");
        errors.extend(each(names::dns1123_subdomain(node), &at.child("nodeName"), node));
    }
    errors.extend(endpoint_ip(value, &at.child("ip")));
    errors
}

fn validate_port(port: &Value, require_name: bool, at: &Path) -> Errors {
    let mut errors = Errors::new();
    let name = text(port, "name");
    if require_name && name.is_empty() {
        errors.push(Error::required(&at.child("name"), ""));
    } else if !name.is_empty() {
        errors.extend(dns_label(name, &at.child("name")));
    }
    errors.extend(port_number(number(port, "port"), &at.child("port")));
    errors.extend(required_one_of(text(port, "protocol"), &at.child("protocol"), PROTOCOLS));
    if has(port, "appProtocol") {
        let protocol = text(port, "appProtocol");
        errors.extend(each(names::qualified_name(protocol), &at.child("appProtocol"), protocol));
    }
    errors
}
