//! Ranges of Service addresses: each is ready, and none goes while an address depends on it alone.
//!
//! Upstream: pkg/controller/servicecidrs/servicecidrs_controller.go

use std::net::IpAddr;
use std::sync::Arc;

use api::Object;
use api::networking::v1::{IPAddress, ServiceCIDR};
use client::PatchType;
use controller_runtime::{EventRecorder, Informer, WorkQueue};
use serde_json::{Value, json};

use crate::Error;
use crate::context::Context;
use crate::objects::{is_deleting, label, until};

const COMPONENT: &str = "service-cidr-controller";
const WORKERS: usize = 5;
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// Who allocates hears of the deletion meanwhile.
const GRACE_SECONDS: i64 = 10;

/// An address and how many of its bits are the range's.
type Range = (IpAddr, u8);

fn parse(cidr: &str) -> Option<Range> {
    let (address, bits) = cidr.split_once('/')?;
    Some((address.parse().ok()?, bits.parse().ok()?))
}

fn contains(outer: Range, inner: Range) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
        IpAddr::V6(v6) => u128::from(v6),
    };
    let same_family = outer.0.is_ipv4() == inner.0.is_ipv4();
    let differing = bits(outer.0) ^ bits(inner.0);
    same_family && outer.1 <= inner.1 && differing.leading_zeros() >= u32::from(outer.1)
}

fn ranges(cidr: &ServiceCIDR) -> impl Iterator<Item = Range> + '_ {
    let cidrs = cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    cidrs.filter_map(|cidr| parse(cidr))
}

fn holds(cidr: &ServiceCIDR, inner: Range) -> bool {
    ranges(cidr).any(|outer| contains(outer, inner))
}

/// The address of an object that the server itself allocated.
fn allocated(address: &IPAddress) -> Option<Range> {
    let ip: IpAddr = address.name().parse().ok()?;
    let whole = if ip.is_ipv4() { 32 } else { 128 };
    (label(address, MANAGED_BY) == Some(ALLOCATOR)).then_some((ip, whole))
}

/// Whether no address loses its only range.
///
/// Upstream: pkg/controller/servicecidrs/servicecidrs_controller.go canDeleteCIDR
fn may_go(cidr: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>]) -> bool {
    let others = || all.iter().filter(|other| other.name() != cidr.name());
    if ranges(cidr).all(|range| others().any(|other| holds(other, range))) {
        return true;
    }
    let mut held = addresses.iter().filter_map(|address| allocated(address)).filter(|ip| holds(cidr, *ip));
    held.all(|ip| others().any(|other| holds(other, ip)))
}

/// The condition as it shall be; `None` when it is so.
fn ready(cidr: &ServiceCIDR, terminating: bool) -> Option<Value> {
    let (status, reason, message) = match terminating {
        true => (
            "False",
            "Terminating",
            "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR",
        ),
        false => ("True", "", "Kubernetes Service CIDR is ready"),
    };
    let conditions = cidr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let current = conditions.into_iter().find(|condition| condition.type_ == "Ready");
    let same = current.is_some_and(|c| c.status == status && c.reason == reason && c.message == message);
    (!same).then(|| json!({"type": "Ready", "status": status, "reason": reason, "message": message}))
}

struct Controller {
    context: Context,
    events: EventRecorder,
    cidrs: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
    queue: WorkQueue<String>,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        events: context.events(COMPONENT),
        cidrs: context.informers.informer(),
        addresses: context.informers.informer(),
        queue: WorkQueue::new(),
        context,
    });
    let this = controller.clone();
    controller.cidrs.subscribe(move |event| {
        // What comes or goes may be what another waits for.
        this.queue.add(event.object().name().to_owned());
        if event.old().is_none() {
            let deleting = this.cidrs.list();
            let deleting = deleting.iter().filter(|cidr| is_deleting(&***cidr));
            deleting.for_each(|cidr| this.queue.add(cidr.name().to_owned()));
        }
    });
    let this = controller.clone();
    controller.addresses.subscribe(move |event| {
        if event.old().is_some() {
            return;
        }
        let Some(ip) = allocated(event.object()) else { return };
        for cidr in this.cidrs.list().iter().filter(|cidr| is_deleting(&***cidr) && holds(cidr, ip)) {
            this.queue.add(cidr.name().to_owned());
        }
    });
    controller.context.work(&controller, &controller.queue, WORKERS, Controller::reconcile).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, name: String) -> Result<(), Error> {
        let Some(cidr) = self.cidrs.get(&name) else { return Ok(()) };
        let finalizers = cidr.metadata.finalizers.clone().unwrap_or_default();
        let protected = finalizers.iter().any(|finalizer| finalizer == FINALIZER);
        if let Some(deleted) = cidr.metadata.deletion_timestamp.as_ref().map(|time| time.0) {
            if !may_go(&cidr, &self.cidrs.list(), &self.addresses.list()) {
                return self.say(&cidr, true).await;
            }
            let gone = deleted + jiff::SignedDuration::from_secs(GRACE_SECONDS);
            let left = until(gone, self.context.clock().now());
            if !left.is_zero() {
                self.queue.add_after(name.clone(), left);
                return Ok(());
            }
            if !protected {
                return Ok(());
            }
            let rest: Vec<_> = finalizers.into_iter().filter(|finalizer| finalizer != FINALIZER).collect();
            return self.write_finalizers(&cidr, rest).await;
        }
        if !protected {
            let all = finalizers.into_iter().chain([FINALIZER.to_owned()]).collect();
            self.write_finalizers(&cidr, all).await?;
        }
        self.say(&cidr, false).await.inspect_err(|_| {
            let message = "The ServiceCIDR Status can not be set to Ready=True";
            self.events.warning(&*cidr, "KubernetesServiceCIDRError", message);
        })
    }

    async fn write_finalizers(&self, cidr: &ServiceCIDR, finalizers: Vec<String>) -> Result<(), Error> {
        let mut updated = cidr.clone();
        updated.metadata.finalizers = Some(finalizers);
        match self.cidrs.update(&updated).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }

    async fn say(&self, cidr: &ServiceCIDR, terminating: bool) -> Result<(), Error> {
        let Some(mut condition) = ready(cidr, terminating) else { return Ok(()) };
        condition["lastTransitionTime"] = json!(self.context.clock().time());
        let conditions = cidr.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let others = conditions.filter(|condition| condition.type_ != "Ready").map(|c| json!(c));
        let conditions: Vec<_> = others.chain([condition]).collect();
        let patch = json!({"metadata": {"uid": cidr.uid()}, "status": {"conditions": conditions}});
        match self.cidrs.patch(cidr, Some("status"), PatchType::Merge, &patch).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(name: &str, range: &str) -> Arc<ServiceCIDR> {
        let object = json!({"metadata": {"name": name}, "spec": {"cidrs": [range]}});
        Arc::new(ServiceCIDR::from_value(object).unwrap())
    }

    fn address(ip: &str) -> Arc<IPAddress> {
        let object = json!({"metadata": {"name": ip, "labels": {MANAGED_BY: ALLOCATOR}}});
        Arc::new(IPAddress::from_value(object).unwrap())
    }

    #[test]
    fn a_range_goes_when_its_addresses_have_another() {
        let all = [
            cidr("a", "10.0.0.0/16"),
            cidr("b", "10.0.1.0/24"),
            cidr("c", "10.9.0.0/16"),
            cidr("d", "fd00::/112"),
        ];
        for (which, addresses, expected) in [
            // All of it is in another.
            (1, vec![address("10.0.1.7")], true),
            (0, vec![address("10.0.1.7")], true),
            (0, vec![address("10.0.2.7")], false),
            (2, vec![address("10.9.0.7")], false),
            (2, vec![address("10.0.0.7")], true),
            (3, vec![address("fd00::5")], false),
            (3, vec![], true),
        ] {
            assert_eq!(may_go(&all[which], &all, &addresses), expected, "{which} {addresses:?}");
        }
    }

    #[test]
    fn the_condition_is_written_once() {
        let mut cidr = (*cidr("a", "10.0.0.0/16")).clone();
        let mut condition = ready(&cidr, false).unwrap();
        assert_eq!(condition["status"], "True");
        condition["lastTransitionTime"] = json!("2026-01-01T00:00:00Z");
        let status = json!({ "conditions": [condition] });
        let object = json!({"metadata": {"name": "a"}, "spec": {"cidrs": []}, "status": status});
        cidr = ServiceCIDR::from_value(object).unwrap();
        assert_eq!(ready(&cidr, false), None);
        assert_eq!(ready(&cidr, true).unwrap()["reason"], "Terminating");
    }
}
