//! Making a pod's sandbox and starting its containers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::Object;
use api::core::v1::{Container, Secret};
use cri::v1 as pb;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Worker, mounts};
use crate::actions::{KillReason, Plan};
use crate::backoff::go_duration;
use crate::container::config::{self, ContainerFacts, SandboxFacts};
use crate::container::security::Profiles;
use crate::container::{dns, env, security};
use crate::events::PodEvents;
use crate::images::Image;
use crate::pod::{self, ContainerKind};
use crate::pod_state::{self, ContainerRecord, PodState, State};
use crate::runtime::describe;
use crate::status::{Verdict, Waiting};
use crate::volumes::{self, Mounted};
use crate::{cgroup, lifecycle, restart_all};

/// How long a pod waits for volumes that its node has no room for.
// Upstream: pkg/kubelet/volumemanager/volume_manager.go podAttachAndMountTimeout
const VOLUMES_TIMEOUT: Duration = Duration::from_secs(123);

pub type MountedVolumes = BTreeMap<String, Mounted>;

impl Worker {
    /// Makes directories, cgroup and volumes be there. Volumes are also refreshed by this.
    pub(super) async fn prepare(&mut self, state: &PodState) -> Result<MountedVolumes, ()> {
        let core = self.core.clone();
        let fresh = state.is_empty();
        let dir = core.paths.pod(self.pod.uid());
        let logs = core.paths.pod_logs(&self.pod);
        let made = std::fs::create_dir_all(&dir).and_then(|()| std::fs::create_dir_all(logs));
        if let Err(error) = made {
            self.event(true, "Failed", &format!("error making pod data directories: {error}"));
            return Err(());
        }
        if (fresh || state.running().next().is_none())
            && let Err(error) = cgroup::create(&core.config, &core.machine, &self.pod)
        {
            let why = with_causes(&error);
            self.event(
                true,
                "FailedCreatePodContainer",
                &format!("unable to ensure pod container exists: {why}"),
            );
            return Err(());
        }
        if state.running().next().is_none() {
            self.resize.of_cgroup = Some(config::pod_resources(&self.pod));
        }
        let around = core.surroundings(&self.pod, state);
        let node = core.node();
        let outcome = tokio::select! {
            outcome = core.volumes.setup(&self.pod, &around, node.as_deref()) => outcome,
            // A driver that hangs does not keep the pod from being deleted.
            () = self.ending() => return Err(()),
        };
        match outcome {
            Ok(mounted) => {
                self.volumes_awaited = None;
                if let Some(at) = core.volumes.next_refresh(self.pod.uid()) {
                    let left = Duration::try_from(at.duration_since(core.config.clock.now()));
                    self.look_again(left.unwrap_or(Duration::from_secs(60)).max(Duration::from_secs(1)));
                }
                Ok(mounted)
            }
            Err(failed) => {
                let exhausted = volumes::exhausted(&failed);
                for (volume, error) in failed {
                    match error.event(&volume) {
                        Some((reason, message)) => self.event(true, reason, &message),
                        None => {
                            tracing::debug!(pod = self.pod.name(), volume, %error, "a volume is waited for")
                        }
                    }
                }
                self.check_room(exhausted);
                Err(())
            }
        }
    }

    /// A pod whose volumes the node has no room for is given up after a while.
    fn check_room(&mut self, exhausted: Option<String>) {
        let since = *self.volumes_awaited.get_or_insert_with(Instant::now);
        let Some(message) = exhausted.filter(|_| since.elapsed() >= VOLUMES_TIMEOUT) else { return };
        let reason = "VolumeAttachmentLimitExceeded";
        self.event(true, reason, &message);
        self.verdict = Some(Verdict { reason: reason.to_owned(), message, ..Default::default() });
    }

    /// Stops what lived in a sandbox that cannot be used any more.
    pub(super) async fn leave_sandbox(&mut self, plan: &Plan, state: &PodState) -> Result<(), ()> {
        if !state.sandboxes.is_empty() {
            self.event(false, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.");
        }
        for record in state.running() {
            self.kill(record, "", KillReason::Other, None).await.map_err(drop)?;
        }
        for sandbox in &state.sandboxes {
            self.core.runtime.stop_sandbox(&sandbox.id).await.map_err(drop)?;
        }
        if plan.create_sandbox {
            // What initialised the old sandbox says nothing of the new one.
            let names: Vec<&str> = pod::init_containers(&self.pod).iter().map(|c| c.name.as_str()).collect();
            for record in state.containers.iter().filter(|c| names.contains(&c.name.as_str())) {
                self.quietly(self.core.runtime.remove_container(&record.id).await);
            }
        }
        Ok(())
    }

    pub(super) async fn start_all(
        &mut self,
        plan: &Plan,
        state: &PodState,
        volumes: MountedVolumes,
    ) -> Result<(), ()> {
        let pod = self.pod.clone();
        if !self.core.network_ready.load(Ordering::Relaxed) && !pod::host_network(&pod) {
            let message = "network is not ready: container runtime network not ready: NetworkReady=false";
            self.event(true, "NetworkNotReady", message);
            return Err(());
        }
        let failed = |why: String| {
            self.event(true, "FailedCreatePodSandBox", &format!("Failed to create pod sandbox: {why}"));
        };
        let handler = self.runtime_handler().await.map_err(failed)?;
        let supported = self.core.supports_user_namespaces(&handler);
        let users = self.core.user_namespaces.of(&pod, &handler, supported).map_err(failed)?;
        let sandbox_config = self.sandbox_config(plan.attempt, &users).map_err(failed)?;
        let mut sandbox_id = plan.sandbox_id.clone();
        let mut present = state.clone();
        if plan.create_sandbox {
            sandbox_id = self.create_sandbox(sandbox_config.clone(), &handler).await?;
            present = pod_state::read(self.core.runtime.as_ref(), pod.uid()).await.map_err(drop)?;
            self.report(&present, false);
            self.publish(false);
        }
        let secrets = self.pull_secrets().await;
        let ephemeral = pod::ephemeral_containers(&pod);
        let mut jobs: Vec<(Container, ContainerKind, Option<String>)> = Vec::new();
        let of_ephemeral = plan.start_ephemeral.iter().filter_map(|i| ephemeral.get(*i));
        jobs.extend(of_ephemeral.map(|(c, target)| (c.clone(), ContainerKind::Ephemeral, target.clone())));
        for container in plan.start_init.iter().filter_map(|i| pod::init_containers(&pod).get(*i)) {
            let kind = if pod::is_sidecar(container) { ContainerKind::Sidecar } else { ContainerKind::Init };
            jobs.push((container.clone(), kind, None));
        }
        let regular = plan.start.iter().filter_map(|i| pod::containers(&pod).get(*i));
        jobs.extend(regular.map(|c| (c.clone(), ContainerKind::Regular, None)));
        let mut result = Ok(());
        for (container, kind, target) in jobs {
            let start = Start {
                container: &container,
                target: target.and_then(|name| present.container(&name).map(|r| r.id.clone())),
                sandbox_id: &sandbox_id,
                sandbox: &sandbox_config,
                state: &present,
                volumes: &volumes,
                secrets: &secrets,
                users: &users,
            };
            match self.start(start).await {
                Ok(()) => {
                    self.waiting.remove(&container.name);
                }
                Err(waiting) => {
                    // Those that wait out their time have said when to look again.
                    if !waiting.reason.ends_with("BackOff") {
                        result = Err(());
                    }
                    self.waiting.insert(container.name.clone(), waiting);
                    if matches!(kind, ContainerKind::Init | ContainerKind::Sidecar) {
                        break;
                    }
                }
            }
        }
        result
    }

    fn sandbox_config(
        &self,
        attempt: u32,
        users: &pb::UserNamespace,
    ) -> Result<pb::PodSandboxConfig, String> {
        let core = &self.core;
        let cluster = dns::Cluster {
            servers: &core.config.cluster_dns,
            domain: &core.config.cluster_domain,
            node: &core.node_resolver(),
        };
        let (resolver, warnings) = dns::resolver(&self.pod, &cluster);
        for warning in warnings {
            let reason = if warning.starts_with("pod:") { "MissingClusterDNS" } else { "DNSConfigForming" };
            self.event(true, reason, &warning);
        }
        let hostname = dns::kernel_hostname(&self.pod, &core.config.cluster_domain)?;
        Ok(config::sandbox(
            &self.pod,
            &SandboxFacts {
                attempt,
                hostname: &hostname,
                log_directory: &core.paths.pod_logs(&self.pod).to_string_lossy(),
                resolver: &resolver,
                cgroup_parent: &cgroup::path(&core.config.cgroup_root, &self.pod).to_string_lossy(),
                users,
            },
        ))
    }

    async fn create_sandbox(&mut self, config: pb::PodSandboxConfig, handler: &str) -> Result<String, ()> {
        self.core.dra.prepare(&self.pod).await.map_err(|why| {
            self.event(
                true,
                "FailedPrepareDynamicResources",
                &format!("Failed to prepare dynamic resources: {why}"),
            );
        })?;
        self.core.runtime.run_sandbox(config, handler).await.map_err(|error| {
            let why = describe(&error);
            self.event(true, "FailedCreatePodSandBox", &format!("Failed to create pod sandbox: {why}"));
        })
    }

    /// What the pod's RuntimeClass names to the runtime; empty for the default.
    // Upstream: pkg/kubelet/runtimeclass/runtimeclass_manager.go LookupRuntimeHandler
    async fn runtime_handler(&self) -> Result<String, String> {
        let class =
            self.pod.spec.as_ref().and_then(|s| s.runtime_class_name.as_deref()).filter(|n| !n.is_empty());
        let Some(class) = class else { return Ok(String::new()) };
        match self.core.client.get::<api::node::v1::RuntimeClass>("", class).await {
            Ok(found) => Ok(found.handler),
            Err(error) if error.is_not_found() => {
                Err(format!("runtimeclass.node.k8s.io {class:?} not found"))
            }
            Err(error) => Err(format!("failed to lookup RuntimeClass {class}: {error}")),
        }
    }

    async fn pull_secrets(&self) -> Vec<Arc<Secret>> {
        let names =
            self.pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()).map(|r| r.name.clone());
        let (mut secrets, mut missing) = (Vec::new(), Vec::new());
        for name in names.filter(|n| !n.is_empty()) {
            match self.core.volumes.secrets.get(self.pod.uid(), self.pod.namespace(), &name).await {
                Ok(Some(secret)) => secrets.push(secret),
                _ => missing.push(name),
            }
        }
        if !missing.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.event(true, "FailedToRetrieveImagePullSecret", &message);
        }
        secrets
    }

    /// Starts one container, unless it has to wait. `Err` is what it waits for.
    // Upstream: pkg/kubelet/kuberuntime/kuberuntime_container.go startContainer
    async fn start(&mut self, start: Start<'_>) -> Result<(), Waiting> {
        let container = start.container;
        let (core, pod) = (self.core.clone(), self.pod.clone());
        let events = PodEvents { recorder: &core.recorder, pod: &pod };
        self.check_restart_backoff(container, start.state, &events)?;
        let image = self.image(&start, &events, container).await?;
        let image_volumes = self.image_volumes(&start, &events).await?;
        let refuse = |reason: &str, message: String| {
            events.warning(&container.name, "Failed", &format!("Error: {message}"));
            Waiting { reason: reason.to_owned(), message }
        };
        let config_error = |message| refuse("CreateContainerConfigError", message);
        security::verify_non_root(&pod, container, &image.user).map_err(config_error)?;
        let around = self.core.surroundings(&pod, start.state);
        let environment = self.environment(container, start.volumes, &around).await.map_err(config_error)?;
        let mut grants = self.core.devices.grants(&pod, container).await.map_err(config_error)?;
        let claimed = self.core.dra.cdi_ids(&pod, container).map_err(config_error)?;
        grants.cdi_devices.extend(claimed.into_iter().map(|name| pb::CdiDevice { name }));
        let restart_count = self.restart_count(container, start.state);
        let volumes = Ready { volumes: start.volumes, images: &image_volumes };
        let devices = mounts::devices(container, start.volumes).map_err(config_error)?;
        let mounts = self.mounts(container, restart_count, &volumes, &environment, start.state);
        let mounts = mounts.map_err(config_error)?;
        let seccomp_root = self.core.paths.seccomp();
        let facts = ContainerFacts {
            restart_count,
            image_ref: &image.reference,
            image_user: &image.user,
            environment: &environment,
            mounts,
            devices,
            grants,
            target: start.target.as_deref(),
            memory: &self.core.memory(),
            users: start.users,
            seccomp: Profiles {
                root: &seccomp_root.to_string_lossy(),
                by_default: self.core.config.seccomp_default,
            },
        };
        let config = config::container(&pod, container, facts);
        let logs = self.core.paths.pod_logs(&pod).join(&container.name);
        std::fs::create_dir_all(logs).map_err(|e| refuse("CreateContainerError", e.to_string()))?;
        let runtime = self.core.runtime.clone();
        let created = runtime.create_container(start.sandbox_id, config, start.sandbox.clone()).await;
        let id = created.map_err(|e| refuse("CreateContainerError", e.message().to_owned()))?;
        events.normal(&container.name, "Created", "Container created");
        if let Err(error) = runtime.start_container(&id).await {
            let message = error.message().to_owned();
            let told = message.replace(&id, &container.name);
            events.warning(&container.name, "Failed", &format!("Error: {told}"));
            return Err(Waiting { reason: "RunContainerError".to_owned(), message });
        }
        events.normal(&container.name, "Started", "Container started");
        self.post_start(container, &id, start.state, &events).await
    }

    /// Ends when the pod is to end.
    fn ending(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut desired = self.desired.clone();
        async move {
            let ending = |d: &super::Desired| d.removed || d.pod.metadata.deletion_timestamp.is_some();
            // An error means that the kubelet stops.
            let _ = desired.wait_for(ending).await;
        }
    }

    /// The images that the container mounts as volumes, by the volumes' names.
    // Upstream: pkg/kubelet/kuberuntime/kuberuntime_manager.go getImageVolumes
    async fn image_volumes(
        &mut self,
        start: &Start<'_>,
        events: &PodEvents<'_>,
    ) -> Result<BTreeMap<String, String>, Waiting> {
        let mut images = BTreeMap::new();
        for mount in start.container.volume_mounts.iter().flatten() {
            let Some(source) = start.volumes.get(&mount.name).and_then(|volume| volume.image.clone()) else {
                continue;
            };
            let as_container = Container {
                name: start.container.name.clone(),
                image: source.reference,
                image_pull_policy: source.pull_policy,
                ..Default::default()
            };
            let image = self.image(start, events, &as_container).await?;
            images.insert(mount.name.clone(), image.reference);
        }
        Ok(images)
    }

    async fn image(
        &mut self,
        start: &Start<'_>,
        events: &PodEvents<'_>,
        container: &Container,
    ) -> Result<Image, Waiting> {
        // A pod that is being deleted does not wait for its images.
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let ending = self.ending();
        let watch = async move {
            ending.await;
            stop.cancel();
            std::future::pending::<()>().await;
        };
        let ensured =
            self.core.images.ensure(&self.pod, container, start.secrets, start.sandbox, events, &cancel);
        let ensured = tokio::select! {
            ensured = ensured => ensured,
            () = watch => unreachable!("the watch never ends by itself"),
        };
        if ensured.is_err() {
            let left = self.core.images.remaining(&self.pod, container);
            self.look_again(left.unwrap_or(super::RETRY));
        }
        ensured.inspect_err(|waiting| {
            events.warning(&container.name, "Failed", &format!("Error: {}", waiting.reason));
        })
    }

    // Upstream: pkg/kubelet/kuberuntime/kuberuntime_manager.go doBackOff
    fn check_restart_backoff(
        &mut self,
        container: &Container,
        state: &PodState,
        events: &PodEvents,
    ) -> Result<(), Waiting> {
        let dead = |r: &&ContainerRecord| r.name == container.name && r.state == State::Exited;
        let Some(record) = state.containers.iter().find(dead) else { return Ok(()) };
        let name = &container.name;
        let key = format!("{}_{name}_{}", self.pod.uid(), pod::container_hash(container));
        let finished =
            Timestamp::from_nanosecond(i128::from(record.finished_at)).unwrap_or(Timestamp::UNIX_EPOCH);
        let now = self.core.config.clock.now();
        let (left, delay) = {
            let backoff = self.restarts();
            (backoff.remaining(&key, finished, now), backoff.delay(&key))
        };
        let Some(left) = left else {
            self.restarts().next(&key, finished);
            return Ok(());
        };
        self.look_again(left);
        let pod = pod::display(&self.pod);
        events.warning(name, "BackOff", &format!("Back-off restarting failed container {name} in pod {pod}"));
        let delay = go_duration(delay);
        let message = format!("back-off {delay} restarting failed container={name} pod={pod}");
        Err(Waiting { reason: "CrashLoopBackOff".into(), message })
    }

    async fn environment(
        &self,
        container: &Container,
        volumes: &MountedVolumes,
        around: &crate::container::downward::Surroundings,
    ) -> Result<BTreeMap<String, String>, String> {
        let pod = &self.pod;
        let needed = env::needed(container);
        let mut sources = env::Sources::default();
        for name in needed.config_maps {
            let found = self.core.volumes.config_maps.get(pod.uid(), pod.namespace(), &name).await?;
            sources.config_maps.extend(found.map(|map| (name, (*map).clone())));
        }
        for name in needed.secrets {
            let found = self.core.volumes.secrets.get(pod.uid(), pod.namespace(), &name).await?;
            sources.secrets.extend(found.map(|secret| (name, (*secret).clone())));
        }
        if !pod::is_static(pod) && !self.core.services.has_synced() {
            return Err("services have not yet been read at least once, cannot construct envvars".to_owned());
        }
        let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
        let services = self.core.services.list();
        let services = env::service_variables(services.iter().map(AsRef::as_ref), pod.namespace(), links);
        let files = |volume: &str, path: &str| read_from_volume(volumes, volume, path);
        env::environment(pod, container, &services, &sources, &files, around)
    }

    /// One more than the last, which the runtime or else the status remembers.
    fn restart_count(&self, container: &Container, state: &PodState) -> i32 {
        let of_runtime = state.container(&container.name).map(|r| r.restart_count + 1);
        let known = pod::all_statuses(&self.status).find(|s| s.name == container.name);
        let of_status = known.and_then(|s| {
            let ran = s.container_id.as_ref().is_some_and(|id| !id.is_empty());
            // Where all begin anew, the status has counted already.
            let counted = restart_all::waits(s).then_some(s.restart_count);
            ran.then_some(s.restart_count + 1).or(counted)
        });
        of_runtime.or(of_status).unwrap_or(0)
    }

    async fn post_start(
        &mut self,
        container: &Container,
        id: &str,
        state: &PodState,
        events: &PodEvents<'_>,
    ) -> Result<(), Waiting> {
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else {
            return Ok(());
        };
        let runtime = self.core.runtime.clone();
        let pod_ip = self.core.surroundings(&self.pod, state).pod_ips.first().cloned().unwrap_or_default();
        let name = pod::display(&self.pod);
        let outcome = tokio::select! {
            outcome = lifecycle::run(runtime.as_ref(), hook, container, id, &name, &pod_ip) => outcome,
            // A hook that hangs does not keep the pod from being deleted.
            () = self.ending() => return Ok(()),
        };
        let Err(message) = outcome else { return Ok(()) };
        events.warning(&container.name, "FailedPostStartHook", "PostStartHook failed");
        let record =
            ContainerRecord { id: id.to_owned(), name: container.name.clone(), ..Default::default() };
        if self.kill(&record, "FailedPostStartHook", KillReason::Other, None).await.is_err() {
            tracing::warn!(container = container.name, "a container whose hook failed cannot be killed");
        }
        Err(Waiting { reason: "PostStartHookError".into(), message })
    }
}

/// The largest environment file that is read.
const MAX_ENV_FILE: u64 = 1 << 20;

/// A file of a volume, which the pod's own containers may have made: links in it lead nowhere else.
fn read_from_volume(volumes: &MountedVolumes, volume: &str, path: &str) -> Result<String, String> {
    use std::io::Read;
    let mounted = volumes.get(volume);
    let mounted =
        mounted.ok_or_else(|| format!("cannot find the volume {volume:?} referenced by FileKeyRef"))?;
    let failed = |why: String| format!("couldn't parse env file: {why}");
    let root = linux::beneath::Root::open(&mounted.path).map_err(|e| failed(e.to_string()))?;
    let file = root.read_file(std::path::Path::new(path)).map_err(|e| failed(e.to_string()))?;
    let mut text = String::new();
    file.take(MAX_ENV_FILE).read_to_string(&mut text).map_err(|e| failed(e.to_string()))?;
    Ok(text)
}

/// What a container may mount.
pub struct Ready<'a> {
    pub volumes: &'a MountedVolumes,
    /// By the volume's name: the image that it is.
    pub images: &'a BTreeMap<String, String>,
}

/// What one start needs.
struct Start<'a> {
    container: &'a Container,
    target: Option<String>,
    sandbox_id: &'a str,
    sandbox: &'a pb::PodSandboxConfig,
    state: &'a PodState,
    volumes: &'a MountedVolumes,
    secrets: &'a [Arc<Secret>],
    users: &'a pb::UserNamespace,
}

/// An error and what caused it, in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
