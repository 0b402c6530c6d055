//! Container logs that have grown large are moved aside, the older ones packed, the oldest removed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri::v1 as pb;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::core::Core;
use crate::runtime::{Runtime, describe};

/// Upstream: pkg/kubelet/apis/config/v1beta1/defaults.go ContainerLogMonitorInterval
const LOOK: Duration = Duration::from_secs(10);
const PACKED: &str = "gz";
const UNFINISHED: &str = "tmp";

/// How large logs may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A log of this many bytes is rotated.
    pub max_bytes: u64,
    /// The files of one container, the present one included.
    pub max_files: usize,
}

impl Default for Policy {
    // Upstream: pkg/kubelet/apis/config/v1beta1/defaults.go ContainerLogMaxSize, ContainerLogMaxFiles
    fn default() -> Self {
        Policy { max_bytes: 10 << 20, max_files: 5 }
    }
}

/// Looks until the shutdown. The kernel tells of every write to a log but of no size.
// Upstream: pkg/kubelet/logs/container_log_manager.go Start
pub async fn run(core: Arc<Core>, shutdown: CancellationToken) -> Result<(), Error> {
    let mut every = tokio::time::interval(LOOK);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = every.tick() => look(&core).await,
        }
    }
}

async fn look(core: &Core) {
    for (id, log) in running(core).await {
        let due = match fs::metadata(&log) {
            Ok(file) => file.len() >= core.config.log_rotation.max_bytes,
            // Somebody took it away: what is written now goes to a file without a name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Err(error) = core.runtime.reopen_log(&id).await {
                    tracing::debug!(container = id, error = %describe(&error), "a log cannot be opened anew");
                }
                continue;
            }
            Err(_) => continue,
        };
        if !due {
            continue;
        }
        let now = core.config.clock.now();
        if let Err(error) = rotate(core.runtime.as_ref(), &id, &log, core.config.log_rotation, now).await {
            tracing::warn!(container = id, log = %log.display(), error, "cannot rotate a log");
        }
    }
}

/// The containers that run, with their logs: those of others do not grow.
async fn running(core: &Core) -> Vec<(String, PathBuf)> {
    let Ok(containers) = core.runtime.containers(None).await else { return Vec::new() };
    let running = containers.into_iter().filter(|c| c.state() == pb::ContainerState::ContainerRunning);
    let pods = core.pods.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    running
        .filter_map(|container| {
            let label = |key: &str| container.labels.get(key);
            let pod = pods.get(label(crate::runtime::POD_UID)?)?;
            let attempt = container.metadata.as_ref()?.attempt;
            let name = label(crate::runtime::CONTAINER_NAME)?;
            let attempt = i32::try_from(attempt).ok()?;
            let log = crate::container::config::log_path(name, attempt);
            Some((container.id.clone(), core.paths.pod_logs(pod).join(log)))
        })
        .collect()
}

/// Moves the log aside and has the runtime begin another one.
// Upstream: pkg/kubelet/logs/container_log_manager.go rotateLog
async fn rotate(
    runtime: &dyn Runtime,
    id: &str,
    log: &Path,
    policy: Policy,
    now: jiff::Timestamp,
) -> Result<(), String> {
    let (log, aside) = (log.to_owned(), aside(log, now));
    let (old, new) = (log.clone(), aside.clone());
    let moved = tokio::task::spawn_blocking(move || {
        make_room(&old, policy)?;
        fs::rename(&old, &new)
    });
    match moved.await {
        Ok(done) => done.map_err(|error| error.to_string())?,
        Err(_) => return Err("the work was cut short".to_owned()),
    }
    if let Err(error) = runtime.reopen_log(id).await {
        // The runtime still writes to the old file: give it its name back, so that it is looked at again.
        let back = fs::rename(&aside, &log);
        return Err(back.err().map_or_else(|| describe(&error), |error| error.to_string()));
    }
    Ok(())
}

/// The name of a rotated log. Names sort by age.
fn aside(log: &Path, now: jiff::Timestamp) -> PathBuf {
    let stamp = now.strftime("%Y%m%d-%H%M%S");
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{stamp}"));
    name.into()
}

/// The rotated logs beside `log`, oldest first, and what is left of unfinished work.
fn rotated(log: &Path) -> io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let Some((dir, name)) = log.parent().zip(log.file_name().and_then(|n| n.to_str())) else {
        return Ok(Default::default());
    };
    let prefix = format!("{name}.");
    let mut all: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
            all.push(entry.path());
        }
    }
    all.sort();
    let packed = |path: &Path| with_suffix(path, PACKED);
    let is_useful = |path: &PathBuf| {
        let kind = path.extension().and_then(|e| e.to_str());
        kind == Some(PACKED) || (kind != Some(UNFINISHED) && !all.contains(&packed(path)))
    };
    Ok(all.iter().cloned().partition(is_useful))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{suffix}"));
    name.into()
}

/// Packs the older logs and removes the oldest, so that with the one to be rotated and its successor there are
/// not too many.
fn make_room(log: &Path, policy: Policy) -> io::Result<()> {
    let (useful, useless) = rotated(log)?;
    useless.iter().try_for_each(fs::remove_file)?;
    let kept = policy.max_files.saturating_sub(2);
    let (excess, rest) = useful.split_at(useful.len().saturating_sub(kept));
    excess.iter().try_for_each(fs::remove_file)?;
    let plain = rest.iter().filter(|path| path.extension().is_none_or(|kind| kind != PACKED));
    plain.into_iter().try_for_each(|path| pack(path))
}

fn pack(log: &Path) -> io::Result<()> {
    let unfinished = with_suffix(log, UNFINISHED);
    let mut from = File::open(log)?;
    let into = File::create(&unfinished)?;
    into.set_permissions(from.metadata()?.permissions())?;
    let mut encoder = GzEncoder::new(into, Compression::default());
    io::copy(&mut from, &mut encoder)?;
    encoder.finish()?;
    fs::rename(&unfinished, with_suffix(log, PACKED))?;
    fs::remove_file(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_logs_are_packed_and_the_oldest_removed() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        let now = |second: i64| jiff::Timestamp::from_second(1_800_000_000 + second).unwrap();
        let policy = Policy { max_bytes: 1, max_files: 3 };
        fs::write(dir.path().join("0.log.20200101-000000.tmp"), "half").unwrap();
        fs::write(dir.path().join("1.log.20200101-000000"), "another's").unwrap();
        for round in 0..4 {
            fs::write(&log, format!("round {round}")).unwrap();
            make_room(&log, policy).unwrap();
            fs::rename(&log, aside(&log, now(round))).unwrap();
        }
        fs::write(&log, "round 4").unwrap();
        let mut names: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let want = ["0.log", "0.log.20270115-080002.gz", "0.log.20270115-080003", "1.log.20200101-000000"];
        assert_eq!(names, want);
        let packed = File::open(dir.path().join(&names[1])).unwrap();
        let text = io::read_to_string(flate2::read::GzDecoder::new(packed)).unwrap();
        assert_eq!(text, "round 2");
    }
}
