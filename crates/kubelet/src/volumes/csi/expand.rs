//! A volume whose filesystem or device is made to fill what its PersistentVolume has grown to.

use api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use api::{Object, Quantity};
use client::PatchType;
use controller_runtime::{EventType, reference};
use cri::csi as pb;
use serde_json::{Value, json};
use tonic::Code;

use super::Csi;
use super::mount::Asked;
use super::source::Source;
use crate::events::PodEvents;
use crate::pod::qos;

const STORAGE: &str = "storage";
const PENDING: &str = "NodeResizePending";
const IN_PROGRESS: &str = "NodeResizeInProgress";
const INFEASIBLE: &str = "NodeResizeInfeasible";
const ERROR: &str = "NodeResizeError";
/// Conditions that end when the growing does.
// Upstream: pkg/volume/util/resize_util.go knownResizeConditions
const CONDITIONS: [&str; 5] =
    ["FileSystemResizePending", "Resizing", "ControllerResizeError", ERROR, "ModifyVolumeError"];
/// Who grew the volume says that nodes have nothing to do.
const NOT_REQUIRED: &str = "volume.kubernetes.io/node-expansion-not-required";

/// What is to be done about a volume that may have grown.
#[derive(Clone, Debug, PartialEq)]
enum Growth {
    None,
    /// There is nothing to do on this node: the volume has this size.
    Settled(Quantity),
    /// The driver is to be asked.
    Expand {
        to: Quantity,
        /// The claim says how far it is: whoever grew the volume knows of that.
        tracked: bool,
        /// The claim says the new size already: another node was first.
        known: bool,
    },
}

fn bytes(quantity: Option<&Quantity>) -> i64 {
    quantity.map_or(0, |quantity| qos::amount(STORAGE, quantity))
}

/// What the PersistentVolume has.
fn capacity(volume: &PersistentVolume) -> Option<&Quantity> {
    volume.spec.as_ref()?.capacity.as_ref()?.get(STORAGE)
}

/// What the claim says that the pod has.
fn has(claim: &PersistentVolumeClaim) -> Option<&Quantity> {
    claim.status.as_ref()?.capacity.as_ref()?.get(STORAGE)
}

fn has_mode(claim: &PersistentVolumeClaim, mode: &str) -> bool {
    claim.spec.iter().flat_map(|s| s.access_modes.iter().flatten()).any(|m| m == mode)
}

/// Decides by the size that this node last made the volume.
// Upstream: pkg/volume/util/operationexecutor/node_expander.go runPreCheck; operation_generator.go
// checkForRecoveryFromExpansion
fn decide(claim: &PersistentVolumeClaim, volume: &PersistentVolume, size: i64) -> Growth {
    let Some(wanted) = capacity(volume).filter(|capacity| bytes(Some(capacity)) > size) else {
        return Growth::None;
    };
    let status = claim.status.as_ref();
    let progress =
        status.and_then(|s| s.allocated_resource_statuses.as_ref()?.get(STORAGE)).map(String::as_str);
    let allocated = status.and_then(|s| s.allocated_resources.as_ref()?.get(STORAGE));
    if progress.is_none() && allocated.is_none() {
        let known = bytes(has(claim)) >= bytes(Some(wanted));
        return Growth::Expand { to: wanted.clone(), tracked: false, known };
    }
    let to = allocated.unwrap_or(wanted).clone();
    let known = progress.is_none() && bytes(has(claim)) >= bytes(Some(&to));
    let annotated = claim.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(NOT_REQUIRED));
    let on_each_node = known && has_mode(claim, "ReadWriteMany") && !annotated;
    match progress {
        Some(PENDING | IN_PROGRESS) => Growth::Expand { to, tracked: true, known: false },
        _ if on_each_node => Growth::Expand { to, tracked: true, known: true },
        _ if known => Growth::Settled(to),
        _ => Growth::None,
    }
}

/// The status patch of a claim that has grown.
// Upstream: pkg/volume/util/resize_util.go MarkNodeExpansionFinishedWithRecovery
fn finished(claim: &PersistentVolumeClaim, to: &Quantity) -> Value {
    let conditions = claim.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let kept: Vec<_> = conditions.filter(|c| !CONDITIONS.contains(&c.type_.as_str())).collect();
    json!({
        "metadata": {"resourceVersion": claim.metadata.resource_version},
        "status": {
            "capacity": {STORAGE: to.0},
            "allocatedResourceStatuses": {STORAGE: null},
            "conditions": kept,
        },
    })
}

/// The status patch of a claim whose growing failed.
// Upstream: pkg/volume/util/resize_util.go MarkNodeExpansionInfeasible, MarkNodeExpansionFailedCondition
fn failed(claim: &PersistentVolumeClaim, why: &str, infeasible: bool, now: &api::meta::Time) -> Value {
    let conditions = claim.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let kept = conditions.filter(|c| c.type_ != ERROR).map(|c| json!(c));
    let error = json!({
        "type": ERROR,
        "status": "True",
        "lastTransitionTime": now,
        "message": format!("failed to expand pvc with {why}"),
    });
    let mut patch = json!({"status": {"conditions": kept.chain([error]).collect::<Vec<_>>()}});
    if infeasible {
        patch["status"]["allocatedResourceStatuses"] = json!({STORAGE: INFEASIBLE});
    }
    patch
}

impl Csi {
    /// Grows the volume before the pod gets it.
    // Upstream: pkg/volume/util/operationexecutor/operation_generator.go expandVolumeDuringMount
    pub(super) async fn expand_at_mount(&self, asked: &Asked<'_>) -> Result<(), String> {
        let Some(objects) = &asked.source.objects else { return Ok(()) };
        let size = bytes(has(&objects.0));
        let grown = self.grow(asked, size).await?;
        self.ledger().set_size(&asked.source.identity, grown);
        Ok(())
    }

    /// Grows the volume that the pod has. What fails is told in an event and tried again.
    // Upstream: pkg/volume/util/operationexecutor/operation_generator.go GenerateExpandInUseVolumeFunc
    pub(super) async fn expand_in_use(&self, asked: &Asked<'_>) {
        if !self.may_have_grown(asked.source) {
            return;
        }
        let volume = &asked.source.identity;
        let size = self.size(asked.source);
        match self.grow(asked, size).await {
            Ok(size) => self.ledger().set_size(volume, size),
            Err(why) => {
                let events = PodEvents { recorder: &self.parts.recorder, pod: asked.pod };
                let message =
                    format!("NodeExpandVolume.NodeExpandVolume failed for volume {:?} : {why}", volume.name);
                events.warning("", "VolumeResizeFailed", &message);
            }
        }
    }

    /// What this node last made the volume; what the claim says, if we do not remember.
    fn size(&self, source: &Source) -> i64 {
        let claimed = || bytes(source.objects.as_ref().and_then(|objects| has(&objects.0)));
        self.ledger().size(&source.identity).unwrap_or_else(claimed)
    }

    pub(super) fn may_have_grown(&self, source: &Source) -> bool {
        let size = self.size(source);
        source.objects.as_ref().is_some_and(|objects| decide(&objects.0, &objects.1, size) != Growth::None)
    }

    /// Does what is to be done, and returns the volume's size after it.
    async fn grow(&self, asked: &Asked<'_>, size: i64) -> Result<i64, String> {
        let Some(objects) = &asked.source.objects else { return Ok(size) };
        let (claim, volume) = &**objects;
        let (to, tracked, known) = match decide(claim, volume, size) {
            Growth::None => return Ok(size),
            Growth::Settled(to) => return Ok(bytes(Some(&to))),
            Growth::Expand { to, tracked, known } => (to, tracked, known),
        };
        let name = volume.name();
        if asked.source.read_only {
            let message = format!(
                "MountVolume.NodeExpandVolume failed for volume {name:?} requested read-only file system"
            );
            self.tell(asked, claim, EventType::Warning, "FileSystemResizeFailed", &message);
            return Ok(bytes(capacity(volume)));
        }
        let mut claim = claim.clone();
        if tracked && !known {
            let patch = json!({
                "metadata": {"resourceVersion": claim.metadata.resource_version},
                "status": {"allocatedResourceStatuses": {STORAGE: IN_PROGRESS}},
            });
            claim = self.patch_claim(&claim, &patch).await?;
        }
        if !asked.able.expand {
            if !tracked || known {
                return Ok(bytes(Some(&to)));
            }
            let driver = &asked.source.identity.driver;
            let why = format!("NodeExpand is not supported by the CSI driver {driver}");
            self.patch_claim(&claim, &failed(&claim, &why, false, &self.parts.clock.time())).await?;
            return Err(why);
        }
        if let Err(failure) = asked.driver.expand(self.expand_request(asked, &to).await?).await {
            return self.expand_failed(asked, &claim, &to, tracked, failure).await;
        }
        let node = &self.parts.node_name;
        let message = format!("MountVolume.NodeExpandVolume succeeded for volume {name:?} {node}");
        self.tell(asked, &claim, EventType::Normal, "FileSystemResizeSuccessful", &message);
        if bytes(has(&claim)) < bytes(Some(&to)) || tracked && !known {
            let updated = self.patch_claim(&claim, &finished(&claim, &to)).await;
            updated.map_err(|e| format!("mountVolume.NodeExpandVolume update pvc status failed: {e}"))?;
        }
        Ok(bytes(Some(&to)))
    }

    // Upstream: pkg/volume/util/operationexecutor/node_expander.go expandOnPlugin
    async fn expand_failed(
        &self,
        asked: &Asked<'_>,
        claim: &PersistentVolumeClaim,
        to: &Quantity,
        tracked: bool,
        failure: super::driver::Failure,
    ) -> Result<i64, String> {
        let why = format!("Expander.NodeExpand failed to expand the volume : {}", failure.why);
        let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
        let requested = bytes(resources.and_then(|r| r.requests.as_ref()?.get(STORAGE)));
        if tracked && failure.is_final() {
            let impossible =
                matches!(failure.code, Code::InvalidArgument | Code::OutOfRange | Code::NotFound);
            let again = self.ledger().set_stuck(&asked.source.identity);
            // Somebody has changed what is asked for since: the controller is to look at it anew.
            let infeasible = impossible || again && requested != bytes(Some(to));
            let patch = failed(claim, &why, infeasible, &self.parts.clock.time());
            if let Err(error) = self.patch_claim(claim, &patch).await {
                tracing::warn!(claim = claim.name(), error, "cannot tell that a volume does not grow");
            }
        }
        match failure.code {
            // The driver grows nothing that is in use; the pod goes on with what there is.
            Code::FailedPrecondition => Ok(bytes(Some(to))),
            _ => Err(why),
        }
    }

    async fn expand_request(
        &self,
        asked: &Asked<'_>,
        to: &Quantity,
    ) -> Result<pb::NodeExpandVolumeRequest, String> {
        let (source, volume) = (asked.source, &asked.source.identity);
        let secrets = match &source.expand_secret {
            Some(secret) => self.secret("NodeExpandSecretRef", secret).await?,
            None => Default::default(),
        };
        let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        let staging = asked.able.stage.then(|| text(self.parts.paths.csi_stage(volume).target));
        Ok(pb::NodeExpandVolumeRequest {
            volume_id: volume.handle.clone(),
            volume_path: text(self.parts.paths.csi_publication(volume, asked.pod.uid()).target),
            capacity_range: Some(pb::CapacityRange { required_bytes: bytes(Some(to)), limit_bytes: 0 }),
            staging_target_path: staging.unwrap_or_default(),
            volume_capability: Some(source.capability(&asked.able, None)),
            secrets: secrets.into_iter().collect(),
        })
    }

    /// Tells of the pod and of its claim.
    fn tell(
        &self,
        asked: &Asked<'_>,
        claim: &PersistentVolumeClaim,
        kind: EventType,
        reason: &str,
        message: &str,
    ) {
        for about in [reference(asked.pod), reference(claim)] {
            self.parts.recorder.event_about(about, kind, reason, message);
        }
    }

    async fn patch_claim(
        &self,
        claim: &PersistentVolumeClaim,
        patch: &Value,
    ) -> Result<PersistentVolumeClaim, String> {
        let (namespace, name) = (claim.namespace(), claim.name());
        let patched = self.parts.client.patch(namespace, name, Some("status"), PatchType::Merge, patch).await;
        patched.map_err(|error| format!("patchPVCStatus failed to patch PVC {name:?}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(status: Value, mode: &str) -> PersistentVolumeClaim {
        serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "n", "resourceVersion": "7"},
            "spec": {"accessModes": [mode], "resources": {"requests": {"storage": "2Gi"}}},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn what_grows() {
        let volume: PersistentVolume = serde_json::from_value(
            json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "2Gi"}}}),
        )
        .unwrap();
        let (small, large) = (json!({"storage": "1Gi"}), json!({"storage": "2Gi"}));
        let progress = |capacity: &Value, progress: Option<&str>| {
            let mut status = json!({"capacity": capacity, "allocatedResources": large});
            if let Some(progress) = progress {
                status["allocatedResourceStatuses"] = json!({"storage": progress});
            }
            status
        };
        let expand = |tracked, known| Growth::Expand { to: Quantity("2Gi".into()), tracked, known };
        let settled = Growth::Settled(Quantity("2Gi".into()));
        let cases = [
            (json!({"capacity": small}), "ReadWriteOnce", 1 << 30, expand(false, false)),
            (json!({"capacity": large}), "ReadWriteOnce", 2 << 30, Growth::None),
            (json!({"capacity": large}), "ReadWriteOnce", 1 << 30, expand(false, true)),
            (progress(&small, Some(PENDING)), "ReadWriteOnce", 1 << 30, expand(true, false)),
            (progress(&small, Some(IN_PROGRESS)), "ReadWriteOnce", 1 << 30, expand(true, false)),
            (progress(&small, Some(INFEASIBLE)), "ReadWriteOnce", 1 << 30, Growth::None),
            (progress(&small, None), "ReadWriteOnce", 1 << 30, Growth::None),
            (progress(&large, None), "ReadWriteOnce", 1 << 30, settled),
            (progress(&large, None), "ReadWriteMany", 1 << 30, expand(true, true)),
        ];
        for (status, mode, size, want) in cases {
            assert_eq!(decide(&claim(status.clone(), mode), &volume, size), want, "{status} {mode} {size}");
        }
    }

    #[test]
    fn what_the_claim_says() {
        let status = json!({"conditions": [
            {"type": "FileSystemResizePending", "status": "True"}, {"type": "Mine", "status": "True"},
        ]});
        let claim = claim(status, "ReadWriteOnce");
        let patch = finished(&claim, &Quantity("2Gi".into()));
        assert_eq!(patch["status"]["conditions"], json!([{"type": "Mine", "status": "True"}]));
        assert_eq!(patch["status"]["capacity"]["storage"], "2Gi");
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        let now = api::meta::Time(jiff::Timestamp::UNIX_EPOCH);
        let patch = failed(&claim, "no", true, &now);
        assert_eq!(patch["status"]["allocatedResourceStatuses"]["storage"], INFEASIBLE);
        assert_eq!(patch["status"]["conditions"][2]["message"], "failed to expand pvc with no");
        assert!(failed(&claim, "no", false, &now)["status"].get("allocatedResourceStatuses").is_none());
    }
}
