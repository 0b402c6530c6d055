//! Devices that pods claim: before a pod's sandbox is made, the drivers of its claims prepare what was allocated to
//! them, and its containers get what the drivers name by CDI; when the pod is over, they take it back.
//!
//! [`state`] keeps over a restart what is prepared for whom, [`driver`] calls the drivers, which [`crate::plugins`]
//! finds.
// Upstream: pkg/kubelet/cm/dra

mod driver;
mod state;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use api::Object;
use api::core::v1::{Container, Pod, PodResourceClaim};
use api::resource::v1::ResourceClaim;
use async_trait::async_trait;
use client::Client;
use cri::dra::v1 as pb;
use cri::podresources as pr;

use crate::plugins::{Handler, Plugin};
use driver::Driver;
use state::{Claim, Claims, Device};

/// The kind by which drivers make themselves known.
// Upstream: k8s.io/kubelet pluginregistration/v1 constants.go DRAPlugin
pub const PLUGIN_KIND: &str = "DRAPlugin";

/// The claims of this node's pods.
pub struct Dra {
    root: PathBuf,
    client: Client,
    claims: Mutex<Claims>,
    /// By name, those that registered, the newest last: while a driver is replaced there are two.
    drivers: Mutex<HashMap<String, Vec<Driver>>>,
}

/// The claim that a pod means by one of its own names; `None` if it turned out that none is needed.
// Upstream: k8s.io/dynamic-resource-allocation/resourceclaim Name
fn claim_name(pod: &Pod, claim: &PodResourceClaim) -> Result<Option<(String, bool)>, String> {
    if let Some(name) = &claim.resource_claim_name {
        return Ok(Some((name.clone(), false)));
    }
    if claim.resource_claim_template_name.is_none() {
        return Err(format!("pod claim {}: none of the supported fields are set", claim.name));
    }
    let statuses = pod.status.iter().flat_map(|status| status.resource_claim_statuses.iter().flatten());
    match statuses.into_iter().find(|status| status.name == claim.name) {
        Some(status) => Ok(status.resource_claim_name.clone().map(|name| (name, true))),
        None => Err(format!(
            "pod {:?}: ResourceClaim not created yet",
            format!("{}/{}", pod.namespace(), pod.name())
        )),
    }
}

/// All claims of a pod by name, and whether they must have been made for it.
fn claim_names(pod: &Pod) -> Result<Vec<(String, bool)>, String> {
    let named = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
    let mut names = Vec::new();
    for claim in named {
        names.extend(claim_name(pod, claim)?);
    }
    let extended = pod.status.as_ref().and_then(|status| status.extended_resource_claim_status.as_ref());
    names.extend(extended.map(|status| (status.resource_claim_name.clone(), true)));
    Ok(names)
}

/// Whether the pod may use the claim.
fn check(pod: &Pod, claim: &ResourceClaim, must_be_own: bool) -> Result<(), String> {
    let owners = claim.metadata.owner_references.iter().flatten();
    if must_be_own && !owners.into_iter().any(|o| o.controller == Some(true) && o.uid == pod.uid()) {
        return Err(format!(
            "ResourceClaim {}/{} was not created for pod {}/{} (pod is not owner)",
            claim.namespace(),
            claim.name(),
            pod.namespace(),
            pod.name()
        ));
    }
    let users = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    if !users.into_iter().any(|user| user.resource == "pods" && user.uid == pod.uid()) {
        return Err(format!(
            "pod {} ({}) is not allowed to use ResourceClaim {} ({})",
            pod.name(),
            pod.uid(),
            claim.name(),
            claim.uid()
        ));
    }
    Ok(())
}

/// The drivers that the claim's devices are of.
fn drivers_of(claim: &ResourceClaim) -> Result<BTreeSet<String>, String> {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let allocation = allocation.ok_or_else(|| format!("ResourceClaim {}: not allocated", claim.name()))?;
    let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
    Ok(results.map(|result| result.driver.clone()).collect())
}

/// Which requests of which claims a container uses; the empty request is all of them.
// Upstream: pkg/kubelet/cm/dra/manager.go GetResources
fn requests(pod: &Pod, container: &Container) -> Result<Vec<(String, String)>, String> {
    let used = container.resources.iter().flat_map(|resources| resources.claims.iter().flatten());
    let named: Vec<&PodResourceClaim> =
        pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten()).collect();
    let mut requests = Vec::new();
    for claim in used {
        let Some(of_pod) = named.iter().find(|of_pod| of_pod.name == claim.name) else { continue };
        if let Some((name, _)) = claim_name(pod, of_pod)? {
            requests.push((name, claim.request.clone().unwrap_or_default()));
        }
    }
    if let Some(status) = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref()) {
        let mapped =
            status.request_mappings.iter().filter(|mapping| mapping.container_name == container.name);
        requests.extend(mapped.map(|m| (status.resource_claim_name.clone(), m.request_name.clone())));
    }
    Ok(requests)
}

impl Dra {
    /// Finds what a former kubelet had prepared.
    pub fn open(root: PathBuf, client: Client) -> Self {
        let claims = state::read(&root).unwrap_or_else(|error| {
            tracing::error!(error, "which claims are prepared cannot be read; they are prepared again");
            Claims::new()
        });
        Dra { root, client, claims: Mutex::new(claims), drivers: Mutex::default() }
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drivers(&self) -> MutexGuard<'_, HashMap<String, Vec<Driver>>> {
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn driver(&self, name: &str) -> Result<Driver, String> {
        let newest = self.drivers().get(name).and_then(|all| all.last().cloned());
        newest.ok_or_else(|| format!("DRA driver {name} is not registered"))
    }

    /// Changes what is known and writes it down.
    fn change<T>(&self, change: impl FnOnce(&mut Claims) -> Result<T, String>) -> Result<T, String> {
        let mut claims = self.claims();
        let changed = change(&mut claims)?;
        state::write(&self.root, &claims).map_err(|e| format!("checkpoint ResourceClaim cache: {e}"))?;
        Ok(changed)
    }

    /// Has everything prepared that was allocated to the pod's claims. May be done again.
    // Upstream: pkg/kubelet/cm/dra/manager.go prepareResources
    pub async fn prepare(&self, pod: &Pod) -> Result<(), String> {
        let failed = |why: String| format!("prepare dynamic resources: {why}");
        self.prepare_all(pod).await.map_err(failed)
    }

    async fn prepare_all(&self, pod: &Pod) -> Result<(), String> {
        let mut wanted = Vec::new();
        for (name, must_be_own) in claim_names(pod)? {
            let claim = self.client.get::<ResourceClaim>(pod.namespace(), &name).await;
            let claim = claim.map_err(|e| format!("fetch ResourceClaim {name}: {e}"))?;
            check(pod, &claim, must_be_own)?;
            let drivers = drivers_of(&claim)?;
            drivers.iter().try_for_each(|driver| self.driver(driver).map(drop))?;
            wanted.push((claim, drivers));
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let batches = self.change(|claims| note(claims, pod, &wanted))?;
        for (name, claims) in &batches {
            let answer = self.driver(name)?.prepare(claims.clone()).await;
            let answer = answer.map_err(|why| format!("NodePrepareResources: {why}"))?;
            let answers = answer.claims.iter().map(|(uid, answer)| (uid.as_str(), answer.error.as_str()));
            judge("NodePrepareResources", claims, answers)?;
            let mut known = self.claims();
            for claim in claims {
                let devices = answer.claims.get(&claim.uid).map(|answer| answer.devices.clone());
                let key = (claim.namespace.clone(), claim.name.clone());
                if let Some(known) = known.get_mut(&key) {
                    let devices = devices.unwrap_or_default().into_iter().map(device);
                    known.drivers.insert(name.clone(), devices.collect());
                }
            }
        }
        self.change(|claims| {
            let asked = batches.values().flatten();
            for key in asked.map(|claim| (claim.namespace.clone(), claim.name.clone())) {
                if let Some(claim) = claims.get_mut(&key) {
                    claim.prepared = true;
                }
            }
            Ok(())
        })
    }

    /// The CDI ids of what a container claims.
    pub fn cdi_ids(&self, pod: &Pod, container: &Container) -> Result<Vec<String>, String> {
        let claims = self.claims();
        let mut ids = Vec::new();
        for (name, request) in requests(pod, container)? {
            let claim = claims.get(&(pod.namespace().to_owned(), name.clone())).ok_or_else(|| {
                format!(
                    "internal error: unable to get claim info for ResourceClaim {name} in namespace {}",
                    pod.namespace()
                )
            })?;
            let devices = claim.drivers.values().flatten().filter(|device| device.is_for(&request));
            for id in devices.flat_map(|device| &device.cdi_ids) {
                if !ids.contains(id) {
                    ids.push(id.clone());
                }
            }
        }
        Ok(ids)
    }

    /// The pod is over: what nobody else here uses is taken back.
    // Upstream: pkg/kubelet/cm/dra/manager.go unprepareResources
    pub async fn release(&self, pod_uid: &str) -> Result<(), String> {
        let failed = |why: String| format!("unprepare dynamic resources: {why}");
        self.release_all(pod_uid).await.map_err(failed)
    }

    async fn release_all(&self, pod_uid: &str) -> Result<(), String> {
        if !self.claims().values().any(|claim| claim.pods.contains(pod_uid)) {
            return Ok(());
        }
        let batches = self.change(|claims| Ok(leave(claims, pod_uid)))?;
        for (name, claims) in &batches {
            let answer = self.driver(name)?.unprepare(claims.clone()).await;
            let answer = answer.map_err(|why| format!("NodeUnprepareResources: {why}"))?;
            let answers = answer.claims.iter().map(|(uid, answer)| (uid.as_str(), answer.error.as_str()));
            judge("NodeUnprepareResources", claims, answers)?;
        }
        self.change(|claims| {
            claims.retain(|_, claim| !(claim.pods.len() == 1 && claim.pods.contains(pod_uid)));
            Ok(())
        })
    }

    /// What monitoring is told of a container's claims.
    pub fn shown_of(&self, pod: &Pod, container: &Container) -> Vec<pr::DynamicResource> {
        let claims = self.claims();
        let mut shown: BTreeMap<String, pr::DynamicResource> = BTreeMap::new();
        for (name, request) in requests(pod, container).unwrap_or_default() {
            let Some(claim) = claims.get(&(pod.namespace().to_owned(), name.clone())) else { continue };
            let resource = shown.entry(name.clone()).or_insert_with(|| pr::DynamicResource {
                claim_name: name,
                claim_namespace: pod.namespace().to_owned(),
                claim_resources: Vec::new(),
            });
            for (driver, devices) in &claim.drivers {
                let devices = devices.iter().filter(|device| device.is_for(&request));
                resource.claim_resources.extend(devices.map(|device| pr::ClaimResource {
                    cdi_devices: device.cdi_ids.iter().map(|id| pr::CdiDevice { name: id.clone() }).collect(),
                    driver_name: driver.clone(),
                    pool_name: device.pool.clone(),
                    device_name: device.name.clone(),
                    share_id: device.share_id.clone(),
                }));
            }
        }
        shown.into_values().collect()
    }
}

/// By driver, what it is asked to do.
type Batches = BTreeMap<String, Vec<pb::Claim>>;

fn asked(namespace: &str, name: &str, claim: &Claim) -> pb::Claim {
    pb::Claim { namespace: namespace.to_owned(), uid: claim.uid.clone(), name: name.to_owned() }
}

/// Notes that the pod uses these claims. What of them is to be prepared.
fn note(
    claims: &mut Claims,
    pod: &Pod,
    wanted: &[(ResourceClaim, BTreeSet<String>)],
) -> Result<Batches, String> {
    let mut batches = Batches::new();
    for (claim, drivers) in wanted {
        let key = (claim.namespace().to_owned(), claim.name().to_owned());
        let known = claims.entry(key).or_insert_with(|| Claim {
            uid: claim.uid().to_owned(),
            drivers: drivers.iter().map(|driver| (driver.clone(), Vec::new())).collect(),
            ..Claim::default()
        });
        if known.uid != claim.uid() {
            return Err(format!(
                "old ResourceClaim with same name {} and different UID {} still exists (previous pod force-deleted?!)",
                claim.name(),
                known.uid
            ));
        }
        known.pods.insert(pod.uid().to_owned());
        if !known.prepared {
            for driver in known.drivers.keys() {
                let ask = asked(claim.namespace(), claim.name(), known);
                batches.entry(driver.clone()).or_default().push(ask);
            }
        }
    }
    Ok(batches)
}

/// The pod leaves its claims: those that it shares at once, of the others what is to be taken back first.
fn leave(claims: &mut Claims, pod_uid: &str) -> Batches {
    let mut batches = Batches::new();
    for ((namespace, name), claim) in claims.iter_mut().filter(|(_, claim)| claim.pods.contains(pod_uid)) {
        if claim.pods.len() > 1 {
            claim.pods.remove(pod_uid);
            continue;
        }
        // Whoever comes now has it prepared anew.
        claim.prepared = false;
        for driver in claim.drivers.keys() {
            batches.entry(driver.clone()).or_default().push(asked(namespace, name, claim));
        }
    }
    batches
}

/// Whether a driver has done what it was asked, by what it says of each claim's UID.
fn judge<'a>(
    call: &str,
    claims: &[pb::Claim],
    answers: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
) -> Result<(), String> {
    let skipped = claims.len().saturating_sub(answers.len());
    for (uid, error) in answers {
        let claim = claims.iter().find(|claim| claim.uid == uid);
        let claim = claim.ok_or_else(|| format!("{call} returned result for unknown claim UID {uid}"))?;
        if !error.is_empty() {
            return Err(format!("{call} failed for ResourceClaim {}: {error}", claim.name));
        }
    }
    if skipped == 0 { Ok(()) } else { Err(format!("{call} skipped {skipped} ResourceClaims")) }
}

fn device(told: pb::Device) -> Device {
    Device {
        pool: told.pool_name,
        name: told.device_name,
        share_id: told.share_id,
        requests: told.request_names,
        cdi_ids: told.cdi_device_ids,
    }
}

#[async_trait]
impl Handler for Dra {
    fn validate(&self, plugin: &Plugin) -> Result<(), String> {
        driver::service(plugin).map(drop).map_err(|why| {
            format!(
                "invalid supported gRPC versions of DRA driver plugin {} at endpoint {}: {why}",
                plugin.name,
                plugin.endpoint.display()
            )
        })
    }

    async fn register(&self, plugin: &Plugin) -> Result<(), String> {
        let driver = Driver::new(plugin)?;
        let mut drivers = self.drivers();
        let known = drivers.entry(plugin.name.clone()).or_default();
        known.retain(|other| other.plugin.endpoint != plugin.endpoint);
        known.push(driver);
        Ok(())
    }

    async fn deregister(&self, plugin: &Plugin) {
        let mut drivers = self.drivers();
        if let Some(known) = drivers.get_mut(&plugin.name) {
            known.retain(|other| other.plugin.endpoint != plugin.endpoint);
        }
    }
}

#[cfg(test)]
mod tests;
