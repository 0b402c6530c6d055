//! Pod sandboxes: namespaces, network, shim.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use cri::v1::{IdMapping, NamespaceMode, NamespaceOption, PodSandboxConfig, UserNamespace};
use linux::cgroups::Cgroup;
use linux::namespaces::Kind;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncReadExt;

use super::{Engine, blocking, lock, new_id, write_json};
use crate::Error;
use crate::network::{self, Attachment};
use crate::shim::client::Client;
use crate::shim::protocol::{Request, Response};

/// What is kept of a sandbox on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub id: String,
    pub config: PodSandboxConfig,
    pub runtime_handler: String,
    pub created_at: i64,
    pub ready: bool,
    pub addresses: Vec<String>,
    /// What CNI plugins answered when they connected the pod.
    #[serde(default)]
    pub network: Option<Value>,
    pub pause_pid: Option<i32>,
}

/// One pod sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub id: String,
    pub dir: PathBuf,
    pub shim: Client,
    record: Mutex<Arc<Record>>,
    /// One operation at a time: the kubelet may stop and remove at once.
    pub(super) gate: tokio::sync::Mutex<()>,
}

impl Sandbox {
    pub(super) fn new(record: Record, dir: PathBuf, shim: Client) -> Self {
        Self {
            id: record.id.clone(),
            dir,
            shim,
            record: Mutex::new(Arc::new(record)),
            gate: tokio::sync::Mutex::new(()),
        }
    }

    pub(crate) fn record(&self) -> Arc<Record> {
        lock(&self.record).clone()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let record = {
            let mut record = lock(&self.record);
            change(Arc::make_mut(&mut record));
            record.clone()
        };
        write_json(&self.dir.join("sandbox.json"), &*record)
    }

    pub(crate) fn namespaces_dir(&self) -> PathBuf {
        self.dir.join("ns")
    }

    pub(crate) fn options(&self) -> NamespaceOption {
        namespace_options(&lock(&self.record).config)
    }

    /// The ids of a pod that has its own.
    pub(super) fn users(&self) -> Option<UserNamespace> {
        self.options().userns_options.filter(|users| users.mode() == NamespaceMode::Pod)
    }

    pub(super) fn has_own_network(&self) -> bool {
        self.options().network() != NamespaceMode::Node
    }

    pub(crate) fn cgroup_parent(&self, root: &Path) -> PathBuf {
        let record = lock(&self.record);
        match record.config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()) {
            Some(parent) if !parent.is_empty() => PathBuf::from(parent),
            _ => root.join(format!("pod{}", record.id)),
        }
    }
}

pub(super) fn namespace_options(config: &PodSandboxConfig) -> NamespaceOption {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security.and_then(|security| security.namespace_options.clone()).unwrap_or_default()
}

impl Engine {
    /// Makes a pod's namespaces, network and shim. Whatever fails, nothing stays behind.
    pub(crate) async fn run_sandbox(
        self: &Arc<Self>,
        config: PodSandboxConfig,
        runtime_handler: String,
    ) -> Result<String, Error> {
        if config.metadata.is_none() {
            return Err(Error::Invalid("sandbox config must include metadata".to_owned()));
        }
        if !runtime_handler.is_empty() {
            let why =
                format!("failed to get sandbox runtime: no runtime for {runtime_handler:?} is configured");
            return Err(Error::Invalid(why));
        }
        check_users(&namespace_options(&config))?;
        self.refuse_duplicate(&config)?;
        let id = new_id();
        let dir = self.config.sandboxes().join(&id);
        let record = Record {
            id: id.clone(),
            config,
            runtime_handler,
            created_at: self.now(),
            ready: false,
            addresses: Vec::new(),
            network: None,
            pause_pid: None,
        };
        let shim = Client::new(&self.config.shim_socket(&id));
        let sandbox = Arc::new(Sandbox::new(record, dir, shim));
        if let Err(error) = self.set_up(&sandbox).await {
            if let Err(left) = self.tear_down(&sandbox).await {
                tracing::warn!(sandbox = %id, error = %left, "a failed sandbox left something behind");
            }
            return Err(error);
        }
        lock(&self.pods).sandboxes.insert(id.clone(), sandbox.clone());
        self.watch_shim(sandbox);
        Ok(id)
    }

    /// Two sandboxes of one attempt at one pod would fight over its volumes and its name.
    fn refuse_duplicate(&self, config: &PodSandboxConfig) -> Result<(), Error> {
        let known =
            self.sandboxes().into_iter().find(|sandbox| sandbox.record().config.metadata == config.metadata);
        match (known, &config.metadata) {
            (Some(known), Some(metadata)) => Err(Error::Conflict(format!(
                "pod sandbox of {}/{}, attempt {}, is there already: {}",
                metadata.namespace, metadata.name, metadata.attempt, known.id
            ))),
            _ => Ok(()),
        }
    }

    async fn set_up(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        let prepared = {
            let (engine, sandbox) = (self.clone(), sandbox.clone());
            blocking(move || engine.prepare(&sandbox)).await
        };
        prepared?;
        // The shim starts while plugins connect the pod.
        let ((addresses, network), pause_pid) =
            tokio::try_join!(self.connect(sandbox), self.start_shim(sandbox))?;
        sandbox.update(|record| {
            record.addresses = addresses;
            record.network = network;
            record.pause_pid = pause_pid;
            record.ready = true;
        })
    }

    /// Files, cgroup and namespaces.
    fn prepare(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let dir = &sandbox.dir;
        for made in [dir.join("containers"), dir.join("ns"), dir.join("shm")] {
            std::fs::create_dir_all(&made).map_err(Error::io(&made))?;
        }
        sandbox.update(|_| {})?;
        let record = sandbox.record();
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            std::fs::write(&path, text).map_err(Error::io(path))
        };
        let hostname = hostname(&record.config);
        write("hostname", format!("{hostname}\n"))?;
        match &record.config.dns_config {
            Some(dns) => write("resolv.conf", network::resolv_conf(dns))?,
            None => write("resolv.conf", std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())?,
        }
        Cgroup::new(&sandbox.cgroup_parent(&self.config.cgroup_root))
            .create()
            .map_err(Error::kernel("pod cgroup"))?;
        let options = sandbox.options();
        let mut kinds = Vec::new();
        if options.network() != NamespaceMode::Node {
            kinds.extend([Kind::Net, Kind::Uts]);
        }
        if options.ipc() != NamespaceMode::Node {
            kinds.push(Kind::Ipc);
            let flags = rustix::mount::MountFlags::NOEXEC
                | rustix::mount::MountFlags::NOSUID
                | rustix::mount::MountFlags::NODEV;
            linux::mounts::mount_tmpfs(&dir.join("shm"), flags, "mode=1777,size=67108864")
                .map_err(Error::kernel("pod shared memory"))?;
        }
        if kinds.is_empty() {
            return Ok(());
        }
        let inside = InNamespaces {
            hostname: kinds.contains(&Kind::Net).then_some(hostname),
            sysctls: record.config.linux.iter().flat_map(|linux| linux.sysctls.clone()).collect(),
        };
        let at = sandbox.namespaces_dir();
        if let Some(users) = sandbox.users() {
            self.give_to(sandbox, &users)?;
            return crate::shim::users::make(&self.config.self_exe, &users, &kinds, &at, inside);
        }
        linux::namespaces::create_pinned(&kinds, &at, move || inside.set_up())
            .map_err(Error::kernel("pod namespaces"))
    }

    /// What the pod's root is to have of the pod's files.
    fn give_to(&self, sandbox: &Sandbox, users: &UserNamespace) -> Result<(), Error> {
        for name in ["hostname", "resolv.conf", "shm"] {
            let path = sandbox.dir.join(name);
            std::os::unix::fs::chown(&path, root_of(&users.uids), root_of(&users.gids))
                .map_err(Error::io(&path))?;
        }
        Ok(())
    }

    async fn connect(&self, sandbox: &Sandbox) -> Result<(Vec<String>, Option<Value>), Error> {
        if !sandbox.has_own_network() {
            return Ok(Default::default());
        }
        let current = network::current(&self.config, &self.pod_cidrs());
        let unready = |message| Error::Network { plugin: "network".to_owned(), message };
        let Some(found) = current.map_err(unready)? else { return Ok(Default::default()) };
        let record = sandbox.record();
        let netns = sandbox.namespaces_dir().join("net").display().to_string();
        let at = Attachment { sandbox: &sandbox.id, netns, pod: &record.config, result: None };
        network::add(&self.config, &found, &at).await
    }

    /// Starts the shim and waits until it listens; returns the first process of a shared pid namespace.
    pub(super) async fn start_shim(&self, sandbox: &Sandbox) -> Result<Option<i32>, Error> {
        let failed = |message: String| Error::Shim { what: "start shim", message };
        let mut command = tokio::process::Command::new(&self.config.self_exe);
        command.arg("shim").arg("--dir").arg(&sandbox.dir);
        command.arg("--socket").arg(self.config.shim_socket(&sandbox.id));
        for word in &self.config.oci_runtime {
            command.arg("--runtime").arg(word);
        }
        let shares_pids = sandbox.options().pid() == NamespaceMode::Pod;
        if shares_pids {
            command.arg("--pause").arg(&self.config.self_exe);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| failed(e.to_string()))?;
        let mut first = [0; 6];
        let mut stdout = child.stdout.take().ok_or_else(|| failed("no stdout".to_owned()))?;
        if stdout.read_exact(&mut first).await.is_err() {
            let mut words = String::new();
            if let Some(stderr) = child.stderr.take() {
                let _ = stderr.take(4096).read_to_string(&mut words).await;
            }
            return Err(failed(words.trim().to_owned()));
        }
        if !shares_pids {
            return Ok(None);
        }
        match sandbox.shim.ask(&Request::State).await {
            Ok(Response::State(state)) => Ok(state.pause_pid),
            Ok(_) => Err(failed("it answered something else".to_owned())),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Ends a pod: its containers are killed, its network is given back. Safe to repeat.
    pub(crate) async fn stop_sandbox(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let _gate = sandbox.gate.lock().await;
        self.stop_locked(&sandbox).await
    }

    async fn stop_locked(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        for container in self.containers_of(&sandbox.id) {
            self.stop_container(&container.id, 0).await?;
        }
        self.disconnect(sandbox).await?;
        if let Err(error) = sandbox.update(|record| record.ready = false) {
            // A full disk must not keep pods from making room. The next engine finds no shim or no container.
            tracing::warn!(sandbox = %sandbox.id, %error, "the end of a pod was not written down");
        }
        Ok(())
    }

    async fn disconnect(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let netns = sandbox.namespaces_dir().join("net");
        if !sandbox.has_own_network() || !netns.exists() {
            return Ok(());
        }
        if let Ok(Some(found)) = network::current(&self.config, &self.pod_cidrs()) {
            let record = sandbox.record();
            let netns = netns.display().to_string();
            let result = record.network.clone();
            let at = Attachment { sandbox: &sandbox.id, netns, pod: &record.config, result };
            network::delete(&self.config, &found, &at).await?;
        }
        linux::namespaces::unpin(&netns).map_err(Error::kernel("pod network namespace"))
    }

    /// Removes a pod with its containers. Safe to repeat.
    pub(crate) async fn remove_sandbox(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let _gate = sandbox.gate.lock().await;
        self.stop_locked(&sandbox).await?;
        for container in self.containers_of(&sandbox.id) {
            self.remove_container(&container.id).await?;
        }
        self.tear_down(&sandbox).await?;
        lock(&self.pods).sandboxes.remove(&sandbox.id);
        Ok(())
    }

    async fn tear_down(&self, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        self.disconnect(sandbox).await?;
        // One that is gone already cannot be asked; one that will not go is still at something for a former engine.
        if sandbox.shim.ask(&Request::Shutdown).await.is_err() {
            super::reset::kill_shim(&sandbox.dir)?;
        }
        if let Some(pid) = sandbox.record().pause_pid {
            super::reset::kill_pause(pid)?;
        }
        let (socket, root) = (self.config.shim_socket(&sandbox.id), self.config.cgroup_root.clone());
        let sandbox = sandbox.clone();
        blocking(move || {
            for kind in [Kind::Net, Kind::Uts, Kind::Ipc, Kind::User] {
                linux::namespaces::unpin(&sandbox.namespaces_dir().join(kind.file_name()))
                    .map_err(Error::kernel("pod namespace"))?;
            }
            let _ = std::fs::remove_file(socket);
            // A parent that the kubelet made is the kubelet's to remove.
            let parent = sandbox.cgroup_parent(&root);
            if parent.starts_with(&root) {
                Cgroup::new(&parent).remove().map_err(Error::kernel("pod cgroup"))?;
            }
            // The record goes last: without it nobody would know of the rest.
            linux::mounts::remove_tree(&sandbox.dir).map_err(Error::kernel("sandbox directory"))
        })
        .await
    }
}

/// The id on the machine of a pod's root.
pub(super) fn root_of(mappings: &[IdMapping]) -> Option<u32> {
    mappings.iter().find(|mapping| mapping.container_id == 0).map(|mapping| mapping.host_id)
}

/// A user namespace must have a root, and a network of its own, as it could do nothing with the machine's.
fn check_users(options: &NamespaceOption) -> Result<(), Error> {
    let wrong = |what: &str| Err(Error::Invalid(format!("user namespace: {what}")));
    let Some(users) = options.userns_options.as_ref() else { return Ok(()) };
    match users.mode() {
        NamespaceMode::Node => Ok(()),
        NamespaceMode::Pod if root_of(&users.uids).is_none() || root_of(&users.gids).is_none() => {
            wrong("no id is root")
        }
        NamespaceMode::Pod if options.network() == NamespaceMode::Node => {
            wrong("the pod has the network of the machine")
        }
        NamespaceMode::Pod => Ok(()),
        _ => wrong("unsupported mode"),
    }
}

/// What is set up in a pod's new namespaces.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct InNamespaces {
    /// For a pod with a network of its own, whose loopback link is brought up then.
    hostname: Option<String>,
    sysctls: BTreeMap<String, String>,
}

impl InNamespaces {
    /// To be called inside them.
    pub(crate) fn set_up(&self) -> linux::Result<()> {
        if let Some(hostname) = &self.hostname {
            rustix::system::sethostname(hostname.as_bytes())
                .map_err(|e| linux::Error::call("sethostname", e))?;
            network::loopback_up()?;
        }
        self.sysctls.iter().try_for_each(|(name, value)| set_sysctl(name, value))
    }
}

pub(super) fn hostname(config: &PodSandboxConfig) -> String {
    if config.hostname.is_empty() || namespace_options(config).network() == NamespaceMode::Node {
        return rustix::system::uname().nodename().to_string_lossy().into_owned();
    }
    config.hostname.clone()
}

/// Writes a sysctl of the namespaces that the calling thread is in.
fn set_sysctl(name: &str, value: &str) -> linux::Result<()> {
    let wrong = |_| linux::Error::call("set sysctl", rustix::io::Errno::INVAL);
    // Both spellings are allowed, net.ipv4.conf.eth0/1.forwarding and net/ipv4/conf/eth0.1/forwarding: the first
    // separator tells which it is, and in a part of the name the other one stands for it.
    let is_path = name.find(['.', '/']).is_none_or(|at| name[at..].starts_with('/'));
    let swapped = |c: char| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    let relative: String = if is_path { name.to_owned() } else { name.chars().map(swapped).collect() };
    if relative.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(linux::Error::call("set sysctl", rustix::io::Errno::INVAL));
    }
    std::fs::write(Path::new("/proc/sys").join(relative), value).map_err(wrong)
}
