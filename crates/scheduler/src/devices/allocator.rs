//! [`allocate`] chooses devices on one node for claims: the first choice that satisfies every request and every
//! constraint, in the order of pools, slices and devices.
//!
//! Upstream: staging/src/k8s.io/dynamic-resource-allocation/structured/internal/incubating/allocator_incubating.go

mod result;

use std::collections::{BTreeMap, HashMap};

use api::Object;
use api::core::v1::Node;
use api::resource::v1::{
    AllocationResult, CapacityRequirements, Device, DeviceAttribute, DeviceClassSpec, DeviceConstraint,
    DeviceSelector, DeviceTaint, DeviceToleration, ResourceClaim,
};
use apimachinery::quantity::Quantity;

use super::pools::{self, Reachable, Within};
use super::{DeviceId, Devices, Selectors, capacity};

/// A claim has at most so many devices.
///
/// Upstream: staging/src/k8s.io/api/resource/v1/types.go AllocationResultsMaxSize
const MAX_DEVICES: usize = 32;
/// A search that took so many steps is given up: constraints may make it take forever.
const MAX_STEPS: usize = 200_000;

/// One way to satisfy a request: the request itself, or one of several of which the first available will do.
struct Ask<'a> {
    name: &'a str,
    /// The request that this is one of the ways for.
    parent: Option<&'a str>,
    class_name: &'a str,
    class: &'a DeviceClassSpec,
    selectors: &'a [DeviceSelector],
    tolerations: &'a [DeviceToleration],
    capacity: Option<&'a CapacityRequirements>,
    admin: bool,
    count: usize,
    /// The devices, when all are asked for.
    all: Option<Vec<usize>>,
}

impl Ask<'_> {
    /// The name under which devices are allocated.
    fn full_name(&self) -> String {
        match self.parent {
            Some(parent) => format!("{parent}/{}", self.name),
            None => self.name.to_owned(),
        }
    }

    /// Whether a list of requests means this one; an empty one means all.
    fn is_meant(&self, requests: Option<&Vec<String>>) -> bool {
        let Some(requests) = requests.filter(|requests| !requests.is_empty()) else { return true };
        let base = self.parent.unwrap_or(self.name);
        requests.iter().any(|name| name == base) || requests.contains(&self.full_name())
    }
}

/// A device that was chosen, by its place among the reachable ones.
struct Pick {
    device: usize,
    request: usize,
    way: usize,
    /// The capacity that a share takes; `None` for a whole device.
    share: Option<BTreeMap<String, Quantity>>,
}

/// Where a search stands.
#[derive(Clone, Copy)]
struct At {
    claim: usize,
    request: usize,
    way: usize,
    nth: usize,
    /// Where among the devices the next one is looked for.
    from: usize,
}

struct Search<'a> {
    devices: &'a Devices,
    selectors: &'a Selectors,
    node: &'a Node,
    claims: &'a [&'a ResourceClaim],
    pools: Vec<Within<'a>>,
    reachable: Vec<Reachable<'a>>,
    /// The ways to satisfy each request of each claim.
    asks: Vec<Vec<Vec<Ask<'a>>>>,
    picks: Vec<Vec<Pick>>,
    /// Answers of selectors, by claim, request, way and device.
    matching: HashMap<(usize, usize, usize, usize), bool>,
    /// What is left of each pool's counters before this search.
    counters: HashMap<usize, BTreeMap<(String, String), Quantity>>,
    steps: usize,
}

/// The allocations of the claims on the node, in their order; none when they cannot all be satisfied, and words when
/// something is wrong with them.
pub fn allocate(
    devices: &Devices,
    selectors: &Selectors,
    node: &Node,
    claims: &[&ResourceClaim],
) -> Result<Option<Vec<AllocationResult>>, String> {
    let pools = devices.pools.of(node);
    let reachable = pools::reachable(&pools, node);
    let mut search = Search {
        devices,
        selectors,
        node,
        claims,
        pools,
        reachable,
        asks: Vec::new(),
        picks: claims.iter().map(|_| Vec::new()).collect(),
        matching: HashMap::new(),
        counters: HashMap::new(),
        steps: 0,
    };
    for claim in 0..claims.len() {
        search.read(claim)?;
    }
    if search.next(At { claim: 0, request: 0, way: 0, nth: 0, from: 0 })? {
        return search.results().map(Some);
    }
    if search.pools.iter().any(|within| within.pool.invalid) {
        return Err("invalid resource pools were encountered".into());
    }
    Ok(None)
}

fn named(claim: &ResourceClaim) -> String {
    format!("claim {}", claim.key())
}

impl<'a> Search<'a> {
    /// Reads what a claim asks for.
    fn read(&mut self, at: usize) -> Result<(), String> {
        let claim: &'a ResourceClaim = self.claims[at];
        self.asks.push(Vec::new());
        let mut least = 0;
        let requests = claim.spec.devices.iter().flat_map(|devices| devices.requests.iter().flatten());
        for (number, request) in requests.enumerate() {
            let place = (at, number);
            self.asks[at].push(Vec::new());
            if let Some(one) = &request.exactly {
                let mode = (one.allocation_mode.as_deref(), one.count);
                let mut ask = self.ask(claim, &request.name, &one.device_class_name)?;
                ask.selectors = one.selectors.as_deref().unwrap_or_default();
                ask.tolerations = one.tolerations.as_deref().unwrap_or_default();
                ask.capacity = one.capacity.as_ref();
                ask.admin = one.admin_access == Some(true);
                self.settle(place, ask, mode)?;
            }
            for sub in request.first_available.iter().flatten() {
                let mode = (sub.allocation_mode.as_deref(), sub.count);
                let mut ask = self.ask(claim, &sub.name, &sub.device_class_name)?;
                ask.parent = Some(&request.name);
                ask.selectors = sub.selectors.as_deref().unwrap_or_default();
                ask.tolerations = sub.tolerations.as_deref().unwrap_or_default();
                ask.capacity = sub.capacity.as_ref();
                self.settle(place, ask, mode)?;
            }
            least += self.asks[at][number].iter().map(|ask| ask.count).min().unwrap_or(0);
        }
        if least > MAX_DEVICES {
            let claim = named(claim);
            return Err(format!(
                "{claim}: number of requested devices {least} exceeds the claim limit of {MAX_DEVICES}"
            ));
        }
        let constraints = claim.spec.devices.iter().flat_map(|devices| devices.constraints.iter().flatten());
        for (number, constraint) in constraints.enumerate() {
            if constraint.match_attribute.is_none() && constraint.distinct_attribute.is_none() {
                let claim = named(claim);
                return Err(format!(
                    "{claim}, constraint #{number}: empty constraint (unsupported constraint type?)"
                ));
            }
        }
        Ok(())
    }

    fn ask(&self, claim: &ResourceClaim, name: &'a str, class: &'a str) -> Result<Ask<'a>, String> {
        let Some(known) = self.devices.class(class) else {
            let claim = named(claim);
            return Err(format!("{claim}, request {name}: could not retrieve device class {class}"));
        };
        Ok(Ask {
            name,
            parent: None,
            class_name: class,
            class: known,
            selectors: &[],
            tolerations: &[],
            capacity: None,
            admin: false,
            count: 0,
            all: None,
        })
    }

    /// Finds out how many devices are asked for, and notes the ask.
    fn settle(
        &mut self,
        (claim, request): (usize, usize),
        ask: Ask<'a>,
        (mode, count): (Option<&str>, Option<i64>),
    ) -> Result<(), String> {
        let (place, way) =
            (format!("{}, request {}", named(self.claims[claim]), ask.name), self.asks[claim][request].len());
        self.asks[claim][request].push(ask);
        match mode.unwrap_or("ExactCount") {
            "ExactCount" => {
                let count = usize::try_from(count.unwrap_or(1)).unwrap_or(0);
                self.asks[claim][request][way].count = count;
            }
            "All" => {
                if let Some(Within { id: (driver, pool), .. }) = self.pools.iter().find(|w| w.pool.incomplete)
                {
                    let words = "asks for all devices, but resource pool";
                    return Err(format!("{place}: {words} {driver}/{pool} is currently being updated"));
                }
                if let Some(Within { id: (driver, pool), .. }) = self.pools.iter().find(|w| w.pool.invalid) {
                    let words = "asks for all devices, but resource pool";
                    return Err(format!("{place}: {words} {driver}/{pool} is currently invalid"));
                }
                let mut all = Vec::new();
                for device in 0..self.reachable.len() {
                    let at = At { claim, request, way, nth: 0, from: 0 };
                    if self.matches(at, device)? && self.share(at, device).is_some() {
                        all.push(device);
                    }
                }
                let ask = &mut self.asks[claim][request][way];
                ask.count = all.len();
                ask.all = Some(all);
            }
            other => return Err(format!("{place}: unsupported count mode {other}")),
        }
        Ok(())
    }

    /// Allocates what is still missing; false when that cannot be.
    fn next(&mut self, at: At) -> Result<bool, String> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(format!("node {}: timed out trying to allocate devices", self.node.name()));
        }
        let Some(requests) = self.asks.get(at.claim) else { return Ok(true) };
        let Some(ways) = requests.get(at.request) else {
            return self.next(At { claim: at.claim + 1, request: 0, way: 0, nth: 0, from: 0 });
        };
        if at.nth == 0 {
            for way in 0..ways.len() {
                if self.fill(At { way, from: 0, ..at })? {
                    return Ok(true);
                }
            }
            return Ok(false);
        }
        self.fill(at)
    }

    /// The next device of a request, and all that comes after it.
    fn fill(&mut self, at: At) -> Result<bool, String> {
        let ask = &self.asks[at.claim][at.request][at.way];
        let count = ask.count;
        let all = ask.all.as_ref().map(|all| all.get(at.nth).copied());
        if all.is_some() && count == 0 {
            return Ok(false);
        }
        if at.nth >= count {
            return self.next(At { claim: at.claim, request: at.request + 1, way: 0, nth: 0, from: 0 });
        }
        if self.picks[at.claim].len() + count - at.nth > MAX_DEVICES {
            return Ok(false);
        }
        let candidates = match all {
            Some(device) => device.map_or(0..0, |device| device..device + 1),
            None => at.from..self.reachable.len(),
        };
        for device in candidates {
            if !self.pick(at, device)? {
                continue;
            }
            if self.next(At { nth: at.nth + 1, from: device + 1, ..at })? {
                return Ok(true);
            }
            self.picks[at.claim].pop();
        }
        Ok(false)
    }

    /// Takes a device if that can be.
    fn pick(&mut self, at: At, device: usize) -> Result<bool, String> {
        let ask = &self.asks[at.claim][at.request][at.way];
        let Reachable { id, device: offered, .. } = &self.reachable[device];
        let shared = offered.allow_multiple_allocations == Some(true);
        let picked_by = |claims: std::ops::Range<usize>| {
            let mut picks = self.picks[claims].iter().flatten();
            picks.any(|pick| pick.device == device && pick.share.is_none())
        };
        let in_use = match ask.admin {
            true => picked_by(at.claim..at.claim + 1),
            false => self.devices.is_taken(id) || picked_by(0..self.picks.len()),
        };
        if in_use || is_repelled(offered, ask.tolerations) || !self.matches(at, device)? {
            return Ok(false);
        }
        let Some(share) = self.share(at, device) else { return Ok(false) };
        if !self.satisfies(at, device) || !self.has_counters(device, shared) {
            return Ok(false);
        }
        let share = shared.then_some(share);
        self.picks[at.claim].push(Pick { device, request: at.request, way: at.way, share });
        Ok(true)
    }

    /// Whether class and request choose the device.
    fn matches(&mut self, at: At, device: usize) -> Result<bool, String> {
        let place = (at.claim, at.request, at.way, device);
        if let Some(known) = self.matching.get(&place) {
            return Ok(*known);
        }
        let ask = &self.asks[at.claim][at.request][at.way];
        let Reachable { id, device: offered, .. } = &self.reachable[device];
        let of_class = ask.class.selectors.iter().flatten().enumerate();
        let own = ask.selectors.iter().enumerate();
        let class = || format!("class {}", ask.class_name);
        let claim = || named(self.claims[at.claim]);
        let mut matches = true;
        for ((number, selector), whose) in of_class
            .map(|selector| (selector, &class as &dyn Fn() -> String))
            .chain(own.map(|selector| (selector, &claim as &dyn Fn() -> String)))
        {
            let Some(cel) = &selector.cel else {
                let request = ask.name;
                let words = "CEL expression empty (unsupported selector type?)";
                return Err(format!("{}, request {request}, selector #{number}: {words}", whose()));
            };
            let matched = self.selectors.matches(&cel.expression, &id.driver, offered);
            if !matched.map_err(|error| format!("{}: selector #{number}: {error}", whose()))? {
                matches = false;
                break;
            }
        }
        self.matching.insert(place, matches);
        Ok(matches)
    }

    /// What the request takes of the device's capacity, if it is left.
    fn share(&self, at: At, device: usize) -> Option<BTreeMap<String, Quantity>> {
        let ask = &self.asks[at.claim][at.request][at.way];
        let Reachable { id, device: offered, .. } = &self.reachable[device];
        let taken = capacity::taken(ask.capacity, offered)?;
        let fits = taken.iter().all(|(name, amount)| {
            let mut sum = *amount;
            if let Some(consumed) = self.devices.consumed(id, name) {
                sum.add(consumed);
            }
            let picks = self.picks.iter().flatten().filter(|pick| pick.device == device);
            picks.filter_map(|pick| pick.share.as_ref()?.get(name)).for_each(|more| sum.add(more));
            sum <= capacity::whole(offered, name)
        });
        fits.then_some(taken)
    }

    /// Whether the claim's constraints hold with one more device.
    fn satisfies(&self, at: At, device: usize) -> bool {
        let devices = self.claims[at.claim].spec.devices.as_ref();
        let mut constraints = devices.into_iter().flat_map(|devices| devices.constraints.iter().flatten());
        constraints.all(|constraint| self.satisfies_one(constraint, at, device))
    }

    fn satisfies_one(&self, constraint: &DeviceConstraint, at: At, device: usize) -> bool {
        let asks = &self.asks[at.claim];
        if !asks[at.request][at.way].is_meant(constraint.requests.as_ref()) {
            return true;
        }
        let attribute = |name: &str, device: usize| {
            let Reachable { id, device, .. } = &self.reachable[device];
            attribute(device, id, name)
        };
        let meant = |pick: &&Pick| asks[pick.request][pick.way].is_meant(constraint.requests.as_ref());
        let mut others = self.picks[at.claim].iter().filter(meant).map(|pick| pick.device);
        if let Some(name) = &constraint.match_attribute {
            let Some(own) = attribute(name, device) else { return false };
            return others.next().is_none_or(|first| attribute(name, first).is_some_and(|a| is_same(a, own)));
        }
        if let Some(name) = &constraint.distinct_attribute {
            let Some(own) = attribute(name, device) else { return false };
            return others.all(|other| attribute(name, other).is_none_or(|a| !is_same(a, own)));
        }
        true
    }

    /// Whether the pool's shared counters have what the device consumes.
    fn has_counters(&mut self, device: usize, shared: bool) -> bool {
        let Reachable { id, device: offered, pool, .. } = self.reachable[device].clone();
        let consumes = offered.consumes_counters.as_deref().unwrap_or_default();
        let has_share = |pick: &Pick| pick.device == device && pick.share.is_some();
        // What is shared already has consumed its counters.
        let again = shared && (self.devices.is_shared(&id) || self.picks.iter().flatten().any(has_share));
        if consumes.is_empty() || again {
            return true;
        }
        if !self.counters.contains_key(&pool) {
            let left = self.counters_left(pool);
            self.counters.insert(pool, left);
        }
        let mut left = self.counters[&pool].clone();
        let mut picked: Vec<usize> = self.picks.iter().flatten().map(|pick| pick.device).collect();
        picked.retain(|other| self.reachable[*other].pool == pool);
        picked.push(device);
        picked.sort_unstable();
        picked.dedup();
        picked.iter().for_each(|picked| consume(&mut left, self.reachable[*picked].device));
        left.values().all(|left| !left.is_negative())
    }

    /// The pool's counters without what allocated devices consume.
    fn counters_left(&self, pool: usize) -> BTreeMap<(String, String), Quantity> {
        let Within { id, pool } = &self.pools[pool];
        let mut left = BTreeMap::new();
        for (set, counters) in pools::counters(&pool.slices) {
            for (name, counter) in counters {
                let amount = Quantity::parse(&counter.value.0).unwrap_or_default();
                left.insert((set.to_owned(), name.clone()), amount);
            }
        }
        for device in pool.slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten()) {
            let id = DeviceId { driver: id.0.clone(), pool: id.1.clone(), device: device.name.clone() };
            if self.devices.is_taken(&id) || self.devices.is_shared(&id) {
                consume(&mut left, device);
            }
        }
        left
    }
}

fn consume(left: &mut BTreeMap<(String, String), Quantity>, device: &Device) {
    for consumption in device.consumes_counters.iter().flatten() {
        for (name, counter) in &consumption.counters {
            let place = (consumption.counter_set.clone(), name.clone());
            if let (Some(left), Ok(amount)) = (left.get_mut(&place), Quantity::parse(&counter.value.0)) {
                left.sub(&amount);
            }
        }
    }
}

/// Names without a domain are of the driver's.
fn attribute<'a>(device: &'a Device, id: &DeviceId, name: &str) -> Option<&'a DeviceAttribute> {
    let attributes = device.attributes.as_ref()?;
    attributes.get(name).or_else(|| {
        let (domain, own) = name.split_once('/')?;
        attributes.get(own).filter(|_| domain == id.driver)
    })
}

fn is_same(a: &DeviceAttribute, b: &DeviceAttribute) -> bool {
    let known = a.string.is_some() || a.int.is_some() || a.bool.is_some() || a.version.is_some();
    known && a.string == b.string && a.int == b.int && a.bool == b.bool && a.version == b.version
}

/// Whether a taint of the device keeps it from being allocated.
fn is_repelled(device: &Device, tolerations: &[DeviceToleration]) -> bool {
    let mut taints = device.taints.iter().flatten();
    taints.any(|taint| {
        matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
            && !tolerations.iter().any(|toleration| tolerates(toleration, taint))
    })
}

/// Upstream: staging/src/k8s.io/dynamic-resource-allocation/resourceclaim/devicetoleration.go ToleratesTaint
fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let differs =
        |given: &Option<String>, is: &str| given.as_deref().is_some_and(|g| !g.is_empty() && g != is);
    if differs(&toleration.effect, &taint.effect) || differs(&toleration.key, &taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        "Exists" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
