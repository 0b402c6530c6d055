//! What is left on the machine.

use std::fs;
use std::path::Path;

use super::thresholds::{Observation, Observations, Signal};
use crate::core::Core;

pub async fn all(core: &Core) -> Observations {
    let mut all = Observations::new();
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    all.extend(memory(&text("/proc/meminfo")).map(|seen| (Signal::MemoryAvailable, seen)));
    all.extend(
        processes(
            &text("/proc/sys/kernel/pid_max"),
            &text("/proc/sys/kernel/threads-max"),
            &text("/proc/loadavg"),
        )
        .map(|seen| (Signal::PidAvailable, seen)),
    );
    disk(&core.config.root_dir, Signal::NodefsAvailable, Signal::NodefsInodesFree, &mut all);
    let images = core.runtime.image_filesystem().await.ok().flatten().and_then(|f| f.fs_id);
    if let Some(images) = images {
        disk(Path::new(&images.mountpoint), Signal::ImagefsAvailable, Signal::ImagefsInodesFree, &mut all);
    }
    all
}

/// What is neither used nor easily given back. Files that were read long ago are.
fn memory(meminfo: &str) -> Option<Observation> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
    };
    let available = field("MemFree:")? + field("Inactive(file):")?;
    Some(Observation { available, capacity: field("MemTotal:")? })
}

fn processes(pid_max: &str, threads_max: &str, loadavg: &str) -> Option<Observation> {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let capacity = number(pid_max)?.min(number(threads_max)?);
    let running = number(loadavg.split_whitespace().nth(3)?.split_once('/')?.1)?;
    Some(Observation { available: capacity.saturating_sub(running), capacity })
}

fn disk(path: &Path, bytes: Signal, inodes: Signal, all: &mut Observations) {
    let Ok(disk) = rustix::fs::statvfs(path) else { return };
    let (available, capacity) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
    all.insert(bytes, Observation { available, capacity });
    // Some filesystems do not count them.
    if disk.f_files > 0 {
        all.insert(inodes, Observation { available: disk.f_favail, capacity: disk.f_files });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel() {
        let meminfo = "MemTotal: 1000 kB\nMemFree: 10 kB\nInactive(anon): 7 kB\nInactive(file): 5 kB\n";
        assert_eq!(memory(meminfo), Some(Observation { available: 15 * 1024, capacity: 1000 * 1024 }));
        assert_eq!(memory("garbage"), None);
        let seen = processes("100\n", "90\n", "0.1 0.2 0.3 2/50 999\n");
        assert_eq!(seen, Some(Observation { available: 40, capacity: 90 }));
        assert_eq!(processes("100", "", "x"), None);
    }
}
