//! What is true of the machine, read once.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::runtime::spec::HostDevice;

/// What is true of the machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Machine {
    pub capabilities: BTreeSet<String>,
    pub cgroup_v2: bool,
    /// Where containers see cgroups.
    pub cgroup_mounts: Vec<String>,
    /// Whether pods can have ids of their own.
    pub user_namespaces: bool,
}

impl Machine {
    pub(crate) fn read() -> Self {
        Self {
            capabilities: linux::process::effective_capabilities(),
            cgroup_v2: linux::cgroups::version() == linux::cgroups::Version::V2,
            cgroup_mounts: cgroup_mounts(),
            user_namespaces: user_namespaces(),
        }
    }
}

/// A kernel that shows layers with other ids is one since 5.19, and the machine must let namespaces be made.
fn user_namespaces() -> bool {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let release = text("/proc/sys/kernel/osrelease");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let allowed = text("/proc/sys/user/max_user_namespaces").trim().parse::<u64>().is_ok_and(|max| max > 0);
    version >= (5, 19) && allowed
}

/// Those below the root first: a read-only root takes no more mounts.
fn cgroup_mounts() -> Vec<String> {
    let root = Path::new("/sys/fs/cgroup");
    if linux::cgroups::version() == linux::cgroups::Version::V2 {
        return vec![root.display().to_string()];
    }
    let below = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    below.chain([root.to_owned()]).map(|path| path.display().to_string()).collect()
}

/// A device file at `path`, shown to the container at `as_path`.
pub(crate) fn device(path: &Path, as_path: &str, permissions: &str) -> Option<HostDevice> {
    let meta = std::fs::metadata(path).ok()?;
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        _ => return None,
    };
    let number = meta.rdev();
    Some(HostDevice {
        path: as_path.to_owned(),
        kind,
        major: u64::from(rustix::fs::major(number)),
        minor: u64::from(rustix::fs::minor(number)),
        permissions: if permissions.is_empty() { "rwm".to_owned() } else { permissions.to_owned() },
    })
}

/// All devices below a path; a directory stands for what is in it.
pub(crate) fn devices_below(path: &Path, as_path: &str, permissions: &str) -> Vec<HostDevice> {
    if let Some(device) = device(path, as_path, permissions) {
        return vec![device];
    }
    // These have mounts of their own in every container, or are links into another process.
    const OWN: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", "console"];
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if !is_link && !OWN.contains(&name.as_str()) {
            found.extend(devices_below(&entry.path(), &format!("{as_path}/{name}"), permissions));
        }
    }
    found
}
