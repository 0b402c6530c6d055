//! A runtime in memory, and an API server that takes statuses: a pod's whole life without a kernel.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::core::v1::Pod;
use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Client, Transport};
use controller_runtime::{Clock, EventRecorder, InformerFactory};
use cri::v1 as pb;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::{Desired, Worker};
use crate::Config;
use crate::backoff::Backoff;
use crate::core::Core;
use crate::images::Images;
use crate::node::Machine;
use crate::objects::{ObjectCache, Wakers};
use crate::paths::Paths;
use crate::runtime::{Events, POD_UID, Result, Runtime};
use crate::status::publisher::Publisher;
use crate::volumes::Volumes;
use crate::volumes::csi::{self, Csi};
use crate::volumes::tokens::Tokens;

#[derive(Default)]
struct World {
    calls: Vec<String>,
    sandboxes: Vec<pb::PodSandboxStatus>,
    containers: Vec<(String, pb::ContainerStatus)>,
    time: i64,
}

impl World {
    fn now(&mut self) -> i64 {
        self.time += 1_000_000;
        self.time
    }

    fn container(&mut self, id: &str) -> Result<&mut pb::ContainerStatus> {
        let found = self.containers.iter_mut().find(|(_, c)| c.id == id).map(|(_, c)| c);
        found.ok_or_else(|| tonic::Status::not_found(id))
    }
}

/// Containers run until told or made to end.
#[derive(Clone, Default)]
pub struct FakeRuntime(Arc<Mutex<World>>);

impl FakeRuntime {
    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    fn exit(&self, name: &str, code: i32) {
        let mut world = self.world();
        let now = world.now();
        let running = pb::ContainerState::ContainerRunning;
        let found = world.containers.iter_mut().map(|(_, c)| c);
        let mut found = found.filter(|c| c.metadata.as_ref().unwrap().name == name && c.state() == running);
        let container = found.next().unwrap();
        container.set_state(pb::ContainerState::ContainerExited);
        (container.exit_code, container.finished_at) = (code, now);
    }

    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.world().calls)
    }
}

fn of_pod(labels: &HashMap<String, String>, uid: Option<&str>) -> bool {
    uid.is_none_or(|uid| labels.get(POD_UID).is_some_and(|l| l == uid))
}

fn unused<T>() -> Result<T> {
    Err(tonic::Status::unimplemented("not in this test"))
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn version(&self) -> Result<pb::VersionResponse> {
        unused()
    }
    async fn status(&self) -> Result<pb::StatusResponse> {
        unused()
    }
    async fn set_pod_cidr(&self, _: &str) -> Result<()> {
        unused()
    }
    async fn run_sandbox(&self, config: pb::PodSandboxConfig, _: &str) -> Result<String> {
        let mut world = self.world();
        let id = format!("box{}", world.sandboxes.len());
        world.calls.push(format!("sandbox {id}"));
        let created_at = world.now();
        world.sandboxes.push(pb::PodSandboxStatus {
            id: id.clone(),
            metadata: config.metadata,
            created_at,
            network: Some(pb::PodSandboxNetworkStatus { ip: "10.42.0.2".into(), ..Default::default() }),
            labels: config.labels,
            ..Default::default()
        });
        Ok(id)
    }
    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let mut world = self.world();
        world.calls.push(format!("stop-sandbox {id}"));
        let sandbox = world.sandboxes.iter_mut().find(|s| s.id == id);
        sandbox.ok_or_else(|| tonic::Status::not_found(id))?.set_state(pb::PodSandboxState::SandboxNotready);
        Ok(())
    }
    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.world().sandboxes.retain(|s| s.id != id);
        Ok(())
    }
    async fn sandbox_status(&self, id: &str) -> Result<pb::PodSandboxStatus> {
        let found = self.world().sandboxes.iter().find(|s| s.id == id).cloned();
        found.ok_or_else(|| tonic::Status::not_found(id))
    }
    async fn sandboxes(&self, uid: Option<&str>) -> Result<Vec<pb::PodSandbox>> {
        let world = self.world();
        let found = world.sandboxes.iter().filter(|s| of_pod(&s.labels, uid));
        let list = |s: &pb::PodSandboxStatus| pb::PodSandbox {
            id: s.id.clone(),
            labels: s.labels.clone(),
            ..Default::default()
        };
        Ok(found.map(list).collect())
    }
    async fn create_container(
        &self,
        sandbox: &str,
        config: pb::ContainerConfig,
        _: pb::PodSandboxConfig,
    ) -> Result<String> {
        let mut world = self.world();
        let name = config.metadata.as_ref().unwrap().name.clone();
        let id = format!("{name}-{}", config.metadata.as_ref().unwrap().attempt);
        let created_at = world.now();
        let status = pb::ContainerStatus {
            id: id.clone(),
            metadata: config.metadata,
            created_at,
            image: config.image,
            labels: config.labels,
            annotations: config.annotations,
            mounts: config.mounts,
            resources: config.linux.map(|l| pb::ContainerResources { linux: l.resources, windows: None }),
            ..Default::default()
        };
        world.containers.push((sandbox.to_owned(), status));
        Ok(id)
    }
    async fn start_container(&self, id: &str) -> Result<()> {
        let mut world = self.world();
        world.calls.push(format!("start {id}"));
        let now = world.now();
        let container = world.container(id)?;
        container.set_state(pb::ContainerState::ContainerRunning);
        container.started_at = now;
        Ok(())
    }
    async fn stop_container(&self, id: &str, timeout: i64) -> Result<()> {
        let mut world = self.world();
        world.calls.push(format!("stop {id} {timeout}s"));
        let now = world.now();
        let container = world.container(id)?;
        container.set_state(pb::ContainerState::ContainerExited);
        (container.exit_code, container.finished_at) = (143, now);
        Ok(())
    }
    async fn remove_container(&self, id: &str) -> Result<()> {
        self.world().containers.retain(|(_, c)| c.id != id);
        Ok(())
    }
    async fn containers(&self, uid: Option<&str>) -> Result<Vec<pb::Container>> {
        let world = self.world();
        let found = world.containers.iter().filter(|(_, c)| of_pod(&c.labels, uid));
        let list = |(sandbox, c): &(String, pb::ContainerStatus)| pb::Container {
            id: c.id.clone(),
            pod_sandbox_id: sandbox.clone(),
            labels: c.labels.clone(),
            state: c.state,
            ..Default::default()
        };
        Ok(found.map(list).collect())
    }
    async fn container_status(&self, id: &str) -> Result<pb::ContainerStatus> {
        self.world().container(id).cloned()
    }
    async fn update_resources(&self, id: &str, wanted: pb::LinuxContainerResources) -> Result<()> {
        let mut world = self.world();
        world.calls.push(format!("update {id} {} {}", wanted.cpu_shares, wanted.memory_limit_in_bytes));
        let resources = pb::ContainerResources { linux: Some(wanted), windows: None };
        world.container(id)?.resources = Some(resources);
        Ok(())
    }
    async fn exec_sync(&self, id: &str, command: &[String], _: i64) -> Result<pb::ExecSyncResponse> {
        self.world().calls.push(format!("exec {id} {}", command.join(" ")));
        Ok(pb::ExecSyncResponse::default())
    }
    async fn reopen_log(&self, _: &str) -> Result<()> {
        unused()
    }
    async fn exec_url(&self, _: pb::ExecRequest) -> Result<String> {
        unused()
    }
    async fn attach_url(&self, _: pb::AttachRequest) -> Result<String> {
        unused()
    }
    async fn port_forward_url(&self, _: pb::PortForwardRequest) -> Result<String> {
        unused()
    }
    async fn events(&self) -> Result<Events> {
        unused()
    }
    async fn sandbox_stats(&self) -> Result<Vec<pb::PodSandboxStats>> {
        unused()
    }
    async fn container_stats(&self) -> Result<Vec<pb::ContainerStats>> {
        unused()
    }
    async fn image(&self, image: &str) -> Result<Option<pb::Image>> {
        Ok((image == "present:latest").then(|| pb::Image { id: "sha256:1".into(), ..Default::default() }))
    }
    async fn images(&self) -> Result<Vec<pb::Image>> {
        unused()
    }
    async fn pull_image(
        &self,
        image: &str,
        _: Option<pb::AuthConfig>,
        _: &pb::PodSandboxConfig,
    ) -> Result<String> {
        Err(tonic::Status::unknown(format!("no such image {image}")))
    }
    async fn remove_image(&self, _: &str) -> Result<()> {
        unused()
    }
    async fn image_filesystem(&self) -> Result<Option<pb::FilesystemUsage>> {
        unused()
    }
}

/// Takes status patches and deletions; has no other objects.
#[derive(Clone)]
struct FakeApi(watch::Sender<Vec<(String, Value)>>);

#[async_trait]
impl Transport for FakeApi {
    async fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> std::result::Result<http::Response<Body>, client::Error> {
        let path = request.uri().path().to_owned();
        let body = serde_json::from_slice(request.body()).unwrap_or(Value::Null);
        if request.method() == http::Method::GET {
            let list = json!({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": []});
            if request.uri().query().is_some_and(|q| q.contains("watch")) {
                let end = json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "1",
                    "annotations": {"k8s.io/initial-events-end": "true"}}}});
                let first = futures::stream::once(async move { Ok(Bytes::from(format!("{end}\n"))) });
                let stream = futures::StreamExt::chain(first, futures::stream::pending());
                return Ok(http::Response::new(Body::Stream(Box::pin(stream))));
            }
            return Ok(http::Response::new(Body::Full(list.to_string().into())));
        }
        if path.contains("/pods/") {
            self.0.send_modify(|all| all.push((request.method().to_string(), body)));
        }
        Ok(http::Response::new(Body::Full(Bytes::from_static(b"{}"))))
    }
}

pub struct Bench {
    pub runtime: FakeRuntime,
    pub core: Arc<Core>,
    written: watch::Receiver<Vec<(String, Value)>>,
    pub desired: watch::Sender<Desired>,
    shutdown: CancellationToken,
    worker: tokio::task::JoinHandle<String>,
    pub uid: String,
    _dir: tempfile::TempDir,
    _cgroups: Cgroups,
}

/// Removes the test's cgroups, also when the test fails.
struct Cgroups(std::path::PathBuf);

impl Drop for Cgroups {
    fn drop(&mut self) {
        let cgroup = linux::cgroups::Cgroup::new(&self.0);
        // There is nobody left to tell of a failure.
        let _ = cgroup.kill_all().and_then(|()| cgroup.remove());
    }
}

impl Bench {
    /// A worker of one pod. Its cgroups are this test's own.
    pub async fn new(mut spec: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uid = uuid::Uuid::new_v4().to_string();
        spec["enableServiceLinks"] = json!(false);
        let object = json!({"metadata": {"name": "p", "namespace": "n", "uid": uid}, "spec": spec});
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(object).unwrap());
        let (sender, written) = watch::channel(Vec::new());
        let client = Client::new(Arc::new(FakeApi(sender)), "test");
        let shutdown = CancellationToken::new();
        let runtime = FakeRuntime::default();
        let clock = Clock::new(|| jiff::Timestamp::from_second(1000).unwrap());
        let mut config = Config::new("node", [192, 0, 2, 1].into(), dir.path(), clock.clone());
        config.cgroup_root = format!("/trierarch-test-{uid}").into();
        let cgroups = Cgroups(config.cgroup_root.clone());
        let paths = Paths::new(&config.root_dir, &config.pod_logs_dir);
        let informers = InformerFactory::new(client.clone(), shutdown.clone());
        let services = informers.informer();
        let kinds = informers.informer();
        informers.start();
        assert!(services.synced().await);
        let wakers = Wakers::default();
        let cache = || (client.clone(), wakers.clone(), shutdown.clone());
        let (a, b, c) = cache();
        let (d, e, f) = cache();
        let recorder = EventRecorder::new(client.clone(), "kubelet", "node", clock.clone()).0;
        let tokens = Arc::new(Tokens::new(client.clone(), clock.clone()));
        let csi = Arc::new(Csi::new(csi::Parts {
            paths: paths.clone(),
            node_name: "node".into(),
            boot_id: "boot".into(),
            client: client.clone(),
            clock: clock.clone(),
            tokens: tokens.clone(),
            kinds,
            wakers: wakers.clone(),
            recorder: recorder.clone(),
        }));
        let volumes = Volumes::new(
            paths.clone(),
            client.clone(),
            clock.clone(),
            ObjectCache::new(a, b, c),
            ObjectCache::new(d, e, f),
            tokens,
            csi,
        );
        let arc: Arc<dyn Runtime> = Arc::new(runtime.clone());
        let publisher = Publisher::new(client.clone());
        tokio::spawn(publisher.clone().run(shutdown.clone()));
        let core = Arc::new(Core {
            images: Images::new(
                arc.clone(),
                clock.clone(),
                crate::pulled_images::PulledImages::new(paths.image_manager()),
            ),
            restarts: Mutex::new(Backoff::new(Duration::from_secs(10), Duration::from_secs(300))),
            publisher,
            access: client::delegated::Delegated::new(client.clone()),
            runtime_name: "fake".into(),
            runtime_version: "1".into(),
            recorder,
            changes: broadcast::Sender::new(1),
            network_ready: true.into(),
            pods: Mutex::default(),
            deferred_resizes: Mutex::default(),
            pressure: Default::default(),
            shutdown: Default::default(),
            node: Mutex::default(),
            handlers: Mutex::default(),
            probe_metrics: Arc::default(),
            devices: Arc::new(crate::devices::Devices::open(paths.device_plugins(), wakers.clone())),
            dra: Arc::new(crate::dra::Dra::open(config.root_dir.clone(), client.clone())),
            user_namespaces: crate::userns::Ranges::open(paths.clone(), 110),
            machine: Machine { memory: 1 << 30, milli_cpu: 1000, ..Default::default() },
            config,
            client,
            runtime: arc,
            wakers,
            volumes,
            services,
            paths,
        });
        let (desired, receiver) = watch::channel(Desired { pod, removed: false, rejected: None });
        let worker = tokio::spawn(Worker::new(core.clone(), receiver).run(shutdown.clone()));
        Bench { runtime, core, written, desired, shutdown, worker, uid, _dir: dir, _cgroups: cgroups }
    }

    /// Waits for a status patch that passes.
    pub async fn status(&mut self, what: &str, passes: impl Fn(&Value) -> bool) {
        let arrived =
            self.written.wait_for(|all| all.iter().any(|(m, b)| m == "PATCH" && passes(&b["status"])));
        let outcome = tokio::time::timeout(Duration::from_secs(20), arrived).await.map(drop);
        assert!(outcome.is_ok(), "{what}: {:#?}", self.written.borrow());
    }

    fn wake(&self) {
        self.core.wakers.wake(&self.uid);
    }

    /// Deletes the pod gracefully and waits until the API object is deleted for good and the worker ends.
    pub async fn delete(mut self, grace: i64) -> FakeRuntime {
        self.desired.send_modify(|d| {
            let mut pod = (*d.pod).clone();
            pod.metadata.deletion_timestamp = Some(api::meta::Time(jiff::Timestamp::UNIX_EPOCH));
            pod.metadata.deletion_grace_period_seconds = Some(grace);
            d.pod = Arc::new(pod);
        });
        let deleted = self.written.wait_for(|all| all.iter().any(|(m, _)| m == "DELETE"));
        tokio::time::timeout(Duration::from_secs(20), deleted)
            .await
            .expect("the pod is deleted")
            .map(drop)
            .unwrap();
        self.desired.send_modify(|d| d.removed = true);
        let ended = tokio::time::timeout(Duration::from_secs(20), self.worker).await;
        assert_eq!(ended.unwrap().unwrap(), self.uid);
        self.shutdown.cancel();
        assert!(!self.core.paths.pod(&self.uid).exists());
        self.runtime
    }
}

pub fn phase(wanted: &'static str) -> impl Fn(&Value) -> bool {
    move |status| status["phase"] == wanted
}

fn waits_for(reason: &'static str) -> impl Fn(&Value) -> bool {
    move |status| {
        let all = status["containerStatuses"].as_array().into_iter().flatten();
        all.into_iter().any(|c| c["state"]["waiting"]["reason"] == reason)
    }
}

#[tokio::test]
async fn a_pod_lives_and_ends() {
    let spec = json!({
        "initContainers": [{"name": "first", "image": "present"}],
        "containers": [{"name": "web", "image": "present", "lifecycle": {"preStop": {"exec": {"command": ["bye"]}}}}],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
    });
    let mut bench = Bench::new(spec).await;
    bench.status("the pod waits", phase("Pending")).await;
    let started = |status: &Value| status["initContainerStatuses"][0]["state"]["running"].is_object();
    bench.status("the init container runs", started).await;
    bench.runtime.exit("first", 0);
    bench.wake();
    bench.status("the pod runs", phase("Running")).await;
    assert_eq!(bench.runtime.calls(), ["sandbox box0", "start first-0", "start web-0"]);
    let runtime = bench.delete(5).await;
    assert_eq!(
        runtime.calls(),
        ["exec web-0 bye", "stop web-0 5s", "stop-sandbox box0", "stop-sandbox box0"]
    );
    assert!(runtime.world().containers.is_empty() && runtime.world().sandboxes.is_empty());
}

#[tokio::test]
async fn a_crashing_container_is_restarted_and_then_waits() {
    let mut bench = Bench::new(json!({"containers": [{"name": "web", "image": "present"}]})).await;
    bench.status("the pod runs", phase("Running")).await;
    // The fake's dead containers ended long ago, so the first restart comes at once.
    bench.runtime.exit("web", 1);
    bench.wake();
    let restarted = |status: &Value| status["containerStatuses"][0]["restartCount"] == 1;
    bench.status("the container is restarted", restarted).await;
    assert_eq!(bench.runtime.calls(), ["sandbox box0", "start web-0", "start web-1"]);
    bench.delete(0).await;
}

#[tokio::test]
async fn an_image_that_is_not_there_keeps_the_pod_pending() {
    let mut bench = Bench::new(json!({"containers": [{"name": "web", "image": "absent"}]})).await;
    bench.status("the pull fails", waits_for("ErrImagePull")).await;
    bench.wake();
    bench.status("the pull waits", waits_for("ImagePullBackOff")).await;
    let runtime = bench.delete(0).await;
    assert_eq!(runtime.calls(), ["sandbox box0", "stop-sandbox box0", "stop-sandbox box0"]);
}

#[tokio::test]
async fn a_pod_that_is_done_succeeds() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "job", "image": "present"}]});
    let mut bench = Bench::new(spec).await;
    bench.status("the pod runs", phase("Running")).await;
    bench.runtime.exit("job", 0);
    bench.wake();
    bench.status("the pod has succeeded", phase("Succeeded")).await;
    bench.delete(0).await;
}

#[tokio::test]
async fn a_resize_updates_what_it_can_and_restarts_what_it_must() {
    let container = |name: &str, policy: &str| {
        json!({
            "name": name, "image": "present",
            "resizePolicy": [{"resourceName": "memory", "restartPolicy": policy}],
            "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "64Mi"}},
        })
    };
    let spec = json!({"containers": [container("a", "NotRequired"), container("b", "RestartContainer")]});
    let mut bench = Bench::new(spec).await;
    bench.status("the pod runs", phase("Running")).await;
    bench.runtime.calls();
    bench.desired.send_modify(|d| {
        let mut pod = (*d.pod).clone();
        for container in &mut pod.spec.as_mut().unwrap().containers {
            let resources = json!({"requests": {"cpu": "250m"}, "limits": {"memory": "32Mi"}});
            container.resources = serde_json::from_value(resources).unwrap();
        }
        d.pod = Arc::new(pod);
    });
    let restarted = |status: &Value| status["containerStatuses"][1]["restartCount"] == 1;
    bench.status("one is restarted", restarted).await;
    let update = format!("update a-0 256 {}", 32 << 20);
    assert_eq!(bench.runtime.calls(), [update.as_str(), "stop b-0 30s", "start b-1"]);
    bench.delete(0).await;
}
