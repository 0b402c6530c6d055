//! CRI's runtime service.

use std::collections::HashMap;
use std::pin::Pin;

use cri::v1::{self, runtime_service_server::RuntimeService};
use futures::Stream;
use tokio::sync::{broadcast, mpsc};
use tonic::{Request, Response, Status};

use super::status;
use super::view::{self, matches};
use crate::SharedEngine;
use crate::engine::{Event, ExecRequest, blocking};
use crate::network;
use crate::streaming::Work;

/// Answers `RuntimeService`.
pub(crate) struct Runtime {
    engine: SharedEngine,
}

type Reply<T> = Result<Response<T>, Status>;

impl Runtime {
    pub(crate) fn new(engine: SharedEngine) -> Self {
        Self { engine }
    }

    /// Whether pods can be connected; the kubelet makes the node's condition of it.
    fn network_condition(&self) -> v1::RuntimeCondition {
        let problem = network::current(&self.engine.config, &self.engine.pod_cidrs()).err();
        v1::RuntimeCondition {
            r#type: "NetworkReady".to_owned(),
            status: problem.is_none(),
            reason: problem.as_ref().map(|_| "NetworkPluginNotReady".to_owned()).unwrap_or_default(),
            message: problem.map(|why| format!("Network plugin returns error: {why}")).unwrap_or_default(),
        }
    }

    fn event(&self, event: Event) -> v1::ContainerEventResponse {
        let containers = self.engine.containers_of(&event.sandbox);
        v1::ContainerEventResponse {
            container_id: event.container,
            container_event_type: event.kind as i32,
            created_at: event.at,
            pod_sandbox_status: self.engine.sandbox(&event.sandbox).ok().map(|s| view::sandbox_status(&s)),
            containers_statuses: containers.iter().map(|c| view::container_status(c)).collect(),
        }
    }
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Reply<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "trierarch".to_owned(),
            runtime_version: self.engine.config.version.clone(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Reply<v1::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| Status::invalid_argument("sandbox config is missing"))?;
        let engine = self.engine.clone();
        // A task of its own: a caller that hangs up must not leave half a sandbox.
        let made =
            tokio::spawn(async move { engine.run_sandbox(config, request.runtime_handler).await }).await;
        let pod_sandbox_id = made.map_err(|e| Status::internal(e.to_string()))?.map_err(status)?;
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Reply<v1::StopPodSandboxResponse> {
        self.engine.stop_sandbox(&request.into_inner().pod_sandbox_id).await.map_err(status)?;
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Reply<v1::RemovePodSandboxResponse> {
        self.engine.remove_sandbox(&request.into_inner().pod_sandbox_id).await.map_err(status)?;
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Reply<v1::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let sandbox = self.engine.sandbox(&request.pod_sandbox_id).map_err(status)?;
        let containers = self.engine.containers_of(&sandbox.id);
        Ok(Response::new(v1::PodSandboxStatusResponse {
            status: Some(view::sandbox_status(&sandbox)),
            info: HashMap::new(),
            containers_statuses: containers.iter().map(|c| view::container_status(c)).collect(),
            timestamp: self.engine.now(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Reply<v1::ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        // What is left out is not copied: a kubelet asks for each of its pods.
        let mut sandboxes = self.engine.sandboxes();
        sandboxes.retain(|sandbox| {
            sandbox.id.starts_with(&filter.id)
                && filter.state.as_ref().is_none_or(|asked| asked.state() == view::sandbox_state(sandbox))
                && matches(&sandbox.record().config.labels, &filter.label_selector)
        });
        let items = sandboxes.iter().map(|sandbox| view::sandbox(sandbox)).collect();
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Reply<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| Status::invalid_argument("container config is missing"))?;
        let engine = self.engine.clone();
        let made =
            tokio::spawn(async move { engine.create_container(&request.pod_sandbox_id, config).await }).await;
        let container_id = made.map_err(|e| Status::internal(e.to_string()))?.map_err(status)?;
        Ok(Response::new(v1::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Reply<v1::StartContainerResponse> {
        self.engine.start_container(&request.into_inner().container_id).await.map_err(status)?;
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Reply<v1::StopContainerResponse> {
        let request = request.into_inner();
        self.engine.stop_container(&request.container_id, request.timeout).await.map_err(status)?;
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Reply<v1::RemoveContainerResponse> {
        self.engine.remove_container(&request.into_inner().container_id).await.map_err(status)?;
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Reply<v1::ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut containers = self.engine.containers();
        containers.retain(|container| {
            container.id.starts_with(&filter.id)
                && container.record.sandbox.starts_with(&filter.pod_sandbox_id)
                && filter.state.as_ref().is_none_or(|asked| asked.state() == view::container_state(container))
                && matches(&container.record.config.labels, &filter.label_selector)
        });
        let containers = containers.iter().map(|container| view::container(container)).collect();
        Ok(Response::new(v1::ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Reply<v1::ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.engine.container(&request.container_id).map_err(status)?;
        let info = if request.verbose { view::container_info(&container) } else { HashMap::new() };
        Ok(Response::new(v1::ContainerStatusResponse {
            status: Some(view::container_status(&container)),
            info,
        }))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Reply<v1::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let wanted = request.linux.ok_or_else(|| Status::invalid_argument("linux resources are missing"))?;
        self.engine.update_resources(&request.container_id, wanted).await.map_err(status)?;
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Reply<v1::ReopenContainerLogResponse> {
        self.engine.reopen_log(&request.into_inner().container_id).await.map_err(status)?;
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Reply<v1::ExecSyncResponse> {
        let request = request.into_inner();
        let output = self
            .engine
            .exec_sync(&request.container_id, request.cmd, request.timeout)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.code,
        }))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Reply<v1::ExecResponse> {
        let request = request.into_inner();
        let container = self.engine.container(&request.container_id).map_err(status)?;
        if !container.is_running() {
            return Err(Status::failed_precondition(format!("container {} is not running", container.id)));
        }
        let work = Work::Exec(ExecRequest {
            container: container.id.clone(),
            command: request.cmd,
            terminal: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            // A terminal has one output.
            stderr: request.stderr && !request.tty,
        });
        Ok(Response::new(v1::ExecResponse { url: self.engine.tickets.issue(work) }))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Reply<v1::AttachResponse> {
        let request = request.into_inner();
        let container = self.engine.container(&request.container_id).map_err(status)?;
        let terminal = container.record.config.tty;
        let work = Work::Attach {
            container: container.id.clone(),
            stdin: request.stdin && container.record.config.stdin,
            stdout: request.stdout,
            stderr: request.stderr && !terminal,
            terminal,
        };
        Ok(Response::new(v1::AttachResponse { url: self.engine.tickets.issue(work) }))
    }

    async fn port_forward(&self, request: Request<v1::PortForwardRequest>) -> Reply<v1::PortForwardResponse> {
        let request = request.into_inner();
        let sandbox = self.engine.sandbox(&request.pod_sandbox_id).map_err(status)?;
        if !sandbox.record().ready {
            return Err(Status::failed_precondition(format!("sandbox {} is not ready", sandbox.id)));
        }
        let url = self.engine.tickets.issue(Work::PortForward { sandbox: sandbox.id.clone() });
        Ok(Response::new(v1::PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Reply<v1::ContainerStatsResponse> {
        let container = self.engine.container(&request.into_inner().container_id).map_err(status)?;
        let engine = self.engine.clone();
        let stats = blocking(move || Ok(engine.container_stats(&container))).await.map_err(status)?;
        Ok(Response::new(v1::ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Reply<v1::ListContainerStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut containers = self.engine.containers();
        containers.retain(|container| {
            container.is_running()
                && container.id.starts_with(&filter.id)
                && container.record.sandbox.starts_with(&filter.pod_sandbox_id)
                && matches(&container.record.config.labels, &filter.label_selector)
        });
        let engine = self.engine.clone();
        let stats = blocking(move || Ok(containers.iter().map(|c| engine.container_stats(c)).collect()));
        Ok(Response::new(v1::ListContainerStatsResponse { stats: stats.await.map_err(status)? }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Reply<v1::PodSandboxStatsResponse> {
        let sandbox = self.engine.sandbox(&request.into_inner().pod_sandbox_id).map_err(status)?;
        let engine = self.engine.clone();
        let stats = blocking(move || Ok(engine.sandbox_stats(&sandbox))).await.map_err(status)?;
        Ok(Response::new(v1::PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Reply<v1::ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut sandboxes = self.engine.sandboxes();
        sandboxes.retain(|sandbox| {
            let record = sandbox.record();
            record.ready
                && record.id.starts_with(&filter.id)
                && matches(&record.config.labels, &filter.label_selector)
        });
        let engine = self.engine.clone();
        let stats = blocking(move || Ok(sandboxes.iter().map(|s| engine.sandbox_stats(s)).collect()));
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats: stats.await.map_err(status)? }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Reply<v1::UpdateRuntimeConfigResponse> {
        let config = request.into_inner().runtime_config.and_then(|config| config.network_config);
        if let Some(network) = config {
            self.engine.set_pod_cidrs(&network.pod_cidr).map_err(status)?;
        }
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Reply<v1::StatusResponse> {
        let runtime =
            v1::RuntimeCondition { r#type: "RuntimeReady".to_owned(), status: true, ..Default::default() };
        Ok(Response::new(v1::StatusResponse {
            status: Some(v1::RuntimeStatus { conditions: vec![runtime, self.network_condition()] }),
            info: HashMap::new(),
            runtime_handlers: vec![v1::RuntimeHandler {
                name: String::new(),
                features: Some(v1::RuntimeHandlerFeatures {
                    recursive_read_only_mounts: true,
                    user_namespaces: self.engine.facts.user_namespaces,
                }),
            }],
            features: Some(v1::RuntimeFeatures { supplemental_groups_policy: true }),
        }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Reply<v1::CheckpointContainerResponse> {
        Err(Status::unimplemented("method CheckpointContainer not implemented"))
    }

    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = Result<v1::ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Reply<Self::GetContainerEventsStream> {
        let mut events = self.engine.events();
        let runtime = Self::new(self.engine.clone());
        let (sender, receiver) = mpsc::channel(64);
        let shutdown = self.engine.shutdown_token();
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = sender.closed() => return,
                    event = events.recv() => event,
                };
                let sent = match event {
                    Ok(event) => sender.send(Ok(runtime.event(event))).await,
                    // Events were lost: the kubelet lists again when its stream breaks.
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        let _ = sender.send(Err(Status::resource_exhausted("events were lost"))).await;
                        return;
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                if sent.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Reply<v1::ListMetricDescriptorsResponse> {
        Err(Status::unimplemented("method ListMetricDescriptors not implemented"))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Reply<v1::ListPodSandboxMetricsResponse> {
        Err(Status::unimplemented("method ListPodSandboxMetrics not implemented"))
    }

    async fn runtime_config(&self, _: Request<v1::RuntimeConfigRequest>) -> Reply<v1::RuntimeConfigResponse> {
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs as i32 };
        Ok(Response::new(v1::RuntimeConfigResponse { linux: Some(linux) }))
    }
}
