//! Pods leave devices with NoExecute taints, at once or when the time that their claims tolerate them for is over.
//!
//! Upstream: pkg/controller/devicetainteviction/device_taint_eviction.go

use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::core::v1::Pod;
use api::resource::v1::{
    DeviceRequestAllocationResult, DeviceTaint, DeviceToleration, ResourceClaim, ResourceSlice,
};
use controller_runtime::{Deletions, Event, EventRecorder, Informer, WorkQueue};
use jiff::{SignedDuration, Timestamp};

use crate::Error;
use crate::context::Context;
use crate::eviction::{Doomed, remove, status_patch};
use crate::objects::{is_controlled_by, is_deleting, is_terminal, node_name, until};
use crate::resource_claims::{BY_CLAIM, Named, claims_of, name_of, reserved, wanted};

/// Upstream: cmd/kube-controller-manager/app/options/devicetaintevictioncontroller.go
const WORKERS: usize = 10;
const BY_POOL: &str = "device pool";
const NO_EXECUTE: &str = "NoExecute";

fn pool(driver: &str, pool: &str) -> String {
    format!("{driver}/{pool}")
}

fn pool_of(slice: &ResourceSlice) -> String {
    pool(&slice.spec.driver, &slice.spec.pool.name)
}

fn devices(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let devices = allocation.and_then(|allocation| allocation.devices.as_ref());
    devices.into_iter().flat_map(|devices| devices.results.iter().flatten())
}

/// Upstream: dynamic-resource-allocation/resourceclaim/devicetoleration.go ToleratesTaint
fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    if toleration.effect.as_deref() != Some(NO_EXECUTE) || !(key.is_empty() || key == taint.key) {
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

/// The taints of a device that drive pods off. Slices of an older generation of their pool tell of the past.
fn taints<'a>(slices: &'a [Arc<ResourceSlice>], device: &str) -> impl Iterator<Item = &'a DeviceTaint> {
    let newest = slices.iter().map(|slice| slice.spec.pool.generation).max();
    let current = slices.iter().filter(move |slice| Some(slice.spec.pool.generation) == newest);
    let found =
        current.flat_map(|slice| slice.spec.devices.iter().flatten()).find(|found| found.name == device);
    let taints = found.into_iter().flat_map(|device| device.taints.iter().flatten());
    taints.filter(|taint| taint.effect == NO_EXECUTE)
}

/// When the user of a device has to be gone because of a taint; `None` for never.
fn end(taint: &DeviceTaint, tolerations: &[DeviceToleration]) -> Option<Timestamp> {
    let since = taint.time_added.as_ref().map_or(Timestamp::MIN, |since| since.0);
    let mut tolerating = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
    if tolerating.peek().is_none() {
        return Some(since);
    }
    let mut shortest = i64::MAX;
    for toleration in tolerating {
        shortest = shortest.min(toleration.toleration_seconds?.max(0));
    }
    Some(since.checked_add(SignedDuration::from_secs(shortest)).unwrap_or(Timestamp::MAX))
}

/// When the users of a claim have to be gone.
fn claim_end(claim: &ResourceClaim, slices: impl Fn(&str) -> Vec<Arc<ResourceSlice>>) -> Option<Timestamp> {
    let ends = devices(claim).filter_map(|device| {
        let slices = slices(&pool(&device.driver, &device.pool));
        let tolerations = device.tolerations.as_deref().unwrap_or_default();
        taints(&slices, &device.device).filter_map(|taint| end(taint, tolerations)).min()
    });
    ends.min()
}

struct Controller {
    context: Context,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    slices: Informer<ResourceSlice>,
    queue: WorkQueue<String>,
    doomed: Doomed,
    removals: Deletions,
    events: EventRecorder,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        pods: context.informers.informer(),
        claims: context.informers.informer(),
        slices: context.informers.informer(),
        queue: WorkQueue::new(),
        doomed: Doomed::default(),
        removals: Deletions::default(),
        events: context.events("device-taint-eviction-controller"),
        context,
    });
    controller.pods.add_index(BY_CLAIM, claims_of);
    controller.claims.add_index(BY_POOL, |claim| devices(claim).map(|d| pool(&d.driver, &d.pool)).collect());
    controller.slices.add_index(BY_POOL, |slice| vec![pool_of(slice)]);
    if !controller.context.synced().await {
        return;
    }
    controller.subscribe();
    controller.context.work(&controller, &controller.queue, WORKERS, Controller::reconcile).await;
}

impl Controller {
    fn subscribe(self: &Arc<Self>) {
        let this = self.clone();
        self.slices.subscribe(move |event| {
            for slice in event.old().into_iter().chain([event.object()]) {
                let claims = this.claims.by_index(BY_POOL, &pool_of(slice));
                claims.iter().for_each(|claim| this.add_users(claim));
            }
        });
        let this = self.clone();
        self.claims.subscribe(move |event| this.add_users(event.object()));
        let this = self.clone();
        self.pods.subscribe(move |event| {
            this.removals.observe(event, is_deleting);
            let (Event::Added(pod) | Event::Updated { new: pod, .. }) = event else {
                this.doomed.remove(event.object());
                return;
            };
            let of = |pod: &Pod| (node_name(pod).to_owned(), claims_of(pod));
            if wanted(pod).next().is_some() && event.old().is_none_or(|old| of(old) != of(pod)) {
                this.queue.add(Object::key(&**pod));
            }
        });
    }

    fn add_users(&self, claim: &ResourceClaim) {
        let users = self.pods.by_index(BY_CLAIM, &Object::key(claim));
        users.iter().for_each(|pod| self.queue.add(Object::key(&**pod)));
    }

    /// When the pod has to be gone.
    fn pod_end(&self, pod: &Pod) -> Option<Timestamp> {
        let ends = wanted(pod).filter_map(|claim| {
            let Named::Claim(name) = name_of(pod, claim) else { return None };
            let found = self.claims.get_in(pod.namespace(), &name)?;
            let ours = claim.resource_claim_name.is_some() || is_controlled_by(&*found, pod.uid());
            let uses = ours && reserved(&found).iter().any(|consumer| consumer.uid == pod.uid());
            uses.then(|| claim_end(&found, |pool| self.slices.by_index(BY_POOL, pool)))?
        });
        ends.min()
    }

    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let lives = |pod: &Arc<Pod>| {
            !is_deleting(&**pod)
                && !is_terminal(pod)
                && !node_name(pod).is_empty()
                && !self.removals.contains(pod.uid())
        };
        let Some(pod) = self.pods.get(&key).filter(lives) else { return Ok(()) };
        let tell = |message: &str| self.events.normal(&*pod, "DeviceTaintManagerEviction", message);
        let Some(end) = self.pod_end(&pod) else {
            if self.doomed.remove(&pod) {
                tell("Cancelling deletion");
            }
            return Ok(());
        };
        let now = self.context.clock().now();
        if end > now {
            self.doomed.insert(&pod);
            // A time beyond all clocks is looked at again within a human's life.
            let wait = until(end, now).min(Duration::from_secs(u64::from(u32::MAX)));
            self.queue.add_after(key.clone(), wait + Duration::from_millis(1));
            return Ok(());
        }
        tell("Marking for deletion");
        let why = ("DeletionByDeviceTaintManager", "Device Taint manager: deleting due to NoExecute taint");
        let patch = status_patch(&pod, Some(why), None, now);
        remove(&self.context, &self.pods, &self.removals, &pod, patch, None).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::objects::tests::{arcs, at};

    fn slice(generation: i64, taints: Value) -> ResourceSlice {
        ResourceSlice::from_value(json!({"metadata": {"name": "s"}, "spec": {
            "driver": "d", "pool": {"name": "p", "generation": generation, "resourceSliceCount": 1},
            "devices": [{"name": "gpu", "taints": taints}, {"name": "other"}],
        }}))
        .unwrap()
    }

    fn claim(device: &str, tolerations: Value) -> ResourceClaim {
        let result =
            json!({"request": "r", "driver": "d", "pool": "p", "device": device, "tolerations": tolerations});
        ResourceClaim::from_value(json!({
            "metadata": {"name": "c"}, "spec": {}, "status": {"allocation": {"devices": {"results": [result]}}},
        }))
        .unwrap()
    }

    #[test]
    fn tolerations_give_time() {
        let taint = |effect: &str| json!([{"key": "k", "value": "v", "effect": effect, "timeAdded": at(0).to_string()}]);
        let toleration = |key: &str, seconds: Option<i64>| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        let equal =
            |value: &str| json!({"key": "k", "operator": "Equal", "value": value, "effect": "NoExecute"});
        for (device, taints, tolerations, expected) in [
            ("gpu", json!([]), json!([]), None),
            ("gpu", taint("NoSchedule"), json!([]), None),
            ("gpu", taint("NoExecute"), json!([]), Some(at(0))),
            ("other", taint("NoExecute"), json!([]), None),
            ("gpu", taint("NoExecute"), json!([toleration("k", None)]), None),
            ("gpu", taint("NoExecute"), json!([toleration("", Some(30))]), Some(at(30))),
            ("gpu", taint("NoExecute"), json!([toleration("x", Some(30))]), Some(at(0))),
            ("gpu", taint("NoExecute"), json!([toleration("k", Some(-5))]), Some(at(0))),
            (
                "gpu",
                taint("NoExecute"),
                json!([toleration("k", Some(60)), toleration("k", Some(30))]),
                Some(at(30)),
            ),
            ("gpu", taint("NoExecute"), json!([toleration("k", Some(60)), toleration("k", None)]), None),
            ("gpu", taint("NoExecute"), json!([equal("v")]), None),
            ("gpu", taint("NoExecute"), json!([equal("w")]), Some(at(0))),
        ] {
            let slices = arcs([slice(1, taints.clone())]);
            let found = claim_end(&claim(device, tolerations.clone()), |_| slices.clone());
            assert_eq!(found, expected, "{device} {taints} {tolerations}");
        }
    }

    #[test]
    fn old_slices_tell_of_the_past() {
        let taint = json!([{"key": "k", "effect": "NoExecute", "timeAdded": at(0).to_string()}]);
        let slices = arcs([slice(1, taint), slice(2, json!([]))]);
        assert_eq!(claim_end(&claim("gpu", json!([])), |_| slices.clone()), None);
    }
}
