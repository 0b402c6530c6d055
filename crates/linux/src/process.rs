//! Processes: pidfds, reaping, forking a single-threaded process, and a pipe that tells of dead children.

use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus};

use crate::{Error, Result};

/// The write end of the pipe of [`child_signal_pipe`], or -1.
static CHILD_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_child(_signal: libc::c_int) {
    let fd = CHILD_PIPE.load(Ordering::Relaxed);
    // SAFETY: write(2) is async-signal-safe; the descriptor is never closed once stored, the buffer is a
    // static byte, and errno is put back because the interrupted code may be about to read it.
    unsafe {
        let errno = *libc::__errno_location();
        let _ = libc::write(fd, b"c".as_ptr().cast(), 1);
        *libc::__errno_location() = errno;
    }
}

/// Catches SIGCHLD and returns a descriptor that becomes readable with each one, to be polled beside others.
/// A handler, unlike a blocked mask, is not inherited by the programs that this process starts.
pub fn child_signal_pipe() -> Result<OwnedFd> {
    use rustix::pipe::{PipeFlags, pipe_with};
    let (read, write) =
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(|e| Error::call("pipe", e))?;
    CHILD_PIPE.store(write.into_raw_fd(), Ordering::Relaxed);
    // SAFETY: the action is fully initialised: zeroed, then given a handler that only calls
    // async-signal-safe functions, with flags that need no further fields.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_child as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_NOCLDSTOP;
        libc::sigaction(libc::SIGCHLD, &action, std::ptr::null_mut())
    };
    if done != 0 {
        return Err(Error::io("sigaction", io::Error::last_os_error()));
    }
    Ok(read)
}

/// One dead child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaped {
    pub pid: i32,
    /// The exit code as shells and Kubernetes give it: 128 and the signal for a killed process.
    pub code: i32,
}

/// Reaps one dead child, if there is any, without waiting.
pub fn reap() -> Option<Reaped> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                return Some(Reaped { pid: pid.as_raw_nonzero().get(), code: exit_code(status) });
            }
            Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Waits for any child to die; `None` when there are no children.
pub fn reap_blocking() -> Option<Reaped> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                return Some(Reaped { pid: pid.as_raw_nonzero().get(), code: exit_code(status) });
            }
            Err(rustix::io::Errno::INTR) | Ok(None) => {}
            Err(_) => return None,
        }
    }
}

fn exit_code(status: WaitStatus) -> i32 {
    status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(255)
}

/// Becomes the parent of orphans below this process, so that they can be reaped here.
pub fn become_subreaper() -> Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| Error::call("subreaper", e))
}

/// A descriptor that becomes readable when the process ends, and that never means another process.
pub fn pidfd(pid: i32) -> Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(Error::call("pidfd_open", rustix::io::Errno::SRCH))?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|e| Error::call("pidfd_open", e))
}

/// Watches a descriptor in the async runtime.
pub fn watch(fd: OwnedFd) -> Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    let interest = tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE;
    // SAFETY: the descriptor is owned, moves into the watcher, and is not closed before it is deregistered.
    unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, interest) }
        .map_err(|e| Error::io("descriptor", std::io::Error::other(e)))
}

/// Unmaps the pages of this program's code that were read so far. Those that are still used come back from the page
/// cache, sixteen at a time; those that only its start needed no longer count as its memory.
pub fn forget_code() -> Result<()> {
    let failed = |error| Error::io("/proc/self/maps", error);
    let program = std::fs::read_link("/proc/self/exe").map_err(failed)?;
    for mapping in std::fs::read_to_string("/proc/self/maps").map_err(failed)?.lines() {
        let Some((start, length)) = code_of(mapping, &program) else { continue };
        let start = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is a private mapping of a file, which cannot be written to: whatever reads it later
        // finds what the file holds, which is what was there.
        if unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) } != 0 {
            return Err(Error::io("madvise", io::Error::last_os_error()));
        }
    }
    Ok(())
}

/// Where a line of `/proc/PID/maps` says that code of the program is, and how much.
fn code_of(mapping: &str, program: &Path) -> Option<(usize, usize)> {
    let mut fields = mapping.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp" && fields.nth(3).map(Path::new) == Some(program);
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    is_code.then_some((start, end.checked_sub(start)?))
}

/// Whether the process behind the pidfd has ended with all its threads, waited for so long.
pub fn ended(pidfd: &OwnedFd, within: Duration) -> Result<bool> {
    let failed = |errno| Error::call("poll", errno);
    let within = Timespec::try_from(within).map_err(|_| failed(rustix::io::Errno::INVAL))?;
    let mut watched = [PollFd::new(pidfd, PollFlags::IN)];
    Ok(rustix::event::poll(&mut watched, Some(&within)).map_err(failed)? > 0)
}

/// Waits in the async runtime until the process behind the pidfd is gone.
pub async fn wait_pidfd(pidfd: OwnedFd) -> Result<()> {
    // SAFETY: the descriptor is owned, moves into the watcher, and is not closed before it is deregistered.
    let watched =
        unsafe { tokio::io::unix::AsyncFd::register_with_interest(pidfd, tokio::io::Interest::READABLE) }
            .map_err(|e| Error::io("pidfd", std::io::Error::other(e)))?;
    watched.readable().await.map(|_| ()).map_err(|e| Error::io("pidfd", e))
}

/// Sends a signal by number; a process that is gone already is not an error.
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    if pid <= 1 {
        return Err(Error::call("kill", rustix::io::Errno::INVAL));
    }
    // SAFETY: kill(2) touches no memory of this process.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            e => Err(Error::io("kill", e)),
        },
    }
}

/// Whether a process with this id exists and has a thread that has not ended.
pub fn is_alive(pid: i32) -> bool {
    start_ticks(pid).is_some()
}

/// When the process started, in clock ticks since boot: with the pid it names one process for good. `None` for a
/// process that is gone, and for a zombie once its last thread has ended: until then it holds its files and locks.
pub fn start_ticks(pid: i32) -> Option<u64> {
    living_since(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn living_since(stat: &str) -> Option<u64> {
    // The command name is in parentheses and may hold anything, so the fields count from the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let dead = matches!(fields.next()?, "Z" | "X");
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    if dead && threads <= 1 {
        return None;
    }
    fields.nth(1)?.parse().ok()
}

/// Which side of a fork this is.
pub enum Fork {
    Parent(i32),
    Child,
}

/// Forks. Only a process with one thread may: it refuses when there are more, because a lock held by another
/// thread would stay held in the child for ever.
pub fn fork_single_threaded() -> Result<Fork> {
    check_single_threaded()?;
    // SAFETY: this process has exactly one thread (just counted, and nobody else could start another), so the
    // child's memory is consistent.
    forked(unsafe { libc::fork() })
}

/// Forks a process that is not this one's child but its parent's, who then reaps it. Only a process with one
/// thread may.
pub fn fork_sibling() -> Result<Fork> {
    check_single_threaded()?;
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    let none: libc::c_long = 0;
    // SAFETY: as above; without a stack of its own the child goes on with a copy of this one, as after fork(2).
    // All but the flags are pointers that these flags do not have the kernel read.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    forked(i32::try_from(pid).unwrap_or(-1))
}

fn check_single_threaded() -> Result<()> {
    let tasks = std::fs::read_dir("/proc/self/task").map_err(|e| Error::io("/proc/self/task", e))?.count();
    match tasks {
        1 => Ok(()),
        _ => Err(Error::call("fork of a threaded process", rustix::io::Errno::INVAL)),
    }
}

fn forked(pid: libc::pid_t) -> Result<Fork> {
    match pid {
        -1 => Err(Error::io("fork", io::Error::last_os_error())),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Nanoseconds since the epoch, for processes that stamp what they see (the shim's log lines).
pub fn realtime_nanos() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Becomes a user with these groups, and keeps the capabilities for the moment: the permitted ones, of which the
/// kernel takes the effective ones away from all but root.
pub fn become_ids(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    use rustix::process::{Gid, Uid};
    let (gid, uid) = (Gid::from_raw(gid), Uid::from_raw(uid));
    let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    rustix::thread::set_keep_capabilities(true).map_err(|e| Error::call("keep capabilities", e))?;
    rustix::thread::set_thread_groups(&groups).map_err(|e| Error::call("setgroups", e))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(|e| Error::call("setresgid", e))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(|e| Error::call("setresuid", e))?;
    rustix::thread::set_keep_capabilities(false).map_err(|e| Error::call("keep capabilities", e))
}

/// Becomes an ordinary user for good: no capability stays, and no program could give one back.
pub fn become_user(id: u32) -> Result<()> {
    use caps::CapSet;
    use rustix::process::{Gid, Uid};
    for set in [CapSet::Ambient, CapSet::Bounding, CapSet::Inheritable] {
        caps::clear(None, set).map_err(|_| Error::call("capset", rustix::io::Errno::PERM))?;
    }
    let (gid, uid) = (Gid::from_raw(id), Uid::from_raw(id));
    rustix::thread::set_thread_groups(&[]).map_err(|e| Error::call("setgroups", e))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(|e| Error::call("setresgid", e))?;
    // With the last root id the kernel clears the permitted and effective sets.
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(|e| Error::call("setresuid", e))
}

/// The capabilities that this process can hand out: those of its bounding set that it holds itself.
pub fn effective_capabilities() -> std::collections::BTreeSet<String> {
    let read = |set| caps::read(None, set).unwrap_or_default();
    let bounding = read(caps::CapSet::Bounding);
    read(caps::CapSet::Permitted).intersection(&bounding).map(ToString::to_string).collect()
}

/// Whether this process holds a capability such as `CAP_SYS_RESOURCE`.
pub fn has_capability(name: &str) -> bool {
    name.parse::<caps::Capability>()
        .is_ok_and(|capability| caps::has_cap(None, caps::CapSet::Effective, capability).unwrap_or(false))
}

/// Changes the size of a terminal; the kernel then tells the processes on it.
pub fn set_terminal_size(terminal: &impl AsRawFd, rows: u16, columns: u16) -> Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open for as long as it is borrowed, and TIOCSWINSZ only reads the struct.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) } {
        0 => Ok(()),
        _ => Err(Error::io("TIOCSWINSZ", io::Error::last_os_error())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_read_again_after_it_was_forgotten() {
        let program = std::fs::read_link("/proc/self/exe").unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert_eq!(maps.lines().filter_map(|line| code_of(line, &program)).count(), 1, "{maps}");
        let data = format!("1000-2000 rw-p 00000000 fd:00 7    {}", program.display());
        assert_eq!(code_of(&data, &program), None);
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
        };
        let before = resident();
        forget_code().unwrap();
        assert!(resident() < before, "{} of {before} kB", resident());
    }

    #[test]
    fn a_process_lives_as_long_as_a_thread_of_it() {
        let stat = |state: &str, threads: u32| {
            format!(
                "7 (a) b (c) {state} 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 {threads} 0 4711 0 0 18446744073709551615"
            )
        };
        assert_eq!(living_since(&stat("S", 1)), Some(4711));
        assert_eq!(living_since(&stat("Z", 3)), Some(4711), "its first thread has ended, two others not yet");
        assert_eq!(living_since(&stat("Z", 1)), None);
        assert_eq!(living_since(""), None);
    }

    #[test]
    fn a_process_is_told_from_its_zombie_and_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        assert!(is_alive(pid));
        let watched = pidfd(pid).unwrap();
        kill(pid, 9).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(wait_pidfd(watched)).unwrap();
        assert!(!is_alive(pid), "a zombie is not alive");
        assert_eq!(child.wait().unwrap().code(), None);
        assert!(kill(1, 9).is_err());
    }
}
