//! What a Service must satisfy.
//!
//! Upstream: pkg/apis/core/validation/validation.go validateService

use crate::prelude::*;
use crate::validate::{
    IMMUTABLE, PROTOCOLS, cidr, dns_label, each, endpoint_ip, ip, labels, one_of, port_number,
    port_number_or_name, required_one_of,
};

fn is_headless(service: &Value) -> bool {
    list(service, "spec.clusterIPs").first().is_some_and(|ip| ip == "None")
}

pub fn validate(service: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = path("spec");
    let kind = text(service, "spec.type");
    if list(service, "spec.ports").is_empty() && !is_headless(service) && kind != "ExternalName" {
        errors.push(Error::required(&spec.child("ports"), ""));
    }
    errors.extend(by_type(service, &spec));
    errors.extend(ports(service, &spec.child("ports")));
    errors.extend(labels(service, "spec.selector", &spec.child("selector")));
    errors.extend(affinity(service, &spec));
    errors.extend(addresses(service));
    for (value, at) in get::items(service, "spec.externalIPs", &spec.child("externalIPs")) {
        let value = value.as_str().unwrap_or_default();
        let bad = ip(value, &at);
        errors.extend(if bad.is_empty() { endpoint_ip(value, &at) } else { bad });
    }
    const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    errors.extend(required_one_of(kind, &spec.child("type"), TYPES));
    errors.extend(unique_ports(service, &spec.child("ports")));
    errors.extend(load_balancer(service, &spec));
    errors.extend(traffic(service, &spec));
    errors
}

fn by_type(service: &Value, spec: &Path) -> Errors {
    let mut errors = Errors::new();
    let kind = text(service, "spec.type");
    if matches!(kind, "LoadBalancer" | "NodePort") && is_headless(service) {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.push(Error::invalid(&spec.child("clusterIPs").index(0), "None", detail));
    }
    if kind != "ExternalName" {
        return errors;
    }
    for field in ["clusterIPs", "ipFamilies"] {
        if !list(service, &format!("spec.{field}")).is_empty() {
            errors.push(Error::forbidden(&spec.child(field), "may not be set for ExternalName services"));
        }
    }
    if has(service, "spec.ipFamilyPolicy") {
        let detail = "may not be set for ExternalName services";
        errors.push(Error::forbidden(&spec.child("ipFamilyPolicy"), detail));
    }
    let at = spec.child("externalName");
    match text(service, "spec.externalName").trim_end_matches('.') {
        "" => errors.push(Error::required(&at, "")),
        name => errors.extend(each(names::dns1123_subdomain(name), &at, name)),
    }
    errors
}

fn ports(service: &Value, at: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen = Vec::new();
    let ports = get::items(service, "spec.ports", at);
    let several = ports.len() > 1;
    for (port, at) in ports {
        let name = text(port, "name");
        if several && name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
        } else if !name.is_empty() {
            errors.extend(dns_label(name, &at.child("name")));
            if seen.contains(&name) {
                errors.push(Error::duplicate(&at.child("name"), name));
            }
            seen.push(name);
        }
        errors.extend(port_number(number(port, "port"), &at.child("port")));
        errors.extend(required_one_of(text(port, "protocol"), &at.child("protocol"), PROTOCOLS));
        errors.extend(port_number_or_name(port.get("targetPort"), &at.child("targetPort")));
        if has(port, "appProtocol") {
            let protocol = text(port, "appProtocol");
            errors.extend(each(names::qualified_name(protocol), &at.child("appProtocol"), protocol));
        }
    }
    errors
}

fn unique_ports(service: &Value, at: &Path) -> Errors {
    let mut errors = Errors::new();
    let ports = get::items(service, "spec.ports", at);
    if text(service, "spec.type") == "ClusterIP" {
        for (port, at) in &ports {
            if number(port, "nodePort") != 0 {
                let detail = "may not be used when `type` is 'ClusterIP'";
                errors.push(Error::forbidden(&at.child("nodePort"), detail));
            }
        }
    }
    let key = |port: &Value, field: &str| (text(port, "protocol").to_owned(), number(port, field));
    for (index, (port, at)) in ports.iter().enumerate() {
        let earlier = |field: &str| ports[..index].iter().any(|(p, _)| key(p, field) == key(port, field));
        if number(port, "nodePort") != 0 && earlier("nodePort") {
            errors.push(Error::duplicate(&at.child("nodePort"), number(port, "nodePort")));
        }
    }
    for (index, (port, at)) in ports.iter().enumerate() {
        if ports[..index].iter().any(|(p, _)| key(p, "port") == key(port, "port")) {
            let value =
                json!({"protocol": text(port, "protocol"), "port": number(port, "port"), "targetPort": 0});
            errors.push(Error::duplicate(at, value));
        }
    }
    errors
}

fn affinity(service: &Value, spec: &Path) -> Errors {
    /// A day.
    const LONGEST_SECONDS: i64 = 86400;
    let affinity = text(service, "spec.sessionAffinity");
    let mut errors = required_one_of(affinity, &spec.child("sessionAffinity"), &["ClientIP", "None"]);
    let at = spec.child("sessionAffinityConfig");
    if affinity == "ClientIP" {
        let at = at.child("clientIP").child("timeoutSeconds");
        match get::int(service, "spec.sessionAffinityConfig.clientIP.timeoutSeconds") {
            None => errors.push(Error::required(&at, "when session affinity type is ClientIP")),
            Some(seconds) if seconds <= 0 || seconds > LONGEST_SECONDS => {
                let detail = format!("must be greater than 0 and less than {LONGEST_SECONDS}");
                errors.push(Error::invalid(&at, seconds, detail));
            }
            Some(_) => {}
        }
    } else if affinity == "None" && has(service, "spec.sessionAffinityConfig") {
        errors.push(Error::forbidden(&at, "must not be set when session affinity is None"));
    }
    errors
}

/// What a Service says of its addresses and their families.
///
/// Upstream: pkg/apis/core/validation/validation.go ValidateServiceClusterIPsRelatedFields
pub fn addresses(service: &Value) -> Errors {
    let mut errors = Errors::new();
    if text(service, "spec.type") == "ExternalName" {
        return errors;
    }
    let spec = path("spec");
    let at = spec.child("clusterIPs");
    let all = get::texts(service, "spec.clusterIPs");
    match (text(service, "spec.clusterIP"), all.first()) {
        ("", None) => {}
        ("", Some(_)) => {
            let detail = "must be empty when `clusterIP` is not specified";
            errors.push(Error::invalid(&at, json!(all), detail));
        }
        (_, None) => errors.push(Error::required(&at, "")),
        (single, Some(first)) if single != *first => {
            errors.push(Error::invalid(&at, json!(all), "first value must match `clusterIP`"));
        }
        _ => {}
    }
    errors.extend(families(service, &spec));
    let before = errors.len();
    for (index, address) in all.iter().enumerate() {
        if index == 0 && *address == "None" {
            if all.len() > 1 {
                errors.push(Error::invalid(&at, json!(all), "'None' must be the first and only value"));
            }
        } else {
            errors.extend(ip(address, &at.index(index)));
        }
    }
    let well = errors.len() == before;
    if all.len() > 2 {
        errors.push(Error::invalid(&at, json!(all), "may only hold up to 2 values"));
    }
    if well {
        errors.extend(of_one_family_each(&all, &get::texts(service, "spec.ipFamilies"), &at));
    }
    errors
}

fn families(service: &Value, spec: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen = Vec::new();
    for (family, at) in get::items(service, "spec.ipFamilies", &spec.child("ipFamilies")) {
        let family = family.as_str().unwrap_or_default();
        const FAMILIES: &[&str] = &["IPv4", "IPv6"];
        if !FAMILIES.contains(&family) {
            errors.push(Error::not_supported(&at, family, FAMILIES));
        }
        if seen.contains(&family) {
            errors.push(Error::duplicate(&at, family));
        }
        seen.push(family);
    }
    if has(service, "spec.ipFamilyPolicy") {
        const POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
        let policy = text(service, "spec.ipFamilyPolicy");
        if !POLICIES.contains(&policy) {
            errors.push(Error::not_supported(&spec.child("ipFamilyPolicy"), policy, POLICIES));
        }
    }
    errors
}

/// Good addresses are of different families, and of those that are named.
fn of_one_family_each(all: &[&str], families: &[&str], at: &Path) -> Errors {
    let mut errors = Errors::new();
    let family = |address: &str| if address.contains(':') { "IPv6" } else { "IPv4" };
    let pair = matches!(all, [first, second] if family(first) != family(second));
    if all.len() > 1 && !pair {
        let detail = "may specify no more than one IP for each IP family";
        errors.push(Error::invalid(at, json!(all), detail));
    }
    if all.first() == Some(&"None") {
        return errors;
    }
    for (index, (address, wanted)) in all.iter().zip(families).enumerate() {
        if family(address) != *wanted && matches!(*wanted, "IPv4" | "IPv6") {
            let detail = format!("expected an {wanted} value as indicated by `ipFamilies[{index}]`");
            errors.push(Error::invalid(&at.index(index), *address, detail));
        }
    }
    errors
}

fn load_balancer(service: &Value, spec: &Path) -> Errors {
    let mut errors = Errors::new();
    let is_balancer = text(service, "spec.type") == "LoadBalancer";
    let only = "may only be used when `type` is 'LoadBalancer'";
    let ranges =
        get::items(service, "spec.loadBalancerSourceRanges", &spec.child("LoadBalancerSourceRanges"));
    if !ranges.is_empty() && !is_balancer {
        errors.push(Error::forbidden(&spec.child("LoadBalancerSourceRanges"), only));
    }
    for (range, at) in ranges {
        errors.extend(cidr(range.as_str().unwrap_or_default().trim(), &at));
    }
    if has(service, "spec.allocateLoadBalancerNodePorts") && !is_balancer {
        errors.push(Error::forbidden(&spec.child("allocateLoadBalancerNodePorts"), only));
    }
    if has(service, "spec.loadBalancerClass") {
        let class = text(service, "spec.loadBalancerClass");
        if is_balancer {
            errors.extend(each(names::qualified_name(class), &spec.child("loadBalancerClass"), class));
        } else {
            errors.push(Error::forbidden(&spec.child("loadBalancerClass"), only));
        }
    }
    errors
}

fn traffic(service: &Value, spec: &Path) -> Errors {
    let mut errors = Errors::new();
    let external = text(service, "spec.externalTrafficPolicy");
    let at = spec.child("externalTrafficPolicy");
    if super::externally_accessible(service) {
        errors.extend(required_one_of(external, &at, &["Cluster", "Local"]));
    } else if !external.is_empty() {
        errors.push(Error::invalid(&at, external, "may only be set for externally-accessible services"));
    }
    let health = number(service, "spec.healthCheckNodePort");
    let at = spec.child("healthCheckNodePort");
    if !super::needs_health_check(service) && health != 0 {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(Error::invalid(&at, health, detail));
    } else if health != 0 {
        errors.extend(port_number(health, &at));
    }
    let internal = text(service, "spec.internalTrafficPolicy");
    if has(service, "spec.internalTrafficPolicy") {
        errors.extend(one_of(internal, &spec.child("internalTrafficPolicy"), &["Cluster", "Local"]));
    } else if text(service, "spec.type") != "ExternalName" {
        errors.push(Error::required(&spec.child("internalTrafficPolicy"), ""));
    }
    if has(service, "spec.trafficDistribution") {
        let value = text(service, "spec.trafficDistribution");
        let at = spec.child("trafficDistribution");
        errors.extend(one_of(value, &at, &["PreferClose", "PreferSameZone", "PreferSameNode"]));
    }
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go validateUpgradeDowngradeClusterIPs
pub fn validate_change(service: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = path("spec");
    let has_ip =
        |service: &Value| matches!(text(service, "spec.type"), "ClusterIP" | "NodePort" | "LoadBalancer");
    if !has_ip(service) || !has_ip(old) {
        return errors;
    }
    let (new_ips, old_ips) = (get::texts(service, "spec.clusterIPs"), get::texts(old, "spec.clusterIPs"));
    if let Some(primary) = old_ips.first() {
        if new_ips.first() != Some(primary) {
            let detail = "may not change once set";
            errors.push(Error::invalid(&spec.child("clusterIPs").index(0), json!(new_ips), detail));
        }
        if let (Some(was), Some(is)) = (old_ips.get(1), new_ips.get(1))
            && was != is
        {
            let detail = "may not change once set";
            errors.push(Error::invalid(&spec.child("clusterIPs").index(1), json!(new_ips), detail));
        }
    }
    let class = |service: &Value| at(service, "spec.loadBalancerClass").cloned();
    let balancer = |service: &Value| text(service, "spec.type") == "LoadBalancer";
    if balancer(service) && balancer(old) && class(service) != class(old) {
        let value = class(service).unwrap_or_default();
        errors.push(Error::invalid(&spec.child("loadBalancerClass"), value, "may not change once set"));
    }
    let health = |service: &Value| number(service, "spec.healthCheckNodePort");
    if super::needs_health_check(service) && super::needs_health_check(old) && health(service) != health(old)
    {
        errors.push(Error::forbidden(&spec.child("healthCheckNodePort"), IMMUTABLE));
    }
    errors
}
