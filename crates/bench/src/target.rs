//! A server to measure: one that runs already, or one that is started for it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::Method;
use serde_json::json;
use tempfile::TempDir;

use crate::wire::{Address, Ask};
use crate::{Encoding, work};

const READY: &str = "the API is ready";
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Target {
    pub name: String,
    pub address: Address,
    /// The server's process and those of its store.
    pids: Vec<u32>,
    pub started: Option<Started>,
    /// How many names were given out.
    numbers: std::cell::Cell<usize>,
}

/// What of the control plane a server of our own is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    ApiServer,
    /// All of it, in one process.
    ControlPlane,
    /// The same for nodes without kubelets, which nobody is to take for lost.
    WithoutKubelets,
}

impl Parts {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Parts::ApiServer => &["apiserver", "--advertise-address=127.0.0.1"],
            Parts::ControlPlane => &["server", "--no-node", "--node-ip=127.0.0.1"],
            Parts::WithoutKubelets => {
                &["server", "--no-node", "--node-ip=127.0.0.1", "--controllers=*,-node-lifecycle-controller"]
            }
        }
    }
}

/// A server of our own.
pub struct Started {
    binary: PathBuf,
    parts: Parts,
    folder: TempDir,
    port: u16,
    child: Option<Child>,
    pub time_to_ready: Duration,
}

impl Target {
    pub async fn of_kubeconfig(file: &Path) -> anyhow::Result<Self> {
        let config = client::kubeconfig::Kubeconfig::read(file)?.config(None)?;
        let address = Address::new(&config)?;
        let pids = listener(address.port()).into_iter().collect();
        let name = file.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        Ok(Target { name, address, pids, started: None, numbers: Default::default() })
    }

    pub fn count_also(&mut self, pids: &[u32]) {
        self.pids.extend(pids);
    }

    pub async fn start(binary: &Path, data: Option<&Path>, parts: Parts) -> anyhow::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("trierarch-bench-");
        let folder = match data {
            Some(data) => builder.tempdir_in(data),
            None => builder.tempdir(),
        };
        let folder = folder.context("cannot make a data directory")?;
        // Free now, and nobody else on this machine is likely to take it in the next moment.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let binary = binary.to_owned();
        let mut started = Started { binary, parts, folder, port, child: None, time_to_ready: Duration::ZERO };
        let pid = started.run()?;
        let config = client::kubeconfig::Kubeconfig::read(&started.folder.path().join("admin.kubeconfig"))?
            .config(None)?;
        let address = Address::new(&config)?;
        Ok(Target {
            name: "trierarch".into(),
            address,
            pids: vec![pid],
            started: Some(started),
            numbers: Default::default(),
        })
    }

    /// Stops the server and starts it again on the same data.
    pub fn restart(&mut self) -> anyhow::Result<Option<Duration>> {
        let Some(started) = &mut self.started else { return Ok(None) };
        started.stop();
        self.pids = vec![started.run()?];
        Ok(Some(started.time_to_ready))
    }

    /// What the server and its store have in memory now.
    pub fn resident_bytes(&self) -> u64 {
        resident_bytes_of(&self.pids)
    }

    /// The processor time of the server and its store so far.
    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds_of(&self.pids)
    }

    /// The data directory of a server of our own.
    pub fn folder(&self) -> Option<&Path> {
        self.started.as_ref().map(|started| started.folder.path())
    }

    /// The first of so many numbers for names that are not in use.
    pub fn next_number(&self, count: usize) -> usize {
        self.numbers.replace(self.numbers.get() + count)
    }

    /// Makes a namespace in which pods can be created.
    pub async fn namespace(&self, name: &str) -> anyhow::Result<()> {
        let mut lane = self.address.lane().await?;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        // Controllers may not run here, or not yet: what they would make is made here.
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        let accounts = format!("/api/v1/namespaces/{name}/serviceaccounts");
        for (path, object) in [("/api/v1/namespaces", namespace), (accounts.as_str(), account)] {
            let body = Bytes::from(object.to_string());
            let (status, _) = lane.count(Ask::send(Method::POST, path, Encoding::Json, body)).await?;
            if !status.is_success() && status != http::StatusCode::CONFLICT {
                bail!("POST {path}: {status}");
            }
        }
        Ok(())
    }

    pub async fn empty(&self, namespace: &str) -> anyhow::Result<()> {
        let path = format!("{}?gracePeriodSeconds=0", work::pods(namespace));
        let ask = Ask::send(Method::DELETE, &path, Encoding::Json, Bytes::new());
        self.address.lane().await?.read(ask).await?;
        Ok(())
    }
}

impl Started {
    fn run(&mut self) -> anyhow::Result<u32> {
        let begun = Instant::now();
        let mut command = Command::new(&self.binary);
        command.args(self.parts.arguments());
        command.arg("--bind-address=127.0.0.1");
        command.arg(format!("--secure-port={}", self.port)).arg("--data-dir").arg(self.folder.path());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {}", self.binary.display()))?;
        let mut log = BufReader::new(child.stderr.take().context("standard error is piped")?).lines();
        let mut said = Vec::new();
        loop {
            let Some(line) = log.next().transpose()? else {
                child.wait()?;
                bail!("the server ended before it was ready:\n{}", said.join("\n"));
            };
            if line.contains(READY) {
                break;
            }
            said.push(line);
            if begun.elapsed() > PATIENCE {
                child.kill()?;
                bail!("the server was not ready within {} s", PATIENCE.as_secs());
            }
        }
        self.time_to_ready = begun.elapsed();
        // What it says later must not fill the pipe.
        std::thread::spawn(move || log.map_while(Result::ok).for_each(drop));
        let pid = child.id();
        self.child = Some(child);
        Ok(pid)
    }

    fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let terminated = Command::new("kill").arg(child.id().to_string()).status();
        if terminated.is_ok_and(|status| status.success()) {
            let _ = child.wait();
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What these processes have in memory now.
pub fn resident_bytes_of(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|pid| resident_bytes(*pid)).sum()
}

/// The processor time of these processes so far.
pub fn cpu_seconds_of(pids: &[u32]) -> f64 {
    let ticks: u64 = pids.iter().filter_map(|pid| cpu_ticks(*pid)).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

fn cpu_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces; what follows it does not.
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(ticks()? + ticks()?)
}

/// The process of this machine that listens on a port, if it is one that we may look at.
fn listener(port: u16) -> Option<u32> {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    let mut inodes = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in std::fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.len() > 9 && fields[1].ends_with(&suffix) && fields[3] == LISTEN {
                inodes.push(format!("socket:[{}]", fields[9]));
            }
        }
    }
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    processes.filter_map(|p| p.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().filter_map(Result::ok);
        files
            .filter_map(|file| std::fs::read_link(file.path()).ok())
            .any(|link| inodes.iter().any(|inode| link.as_os_str() == inode.as_str()))
    })
}
