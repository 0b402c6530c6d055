//! Entering a running container: `exec`.
//!
//! libcontainer joins every namespace but that of users, and puts no seccomp filter on what it starts; so this is
//! our own. The process forks once, into the container's process namespace and as a child of its own parent, and
//! stays outside itself: what it writes, it writes as root of the machine. The fork joins the container's cgroup,
//! then all its other namespaces in one step, takes on the ids, capabilities and the filter that were asked for,
//! and becomes the program. Nothing that was opened outside comes along but the three standard streams.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use libcontainer::container::{Container, ContainerStatus};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::{capabilities, seccomp, tty};
use linux::cgroups::Cgroup;
use linux::process::{Fork, become_ids, fork_sibling, pidfd};
use oci_spec::runtime::{LinuxNamespaceType, LinuxSeccomp, Process, Spec};
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::arguments::Exec;
use crate::workload::{PREFIX, become_program, chain};
use crate::{Error, file, read_json, users};

/// All but the process namespace, which only a fork can join. The kernel knows in which order.
const JOINED: [(LinuxNamespaceType, ThreadNameSpaceType); 7] = [
    (LinuxNamespaceType::User, ThreadNameSpaceType::USER),
    (LinuxNamespaceType::Mount, ThreadNameSpaceType::MOUNT),
    (LinuxNamespaceType::Network, ThreadNameSpaceType::NETWORK),
    (LinuxNamespaceType::Ipc, ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
    (LinuxNamespaceType::Uts, ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
    (LinuxNamespaceType::Cgroup, ThreadNameSpaceType::CONTROL_GROUP),
    (LinuxNamespaceType::Time, ThreadNameSpaceType::TIME),
];

/// Starts another process in a container.
pub(crate) fn exec(container: &mut Container, exec: &Exec) -> Result<(), Error> {
    let spec: Spec = read_json(&container.bundle().join("config.json"))?;
    let process: Process = read_json(&exec.process)?;
    let unstarted = |why: String| Error::Process(format!("{PREFIX}{why}"));
    let init = open_init(container)?;
    let mut pid_file = match &exec.pid_file {
        Some(path) => Some((path, File::create(path).map_err(file(path))?)),
        None => None,
    };
    let console = match &exec.console_socket {
        Some(path) if process.terminal() == Some(true) => {
            Some(UnixStream::connect(path).map_err(file(path))?)
        }
        _ => None,
    };
    if console.is_none() {
        users::own_streams(&spec, process.user().uid());
    }
    // Nobody in the container may look into, or trace, what is still the runtime.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| unstarted(call("dumpable")(e)))?;
    if has(&spec, LinuxNamespaceType::Pid) {
        move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::PROCESS_ID)
            .map_err(|e| unstarted(call("join process namespace")(e)))?;
    }
    let (mut words, mut told) = std::io::pipe().map_err(|e| unstarted(e.to_string()))?;
    let entry = Entry { spec: &spec, process: &process, init };
    match fork_sibling().map_err(|e| unstarted(chain(&e)))? {
        Fork::Child => {
            drop(words);
            // It returns only when it fails, and nobody can be told if even that fails.
            let _ = told.write_all(entry.become_it(console).as_bytes());
            std::process::exit(1)
        }
        Fork::Parent(pid) => {
            drop(told);
            if let Some((path, pid_file)) = &mut pid_file {
                pid_file.write_all(pid.to_string().as_bytes()).map_err(file(path))?;
            }
            // The other end is closed by the program's start.
            let mut why = String::new();
            words.read_to_string(&mut why).map_err(|e| unstarted(e.to_string()))?;
            if why.is_empty() { Ok(()) } else { Err(unstarted(why)) }
        }
    }
}

/// The container's first process, in words as runc's if there is none to be entered.
fn open_init(container: &mut Container) -> Result<OwnedFd, Error> {
    let gone = |why: &str| Error::Process(format!("cannot exec in a {why} container"));
    let pid = container.pid().ok_or_else(|| gone("stopped"))?;
    let init = pidfd(pid.as_raw()).map_err(|_| gone("stopped"))?;
    // Looked at after it was opened: it is this process that runs.
    container.refresh_status().map_err(crate::failed("look at container"))?;
    match container.status() {
        ContainerStatus::Running => Ok(init),
        status => Err(gone(&status.to_string().to_lowercase())),
    }
}

fn has(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|namespace| namespace.typ() == kind)
}

fn call(what: &'static str) -> impl Fn(rustix::io::Errno) -> String {
    move |error| format!("{what}: {error}")
}

/// What the fork is to become.
struct Entry<'a> {
    spec: &'a Spec,
    process: &'a Process,
    init: OwnedFd,
}

impl Entry<'_> {
    /// Returns why it could not.
    fn become_it(&self, console: Option<UnixStream>) -> String {
        let entered = self.enter(console).and_then(|()| self.take_on());
        match entered {
            Err(why) => why,
            Ok(()) => become_program(self.process, |command| {
                let env = self.process.env().iter().flatten().filter_map(|entry| entry.split_once('='));
                command.env_clear().envs(env);
                match self.process.no_new_privileges() {
                    Some(true) => self.filter(),
                    _ => Ok(()),
                }
            }),
        }
    }

    /// Goes where the container is.
    fn enter(&self, console: Option<UnixStream>) -> Result<(), String> {
        rustix::process::setsid().map_err(call("setsid"))?;
        let linux = self.spec.linux().as_ref();
        if let Some(cgroup) = linux.and_then(|linux| linux.cgroups_path().as_ref()) {
            Cgroup::new(cgroup).join().map_err(|e| format!("join cgroup: {}", chain(&e)))?;
        }
        let system = create_syscall();
        for limit in self.process.rlimits().iter().flatten() {
            system.set_rlimit(limit).map_err(|e| format!("limit: {}", chain(&e)))?;
        }
        let joined = JOINED.iter().filter(|(kind, _)| has(self.spec, *kind));
        let joined = joined.fold(ThreadNameSpaceType::empty(), |all, (_, flag)| all | *flag);
        move_into_thread_name_spaces(self.init.as_fd(), joined).map_err(call("join namespaces"))?;
        if joined.contains(ThreadNameSpaceType::USER) {
            linux::namespaces::become_root().map_err(|e| chain(&e))?;
        }
        if self.process.no_new_privileges() == Some(true) {
            rustix::thread::set_no_new_privs(true).map_err(call("no new privileges"))?;
        }
        if let Some(console) = console {
            tty::setup_console(system.as_ref(), console.into_raw_fd(), false)
                .map_err(|e| format!("terminal: {}", chain(&e)))?;
            let user = Some(rustix::process::Uid::from_raw(self.process.user().uid()));
            // Its own root may be another's; then the terminal is that one's.
            let _ = rustix::fs::fchown(std::io::stdin(), user, None);
        }
        Ok(())
    }

    /// Becomes who was asked for.
    fn take_on(&self) -> Result<(), String> {
        let user = self.process.user();
        if let Some(mask) = user.umask() {
            rustix::process::umask(Mode::from_raw_mode(mask));
        }
        // Root gets everywhere, but where a filesystem says otherwise; and a user may get where root does not.
        let cwd = Path::new(self.process.cwd());
        let early = std::env::set_current_dir(cwd);
        let groups = user.additional_gids().as_deref().unwrap_or_default();
        become_ids(user.uid(), user.gid(), groups).map_err(|e| chain(&e))?;
        let system = create_syscall();
        system.close_range(0).map_err(|e| format!("close descriptors: {}", chain(&e)))?;
        if self.process.no_new_privileges() != Some(true) {
            // It takes a capability that may be gone afterwards.
            capabilities::reset_effective(system.as_ref())
                .map_err(|e| format!("capabilities: {}", chain(&e)))?;
            self.filter()?;
        }
        if let Some(wanted) = self.process.capabilities() {
            capabilities::reset_effective(system.as_ref())
                .and_then(|()| capabilities::drop_privileges(wanted, system.as_ref()))
                .map_err(|e| format!("capabilities: {}", chain(&e)))?;
        }
        if early.is_err() {
            std::env::set_current_dir(cwd).map_err(|e| format!("chdir to {}: {e}", cwd.display()))?;
        }
        // A folder that was opened outside would be a way out.
        match std::env::current_dir() {
            Ok(dir) if dir.is_absolute() => Ok(()),
            _ => Err("current working directory is outside of container mount namespace root".to_owned()),
        }
    }

    fn filter(&self) -> Result<(), String> {
        let Some(filter) = self.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) else {
            return Ok(());
        };
        load(filter)
    }
}

fn load(filter: &LinuxSeccomp) -> Result<(), String> {
    if seccomp::is_notify(filter) {
        return Err("a seccomp filter that asks a listener cannot be put on an exec".to_owned());
    }
    seccomp::initialize_seccomp(filter).map(drop).map_err(|e| format!("load seccomp filter: {}", chain(&e)))
}
