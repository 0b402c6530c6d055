//! Containers: created from an image, started, stopped, removed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri::v1::{
    ContainerConfig, ContainerEventType, LinuxContainerResources, LinuxContainerSecurityContext,
    NamespaceMode, SupplementalGroupsPolicy, security_profile::ProfileType,
};
use linux::cgroups::{Cgroup, Limits};
use linux::id_maps::{mount_overlay_for_users, open_namespace};
use linux::mounts::{Overlay, mount_overlay};
use linux::namespaces::Kind;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::sandbox::{Sandbox, hostname, root_of};
use super::{Engine, blocking, facts, lock, new_id, write_json};
use crate::Error;
use crate::images::ImageInfo;
use crate::runtime::cdi;
use crate::runtime::spec::{self, Facts, HostDevice};
use crate::runtime::user::{self, User, Wanted};
use crate::shim::protocol::{Create, Request, Response};

/// What is kept of a container on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub id: String,
    pub sandbox: String,
    pub config: ContainerConfig,
    pub image_id: String,
    pub image_ref: String,
    pub created_at: i64,
    pub cgroup: PathBuf,
    pub diff_ids: Vec<String>,
    pub log_path: String,
    pub stop_signal: i32,
    pub user: User,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ContainerPhase {
    pub pid: i32,
    pub started_at: i64,
    pub exit: Option<Exited>,
    pub resources: LinuxContainerResources,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exited {
    pub code: i32,
    pub finished_at: i64,
    pub reason: String,
    pub message: String,
}

/// One container.
#[derive(Debug)]
pub(crate) struct Container {
    pub id: String,
    pub record: Record,
    pub dir: PathBuf,
    phase: watch::Sender<ContainerPhase>,
    gate: tokio::sync::Mutex<()>,
}

impl Container {
    pub(super) fn new(record: Record, dir: PathBuf) -> Self {
        let linux = record.config.linux.clone().unwrap_or_default();
        let resources = linux.resources.unwrap_or_default();
        let phase = ContainerPhase { pid: 0, started_at: 0, exit: None, resources };
        Self {
            id: record.id.clone(),
            record,
            dir,
            phase: watch::channel(phase).0,
            gate: tokio::sync::Mutex::new(()),
        }
    }

    pub(crate) fn phase(&self) -> ContainerPhase {
        self.phase.borrow().clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut ContainerPhase)) {
        self.phase.send_modify(change);
    }

    pub(crate) fn is_running(&self) -> bool {
        let phase = self.phase.borrow();
        phase.exit.is_none() && phase.started_at != 0
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) -> Exited {
        let mut phases = self.phase.subscribe();
        loop {
            if let Some(exit) = &phases.borrow_and_update().exit {
                return exit.clone();
            }
            // The sender lives as long as the container, which is borrowed here.
            let _ = phases.changed().await;
        }
    }

    pub(crate) fn cgroup(&self) -> Cgroup {
        Cgroup::new(&self.record.cgroup)
    }

    pub(crate) fn writable_layer(&self, root: &Path) -> PathBuf {
        root.join("containers").join(&self.id)
    }
}

fn security(config: &ContainerConfig) -> LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// Network, IPC and users are the pod's to choose: a container has those of its sandbox.
fn share_with_pod(config: &mut ContainerConfig, pod: &cri::v1::NamespaceOption) {
    let linux = config.linux.get_or_insert_default();
    let options =
        linux.security_context.get_or_insert_default().namespace_options.get_or_insert_with(|| pod.clone());
    options.network = pod.network;
    options.ipc = pod.ipc;
    options.userns_options.clone_from(&pod.userns_options);
}

impl Engine {
    /// Creates a container in a sandbox: its root filesystem and its description, not yet a process.
    pub(crate) async fn create_container(
        self: &Arc<Self>,
        sandbox: &str,
        config: ContainerConfig,
    ) -> Result<String, Error> {
        let sandbox = self.sandbox(sandbox)?;
        if !sandbox.record().ready {
            return Err(Error::Conflict(format!("sandbox {} is not running", sandbox.id)));
        }
        let metadata =
            config.metadata.clone().ok_or_else(|| Error::Invalid("container has no metadata".to_owned()))?;
        let wanted = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        let image = self.images.find(&wanted).ok_or(crate::images::Error::NotFound(wanted))?;
        let taken = |known: &Arc<Container>| known.record.config.metadata.as_ref() == Some(&metadata);
        if let Some(known) = self.containers_of(&sandbox.id).iter().find(|known| taken(known)) {
            return Err(Error::Conflict(format!("container {} has this name and attempt already", known.id)));
        }
        let container = {
            let (engine, sandbox) = (self.clone(), sandbox.clone());
            blocking(move || engine.lay_out(&sandbox, config, &image)).await?
        };
        let container = Arc::new(container);
        lock(&self.pods).containers.insert(container.id.clone(), container.clone());
        self.publish(&container, ContainerEventType::ContainerCreatedEvent);
        Ok(container.id.clone())
    }

    /// A short path for the socket over which a terminal is handed over.
    pub(super) fn console_socket(&self, id: &str) -> String {
        self.config.state.join("s").join(format!("c{}.sock", &id[..id.len().min(16)])).display().to_string()
    }

    /// Everything of a container that is files: its root filesystem, its description. Takes it back if it fails.
    fn lay_out(
        &self,
        sandbox: &Sandbox,
        config: ContainerConfig,
        image: &ImageInfo,
    ) -> Result<Container, Error> {
        let id = new_id();
        let dir = sandbox.dir.join("containers").join(&id);
        let writable = self.config.root.join("containers").join(&id);
        let done = self.lay_out_in(sandbox, &id, &dir, config, image);
        if done.is_err() {
            for left in [&dir, &writable] {
                if let Err(error) = linux::mounts::remove_tree(left) {
                    tracing::warn!(path = %left.display(), %error, "a failed container left something behind");
                }
            }
        }
        done
    }

    fn lay_out_in(
        &self,
        sandbox: &Sandbox,
        id: &str,
        dir: &Path,
        mut config: ContainerConfig,
        image: &ImageInfo,
    ) -> Result<Container, Error> {
        let rootfs = dir.join("rootfs");
        let writable = self.config.root.join("containers").join(id);
        let (upper, work) = (writable.join("upper"), writable.join("work"));
        for made in [&rootfs, &upper, &work] {
            std::fs::create_dir_all(made).map_err(Error::io(made))?;
        }
        let mut lowers = self.images.layers(&image.id)?;
        if lowers.is_empty() {
            let empty = writable.join("empty");
            std::fs::create_dir_all(&empty).map_err(Error::io(&empty))?;
            lowers.push(empty);
        }
        let overlay = Overlay { lowers: &lowers, upper: Some(&upper), work: Some(&work) };
        match sandbox.users() {
            Some(users) => self.mount_for_users(sandbox, &users, &overlay, &dir.join("layers"), &rootfs)?,
            None => mount_overlay(&overlay, &rootfs).map_err(Error::kernel("root filesystem"))?,
        }
        share_with_pod(&mut config, &sandbox.options());
        let security = security(&config);
        let user = container_user(&security, image, &rootfs)?;
        for (index, mount) in config.mounts.iter_mut().enumerate() {
            match mount.image.clone().filter(|image| !image.image.is_empty()) {
                Some(image) => self.mount_image(dir, index, &image, mount)?,
                None => prepare_source(Path::new(&mount.host_path))?,
            }
        }
        let pod = sandbox.record();
        let log_path = log_path(&pod.config.log_directory, &config.log_path);
        let record = Record {
            id: id.to_owned(),
            sandbox: sandbox.id.clone(),
            image_id: image.id.clone(),
            image_ref: image.repo_digests.first().unwrap_or(&image.id).clone(),
            created_at: self.now(),
            cgroup: sandbox.cgroup_parent(&self.config.cgroup_root).join(id),
            diff_ids: image.diff_ids.clone(),
            log_path,
            stop_signal: image.run.stop_signal.as_deref().and_then(signal_number).unwrap_or(libc_term()),
            user,
            config,
        };
        let facts = self.facts_for(sandbox, &record, &security, rootfs)?;
        let mut spec =
            spec::build(&record.config, &image.run, &record.user, &facts).map_err(Error::Invalid)?;
        let devices: Vec<String> =
            record.config.cdi_devices.iter().map(|device| device.name.clone()).collect();
        cdi::inject(&mut spec, &devices, &self.config.cdi_dirs).map_err(Error::Invalid)?;
        write_json(&dir.join("config.json"), &spec)?;
        write_json(&dir.join("container.json"), &record)?;
        Ok(Container::new(record, dir.to_path_buf()))
    }

    /// The layers show the ids of the pod's own user namespace, and what is written belongs to them.
    fn mount_for_users(
        &self,
        sandbox: &Sandbox,
        users: &cri::v1::UserNamespace,
        overlay: &Overlay<'_>,
        scratch: &Path,
        rootfs: &Path,
    ) -> Result<(), Error> {
        if let Some(upper) = overlay.upper {
            std::os::unix::fs::chown(upper, root_of(&users.uids), root_of(&users.gids))
                .map_err(Error::io(upper))?;
        }
        let namespace = sandbox.namespaces_dir().join(Kind::User.file_name());
        let namespace = open_namespace(&namespace).map_err(Error::kernel("user namespace"))?;
        mount_overlay_for_users(overlay, &namespace, scratch, rootfs)
            .map_err(Error::kernel("root filesystem with the ids of a user namespace"))
    }

    /// Mounts an image, whose files are the mount's source, beside the container's root filesystem.
    fn mount_image(
        &self,
        dir: &Path,
        index: usize,
        wanted: &cri::v1::ImageSpec,
        mount: &mut cri::v1::Mount,
    ) -> Result<(), Error> {
        let missing = || crate::images::Error::NotFound(wanted.image.clone());
        let image = self.images.find(&wanted.image).ok_or_else(missing)?;
        let place = dir.join("images").join(index.to_string());
        let (root, empty) = (place.join("root"), place.join("empty"));
        for made in [&root, &empty] {
            std::fs::create_dir_all(made).map_err(Error::io(made))?;
        }
        let mut lowers = self.images.layers(&image.id)?;
        // An overlay that is only read takes two layers at least.
        lowers.push(empty.clone());
        if lowers.len() < 2 {
            // It has no layers at all.
            lowers = vec![empty.clone(), root.clone()];
        }
        mount_overlay(&Overlay { lowers: &lowers, upper: None, work: None }, &root)
            .map_err(Error::kernel("image volume"))?;
        let part =
            wanted.annotations.get(cri::IMAGE_SUB_PATH).map_or("", |part| part.trim_start_matches('/'));
        let part = if part.is_empty() { "." } else { part };
        let found = linux::beneath::Root::open(&root)
            .and_then(|root| root.open_as_root(Path::new(part), rustix::fs::OFlags::PATH))
            .and_then(|part| linux::beneath::path_of(&part))
            .map_err(|_| Error::Invalid(format!("failed to mount image volume: {part:?} is not in it")))?;
        mount.host_path = found.display().to_string();
        mount.readonly = true;
        Ok(())
    }

    fn facts_for(
        &self,
        sandbox: &Sandbox,
        record: &Record,
        security: &LinuxContainerSecurityContext,
        rootfs: PathBuf,
    ) -> Result<Facts, Error> {
        let options = security.namespace_options.clone().unwrap_or_default();
        let pid_namespace_of = match options.pid() {
            NamespaceMode::Pod => sandbox.record().pause_pid,
            NamespaceMode::Target => Some(self.container(&options.target_id)?.phase().pid),
            _ => None,
        };
        let mut host_devices: Vec<HostDevice> = Vec::new();
        if security.privileged {
            host_devices = facts::devices_below(Path::new("/dev"), "/dev", "rwm");
        }
        for wanted in &record.config.devices {
            let found = facts::devices_below(
                Path::new(&wanted.host_path),
                &wanted.container_path,
                &wanted.permissions,
            );
            if found.is_empty() {
                return Err(Error::Invalid(format!("{:?} is not a device", wanted.host_path)));
            }
            host_devices.retain(|known| found.iter().all(|new| new.path != known.path));
            host_devices.extend(found);
        }
        let own_network = options.network() != NamespaceMode::Node;
        Ok(Facts {
            rootfs,
            cgroup: record.cgroup.clone(),
            namespaces: sandbox.namespaces_dir(),
            pid_namespace_of,
            resolv_conf: Some(sandbox.dir.join("resolv.conf")),
            hostname_file: Some(sandbox.dir.join("hostname")),
            shm: (options.ipc() != NamespaceMode::Node).then(|| sandbox.dir.join("shm")),
            all_capabilities: self.facts.capabilities.clone(),
            cgroup_v2: self.facts.cgroup_v2,
            cgroup_mounts: self.facts.cgroup_mounts.clone(),
            host_devices,
            localhost_seccomp: self.localhost_seccomp(security),
            hostname: if own_network {
                hostname(&sandbox.record().config)
            } else {
                hostname(&Default::default())
            },
        })
    }

    fn localhost_seccomp(&self, security: &LinuxContainerSecurityContext) -> Option<serde_json::Value> {
        let profile = security.seccomp.as_ref().filter(|p| p.profile_type() == ProfileType::Localhost)?;
        super::read_json(&self.config.seccomp_dir.join(&profile.localhost_ref))
    }

    /// Starts what was created.
    pub(crate) async fn start_container(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let container = self.container(id)?;
        let _gate = container.gate.lock().await;
        let phase = container.phase();
        if phase.exit.is_some() || phase.started_at != 0 {
            return Err(Error::Conflict(format!("container {id} is not in created state")));
        }
        let sandbox = self.sandbox(&container.record.sandbox)?;
        if let Err(why) = self.make_process(&sandbox, &container).await {
            self.ended(&container, 128, self.now(), "StartError", &why);
            return Err(Error::Start { id: id.to_owned(), why });
        }
        // Said before it runs, so that an exit that is faster than the answer finds a started container.
        container.change(|phase| phase.started_at = self.now());
        if let Err(error) = sandbox.shim.ask(&Request::Start { id: container.id.clone() }).await {
            let why = format!("failed to start task: OCI runtime start failed: {error}");
            self.ended(&container, 128, self.now(), "StartError", &why);
            let _ = sandbox.shim.ask(&kill_request(&container.id, 9)).await;
            return Err(Error::Start { id: id.to_owned(), why });
        }
        self.publish(&container, ContainerEventType::ContainerStartedEvent);
        Ok(())
    }

    /// Makes the process that becomes the container's program. A missing program is found here, so that the
    /// failure is one of the start, as it is with containerd.
    async fn make_process(&self, sandbox: &Sandbox, container: &Container) -> Result<(), String> {
        if container.phase().pid != 0 {
            // An engine that was killed before it could start the container has made it.
            return Ok(());
        }
        let config = &container.record.config;
        let create = Create {
            id: container.id.clone(),
            terminal: config.tty,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            log_path: container.record.log_path.clone(),
            console_socket: self.console_socket(&container.id),
        };
        match sandbox.shim.ask(&Request::Create(create)).await {
            Ok(Response::Created { pid }) => {
                container.change(|phase| phase.pid = pid);
                Ok(())
            }
            Ok(_) => Err("failed to create task: an unexpected answer".to_owned()),
            Err(error) => Err(format!("failed to create task: OCI runtime create failed: {error}")),
        }
    }

    /// Stops a container: its stop signal, and after the timeout the one that nobody survives. Safe to repeat.
    pub(crate) async fn stop_container(
        self: &Arc<Self>,
        id: &str,
        timeout_seconds: i64,
    ) -> Result<(), Error> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        if container.phase().pid == 0 {
            // It was never started, unless that happens just now.
            drop(container.gate.lock().await);
        }
        if container.phase().pid == 0 || container.phase().exit.is_some() {
            return Ok(());
        }
        let sandbox = self.sandbox(&container.record.sandbox)?;
        let send = async |signal: i32| -> Result<(), Error> {
            match sandbox.shim.ask(&kill_request(&container.id, signal)).await {
                Ok(_) => Ok(()),
                // Without a shim its watcher books the end; the cgroup is what is left to kill by.
                Err(_) => container.cgroup().kill_all().map_err(Error::kernel("kill container")),
            }
        };
        if timeout_seconds > 0 && container.is_running() {
            send(container.record.stop_signal).await?;
            let patience = Duration::from_secs(timeout_seconds.unsigned_abs());
            if tokio::time::timeout(patience, container.ended()).await.is_ok() {
                return Ok(());
            }
        }
        send(9).await?;
        const KILLED_WITHIN: Duration = Duration::from_secs(120);
        tokio::time::timeout(KILLED_WITHIN, container.ended())
            .await
            .map(|_| ())
            .map_err(|_| Error::Deadline(format!("container {id} survives SIGKILL")))
    }

    /// Removes a container, killing it if it runs. Safe to repeat.
    pub(crate) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        self.stop_container(&container.id, 0).await?;
        let _gate = container.gate.lock().await;
        if let Ok(sandbox) = self.sandbox(&container.record.sandbox) {
            // A shim that is gone has forgotten already.
            let _ = sandbox.shim.ask(&Request::Forget { id: container.id.clone() }).await;
        }
        self.clear_away(&container).await?;
        lock(&self.pods).containers.remove(&container.id);
        lock(&self.usage).remove(&container.id);
        self.publish(&container, ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    async fn clear_away(&self, container: &Arc<Container>) -> Result<(), Error> {
        let writable = container.writable_layer(&self.config.root);
        let container = container.clone();
        blocking(move || {
            let group = container.cgroup();
            group.kill_all().map_err(Error::kernel("kill container"))?;
            group.remove().map_err(Error::kernel("container cgroup"))?;
            let pods_state =
                container.dir.parent().and_then(Path::parent).map(|dir| dir.join("oci").join(&container.id));
            if let Some(state) = pods_state {
                linux::mounts::remove_tree(&state).map_err(Error::kernel("runtime state"))?;
            }
            linux::mounts::remove_tree(&container.dir).map_err(Error::kernel("container directory"))?;
            linux::mounts::remove_tree(&writable).map_err(Error::kernel("writable layer"))
        })
        .await
    }

    /// Books the end of a container and tells who waits for it.
    pub(super) fn ended(
        &self,
        container: &Container,
        code: i32,
        finished_at: i64,
        reason: &str,
        message: &str,
    ) {
        if container.phase().exit.is_some() {
            return;
        }
        let exit = Exited { code, finished_at, reason: reason.to_owned(), message: message.to_owned() };
        // Kept for the next engine, which cannot ask the cgroup once it is removed; the shim has the code.
        if let Err(error) = write_json(&container.dir.join("ended.json"), &exit) {
            tracing::warn!(container = %container.id, %error, "the end of a container was not written down");
        }
        container.change(|phase| phase.exit = Some(exit));
        self.publish(container, ContainerEventType::ContainerStoppedEvent);
    }

    /// Changes the limits of a container that runs.
    pub(crate) async fn update_resources(
        &self,
        id: &str,
        wanted: LinuxContainerResources,
    ) -> Result<(), Error> {
        let container = self.container(id)?;
        let _gate = container.gate.lock().await;
        if container.phase().exit.is_some() {
            return Err(Error::Conflict(format!("container {id} is not running")));
        }
        let (group, limits) = (container.cgroup(), limits(&wanted));
        blocking(move || {
            refuse_starvation(&limits, &group.usage())?;
            group.set(&limits).map_err(Error::kernel("set limits"))
        })
        .await?;
        container.change(|phase| merge(&mut phase.resources, &wanted));
        write_json(&container.dir.join("resources.json"), &container.phase().resources)
    }

    pub(crate) async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let container = self.container(id)?;
        if !container.is_running() {
            return Err(Error::Conflict(format!("container {id} is not running")));
        }
        let sandbox = self.sandbox(&container.record.sandbox)?;
        let asked = sandbox.shim.ask(&Request::ReopenLog { id: container.id.clone() }).await;
        asked.map(|_| ()).map_err(|e| Error::Shim { what: "reopen log", message: e.to_string() })
    }
}

/// A missing source of a bind mount is made as a directory, as containerd does.
fn prepare_source(source: &Path) -> Result<(), Error> {
    match std::fs::symlink_metadata(source) {
        Ok(_) => Ok(()),
        Err(_) => std::fs::create_dir_all(source).map_err(Error::io(source)),
    }
}

fn kill_request(id: &str, signal: i32) -> Request {
    Request::Kill { id: id.to_owned(), exec: None, signal }
}

fn libc_term() -> i32 {
    15
}

fn log_path(directory: &str, path: &str) -> String {
    if directory.is_empty() || path.is_empty() {
        return String::new();
    }
    Path::new(directory).join(path).display().to_string()
}

fn container_user(
    security: &LinuxContainerSecurityContext,
    image: &ImageInfo,
    rootfs: &Path,
) -> Result<User, Error> {
    let wanted = Wanted {
        uid: security.run_as_user.as_ref().map(|id| id.value),
        gid: security.run_as_group.as_ref().map(|id| id.value),
        username: &security.run_as_username,
        image: &image.run.user,
        supplemental: &security.supplemental_groups,
        merge_image_groups: security.supplemental_groups_policy() == SupplementalGroupsPolicy::Merge,
    };
    let (passwd, group) = user::account_files(rootfs);
    user::resolve(&wanted, &passwd, &group).map_err(Error::Invalid)
}

fn limits(wanted: &LinuxContainerResources) -> Limits {
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    Limits {
        cpu_shares: positive(wanted.cpu_shares),
        cpu_quota: (wanted.cpu_quota != 0).then_some(wanted.cpu_quota),
        cpu_period: positive(wanted.cpu_period),
        memory_limit: (wanted.memory_limit_in_bytes != 0).then_some(wanted.memory_limit_in_bytes),
        memory_swap_limit: (wanted.memory_swap_limit_in_bytes != 0)
            .then_some(wanted.memory_swap_limit_in_bytes),
        pids_limit: None,
        cpuset_cpus: text(&wanted.cpuset_cpus),
        cpuset_mems: text(&wanted.cpuset_mems),
        huge_pages: wanted.hugepage_limits.iter().map(|page| (page.page_size.clone(), page.limit)).collect(),
        unified: wanted.unified.clone().into_iter().collect(),
    }
}

/// A limit below what is in use would have the kernel kill the container at once.
fn refuse_starvation(limits: &Limits, usage: &linux::cgroups::Usage) -> Result<(), Error> {
    let wanted = limits.memory_limit.and_then(|limit| u64::try_from(limit).ok());
    let lowered = wanted.filter(|wanted| usage.memory_limit_bytes.is_none_or(|now| *wanted < now));
    match lowered.filter(|wanted| *wanted < usage.memory_bytes) {
        Some(wanted) => Err(Error::Conflict(format!(
            "attempting to set a memory limit ({wanted}) below current usage ({})",
            usage.memory_bytes
        ))),
        None => Ok(()),
    }
}

/// What an update does not name stays.
fn merge(known: &mut LinuxContainerResources, new: &LinuxContainerResources) {
    let number = |known: &mut i64, new: i64| {
        if new != 0 {
            *known = new;
        }
    };
    number(&mut known.cpu_shares, new.cpu_shares);
    number(&mut known.cpu_quota, new.cpu_quota);
    number(&mut known.cpu_period, new.cpu_period);
    number(&mut known.memory_limit_in_bytes, new.memory_limit_in_bytes);
    number(&mut known.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes);
    number(&mut known.oom_score_adj, new.oom_score_adj);
    for (known, new) in
        [(&mut known.cpuset_cpus, &new.cpuset_cpus), (&mut known.cpuset_mems, &new.cpuset_mems)]
    {
        if !new.is_empty() {
            known.clone_from(new);
        }
    }
    known.unified.extend(new.unified.clone());
}

/// A signal by name or number, as images write it: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
pub(crate) fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    const REAL_TIME_MIN: i32 = 34;
    const REAL_TIME_MAX: i32 = 64;
    let upper = name.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=REAL_TIME_MAX).contains(&number).then_some(number);
    }
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |rest: &str, base: i32| match rest {
        "" => Some(base),
        offset => {
            Some(base + offset.parse::<i32>().ok()?).filter(|n| (REAL_TIME_MIN..=REAL_TIME_MAX).contains(n))
        }
    };
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        return real_time(rest, REAL_TIME_MIN);
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        return real_time(rest, REAL_TIME_MAX);
    }
    NAMES.iter().position(|known| *known == bare).and_then(|at| i32::try_from(at + 1).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_spellings() {
        for (name, number) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGNOPE", None),
            ("0", None),
        ] {
            assert_eq!(signal_number(name), number, "{name}");
        }
    }

    #[test]
    fn an_update_changes_only_what_it_names() {
        let mut known = LinuxContainerResources { cpu_shares: 10, cpu_quota: 20, ..Default::default() };
        merge(&mut known, &LinuxContainerResources { cpu_quota: 30, ..Default::default() });
        assert_eq!((known.cpu_shares, known.cpu_quota), (10, 30));
    }
}
