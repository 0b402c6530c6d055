//! What only Services have: cluster addresses and node ports, allocated from ranges. What is taken is read from
//! the Services themselves, so that nothing can leak or be lost in a crash; what is being written just now is
//! reserved until the caches show it.
//!
//! Upstream: pkg/registry/core/service/storage/alloc.go

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use apimachinery::field::{Error, Path};
use apimachinery::{GroupResource, Status};
use serde_json::{Value, json};

use crate::registry::call::Call;
use crate::seams::Lookup;

const SERVICES: GroupResource = GroupResource::from_static("", "services");

#[derive(Default)]
struct Taken {
    addresses: HashSet<IpAddr>,
    /// Port and protocol: the same port may serve TCP and UDP of one Service.
    ports: HashSet<u16>,
}

/// The ranges, and what is being allocated from them now.
pub struct Services {
    cidr: (IpAddr, u8),
    node_ports: RangeInclusive<u16>,
    reserved: Arc<Mutex<Taken>>,
}

/// What a Service that is being written has allocated; given back when dropped, for then the Service itself holds
/// it or the write has failed.
pub struct Reservation {
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
    reserved: Arc<Mutex<Taken>>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut reserved = self.reserved.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for address in &self.addresses {
            reserved.addresses.remove(address);
        }
        for port in &self.ports {
            reserved.ports.remove(port);
        }
    }
}

fn text<'a>(service: &'a Value, field: &str) -> &'a str {
    service["spec"][field].as_str().unwrap_or_default()
}

fn wants_address(service: &Value) -> bool {
    text(service, "type") != "ExternalName" && text(service, "clusterIP") != "None"
}

fn wants_node_ports(service: &Value) -> bool {
    match text(service, "type") {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"].as_bool().unwrap_or(true),
        _ => false,
    }
}

/// The node ports of a Service, with the place of each.
fn node_ports(service: &Value) -> Vec<(Path, u16)> {
    let spec = Path::new("spec");
    let ports = service["spec"]["ports"].as_array().into_iter().flatten().enumerate();
    let number = |value: &Value| value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
    let mut found: Vec<(Path, u16)> = ports
        .filter_map(|(at, port)| {
            Some((spec.child("ports").index(at).child("nodePort"), number(&port["nodePort"])?))
        })
        .collect();
    found.extend(
        number(&service["spec"]["healthCheckNodePort"]).map(|n| (spec.child("healthCheckNodePort"), n)),
    );
    found
}

impl Services {
    pub fn new(cidr: (IpAddr, u8), node_ports: RangeInclusive<u16>) -> Self {
        Services { cidr, node_ports, reserved: Arc::default() }
    }

    /// The range of addresses, as `10.43.0.0/16`.
    pub fn range(&self) -> String {
        format!("{}/{}", self.address(0), self.cidr.1)
    }

    /// The address of the `kubernetes` Service: the first of the range.
    pub fn first_address(&self) -> IpAddr {
        self.address(1)
    }

    fn base(&self) -> u128 {
        match self.cidr.0 {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address),
        }
    }

    fn address(&self, offset: u128) -> IpAddr {
        let number = self.base() + offset;
        match self.cidr.0 {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
        }
    }

    /// How many addresses the range has, the network's own and the broadcast address included; at most 2^20.
    fn size(&self) -> u128 {
        let bits: u8 = if self.cidr.0.is_ipv4() { 32 } else { 128 };
        1 << bits.saturating_sub(self.cidr.1).min(20)
    }

    fn contains(&self, address: IpAddr) -> bool {
        let number = match address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address),
        };
        let last = self.size() - u128::from(self.cidr.0.is_ipv4());
        address.is_ipv4() == self.cidr.0.is_ipv4() && number > self.base() && number < self.base() + last
    }

    /// Allocates what a new or changed Service needs. `None` for other kinds.
    pub fn prepare(
        &self,
        call: &Call<'_>,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Option<Reservation>, Status> {
        let def = call.def();
        if def.plural != "services" || !def.group.is_empty() || !call.attributes.subresource.is_empty() {
            return Ok(None);
        }
        if let Some(old) = old {
            keep_allocated(object, old);
        }
        let own: Taken = old.map(held).unwrap_or_default();
        let random = call.server.random_bytes();
        let result = self.allocate(&**call.registry(), object, &own, random);
        result.map(Some).map_err(|errors| {
            Status::invalid(
                &def.group_kind(),
                object["metadata"]["name"].as_str().unwrap_or_default(),
                &errors,
            )
        })
    }

    fn allocate(
        &self,
        lookup: &dyn Lookup,
        service: &mut Value,
        own: &Taken,
        random: [u8; 16],
    ) -> Result<Reservation, Vec<Error>> {
        let mut reserved = self.reserved.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut taken: Option<Taken> = None;
        let mut reservation =
            Reservation { addresses: Vec::new(), ports: Vec::new(), reserved: self.reserved.clone() };
        let load = |taken: &mut Option<Taken>| {
            if taken.is_none() {
                *taken = Some(all_taken(lookup, &reserved));
            }
        };
        let result = (|| {
            if wants_address(service) {
                let asked = text(service, "clusterIP").parse::<IpAddr>().ok();
                if asked.is_none_or(|address| !own.addresses.contains(&address)) {
                    load(&mut taken);
                    self.take_address(service, &mut taken, asked, random, &mut reservation)?;
                }
                complete_addresses(service);
            } else if text(service, "clusterIP") == "None" {
                service["spec"]["clusterIPs"] = json!(["None"]);
                complete_families(service);
            }
            let asks = node_ports(service).iter().any(|(_, port)| !own.ports.contains(port));
            if asks || wants_node_ports(service) {
                load(&mut taken);
                self.take_ports(service, &mut taken, own, random, &mut reservation)?;
            }
            Ok(())
        })();
        match result {
            Ok(()) => {
                reserved.addresses.extend(reservation.addresses.iter().copied());
                reserved.ports.extend(reservation.ports.iter().copied());
                drop(reserved);
                Ok(reservation)
            }
            Err(errors) => {
                reservation.addresses.clear();
                reservation.ports.clear();
                drop(reserved);
                Err(errors)
            }
        }
    }

    fn take_address(
        &self,
        service: &mut Value,
        taken: &mut Option<Taken>,
        asked: Option<IpAddr>,
        random: [u8; 16],
        reservation: &mut Reservation,
    ) -> Result<(), Vec<Error>> {
        let Some(taken) = taken else { return Ok(()) };
        let path = Path::new("spec").child("clusterIPs").index(0);
        let given = text(service, "clusterIP").to_owned();
        let address = match asked {
            Some(address) => {
                let why = if !self.contains(address) {
                    let (base, bits) = self.cidr;
                    format!(
                        "the provided IP ({address}) is not in the valid range. The range of valid IPs is {base}/{bits}"
                    )
                } else if taken.addresses.contains(&address) {
                    "provided IP is already allocated".to_owned()
                } else {
                    reservation.addresses.push(address);
                    return Ok(());
                };
                return Err(vec![Error::invalid(
                    &path,
                    given.as_str(),
                    format!("failed to allocate IP {address}: {why}"),
                )]);
            }
            // Not an address at all: validation says so.
            None if !given.is_empty() => return Ok(()),
            None => self.free_address(taken, random),
        };
        let Some(address) = address else {
            return Err(vec![Error::internal(&path, "failed to allocate a serviceIP: range is full")]);
        };
        service["spec"]["clusterIP"] = address.to_string().into();
        reservation.addresses.push(address);
        Ok(())
    }

    /// A free address, from the upper part of the range while there is one: the lower is for those who choose.
    ///
    /// Upstream: pkg/registry/core/service/ipallocator/ipallocator.go calculateRangeOffset
    fn free_address(&self, taken: &Taken, random: [u8; 16]) -> Option<IpAddr> {
        let last = self.size().checked_sub(1 + u128::from(self.cidr.0.is_ipv4()))?;
        let band = if self.size() < 32 { 1 } else { (self.size() / 16).clamp(16, 256) };
        let free = |offset: &u128| !taken.addresses.contains(&self.address(*offset));
        let upper = last.checked_sub(band)? + 1;
        let start = u128::from_le_bytes(random) % upper;
        let found = (0..upper).map(|step| band + (start + step) % upper).find(free);
        found.or_else(|| (1..band).find(free)).map(|offset| self.address(offset))
    }

    fn take_ports(
        &self,
        service: &mut Value,
        taken: &mut Option<Taken>,
        own: &Taken,
        random: [u8; 16],
        reservation: &mut Reservation,
    ) -> Result<(), Vec<Error>> {
        let Some(taken) = taken else { return Ok(()) };
        let mut errors = Vec::new();
        for (path, port) in node_ports(service) {
            if own.ports.contains(&port) || reservation.ports.contains(&port) {
                continue;
            }
            if !self.node_ports.contains(&port) {
                let (low, high) = (self.node_ports.start(), self.node_ports.end());
                let why = format!(
                    "provided port is not in the valid range. The range of valid ports is {low}-{high}"
                );
                errors.push(Error::invalid(&path, port, why));
            } else if taken.ports.contains(&port) {
                errors.push(Error::invalid(&path, port, "provided port is already allocated"));
            } else {
                reservation.ports.push(port);
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut used: HashSet<u16> = &taken.ports | &own.ports;
        used.extend(reservation.ports.iter());
        let size = u32::from(self.node_ports.end() - self.node_ports.start()) + 1;
        let mut next = u32::from(u16::from_le_bytes([random[14], random[15]])) % size;
        let mut free = || {
            for _ in 0..size {
                let port = self.node_ports.start() + u16::try_from(next % size).unwrap_or(0);
                next += 1;
                if used.insert(port) {
                    reservation.ports.push(port);
                    return Ok(port);
                }
            }
            Err(vec![Error::internal(
                &Path::new("spec").child("ports"),
                "failed to allocate a nodePort: range is full",
            )])
        };
        if wants_node_ports(service) {
            let unset = |port: &&mut Value| port["nodePort"].as_u64().unwrap_or(0) == 0;
            for port in ports_mut(service).filter(unset) {
                port["nodePort"] = free()?.into();
            }
        }
        if resources::needs_health_check(service)
            && service["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0) == 0
        {
            service["spec"]["healthCheckNodePort"] = free()?.into();
        }
        Ok(())
    }
}

fn ports_mut(service: &mut Value) -> impl Iterator<Item = &mut Value> {
    let ports = service.get_mut("spec").and_then(|spec| spec.get_mut("ports")).and_then(Value::as_array_mut);
    ports.into_iter().flatten()
}

fn held(service: &Value) -> Taken {
    let addresses = service["spec"]["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let first = std::iter::once(text(service, "clusterIP"));
    Taken {
        addresses: addresses.chain(first).filter_map(|address| address.parse().ok()).collect(),
        ports: node_ports(service).into_iter().map(|(_, port)| port).collect(),
    }
}

fn all_taken(lookup: &dyn Lookup, reserved: &Taken) -> Taken {
    let mut taken = Taken { addresses: reserved.addresses.clone(), ports: reserved.ports.clone() };
    for service in lookup.list(&SERVICES, None) {
        let held = held(&service);
        taken.addresses.extend(held.addresses);
        taken.ports.extend(held.ports);
    }
    taken
}

/// A client that leaves out what was allocated keeps it.
///
/// Upstream: pkg/registry/core/service/storage/storage.go patchAllocatedValues
fn keep_allocated(service: &mut Value, old: &Value) {
    if wants_address(service) && wants_address(old) && text(service, "clusterIP").is_empty() {
        for field in ["clusterIP", "clusterIPs"] {
            if let Some(value) = old["spec"].get(field) {
                service["spec"][field] = value.clone();
            }
        }
    }
    if text(service, "type") == "ExternalName" && text(old, "type") != "ExternalName" {
        let same = service["spec"]["clusterIP"] == old["spec"]["clusterIP"];
        if let Some(spec) = service["spec"].as_object_mut().filter(|_| same) {
            spec.retain(|field, _| {
                !["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"].contains(&field.as_str())
            });
        }
    }
    let ports_of_old = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let (needs, needed) = (wants_node_ports(service), wants_node_ports(old));
    for port in ports_mut(service) {
        let was =
            ports_of_old.iter().find(|p| p["port"] == port["port"] && p["protocol"] == port["protocol"]);
        let Some(was) = was else { continue };
        if needs && needed && port["nodePort"].as_u64().unwrap_or(0) == 0 && was["nodePort"].is_u64() {
            port["nodePort"] = was["nodePort"].clone();
        }
        if !needs
            && needed
            && port["nodePort"] == was["nodePort"]
            && let Some(port) = port.as_object_mut()
        {
            port.remove("nodePort");
        }
    }
}

fn complete_addresses(service: &mut Value) {
    let address = service["spec"]["clusterIP"].clone();
    let known = service["spec"]["clusterIPs"].as_array().is_some_and(|list| !list.is_empty());
    if !known {
        service["spec"]["clusterIPs"] = json!([address]);
    }
    complete_families(service);
}

fn complete_families(service: &mut Value) {
    let six = text(service, "clusterIP").contains(':');
    let spec = &mut service["spec"];
    if spec["ipFamilies"].as_array().is_none_or(|list| list.is_empty()) {
        spec["ipFamilies"] = json!([if six { "IPv6" } else { "IPv4" }]);
    }
    if !spec["ipFamilyPolicy"].is_string() {
        spec["ipFamilyPolicy"] = "SingleStack".into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known(Vec<Arc<Value>>);

    impl Lookup for Known {
        fn get(&self, _: &GroupResource, _: &str, _: &str) -> Option<Arc<Value>> {
            None
        }

        fn list(&self, _: &GroupResource, _: Option<&str>) -> Vec<Arc<Value>> {
            self.0.clone()
        }

        fn revision(&self, _: &GroupResource) -> u64 {
            1
        }
    }

    fn check(service: Value, expected: Result<Value, &str>) {
        let services = Services::new(("10.0.0.0".parse().unwrap(), 29), 30000..=30002);
        let known = Known(vec![Arc::new(json!({"spec": {
            "type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 1, "nodePort": 30001}],
        }}))]);
        let mut service = service;
        let result = services.allocate(&known, &mut service, &Taken::default(), [0; 16]);
        let result = result.map(|_| service["spec"].clone()).map_err(|errors| errors[0].to_string());
        assert_eq!(result, expected.map_err(str::to_owned));
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
        check(
            json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1"}}),
            Err(
                "spec.clusterIPs[0]: Invalid value: \"10.0.0.1\": failed to allocate IP 10.0.0.1: provided IP is already allocated",
            ),
        );
        check(
            json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.1.1"}}),
            Err(
                "spec.clusterIPs[0]: Invalid value: \"10.0.1.1\": failed to allocate IP 10.0.1.1: the provided IP \
                 (10.0.1.1) is not in the valid range. The range of valid IPs is 10.0.0.0/29",
            ),
        );
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
}
