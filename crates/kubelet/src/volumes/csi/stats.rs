//! How full volumes of drivers are.

use cri::csi as pb;
use cri::csi::volume_usage::Unit;

use super::Csi;
use super::record;
use crate::volumes::usage::Usage;

impl Csi {
    /// What the drivers say of the volumes of a pod that can be asked, by the names of their objects.
    // Upstream: pkg/volume/csi/csi_client.go NodeGetVolumeStats
    pub async fn stats(&self, pod_uid: &str) -> Vec<(String, Usage)> {
        let mut all = Vec::new();
        for (volume, _) in record::published(&self.parts.paths, Some(pod_uid)) {
            let Ok(driver) = self.drivers.get(&volume.driver) else { continue };
            let Ok(able) = driver.capabilities().await else { continue };
            if !able.stats {
                continue;
            }
            let place = self.parts.paths.csi_publication(&volume, pod_uid);
            let message = pb::NodeGetVolumeStatsRequest {
                volume_id: volume.handle.clone(),
                volume_path: place.target.to_string_lossy().into_owned(),
                staging_target_path: String::new(),
            };
            match driver.stats(message).await {
                Ok(answer) => all.push((volume.name, usage(&answer))),
                Err(failure) => {
                    tracing::debug!(volume = volume.name, why = failure.why, "a driver tells no usage")
                }
            }
        }
        all
    }
}

fn usage(answer: &pb::NodeGetVolumeStatsResponse) -> Usage {
    let of = |unit: Unit| answer.usage.iter().find(|usage| usage.unit() == unit);
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    let (bytes, inodes) = (of(Unit::Bytes), of(Unit::Inodes));
    Usage {
        available_bytes: bytes.map(|b| number(b.available)),
        capacity_bytes: bytes.map(|b| number(b.total)),
        used_bytes: bytes.map(|b| number(b.used)),
        inodes_free: inodes.map(|i| number(i.available)),
        inodes: inodes.map(|i| number(i.total)),
        inodes_used: inodes.map(|i| number(i.used)),
    }
}
