//! What the kubelet writes down of a driver's volumes before it asks for them, so that whoever comes after a
//! crash knows what to ask the driver to take away. The places are upstream's.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::paths::Paths;

const FILE: &str = "vol_data.json";
const PLUGIN: &str = "kubernetes.io~csi";

/// A volume of a driver. The handle is the driver's name for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    pub driver: String,
    pub handle: String,
    /// The PersistentVolume's name, or the pod's name for a volume of its own.
    pub name: String,
    /// A raw device rather than a tree of files.
    pub block: bool,
    /// It lives with one pod.
    pub ephemeral: bool,
}

impl Identity {
    /// How nodes call it.
    pub fn unique_name(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }
}

/// Hexadecimal digits of the SHA-256 of a text.
pub fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where a driver puts something, and where it is written down.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub record: PathBuf,
    pub target: PathBuf,
}

// Upstream: pkg/volume/csi/csi_mounter.go volDataKey
const NAME: &str = "specVolID";
const HANDLE: &str = "volumeHandle";
const DRIVER: &str = "driverName";
const NODE: &str = "nodeName";
const ATTACHMENT: &str = "attachmentID";
const MODE: &str = "volumeLifecycleMode";
/// The boot in which the driver said that it is done, and whether something was mounted then.
const DONE_IN: &str = "completedInBoot";
const MOUNTED: &str = "mounted";

impl Place {
    /// Writes down that the driver is going to be asked.
    pub fn begin(&self, volume: &Identity, node: &str, attachment: &str) -> io::Result<()> {
        let mode = if volume.ephemeral { "Ephemeral" } else { "Persistent" };
        let pairs = [
            (NAME, volume.name.as_str()),
            (HANDLE, &volume.handle),
            (DRIVER, &volume.driver),
            (NODE, node),
            (ATTACHMENT, attachment),
            (MODE, mode),
        ];
        self.write(&pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    /// Writes down that the driver has done it.
    pub fn complete(&self, boot: &str) -> io::Result<()> {
        let mut record = self.read()?;
        record.insert(DONE_IN.to_owned(), boot.to_owned());
        record.insert(MOUNTED.to_owned(), self.is_mounted()?.to_string());
        self.write(&record)
    }

    /// Whether the driver has done it, and it still holds.
    pub fn is_complete(&self, boot: &str) -> bool {
        let Ok(record) = self.read() else { return false };
        let done = !boot.is_empty() && record.get(DONE_IN).is_some_and(|done| done == boot);
        let mounted = record.get(MOUNTED).is_some_and(|mounted| mounted == "true");
        done && (!mounted || self.is_mounted().unwrap_or(false))
    }

    fn is_mounted(&self) -> io::Result<bool> {
        linux::mounts::is_mount_point(&self.target).map_err(io::Error::other)
    }

    fn read(&self) -> io::Result<BTreeMap<String, String>> {
        let wrong = |e| io::Error::new(ErrorKind::InvalidData, e);
        serde_json::from_slice(&fs::read(&self.record)?).map_err(wrong)
    }

    /// Whole or not at all.
    fn write(&self, record: &BTreeMap<String, String>) -> io::Result<()> {
        let parent = self.record.parent().unwrap_or(Path::new("/"));
        make_dir(parent)?;
        let fresh = self.record.with_extension("tmp");
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.record)?;
        File::open(parent)?.sync_all()
    }

    /// Takes what is left away. The driver has unmounted it, or nothing was mounted.
    // Upstream: pkg/volume/csi/csi_mounter.go removeMountDir
    pub fn remove(&self) -> io::Result<()> {
        if self.is_mounted()? {
            return Err(io::Error::other(format!("{} is still mounted", self.target.display())));
        }
        let gone = |result: io::Result<()>| match result {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
        match fs::symlink_metadata(&self.target) {
            Ok(metadata) if metadata.is_dir() => gone(fs::remove_dir(&self.target))?,
            Ok(_) => gone(fs::remove_file(&self.target))?,
            Err(_) => {}
        }
        gone(fs::remove_file(&self.record))?;
        // Directories that others use too are not empty and stay.
        for emptied in [self.target.parent(), self.record.parent()].into_iter().flatten() {
            let _ = fs::remove_dir(emptied);
        }
        Ok(())
    }

    fn volume(&self, block: bool) -> io::Result<Identity> {
        let mut record = self.read()?;
        let mut take = |key: &str| record.remove(key).unwrap_or_default();
        Ok(Identity {
            driver: take(DRIVER),
            handle: take(HANDLE),
            name: take(NAME),
            block,
            ephemeral: take(MODE) == "Ephemeral",
        })
    }
}

/// Only root looks into what drivers mount.
pub fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o750).create(path)
}

/// Names with a slash make no file names.
// Upstream: k8s.io/utils/strings/escape.go EscapeQualifiedName
fn escape(name: &str) -> String {
    name.replace('/', "~")
}

impl Paths {
    fn csi(&self) -> PathBuf {
        self.plugins().join("kubernetes.io/csi")
    }

    fn csi_devices(&self) -> PathBuf {
        self.csi().join("volumeDevices")
    }

    /// Where the driver stages a volume for all pods of the node.
    pub fn csi_stage(&self, volume: &Identity) -> Place {
        if volume.block {
            let name = escape(&volume.name);
            let devices = self.csi_devices();
            let record = devices.join(&name).join("data").join(FILE);
            return Place { record, target: devices.join("staging").join(name) };
        }
        let dir = self.csi().join(&volume.driver).join(sha256(&volume.handle));
        Place { record: dir.join(FILE), target: dir.join("globalmount") }
    }

    /// Where the driver publishes a volume to one pod.
    pub fn csi_publication(&self, volume: &Identity, pod_uid: &str) -> Place {
        let name = escape(&volume.name);
        if volume.block {
            let devices = self.csi_devices();
            let record = devices.join(&name).join("data").join(format!("{pod_uid}.json"));
            return Place { record, target: devices.join("publish").join(name).join(pod_uid) };
        }
        let dir = self.volume(pod_uid, "csi", &name);
        Place { record: dir.join(FILE), target: dir.join("mount") }
    }

    /// The link by which a pod's device is found.
    pub fn csi_pod_device(&self, volume: &Identity, pod_uid: &str) -> PathBuf {
        self.pod(pod_uid).join("volumeDevices").join(PLUGIN).join(escape(&volume.name))
    }
}

/// What is written down.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    pub staged: Vec<Identity>,
    /// With the pod's UID.
    pub published: Vec<(Identity, String)>,
}

/// Reads all that is written down.
pub fn scan(paths: &Paths) -> Found {
    Found { staged: staged(paths), published: published(paths, None) }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The volume of a record. One that cannot be read is told in the log and left alone.
fn read(record: PathBuf, block: bool) -> Option<Identity> {
    let place = Place { record, target: PathBuf::new() };
    match place.volume(block) {
        Ok(volume) => Some(volume),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => {
            let record = place.record.display();
            tracing::warn!(%record, %error, "cannot read what is known of a volume");
            None
        }
    }
}

fn staged(paths: &Paths) -> Vec<Identity> {
    let devices = paths.csi_devices();
    let drivers = entries(&paths.csi()).into_iter().filter(|dir| *dir != devices);
    let trees = drivers.flat_map(|driver| entries(&driver)).filter_map(|dir| read(dir.join(FILE), false));
    let raw = entries(&devices).into_iter().filter_map(|device| read(device.join("data").join(FILE), true));
    trees.chain(raw).collect()
}

/// What is published to one pod, or to all.
pub fn published(paths: &Paths, pod_uid: Option<&str>) -> Vec<(Identity, String)> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_meant = |pod: &str| pod_uid.is_none_or(|only| only == pod);
    let mut found = Vec::new();
    for device in entries(&paths.csi_devices()) {
        for record in entries(&device.join("data")) {
            let pod = name(&record).strip_suffix(".json").map(str::to_owned);
            if let Some(pod) = pod.filter(|pod| name(&record) != FILE && is_meant(pod)) {
                found.extend(read(record, true).map(|volume| (volume, pod)));
            }
        }
    }
    for pod in entries(&paths.pods()).into_iter().filter(|dir| is_meant(&name(dir))) {
        let volumes = entries(&pod.join("volumes").join(PLUGIN));
        let volumes = volumes.into_iter().filter_map(|dir| read(dir.join(FILE), false));
        found.extend(volumes.map(|volume| (volume, name(&pod))));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, block: bool, ephemeral: bool) -> Identity {
        let (driver, handle) = ("d.example".to_owned(), format!("h-{name}"));
        Identity { driver, handle, name: name.to_owned(), block, ephemeral }
    }

    #[test]
    fn what_is_written_down_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        let (files, device, own) =
            (volume("pv", false, false), volume("raw", true, false), volume("a", false, true));
        let places = [
            paths.csi_stage(&files),
            paths.csi_publication(&files, "u1"),
            paths.csi_stage(&device),
            paths.csi_publication(&device, "u2"),
            paths.csi_publication(&own, "u1"),
        ];
        for (place, volume) in places.iter().zip([&files, &files, &device, &device, &own]) {
            place.begin(volume, "n", "csi-1").unwrap();
        }
        let want = Found {
            staged: vec![files.clone(), device.clone()],
            published: vec![(device, "u2".into()), (own, "u1".into()), (files, "u1".into())],
        };
        assert_eq!(scan(&paths), want);
        assert_eq!(published(&paths, Some("u2")).len(), 1);
        fs::write(&places[0].record, "{").unwrap();
        assert_eq!(scan(&paths).staged.len(), 1);
        places.iter().for_each(|place| place.remove().unwrap());
        assert_eq!(scan(&paths), Found::default());
    }

    #[test]
    fn what_is_done_holds_for_a_boot() {
        let dir = tempfile::tempdir().unwrap();
        let volume = volume("pv", false, false);
        let place = Paths::new(dir.path(), dir.path()).csi_stage(&volume);
        place.begin(&volume, "n", "csi-1").unwrap();
        assert!(!place.is_complete("boot"));
        place.complete("boot").unwrap();
        assert!(place.is_complete("boot"));
        assert!(!place.is_complete("another"));
        // What was mounted and is so no more has to be done again.
        let mut record = place.read().unwrap();
        record.insert(MOUNTED.into(), "true".into());
        place.write(&record).unwrap();
        assert!(!place.is_complete("boot"));
    }
}
