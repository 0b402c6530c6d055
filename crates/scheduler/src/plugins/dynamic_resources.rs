//! A pod's claims of devices must be allocated, or allocatable, where the pod runs. Devices are allocated for the
//! node that was chosen, and reserved for the pod.
//!
//! Upstream: pkg/scheduler/framework/plugins/dynamicresources/dynamicresources.go

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::core::v1::{ContainerExtendedResourceRequest, Node, Pod};
use api::resource::v1::{AllocationResult, DeviceRequestAllocationResult, ResourceClaim};
use client::PatchType;
use serde_json::{Value, json};

use crate::cluster::{Change, Cluster, Kind};
use crate::configuration::args;
use crate::devices::{self, Devices, Selectors, allocation, allocator, extended};
use crate::framework::{Filter, Plugin, Prepared, Refusal, Score, Verb, Write, normalize_to_max};
use crate::plugins::node_selector_matches;
use crate::{NodeInfo, PodInfo};

const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// As many pods may have one claim.
const MAX_RESERVED: usize = 256;
/// As many ways may a request name, the first of which counts most.
const MAX_WAYS: usize = 8;

pub struct DynamicResources {
    selectors: Selectors,
    binding_timeout: Duration,
}

impl DynamicResources {
    pub fn make(args: Option<&Value>) -> Result<Arc<dyn Plugin>, String> {
        let binding_timeout = args::dynamic_resources(args)?;
        Ok(Arc::new(DynamicResources { selectors: Selectors::default(), binding_timeout }))
    }

    /// What claims get on the node that have nothing yet, and the claim for the pod's extended resources.
    fn allocate(
        &self,
        pod: &PodInfo,
        claims: &Claims,
        info: &NodeInfo,
        devices: &Devices,
    ) -> Result<Allocated, String> {
        let Some(node) = &info.node else { return Ok(Allocated::default()) };
        let made = claims.made_for(pod, info, devices)?;
        let mut open: Vec<&ResourceClaim> = claims.open().map(|claim| &**claim).collect();
        open.extend(made.as_ref().map(|(claim, _)| claim));
        if open.is_empty() {
            return Ok(Allocated::default());
        }
        let allocated = allocator::allocate(devices, &self.selectors, node, &open)?;
        let mut results = allocated.ok_or("cannot allocate all claims")?;
        let made = made.and_then(|(claim, shares)| Some(Made { result: results.pop()?, claim, shares }));
        Ok(Allocated { results, made })
    }
}

/// What claims get on a node.
#[derive(Default)]
struct Allocated {
    /// Of the pod's claims that have nothing yet, in their order.
    results: Vec<AllocationResult>,
    made: Option<Made>,
}

/// The claim for a pod's extended resources, and which container has what of it.
struct Made {
    claim: ResourceClaim,
    result: AllocationResult,
    shares: Vec<ContainerExtendedResourceRequest>,
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }

    fn refuse_all(&self, pod: &PodInfo, cluster: &Cluster) -> Option<Refusal> {
        Claims::of(pod, &cluster.devices).err().map(Refusal::unresolvable)
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let claims = Claims::of(pod, &cluster.devices).ok()?;
        let asks = !claims.named.is_empty() || claims.extended;
        asks.then(|| {
            Box::new(Available { plugin: self, pod, claims, devices: &cluster.devices }) as Box<dyn Filter>
        })
    }

    fn score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let claims = Claims::of(pod, &cluster.devices).ok()?;
        let has_ways = |claim: &Arc<ResourceClaim>| {
            let mut requests = claim.spec.devices.iter().flat_map(|d| d.requests.iter().flatten());
            requests.any(|request| request.first_available.is_some())
        };
        let asks = claims.named.iter().any(has_ways);
        asks.then(|| {
            Box::new(Ways { plugin: self, pod, claims, devices: &cluster.devices }) as Box<dyn Score>
        })
    }

    fn reserve(&self, pod: &PodInfo, node: &str, cluster: &mut Cluster) -> Result<Vec<Write>, String> {
        let claims = Claims::of(pod, &cluster.devices)?;
        if claims.named.is_empty() && !claims.extended {
            return Ok(Vec::new());
        }
        let info = cluster.node(node).ok_or("the node is gone")?;
        let Allocated { results, made } = self.allocate(pod, &claims, info, &cluster.devices)?;
        let mut allocated = results.into_iter();
        let mut writes = Vec::new();
        for claim in &claims.named {
            if allocation(claim).is_some() {
                if !is_reserved(claim, &pod.pod) {
                    writes.push(reserve_write(claim, &pod.pod));
                }
                continue;
            }
            let Some(result) = allocated.next() else {
                return Err("claim allocation not found for node".into());
            };
            writes.extend(allocate_writes(claim, &result, &pod.pod));
            let mut assumed = (**claim).clone();
            assumed.status.get_or_insert_default().allocation = Some(result);
            cluster.devices.assume(&claim.key(), assumed);
        }
        if let Some(Made { mut claim, result, shares }) = made {
            writes.extend(make_writes(&claim, &result, &shares, &pod.pod));
            claim.status.get_or_insert_default().allocation = Some(result);
            cluster.devices.assume(&devices::unnamed(pod.uid()), claim);
        }
        Ok(writes)
    }

    fn unreserve(&self, pod: &PodInfo, cluster: &mut Cluster) -> Vec<Write> {
        let mut writes = Vec::new();
        cluster.devices.restore(&devices::unnamed(pod.uid()));
        if let Some(claim) = cluster.devices.claim_of_pod(pod.uid()) {
            writes.extend(delete_writes(claim));
        }
        for key in wanted(&pod.pod).filter_map(Result::ok).flatten() {
            cluster.devices.restore(&key);
            if let Some(claim) = cluster.devices.confirmed(&key).filter(|claim| is_reserved(claim, &pod.pod))
            {
                let gone = json!([{"$patch": "delete", "uid": pod.uid()}]);
                let patch = json!({"metadata": {"uid": claim.metadata.uid}, "status": {"reservedFor": gone}});
                writes.push(Write::patch(&**claim, Some("status"), PatchType::Strategic, patch));
            }
        }
        writes
    }

    // Upstream: dynamicresources.go PostFilter
    fn relieve(&self, pod: &PodInfo, cluster: &Cluster) -> Vec<Write> {
        let Ok(claims) = Claims::of(pod, &cluster.devices) else { return Vec::new() };
        // A claim that nobody uses, allocated where the pod cannot run, is free to be allocated anew.
        let idle = claims.named.iter().find(|claim| {
            let bound = allocation(claim).is_some_and(|allocation| allocation.node_selector.is_some());
            bound && reservations(claim).iter().all(|consumer| consumer.uid == pod.uid())
        });
        if let Some(claim) = idle {
            let metadata = json!({"resourceVersion": claim.metadata.resource_version});
            let free = json!({"allocation": null, "reservedFor": null, "devices": null});
            let patch = json!({"metadata": metadata, "status": free});
            return vec![Write::patch(&**claim, Some("status"), PatchType::Merge, patch)];
        }
        // What was made for another node is made anew.
        let made = cluster.devices.claim_of_pod(pod.uid()).filter(|_| claims.extended);
        made.map(|claim| delete_writes(claim)).unwrap_or_default()
    }

    fn preparation_timeout(&self) -> Option<Duration> {
        Some(self.binding_timeout)
    }

    fn prepared(&self, pod: &PodInfo, _node: &str, cluster: &Cluster) -> Prepared {
        if cluster.devices.claim(&devices::unnamed(pod.uid())).is_some() {
            return Prepared::Waiting;
        }
        let mut claims: Vec<&Arc<ResourceClaim>> =
            cluster.devices.claim_of_pod(pod.uid()).into_iter().collect();
        for key in wanted(&pod.pod) {
            let key = match key {
                Ok(Some(key)) => key,
                Ok(None) => continue,
                Err(why) => return Prepared::Failed(why),
            };
            let Some(claim) = cluster.devices.confirmed(&key) else {
                return Prepared::Failed(format!("could not find ResourceClaim {key:?}"));
            };
            claims.push(claim);
        }
        for claim in claims {
            if !is_reserved(claim, &pod.pod) {
                return Prepared::Waiting;
            }
            match is_ready(claim) {
                Ok(true) => {}
                Ok(false) => return Prepared::Waiting,
                Err(why) => return Prepared::Failed(why),
            }
        }
        Prepared::Ready
    }

    fn events(&self) -> &'static [Kind] {
        &[Kind::NodeAdded, Kind::NodeUpdated, Kind::Devices, Kind::PodItself]
    }

    fn may_help(&self, pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeUpdated { old, new } => {
                let allocatable = |node: &Node| node.status.as_ref().and_then(|s| s.allocatable.clone());
                old.metadata.labels != new.metadata.labels || allocatable(old) != allocatable(new)
            }
            _ => wanted(&pod.pod).next().is_some() || !pod.requests.others.is_empty(),
        }
    }
}

/// The keys of a pod's claims; none for one that needs no claim after all, and words for one that is not there yet.
///
/// Upstream: staging/src/k8s.io/dynamic-resource-allocation/resourceclaim/resourceclaim.go Name
fn wanted(pod: &Pod) -> impl Iterator<Item = Result<Option<String>, String>> {
    let namespace = pod.namespace();
    let statuses = pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_deref());
    let claims = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
    claims.map(move |claim| {
        if let Some(name) = &claim.resource_claim_name {
            return Ok(Some(format!("{namespace}/{name}")));
        }
        match statuses.unwrap_or_default().iter().find(|status| status.name == claim.name) {
            Some(status) => Ok(status.resource_claim_name.as_ref().map(|name| format!("{namespace}/{name}"))),
            None => Err(format!("pod \"{namespace}/{}\": ResourceClaim not created yet", pod.name())),
        }
    })
}

fn reservations(claim: &ResourceClaim) -> &[api::resource::v1::ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or_default()
}

fn is_reserved(claim: &ResourceClaim, pod: &Pod) -> bool {
    reservations(claim).iter().any(|consumer| consumer.uid == pod.uid())
}

/// A pod's claims.
struct Claims {
    /// Those that it names.
    named: Vec<Arc<ResourceClaim>>,
    /// Whether it wants extended resources that devices may stand behind.
    extended: bool,
}

impl Claims {
    /// Says why the pod cannot run anywhere yet.
    fn of(pod: &PodInfo, devices: &Devices) -> Result<Self, String> {
        let mut named = Vec::new();
        for key in wanted(&pod.pod) {
            let Some(key) = key? else { continue };
            let claim = devices.claim(&key).ok_or_else(|| format!("could not find ResourceClaim {key:?}"))?;
            usable(&pod.pod, claim, devices)?;
            named.push(claim.clone());
        }
        let mut others = pod.requests.others.iter();
        let extended = others.any(|(name, amount)| *amount != 0 && devices.class_of(name).is_some());
        Ok(Claims { named, extended })
    }

    /// The claim that the pod needs on the node for its extended resources, and which container has what of it. None
    /// when the node itself offers them.
    ///
    /// Upstream: extendeddynamicresources.go filterExtendedResources
    fn made_for(
        &self,
        pod: &PodInfo,
        info: &NodeInfo,
        devices: &Devices,
    ) -> Result<Option<(ResourceClaim, Vec<ContainerExtendedResourceRequest>)>, &'static str> {
        if !self.extended {
            return Ok(None);
        }
        if devices.claim_of_pod(pod.uid()).is_some() {
            return Err("cannot schedule extended resource claim");
        }
        let mut resources = BTreeMap::new();
        let others = pod.requests.others.iter();
        for (name, _) in others.filter(|(name, amount)| **amount != 0 && extended::is_extended(name)) {
            let offered = info.allocatable.others.get(name).copied();
            match devices.class_of(name) {
                Some(class) if offered.unwrap_or(0) == 0 => drop(resources.insert(name.as_str(), class)),
                _ if offered.is_none() => return Err("cannot fit resource"),
                _ => {}
            }
        }
        if resources.is_empty() {
            return Ok(None);
        }
        let (requests, shares) = extended::requests(&pod.pod, &resources);
        Ok(Some((extended::claim(&pod.pod, requests), shares)))
    }

    /// Those that have no devices yet.
    fn open(&self) -> impl Iterator<Item = &Arc<ResourceClaim>> {
        self.named.iter().filter(|claim| allocation(claim).is_none())
    }
}

/// Whether the pod can use the claim at all.
fn usable(pod: &Pod, claim: &Arc<ResourceClaim>, devices: &Devices) -> Result<(), String> {
    let (namespace, name) = (claim.namespace(), claim.name());
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("resourceclaim {name:?} is being deleted"));
    }
    let own = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
    let named = own.filter_map(|claim| claim.resource_claim_name.as_deref()).any(|given| given == name);
    let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
    if !named && !owners.iter().any(|owner| owner.controller == Some(true) && owner.uid == pod.uid()) {
        return Err(format!(
            "ResourceClaim {namespace}/{name} was not created for Pod {namespace}/{} (Pod is not owner)",
            pod.name()
        ));
    }
    if allocation(claim).is_some() {
        let confirmed = devices.confirmed(&claim.key());
        if confirmed.is_none_or(|confirmed| allocation(confirmed).is_none()) {
            return Err(format!("resource claim {namespace}/{name} is in the process of being allocated"));
        }
        if reservations(claim).len() >= MAX_RESERVED && !is_reserved(claim, pod) {
            return Err("resourceclaim in use".into());
        }
        return Ok(());
    }
    for request in claim.spec.devices.iter().flat_map(|devices| devices.requests.iter().flatten()) {
        let ways = request.first_available.as_deref().unwrap_or_default();
        let ways = ways.iter().map(|way| (format!("{}/{}", request.name, way.name), &way.device_class_name));
        let only = request.exactly.iter().map(|only| (request.name.clone(), &only.device_class_name));
        let mut asked = only.chain(ways).peekable();
        if asked.peek().is_none() {
            let request = &request.name;
            return Err(format!(
                "resource claim {namespace}/{name}, request {request}: unknown request type"
            ));
        }
        if let Some((request, class)) = asked.find(|(_, class)| devices.class(class).is_none()) {
            return Err(format!("request {request}: device class {class} does not exist"));
        }
    }
    Ok(())
}

/// Whether all conditions are there that the devices of a claim wait for.
fn is_ready(claim: &ResourceClaim) -> Result<bool, String> {
    let Some(allocation) = allocation(claim) else { return Ok(false) };
    let statuses = claim.status.as_ref().and_then(|status| status.devices.as_deref()).unwrap_or_default();
    for result in allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten()) {
        let wanted = result.binding_conditions.as_deref().unwrap_or_default();
        if wanted.is_empty() {
            continue;
        }
        let same = |status: &&api::resource::v1::AllocatedDeviceStatus| {
            let of = |r: &DeviceRequestAllocationResult| (r.driver.clone(), r.pool.clone(), r.device.clone());
            (status.driver.clone(), status.pool.clone(), status.device.clone()) == of(result)
                && status.share_id == result.share_id
        };
        let Some(status) = statuses.iter().find(same) else { return Ok(false) };
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let holds = |wanted: &String| conditions.iter().find(|c| c.type_ == *wanted && c.status == "True");
        if let Some(failed) = result.binding_failure_conditions.iter().flatten().find_map(holds) {
            return Err(format!(
                "device binding failed: claim={}, reason={}, message={:?}",
                claim.name(),
                failed.reason,
                failed.message
            ));
        }
        if !wanted.iter().all(|wanted| holds(wanted).is_some()) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn consumer(pod: &Pod) -> Value {
    json!({"resource": "pods", "name": pod.name(), "uid": pod.uid()})
}

/// Others may reserve the same claim at the same time.
fn reserve_write(claim: &ResourceClaim, pod: &Pod) -> Write {
    let patch = json!({"metadata": {"uid": claim.metadata.uid}, "status": {"reservedFor": [consumer(pod)]}});
    Write::patch(claim, Some("status"), PatchType::Strategic, patch)
}

/// First what keeps the claim from being deleted, then the allocation.
fn allocate_writes(claim: &ResourceClaim, result: &AllocationResult, pod: &Pod) -> Vec<Write> {
    let mut writes = Vec::new();
    let version = &claim.metadata.resource_version;
    let mut finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        finalizers.push(FINALIZER.into());
        let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
        writes.push(Write::patch(claim, None, PatchType::Merge, patch));
    }
    let mut reserved: Vec<Value> = reservations(claim).iter().map(|consumer| json!(consumer)).collect();
    reserved.push(consumer(pod));
    let patch = json!({"metadata": {"resourceVersion": version},
        "status": {"allocation": result, "reservedFor": reserved}});
    let stamp = Some(("/status/allocation", "allocationTimestamp"));
    writes.push(Write { stamp, ..Write::patch(claim, Some("status"), PatchType::Merge, patch) });
    writes
}

/// A claim for extended resources, what it has, and where the pod's status names it.
fn make_writes(
    claim: &ResourceClaim,
    result: &AllocationResult,
    shares: &[ContainerExtendedResourceRequest],
    pod: &Pod,
) -> Vec<Write> {
    let mut made = claim.clone();
    made.metadata.finalizers = Some(vec![FINALIZER.into()]);
    let create = Write::patch(claim, None, PatchType::Merge, made.to_value());
    let patch = json!({"metadata": {"resourceVersion": ""},
        "status": {"allocation": result, "reservedFor": [consumer(pod)]}});
    let allocate = Write::patch(claim, Some("status"), PatchType::Merge, patch);
    let patch = json!({"status": {"extendedResourceClaimStatus": {"requestMappings": shares}}});
    let tell = Write::patch(pod, Some("status"), PatchType::Strategic, patch);
    vec![
        Write { verb: Verb::Create, ..create },
        Write { stamp: Some(("/status/allocation", "allocationTimestamp")), ..allocate },
        Write { made: Some(("/status/extendedResourceClaimStatus", "resourceClaimName")), ..tell },
    ]
}

/// First what keeps the claim from being deleted.
fn delete_writes(claim: &ResourceClaim) -> Vec<Write> {
    let finalizers = claim.metadata.finalizers.iter().flatten();
    let left: Vec<&String> = finalizers.filter(|finalizer| *finalizer != FINALIZER).collect();
    let metadata = json!({"resourceVersion": claim.metadata.resource_version, "finalizers": left});
    let release = Write::patch(claim, None, PatchType::Merge, json!({ "metadata": metadata }));
    vec![release.clone(), Write { verb: Verb::Delete, ..release }]
}

struct Available<'a> {
    plugin: &'a DynamicResources,
    pod: &'a PodInfo,
    claims: Claims,
    devices: &'a Devices,
}

impl Filter for Available<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let info = node;
        let Some(node) = &info.node else { return Ok(()) };
        let reaches = |claim: &Arc<ResourceClaim>| {
            let selector = allocation(claim).and_then(|allocation| allocation.node_selector.as_ref());
            selector.is_none_or(|selector| node_selector_matches(selector, node))
                && (allocation(claim).is_none() || is_ready(claim).is_ok())
        };
        if !self.claims.named.iter().all(reaches) {
            return Err(Refusal::unresolvable("resourceclaim not available on the node"));
        }
        let allocated = self.plugin.allocate(self.pod, &self.claims, info, self.devices);
        allocated.map(drop).map_err(Refusal::unresolvable)
    }
}

struct Ways<'a> {
    plugin: &'a DynamicResources,
    pod: &'a PodInfo,
    claims: Claims,
    devices: &'a Devices,
}

impl Score for Ways<'_> {
    /// The earlier the ways that are taken, the better.
    fn score(&self, node: &NodeInfo) -> i64 {
        let Ok(allocated) = self.plugin.allocate(self.pod, &self.claims, node, self.devices) else {
            return 0;
        };
        let mut allocated = allocated.results.iter();
        let mut score = 0;
        for claim in &self.claims.named {
            let Some(result) = allocation(claim).or_else(|| allocated.next()) else { continue };
            let taken = |name: &str| {
                let mut results = result.devices.iter().flat_map(|devices| devices.results.iter().flatten());
                results.any(|result| result.request == name)
            };
            for request in claim.spec.devices.iter().flat_map(|devices| devices.requests.iter().flatten()) {
                for (at, way) in request.first_available.iter().flatten().enumerate() {
                    if taken(&format!("{}/{}", request.name, way.name)) {
                        score += MAX_WAYS.saturating_sub(at) as i64;
                    }
                }
            }
        }
        score
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        normalize_to_max(scores, false);
    }
}

#[cfg(test)]
mod tests {
    use api::resource::v1::{DeviceClass, ResourceSlice};

    use super::*;
    use crate::cycle::Scheduler;
    use crate::profile::Profile;
    use crate::testing::pod_info;

    fn claim(more: Value) -> Arc<ResourceClaim> {
        let mut claim = json!({"metadata": {"name": "c", "namespace": "default", "uid": "claim", "resourceVersion": "5"},
            "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]}}});
        for (key, value) in more.as_object().into_iter().flatten() {
            claim[key] = value.clone();
        }
        Arc::new(ResourceClaim::from_value(claim).unwrap())
    }

    fn pod(name: &str) -> Arc<PodInfo> {
        pod_info(json!({"metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {"containers": [{"name": "c"}],
                "resourceClaims": [{"name": "gpu", "resourceClaimName": "c"}]}}))
    }

    /// Nodes a and b, of which b has a device.
    fn cluster(claim: Arc<ResourceClaim>) -> Cluster {
        let mut cluster = Cluster::default();
        for name in ["a", "b"] {
            let node =
                json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "4", "pods": "9"}}});
            cluster.set_node(Arc::new(Node::from_value(node).unwrap()));
        }
        let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "x.io", "nodeName": "b",
            "pool": {"name": "b", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "d"}]}});
        cluster.devices.set_slice("s", Some(Arc::new(ResourceSlice::from_value(slice).unwrap())));
        let class = DeviceClass::from_value(json!({"metadata": {"name": "gpu"}, "spec": {}})).unwrap();
        cluster.devices.set_class("gpu", Some(Arc::new(class)));
        cluster.devices.set_claim("default/c", Some(claim));
        cluster
    }

    fn place(cluster: &mut Cluster, pod: &PodInfo) -> String {
        Scheduler::new(7).place(&Profile::default(), pod, cluster).unwrap_or_else(|e| e.to_string())
    }

    #[test]
    fn a_pod_goes_where_its_devices_are_and_reserves_them() {
        let (mut cluster, profile, first) = (cluster(claim(json!({}))), Profile::default(), pod("first"));
        assert_eq!(place(&mut cluster, &first), "b");
        let writes = profile.reserve(&first, "b", &mut cluster).unwrap();
        assert_eq!(writes[0].body["metadata"]["finalizers"], json!([FINALIZER]));
        let status = &writes[1].body["status"];
        assert_eq!(status["allocation"]["devices"]["results"][0]["device"], json!("d"));
        assert_eq!(status["reservedFor"][0]["uid"], json!("first"));
        assert_eq!(profile.prepared(&first, "b", &cluster), Prepared::Waiting);
        let words = "0/2 nodes are available: resource claim default/c is in the process of being allocated.";
        assert_eq!(place(&mut cluster, &pod("second")), words);

        let confirmed = claim(json!({"status": status}));
        cluster.devices.set_claim("default/c", Some(confirmed));
        cluster.devices.restore("default/c");
        assert_eq!(profile.prepared(&first, "b", &cluster), Prepared::Ready);
        assert_eq!(place(&mut cluster, &pod("second")), "b", "claims can be shared");
        let given_back = profile.unreserve(&first, &mut cluster);
        assert_eq!(given_back[0].body["status"]["reservedFor"][0]["$patch"], json!("delete"));
    }

    /// A pod that wants an extended resource behind which the class `gpu` stands, and a cluster of nodes of which
    /// only `b` has a device.
    fn extended(offered_by_a: &str) -> (Cluster, Arc<PodInfo>) {
        let mut cluster = cluster(claim(json!({})));
        let a = json!({"metadata": {"name": "a"},
            "status": {"allocatable": {"cpu": "4", "pods": "9", "x.io/gpu": offered_by_a}}});
        cluster.set_node(Arc::new(Node::from_value(a).unwrap()));
        let class = json!({"metadata": {"name": "gpu"}, "spec": {"extendedResourceName": "x.io/gpu"}});
        cluster.devices.set_class("gpu", Some(Arc::new(DeviceClass::from_value(class).unwrap())));
        let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "p"},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"x.io/gpu": "1"}}}]}});
        (cluster, pod_info(pod))
    }

    #[test]
    fn devices_stand_in_for_extended_resources() {
        let (mut cluster, pod) = extended("1");
        cluster.devices.set_slice("s", None);
        assert_eq!(place(&mut cluster, &pod), "a", "the node itself offers it");

        let ((mut cluster, pod), profile) = (extended("0"), Profile::default());
        assert_eq!(place(&mut cluster, &pod), "b");
        let writes = profile.reserve(&pod, "b", &mut cluster).unwrap();
        assert_eq!(
            writes.iter().map(|write| write.verb == Verb::Create).collect::<Vec<_>>(),
            [true, false, false]
        );
        let made = &writes[0].body;
        assert_eq!(made["metadata"]["generateName"], "p-extended-resources-");
        assert_eq!(made["spec"]["devices"]["requests"][0]["exactly"]["deviceClassName"], "gpu");
        let shares = &writes[2].body["status"]["extendedResourceClaimStatus"]["requestMappings"];
        assert_eq!(shares[0]["requestName"], "container-0-request-0");
        assert_eq!(profile.prepared(&pod, "b", &cluster), Prepared::Waiting);
        let another = pod_info(json!({"metadata": {"name": "q", "namespace": "default", "uid": "q"},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"x.io/gpu": "1"}}}]}}));
        let words = "0/2 nodes are available: 2 cannot allocate all claims.";
        assert_eq!(place(&mut cluster, &another), words);

        let mut shown = made.clone();
        shown["metadata"]["name"] = "p-extended-resources-x".into();
        shown["status"] = writes[1].body["status"].clone();
        let shown = Arc::new(ResourceClaim::from_value(shown).unwrap());
        cluster.devices.set_claim("default/p-extended-resources-x", Some(shown));
        assert_eq!(profile.prepared(&pod, "b", &cluster), Prepared::Ready);
        assert_eq!(place(&mut cluster, &another), words, "it is counted once, and still");
        let words = "0/2 nodes are available: 2 cannot schedule extended resource claim.";
        assert_eq!(place(&mut cluster, &pod), words, "what was made for another try goes first");
        let given_back = profile.unreserve(&pod, &mut cluster);
        assert_eq!(given_back.last().map(|write| write.verb), Some(Verb::Delete));
        cluster.devices.set_claim("default/p-extended-resources-x", None);
        assert_eq!(place(&mut cluster, &another), "b");
    }

    #[test]
    fn an_allocation_is_kept_while_its_claim_changes_otherwise() {
        let (mut cluster, profile, first) = (cluster(claim(json!({}))), Profile::default(), pod("first"));
        profile.reserve(&first, "b", &mut cluster).unwrap();
        let finalized = claim(json!({"metadata": {"name": "c", "namespace": "default", "uid": "claim",
            "resourceVersion": "9", "finalizers": [FINALIZER]}}));
        cluster.devices.set_claim("default/c", Some(finalized));
        assert!(cluster.devices.claim("default/c").and_then(|claim| allocation(claim)).is_some());
    }

    #[test]
    fn a_pod_without_its_claims_waits() {
        let mut without = cluster(claim(json!({})));
        without.devices.set_claim("default/c", None);
        let words = "0/2 nodes are available: could not find ResourceClaim \"default/c\".";
        assert_eq!(place(&mut without, &pod("p")), words);
        let mut without = cluster(claim(json!({})));
        without.devices.set_class("gpu", None);
        let words = "0/2 nodes are available: request r: device class gpu does not exist.";
        assert_eq!(place(&mut without, &pod("p")), words);
        let mut without = cluster(claim(json!({})));
        without.devices.set_slice("s", None);
        let words = "0/2 nodes are available: 2 cannot allocate all claims.";
        assert_eq!(place(&mut without, &pod("p")), words);
    }

    #[test]
    fn devices_may_have_to_be_made_ready_first() {
        let status = |conditions: Value| {
            json!({"status": {"allocation": {"devices": {"results": [{"request": "r", "driver": "x.io", "pool": "b",
                    "device": "d", "bindingConditions": ["Ready"], "bindingFailureConditions": ["Broken"]}]}},
                "devices": [{"driver": "x.io", "pool": "b", "device": "d", "conditions": conditions}]}})
        };
        let condition = |kind: &str| {
            json!([{"type": kind, "status": "True", "reason": "R", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        };
        assert_eq!(is_ready(&claim(status(json!([])))), Ok(false));
        assert_eq!(is_ready(&claim(status(condition("Ready")))), Ok(true));
        assert!(
            is_ready(&claim(status(condition("Broken")))).unwrap_err().starts_with("device binding failed")
        );
    }
}
