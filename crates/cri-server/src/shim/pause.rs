//! The process that holds a pod's shared pid namespace and reaps what is orphaned in it.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use linux::process::{Fork, fork_single_threaded, reap_blocking};
use rustix::process::Signal;
use rustix::thread::UnshareFlags;

/// The user of the pause image of upstream.
const PAUSE_ID: u32 = 65535;

/// Makes the namespace, forks its first process into it, and lives exactly as long as that one does. It prints
/// the first process' id for the shim to read. `root` is an empty directory, `users` the pod's user namespace.
pub(crate) fn run(root: &OsStr, users: Option<&Path>) -> io::Result<()> {
    // Root of the pod's user namespace could not go there.
    rustix::process::chdir(root)?;
    if let Some(users) = users {
        let users = std::fs::File::open(users)?;
        linux::namespaces::become_root_of(&users).map_err(io::Error::other)?;
    }
    // Without the shim nobody would end it; a change of user forgets the wish.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    linux::namespaces::unshare(UnshareFlags::NEWPID).map_err(io::Error::other)?;
    match fork_single_threaded().map_err(io::Error::other)? {
        Fork::Parent(pid) => {
            println!("{pid}");
            while reap_blocking().is_some() {}
            Ok(())
        }
        Fork::Child => hold(),
    }
}

/// Pid 1 of the pod: it may see nothing and do nothing, for the pod's containers see it.
fn hold() -> io::Result<()> {
    let child_pipe = linux::process::child_signal_pipe().map_err(io::Error::other)?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    linux::process::become_user(PAUSE_ID).map_err(io::Error::other)?;
    // It must not outlive the process that the shim watches; a change of user forgets the wish, so it comes last.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    loop {
        let mut watched = [rustix::event::PollFd::new(&child_pipe, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut drained = [0; 64];
        while matches!(rustix::io::read(&child_pipe, &mut drained), Ok(1..)) {}
        while linux::process::reap().is_some() {}
    }
}
