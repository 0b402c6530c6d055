//! [`Devices`]: what drivers offer, and what of it claims have; the scheduler's own unconfirmed allocations count.
//!
//! [`pools`] finds the devices that a node can reach, [`allocator`] chooses among them for claims, [`capacity`]
//! shares one device between claims, and [`selector`] asks expressions about devices. [`extended`] makes claims of
//! extended resources.

pub mod allocator;
mod capacity;
pub mod extended;
mod pools;
mod selector;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::resource::v1::{AllocationResult, DeviceClass, DeviceClassSpec, ResourceClaim, ResourceSlice};
use apimachinery::quantity::Quantity;

use crate::volumes::Assumable;

pub use pools::Pools;
pub use selector::Selectors;

/// A device by its driver, its pool and its name there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    pub driver: String,
    pub pool: String,
    pub device: String,
}

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.driver, self.pool, self.device)
    }
}

/// What claims have of a device.
#[derive(Clone, Debug, Default)]
struct Use {
    /// How many have all of it.
    whole: usize,
    /// How many have a share of it.
    shares: usize,
    consumed: BTreeMap<String, Quantity>,
}

#[derive(Default)]
pub struct Devices {
    claims: Assumable<ResourceClaim>,
    classes: HashMap<String, Arc<DeviceClass>>,
    pools: Pools,
    uses: HashMap<DeviceId, Use>,
    /// The claims for extended resources, by the uid of the pod.
    of_pods: HashMap<String, String>,
}

impl Devices {
    pub fn claim(&self, key: &str) -> Option<&Arc<ResourceClaim>> {
        self.claims.get(key)
    }

    /// As the API server last showed it.
    pub fn confirmed(&self, key: &str) -> Option<&Arc<ResourceClaim>> {
        self.claims.confirmed(key)
    }

    pub fn class(&self, name: &str) -> Option<&DeviceClassSpec> {
        self.classes.get(name).map(|class| &class.spec)
    }

    pub fn set_class(&mut self, name: &str, class: Option<Arc<DeviceClass>>) {
        match class {
            Some(class) => drop(self.classes.insert(name.to_owned(), class)),
            None => drop(self.classes.remove(name)),
        }
    }

    pub fn set_slice(&mut self, name: &str, slice: Option<Arc<ResourceSlice>>) {
        self.pools.set(name, slice);
    }

    /// The class of devices behind an extended resource.
    pub fn class_of(&self, resource: &str) -> Option<&str> {
        extended::is_extended(resource).then(|| extended::class_of(&self.classes, resource))?
    }

    /// The claim that the API server has for the extended resources of a pod.
    pub fn claim_of_pod(&self, uid: &str) -> Option<&Arc<ResourceClaim>> {
        self.claims.confirmed(self.of_pods.get(uid)?)
    }

    pub fn set_claim(&mut self, key: &str, claim: Option<Arc<ResourceClaim>>) {
        let is_of_pod = |claim: &Arc<ResourceClaim>| Some(extended::pod_of(claim)?.to_owned());
        match claim.as_ref().map(is_of_pod) {
            Some(Some(uid)) => {
                // It takes the place of the one that was assumed without a name.
                if claim.as_deref().and_then(allocation).is_some() {
                    self.restore(&unnamed(&uid));
                }
                self.of_pods.insert(uid, key.to_owned());
            }
            Some(None) => {}
            None => {
                if let Some(uid) = self.claims.confirmed(key).and_then(is_of_pod) {
                    self.of_pods.remove(&uid);
                }
            }
        }
        // An assumed allocation goes until it is shown, though other changes of the claim may be shown before.
        let pending = |claim: &ResourceClaim| {
            let assumed =
                self.claims.assumed(key).filter(|assumed| assumed.metadata.uid == claim.metadata.uid);
            assumed.is_some() && allocation(claim).is_none()
        };
        match claim {
            Some(claim) if pending(&claim) => self.claims.show(key, claim),
            claim => self.change(key, |claims| claims.set(key, claim)),
        }
    }

    /// A claim as it will be.
    pub fn assume(&mut self, key: &str, claim: ResourceClaim) {
        self.change(key, |claims| claims.assume(key.to_owned(), claim));
    }

    pub fn restore(&mut self, key: &str) {
        self.change(key, |claims| claims.restore(key));
    }

    fn change(&mut self, key: &str, change: impl FnOnce(&mut Assumable<ResourceClaim>)) {
        let before = self.claims.get(key).cloned();
        change(&mut self.claims);
        let after = self.claims.get(key).cloned();
        if let Some(allocation) = before.as_deref().and_then(allocation) {
            self.count(allocation, false);
        }
        if let Some(allocation) = after.as_deref().and_then(allocation) {
            self.count(allocation, true);
        }
    }

    /// Takes or gives back what an allocation has. Who looks after a device does not use it.
    ///
    /// Upstream: pkg/scheduler/framework/plugins/dynamicresources/allocateddevices.go foreachAllocatedDevice
    fn count(&mut self, allocation: &AllocationResult, takes: bool) {
        let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
        for result in results.filter(|result| result.admin_access != Some(true)) {
            let id = DeviceId {
                driver: result.driver.clone(),
                pool: result.pool.clone(),
                device: result.device.clone(),
            };
            let used = self.uses.entry(id.clone()).or_default();
            let counter = if result.share_id.is_some() { &mut used.shares } else { &mut used.whole };
            *counter = if takes { *counter + 1 } else { counter.saturating_sub(1) };
            for (name, amount) in result.consumed_capacity.iter().flatten() {
                // The API server lets no malformed quantity in.
                let Ok(amount) = Quantity::parse(&amount.0) else { continue };
                let consumed = used.consumed.entry(name.clone()).or_default();
                if takes { consumed.add(&amount) } else { consumed.sub(&amount) }
            }
            if used.whole == 0 && used.shares == 0 {
                self.uses.remove(&id);
            }
        }
    }

    /// Whether a claim has all of the device.
    fn is_taken(&self, id: &DeviceId) -> bool {
        self.uses.get(id).is_some_and(|used| used.whole > 0)
    }

    /// Whether a claim has a share of the device.
    fn is_shared(&self, id: &DeviceId) -> bool {
        self.uses.get(id).is_some_and(|used| used.shares > 0)
    }

    /// What the shares of a device have of it together.
    fn consumed(&self, id: &DeviceId, name: &str) -> Option<&Quantity> {
        self.uses.get(id)?.consumed.get(name)
    }
}

/// Under which key a pod's claim for extended resources is assumed, since the API server has yet to name it.
pub fn unnamed(uid: &str) -> String {
    format!("<extended-resources>/{uid}")
}

pub fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}
