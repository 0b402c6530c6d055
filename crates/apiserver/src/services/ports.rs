//! Node ports.

use std::ops::RangeInclusive;

use apimachinery::field::{Error, Path};
use serde_json::Value;

use super::book::{Book, Held, node_port};
use super::{Refusal, list, text};

fn wanted(service: &Value) -> bool {
    match text(service, "type") {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"].as_bool().unwrap_or(true),
        _ => false,
    }
}

/// Allocates the ports that a Service asks for, and free ones for those that it leaves out. The same port over
/// several protocols gets the same node port.
///
/// Upstream: pkg/registry/core/service/storage/alloc.go initNodePorts, updateNodePorts
pub fn take(
    range: &RangeInclusive<u16>,
    book: &Book,
    service: &mut Value,
    own: &Held,
    random: [u8; 16],
    held: &mut Held,
) -> Result<(), Refusal> {
    let spec = Path::new("spec");
    let may = matches!(text(service, "type"), "NodePort" | "LoadBalancer");
    let port_of = |port: &Value| if may { node_port(&port["nodePort"]) } else { None };
    let asked: Vec<Option<u16>> = list(service, "ports").iter().map(port_of).collect();
    for (at, port) in asked.iter().enumerate().filter_map(|(at, port)| Some((at, (*port)?))) {
        let path = spec.child("ports").index(at).child("nodePort");
        ask(range, book, own, port, held).map_err(|why| Error::invalid(&path, port, why))?;
    }
    if resources::needs_health_check(service)
        && let Some(port) = node_port(&service["spec"]["healthCheckNodePort"])
    {
        ask(range, book, own, port, held).map_err(|why| {
            Refusal::Internal(format!("failed to allocate requested HealthCheck NodePort {port}: {why}"))
        })?;
    }
    if wanted(service) {
        let numbers: Vec<(Value, Value)> =
            list(service, "ports").iter().map(|p| (p["port"].clone(), p["protocol"].clone())).collect();
        let mut chosen = asked;
        for at in 0..chosen.len() {
            if chosen[at].is_some() {
                continue;
            }
            let twin = (0..chosen.len()).find(|other| {
                chosen[*other].is_some()
                    && numbers[*other].0 == numbers[at].0
                    && numbers[*other].1 != numbers[at].1
            });
            let port = match twin {
                Some(twin) => chosen[twin],
                None => free(range, book, own, random, held),
            };
            let port =
                port.ok_or_else(|| Refusal::Internal("failed to allocate a nodePort: range is full".into()))?;
            chosen[at] = Some(port);
            service["spec"]["ports"][at]["nodePort"] = port.into();
        }
    }
    if resources::needs_health_check(service) && node_port(&service["spec"]["healthCheckNodePort"]).is_none()
    {
        let port = free(range, book, own, random, held).ok_or_else(|| {
            Refusal::Internal("failed to allocate a HealthCheck NodePort: range is full".into())
        })?;
        service["spec"]["healthCheckNodePort"] = port.into();
    }
    Ok(())
}

fn ask(
    range: &RangeInclusive<u16>,
    book: &Book,
    own: &Held,
    port: u16,
    held: &mut Held,
) -> Result<(), String> {
    if own.ports.contains(&port) || held.ports.contains(&port) {
        return Ok(());
    }
    if !range.contains(&port) {
        let (low, high) = (range.start(), range.end());
        return Err(format!(
            "provided port is not in the valid range. The range of valid ports is {low}-{high}"
        ));
    }
    if book.is_port_taken(port) {
        return Err("provided port is already allocated".to_owned());
    }
    held.ports.insert(port);
    Ok(())
}

/// A free port, from the upper part of the range while there is one: the lower is for those who choose.
///
/// Upstream: pkg/registry/core/service/portallocator/allocator.go calculateRangeOffset
fn free(
    range: &RangeInclusive<u16>,
    book: &Book,
    own: &Held,
    random: [u8; 16],
    held: &mut Held,
) -> Option<u16> {
    let size = u32::from(range.end().checked_sub(*range.start())?) + 1;
    let band = if size <= 16 { 0 } else { (size / 32).clamp(16, 128).min(size - 1) };
    let upper = size - band;
    let start = u32::from(u16::from_le_bytes([random[14], random[15]])) % upper;
    let offsets = (0..upper).map(|step| band + (start + step) % upper).chain(0..band);
    let mut ports = offsets.filter_map(|offset| range.start().checked_add(u16::try_from(offset).ok()?));
    let taken =
        |port: &u16| book.is_port_taken(*port) || own.ports.contains(port) || held.ports.contains(port);
    let port = ports.find(|port| !taken(port))?;
    held.ports.insert(port);
    Some(port)
}
