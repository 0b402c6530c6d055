//! What only Services have: cluster addresses and node ports, allocated from ranges.
//!
//! What is taken is read from the Services themselves ([`book`]), so that nothing can leak or be lost in a crash;
//! what is being written just now is reserved until the caches show it. The IPAddress objects of Services follow
//! their Services ([`addresses`]), those of others are addresses that nobody gets.
//!
//! Upstream: pkg/registry/core/service/storage/alloc.go

pub mod addresses;
mod book;
mod families;
mod ports;
mod range;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard};

use apimachinery::field::{Error, Path};
use apimachinery::{GroupResource, Status};
use serde_json::{Value, json};

use crate::registry::Registry;
use crate::registry::call::Call;
use book::{Book, Held};
use range::Range;

/// Why a Service gets nothing.
#[derive(Debug)]
enum Refusal {
    Invalid(Vec<Error>),
    Internal(String),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Invalid(vec![error])
    }
}

/// The configured ranges, and what is taken of all.
pub struct Services {
    /// At least one; the first is of the family that Services get unless they ask for another.
    ranges: Vec<Range>,
    node_ports: RangeInclusive<u16>,
    book: Arc<Mutex<Book>>,
}

/// What a Service that is being written has allocated; given back when dropped, for then the Service itself holds
/// it or the write has failed.
pub struct Reservation {
    held: Held,
    book: Arc<Mutex<Book>>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut book = self.book.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        book.give_back(&self.held);
    }
}

fn text<'a>(service: &'a Value, field: &str) -> &'a str {
    service["spec"][field].as_str().unwrap_or_default()
}

fn wants_address(service: &Value) -> bool {
    text(service, "type") != "ExternalName" && text(service, "clusterIP") != "None"
}

fn list<'a>(service: &'a Value, field: &str) -> &'a [Value] {
    service["spec"][field].as_array().map(Vec::as_slice).unwrap_or_default()
}

impl Services {
    pub fn new(cidrs: &[(IpAddr, u8)], node_ports: RangeInclusive<u16>) -> Self {
        let ranges = cidrs.iter().map(|(address, bits)| Range::new(*address, *bits)).collect();
        Services { ranges, node_ports, book: Arc::default() }
    }

    /// The configured ranges of addresses, as `10.43.0.0/16`.
    pub fn ranges(&self) -> Vec<String> {
        self.ranges.iter().map(Range::to_string).collect()
    }

    /// The address of the `kubernetes` Service: the first of the first range.
    pub fn first_address(&self) -> Option<IpAddr> {
        self.ranges.first().map(|range| range.address(1))
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The book as the caches are now.
    fn book(&self, registry: &Registry) -> MutexGuard<'_, Book> {
        let mut book = self.lock();
        let table = registry.table();
        let cache = |group: &'static str, resource: &'static str| {
            let row = table.stored(&GroupResource::from_static(group, resource))?;
            row.cache.clone()
        };
        if let Some(services) = cache("", "services") {
            book.follow_services(&services);
        }
        if let Some(addresses) = cache("networking.k8s.io", "ipaddresses") {
            book.follow_addresses(&addresses);
        }
        if let Some(ranges) = cache("networking.k8s.io", "servicecidrs") {
            book.follow_ranges(&ranges);
        }
        book
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
        let mut book = self.book(call.registry());
        let held = self.allocate(&mut book, object, old, call.server.random_bytes());
        drop(book);
        let held = held.map_err(|refusal| match refusal {
            Refusal::Internal(why) => Status::internal(why),
            Refusal::Invalid(errors) => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                Status::invalid(&def.group_kind(), name, &errors)
            }
        })?;
        Ok(Some(Reservation { held, book: self.book.clone() }))
    }

    /// Completes a Service and reserves what it got.
    fn allocate(
        &self,
        book: &mut Book,
        service: &mut Value,
        old: Option<&Value>,
        random: [u8; 16],
    ) -> Result<Held, Refusal> {
        let has: Vec<&str> = self.ranges.iter().map(Range::family).collect();
        families::complete(service, old, &has)?;
        let own = old.map(book::held).unwrap_or_default();
        let mut held = Held::default();
        if wants_address(service) {
            self.take_addresses(book, service, &own, random, &mut held)?;
        } else if text(service, "clusterIP") == "None" {
            service["spec"]["clusterIPs"] = json!(["None"]);
        }
        ports::take(&self.node_ports, book, service, &own, random, &mut held)?;
        book.reserve(&held);
        Ok(held)
    }

    /// One address for each family: that which the Service names, or a free one.
    fn take_addresses(
        &self,
        book: &Book,
        service: &mut Value,
        own: &Held,
        random: [u8; 16],
        held: &mut Held,
    ) -> Result<(), Refusal> {
        let path = Path::new("spec").child("clusterIPs");
        let families = list(service, "ipFamilies").to_vec();
        let mut addresses: Vec<Value> = list(service, "clusterIPs").to_vec();
        if addresses.is_empty() && !text(service, "clusterIP").is_empty() {
            addresses.push(service["spec"]["clusterIP"].clone());
        }
        for (at, family) in families.iter().enumerate() {
            let given = addresses.get(at).and_then(Value::as_str).unwrap_or_default().to_owned();
            let chosen = match given.parse::<IpAddr>() {
                Ok(address) if own.addresses.contains(&address) => continue,
                Ok(address) => {
                    let why = if !book.ranges(&self.ranges).iter().any(|range| range.contains(address)) {
                        "the provided network does not match the current range"
                    } else if book.is_taken(address) || held.addresses.contains(&address) {
                        "provided IP is already allocated"
                    } else {
                        held.addresses.insert(address);
                        continue;
                    };
                    let why = format!("failed to allocate IP {given}: {why}");
                    return Err(Error::invalid(&path, addresses, why).into());
                }
                // Not an address at all: validation says so.
                Err(_) if !given.is_empty() => continue,
                Err(_) => {
                    let ranges = book.ranges(&self.ranges);
                    let of_family = ranges.iter().filter(|range| *family == range.family());
                    let free =
                        |address: &IpAddr| !book.is_taken(*address) && !held.addresses.contains(address);
                    of_family.filter_map(|range| range.free(free, random)).next()
                }
            };
            let Some(address) = chosen else {
                let name = service["metadata"]["name"].as_str().unwrap_or_default();
                let why = format!("failed to allocate a serviceIP for Service {name:?}: range is full");
                return Err(Refusal::Internal(why));
            };
            held.addresses.insert(address);
            if at < addresses.len() {
                addresses[at] = address.to_string().into();
            } else {
                addresses.push(address.to_string().into());
            }
        }
        if let Some(first) = addresses.first().cloned() {
            service["spec"]["clusterIP"] = first;
            service["spec"]["clusterIPs"] = Value::Array(addresses);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
