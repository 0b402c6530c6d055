//! A volume made available: attached, staged for the node, published to the pod.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use api::Object;
use api::core::v1::{Node, Pod};
use api::storage::v1::{CSIDriver, VolumeAttachment};
use cri::csi as pb;
use jiff::SignedDuration;
use serde_json::json;

use super::driver::{Capabilities, Driver};
use super::ledger::Progress;
use super::record::{Identity, make_dir, sha256};
use super::source::{Source, pod_info, refusal};
use super::{Csi, lock, of_node};
use crate::events::PodEvents;
use crate::volumes::setup::{Mounted, fs_group};
use crate::volumes::{VolumeError, ownership};

/// How often what may change is looked at while the pod runs: a volume that has grown, one that its driver wants
/// published again. Nodes may not watch claims and volumes.
pub const REFRESH: SignedDuration = SignedDuration::from_secs(60);

/// Which step failed, and why.
pub struct Failed {
    step: &'static str,
    why: String,
}

impl Failed {
    pub fn at(step: &'static str) -> impl Fn(String) -> Failed {
        move |why| Failed { step, why }
    }
}

/// The words of a step, which differ for trees of files and devices.
fn step(volume: &Identity, of_files: &'static str, of_device: &'static str) -> impl Fn(String) -> Failed {
    Failed::at(if volume.block { of_device } else { of_files })
}

/// How nodes name an attachment.
// Upstream: pkg/volume/csi/csi_attacher.go getAttachmentName
pub fn attachment_name(volume: &Identity, node_name: &str) -> String {
    format!("csi-{}", sha256(&format!("{}{}{node_name}", volume.handle, volume.driver)))
}

/// Why the attachment does not do yet.
// Upstream: pkg/volume/csi/csi_attacher.go verifyAttachmentStatus
fn unattached(attachment: &VolumeAttachment, handle: &str) -> Option<String> {
    let status = attachment.status.as_ref();
    let error = status.and_then(|s| s.attach_error.as_ref()?.message.clone());
    if attachment.metadata.deletion_timestamp.is_some() {
        return Some("volume attachment is being deleted".to_owned());
    }
    if status.is_some_and(|s| s.attached) {
        return None;
    }
    let name = attachment.name();
    let waiting = || format!("volume {handle} is not attached for volume attachment {name}");
    Some(error.unwrap_or_else(waiting))
}

/// What a pod, its volume and the volume's driver come to.
pub struct Asked<'a> {
    pub pod: &'a Pod,
    pub source: &'a Source,
    pub driver: &'a Driver,
    pub able: Capabilities,
    pub kind: Option<&'a CSIDriver>,
    /// What whoever attached the volume says of it.
    pub context: BTreeMap<String, String>,
}

impl Csi {
    /// Makes the volume available to the pod. What is so already is left as it is, unless the driver wants it
    /// again or the volume has grown.
    // Upstream: pkg/volume/util/operationexecutor/operation_generator.go GenerateMountVolumeFunc
    pub async fn setup(
        &self,
        pod: &Pod,
        source: &Source,
        node: Option<&Node>,
    ) -> Result<Mounted, VolumeError> {
        let volume = &source.identity;
        self.parts.kinds.synced().await;
        let turn = self.ledger().want(volume, pod.uid());
        self.tell_if_changed();
        // One operation after the other on each volume; who is woken finds what the one before has done.
        let Ok(_turn) = turn.acquire_owned().await else {
            return Err(VolumeError::Pending("the kubelet is stopping".to_owned()));
        };
        if self.ledger().published(volume, pod.uid()) == Progress::Done {
            self.refresh(pod, source).await;
            return Ok(self.mounted(pod, source));
        }
        self.check_backoff(volume)?;
        let done = match self.check_attached(volume, node) {
            Ok(()) => self.mount(pod, source).await,
            Err(_) if self.is_exhausted(volume).await => return Err(VolumeError::Exhausted),
            Err(pending) => return Err(pending),
        };
        let key = backoff_key(volume);
        match done {
            Ok(()) => {
                lock(&self.backoff).forget(&key);
                Ok(self.mounted(pod, source))
            }
            Err(Failed { step, why }) => {
                lock(&self.backoff).next(&key, self.parts.clock.now());
                let reason = if volume.block { "FailedMapVolume" } else { "FailedMount" };
                Err(VolumeError::Step { reason, step, volume: volume.name.clone(), why })
            }
        }
    }

    fn check_backoff(&self, volume: &Identity) -> Result<(), VolumeError> {
        let backoff = lock(&self.backoff);
        let key = backoff_key(volume);
        let since = backoff.updated(&key);
        match since.and_then(|since| backoff.remaining(&key, since, self.parts.clock.now())) {
            Some(_) => Err(VolumeError::Pending(format!("{} waits after it failed", volume.name))),
            None => Ok(()),
        }
    }

    /// Whether the control plane knows that the node uses the volume, and has attached it.
    // Upstream: pkg/volume/util/operationexecutor/operation_generator.go GenerateVerifyControllerAttachedVolumeFunc
    fn check_attached(&self, volume: &Identity, node: Option<&Node>) -> Result<(), VolumeError> {
        if volume.ephemeral || !self.is_attached(&volume.driver) {
            return Ok(());
        }
        let name = volume.unique_name();
        let (in_use, attached) = node.map(of_node).unwrap_or_default();
        let pending = |what: &str| Err(VolumeError::Pending(format!("{what} for volume {:?} ", volume.name)));
        if !in_use.contains(&name) {
            return pending(
                "Volume has not been added to the list of VolumesInUse in the node's volume status",
            );
        }
        if !attached.contains(&name) {
            return pending("Volume not attached according to node status");
        }
        Ok(())
    }

    fn mounted(&self, pod: &Pod, source: &Source) -> Mounted {
        let volume = &source.identity;
        let mut mounted = match volume.block {
            true => Mounted::at(self.parts.paths.csi_pod_device(volume, pod.uid()), source.read_only),
            false => Mounted::at(
                self.parts.paths.csi_publication(volume, pod.uid()).target,
                // The driver has been told; the container's mount says it too.
                source.read_only,
            ),
        };
        mounted.is_device = volume.block;
        mounted
    }

    async fn mount(&self, pod: &Pod, source: &Source) -> Result<(), Failed> {
        let volume = &source.identity;
        let failed = step(volume, "MountVolume.SetUp failed", "MapVolume.SetUpDevice failed");
        if source.is_for_one_pod() && self.ledger().is_elsewhere(volume, pod.uid()) {
            let why = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
            return Err(failed(why.to_owned()));
        }
        let kind = self.kind(&volume.driver);
        if let Some(why) = refusal(volume, kind.as_deref()) {
            let why =
                format!("kubernetes.io/csi: mounter.SetupAt failed to check volume lifecycle mode: {why}");
            return Err(failed(why));
        }
        let attaching = step(volume, "MountVolume.WaitForAttach failed", "MapVolume.WaitForAttach failed");
        let context = self.publish_context(volume).await.map_err(attaching)?;
        let starting = step(
            volume,
            if volume.ephemeral { "MountVolume.SetUp failed" } else { "MountVolume.MountDevice failed" },
            "MapVolume.SetUpDevice failed",
        );
        let driver = self.drivers.get(&volume.driver).map_err(|why| {
            let who = match (volume.block, volume.ephemeral) {
                (true, _) => "blockMapper.SetUpDevice failed to get CSI client",
                (_, true) => "mounter.SetUpAt failed to get CSI client",
                _ => "attacher.MountDevice failed to create newCsiDriverClient",
            };
            starting(format!("kubernetes.io/csi: {who}: {why}"))
        })?;
        let able = driver.capabilities().await.map_err(|failure| starting(failure.why))?;
        let asked = Asked { pod, source, driver: &driver, able, kind: kind.as_deref(), context };
        if !volume.ephemeral {
            self.stage(&asked).await.map_err(&starting)?;
        }
        let publishing = step(volume, "MountVolume.SetUp failed", "MapVolume.MapPodDevice failed");
        self.publish(&asked).await.map_err(&publishing)?;
        let growing = step(
            volume,
            "MountVolume.Setup failed while expanding volume",
            "MapVolume.MarkVolumeAsMounted failed while expanding volume",
        );
        self.expand_at_mount(&asked).await.map_err(growing)?;
        let place = self.parts.paths.csi_publication(volume, pod.uid());
        let written = place.complete(&self.parts.boot_id);
        written.map_err(|error| publishing(format!("failed to save volume info data: {error}")))?;
        self.ledger().set_published(volume, pod.uid(), Progress::Done);
        Ok(())
    }

    // Upstream: pkg/volume/csi/csi_attacher.go WaitForAttach; csi_plugin.go getPublishContext
    async fn publish_context(&self, volume: &Identity) -> Result<BTreeMap<String, String>, String> {
        if volume.ephemeral || !self.is_attached(&volume.driver) {
            return Ok(BTreeMap::new());
        }
        let (name, handle) = (attachment_name(volume, &self.parts.node_name), &volume.handle);
        let found = self.parts.client.get::<VolumeAttachment>("", &name).await;
        let attachment = found.map_err(|error| {
            format!("volume {handle} has GET error for volume attachment {name}: {error}")
        })?;
        match unattached(&attachment, handle) {
            Some(why) => Err(why),
            None => Ok(attachment.status.and_then(|s| s.attachment_metadata).unwrap_or_default()),
        }
    }

    /// Stages the volume for the node unless it is staged. Its record is written first.
    // Upstream: pkg/volume/csi/csi_attacher.go MountDevice; csi_block.go stageVolumeForBlock
    async fn stage(&self, asked: &Asked<'_>) -> Result<(), String> {
        let (source, volume) = (asked.source, &asked.source.identity);
        if self.ledger().staged(volume) == Progress::Done {
            return Ok(());
        }
        let place = self.parts.paths.csi_stage(volume);
        let io = |what: &str| {
            let what = format!("kubernetes.io/csi: attacher.MountDevice failed to {what}");
            move |error: std::io::Error| format!("{what}: {error}")
        };
        let secrets = match source.stage_secret.as_ref().filter(|_| asked.able.stage) {
            Some(secret) => self.secret("NodeStageSecretRef", secret).await?,
            None => BTreeMap::new(),
        };
        let attachment = attachment_name(volume, &self.parts.node_name);
        place.begin(volume, &self.parts.node_name, &attachment).map_err(io("save volume info data"))?;
        make_dir(&place.target).map_err(io("create dir"))?;
        self.ledger().set_staged(volume, Progress::Uncertain);
        if asked.able.stage {
            let message = pb::NodeStageVolumeRequest {
                volume_id: volume.handle.clone(),
                publish_context: asked.context.clone().into_iter().collect(),
                staging_target_path: place.target.to_string_lossy().into_owned(),
                volume_capability: Some(source.capability(&asked.able, fs_group(asked.pod).map(i64::from))),
                secrets: secrets.into_iter().collect(),
                volume_context: source.attributes.clone().into_iter().collect(),
            };
            if let Err(failure) = asked.driver.stage(message).await {
                if failure.is_final() && place.remove().is_ok() {
                    self.ledger().set_staged(volume, Progress::None);
                }
                return Err(failure.why);
            }
        }
        place.complete(&self.parts.boot_id).map_err(io("save volume info data"))?;
        self.ledger().set_staged(volume, Progress::Done);
        Ok(())
    }

    /// Publishes the volume to the pod. Its record is written first.
    // Upstream: pkg/volume/csi/csi_mounter.go SetUpAt; csi_block.go publishVolumeForBlock
    async fn publish(&self, asked: &Asked<'_>) -> Result<(), String> {
        let (pod, volume) = (asked.pod, &asked.source.identity);
        let place = self.parts.paths.csi_publication(volume, pod.uid());
        let message = self.publish_request(asked).await?;
        let io =
            |error| format!("kubernetes.io/csi: mounter.SetUpAt failed to save volume info data: {error}");
        let attachment = attachment_name(volume, &self.parts.node_name);
        let published = self.ledger().published(volume, pod.uid());
        if published != Progress::Done {
            place.begin(volume, &self.parts.node_name, &attachment).map_err(io)?;
            place.target.parent().map_or(Ok(()), make_dir).map_err(io)?;
            self.ledger().set_published(volume, pod.uid(), Progress::Uncertain);
        }
        if let Err(failure) = asked.driver.publish(message).await {
            // What a pod has already it keeps: only a first publication is undone.
            let fresh = published == Progress::None && failure.is_final();
            if fresh && place.remove().is_ok() {
                self.ledger().set_published(volume, pod.uid(), Progress::None);
            }
            return Err(failure.why);
        }
        if volume.block {
            return self.link_device(volume, pod.uid(), &place.target);
        }
        self.give_to_group(asked, place.target).await
    }

    async fn publish_request(&self, asked: &Asked<'_>) -> Result<pb::NodePublishVolumeRequest, String> {
        let (pod, source, volume) = (asked.pod, asked.source, &asked.source.identity);
        let mut secrets = match &source.publish_secret {
            Some(secret) => self.secret("NodePublishSecretRef", secret).await?,
            None => BTreeMap::new(),
        };
        let mut attributes = source.attributes.clone();
        let spec = asked.kind.map(|kind| &kind.spec);
        if spec.is_some_and(|spec| spec.pod_info_on_mount == Some(true)) {
            attributes.extend(pod_info(pod, volume.ephemeral));
        }
        if let Some(tokens) = self.account_tokens(asked).await? {
            let secret = spec.is_some_and(|spec| spec.service_account_token_in_secrets == Some(true));
            let to = if secret { &mut secrets } else { &mut attributes };
            to.insert("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), tokens);
        }
        let staging = (asked.able.stage || volume.block) && !volume.ephemeral;
        let staging = if staging { self.parts.paths.csi_stage(volume).target } else { Default::default() };
        Ok(pb::NodePublishVolumeRequest {
            volume_id: volume.handle.clone(),
            publish_context: asked.context.clone().into_iter().collect(),
            staging_target_path: staging.to_string_lossy().into_owned(),
            target_path: {
                let place = self.parts.paths.csi_publication(volume, pod.uid());
                place.target.to_string_lossy().into_owned()
            },
            volume_capability: Some(source.capability(&asked.able, fs_group(pod).map(i64::from))),
            readonly: source.read_only,
            secrets: secrets.into_iter().collect(),
            volume_context: attributes.into_iter().collect(),
        })
    }

    /// Tokens of the pod's account for each audience that the driver asks for, as it is told them.
    // Upstream: pkg/volume/csi/csi_mounter.go podServiceAccountTokenAttrs
    async fn account_tokens(&self, asked: &Asked<'_>) -> Result<Option<String>, String> {
        let requests = asked.kind.and_then(|kind| kind.spec.token_requests.as_deref()).unwrap_or_default();
        if requests.is_empty() {
            return Ok(None);
        }
        let mut tokens = serde_json::Map::new();
        for request in requests {
            let token = self.parts.tokens.get(asked.pod, &request.audience, request.expiration_seconds).await;
            let token = token.map_err(|error| {
                format!(
                    "kubernetes.io/csi: mounter.SetUpAt failed to get service accoount token attributes: {error}"
                )
            })?;
            let status = json!({"token": token.text, "expirationTimestamp": token.expires.to_string()});
            tokens.insert(request.audience.clone(), status);
        }
        Ok(Some(serde_json::Value::Object(tokens).to_string()))
    }

    /// Lets the pod's device be found by a link of its own.
    // Upstream: pkg/volume/util/volumepathhandler/volume_path_handler.go MapDevice
    fn link_device(&self, volume: &Identity, pod_uid: &str, device: &std::path::Path) -> Result<(), String> {
        let link = self.parts.paths.csi_pod_device(volume, pod_uid);
        let linked = || -> std::io::Result<()> {
            let device = fs::canonicalize(device)?;
            link.parent().map_or(Ok(()), make_dir)?;
            if fs::read_link(&link).is_ok_and(|to| to == device) {
                return Ok(());
            }
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&device, &link)
        };
        linked().map_err(|error| format!("failed to map device {}: {error}", device.display()))
    }

    async fn give_to_group(&self, asked: &Asked<'_>, target: PathBuf) -> Result<(), String> {
        let policy = asked.kind.and_then(|kind| kind.spec.fs_group_policy.as_deref());
        let group = fs_group(asked.pod);
        let by_us = !asked.able.volume_mount_group
            && asked.source.is_given_to_group(policy.unwrap_or("ReadWriteOnceWithFSType"));
        if group.is_none() || !by_us {
            return Ok(());
        }
        let handle = &asked.source.identity.handle;
        let given = ownership::give_in_background(asked.pod, target, group).await;
        given.map_err(|error| format!("applyFSGroup failed for vol {handle}: {error}"))
    }

    /// Publishes again what its driver wants published again, and grows what has grown. What fails is told in an
    /// event: the pod keeps what it has.
    async fn refresh(&self, pod: &Pod, source: &Source) {
        let volume = &source.identity;
        let kind = self.kind(&volume.driver);
        let republish = kind.as_ref().is_some_and(|kind| kind.spec.requires_republish == Some(true));
        if !republish && !self.may_have_grown(source) {
            return;
        }
        let events = PodEvents { recorder: &self.parts.recorder, pod };
        let done = async {
            let failed = step(volume, "MountVolume.SetUp failed", "MapVolume.MapPodDevice failed");
            let driver = self.drivers.get(&volume.driver).map_err(|why| {
                failed(format!("kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: {why}"))
            })?;
            let able = driver.capabilities().await.map_err(|failure| failed(failure.why))?;
            let context = self.publish_context(volume).await.map_err(&failed)?;
            let asked = Asked { pod, source, driver: &driver, able, kind: kind.as_deref(), context };
            if republish {
                self.publish(&asked).await.map_err(&failed)?;
            }
            self.expand_in_use(&asked).await;
            Ok(())
        };
        if let Err(Failed { step, why }) = done.await {
            events.warning("", "FailedMount", &format!("{step} for volume {:?} : {why}", volume.name));
        }
    }

    /// Whether the driver has said that the node has no room for the volume. It is then asked for how many it
    /// has, so that no more pods come.
    // Upstream: pkg/volume/csi/csi_plugin.go VerifyExhaustedResource
    async fn is_exhausted(&self, volume: &Identity) -> bool {
        let kind = self.kind(&volume.driver);
        if kind.is_none_or(|kind| kind.spec.node_allocatable_update_period_seconds.is_none()) {
            return false;
        }
        let name = attachment_name(volume, &self.parts.node_name);
        let Ok(attachment) = self.parts.client.get::<VolumeAttachment>("", &name).await else { return false };
        let code = attachment.status.as_ref().and_then(|s| s.attach_error.as_ref()?.error_code);
        let exhausted = code == Some(tonic::Code::ResourceExhausted as i32);
        if exhausted {
            self.update_limit(&volume.driver).await;
        }
        exhausted
    }
}

fn backoff_key(volume: &Identity) -> String {
    format!("{}^{}", volume.driver, volume.handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments() {
        let cases = [
            (json!({"attached": true}), None, None),
            (
                json!({"attached": true}),
                Some("2026-01-01T00:00:00Z"),
                Some("volume attachment is being deleted"),
            ),
            (json!({"attached": false}), None, Some("volume h is not attached for volume attachment csi-1")),
            (json!({"attached": false, "attachError": {"message": "no room"}}), None, Some("no room")),
        ];
        for (status, deleted, want) in cases {
            let attachment: VolumeAttachment = serde_json::from_value(json!({
                "metadata": {"name": "csi-1", "deletionTimestamp": deleted},
                "spec": {"attacher": "d", "nodeName": "n", "source": {}},
                "status": status,
            }))
            .unwrap();
            assert_eq!(unattached(&attachment, "h").as_deref(), want, "{status}");
        }
    }
}
