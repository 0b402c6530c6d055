//! Becoming the container's own program, the last thing that the process of a container or an exec does.
//!
//! libcontainer gives an exec neither its container's seccomp filter nor runc's words when a program is missing.
//! Both are mended here, because this is the only place that libcontainer leaves to its caller.

use std::error::Error as StdError;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use libcontainer::{capabilities, seccomp, syscall};
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, LinuxSeccomp, Process, Spec};

/// What every failure to become the program begins with, so that callers find it in libcontainer's chain.
pub(crate) const PREFIX: &str = "unable to start container process: ";

/// What a process still has to put on before it becomes the program.
#[derive(Debug, Clone, Default)]
pub(crate) struct Workload {
    seccomp: Option<LinuxSeccomp>,
    /// The capabilities to end with, where more are needed to load the filter.
    capabilities: Option<LinuxCapabilities>,
    /// Whether a failure is told to nobody but the container's log.
    is_init: bool,
}

impl Workload {
    /// A container's first process: libcontainer itself has loaded its filter.
    pub(crate) fn init() -> Self {
        Self { is_init: true, ..Self::default() }
    }

    /// A process in a running container, under that container's filter. Changes `process` to one that is able to
    /// load it: without `noNewPrivileges` that takes `CAP_SYS_ADMIN`, which is given up again afterwards.
    pub(crate) fn exec(container: &Spec, process: &mut Process) -> Result<Self, String> {
        let filter = container.linux().as_ref().and_then(|linux| linux.seccomp().clone());
        let Some(filter) = filter else { return Ok(Self::default()) };
        if seccomp::is_notify(&filter) {
            return Err("a seccomp filter that asks a listener cannot be put on an exec".to_owned());
        }
        let mut workload = Self { seccomp: Some(filter), ..Self::default() };
        if process.no_new_privileges() != Some(true) {
            workload.capabilities.clone_from(process.capabilities());
            process.set_capabilities(process.capabilities().as_ref().map(raised));
        }
        Ok(workload)
    }

    fn put_on(&self) -> Result<(), String> {
        if let Some(filter) = &self.seccomp {
            seccomp::initialize_seccomp(filter).map_err(|e| format!("load seccomp filter: {}", chain(&e)))?;
        }
        if let Some(wanted) = &self.capabilities {
            let syscall = syscall::syscall::create_syscall();
            capabilities::drop_privileges(wanted, syscall.as_ref())
                .map_err(|e| format!("drop capabilities: {}", chain(&e)))?;
        }
        Ok(())
    }
}

/// These capabilities and those that loading a filter and shrinking the bounding set take.
fn raised(wanted: &LinuxCapabilities) -> LinuxCapabilities {
    let with = |set: &Option<Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend([Capability::SysAdmin, Capability::Setpcap]);
        Some(set)
    };
    let mut raised = wanted.clone();
    raised
        .set_bounding(with(wanted.bounding()))
        .set_effective(with(wanted.effective()))
        .set_permitted(with(wanted.permitted()));
    raised
}

fn chain(error: &dyn StdError) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

impl Executor for Workload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        let args = process.args().as_deref().unwrap_or_default();
        let Some((name, rest)) = args.split_first() else { return Err(ExecutorError::InvalidArg) };
        let failed = |why: String| ExecutorError::Other(format!("{PREFIX}{why}"));
        let program = find(name, process).map_err(failed)?;
        self.put_on().map_err(failed)?;
        // It returns only when it fails.
        let error = Command::new(&program).arg0(name).args(rest).exec();
        let why = format!("exec {}: {}", program.display(), errno_text(&error));
        if self.is_init {
            // `start` has answered already: the container's log is where people look.
            let _ = writeln!(io::stderr(), "{why}");
        }
        Err(failed(why))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let failed = |why: String| ExecutorValidationError::ArgValidationError(format!("{PREFIX}{why}"));
        let process = spec.process().as_ref().ok_or_else(|| failed("no process".to_owned()))?;
        match process.args().as_deref().unwrap_or_default().first() {
            Some(name) => find(name, process).map(drop).map_err(failed),
            None => Err(failed("no command specified".to_owned())),
        }
    }
}

/// Finds the program in the container's root, where this process is already, or says in the words of Go's
/// `os/exec`, which runc hands on, why there is none.
fn find(name: &str, process: &Process) -> Result<PathBuf, String> {
    let failed = |why: &str| Err(format!("exec: {name:?}: {why}"));
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                failed(&format!("stat {name}: no such file or directory"))
            }
            Err(error) => failed(&errno_text(&error)),
        };
    }
    let env = process.env().as_deref().unwrap_or_default();
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let candidates = path.split(':').filter(|dir| dir.starts_with('/')).map(|dir| Path::new(dir).join(name));
    let mut found = candidates.filter(|candidate| executable(candidate).is_ok());
    found.next().map_or_else(|| failed("executable file not found in $PATH"), Ok)
}

fn executable(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    match metadata.permissions().mode() & 0o111 {
        0 => Err(io::ErrorKind::PermissionDenied.into()),
        _ => Ok(()),
    }
}

/// An error in the system's words, in small letters and without its number, as Go prints it.
fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxBuilder, LinuxSeccompBuilder, ProcessBuilder, SpecBuilder};

    use super::*;

    fn process(env: &str) -> Process {
        ProcessBuilder::default().env(vec![env.to_owned()]).build().unwrap()
    }

    #[test]
    fn a_missing_program_is_told_in_runcs_words() {
        for (name, why) in [
            ("nosuch", r#"exec: "nosuch": executable file not found in $PATH"#),
            ("/no/such", r#"exec: "/no/such": stat /no/such: no such file or directory"#),
            ("/etc", r#"exec: "/etc": is a directory"#),
            ("/etc/passwd", r#"exec: "/etc/passwd": permission denied"#),
        ] {
            assert_eq!(find(name, &process("PATH=/usr/bin:/bin")).unwrap_err(), why);
        }
        assert_eq!(find("sh", &process("PATH=rel:/nowhere:/bin")), Ok("/bin/sh".into()));
        assert!(find("sh", &process("HOME=/")).is_err(), "there is no PATH to search");
    }

    #[test]
    fn a_filter_needs_privilege_only_where_no_new_privileges_is_off() {
        let filter = LinuxSeccompBuilder::default()
            .default_action(oci_spec::runtime::LinuxSeccompAction::ScmpActErrno)
            .build()
            .unwrap();
        let linux = LinuxBuilder::default().seccomp(filter).build().unwrap();
        let container = SpecBuilder::default().linux(linux).build().unwrap();
        for (no_new_privileges, needed) in [(None, true), (Some(false), true), (Some(true), false)] {
            let mut process = process("PATH=/bin");
            process.set_no_new_privileges(no_new_privileges);
            let before = process.capabilities().clone();
            let workload = Workload::exec(&container, &mut process).unwrap();
            assert!(workload.seccomp.is_some());
            assert_eq!(workload.capabilities, before.clone().filter(|_| needed));
            let effective = process.capabilities().as_ref().and_then(|c| c.effective().clone()).unwrap();
            assert_eq!(effective.contains(&Capability::SysAdmin), needed, "{no_new_privileges:?}");
            let inheritable = process.capabilities().as_ref().and_then(|c| c.inheritable().clone());
            assert_eq!(inheritable, before.and_then(|c| c.inheritable().clone()));
        }
        let mut bare = process("PATH=/bin");
        let unfiltered = SpecBuilder::default().build().unwrap();
        assert!(Workload::exec(&unfiltered, &mut bare).unwrap().seccomp.is_none());
    }
}
