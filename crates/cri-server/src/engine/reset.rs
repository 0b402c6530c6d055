//! Taking everything away that an engine made.

use std::path::Path;

use linux::cgroups::Cgroup;

use super::container::Record as ContainerRecord;
use super::read_json;
use super::sandbox::Record as SandboxRecord;
use crate::Error;
use crate::config::Config;
use crate::network::{self, Attachment};

/// Kills every shim and container of this state directory and removes mounts, cgroups, namespaces, networks
/// and files. The engine must not run. Safe to repeat, also after a reset that was cut short.
pub async fn reset(config: &Config) -> Result<(), Error> {
    let pod_cidrs: Vec<String> = read_json(&config.state.join("pod-cidrs.json")).unwrap_or_default();
    let sandboxes = std::fs::read_dir(config.sandboxes()).into_iter().flatten().flatten();
    for entry in sandboxes {
        let dir = entry.path();
        // The shim first, so that it books no exits while its containers go.
        kill_shim(&dir)?;
        let record = read_json::<SandboxRecord>(&dir.join("sandbox.json"));
        if let Some(pid) = record.as_ref().and_then(|record| record.pause_pid) {
            kill_pause(pid)?;
        }
        remove_containers(&dir)?;
        let Some(record) = record else { continue };
        disconnect(config, &record, &dir, &pod_cidrs).await;
    }
    Cgroup::new(&config.cgroup_root).kill_all().map_err(Error::kernel("kill what is left"))?;
    Cgroup::new(&config.cgroup_root).remove().map_err(Error::kernel("cgroup root"))?;
    for dir in [&config.state, &config.root] {
        linux::mounts::remove_tree(dir).map_err(Error::kernel("engine directory"))?;
    }
    for socket in [&config.socket, &config.import_socket()] {
        let _ = std::fs::remove_file(socket);
    }
    Ok(())
}

/// Ends the shim of a sandbox's directory, if the process with its number still is the shim.
pub(super) fn kill_shim(dir: &Path) -> Result<(), Error> {
    let pid = std::fs::read_to_string(dir.join("shim.pid")).ok().and_then(|pid| pid.trim().parse().ok());
    match pid.filter(|pid| is_our(*pid, "shim")) {
        Some(pid) => linux::process::kill(pid, 9).map_err(Error::kernel("kill shim")),
        None => Ok(()),
    }
}

/// Ends the holder of a shared pid namespace, which a shim that was killed could not. Safe to repeat.
pub(super) fn kill_pause(pid: i32) -> Result<(), Error> {
    if !is_our(pid, "pause") {
        return Ok(());
    }
    linux::process::kill(pid, 9).map_err(Error::kernel("kill pause"))
}

fn is_our(pid: i32, word: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).take(3).any(|argument| argument == word.as_bytes())
}

fn remove_containers(sandbox: &Path) -> Result<(), Error> {
    let containers = std::fs::read_dir(sandbox.join("containers")).into_iter().flatten().flatten();
    for entry in containers {
        let Some(record) = read_json::<ContainerRecord>(&entry.path().join("container.json")) else {
            continue;
        };
        let group = Cgroup::new(&record.cgroup);
        group.kill_all().map_err(Error::kernel("kill container"))?;
        group.remove().map_err(Error::kernel("container cgroup"))?;
    }
    Ok(())
}

async fn disconnect(config: &Config, record: &SandboxRecord, dir: &Path, pod_cidrs: &[String]) {
    let netns = dir.join("ns/net");
    if !netns.exists() {
        return;
    }
    let Ok(Some(found)) = network::current(config, pod_cidrs) else { return };
    let (netns, result) = (netns.display().to_string(), record.network.clone());
    let at = Attachment { sandbox: &record.id, netns, pod: &record.config, result };
    if let Err(error) = network::delete(config, &found, &at).await {
        tracing::warn!(sandbox = %record.id, %error, "a pod was not disconnected");
    }
}
