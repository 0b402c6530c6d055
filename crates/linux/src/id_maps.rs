//! Mounts that show files as owned by other ids, through a user namespace, and trees of mounts on their way from
//! one mount namespace to another.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::mounts::{Overlay, Propagation};
use crate::{Error, Result, mounts, namespaces};

/// A mount of its own of what lies at a path, not yet to be seen anywhere.
#[derive(Debug)]
pub struct Detached {
    tree: OwnedFd,
    source: PathBuf,
}

impl Detached {
    /// Clones what is mounted at `source`, with all that is mounted below it.
    pub fn clone_of(source: &Path) -> Result<Self> {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, source, flags).map_err(|e| Error::mount("clone", source, e))?;
        Ok(Self { tree, source: source.to_path_buf() })
    }

    /// Has its files show the ids that they are in a user namespace. Filesystems that cannot say so.
    pub fn map_ids(&self, users: &File) -> Result<()> {
        let attributes = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd: u64::try_from(users.as_raw_fd()).unwrap_or(u64::MAX),
        };
        // SAFETY: the descriptors are open for as long as they are borrowed, the path is a static empty string,
        // and the kernel reads no more of the struct than its size, which is given.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const attributes,
                size_of::<libc::mount_attr>(),
            )
        };
        if done == 0 { Ok(()) } else { Err(Error::io(&self.source, std::io::Error::last_os_error())) }
    }

    /// Puts it at `target`, which is made: a directory or a file, whichever fits.
    pub fn attach(&self, target: &Path) -> Result<()> {
        let kind = rustix::fs::fstat(&self.tree).map_err(|e| Error::mount("stat", &self.source, e))?.st_mode;
        let made = match FileType::from_raw_mode(kind) {
            FileType::Directory => fs::create_dir_all(target),
            _ => File::create(target).map(drop),
        };
        made.map_err(|e| Error::io(target, e))?;
        move_mount(&self.tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|e| Error::mount("move mount", target, e))
    }
}

/// Mounts an overlay whose lower layers show the ids that they have in a user namespace. The layers get a place
/// below `scratch` for the moment: only young kernels take them from nowhere.
pub fn mount_overlay_for_users(
    overlay: &Overlay<'_>,
    users: &File,
    scratch: &Path,
    target: &Path,
) -> Result<()> {
    let mut places = Vec::new();
    let mounted = overlay.lowers.iter().enumerate().try_for_each(|(index, layer)| {
        let place = scratch.join(index.to_string());
        let tree = Detached::clone_of(layer)?;
        tree.map_ids(users)?;
        tree.attach(&place)?;
        places.push(place);
        Ok(())
    });
    let done =
        mounted.and_then(|()| mounts::mount_overlay(&Overlay { lowers: &places, ..overlay.clone() }, target));
    // The overlay holds mounts of its own.
    mounts::remove_tree(scratch)?;
    done
}

/// Moves this process, which must have one thread only, into a mount namespace of its own, in which `trees` lie
/// where any user can reach them: below a new tmpfs at `place`, by their numbers.
pub fn become_reachable(place: &Path, trees: &[Detached]) -> Result<Vec<PathBuf>> {
    namespaces::unshare(rustix::thread::UnshareFlags::NEWNS)?;
    mounts::set_propagation(Path::new("/"), Propagation::Slave, true)?;
    mounts::mount_tmpfs(place, MountFlags::NOSUID | MountFlags::NODEV, "mode=0755")?;
    // What is moved below a mount that is shared cannot be pivoted into.
    mounts::set_propagation(place, Propagation::Private, false)?;
    let mut places = Vec::new();
    for (index, tree) in trees.iter().enumerate() {
        let target = place.join(index.to_string());
        tree.attach(&target)?;
        places.push(target);
    }
    Ok(places)
}

/// Whether files of the filesystem at `path` can be shown as owned by others.
pub fn can_map(path: &Path, users: &File) -> bool {
    Detached::clone_of(path).and_then(|tree| tree.map_ids(users)).is_ok()
}

/// Opens the file of a pinned namespace.
pub fn open_namespace(path: &Path) -> Result<File> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map(File::from)
        .map_err(|e| Error::mount("open namespace", path, e))
}
