//! Becoming the container's own program, the last thing that the process of a container or an exec does.
//!
//! libcontainer has not runc's words when a program is missing; this is the place that it leaves to its caller.

use std::error::Error as StdError;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use oci_spec::runtime::{Process, Spec};

/// What every failure to become the program begins with, so that callers find it in libcontainer's chain.
pub(crate) const PREFIX: &str = "unable to start container process: ";

/// A container's first process, on which libcontainer has put all else.
#[derive(Debug, Clone)]
pub(crate) struct Workload;

pub(crate) fn chain(error: &dyn StdError) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Becomes the program of `process`, after what comes `last`. Returns why it could not.
pub(crate) fn become_program(
    process: &Process,
    last: impl FnOnce(&mut Command) -> Result<(), String>,
) -> String {
    let args = process.args().as_deref().unwrap_or_default();
    let Some((name, rest)) = args.split_first() else { return "no command specified".to_owned() };
    let program = match find(name, process) {
        Ok(program) => program,
        Err(why) => return why,
    };
    let mut command = Command::new(&program);
    command.arg0(name).args(rest);
    if let Err(why) = last(&mut command) {
        return why;
    }
    // It returns only when it fails.
    format!("exec {}: {}", program.display(), errno_text(&command.exec()))
}

impl Executor for Workload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        // libcontainer has set the environment.
        let why = become_program(process, |_| Ok(()));
        // `start` has answered already: the container's log is where people look.
        let _ = writeln!(io::stderr(), "{why}");
        Err(ExecutorError::Other(format!("{PREFIX}{why}")))
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
    use oci_spec::runtime::ProcessBuilder;

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
}
