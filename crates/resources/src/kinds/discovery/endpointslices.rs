//! EndpointSlice: some of the addresses behind a Service.

use crate::prelude::*;
use crate::validate::{PROTOCOLS, dns_label, each, endpoint_ip, immutable, ip, one_of, required_one_of};

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_HINTS: usize = 8;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
        .columns("Name,AddressType,Ports,Endpoints,Age", |o, now| {
            cells![get::name(o), text(o, "addressType"), ports(o), addresses(o), age(o, now)]
        })
        .strategy(Rules {
            default,
            validate,
            validate_update: |o, old| immutable(o, old, "addressType"),
            generation: true,
            ..Rules::PLAIN
        })
        .build()
}

const SHOWN: usize = 3;

fn ports(slice: &Value) -> String {
    let all = list(slice, "ports");
    let port = |p: &Value| match get::int(p, "port") {
        Some(number) => number.to_string(),
        None if has(p, "name") => text(p, "name").to_owned(),
        None => "*".to_owned(),
    };
    let shown: Vec<String> = all.iter().take(SHOWN).map(port).collect();
    print::with_more(&shown, all.len(), SHOWN)
}

fn addresses(slice: &Value) -> String {
    let all: Vec<&str> = list(slice, "endpoints").iter().flat_map(|e| get::texts(e, "addresses")).collect();
    let shown: Vec<String> = all.iter().take(SHOWN).map(|a| (*a).to_owned()).collect();
    print::with_more(&shown, all.len(), SHOWN)
}

fn default(slice: &mut Value) {
    for port in get::list_mut(slice, "ports") {
        get::default_absent(port, "name", "");
        get::default_absent(port, "protocol", "TCP");
    }
}

/// Upstream: pkg/apis/discovery/validation/validation.go ValidateEndpointSlice
fn validate(slice: &Value) -> Errors {
    let kind = text(slice, "addressType");
    let mut errors = required_one_of(kind, &path("addressType"), &["FQDN", "IPv4", "IPv6"]);
    errors.extend(validate_ports(slice));
    let endpoints = get::items(slice, "endpoints", &path("endpoints"));
    if endpoints.len() > MAX_ENDPOINTS {
        errors.push(Error::too_many(&path("endpoints"), endpoints.len(), MAX_ENDPOINTS));
        return errors;
    }
    for (endpoint, at) in endpoints {
        errors.extend(validate_endpoint(endpoint, kind, &at));
    }
    errors
}

fn validate_ports(slice: &Value) -> Errors {
    let mut errors = Errors::new();
    let ports = get::items(slice, "ports", &path("ports"));
    if ports.len() > MAX_PORTS {
        return vec![Error::too_many(&path("ports"), ports.len(), MAX_PORTS)];
    }
    let mut seen = Vec::new();
    for (port, at) in ports {
        let name = text(port, "name");
        if !name.is_empty() {
            errors.extend(dns_label(name, &at.child("name")));
        }
        if seen.contains(&name) {
            errors.push(Error::duplicate(&at.child("name"), name));
        }
        seen.push(name);
        errors.extend(one_of(text(port, "protocol"), &at.child("protocol"), PROTOCOLS));
        if has(port, "appProtocol") {
            let protocol = text(port, "appProtocol");
            errors.extend(each(names::qualified_name(protocol), &at.child("appProtocol"), protocol));
        }
    }
    errors
}

fn validate_endpoint(endpoint: &Value, kind: &str, at: &Path) -> Errors {
    let mut errors = Errors::new();
    let addresses = get::items(endpoint, "addresses", &at.child("addresses"));
    if addresses.is_empty() {
        errors.push(Error::required(&at.child("addresses"), "must contain at least 1 address"));
    } else if addresses.len() > MAX_ADDRESSES {
        errors.push(Error::too_many(&at.child("addresses"), addresses.len(), MAX_ADDRESSES));
    }
    for (address, at_address) in addresses {
        let address = address.as_str().unwrap_or_default();
        errors.extend(validate_address(address, kind, &at.child("addresses"), &at_address));
    }
    if has(endpoint, "nodeName") {
        let node = text(endpoint, "nodeName");
        errors.extend(each(names::dns1123_subdomain(node), &at.child("nodeName"), node));
    }
    if has(endpoint, "hostname") {
        errors.extend(dns_label(text(endpoint, "hostname"), &at.child("hostname")));
    }
    for field in ["forZones", "forNodes"] {
        let at = at.child("hints").child(field);
        let hints = get::items(endpoint, &format!("hints.{field}"), &at);
        if hints.len() > MAX_HINTS {
            errors.push(Error::too_many(&at, hints.len(), MAX_HINTS));
            continue;
        }
        let rule = if field == "forNodes" { names::dns1123_subdomain } else { names::label_value };
        let mut seen = Vec::new();
        for (hint, at) in hints {
            let (name, at) = (text(hint, "name"), at.child("name"));
            if seen.contains(&name) {
                errors.push(Error::duplicate(&at, name));
            } else {
                errors.extend(each(rule(name), &at, name));
            }
            seen.push(name);
        }
    }
    errors
}

fn validate_address(address: &str, kind: &str, at: &Path, at_address: &Path) -> Errors {
    match kind {
        "IPv4" | "IPv6" => {
            let bad = ip(address, at_address);
            if !bad.is_empty() {
                return bad;
            }
            let mut errors = Errors::new();
            if address.contains(':') != (kind == "IPv6") {
                let detail = format!("must be an {kind} address");
                errors.push(Error::invalid(at, address, detail));
            }
            errors.extend(endpoint_ip(address, at_address));
            errors
        }
        "FQDN" => {
            let name = address.strip_suffix('.').unwrap_or(address);
            let messages = names::dns1123_subdomain(name);
            if !messages.is_empty() {
                return vec![Error::invalid(at_address, name, messages.join(","))];
            }
            if !name.contains('.') {
                let detail = "should be a domain with at least two segments separated by dots";
                return vec![Error::invalid(at_address, name, detail)];
            }
            Errors::new()
        }
        _ => Errors::new(),
    }
}
