//! Starting the OCI runtime from the shim: which command with which stdio.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The three descriptors of a process.
#[derive(Debug, Default)]
pub(crate) struct Stdio3 {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// Builds runtime commands of one pod.
#[derive(Debug)]
pub(crate) struct Runtime {
    command: Vec<String>,
    dir: PathBuf,
}

impl Runtime {
    pub(crate) fn new(command: Vec<String>, dir: &Path) -> Self {
        Self { command, dir: dir.to_path_buf() }
    }

    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.dir.join("containers").join(id)
    }

    /// Where the runtime leaves its words for one container or exec.
    pub(crate) fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.runtime.log"))
    }

    /// Starts the runtime and returns its process id; it is reaped by the shim's loop.
    pub(crate) fn spawn(&self, name: &str, arguments: &[&str], stdio: Stdio3) -> io::Result<i32> {
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .arg("--root")
            .arg(self.dir.join("oci"))
            .arg("--log")
            .arg(self.log_path(name))
            .args(["--log-format", "json"])
            .args(arguments)
            .stdin(stdio.stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(stdio.stdout.map_or_else(Stdio::null, Stdio::from))
            .stderr(stdio.stderr.map_or_else(Stdio::null, Stdio::from));
        let child = command.spawn()?;
        i32::try_from(child.id()).map_err(io::Error::other)
    }

    /// What the runtime said went wrong: the last error of its log.
    pub(crate) fn failure(&self, name: &str) -> String {
        let path = self.log_path(name);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let message = text.lines().rev().find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(line.get("msg")?.as_str()?.to_owned())
        });
        message.unwrap_or_else(|| "the OCI runtime failed without a word".to_owned())
    }

    pub(crate) fn forget_log(&self, name: &str) {
        // It is only there when there was something to say.
        let _ = std::fs::remove_file(self.log_path(name));
    }
}
