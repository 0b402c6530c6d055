//! The status of ResourceQuotas: how much of what they limit is used.
//!
//! Admission holds the limits, by the same [costs](resources::quota); this says what is so, and gives back what
//! deleted objects used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use api::resource::v1::ResourceClaim;
use api::{Object, Quantity};
use apimachinery::{GroupResource, GroupVersionResource, quantity};
use controller_runtime::{Event, Informer, WorkQueue};
use jiff::{SignedDuration, Timestamp};
use resources::quota::{Quantities, concerns, in_scope, usage};
use serde_json::Value;

use crate::Error;
use crate::context::Context;

const WORKERS: usize = 5;
/// What comes was charged at admission. To count at once would take back what was charged for the next object,
/// which is on its way still.
const AFTER_ADDITIONS: Duration = Duration::from_secs(1);
/// What is wrong for any other reason is mended so often.
///
/// Upstream: pkg/controller/resourcequota/config/v1alpha1/defaults.go ResourceQuotaSyncPeriod
const RECOUNT: Duration = Duration::from_secs(300);

/// The objects of a kind whose costs are sums.
pub(crate) type Costly = (GroupVersionResource, Vec<Value>);

/// The group and resource that a limit counts objects of, if it is such a limit.
///
/// Upstream: apiserver/pkg/quota/v1/generic/evaluator.go ObjectCountQuotaResourceNameFor
fn counted(name: &str) -> Option<(&str, &str)> {
    if ["configmaps", "secrets", "replicationcontrollers", "resourcequotas"].contains(&name) {
        return Some(("", name));
    }
    let name = name.strip_prefix("count/")?;
    Some(name.split_once('.').map_or(("", name), |(resource, group)| (group, resource)))
}

/// The used amounts of all that the quota limits. What is unknown keeps the amount that was said before.
///
/// Upstream: pkg/controller/resourcequota/resource_quota_controller.go syncResourceQuota
pub(crate) fn decide(
    quota: &ResourceQuota,
    costly: &[Costly],
    count: impl Fn(&str, &str) -> Option<usize>,
) -> ResourceQuotaStatus {
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
    let before = quota.status.as_ref().and_then(|status| status.used.as_ref());
    let as_value = quota.to_value();
    let mut sums = Quantities::default();
    for (gvr, objects) in costly.iter().filter(|(gvr, _)| hard.keys().any(|name| concerns(gvr, name))) {
        for object in objects.iter().filter(|object| in_scope(&as_value, gvr, object)) {
            sums.add(&usage(gvr, object));
        }
    }
    let mut used = BTreeMap::new();
    for name in hard.keys() {
        let summed = costly.iter().any(|(gvr, _)| concerns(gvr, name));
        let counted = counted(name).filter(|_| !summed);
        let amount = match counted.and_then(|(group, resource)| count(group, resource)) {
            Some(objects) => Some(Quantity(objects.to_string())),
            None if summed => Some(Quantity(sums.get(name).copied().unwrap_or_default().to_string())),
            None => before.and_then(|before| before.get(name)).cloned(),
        };
        used.extend(amount.map(|amount| (name.clone(), amount)));
    }
    ResourceQuotaStatus { hard: Some(hard), used: Some(used) }
}

fn same(a: &ResourceQuotaStatus, b: &ResourceQuotaStatus) -> bool {
    let plain = |list: &Option<BTreeMap<String, Quantity>>| -> Option<Vec<_>> {
        let list = list.as_ref()?.iter();
        Some(list.map(|(name, amount)| (name.clone(), quantity::Quantity::parse(&amount.0))).collect())
    };
    plain(&a.hard) == plain(&b.hard) && plain(&a.used) == plain(&b.used)
}

/// How long a deleted pod is counted still. A pod that outstays its grace is counted no more: its node may be
/// gone for good.
///
/// Upstream: pkg/quota/v1/evaluator/core/pods.go QuotaV1Pod
pub(crate) fn until_given_up(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds?);
    let end = pod.metadata.deletion_timestamp.as_ref()?.0.checked_add(grace).ok()?;
    Some(end.duration_since(now).try_into().unwrap_or(Duration::ZERO))
}

struct Quotas {
    context: Context,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    devices: Informer<ResourceClaim>,
    queue: WorkQueue<String>,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let informers = &context.informers;
    let controller = Arc::new(Quotas {
        quotas: informers.informer::<ResourceQuota>(),
        pods: informers.informer::<Pod>(),
        services: informers.informer::<Service>(),
        claims: informers.informer::<PersistentVolumeClaim>(),
        devices: informers.informer::<ResourceClaim>(),
        queue: WorkQueue::new(),
        context,
    });
    let this = controller.clone();
    controller.quotas.subscribe(move |event| {
        // Not when what is used changes: admission has charged what is about to come, and is not here yet.
        let quota = event.object();
        let limits = |quota: &ResourceQuota| quota.spec.as_ref().and_then(|spec| spec.hard.clone());
        let told = quota.status.as_ref().and_then(|status| status.hard.clone());
        if event.old().is_none_or(|old| old.spec != quota.spec) || told != limits(quota) {
            this.queue.add(event.object().key());
        }
    });
    controller.follow(&controller.pods);
    controller.follow(&controller.services);
    controller.follow(&controller.claims);
    controller.follow(&controller.devices);
    let this = controller.clone();
    controller.context.universe.subscribe(move |_, event| {
        if !matches!(event, Event::Updated { .. }) {
            this.enqueue(&event.object().namespace, matches!(event, Event::Deleted(_)));
        }
    });
    if controller.context.universe.synced().await {
        controller.context.work(&controller, &controller.queue, WORKERS, Quotas::reconcile).await;
    }
}

impl Quotas {
    /// The quotas of a namespace are looked at when one of its objects comes, goes, or changes.
    fn follow<T: Object>(self: &Arc<Self>, informer: &Informer<T>) {
        let this = self.clone();
        informer.subscribe(move |event| {
            this.enqueue(event.object().namespace(), matches!(event, Event::Deleted(_)))
        });
    }

    /// What went is given back at once.
    fn enqueue(&self, namespace: &str, went: bool) {
        if namespace.is_empty() {
            return;
        }
        for quota in self.quotas.by_namespace(namespace) {
            if went {
                self.queue.add(quota.key());
            } else {
                self.queue.add_after(quota.key(), AFTER_ADDITIONS);
            }
        }
    }

    fn costly(&self, namespace: &str, now: Timestamp) -> [Costly; 4] {
        fn of<T: Object>(objects: Vec<Arc<T>>) -> Costly {
            (T::gvr(), objects.iter().map(|object| object.to_value()).collect())
        }
        let mut pods = self.pods.by_namespace(namespace);
        pods.retain(|pod| until_given_up(pod, now) != Some(Duration::ZERO));
        [
            of(pods),
            of(self.services.by_namespace(namespace)),
            of(self.claims.by_namespace(namespace)),
            of(self.devices.by_namespace(namespace)),
        ]
    }

    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(quota) = self.quotas.get(&key) else { return Ok(()) };
        self.queue.add_after(key.clone(), RECOUNT);
        let namespace = quota.namespace();
        let now = self.context.clock().now();
        let status = decide(&quota, &self.costly(namespace, now), |group, resource| {
            let resource =
                GroupResource { group: group.to_owned().into(), resource: resource.to_owned().into() };
            self.context.universe.count(&resource, namespace)
        });
        let waits = self.pods.by_namespace(namespace).into_iter().filter_map(|pod| until_given_up(&pod, now));
        if let Some(delay) = waits.filter(|wait| !wait.is_zero()).min() {
            self.queue.add_after(key.clone(), delay);
        }
        if quota.status.as_ref().is_some_and(|old| same(old, &status)) {
            return Ok(());
        }
        let mut updated = (*quota).clone();
        updated.status = Some(status);
        match self.quotas.update_status(&updated).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::tests::{at, pod};

    fn check(spec: Value, expected: Value) {
        let pod = |phase: &str, class: &str, resources: Value| {
            json!({
                "status": {"phase": phase},
                "spec": {"priorityClassName": class, "containers": [{"name": "c", "resources": resources}]},
            })
        };
        let some = json!({"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "1"}});
        let pods = vec![
            pod("Running", "high", some.clone()),
            pod("Running", "", some.clone()),
            pod("Pending", "", json!({})),
            pod("Succeeded", "", some),
        ];
        let service = |kind: &str| json!({"spec": {"type": kind, "ports": [{"port": 1}, {"port": 2}]}});
        let services = ["ClusterIP", "NodePort", "LoadBalancer"].map(service).to_vec();
        let claim =
            json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "5Gi"}}}});
        let class = json!({"volumeAttributesClassName": "gold"});
        let devices = json!({"spec": {"devices": {"requests": [
            {"exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}},
            {"firstAvailable": [
                {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1},
                {"deviceClassName": "tpu", "allocationMode": "All"},
            ]},
        ]}}});
        let costly = [
            (Pod::gvr(), pods),
            (Service::gvr(), services),
            (PersistentVolumeClaim::gvr(), vec![claim, json!({"spec": class})]),
            (ResourceClaim::gvr(), vec![devices]),
        ];
        let count = |group: &str, resource: &str| match (group, resource) {
            ("", "configmaps") => Some(4),
            ("apps", "deployments") => Some(2),
            _ => None,
        };
        let metadata = json!({"namespace": "ns", "name": "q"});
        let quota = ResourceQuota::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
        let used = serde_json::to_value(decide(&quota, &costly, count).used).unwrap();
        assert_eq!(used, expected, "{spec}");
    }

    fn hard(names: &[&str]) -> Value {
        names.iter().map(|name| ((*name).to_owned(), json!("10"))).collect::<serde_json::Map<_, _>>().into()
    }

    #[test]
    fn amounts_that_are_limited_are_summed() {
        check(
            json!({"hard": hard(&["pods", "cpu", "requests.memory", "limits.cpu", "count/pods"])}),
            json!({"pods": "3", "cpu": "500m", "requests.memory": "128Mi", "limits.cpu": "2", "count/pods": "4"}),
        );
        check(
            json!({"hard": hard(&["services", "services.nodeports", "services.loadbalancers"])}),
            json!({"services": "3", "services.nodeports": "4", "services.loadbalancers": "1"}),
        );
        let fast = "fast.storageclass.storage.k8s.io/requests.storage";
        check(
            json!({"hard": hard(&["persistentvolumeclaims", "requests.storage", fast])}),
            json!({"persistentvolumeclaims": "2", "requests.storage": "5Gi", fast: "5Gi"}),
        );
        check(
            json!({"hard": hard(&["configmaps", "count/deployments.apps", "count/others.example.com"])}),
            json!({"configmaps": "4", "count/deployments.apps": "2"}),
        );
    }

    #[test]
    fn scopes_choose_pods() {
        let hard = hard(&["pods"]);
        check(json!({"hard": hard, "scopes": ["BestEffort"]}), json!({"pods": "1"}));
        check(json!({"hard": hard, "scopes": ["NotBestEffort"]}), json!({"pods": "2"}));
        check(json!({"hard": hard, "scopes": ["Terminating"]}), json!({"pods": "0"}));
        let selector = json!({"scopeName": "PriorityClass", "operator": "In", "values": ["high"]});
        let spec = json!({"hard": hard, "scopeSelector": {"matchExpressions": [selector]}});
        check(spec, json!({"pods": "1"}));
    }

    #[test]
    fn scopes_choose_claims() {
        for (operator, values, expected) in [
            ("Exists", json!([]), "1"),
            ("In", json!(["gold"]), "1"),
            ("NotIn", json!(["gold"]), "1"),
            ("In", json!(["x"]), "0"),
        ] {
            let selector =
                json!({"scopeName": "VolumeAttributesClass", "operator": operator, "values": values});
            let spec = json!({"hard": hard(&["persistentvolumeclaims"]), "scopeSelector": {"matchExpressions": [selector]}});
            check(spec, json!({"persistentvolumeclaims": expected}));
        }
    }

    #[test]
    fn devices_are_counted_by_class() {
        let (gpu, tpu) =
            ("gpu.deviceclass.resource.k8s.io/devices", "tpu.deviceclass.resource.k8s.io/devices");
        check(json!({"hard": hard(&[gpu, tpu])}), json!({gpu: "3", tpu: "32"}));
    }

    #[test]
    fn a_pod_that_outstays_its_grace_is_given_up() {
        let mut deleted = pod("p", "Running", true);
        assert_eq!(until_given_up(&deleted, at(0)), None);
        deleted.metadata.deletion_timestamp = Some(api::meta::Time(at(10)));
        deleted.metadata.deletion_grace_period_seconds = Some(20);
        assert_eq!(until_given_up(&deleted, at(10)), Some(Duration::from_secs(20)));
        assert_eq!(until_given_up(&deleted, at(40)), Some(Duration::ZERO));
    }
}
