//! Which families of addresses a Service has.
//!
//! Upstream: pkg/registry/core/service/storage/alloc.go initIPFamilyFields

use std::net::IpAddr;

use apimachinery::field::{Error, Path};
use serde_json::{Value, json};

use super::range::family;
use super::{Refusal, list, text};

fn policy(service: &Value) -> &str {
    text(service, "ipFamilyPolicy")
}

fn other(family: &str) -> &'static str {
    if family == "IPv4" { "IPv6" } else { "IPv4" }
}

/// Whether an update leaves a Service that prefers both families as it is: it gets no address because the cluster
/// has a second family now, and loses none.
fn unchanged(service: &Value, old: Option<&Value>) -> bool {
    let same = |old: &Value, field: &str| service["spec"][field] == old["spec"][field];
    old.is_some_and(|old| {
        policy(service) == "PreferDualStack"
            && matches!(policy(old), "" | "PreferDualStack")
            && ["type", "clusterIPs", "ipFamilies"].iter().all(|field| same(old, field))
    })
}

/// Fills in the policy and the families, of those that the cluster has, the first being its own.
pub fn complete(service: &mut Value, old: Option<&Value>, has: &[&str]) -> Result<(), Refusal> {
    if text(service, "type") == "ExternalName" || unchanged(service, old) || !service["spec"].is_object() {
        return Ok(());
    }
    let loose = text(service, "clusterIP") == "None"
        && service["spec"]["selector"].as_object().is_none_or(|selector| selector.is_empty());
    if service["spec"].get("ipFamilyPolicy").is_none_or(Value::is_null) {
        let before = old.map(policy).unwrap_or_default();
        let default = match before {
            "" if loose => "RequireDualStack",
            "" => "SingleStack",
            before => before,
        };
        service["spec"]["ipFamilyPolicy"] = default.into();
    }
    let wrong = resources::service_addresses(service);
    if !wrong.is_empty() {
        return Err(Refusal::Invalid(wrong));
    }
    if let Some(old) = old {
        release(service, old)?;
    }
    agree(service, has)?;
    if loose {
        let mut families = list(service, "ipFamilies").to_vec();
        if families.is_empty() {
            families = has.iter().take(1).map(|family| json!(family)).collect();
        }
        if let [Value::String(first)] = &families[..]
            && policy(service) != "SingleStack"
        {
            let second = other(first).into();
            families.push(second);
        }
        service["spec"]["ipFamilies"] = Value::Array(families);
        return Ok(());
    }
    let mut errors = Vec::new();
    if policy(service) == "RequireDualStack" && has.len() < 2 {
        let path = Path::new("spec").child("ipFamilyPolicy");
        errors.push(Error::invalid(
            &path,
            policy(service),
            "this cluster is not configured for dual-stack services",
        ));
    }
    for (at, family) in list(service, "ipFamilies").iter().filter_map(Value::as_str).enumerate() {
        if !has.contains(&family) {
            let path = Path::new("spec").child("ipFamilies").index(at);
            errors.push(Error::invalid(&path, family, "not configured on this cluster"));
        }
    }
    if !errors.is_empty() {
        return Err(Refusal::Invalid(errors));
    }
    let mut families = list(service, "ipFamilies").to_vec();
    if families.is_empty() {
        families = has.iter().take(1).map(|family| json!(family)).collect();
    }
    if policy(service) != "SingleStack" && has.len() == 2 && families.len() == 1 {
        families.push(other(families[0].as_str().unwrap_or_default()).into());
    }
    service["spec"]["ipFamilies"] = Value::Array(families);
    Ok(())
}

/// An update to a single family drops the second; any other may not drop it.
fn release(service: &mut Value, old: &Value) -> Result<(), Refusal> {
    let path = Path::new("spec").child("ipFamilyPolicy");
    if policy(service) == "SingleStack" {
        for field in ["clusterIPs", "ipFamilies"] {
            if service["spec"][field] == old["spec"][field]
                && let Some(list) = service["spec"][field].as_array_mut()
            {
                list.truncate(1);
            }
        }
        return Ok(());
    }
    let mut errors = Vec::new();
    for (field, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let (now, before) = (list(service, field).len(), list(old, field).len());
        if now == 1 && before == 2 {
            let why = format!("must be 'SingleStack' to release the secondary {what}");
            errors.push(Error::invalid(&path, policy(service), why));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Refusal::Invalid(errors)) }
}

/// The policy must allow what is named, and the families of named addresses are filled in.
fn agree(service: &mut Value, has: &[&str]) -> Result<(), Refusal> {
    let path = Path::new("spec");
    let mut errors = Vec::new();
    if policy(service) == "SingleStack" {
        for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if list(service, field).len() == 2 {
                let why = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                );
                errors.push(Error::invalid(&path.child("ipFamilyPolicy"), policy(service), why));
            }
        }
    }
    let addresses = list(service, "clusterIPs").to_vec();
    let mut families = list(service, "ipFamilies").to_vec();
    let parsed = addresses.iter().map(|address| address.as_str().unwrap_or_default().parse::<IpAddr>());
    for (at, address) in parsed.enumerate().skip(families.len()) {
        let Ok(address) = address else { break };
        let family = family(address);
        if has.contains(&family) {
            families.push(family.into());
        } else {
            let why = format!("{family} is not configured on this cluster");
            errors.push(Error::invalid(&path.child("clusterIPs").index(at), addresses.clone(), why));
        }
    }
    if !errors.is_empty() {
        return Err(Refusal::Invalid(errors));
    }
    if !families.is_empty() {
        service["spec"]["ipFamilies"] = Value::Array(families);
    }
    Ok(())
}
