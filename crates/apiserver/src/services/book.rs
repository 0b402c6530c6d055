//! [`Book`]: which addresses and node ports are taken, and by whom. It follows the caches change by change, so
//! that asking it costs the same however many Services there are.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use serde_json::Value;
use storage::Revision;

use super::range::Range;
use super::{list, text};
use crate::registry::cache::Cache;

/// The label and its value of the addresses that are kept for Services.
pub const MANAGED_BY: (&str, &str) = ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");

/// What one Service holds, or is about to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held {
    pub addresses: HashSet<IpAddr>,
    pub ports: HashSet<u16>,
}

/// Namespace and name of a Service.
pub type Owner = (String, String);

/// An IPAddress object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Whether it follows a Service; others belong to whoever made them.
    pub managed: bool,
    /// The Service that it names; `None` for another parent.
    pub owner: Option<Owner>,
}

#[derive(Default)]
pub struct Book {
    services: Option<Revision>,
    addresses: Option<Revision>,
    ranges_at: Option<Revision>,
    /// The ranges that are ready, and whether any is known at all.
    ranges: Vec<Range>,
    known_ranges: bool,
    owners: HashMap<IpAddr, Owner>,
    /// How many Services hold a port: those of two protocols may share it.
    ports: HashMap<u16, u32>,
    recorded: HashMap<IpAddr, Recorded>,
    reserved: Held,
    /// Addresses of which either side changed since [`Book::changed`] was asked.
    changed: BTreeSet<IpAddr>,
}

pub fn node_port(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0)
}

/// What a Service holds.
pub fn held(service: &Value) -> Held {
    if text(service, "type") == "ExternalName" {
        return Held::default();
    }
    let addresses = list(service, "clusterIPs").iter().filter_map(Value::as_str);
    let first = std::iter::once(text(service, "clusterIP"));
    let ports = list(service, "ports").iter().map(|port| &port["nodePort"]);
    let ports = ports.chain(std::iter::once(&service["spec"]["healthCheckNodePort"]));
    Held {
        addresses: addresses.chain(first).filter_map(|address| address.parse().ok()).collect(),
        ports: ports.filter_map(node_port).collect(),
    }
}

fn owner(service: &Value) -> Owner {
    let field = |name: &str| service["metadata"][name].as_str().unwrap_or_default().to_owned();
    (field("namespace"), field("name"))
}

fn recorded(address: &Value) -> Option<(IpAddr, Recorded)> {
    let name = address["metadata"]["name"].as_str()?.parse().ok()?;
    let (label, manager) = MANAGED_BY;
    let parent = &address["spec"]["parentRef"];
    let field = |name: &str| parent[name].as_str().unwrap_or_default().to_owned();
    let of_service = field("group").is_empty() && field("resource") == "services";
    let owner = of_service.then(|| (field("namespace"), field("name")));
    Some((name, Recorded { managed: address["metadata"]["labels"][label] == manager, owner }))
}

/// Calls `change` with what left and what came since a revision; all of it as having come, after `reset`, when
/// the history does not reach back. Answers with the revision that is followed now.
fn follow<T>(
    cache: &Cache,
    since: Option<Revision>,
    target: &mut T,
    reset: fn(&mut T),
    change: fn(&mut T, Option<&Value>, Option<&Value>),
) -> Option<Revision> {
    let state = cache.read();
    let events = since.and_then(|since| state.since(since, usize::MAX).ok());
    match events {
        Some(events) => {
            for event in events {
                let previous = event.previous.as_ref().map(|object| object.tree().clone());
                let object = (!event.deleted).then(|| event.object.tree().clone());
                change(target, previous.as_deref(), object.as_deref());
            }
        }
        None => {
            reset(target);
            state.range(&cache.prefix, None).for_each(|object| change(target, None, Some(object.tree())));
        }
    }
    Some(state.newest())
}

impl Book {
    pub fn follow_services(&mut self, cache: &Cache) {
        let reset = |book: &mut Book| {
            let owners = std::mem::take(&mut book.owners);
            book.changed.extend(owners.into_keys());
            book.ports.clear();
        };
        self.services = follow(cache, self.services, self, reset, Book::change_service);
    }

    pub fn follow_addresses(&mut self, cache: &Cache) {
        let reset = |book: &mut Book| {
            let recorded = std::mem::take(&mut book.recorded);
            book.changed.extend(recorded.into_keys());
        };
        self.addresses = follow(cache, self.addresses, self, reset, Book::change_address);
    }

    /// The ranges are few: they are read anew whenever one of them changes.
    pub fn follow_ranges(&mut self, cache: &Cache) {
        let state = cache.read();
        if self.ranges_at == Some(state.newest()) {
            return;
        }
        self.ranges_at = Some(state.newest());
        self.ranges.clear();
        self.known_ranges = false;
        for object in state.range(&cache.prefix, None) {
            let range = object.tree();
            self.known_ranges = true;
            let conditions = range["status"]["conditions"].as_array().into_iter().flatten();
            let mut ready = conditions.filter(|c| c["type"] == "Ready" && c["status"] == "True");
            if ready.next().is_none() || range["metadata"]["deletionTimestamp"].is_string() {
                continue;
            }
            let parsed = list(range, "cidrs").iter().filter_map(|cidr| Range::parse(cidr.as_str()?));
            self.ranges.extend(parsed);
        }
    }

    fn change_service(&mut self, previous: Option<&Value>, service: Option<&Value>) {
        if let Some(previous) = previous {
            let held = held(previous);
            for address in held.addresses {
                self.owners.remove(&address);
                self.changed.insert(address);
            }
            for port in held.ports {
                if let Some(count) = self.ports.get_mut(&port) {
                    *count -= 1;
                    if *count == 0 {
                        self.ports.remove(&port);
                    }
                }
            }
        }
        if let Some(service) = service {
            let held = held(service);
            for address in held.addresses {
                self.owners.insert(address, owner(service));
                self.changed.insert(address);
            }
            for port in held.ports {
                *self.ports.entry(port).or_default() += 1;
            }
        }
    }

    fn change_address(&mut self, previous: Option<&Value>, address: Option<&Value>) {
        if let Some((address, _)) = previous.and_then(recorded) {
            self.recorded.remove(&address);
            self.changed.insert(address);
        }
        if let Some((address, record)) = address.and_then(recorded) {
            self.recorded.insert(address, record);
            self.changed.insert(address);
        }
    }

    /// The ranges to allocate from: those that are ready, or the configured ones before any is known.
    pub fn ranges<'b>(&'b self, configured: &'b [Range]) -> &'b [Range] {
        if self.known_ranges { &self.ranges } else { configured }
    }

    /// An address that follows a Service which has gone is free again.
    pub fn is_taken(&self, address: IpAddr) -> bool {
        self.reserved.addresses.contains(&address)
            || self.owners.contains_key(&address)
            || self.recorded.get(&address).is_some_and(|record| !record.managed)
    }

    pub fn is_port_taken(&self, port: u16) -> bool {
        self.reserved.ports.contains(&port) || self.ports.contains_key(&port)
    }

    pub fn reserve(&mut self, held: &Held) {
        self.reserved.addresses.extend(held.addresses.iter().copied());
        self.reserved.ports.extend(held.ports.iter().copied());
    }

    pub fn give_back(&mut self, held: &Held) {
        self.reserved.addresses.retain(|address| !held.addresses.contains(address));
        self.reserved.ports.retain(|port| !held.ports.contains(port));
    }

    /// The addresses of which something changed since the last time, with who holds each and what is recorded.
    pub fn changed(&mut self) -> Vec<(IpAddr, Option<Owner>, Option<Recorded>)> {
        let changed = std::mem::take(&mut self.changed);
        let state = |at: IpAddr| (at, self.owners.get(&at).cloned(), self.recorded.get(&at).cloned());
        changed.into_iter().map(state).collect()
    }

    /// Asks for an address again, because what was to be done about it failed.
    pub fn again(&mut self, address: IpAddr) {
        self.changed.insert(address);
    }
}
