//! Paths resolved inside a directory that must not be left, whatever symbolic links say: the files of images
//! and containers are written by strangers.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::{Error, Result};

/// A directory that paths are resolved in.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    path: PathBuf,
}

/// Where an open file lies, as the kernel names it.
pub fn path_of(file: &OwnedFd) -> Result<PathBuf> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(&link).map_err(|e| Error::io(&link, e))
}

impl Root {
    /// Opens the directory at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir =
            rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|e| Error::io(path, e.into()))?;
        Ok(Self { dir, path: path.to_path_buf() })
    }

    /// Opens a path with links read as a process chrooted here would read them.
    pub fn open_as_root(&self, path: &Path, flags: OFlags) -> Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        self.call(path, || {
            openat2(&self.dir, relative(path), flags | OFlags::CLOEXEC, Mode::empty(), resolve)
        })
    }

    /// Opens a file for reading, as a process chrooted here would see it.
    pub fn read_file(&self, path: &Path) -> Result<File> {
        self.open_as_root(path, OFlags::RDONLY | OFlags::NONBLOCK).map(File::from)
    }

    /// Opens the parent directory of an archive's entry, making directories that the archive left out, and
    /// never going through a link that leads outside. Returns it with the entry's last name.
    pub fn parent<'p>(&self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr)> {
        let path = relative(path);
        let name = path.file_name().ok_or_else(|| Error::io(self.path.join(path), Errno::INVAL.into()))?;
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok((self.dir(parent)?, name))
    }

    /// Opens a directory beneath this one, making what is missing.
    pub fn dir(&self, path: &Path) -> Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = self.call(path, || openat2(&self.dir, ".", flags, Mode::empty(), resolve))?;
        if path.as_os_str().is_empty() {
            return Ok(at);
        }
        match openat2(&self.dir, path, flags, Mode::empty(), resolve) {
            Ok(dir) => return Ok(dir),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(Error::io(self.path.join(path), e.into())),
        }
        let mut sofar = PathBuf::new();
        for part in path.components() {
            let Component::Normal(name) = part else {
                return Err(Error::io(self.path.join(path), Errno::INVAL.into()));
            };
            sofar.push(name);
            match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(Error::io(self.path.join(&sofar), e.into())),
            }
            at = self.call(&sofar, || openat2(&self.dir, &sofar, flags, Mode::empty(), resolve))?;
        }
        Ok(at)
    }

    fn call<T>(&self, path: &Path, call: impl Fn() -> rustix::io::Result<T>) -> Result<T> {
        loop {
            match call() {
                // The kernel asks to try again when a rename raced with the walk.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other.map_err(|e| Error::io(self.path.join(relative(path)), e.into())),
            }
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// An absolute path means one from the root that it is resolved in.
fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn no_link_leads_outside() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        symlink("../../../../../../../..", dir.path().join("up")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert!(root.parent(Path::new("out/planted")).is_err());
        assert!(root.parent(Path::new("up/tmp/planted")).is_err());
        assert!(root.parent(Path::new("../planted")).is_err());
        assert!(root.read_file(Path::new("/out/secret")).is_err());
        assert!(root.parent(Path::new("a/b/c")).is_ok());
        assert!(dir.path().join("a/b").is_dir());
    }
}
