//! A pod's claims must be bound, or bindable, where the pod runs. Claims that wait for their first consumer are
//! given a volume, or have one provisioned, for the node that was chosen.
//!
//! Upstream: pkg/scheduler/framework/plugins/volumebinding/volume_binding.go, binder.go

use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::core::v1::{
    Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod, TopologySelectorTerm,
};
use api::storage::v1::{CSIStorageCapacity, StorageClass};
use client::PatchType;
use serde_json::{Value, json};

use crate::cluster::{Change, Cluster, Kind};
use crate::configuration::args;
use crate::framework::{Filter, LooksAt, Plugin, Prepared, Refusal, Write};
use crate::volumes::{self, BOUND_BY_CONTROLLER, SELECTED_NODE, Volumes};
use crate::{NodeInfo, PodInfo, pod};

const NODE_CONFLICT: &str = "node(s) didn't match PersistentVolume's node affinity";
const BIND_CONFLICT: &str = "node(s) didn't find available persistent volumes to bind";
const NOT_ENOUGH_SPACE: &str = "node(s) did not have enough free storage";
const VOLUME_MISSING: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
const NOT_PROVISIONED: &str = "kubernetes.io/no-provisioner";

pub struct VolumeBinding {
    timeout: Duration,
}

impl VolumeBinding {
    pub fn make(args: Option<&Value>) -> Result<Arc<dyn Plugin>, String> {
        let args = args::volume_binding(args)?;
        let timeout = Duration::from_secs(args.bind_timeout_seconds.unsigned_abs());
        Ok(Arc::new(VolumeBinding { timeout }))
    }
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn refuse_all(&self, pod: &PodInfo, cluster: &Cluster) -> Option<Refusal> {
        Claims::of(pod, &cluster.volumes).err().map(Refusal::unresolvable)
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let claims = Claims::of(pod, &cluster.volumes).ok()?;
        let asks = !claims.bound.is_empty() || !claims.delayed.is_empty();
        asks.then(|| Box::new(Bindable { claims, volumes: &cluster.volumes }) as Box<dyn Filter>)
    }

    fn reserve(&self, pod: &PodInfo, node: &str, cluster: &mut Cluster) -> Result<Vec<Write>, String> {
        let claims = Claims::of(pod, &cluster.volumes)?;
        if claims.delayed.is_empty() {
            return Ok(Vec::new());
        }
        let node = cluster.node(node).and_then(|info| info.node.clone()).ok_or("the node is gone")?;
        let plan = claims.plan(&node, &cluster.volumes).map_err(|refusal| refusal.words())?;
        let volumes = &mut cluster.volumes;
        let mut writes = Vec::new();
        for (claim, volume) in plan.bindings {
            let write = bind_write(&claim, &volume);
            volumes.volumes.assume(volume.name().to_owned(), bound(&claim, &volume));
            writes.extend(write);
        }
        for claim in plan.provisions {
            let mut chosen = (*claim).clone();
            let annotations = chosen.metadata.annotations.get_or_insert_default();
            if annotations.insert(SELECTED_NODE.into(), node.name().into()).is_none() {
                writes.push(select_write(&claim, node.name()));
            }
            volumes.claims.assume(claim.key(), chosen);
        }
        Ok(writes)
    }

    fn unreserve(&self, pod: &PodInfo, cluster: &mut Cluster) -> Vec<Write> {
        let volumes = &mut cluster.volumes;
        for volume in pod.spec().iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let Some((name, _)) = Volumes::claim_name(&pod.pod, volume) else { continue };
            let key = format!("{}/{name}", pod.pod.namespace());
            let uid = volumes.claims.get(&key).map(|claim| claim.uid().to_owned());
            let promised = volumes.volumes.iter().filter(|volume| {
                let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
                reference.is_some_and(|reference| reference.uid.is_some() && reference.uid == uid)
            });
            let promised: Vec<String> = promised.map(|volume| volume.name().to_owned()).collect();
            promised.iter().for_each(|name| volumes.volumes.restore(name));
            volumes.claims.restore(&key);
        }
        Vec::new()
    }

    fn preparation_timeout(&self) -> Option<Duration> {
        Some(self.timeout)
    }

    // Upstream: pkg/scheduler/framework/plugins/volumebinding/binder.go checkBindings
    fn prepared(&self, pod: &PodInfo, node: &str, cluster: &Cluster) -> Prepared {
        let volumes = &cluster.volumes;
        for volume in pod.spec().iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let Some((name, _)) = Volumes::claim_name(&pod.pod, volume) else { continue };
            let key = format!("{}/{name}", pod.pod.namespace());
            let Some(claim) = volumes.claims.confirmed(&key) else {
                return Prepared::Failed(format!("persistentvolumeclaim {name:?} not found"));
            };
            let own = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
            if let Some(volume) = own.and_then(|name| volumes.volumes.confirmed(name))
                && let Some(there) = cluster.node(node).and_then(|info| info.node.as_ref())
                && !volumes::is_reachable(volume, there)
            {
                let why = "no matching NodeSelectorTerms";
                let volume = volume.name();
                return Prepared::Failed(format!(
                    "binding volumes: pv {volume:?} node affinity doesn't match node {node:?}: {why}"
                ));
            }
            if volumes::is_fully_bound(claim) {
                continue;
            }
            // A provisioner takes the annotation away when it cannot provision for the node.
            let selected = |claim: &PersistentVolumeClaim| {
                claim.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(SELECTED_NODE))
            };
            let promised = volumes.volumes.iter().any(|volume| refers_to(volume, claim));
            let assumed = volumes.claims.get(&key).is_some_and(|claim| selected(claim));
            if !assumed && !promised && own.is_none_or(str::is_empty) {
                let why = format!("binding volumes: selectedNode annotation reset for PVC {name:?}");
                return Prepared::Failed(why);
            }
            return Prepared::Waiting;
        }
        Prepared::Ready
    }

    fn events(&self) -> &'static [Kind] {
        &[Kind::NodeAdded, Kind::NodeUpdated, Kind::PodItself, Kind::Claim, Kind::Volumes]
    }

    fn may_help(&self, pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeAdded(_) | Change::Volumes | Change::PodItself => true,
            Change::NodeUpdated { old, new } => old.metadata.labels != new.metadata.labels,
            Change::Claim { namespace, name } => {
                let own =
                    pod.spec().iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| {
                        Volumes::claim_name(&pod.pod, volume).is_some_and(|(own, _)| own == *name)
                    });
                own && pod.pod.namespace() == namespace
            }
            _ => false,
        }
    }
}

fn refers_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| reference.uid.as_deref() == Some(claim.uid()))
}

/// The volume as it will be when the claim has it.
fn bound(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> PersistentVolume {
    let mut volume = volume.clone();
    volume.spec.get_or_insert_default().claim_ref = Some(ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: Some(claim.namespace().into()),
        name: Some(claim.name().into()),
        uid: Some(claim.uid().into()),
        resource_version: claim.metadata.resource_version.clone(),
        field_path: None,
    });
    volume
}

fn bind_write(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<Write> {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if reference.is_some_and(|reference| reference.uid.as_deref() == Some(claim.uid())) {
        return None;
    }
    let mut patch = json!({
        "metadata": {"resourceVersion": volume.metadata.resource_version},
        "spec": {"claimRef": {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.namespace(),
            "name": claim.name(), "uid": claim.uid(), "resourceVersion": claim.metadata.resource_version,
        }},
    });
    if reference.is_none() {
        patch["metadata"]["annotations"] = json!({ BOUND_BY_CONTROLLER: "yes" });
    }
    Some(Write::patch(volume, None, PatchType::Merge, patch))
}

fn select_write(claim: &PersistentVolumeClaim, node: &str) -> Write {
    let metadata = json!({
        "resourceVersion": claim.metadata.resource_version,
        "annotations": { SELECTED_NODE: node },
    });
    Write::patch(claim, None, PatchType::Merge, json!({ "metadata": metadata }))
}

/// A pod's claims, by what is still to be done about them.
struct Claims {
    bound: Vec<Arc<PersistentVolumeClaim>>,
    /// Unbound until a node is chosen.
    delayed: Vec<Arc<PersistentVolumeClaim>>,
}

impl Claims {
    /// Says why the pod cannot run anywhere yet.
    fn of(info: &PodInfo, volumes: &Volumes) -> Result<Self, String> {
        let mut claims = Claims { bound: Vec::new(), delayed: Vec::new() };
        let mut immediate = false;
        for volume in info.spec().iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let Some((name, own)) = Volumes::claim_name(&info.pod, volume) else { continue };
            let claim = usable(&info.pod, &name, own, volumes)?;
            if volumes::is_fully_bound(claim) {
                claims.bound.push(claim.clone());
                continue;
            }
            let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
            match volumes.waits_for_consumer(claim) {
                Some(true) if named.is_none_or(str::is_empty) => claims.delayed.push(claim.clone()),
                Some(_) => immediate = true,
                None => {
                    let class = volumes::class_of(claim);
                    return Err(format!("storageclass.storage.k8s.io {class:?} not found"));
                }
            }
        }
        if immediate {
            return Err("pod has unbound immediate PersistentVolumeClaims".into());
        }
        // The smallest first, so that each gets the smallest volume that will do.
        claims.delayed.sort_by_key(|claim| volumes::requested(claim));
        Ok(claims)
    }

    /// What is to be bound and provisioned if the pod goes to this node.
    fn plan(&self, node: &Node, volumes: &Volumes) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        let mut reasons: Vec<&'static str> = Vec::new();
        for claim in &self.bound {
            let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
            match volumes.volumes.get(name) {
                None => reasons.push(VOLUME_MISSING),
                Some(volume) if !volumes::is_reachable(volume, node) => reasons.push(NODE_CONFLICT),
                Some(_) => {}
            }
        }
        let mut taken = Vec::new();
        for claim in &self.delayed {
            let selected = claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE));
            if selected.is_some_and(|selected| selected != node.name()) {
                reasons.push(BIND_CONFLICT);
                break;
            }
            let found = match selected {
                Some(_) => None,
                None => volumes::find_matching(claim, volumes.volumes.iter(), node, &taken),
            };
            match found {
                Some(volume) => {
                    taken.push(volume.name().to_owned());
                    plan.bindings.push((claim.clone(), volume.clone()));
                }
                None => match provision(claim, node, volumes) {
                    Ok(()) => plan.provisions.push(claim.clone()),
                    Err(reason) => {
                        reasons.push(reason);
                        break;
                    }
                },
            }
        }
        reasons.dedup();
        let mut refusal = None;
        reasons.into_iter().for_each(|reason| Refusal::add(&mut refusal, reason).unresolvable = true);
        refusal.map_or(Ok(plan), Err)
    }
}

#[derive(Default)]
struct Plan {
    bindings: Vec<(Arc<PersistentVolumeClaim>, Arc<PersistentVolume>)>,
    provisions: Vec<Arc<PersistentVolumeClaim>>,
}

/// The claim, if a pod can use it at all.
fn usable<'a>(
    pod: &Pod,
    name: &str,
    own: bool,
    volumes: &'a Volumes,
) -> Result<&'a Arc<PersistentVolumeClaim>, String> {
    let Some(claim) = volumes.claim(pod.namespace(), name) else {
        return Err(if own {
            format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}")
        } else {
            format!("persistentvolumeclaim {name:?} not found")
        });
    };
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase == Some("Lost") {
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
        return Err(format!(
            "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
        ));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
    }
    if own && !volumes::is_owned(claim, pod) {
        let namespace = pod.namespace();
        return Err(format!(
            "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
            pod.name()
        ));
    }
    Ok(claim)
}

/// Whether a volume can be made for the claim on the node.
fn provision(claim: &PersistentVolumeClaim, node: &Node, volumes: &Volumes) -> Result<(), &'static str> {
    let class = volumes.classes.get(volumes::class_of(claim)).ok_or(BIND_CONFLICT)?;
    if class.provisioner.is_empty() || class.provisioner == NOT_PROVISIONED {
        return Err(BIND_CONFLICT);
    }
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    if !terms.is_empty() && !terms.iter().any(|term| topology_matches(term, node)) {
        return Err(BIND_CONFLICT);
    }
    if has_capacity(claim, class, node, volumes) { Ok(()) } else { Err(NOT_ENOUGH_SPACE) }
}

fn topology_matches(term: &TopologySelectorTerm, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let expressions = term.match_label_expressions.as_deref().unwrap_or_default();
    !expressions.is_empty()
        && expressions.iter().all(|expression| {
            labels
                .and_then(|labels| labels.get(&expression.key))
                .is_some_and(|v| expression.values.contains(v))
        })
}

/// Drivers that publish their capacity have enough of it for the node.
fn has_capacity(claim: &PersistentVolumeClaim, class: &StorageClass, node: &Node, volumes: &Volumes) -> bool {
    let Some(driver) = volumes.csi_drivers.get(&class.provisioner) else { return true };
    if driver.spec.storage_capacity != Some(true) {
        return true;
    }
    let wanted = volumes::requested(claim);
    let no_labels = pod::Labels::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&no_labels);
    let reaches = |capacity: &CSIStorageCapacity| {
        let topology = capacity.node_topology.as_ref();
        topology.is_some_and(|topology| pod::selector(Some(topology)).matches_map(labels))
    };
    let limit = |capacity: &CSIStorageCapacity| {
        capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref()).and_then(volumes::bytes)
    };
    volumes.capacities.values().any(|capacity| {
        capacity.storage_class_name == class.name()
            && limit(capacity).is_some_and(|limit| limit >= wanted)
            && reaches(capacity)
    })
}

struct Bindable<'a> {
    claims: Claims,
    volumes: &'a Volumes,
}

impl Filter for Bindable<'_> {
    fn check(&self, info: &NodeInfo) -> Result<(), Refusal> {
        match &info.node {
            Some(node) => self.claims.plan(node, self.volumes).map(drop),
            None => Ok(()),
        }
    }

    fn looks_at(&self) -> LooksAt {
        LooksAt::Node
    }
}

#[cfg(test)]
#[path = "volume_binding_tests.rs"]
mod tests;
