//! What the machine is and has.

use std::collections::BTreeMap;
use std::path::Path;

/// Facts that do not change while it runs.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// How many huge pages of each size, in bytes, the kernel keeps.
    pub huge_pages: BTreeMap<u64, u64>,
    /// How many processes there may be.
    pub max_pids: i64,
    /// What there is to swap to, in bytes.
    pub swap: i64,
    /// Whether cgroups limit swap, as those of version 2 do where the kernel can.
    pub swap_is_limited: bool,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel_version: String,
    pub os_image: String,
}

impl Machine {
    /// Reads the machine; what cannot be read stays empty, as in containers that hide it.
    pub fn read(root_dir: &Path) -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let disk = rustix::fs::statvfs(root_dir).map(|s| s.f_blocks.saturating_mul(s.f_frsize)).unwrap_or(0);
        let machine_id = text("/etc/machine-id");
        let uuid = text("/sys/class/dmi/id/product_uuid");
        Machine {
            milli_cpu: i64::try_from(cpus).unwrap_or(1) * 1000,
            memory: field(&text("/proc/meminfo"), "MemTotal:"),
            swap: field(&text("/proc/meminfo"), "SwapTotal:"),
            swap_is_limited: linux::cgroups::limits_swap(),
            ephemeral_storage: i64::try_from(disk).unwrap_or(i64::MAX),
            max_pids: text("/proc/sys/kernel/pid_max").parse().unwrap_or(32768),
            huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel_version: text("/proc/sys/kernel/osrelease"),
            os_image: pretty_name(&text("/etc/os-release")),
        }
    }
}

fn field(meminfo: &str, name: &str) -> i64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<i64>().unwrap_or(0) * 1024
}

fn huge_pages(dir: &Path) -> BTreeMap<u64, u64> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let pool = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let size: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok()?;
        Some((size * 1024, count.trim().parse().ok()?))
    };
    entries.filter_map(pool).collect()
}

fn pretty_name(os_release: &str) -> String {
    let name = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.map_or("Linux".to_owned(), |n| n.trim_matches('"').to_owned())
}

/// The architecture as Go and images name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel() {
        assert_eq!(field("MemTotal:       16384 kB\nMemFree: 1 kB", "MemTotal:"), 16384 * 1024);
        assert_eq!(field("garbage", "MemTotal:"), 0);
        assert_eq!(pretty_name("NAME=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
    }
}
