//! Namespaces made, kept and entered from a process with many threads.
//!
//! A namespace belongs to a thread: everything here happens on a thread of its own that ends with the call,
//! so that no other code of the process ever runs in a strange namespace.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use rustix::mount::{UnmountFlags, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::{Error, Result, mounts};

/// A kind of namespace that a pod's containers share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Owns the others, and is made first.
    User,
    Net,
    Ipc,
    Uts,
}

impl Kind {
    /// Its file below `/proc/PID/ns`.
    pub fn file_name(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::Net => "net",
            Kind::Ipc => "ipc",
            Kind::Uts => "uts",
        }
    }

    fn flag(self) -> UnshareFlags {
        match self {
            Kind::User => UnshareFlags::NEWUSER,
            Kind::Net => UnshareFlags::NEWNET,
            Kind::Ipc => UnshareFlags::NEWIPC,
            Kind::Uts => UnshareFlags::NEWUTS,
        }
    }
}

/// Makes new namespaces of these kinds and pins each at `dir/<kind>` with a bind mount, so that they live
/// without a process. `setup` runs inside them first: it sets the hostname and sysctls.
pub fn create_pinned(
    kinds: &[Kind],
    dir: &Path,
    setup: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<()> {
    let kinds = kinds.to_vec();
    let dir = dir.to_path_buf();
    on_own_thread(move || {
        let flags = kinds.iter().fold(UnshareFlags::empty(), |flags, kind| flags | kind.flag());
        unshare(flags)?;
        setup()?;
        kinds.into_iter().try_for_each(|kind| pin(Path::new("/proc/thread-self/ns"), kind, &dir))
    })
}

/// Keeps one of the namespaces in `of`, a process' `ns` directory, by a bind mount at `dir/<kind>`.
pub fn pin(of: &Path, kind: Kind, dir: &Path) -> Result<()> {
    let target = dir.join(kind.file_name());
    File::create(&target).map_err(|e| Error::io(&target, e))?;
    mounts::bind(&of.join(kind.file_name()), &target, false)
}

/// Moves this process, which must have one thread only, into namespaces of these kinds, all in one step: those
/// made with a new user namespace are that one's.
pub fn become_separate(kinds: &[Kind]) -> Result<()> {
    unshare(kinds.iter().fold(UnshareFlags::empty(), |flags, kind| flags | kind.flag()))
}

/// Moves this process, which must have one thread only, into a user namespace, as its root.
pub fn become_root_of(users: &File) -> Result<()> {
    move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User))
        .map_err(|e| Error::call("setns", e))?;
    become_root()
}

/// Becomes root of the user namespace that this process is in, with no groups of another one.
pub fn become_root() -> Result<()> {
    use rustix::process::{Gid, Uid};
    let (gid, uid) = (Gid::ROOT, Uid::ROOT);
    rustix::thread::set_thread_groups(&[]).map_err(|e| Error::call("setgroups", e))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(|e| Error::call("setresgid", e))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(|e| Error::call("setresuid", e))
}

/// Gives up a pinned namespace; one that is not there is not an error.
pub fn unpin(path: &Path) -> Result<()> {
    match unmount(path, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(Error::mount("unmount", path, e)),
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

/// Runs `work` on a thread inside the namespace whose file is `path`. Sockets made there stay in it after the
/// call, which is how the engine dials into a pod.
pub fn within<T: Send + 'static>(
    kind: Kind,
    path: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    on_own_thread(move || {
        let kind = match kind {
            Kind::User => LinkNameSpaceType::User,
            Kind::Net => LinkNameSpaceType::Network,
            Kind::Ipc => LinkNameSpaceType::InterProcessCommunication,
            Kind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        };
        move_into_link_name_space(file.as_fd(), Some(kind)).map_err(|e| Error::call("setns", e))?;
        work()
    })
}

fn on_own_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let thread =
        thread::Builder::new().name("namespace".into()).spawn(work).map_err(|e| Error::io("thread", e))?;
    thread.join().unwrap_or_else(|_| Err(Error::call("namespace thread", rustix::io::Errno::CANCELED)))
}

/// Moves this process, which must have one thread only, into a network namespace and into the mount namespace of
/// `resident`, a process that is there already; without one, into a mount namespace of its own, of which nothing
/// that is mounted there is seen outside.
pub fn become_machine(network: &Path, resident: Option<i32>) -> Result<()> {
    let enter = |path: &Path, kind| {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        move_into_link_name_space(file.as_fd(), Some(kind)).map_err(|e| Error::call("setns", e))
    };
    enter(network, LinkNameSpaceType::Network)?;
    if let Some(pid) = resident {
        return enter(Path::new(&format!("/proc/{pid}/ns/mnt")), LinkNameSpaceType::Mount);
    }
    unshare(UnshareFlags::NEWNS)?;
    mounts::set_propagation(Path::new("/"), mounts::Propagation::Slave, true)
}

/// Moves the calling thread into new namespaces.
pub fn unshare(flags: UnshareFlags) -> Result<()> {
    // SAFETY: the flags passed here never contain FILES, so no descriptor that other threads rely on changes
    // under them; each of the namespaces asked for concerns only the calling thread.
    unsafe { rustix::thread::unshare_unsafe(flags.difference(UnshareFlags::FILES)) }
        .map_err(|e| Error::call("unshare", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_uts_namespace_keeps_its_hostname_and_leaves_ours() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let before = rustix::system::uname().nodename().to_owned();
        create_pinned(&[Kind::Uts], dir.path(), || {
            rustix::system::sethostname(b"trireme").map_err(|e| Error::call("sethostname", e))
        })
        .unwrap();
        let file = dir.path().join("uts");
        let inside = within(Kind::Uts, &file, || Ok(rustix::system::uname().nodename().to_owned())).unwrap();
        unpin(&file).unwrap();
        assert_eq!(inside.to_str().unwrap(), "trireme");
        assert_eq!(rustix::system::uname().nodename().to_owned(), before);
        assert!(!file.exists());
    }
}
