//! Volumes taken away: unpublished with the pod, unstaged when no pod uses them any more.

use cri::csi as pb;

use super::ledger::{Key, Progress};
use super::mount::attachment_name;
use super::record::{self, Identity, Place};
use super::{Csi, driver::Driver};
use crate::volumes::VolumeError;

impl Csi {
    /// Unpublishes all that is published to a pod, as the disk knows it. What no other pod uses is unstaged
    /// afterwards, without the pod waiting for it.
    // Upstream: pkg/volume/csi/csi_mounter.go TearDownAt; csi_block.go UnmapPodDevice
    pub async fn teardown(&self, pod_uid: &str) -> Result<(), VolumeError> {
        for (volume, _) in &record::published(&self.parts.paths, Some(pod_uid)) {
            let turn = self.ledger().want(volume, pod_uid);
            let Ok(_turn) = turn.acquire_owned().await else { continue };
            self.unpublish(volume, pod_uid).await.map_err(|why| {
                let name = &volume.name;
                let step = if volume.block { "UnmapVolume.UnmapPodDevice" } else { "UnmountVolume.TearDown" };
                VolumeError::Refused(format!("{step} failed for volume {name:?} : kubernetes.io/csi: {why}"))
            })?;
        }
        let leavers = self.ledger().release(pod_uid);
        leavers.into_iter().for_each(|key| self.leaving.add(key));
        self.tell_if_changed();
        Ok(())
    }

    async fn unpublish(&self, volume: &Identity, pod_uid: &str) -> Result<(), String> {
        let place = self.parts.paths.csi_publication(volume, pod_uid);
        let driver = self.driver_for_removal(volume)?;
        // From here on whoever looks finds it as it is: asked for, and not known to be there.
        self.begin(&place, volume)?;
        self.ledger().set_published(volume, pod_uid, Progress::Uncertain);
        let message = pb::NodeUnpublishVolumeRequest {
            volume_id: volume.handle.clone(),
            target_path: place.target.to_string_lossy().into_owned(),
        };
        driver.unpublish(message).await.map_err(|f| format!("Unmounter.TearDownAt failed: {}", f.why))?;
        if volume.block {
            let link = self.parts.paths.csi_pod_device(volume, pod_uid);
            let _ = std::fs::remove_file(link);
        }
        let removed = place.remove();
        removed.map_err(|error| {
            let at = place.target.display();
            format!("Unmounter.TearDownAt failed to clean mount dir [{at}]: {error}")
        })?;
        self.ledger().set_published(volume, pod_uid, Progress::None);
        Ok(())
    }

    /// Writes down that the volume is no longer known to be there.
    fn begin(&self, place: &Place, volume: &Identity) -> Result<(), String> {
        let node = &self.parts.node_name;
        let begun = place.begin(volume, node, &attachment_name(volume, node));
        begun.map_err(|error| format!("failed to save volume info data: {error}"))
    }

    fn driver_for_removal(&self, volume: &Identity) -> Result<Driver, String> {
        let found = self.drivers.get(&volume.driver);
        found.map_err(|why| format!("failed to get CSI client: {why}"))
    }

    /// Unstages a volume, if it is staged and still nobody uses it.
    // Upstream: pkg/volume/csi/csi_attacher.go UnmountDevice; csi_block.go unstageVolumeForBlock
    pub(super) async fn leave(&self, key: &Key) -> Result<(), String> {
        let Some(turn) = self.ledger().turn(key) else { return Ok(()) };
        let Ok(_turn) = turn.acquire_owned().await else { return Ok(()) };
        let Some(volume) = self.ledger().leaver(key) else { return Ok(()) };
        let place = self.parts.paths.csi_stage(&volume);
        let driver = self.driver_for_removal(&volume)?;
        let able = driver.capabilities().await.map_err(|failure| {
            format!("failed to check whether STAGE_UNSTAGE_VOLUME set: {}", failure.why)
        })?;
        self.begin(&place, &volume)?;
        self.ledger().set_staged(&volume, Progress::Uncertain);
        if able.stage {
            let message = pb::NodeUnstageVolumeRequest {
                volume_id: volume.handle.clone(),
                staging_target_path: place.target.to_string_lossy().into_owned(),
            };
            driver.unstage(message).await.map_err(|f| format!("UnmountDevice failed: {}", f.why))?;
        }
        place.remove().map_err(|error| {
            format!("failed to clean up global mount {}: {error}", place.target.display())
        })?;
        self.ledger().set_staged(&volume, Progress::None);
        self.tell_if_changed();
        Ok(())
    }
}
