//! A node's process: started in its namespaces and cgroup, stopped with all that it started.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use linux::cgroups::Cgroup;
use rustix::process::{Pid, Signal};

use super::state::{Cluster, NodeState, Process};

/// The first argument of this program when it is to become a node.
pub const COMMAND: &str = "dev-node";
/// Where the node's own processes are, beside its pods: version 2 has none in a cgroup that has others below it.
const OWN_CGROUP: &str = "node";

/// Starts this program with these arguments in the node's namespaces. It goes on when we end.
pub fn start(cluster: &Cluster, node: &NodeState, arguments: &[String]) -> anyhow::Result<Process> {
    let log = cluster.log(node);
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.arg(COMMAND).arg(cluster.namespace(node)).arg(cluster.cgroup(node).join(OWN_CGROUP));
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn().context("cannot start a node")?;
    Process::of(i32::try_from(child.id())?)
}

/// What runs as the node's process, before anything else of this program: it enters the namespaces and becomes
/// the command that follows.
pub fn main(arguments: &mut dyn Iterator<Item = OsString>) -> ExitCode {
    let error = match become_node(arguments) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    eprintln!("trierarch: {error:#}");
    ExitCode::FAILURE
}

fn become_node(arguments: &mut dyn Iterator<Item = OsString>) -> anyhow::Result<std::convert::Infallible> {
    let mut next = || arguments.next().map(PathBuf::from).context("an argument is missing");
    let (namespace, cgroup) = (next()?, next()?);
    rustix::process::setsid().context("cannot begin a session")?;
    let cgroup = Cgroup::new(&cgroup);
    cgroup.create()?;
    // Where the node's process alone has died, its containers run on, and what they have mounted is where they are.
    let resident = cgroup.processes().first().copied();
    cgroup.add(rustix::process::getpid().as_raw_nonzero().get())?;
    linux::namespaces::become_machine(&namespace, resident)?;
    let program = std::env::current_exe()?;
    Err(Command::new(program).args(arguments).exec()).context("cannot start")
}

/// Stops the node's process and everything that it started: as when a machine loses its power.
pub fn stop(cluster: &Cluster, node: &NodeState) -> anyhow::Result<()> {
    if let Some(process) = node.process.as_ref().filter(|process| process.runs()) {
        kill(process.pid).with_context(|| format!("cannot stop {}", node.name))?;
    }
    let root = cluster.cgroup(node);
    // The process that starts containers first, so that no more come.
    for cgroup in [root.join(OWN_CGROUP), root.clone()] {
        Cgroup::new(&cgroup).kill_all().with_context(|| format!("cannot stop {}", node.name))?;
    }
    if node.runs() {
        bail!("{} does not end", node.name);
    }
    remove(&root, &node.name)
}

/// Kills one process and waits until it is dead: it may not be in its cgroup yet.
fn kill(pid: i32) -> anyhow::Result<()> {
    let Ok(pidfd) = linux::process::pidfd(pid) else { return Ok(()) };
    let pid = Pid::from_raw(pid).context("a process has an id")?;
    rustix::process::kill_process(pid, Signal::KILL)?;
    linux::process::ended(&pidfd, Duration::from_secs(5))?;
    Ok(())
}

fn remove(cgroup: &Path, whose: &str) -> anyhow::Result<()> {
    Cgroup::new(cgroup).remove().with_context(|| format!("cannot remove the cgroup of {whose}"))
}

/// The parent of all nodes' cgroups.
pub fn remove_cgroup(cluster: &Cluster) -> anyhow::Result<()> {
    remove(&cluster.cgroup_parent(), &cluster.name)?;
    // Of other clusters too; theirs stays while they are there.
    if let Some(parent) = cluster.cgroup_parent().parent() {
        Cgroup::new(parent).remove_if_empty();
    }
    Ok(())
}
