//! How full a pod's volumes are, for `/stats/summary` and the metrics of claims.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use api::Object;
use api::core::v1::{Pod, Volume};

use super::claims::claim_of;
use super::setup::Volumes;

/// Of one volume; what nobody knows is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub available_bytes: Option<u64>,
    pub capacity_bytes: Option<u64>,
    pub used_bytes: Option<u64>,
    pub inodes_free: Option<u64>,
    pub inodes: Option<u64>,
    pub inodes_used: Option<u64>,
}

/// Of the filesystem that holds `path`; `used` is what the volume itself takes of it, if not all.
// Upstream: pkg/volume/metrics_du.go, metrics_statfs.go
pub fn of_filesystem(path: &Path, used: Option<(u64, u64)>) -> Option<Usage> {
    let disk = rustix::fs::statvfs(path).ok()?;
    let (used_bytes, inodes_used) = used.unwrap_or((
        disk.f_blocks.saturating_sub(disk.f_bfree).saturating_mul(disk.f_frsize),
        disk.f_files.saturating_sub(disk.f_ffree),
    ));
    Some(Usage {
        available_bytes: Some(disk.f_bavail.saturating_mul(disk.f_frsize)),
        capacity_bytes: Some(disk.f_blocks.saturating_mul(disk.f_frsize)),
        used_bytes: Some(used_bytes),
        inodes_free: Some(disk.f_ffree),
        inodes: Some(disk.f_files),
        inodes_used: Some(inodes_used),
    })
}

/// The bytes and files that a tree takes on disk. Links are not followed; what vanishes meanwhile counts for
/// nothing.
pub fn of_tree(root: &Path) -> (u64, u64) {
    let (mut bytes, mut files) = (0, 1);
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512;
            files += 1;
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    (bytes, files)
}

/// A pod's volume and how full it is.
pub struct VolumeUsage {
    pub name: String,
    /// The claim, if it is by one.
    pub claim: Option<String>,
    pub usage: Usage,
}

impl Volumes {
    /// How full the volumes of a pod are, as far as anybody knows.
    // Upstream: pkg/kubelet/server/stats/volume_stat_calculator.go
    pub async fn usage(&self, pod: &Pod) -> Vec<VolumeUsage> {
        let told = self.csi.stats(pod.uid()).await;
        let mut all = Vec::new();
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let usage = match self.object_of(pod, &volume.name) {
                // By the names that drivers' volumes have: those of their objects, or their own.
                Some(object) => {
                    let name = object.unwrap_or_else(|| volume.name.clone());
                    let of_driver = told.iter().find(|(told, _)| *told == name).map(|(_, usage)| *usage);
                    of_driver.or_else(|| of_filesystem(&self.local_path(pod, &volume.name)?, None))
                }
                None => match self.tree_of(pod, volume) {
                    Some(dir) => tokio::task::spawn_blocking(move || {
                        let used = of_tree(&dir);
                        of_filesystem(&dir, Some(used))
                    })
                    .await
                    .ok()
                    .flatten(),
                    None => None,
                },
            };
            let claim = claim_of(pod, volume).map(|(claim, _)| claim);
            all.extend(usage.map(|usage| VolumeUsage { name: volume.name.clone(), claim, usage }));
        }
        all
    }

    /// The directory of a volume that the kubelet itself fills or makes.
    fn tree_of(&self, pod: &Pod, volume: &Volume) -> Option<PathBuf> {
        let plugin = [
            (volume.empty_dir.is_some(), "empty-dir"),
            (volume.config_map.is_some(), "configmap"),
            (volume.secret.is_some(), "secret"),
            (volume.downward_api.is_some(), "downward-api"),
            (volume.projected.is_some(), "projected"),
        ];
        let (_, plugin) = plugin.into_iter().find(|(is_one, _)| *is_one)?;
        Some(self.paths.volume(pod.uid(), plugin, &volume.name)).filter(|dir| dir.is_dir())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/file"), vec![1; 5000]).unwrap();
        let (bytes, files) = of_tree(dir.path());
        assert!(bytes >= 5000 && files == 3, "{bytes} {files}");
        let usage = of_filesystem(dir.path(), Some((bytes, files))).unwrap();
        assert_eq!((usage.used_bytes, usage.inodes_used), (Some(bytes), Some(files)));
        assert!(usage.capacity_bytes.unwrap() > 0);
    }
}
