//! Network namespaces: opened by path, pinned at a path, or anonymous, and work done inside one.
//!
//! What always holds: no thread of the caller ever changes its namespace. Work runs on a thread made for it,
//! because a thread that could not return would carry on in the wrong network.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// An open network namespace. It lives as long as this, a pin or a process holds it.
#[derive(Debug)]
pub struct NetNs {
    file: File,
}

impl NetNs {
    /// The namespace pinned at `path`, or of a process at `/proc/PID/ns/net`.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(NetNs { file: File::open(path)? })
    }

    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// A new namespace that ends when this and every process inside is gone.
    pub fn anonymous() -> io::Result<Self> {
        on_thread(|| {
            unshare_network()?;
            Self::current()
        })
    }

    /// A new namespace, pinned at `path` until [`remove`]. The path must not exist.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        File::create_new(path)?;
        let made = on_thread(|| {
            unshare_network()?;
            mount_bind("/proc/thread-self/ns/net", path)?;
            Self::open(path)
        });
        if made.is_err() {
            // The empty file is of no use to anyone and would bar the next attempt.
            let _ = std::fs::remove_file(path);
        }
        made
    }

    /// Runs `work` on a thread inside this namespace and returns what it returned. Threads and processes that
    /// `work` starts are inside as well.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_thread(|| {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        })
    }

    /// Another handle to the same namespace.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(NetNs { file: self.file.try_clone()? })
    }

    /// Whether both are the same namespace.
    pub fn is_same(&self, other: &NetNs) -> io::Result<bool> {
        let (this, other) = (rustix::fs::fstat(&self.file)?, rustix::fs::fstat(&other.file)?);
        Ok(this.st_ino == other.st_ino && this.st_dev == other.st_dev)
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Unpins a namespace. One that is pinned no more is no error.
pub fn remove(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    match unmount(path, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn unshare_network() -> io::Result<()> {
    // SAFETY: only the network namespace is unshared; file descriptors and memory stay shared with the other
    // threads, and this thread ends before anyone could mistake its network for the process's.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_namespace_is_another_network_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ns/one");
        let created = NetNs::create(&path).expect("making a network namespace needs root");
        assert!(!created.is_same(&NetNs::current().unwrap()).unwrap());
        assert!(NetNs::open(&path).unwrap().is_same(&created).unwrap());
        let links = created.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
        assert_eq!(links.lines().count(), 3, "two lines of heading and lo: {links}");
        assert_eq!(NetNs::create(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        remove(&path).unwrap();
        assert!(!path.exists());
        remove(&path).unwrap();
    }
}
