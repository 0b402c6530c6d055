//! Mounts: overlay with any number of layers, binds, tmpfs, propagation, and taking whole trees down again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount,
    mount_bind, mount_bind_recursive, mount_change, mount_remount, move_mount, unmount,
};

use crate::{Error, Result};

/// The option string of mount(2) is one page; only kernels before 6.7 need it.
const MOUNT_OPTIONS_MAX: usize = 4095;

/// What an overlay mount is made of. Without `upper` and `work` it is read-only.
#[derive(Debug, Clone)]
pub struct Overlay<'a> {
    /// Layers, the topmost first, as overlayfs wants them.
    pub lowers: &'a [PathBuf],
    pub upper: Option<&'a Path>,
    pub work: Option<&'a Path>,
}

/// Mounts an overlay at `target` through fsopen, one `lowerdir+` a layer, because the option string of
/// mount(2) ends at a page and images of hundreds of layers do not fit. Kernels without `lowerdir+` (before
/// 6.7) get the option string.
pub fn mount_overlay(overlay: &Overlay<'_>, target: &Path) -> Result<()> {
    match overlay_by_fsopen(overlay, target) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => overlay_by_options(overlay, target),
        other => other.map_err(|e| Error::mount("overlay", target, e)),
    }
}

fn overlay_by_fsopen(overlay: &Overlay<'_>, target: &Path) -> rustix::io::Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "overlay")?;
    for lower in overlay.lowers {
        fsconfig_set_string(&context, "lowerdir+", lower)?;
    }
    if let (Some(upper), Some(work)) = (overlay.upper, overlay.work) {
        fsconfig_set_string(&context, "upperdir", upper)?;
        fsconfig_set_string(&context, "workdir", work)?;
    } else {
        fsconfig_set_flag(&context, "ro")?;
    }
    fsconfig_create(&context)?;
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(&mounted, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn overlay_by_options(overlay: &Overlay<'_>, target: &Path) -> Result<()> {
    let lowers: Vec<String> = overlay.lowers.iter().map(|path| path.display().to_string()).collect();
    let mut options = format!("lowerdir={}", lowers.join(":"));
    if let (Some(upper), Some(work)) = (overlay.upper, overlay.work) {
        options.push_str(&format!(",upperdir={},workdir={}", upper.display(), work.display()));
    }
    if options.len() > MOUNT_OPTIONS_MAX {
        return Err(Error::mount("overlay", target, Errno::TOOBIG));
    }
    let options =
        std::ffi::CString::new(options).map_err(|_| Error::mount("overlay", target, Errno::INVAL))?;
    mount("overlay", target, "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .map_err(|e| Error::mount("overlay", target, e))
}

/// Binds `source` over `target`, with everything mounted below it if `recursive`.
pub fn bind(source: &Path, target: &Path, recursive: bool) -> Result<()> {
    let done = if recursive { mount_bind_recursive(source, target) } else { mount_bind(source, target) };
    done.map_err(|e| Error::mount("bind", target, e))
}

/// Binds `source` over `target` as a mount through which nothing can be written, known to no other mount namespace.
pub fn bind_read_only(source: &Path, target: &Path) -> Result<()> {
    bind(source, target, false)?;
    set_propagation(target, Propagation::Private, false)?;
    // The kernel ignores flags at the first bind.
    mount_remount(target, MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID, "")
        .map_err(|e| Error::mount("remount", target, e))
}

/// How mounts made later travel between a mount and its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Private,
    Slave,
    Shared,
}

/// Sets the propagation of the mount at `target`, and of those below it if `recursive`.
pub fn set_propagation(target: &Path, propagation: Propagation, recursive: bool) -> Result<()> {
    let mut flags = match propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Shared => MountPropagationFlags::SHARED,
    };
    if recursive {
        flags |= MountPropagationFlags::REC;
    }
    mount_change(target, flags).map_err(|e| Error::mount("propagation", target, e))
}

/// Mounts a tmpfs with `options` such as `mode=1777,size=67108864`.
pub fn mount_tmpfs(target: &Path, flags: MountFlags, options: &str) -> Result<()> {
    mount_in_memory("tmpfs", target, flags, options)
}

/// Mounts files of huge pages with `options` such as `pagesize=2Mi`.
pub fn mount_huge_pages(target: &Path, options: &str) -> Result<()> {
    mount_in_memory("hugetlbfs", target, MountFlags::empty(), options)
}

fn mount_in_memory(kind: &'static str, target: &Path, flags: MountFlags, options: &str) -> Result<()> {
    let wrong = |errno| Error::mount(kind, target, errno);
    let options = std::ffi::CString::new(options).map_err(|_| wrong(Errno::INVAL))?;
    mount(kind, target, kind, flags, Some(options.as_c_str())).map_err(wrong)
}

/// Unmounts `target` at once even if it is busy; nothing mounted there is not an error.
pub fn unmount_lazy(target: &Path) -> Result<()> {
    match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::mount("unmount", target, e)),
    }
}

/// Every mount point at or below `root`, in the order in which they must be unmounted.
pub fn mounts_below(root: &Path) -> Result<Vec<PathBuf>> {
    let table =
        fs::read_to_string("/proc/self/mountinfo").map_err(|e| Error::io("/proc/self/mountinfo", e))?;
    Ok(mount_points_below(&table, root))
}

/// Later lines of mountinfo are mounted on top of earlier ones, so the reverse order is the one to unmount in.
fn mount_points_below(table: &str, root: &Path) -> Vec<PathBuf> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(root)).collect();
    below.reverse();
    below
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\')
            .then(|| field.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// Unmounts everything at or below `root`.
pub fn unmount_tree(root: &Path) -> Result<()> {
    for point in mounts_below(root)? {
        unmount_lazy(&point)?;
    }
    Ok(())
}

/// Whether something is mounted exactly at `path`.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    Ok(mounts_below(path)?.iter().any(|point| point == path))
}

/// Unmounts and then deletes a directory tree; a tree that is not there is not an error. The unmount comes
/// first and its failure stops the deletion, because deleting through a live mount would delete what it shows.
pub fn remove_tree(root: &Path) -> Result<()> {
    unmount_tree(root)?;
    match fs::remove_dir_all(root) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(root, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_come_topmost_first_and_unescaped() {
        let table = "21 1 0:20 / /a rw - ext4 x rw\n22 21 0:21 / /a/b\\040c rw - tmpfs t rw\n\
                     23 1 0:22 / /ab rw - tmpfs t rw\n24 22 0:23 / /a/b\\040c rw - tmpfs t rw\n";
        let points = mount_points_below(table, Path::new("/a"));
        assert_eq!(points, ["/a/b c", "/a/b c", "/a"].map(PathBuf::from));
    }
}
