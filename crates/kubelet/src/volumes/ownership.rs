//! A volume's files given to the pod's `fsGroup`.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use api::core::v1::Pod;

use super::VolumeError;

/// What the group may do with files, what with directories, and the mark that makes new files the group's.
// Upstream: pkg/volume/volume_linux.go rwMask, execMask
const READ_WRITE: u32 = 0o660;
const ENTER: u32 = 0o110;
const OF_GROUP: u32 = 0o2000;

/// Gives the tree to the group, unless only its root is to be looked at and that is right already.
// Upstream: pkg/volume/volume_linux.go ChangeOwnership, requiresPermissionChange
pub fn give(root: &Path, group: Option<u32>, on_root_mismatch: bool) -> Result<(), VolumeError> {
    let Some(group) = group else { return Ok(()) };
    let given = || -> io::Result<()> {
        let metadata = fs::metadata(root)?;
        let wanted = READ_WRITE | ENTER | OF_GROUP;
        if on_root_mismatch && metadata.gid() == group && metadata.mode() & wanted == wanted {
            return Ok(());
        }
        let mut pending = vec![root.to_owned()];
        let mut directories = vec![root.to_owned()];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    pending.push(entry.path());
                    directories.push(entry.path());
                } else {
                    give_one(&entry.path(), group)?;
                }
            }
        }
        // The root comes last: it says that all else is done, also to one who was killed half way.
        directories.iter().rev().try_for_each(|dir| give_one(dir, group))
    };
    given().map_err(|e| VolumeError::io("applying fsGroup", e))
}

/// Gives the tree to the pod's group as the pod's policy says, beside what else goes on: trees may be large.
pub async fn give_in_background(pod: &Pod, path: PathBuf, group: Option<u32>) -> Result<(), VolumeError> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let mismatch = context.and_then(|c| c.fs_group_change_policy.as_deref()) == Some("OnRootMismatch");
    let given = tokio::task::spawn_blocking(move || give(&path, group, mismatch)).await;
    given.unwrap_or_else(|e| Err(VolumeError::Refused(format!("applying fsGroup: {e}"))))
}

/// Links are given, not what they point to. What vanishes meanwhile needs nothing.
fn give_one(path: &Path, group: u32) -> io::Result<()> {
    let given = || {
        let metadata = fs::symlink_metadata(path)?;
        lchown(path, None, Some(group))?;
        if metadata.is_symlink() {
            return Ok(());
        }
        let more = if metadata.is_dir() { READ_WRITE | ENTER | OF_GROUP } else { READ_WRITE };
        fs::set_permissions(path, fs::Permissions::from_mode(metadata.mode() & 0o7777 | more))
    };
    match given() {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_becomes_the_groups_and_nothing_outside_does() {
        assert!(rustix::process::geteuid().is_root(), "only root gives files away");
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(&outside, "").unwrap();
        fs::write(root.join("sub/file"), "").unwrap();
        fs::set_permissions(root.join("sub/file"), fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&outside, root.join("link")).unwrap();
        give(&root, Some(77), false).unwrap();
        let seen = |name: &str| {
            let metadata = fs::symlink_metadata(root.join(name)).unwrap();
            (metadata.gid(), metadata.mode() & 0o2070)
        };
        assert_eq!((seen(""), seen("sub"), seen("sub/file")), ((77, 0o2070), (77, 0o2070), (77, 0o060)));
        assert_eq!((seen("link").0, fs::metadata(&outside).unwrap().gid()), (77, 0));
        fs::write(root.join("new"), "").unwrap();
        lchown(root.join("new"), None, Some(0)).unwrap();
        give(&root, Some(77), true).unwrap();
        assert_eq!(seen("new").0, 0, "the root is right, so nobody looks further");
        give(&root, Some(78), true).unwrap();
        assert_eq!(seen("new").0, 78);
        give(&root, None, false).unwrap();
    }
}
