//! Control groups, version 1 and 2 behind one face: an absolute path such as `/kubepods/burstable/podX/c1`
//! means that path under every hierarchy.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

const MOUNT: &str = "/sys/fs/cgroup";

/// The version 1 hierarchies that containers are put into, those that are mounted.
const V1_CONTROLLERS: [&str; 9] =
    ["cpu", "cpuacct", "memory", "pids", "cpuset", "devices", "freezer", "blkio", "hugetlb"];

/// Which version rules this machine; a hybrid one counts as version 1, as the controllers are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// Looks which version is mounted.
pub fn version() -> Version {
    if Path::new(MOUNT).join("cgroup.controllers").exists() { Version::V2 } else { Version::V1 }
}

/// Whether the kernel limits swap by the files of version 2, which its root alone does not have.
pub fn limits_swap() -> bool {
    let below_root = || fs::read_dir(MOUNT).into_iter().flatten().flatten();
    version() == Version::V2 && below_root().any(|entry| entry.path().join("memory.swap.max").exists())
}

/// One cgroup in every hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    version: Version,
    path: PathBuf,
}

/// Limits to set; what is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    pub cpu_shares: Option<u64>,
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<u64>,
    pub memory_limit: Option<i64>,
    pub memory_swap_limit: Option<i64>,
    pub pids_limit: Option<i64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// Bytes by the size of pages, as the files are named: `2MB`.
    pub huge_pages: BTreeMap<String, u64>,
    /// Version 2 files by name, taken literally.
    pub unified: BTreeMap<String, String>,
}

/// What a cgroup has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_nanos: u64,
    pub memory_bytes: u64,
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    /// `None` when there is no limit.
    pub memory_limit_bytes: Option<u64>,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub swap_bytes: u64,
    pub pids: u64,
}

impl Cgroup {
    /// Names a cgroup by its absolute path; nothing is made yet.
    pub fn new(path: &Path) -> Self {
        Self { version: version(), path: path.strip_prefix("/").unwrap_or(path).to_path_buf() }
    }

    /// The directories of this cgroup, one a hierarchy.
    fn dirs(&self) -> Vec<PathBuf> {
        match self.version {
            Version::V2 => vec![Path::new(MOUNT).join(&self.path)],
            Version::V1 => {
                let mounted = |name: &&&str| Path::new(MOUNT).join(name).is_dir();
                let mut dirs: Vec<PathBuf> = V1_CONTROLLERS
                    .iter()
                    .filter(mounted)
                    .map(|name| Path::new(MOUNT).join(name).join(&self.path))
                    .collect();
                for named in ["systemd", "unified"] {
                    let dir = Path::new(MOUNT).join(named);
                    if dir.is_dir() {
                        dirs.push(dir.join(&self.path));
                    }
                }
                dirs
            }
        }
    }

    /// The directory that holds a controller's files.
    pub fn dir(&self, controller: &str) -> PathBuf {
        match self.version {
            Version::V2 => Path::new(MOUNT).join(&self.path),
            Version::V1 => Path::new(MOUNT).join(controller).join(&self.path),
        }
    }

    /// Makes the cgroup and its parents, with all controllers passed down.
    pub fn create(&self) -> Result<()> {
        for dir in self.dirs() {
            fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        }
        match self.version {
            Version::V1 => self.inherit_cpuset(),
            Version::V2 => self.enable_controllers(),
        }
    }

    /// A version 1 cpuset takes no process until its CPUs and memory nodes are set, so they are copied down.
    fn inherit_cpuset(&self) -> Result<()> {
        let root = Path::new(MOUNT).join("cpuset");
        if !root.is_dir() {
            return Ok(());
        }
        let mut dir = root;
        for part in self.path.components() {
            let child = dir.join(part);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let own = read(&child.join(file)).unwrap_or_default();
                if own.trim().is_empty() {
                    let inherited = read(&dir.join(file))?;
                    write(&child.join(file), inherited.trim())?;
                }
            }
            dir = child;
        }
        Ok(())
    }

    fn enable_controllers(&self) -> Result<()> {
        let mut dir = PathBuf::from(MOUNT);
        for part in self.path.components() {
            let available = read(&dir.join("cgroup.controllers"))?;
            for controller in available.split_whitespace() {
                // One that is busy or refused is left out; its limits then fail by name.
                let _ = write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"));
            }
            dir.push(part);
        }
        Ok(())
    }

    /// Moves a process in.
    pub fn add(&self, pid: i32) -> Result<()> {
        for dir in self.dirs() {
            write(&dir.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Moves the calling process in, in every hierarchy where the cgroup is.
    pub fn join(&self) -> Result<()> {
        let there: Vec<PathBuf> = self.dirs().into_iter().filter(|dir| dir.is_dir()).collect();
        if there.is_empty() {
            return Err(Error::io(self.dir("devices"), io::ErrorKind::NotFound.into()));
        }
        // 0 is who writes, whatever its number is in which namespace.
        there.iter().try_for_each(|dir| write(&dir.join("cgroup.procs"), "0"))
    }

    /// The processes in it and below it.
    pub fn processes(&self) -> Vec<i32> {
        let dir = match self.version {
            Version::V2 => self.dir(""),
            // Every process of a container is in all hierarchies; devices is always there with the freezer.
            Version::V1 => self.dir(if Path::new(MOUNT).join("pids").is_dir() { "pids" } else { "memory" }),
        };
        let mut pids = Vec::new();
        collect_processes(&dir, &mut pids);
        pids
    }

    /// Kills every process in it and below it. Version 2 does it in one write; version 1 by signals until no
    /// process is left, since one may fork while it is read.
    /// The root, where the machine's own processes are, is refused.
    pub fn kill_all(&self) -> Result<()> {
        self.check_killable()?;
        if self.version == Version::V2 && write(&self.dir("").join("cgroup.kill"), "1").is_ok() {
            return Ok(());
        }
        const ROUNDS: usize = 64;
        for _ in 0..ROUNDS {
            let pids = self.victims()?;
            if pids.is_empty() {
                break;
            }
            // Opened before the kill, so that the wait below means these processes and no others.
            let dying: Vec<_> = pids.iter().filter_map(|pid| crate::process::pidfd(*pid).ok()).collect();
            for pid in pids {
                crate::process::kill(pid, libc::SIGKILL)?;
            }
            for pidfd in dying {
                // One that does not die in time is met again in the next round.
                let _ = crate::process::ended(&pidfd, std::time::Duration::from_secs(1));
            }
        }
        Ok(())
    }

    fn check_killable(&self) -> Result<()> {
        use std::path::Component;
        let mut parts = self.path.components().peekable();
        let below_root = parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)));
        if !below_root {
            return Err(Error::call("killing all of the root cgroup", rustix::io::Errno::PERM));
        }
        Ok(())
    }

    /// Whom [`kill_all`](Self::kill_all) kills: every process in it and below it that is not dead already.
    fn victims(&self) -> Result<Vec<i32>> {
        self.check_killable()?;
        Ok(self.processes().into_iter().filter(|pid| crate::process::is_alive(*pid)).collect())
    }

    /// Removes the cgroup and those below it; one that is not there is not an error.
    pub fn remove(&self) -> Result<()> {
        for dir in self.dirs() {
            remove_dirs(&dir)?;
        }
        Ok(())
    }

    /// Removes the cgroup alone, and leaves it when there is anything in it.
    pub fn remove_if_empty(&self) {
        for dir in self.dirs() {
            // That it is in use, or gone, is what was asked.
            let _ = fs::remove_dir(&dir);
        }
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        self.dirs().first().is_some_and(|dir| dir.is_dir())
    }

    /// Sets limits.
    pub fn set(&self, limits: &Limits) -> Result<()> {
        let writes = match self.version {
            Version::V1 => v1_writes(limits, self.current_v1_memory_limit()),
            Version::V2 => v2_writes(limits),
        };
        for Write { controller, file, value } in writes {
            write(&self.dir(controller).join(file), &value)?;
        }
        for (size, bytes) in &limits.huge_pages {
            let limit = if self.version == Version::V1 { "limit_in_bytes" } else { "max" };
            let path = self.dir("hugetlb").join(format!("hugetlb.{size}.{limit}"));
            // A kernel or a hierarchy without the controller limits none.
            if !size.contains('/') && path.exists() {
                write(&path, &bytes.to_string())?;
            }
        }
        for (file, value) in &limits.unified {
            let safe = !file.contains('/') && self.version == Version::V2;
            if safe {
                write(&self.dir("").join(file), value)?;
            }
        }
        Ok(())
    }

    fn current_v1_memory_limit(&self) -> Option<i64> {
        read(&self.dir("memory").join("memory.limit_in_bytes")).ok()?.trim().parse().ok()
    }

    /// Reads what it has used; a controller that is missing reads as zero.
    pub fn usage(&self) -> Usage {
        match self.version {
            Version::V1 => self.usage_v1(),
            Version::V2 => self.usage_v2(),
        }
    }

    fn usage_v1(&self) -> Usage {
        let memory = self.dir("memory");
        let stat = flat_keyed(&memory.join("memory.stat"));
        let get = |key: &str| stat.get(key).copied().unwrap_or(0);
        let bytes = number(&memory.join("memory.usage_in_bytes"));
        let limit = number(&memory.join("memory.limit_in_bytes"));
        Usage {
            cpu_nanos: number(&self.dir("cpuacct").join("cpuacct.usage")),
            memory_bytes: bytes,
            memory_working_set_bytes: bytes.saturating_sub(get("total_inactive_file")),
            memory_rss_bytes: get("total_rss"),
            // No limit reads as the largest page-aligned number.
            memory_limit_bytes: (limit < 1 << 62).then_some(limit),
            page_faults: get("total_pgfault"),
            major_page_faults: get("total_pgmajfault"),
            swap_bytes: get("total_swap"),
            pids: number(&self.dir("pids").join("pids.current")),
        }
    }

    fn usage_v2(&self) -> Usage {
        let dir = self.dir("");
        let stat = flat_keyed(&dir.join("memory.stat"));
        let get = |key: &str| stat.get(key).copied().unwrap_or(0);
        let bytes = number(&dir.join("memory.current"));
        Usage {
            cpu_nanos: flat_keyed(&dir.join("cpu.stat")).get("usage_usec").copied().unwrap_or(0) * 1000,
            memory_bytes: bytes,
            memory_working_set_bytes: bytes.saturating_sub(get("inactive_file")),
            memory_rss_bytes: get("anon"),
            memory_limit_bytes: read(&dir.join("memory.max")).ok().and_then(|text| text.trim().parse().ok()),
            page_faults: get("pgfault"),
            major_page_faults: get("pgmajfault"),
            swap_bytes: number(&dir.join("memory.swap.current")),
            pids: number(&dir.join("pids.current")),
        }
    }

    /// How many processes the kernel killed here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let (file, key) = match self.version {
            Version::V1 => (self.dir("memory").join("memory.oom_control"), "oom_kill"),
            Version::V2 => (self.dir("").join("memory.events"), "oom_kill"),
        };
        flat_keyed(&file).get(key).copied().unwrap_or(0)
    }

    /// A file that inotify or poll can watch for out-of-memory kills: version 2 marks `memory.events` modified.
    pub fn oom_event_file(&self) -> PathBuf {
        match self.version {
            Version::V1 => self.dir("memory").join("memory.oom_control"),
            Version::V2 => self.dir("").join("memory.events"),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Write {
    controller: &'static str,
    file: &'static str,
    value: String,
}

fn v1_writes(limits: &Limits, current_memory: Option<i64>) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut push = |controller, file, value: Option<String>| {
        if let Some(value) = value {
            writes.push(Write { controller, file, value });
        }
    };
    push("cpu", "cpu.shares", limits.cpu_shares.map(|v| v.to_string()));
    push("cpu", "cpu.cfs_period_us", limits.cpu_period.map(|v| v.to_string()));
    push("cpu", "cpu.cfs_quota_us", limits.cpu_quota.map(|v| v.to_string()));
    let memory = limits.memory_limit.map(|v| v.to_string());
    let swap = limits.memory_swap_limit.map(|v| v.to_string());
    // The limit with swap must never be below the one without, so the order depends on the direction.
    let grows = limits.memory_limit.is_some_and(|new| new < 0 || current_memory.is_some_and(|now| new > now));
    if grows {
        push("memory", "memory.memsw.limit_in_bytes", swap);
        push("memory", "memory.limit_in_bytes", memory);
    } else {
        push("memory", "memory.limit_in_bytes", memory);
        push("memory", "memory.memsw.limit_in_bytes", swap);
    }
    push("pids", "pids.max", limits.pids_limit.map(max_or));
    push("cpuset", "cpuset.cpus", limits.cpuset_cpus.clone());
    push("cpuset", "cpuset.mems", limits.cpuset_mems.clone());
    writes
}

fn v2_writes(limits: &Limits) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut push = |file, value: Option<String>| {
        if let Some(value) = value {
            writes.push(Write { controller: "", file, value });
        }
    };
    push("cpu.weight", limits.cpu_shares.map(|shares| cpu_weight(shares).to_string()));
    if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
        let quota = limits.cpu_quota.map_or_else(|| "max".to_owned(), max_or);
        push("cpu.max", Some(format!("{quota} {}", limits.cpu_period.unwrap_or(100_000))));
    }
    let swap_alone = match (limits.memory_swap_limit, limits.memory_limit) {
        (Some(swap), Some(memory)) if swap >= 0 && memory >= 0 => Some(swap.saturating_sub(memory).max(0)),
        (Some(-1), _) => Some(-1),
        _ => None,
    };
    push("memory.swap.max", swap_alone.map(max_or));
    push("memory.max", limits.memory_limit.map(max_or));
    push("pids.max", limits.pids_limit.map(max_or));
    push("cpuset.cpus", limits.cpuset_cpus.clone());
    push("cpuset.mems", limits.cpuset_mems.clone());
    writes
}

fn max_or(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// Version 1 shares (2 to 262144) as a version 2 weight (1 to 10000), linearly, as the OCI runtimes and the
/// kubelet of v1.36 both reckon for the values that pods get.
// Upstream: pkg/kubelet/cm/cgroup_manager_linux.go getCPUWeight
pub fn cpu_weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + ((shares - 2) * 9999) / 262_142
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| Error::io(path, e))
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|e| Error::io(path, e))
}

fn number(path: &Path) -> u64 {
    read(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Lines of a key and a number.
fn flat_keyed(path: &Path) -> BTreeMap<String, u64> {
    let text = read(path).unwrap_or_default();
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

fn collect_processes(dir: &Path, pids: &mut Vec<i32>) {
    let text = read(&dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_processes(&entry.path(), pids);
        }
    }
}

/// A dead process leaves its cgroup only when its parent has reaped it, of which version 1 tells nobody.
const REMOVE_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);
const REMOVE_EVERY: std::time::Duration = std::time::Duration::from_millis(1);

fn remove_dirs(dir: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_dirs(&entry.path())?;
        }
    }
    let mut waited = std::time::Duration::ZERO;
    loop {
        match fs::remove_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && waited < REMOVE_WITHIN => {
                std::thread::sleep(REMOVE_EVERY);
                waited += REMOVE_EVERY;
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io(dir, e)),
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
    }

    #[test]
    fn limits_become_files() {
        let limits = Limits {
            cpu_quota: Some(-1),
            cpu_period: Some(100_000),
            memory_limit: Some(100),
            memory_swap_limit: Some(150),
            ..Limits::default()
        };
        let files = |writes: Vec<Write>| -> Vec<String> {
            writes.into_iter().map(|w| format!("{}={}", w.file, w.value)).collect()
        };
        assert_eq!(files(v2_writes(&limits)), ["cpu.max=max 100000", "memory.swap.max=50", "memory.max=100"]);
        let shrinking = files(v1_writes(&limits, Some(200)));
        let growing = files(v1_writes(&limits, Some(50)));
        assert_eq!(shrinking[2..], ["memory.limit_in_bytes=100", "memory.memsw.limit_in_bytes=150"]);
        assert_eq!(growing[2..], ["memory.memsw.limit_in_bytes=150", "memory.limit_in_bytes=100"]);
    }

    #[test]
    fn nobody_in_the_root_is_ever_killed() {
        for root in ["/", "", "//", "/.", "/a/..", "../a"] {
            let group = Cgroup::new(Path::new(root));
            assert!(group.victims().is_err(), "{root:?} has {} processes", group.processes().len());
        }
        // One that is not there has nobody.
        let absent = Cgroup::new(Path::new("/trierarch-test-absent"));
        assert_eq!(absent.victims().unwrap(), Vec::<i32>::new());
    }

    #[test]
    fn a_cgroup_takes_a_process_and_lets_it_be_killed() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let group = Cgroup::new(Path::new(&format!("/trierarch-test-{}", std::process::id())));
        group.create().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        group.add(child.id() as i32).unwrap();
        assert_eq!(group.processes(), [child.id() as i32]);
        group.set(&Limits { cpu_shares: Some(512), pids_limit: Some(10), ..Limits::default() }).unwrap();
        assert_eq!(group.usage().pids, 1);
        group.kill_all().unwrap();
        child.wait().unwrap();
        group.remove().unwrap();
        assert!(!group.exists());
    }
}
