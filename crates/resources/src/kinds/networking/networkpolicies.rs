//! NetworkPolicy: which traffic reaches and leaves pods.

use crate::prelude::*;
use crate::validate::{one_of, selector};

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
        .short(&["netpol"])
        .columns("Name,Pod-Selector,Age", |o, now| {
            cells![get::name(o), print::selector(o, "spec.podSelector"), age(o, now)]
        })
        .strategy(Rules { default, validate, generation: true, ..Rules::PLAIN })
        .build()
}

/// Upstream: pkg/apis/networking/v1/defaults.go
fn default(policy: &mut Value) {
    if list(policy, "spec.policyTypes").is_empty() {
        let egress = !list(policy, "spec.egress").is_empty();
        let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        set(policy, "spec.policyTypes", types);
    }
    for direction in ["spec.ingress", "spec.egress"] {
        for rule in get::list_mut(policy, direction) {
            get::list_mut(rule, "ports").for_each(|port| get::default_absent(port, "protocol", "TCP"));
        }
    }
}

/// Upstream: pkg/apis/networking/validation/validation.go ValidateNetworkPolicySpec
fn validate(policy: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = path("spec");
    if let Some(value) = at(policy, "spec.podSelector") {
        errors.extend(selector(value, &spec.child("podSelector")));
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (rule, at) in get::items(policy, &format!("spec.{direction}"), &spec.child(direction)) {
            for (port, at) in get::items(rule, "ports", &at.child("ports")) {
                errors.extend(validate_port(port, &at));
            }
            for (peer, at) in get::items(rule, peers, &at.child(peers)) {
                errors.extend(validate_peer(peer, &at));
            }
        }
    }
    let types = get::items(policy, "spec.policyTypes", &spec.child("policyTypes"));
    if types.len() > 2 {
        let value = at(policy, "spec.policyTypes").cloned().unwrap_or_default();
        let detail = "may not specify more than two policyTypes";
        errors.push(Error::invalid(&spec.child("policyTypes"), value, detail));
        return errors;
    }
    for (value, at) in types {
        errors.extend(one_of(value.as_str().unwrap_or_default(), &at, &["Ingress", "Egress"]));
    }
    errors
}

fn validate_port(port: &Value, at: &Path) -> Errors {
    let protocol = text(port, "protocol");
    let mut errors = one_of(protocol, &at.child("protocol"), &["TCP", "UDP", "SCTP"]);
    match port.get("port") {
        Some(Value::Number(n)) => {
            let messages = names::port_number(n.as_i64().unwrap_or(0));
            errors.extend(messages.into_iter().map(|m| Error::invalid(&at.child("port"), n.as_i64(), m)));
        }
        Some(Value::String(name)) => {
            let messages = names::port_name(name);
            errors.extend(messages.into_iter().map(|m| Error::invalid(&at.child("port"), name.as_str(), m)));
        }
        _ => {}
    }
    if let Some(end) = get::int(port, "endPort") {
        let start = port.get("port").filter(|value| !value.is_null());
        match start.map(Value::as_i64) {
            None => errors.push(Error::required(
                &at.child("endPort"),
                "may not be specified when `port` is not specified",
            )),
            Some(None) => {
                let detail = "may not be specified when `port` is non-numeric";
                errors.push(Error::invalid(&at.child("endPort"), end, detail));
            }
            Some(Some(start)) if end < start => {
                let detail = "must be greater than or equal to `port`";
                errors.push(Error::invalid(&at.child("endPort"), end, detail));
            }
            Some(Some(_)) => {
                let messages = names::port_number(end);
                errors.extend(messages.into_iter().map(|m| Error::invalid(&at.child("endPort"), end, m)));
            }
        }
    }
    errors
}

fn validate_peer(peer: &Value, at: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut peers = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if let Some(value) = peer.get(field).filter(|v| !v.is_null()) {
            peers += 1;
            errors.extend(selector(value, &at.child(field)));
        }
    }
    if let Some(block) = peer.get("ipBlock").filter(|v| !v.is_null()) {
        let at_block = at.child("ipBlock");
        let cidr = text(block, "cidr");
        if cidr.is_empty() {
            errors.push(Error::required(&at_block.child("cidr"), ""));
        } else {
            errors.extend(crate::validate::cidr(cidr, &at_block.child("cidr")));
        }
        errors.extend(validate_exceptions(block, &at_block));
        if peers > 0 {
            errors.push(Error::forbidden(at, "may not specify both ipBlock and another peer"));
        }
        peers += 1;
    }
    if peers == 0 {
        errors.push(Error::required(at, "must specify a peer"));
    }
    errors
}

/// What is left out of a block lies within it, and is not all of it.
///
/// Upstream: pkg/apis/networking/validation/validation.go ValidateIPBlock
fn validate_exceptions(block: &Value, path: &Path) -> Errors {
    let parse = |cidr: &str| {
        let (address, bits) = cidr.split_once('/')?;
        Some((address.parse::<std::net::IpAddr>().ok()?, bits.parse::<u32>().ok()?))
    };
    let cidr = text(block, "cidr");
    let Some((address, bits)) = parse(cidr) else { return Errors::new() };
    let mut errors = Errors::new();
    for (except, at) in get::items(block, "except", &path.child("except")) {
        let except = except.as_str().unwrap_or_default();
        errors.extend(crate::validate::cidr(except, &at));
        let Some((inner, inner_bits)) = parse(except) else { continue };
        if !(starts_with(inner, address, bits) && inner_bits > bits) {
            let detail = format!("must be a strict subset of `cidr` ({cidr:?})");
            errors.push(Error::invalid(&at, except, detail));
        }
    }
    errors
}

/// Whether two addresses are of one family and share their first bits.
fn starts_with(a: std::net::IpAddr, b: std::net::IpAddr, bits: u32) -> bool {
    use std::net::IpAddr::{V4, V6};
    match (a, b) {
        (V4(a), V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros() >= bits.min(32),
        (V6(a), V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros() >= bits.min(128),
        _ => false,
    }
}
