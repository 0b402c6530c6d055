//! [`Pools`]: the devices of all drivers, by pool, and which of them a node can reach.
//!
//! Upstream: staging/src/k8s.io/dynamic-resource-allocation/structured/internal/incubating/pools_incubating.go

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use api::Object;
use api::core::v1::{Node, NodeSelector};
use api::resource::v1::{Counter, Device, ResourceSlice};

use super::DeviceId;
use crate::plugins::node_selector_matches;

/// A driver and a name.
type PoolId = (String, String);

/// The slices of a pool in its newest generation.
pub struct Pool {
    pub slices: Vec<Arc<ResourceSlice>>,
    /// Not all slices of the generation are there.
    pub incomplete: bool,
    /// The slices contradict each other.
    pub invalid: bool,
    /// Some device waits for conditions: such pools are the last that are looked at.
    waits: bool,
}

#[derive(Default)]
pub struct Pools {
    slices: BTreeMap<String, Arc<ResourceSlice>>,
    pools: BTreeMap<PoolId, Pool>,
    /// Pools all of whose slices are of one node.
    of_node: HashMap<String, BTreeSet<PoolId>>,
    elsewhere: BTreeSet<PoolId>,
}

/// A device that a node can reach.
#[derive(Clone)]
pub struct Reachable<'a> {
    pub id: DeviceId,
    pub device: &'a Device,
    pub slice: &'a ResourceSlice,
    pub pool: usize,
}

/// A pool with devices that a node can reach.
pub struct Within<'a> {
    pub id: &'a PoolId,
    pub pool: &'a Pool,
}

impl Pools {
    pub fn set(&mut self, name: &str, slice: Option<Arc<ResourceSlice>>) {
        let id = |slice: &ResourceSlice| (slice.spec.driver.clone(), slice.spec.pool.name.clone());
        let mut stale = BTreeSet::new();
        if let Some(old) = self.slices.remove(name) {
            stale.insert(id(&old));
        }
        if let Some(slice) = slice {
            stale.insert(id(&slice));
            self.slices.insert(name.to_owned(), slice);
        }
        for id in stale {
            self.rebuild(id);
        }
    }

    fn rebuild(&mut self, id: PoolId) {
        self.elsewhere.remove(&id);
        if let Some(old) = self.pools.remove(&id) {
            for name in old.slices.iter().filter_map(|slice| slice.spec.node_name.as_ref()) {
                if let Some(pools) = self.of_node.get_mut(name) {
                    pools.remove(&id);
                    if pools.is_empty() {
                        self.of_node.remove(name);
                    }
                }
            }
        }
        let own = self.slices.values().filter(|s| s.spec.driver == id.0 && s.spec.pool.name == id.1);
        let Some(newest) = own.clone().map(|slice| slice.spec.pool.generation).max() else { return };
        let slices: Vec<_> = own.filter(|slice| slice.spec.pool.generation == newest).cloned().collect();
        let devices = || slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
        let pool = Pool {
            incomplete: slices.iter().any(|s| s.spec.pool.resource_slice_count != slices.len() as i64),
            invalid: !is_consistent(&slices),
            waits: devices().any(|device| device.binding_conditions.as_ref().is_some_and(|c| !c.is_empty())),
            slices,
        };
        let name_of =
            |slice: &Arc<ResourceSlice>| slice.spec.node_name.clone().filter(|name| !name.is_empty());
        let nodes: BTreeSet<Option<String>> = pool.slices.iter().map(name_of).collect();
        match nodes.first() {
            Some(Some(name)) if nodes.len() == 1 => {
                self.of_node.entry(name.clone()).or_default().insert(id.clone());
            }
            _ => drop(self.elsewhere.insert(id.clone())),
        }
        self.pools.insert(id, pool);
    }

    /// The pools with something for the node, in the order in which they are looked at.
    pub fn of<'a>(&'a self, node: &Node) -> Vec<Within<'a>> {
        let own = self.of_node.get(node.name()).into_iter().flatten();
        let mut within: Vec<Within> = own
            .chain(&self.elsewhere)
            .filter_map(|id| self.pools.get_key_value(id))
            .filter(|(_, pool)| pool.slices.iter().any(|slice| is_relevant(slice, node)))
            .map(|(id, pool)| Within { id, pool })
            .collect();
        within.sort_by_key(|within| (within.pool.waits, within.id));
        within
    }
}

/// The devices of these pools that the node can reach.
pub fn reachable<'a>(pools: &[Within<'a>], node: &Node) -> Vec<Reachable<'a>> {
    let mut all = Vec::new();
    for (at, Within { id, pool }) in
        pools.iter().enumerate().filter(|(_, w)| !w.pool.incomplete && !w.pool.invalid)
    {
        for slice in pool.slices.iter().filter(|slice| slice_matches(slice, node)) {
            let each = slice.spec.per_device_node_selection == Some(true);
            let devices = slice.spec.devices.iter().flatten();
            for device in devices.filter(|device| !each || device_matches(device, node)) {
                let id = DeviceId { driver: id.0.clone(), pool: id.1.clone(), device: device.name.clone() };
                all.push(Reachable { id, device, slice, pool: at });
            }
        }
    }
    all
}

fn matches(node: &Node, name: Option<&str>, all: Option<bool>, selector: Option<&NodeSelector>) -> bool {
    match name.filter(|name| !name.is_empty()) {
        Some(name) => node.name() == name,
        None if all == Some(true) => true,
        None => selector.is_some_and(|selector| node_selector_matches(selector, node)),
    }
}

fn device_matches(device: &Device, node: &Node) -> bool {
    matches(node, device.node_name.as_deref(), device.all_nodes, device.node_selector.as_ref())
}

/// Whether devices of the slice can be reached, as far as the slice says it.
fn slice_matches(slice: &ResourceSlice, node: &Node) -> bool {
    let spec = &slice.spec;
    spec.per_device_node_selection == Some(true)
        || matches(node, spec.node_name.as_deref(), spec.all_nodes, spec.node_selector.as_ref())
}

fn is_relevant(slice: &ResourceSlice, node: &Node) -> bool {
    match slice.spec.per_device_node_selection {
        Some(true) => slice.spec.devices.iter().flatten().any(|device| device_matches(device, node)),
        _ => slice_matches(slice, node),
    }
}

/// Whether every device has a name of its own and consumes counters that are there.
fn is_consistent(slices: &[Arc<ResourceSlice>]) -> bool {
    let sets = counters(slices);
    let mut names = BTreeSet::new();
    let mut devices = slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
    let set_names = slices.iter().flat_map(|s| s.spec.shared_counters.iter().flatten()).map(|set| &set.name);
    let set_count = set_names.clone().count();
    set_names.collect::<BTreeSet<_>>().len() == set_count
        && devices.all(|device| {
            let mut consumed = device.consumes_counters.iter().flatten();
            names.insert(device.name.as_str())
                && consumed.all(|consumption| {
                    let set = sets.get(consumption.counter_set.as_str());
                    set.is_some_and(|set| consumption.counters.keys().all(|name| set.contains_key(name)))
                })
        })
}

/// The counters that the pool's devices share, by set and name.
pub fn counters(slices: &[Arc<ResourceSlice>]) -> BTreeMap<&str, &BTreeMap<String, Counter>> {
    let sets = slices.iter().flat_map(|slice| slice.spec.shared_counters.iter().flatten());
    sets.map(|set| (set.name.as_str(), &set.counters)).collect()
}
