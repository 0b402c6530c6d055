//! Volumes that outlive their pod, found by its claims, and those that a driver makes for one pod. What a pod has
//! been given it holds: the objects are read again only when it is time to.

use std::sync::PoisonError;

use api::Object;
use api::core::v1::{HostPathVolumeSource, Node, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use jiff::Timestamp;

use super::csi::REFRESH;
use super::csi::source::Source;
use super::setup::{Mounted, Volumes, fs_group};
use super::{VolumeError, host_path, ownership};
use crate::admit;

/// Keeps a claim while pods use it.
const PROTECTION: &str = "kubernetes.io/pvc-protection";

/// A pod's UID and the name of its volume.
pub type HeldKey = (String, String);

/// A volume that a pod has.
#[derive(Clone, Debug)]
pub struct Held {
    mounted: Mounted,
    /// The PersistentVolume, if it is one.
    object: Option<String>,
    /// When to look whether it has changed.
    due: Option<Timestamp>,
    /// How often drivers had registered when it was looked at.
    registrations: u64,
}

/// The claim that a pod's volume is by, and whether it is only to be read.
pub fn claim_of(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some((claim.claim_name.clone(), claim.read_only == Some(true))),
        (_, Some(_)) => Some((format!("{}-{}", pod.name(), volume.name), false)),
        _ => None,
    }
}

/// Whether containers of the pod mount the volume, and whether they take it as a device.
fn uses(pod: &Pod, volume: &str) -> (bool, bool) {
    let containers = crate::pod::containers(pod).iter().chain(crate::pod::init_containers(pod));
    let (mut mounted, mut device) = (false, false);
    for container in containers {
        mounted |= container.volume_mounts.iter().flatten().any(|m| m.name == volume);
        device |= container.volume_devices.iter().flatten().any(|d| d.name == volume);
    }
    (mounted, device)
}

/// Why the volume is not the pod's to have.
// Upstream: pkg/kubelet/volumemanager/populator/desired_state_of_world_populator.go createVolumeSpec
fn refusal(
    pod: &Pod,
    volume: &Volume,
    claim: &PersistentVolumeClaim,
    object: &PersistentVolume,
) -> Option<String> {
    let (namespace, name) = (claim.namespace(), claim.name());
    let owners = claim.metadata.owner_references.iter().flatten();
    if volume.ephemeral.is_some()
        && !owners.into_iter().any(|o| o.controller == Some(true) && o.uid == pod.uid())
    {
        let pod = crate::pod::display(pod);
        return Some(format!("PVC {namespace}/{name} was not created for pod {pod} (pod is not owner)"));
    }
    let spec = object.spec.as_ref();
    let bound_to = spec.and_then(|s| s.claim_ref.as_ref()?.uid.as_deref());
    if bound_to != Some(claim.uid()) {
        return Some(format!(
            "error processing PVC {namespace}/{name}: found PV object {} but its pv.Spec.ClaimRef.UID {} does \
             not point to claim.UID {}",
            object.name(),
            bound_to.unwrap_or_default(),
            claim.uid()
        ));
    }
    let block = spec.and_then(|s| s.volume_mode.as_deref()) == Some("Block");
    let volume = &volume.name;
    match (uses(pod, volume), block) {
        ((true, _), true) => {
            Some(format!("volume {volume} has volumeMode Block, but is specified in volumeMounts"))
        }
        ((_, true), false) => {
            Some(format!("volume {volume} has volumeMode Filesystem, but is specified in volumeDevices"))
        }
        _ => None,
    }
}

impl Volumes {
    fn lock_held(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<HeldKey, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the first of a pod's volumes may have changed.
    pub(super) fn held_until(&self, pod_uid: &str) -> Option<Timestamp> {
        self.lock_held().iter().filter(|((uid, _), _)| uid == pod_uid).filter_map(|(_, held)| held.due).min()
    }

    /// The PersistentVolume of a volume that the pod holds, or none if it is the pod's own; `None` for others.
    pub(super) fn object_of(&self, pod: &Pod, volume: &str) -> Option<Option<String>> {
        let key = (pod.uid().to_owned(), volume.to_owned());
        self.lock_held().get(&key).map(|held| held.object.clone())
    }

    /// Where a volume that the pod holds lies on the node, if it is a tree of files.
    pub(super) fn local_path(&self, pod: &Pod, volume: &str) -> Option<std::path::PathBuf> {
        let key = (pod.uid().to_owned(), volume.to_owned());
        let held = self.lock_held();
        held.get(&key).filter(|held| !held.mounted.is_device).map(|held| held.mounted.path.clone())
    }

    pub(super) fn let_go(&self, pod_uid: &str) {
        self.lock_held().retain(|(uid, _), _| uid != pod_uid);
    }

    /// A volume by a claim or of a driver: as it was given before, until it is time to look again.
    pub(super) async fn held_volume(
        &self,
        pod: &Pod,
        volume: &Volume,
        node: Option<&Node>,
    ) -> Result<Mounted, VolumeError> {
        let key = (pod.uid().to_owned(), volume.name.clone());
        let now = self.clock.now();
        let registrations = self.csi.registrations();
        let before = self.lock_held().get(&key).cloned();
        let is_recent =
            |held: &&Held| held.due.is_none_or(|due| now < due && held.registrations == registrations);
        if let Some(held) = before.as_ref().filter(is_recent) {
            return Ok(held.mounted.clone());
        }
        let held = match (self.find(pod, volume, node).await, before) {
            (Ok(held), _) => held,
            // What a running pod has it keeps.
            (Err(error), Some(before)) => {
                tracing::debug!(pod = pod.name(), volume = volume.name, %error, "cannot look at a volume anew");
                Held { due: Some(now + REFRESH), registrations, ..before }
            }
            (Err(error), None) => return Err(error),
        };
        let mounted = held.mounted.clone();
        self.lock_held().insert(key, held);
        Ok(mounted)
    }

    async fn find(&self, pod: &Pod, volume: &Volume, node: Option<&Node>) -> Result<Held, VolumeError> {
        let due = Some(self.clock.now() + REFRESH);
        // Read first: a driver that registers meanwhile is looked at again.
        let registrations = self.csi.registrations();
        if let Some(csi) = &volume.csi {
            let mounted = self.csi.setup(pod, &Source::of_pod(pod, &volume.name, csi), node).await?;
            return Ok(Held { mounted, object: None, due, registrations });
        }
        let (claim, object, read_only) = self.objects(pod, volume).await?;
        let name = object.name().to_owned();
        let step =
            |step, why: String| VolumeError::Step { reason: "FailedMount", step, volume: name.clone(), why };
        let spec = object.spec.clone().unwrap_or_default();
        let terms = spec.node_affinity.as_ref().and_then(|a| a.required.as_ref());
        if let (Some(required), Some(node)) = (terms, node)
            && !admit::matches_any(&required.node_selector_terms, node)
        {
            let why = "no matching NodeSelectorTerms".to_owned();
            return Err(step("MountVolume.NodeAffinity check failed", why));
        }
        if let Some(source) = Source::of_volume(&claim, &object, read_only) {
            let mounted = self.csi.setup(pod, &source, node).await?;
            return Ok(Held { mounted, object: Some(name), due, registrations });
        }
        if spec.access_modes.as_deref().is_some_and(|modes| modes == ["ReadWriteOncePod"])
            && self.is_held_elsewhere(&name, pod.uid())
        {
            let why = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
            return Err(step("MountVolume.SetUp failed", why.to_owned()));
        }
        let block = spec.volume_mode.as_deref() == Some("Block");
        let mut mounted = match (&spec.host_path, &spec.local) {
            (Some(source), _) => host_path::check(source)?,
            (_, Some(local)) => {
                let kind = if block { "BlockDevice" } else { "Directory" };
                let source = HostPathVolumeSource { path: local.path.clone(), type_: Some(kind.to_owned()) };
                let mounted = host_path::check(&source)?;
                if !block && !read_only {
                    ownership::give_in_background(pod, mounted.path.clone(), fs_group(pod)).await?;
                }
                mounted
            }
            _ => return Err(VolumeError::Refused("no volume plugin matched".into())),
        };
        mounted.read_only |= read_only;
        mounted.is_device = block;
        Ok(Held { mounted, object: Some(name), due: None, registrations })
    }

    fn is_held_elsewhere(&self, object: &str, pod_uid: &str) -> bool {
        let held = self.lock_held();
        held.iter().any(|((uid, _), held)| uid != pod_uid && held.object.as_deref() == Some(object))
    }

    /// The claim and the PersistentVolume of a pod's volume, and whether it is only to be read.
    // Upstream: pkg/kubelet/volumemanager/populator/desired_state_of_world_populator.go getPVCExtractPV
    async fn objects(
        &self,
        pod: &Pod,
        volume: &Volume,
    ) -> Result<(PersistentVolumeClaim, PersistentVolume, bool), VolumeError> {
        let Some((name, read_only)) = claim_of(pod, volume) else {
            return Err(VolumeError::Refused("no volume plugin matched".into()));
        };
        let namespace = pod.namespace();
        let what = format!("error processing PVC {namespace}/{name}");
        let api = |kind: &str| {
            let what = format!("{what}: failed to fetch {kind} from API server");
            |source| VolumeError::Api { what, source: Box::new(source) }
        };
        let claim = self.client.get::<PersistentVolumeClaim>(namespace, &name).await.map_err(api("PVC"))?;
        let protected = claim.metadata.finalizers.iter().flatten().any(|f| f == PROTECTION);
        if claim.metadata.deletion_timestamp.is_some() && !protected {
            return Err(VolumeError::Refused(format!("{what}: PVC is being deleted")));
        }
        let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let object = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|_| bound);
        let Some(object) = object else {
            return Err(VolumeError::Refused(format!("{what}: PVC is not bound")));
        };
        let object =
            self.client.get::<PersistentVolume>("", &object).await.map_err(api(&format!("PV {object}")))?;
        match refusal(pod, volume, &claim, &object) {
            Some(why) => Err(VolumeError::Refused(why)),
            None => Ok((claim, object, read_only)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn volumes_that_are_not_the_pods() {
        let pod = |uses: Value| -> Pod {
            let mut container = uses;
            container["name"] = json!("c");
            serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "n", "uid": "u"},
                "spec": {"containers": [container]},
            }))
            .unwrap()
        };
        let mounts = || pod(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
        let devices = || pod(json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]}));
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "n", "uid": "cu"}}))
                .unwrap();
        let object = |mode: &str, uid: &str| -> PersistentVolume {
            let spec = json!({"volumeMode": mode, "claimRef": {"uid": uid}});
            serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": spec})).unwrap()
        };
        let by_claim = json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}});
        let by_pod = json!({"name": "v", "ephemeral": {}});
        let cases = [
            (mounts(), &by_claim, object("Filesystem", "cu"), None),
            (devices(), &by_claim, object("Block", "cu"), None),
            (mounts(), &by_claim, object("Block", "cu"), Some("in volumeMounts")),
            (devices(), &by_claim, object("Filesystem", "cu"), Some("in volumeDevices")),
            (mounts(), &by_claim, object("Filesystem", "other"), Some("does not point to claim.UID cu")),
            (mounts(), &by_pod, object("Filesystem", "cu"), Some("pod is not owner")),
        ];
        for (pod, volume, object, want) in cases {
            let volume: Volume = serde_json::from_value(volume.clone()).unwrap();
            let got = refusal(&pod, &volume, &claim, &object);
            assert_eq!(got.is_some(), want.is_some(), "{got:?}");
            assert!(got.is_none_or(|got| got.contains(want.unwrap())));
        }
    }
}
