//! Topology-aware hints: each ready endpoint is meant for the clients of one zone, so that zones have endpoints by
//! their share of the nodes' processor time, their own ones first.
//!
//! Upstream: staging/src/k8s.io/endpointslice/topologycache/topologycache.go

use std::collections::BTreeMap;
use std::sync::Arc;

use api::core::v1::{Node, Service};
use api::discovery::v1::{Endpoint, EndpointHints, EndpointSlice, ForZone};
use apimachinery::quantity::Quantity;

use super::{Target, ZONE, same};
use crate::node_lifecycle::readiness;
use crate::objects::{annotation, label};

/// No endpoint is to get more than this above its share of a zone's traffic.
const OVERLOAD: f64 = 0.2;
/// Nodes with such a label have no share.
const EXCLUDED: &[&str] = &["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

/// Whether the Service asks for hints; the old annotation goes before the new one.
pub(crate) fn is_wanted(service: &Service) -> bool {
    let old = annotation(service, "service.kubernetes.io/topology-aware-hints");
    let mode = old.or_else(|| annotation(service, "service.kubernetes.io/topology-mode"));
    matches!(mode, Some("Auto" | "auto"))
}

/// What of a node the shares depend on: its zone and thousandths of processors, `None` when it has no share.
pub(crate) fn weight(node: &Node) -> Option<(String, i64)> {
    if EXCLUDED.iter().any(|name| label(node, name).is_some()) || readiness(node) != "True" {
        return None;
    }
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let cpu = allocatable.and_then(|all| Quantity::parse(&all.get("cpu")?.0).ok());
    Some((label(node, ZONE).unwrap_or_default().to_owned(), cpu.map_or(0, |cpu| cpu.milli_value())))
}

/// The zones' shares; `None` unless there are two zones, and zone and processors of every node are known.
pub(crate) fn shares(nodes: &[Arc<Node>]) -> Option<BTreeMap<String, f64>> {
    let mut zones: BTreeMap<String, i64> = BTreeMap::new();
    for (zone, milli) in nodes.iter().filter_map(|node| weight(node)) {
        if zone.is_empty() || milli == 0 {
            return None;
        }
        *zones.entry(zone).or_default() += milli;
    }
    let total: i64 = zones.values().sum();
    let shares = zones.into_iter().map(|(zone, milli)| (zone, milli as f64 / total as f64));
    Some(shares.collect()).filter(|shares: &BTreeMap<_, _>| shares.len() > 1)
}

/// How many endpoints a zone is to have.
struct Allocation {
    minimum: usize,
    maximum: usize,
    desired: f64,
}

fn allocations(
    shares: &BTreeMap<String, f64>,
    endpoints: usize,
) -> Result<BTreeMap<&str, Allocation>, String> {
    let scarce = |what: &str| format!("{what} ({endpoints} endpoints, {} zones)", shares.len());
    if shares.len() > endpoints {
        return Err(scarce("Insufficient number of endpoints"));
    }
    let mut allocations: BTreeMap<&str, Allocation> = BTreeMap::new();
    for (zone, share) in shares {
        let desired = share * endpoints as f64;
        let minimum = (desired * (1.0 / (1.0 + OVERLOAD))).ceil() as usize;
        let allocation = Allocation { minimum, maximum: 0, desired: desired.max(minimum as f64) };
        allocations.insert(zone, allocation);
    }
    let least: usize = allocations.values().map(|allocation| allocation.minimum).sum();
    let Some(spare) = endpoints.checked_sub(least) else {
        let what =
            "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold";
        return Err(scarce(what));
    };
    for allocation in allocations.values_mut() {
        allocation.maximum = allocation.minimum + spare;
    }
    Ok(allocations)
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
}

fn for_zone(zone: &str) -> Option<EndpointHints> {
    let for_zones = Some(vec![ForZone { name: zone.to_owned() }]);
    Some(EndpointHints { for_nodes: None, for_zones })
}

/// Gives the endpoints their hints; slices that are not written anyway keep theirs while these are fair. An error
/// says why there can be none, and then there are none.
pub(crate) fn assign(slices: &mut [Target], shares: Option<&BTreeMap<String, f64>>) -> Result<(), String> {
    let outcome = try_assign(slices, shares);
    if outcome.is_err() {
        endpoints(slices).for_each(|endpoint| endpoint.hints = None);
    }
    outcome
}

fn endpoints(slices: &mut [Target]) -> impl Iterator<Item = &mut Endpoint> {
    slices.iter_mut().flat_map(|(slice, _)| slice.endpoints.iter_mut().flatten())
}

fn try_assign(slices: &mut [Target], shares: Option<&BTreeMap<String, f64>>) -> Result<(), String> {
    let unknown = "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes";
    let shares = shares.ok_or(unknown)?;
    let ready = endpoints(slices).filter(|endpoint| is_ready(endpoint)).count();
    let allocations = allocations(shares, ready)?;
    let mut given: BTreeMap<String, usize> = BTreeMap::new();
    let mut open = Vec::new();
    for (slice, old) in slices {
        let unchanged = old.as_ref().is_some_and(|old| same(old, slice));
        match kept(slice, &given, &allocations).filter(|_| unchanged) {
            Some(hints) => {
                hints.into_iter().for_each(|(zone, number)| *given.entry(zone).or_default() += number)
            }
            None => open.extend(slice.endpoints.iter_mut().flatten()),
        }
    }
    for endpoint in &mut open {
        endpoint.hints = None;
        if is_ready(endpoint) {
            let zone = endpoint.zone.as_deref().filter(|zone| !zone.is_empty());
            let zone = zone.ok_or("One or more endpoints do not have a zone specified")?;
            *given.entry(zone.to_owned()).or_default() += 1;
            endpoint.hints = for_zone(zone);
        }
    }
    redistribute(&mut open, &allocations, &given);
    match given.is_empty() {
        true => Err("No hints allocated for zones".to_owned()),
        false => Ok(()),
    }
}

/// The hints of a slice by zone, if they may stay.
///
/// Upstream: staging/src/k8s.io/endpointslice/topologycache/utils.go getHintsByZone
fn kept(
    slice: &EndpointSlice,
    given: &BTreeMap<String, usize>,
    allocations: &BTreeMap<&str, Allocation>,
) -> Option<BTreeMap<String, usize>> {
    let mut hints: BTreeMap<String, usize> = BTreeMap::new();
    for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| is_ready(endpoint)) {
        let zones = endpoint.hints.as_ref()?.for_zones.as_ref().filter(|zones| !zones.is_empty())?;
        for zone in zones {
            *hints.entry(zone.name.clone()).or_default() += 1;
        }
    }
    let fair = hints.iter().all(|(zone, number)| {
        let before = given.get(zone).copied().unwrap_or(0);
        allocations.get(zone.as_str()).is_some_and(|allocation| before + number <= allocation.maximum)
    });
    fair.then_some(hints)
}

/// Zones with more than they are to have lend endpoints to those with less.
///
/// Upstream: staging/src/k8s.io/endpointslice/topologycache/utils.go getGivingAndReceivingZones
fn redistribute(
    open: &mut [&mut Endpoint],
    allocations: &BTreeMap<&str, Allocation>,
    given: &BTreeMap<String, usize>,
) {
    let mut surplus: BTreeMap<&str, f64> = allocations
        .iter()
        .map(|(zone, allocation)| (*zone, given.get(*zone).copied().unwrap_or(0) as f64 - allocation.desired))
        .collect();
    let mut lending: BTreeMap<&str, usize> = BTreeMap::new();
    let mut borrowing: Vec<&str> = Vec::new();
    loop {
        let richest = surplus.iter().max_by(|a, b| a.1.total_cmp(b.1)).map(|(zone, n)| (*zone, *n));
        let poorest = surplus.iter().min_by(|a, b| a.1.total_cmp(b.1)).map(|(zone, n)| (*zone, -*n));
        let (Some((richest, more)), Some((poorest, less))) = (richest, poorest) else { break };
        if more < 0.5 || less < 0.5 || (more < 1.0 && less < 1.0) {
            break;
        }
        *lending.entry(richest).or_default() += 1;
        borrowing.push(poorest);
        *surplus.entry(richest).or_default() -= 1.0;
        *surplus.entry(poorest).or_default() += 1.0;
    }
    let mut borrowing = borrowing.into_iter();
    for endpoint in open.iter_mut().filter(|endpoint| is_ready(endpoint)) {
        let left = lending.get_mut(endpoint.zone.as_deref().unwrap_or_default()).filter(|left| **left > 0);
        let Some(left) = left else { continue };
        let Some(zone) = borrowing.next() else { return };
        *left -= 1;
        endpoint.hints = for_zone(zone);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Nodes `zone processors`, endpoints by zone and readiness; the zones they are for, or why there are none.
    fn check(nodes: &[(&str, &str)], zones: &[(&str, bool)], expected: Result<&[&str], &str>) {
        let node = |(zone, cpu): &(&str, &str)| {
            let node = json!({
                "metadata": {"name": "n", "labels": {ZONE: zone}},
                "status": {"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": "True"}]},
            });
            Arc::new(api::Object::from_value(node).unwrap())
        };
        let nodes: Vec<Arc<Node>> = nodes.iter().map(node).collect();
        let endpoint = |(zone, ready): &(&str, bool)| json!({"addresses": ["10.0.0.1"], "zone": zone, "conditions": {"ready": ready}});
        let slice: EndpointSlice = api::Object::from_value(json!({
            "metadata": {"name": "s"}, "addressType": "IPv4",
            "endpoints": zones.iter().map(endpoint).collect::<Vec<_>>(),
        }))
        .unwrap();
        let mut slices = [(slice, None)];
        let outcome = assign(&mut slices, shares(&nodes).as_ref());
        let hints = slices[0].0.endpoints.iter().flatten().filter_map(|endpoint| endpoint.hints.clone());
        let hints: Vec<String> =
            hints.flat_map(|hints| hints.for_zones.unwrap()).map(|zone| zone.name).collect();
        match expected {
            Ok(zones) => {
                assert_eq!((outcome, hints), (Ok(()), zones.iter().map(|z| (*z).to_owned()).collect()))
            }
            Err(why) => assert_eq!((outcome, hints.len()), (Err(why.to_owned()), 0)),
        }
    }

    #[test]
    fn endpoints_are_for_their_own_zone_if_that_is_fair() {
        let two = &[("a", "2"), ("b", "2")];
        check(two, &[("a", true), ("b", true)], Ok(&["a", "b"]));
        check(two, &[("a", true), ("b", true), ("b", false)], Ok(&["a", "b"]));
        // A zone without an endpoint borrows one.
        check(two, &[("a", true), ("a", true)], Ok(&["b", "a"]));
        check(
            &[("a", "4"), ("b", "4"), ("c", "4")],
            &[("a", true), ("a", true), ("a", true)],
            Ok(&["b", "c", "a"]),
        );
        // By their processors, not by their nodes.
        check(
            &[("a", "1"), ("a", "1"), ("b", "6")],
            &[("a", true), ("a", true), ("b", true), ("b", true), ("a", true), ("a", true)],
            Ok(&["b", "b", "b", "b", "a", "a"]),
        );
    }

    #[test]
    fn without_knowledge_there_are_no_hints() {
        let unknown =
            "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes";
        check(&[("a", "2")], &[("a", true), ("a", true)], Err(unknown));
        check(&[("a", "2"), ("", "2")], &[("a", true), ("a", true)], Err(unknown));
        check(&[("a", "2"), ("b", "0")], &[("a", true), ("b", true)], Err(unknown));
        let two = &[("a", "2"), ("b", "2")];
        check(two, &[("a", true)], Err("Insufficient number of endpoints (1 endpoints, 2 zones)"));
        check(two, &[("a", true), ("", true)], Err("One or more endpoints do not have a zone specified"));
        check(
            &[("a", "10"), ("b", "1")],
            &[("a", true), ("b", true)],
            Err(
                "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold \
                 (2 endpoints, 2 zones)",
            ),
        );
    }
}
