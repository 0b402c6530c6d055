//! Parts of volumes as mounts: opened so that no link leads out of the volume, then bound to a place of our own,
//! because what a container can write may change between the check and the mount.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use linux::beneath::Root;
use linux::mounts;
use rustix::fs::OFlags;

use super::VolumeError;

/// Binds `sub_path` of the volume at `volume` to `target` and returns the target.
// Upstream: pkg/volume/util/subpath/subpath_linux.go doBindSubPath
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf, VolumeError> {
    let kernel =
        |source| VolumeError::Kernel { what: format!("failed to prepare subPath {sub_path:?}"), source };
    let root = Root::open(volume).map_err(kernel)?;
    let relative = Path::new(sub_path);
    let opened = match root.open_as_root(relative, OFlags::PATH) {
        Ok(opened) if leads_outside(volume, sub_path) => {
            drop(opened);
            return Err(VolumeError::Refused(format!("subPath {sub_path:?} is not within the volume")));
        }
        Ok(opened) => opened,
        Err(_) => make(&root, volume, relative)?,
    };
    let source = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    let is_dir = fs::metadata(&source).map_err(|e| VolumeError::io("reading a subPath", e))?.is_dir();
    let place = |e| VolumeError::io("making a subPath's place", e);
    if mounts::is_mount_point(target).map_err(kernel)? {
        mounts::unmount_lazy(target).map_err(kernel)?;
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(place)?;
    }
    if is_dir {
        fs::create_dir_all(target).map_err(place)?;
    } else if !target.exists() {
        fs::write(target, b"").map_err(place)?;
    }
    mounts::bind(&source, target, true).map_err(kernel)?;
    Ok(target.to_owned())
}

/// Makes the directory, which whoever may use the volume may use as well.
// Upstream: pkg/volume/util/subpath/subpath_linux.go doSafeMakeDir
fn make(root: &Root, volume: &Path, relative: &Path) -> Result<OwnedFd, VolumeError> {
    let kernel = |source| VolumeError::Kernel {
        what: format!("failed to create subPath directory for volumeMount {:?}", relative.display()),
        source,
    };
    let opened = root.dir(relative).map_err(kernel)?;
    let given = || {
        let mode = fs::metadata(volume)?.permissions().mode() & 0o2777;
        let made = format!("/proc/self/fd/{}", opened.as_raw_fd());
        fs::set_permissions(made, fs::Permissions::from_mode(mode))
    };
    given().map_err(|e| VolumeError::io("setting a subPath's permissions", e))?;
    Ok(opened)
}

/// Whether the path, links followed as the node follows them, ends outside of the volume.
fn leads_outside(volume: &Path, sub_path: &str) -> bool {
    match (fs::canonicalize(volume), fs::canonicalize(volume.join(sub_path))) {
        (Ok(volume), Ok(path)) => !path.starts_with(volume),
        _ => true,
    }
}

/// Refuses a sub-path that names its way out.
pub fn check(sub_path: &str) -> Result<(), String> {
    if sub_path.starts_with('/') {
        return Err(format!("error SubPath `{sub_path}` must not be an absolute path"));
    }
    if sub_path.split('/').any(|part| part == "..") {
        return Err(format!("error SubPath `{sub_path}` must not contain '..'"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_made_may_be_used_like_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o2777)).unwrap();
        make(&Root::open(dir.path()).unwrap(), dir.path(), Path::new("a/b")).unwrap();
        assert_eq!(fs::metadata(dir.path().join("a/b")).unwrap().permissions().mode() & 0o7777, 0o2777);
    }

    #[test]
    fn links_out_of_the_volume_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("in")).unwrap();
        symlink("/etc", volume.join("out")).unwrap();
        symlink("in", volume.join("inside")).unwrap();
        assert!(leads_outside(&volume, "out"));
        assert!(leads_outside(&volume, "out/passwd"));
        assert!(!leads_outside(&volume, "inside"));
        for (path, fine) in [("a/b", true), ("/a", false), ("a/../b", false), ("..a", true)] {
            assert_eq!(check(path).is_ok(), fine, "{path}");
        }
    }
}
