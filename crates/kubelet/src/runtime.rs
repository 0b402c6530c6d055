//! The way to a container runtime: [`Runtime`], and [`CriRuntime`], which is it over CRI gRPC.

use std::pin::Pin;

use async_trait::async_trait;
use cri::v1 as pb;
use cri::v1::image_service_client::ImageServiceClient;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use futures::{Stream, StreamExt};
use tonic::transport::Channel;

pub type Result<T> = std::result::Result<T, tonic::Status>;

/// The events of containers as the runtime reports them.
pub type Events = Pin<Box<dyn Stream<Item = Result<pb::ContainerEventResponse>> + Send>>;

/// The label by which containers and sandboxes name their pod.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// An error as upstream's messages carry it: Go's gRPC wording, which users grep for.
pub fn describe(status: &tonic::Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

pub fn is_not_found(status: &tonic::Status) -> bool {
    status.code() == tonic::Code::NotFound
}

/// What the kubelet asks of a container runtime, one method a CRI call. Tests put a fake here.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    async fn version(&self) -> Result<pb::VersionResponse>;
    async fn status(&self) -> Result<pb::StatusResponse>;
    async fn set_pod_cidr(&self, pod_cidr: &str) -> Result<()>;

    async fn run_sandbox(&self, config: pb::PodSandboxConfig, handler: &str) -> Result<String>;
    async fn stop_sandbox(&self, id: &str) -> Result<()>;
    async fn remove_sandbox(&self, id: &str) -> Result<()>;
    async fn sandbox_status(&self, id: &str) -> Result<pb::PodSandboxStatus>;
    /// Of one pod, or of all.
    async fn sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<pb::PodSandbox>>;

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: pb::ContainerConfig,
        sandbox: pb::PodSandboxConfig,
    ) -> Result<String>;
    async fn start_container(&self, id: &str) -> Result<()>;
    async fn stop_container(&self, id: &str, timeout_seconds: i64) -> Result<()>;
    async fn remove_container(&self, id: &str) -> Result<()>;
    async fn containers(&self, pod_uid: Option<&str>) -> Result<Vec<pb::Container>>;
    async fn container_status(&self, id: &str) -> Result<pb::ContainerStatus>;
    async fn update_resources(&self, id: &str, resources: pb::LinuxContainerResources) -> Result<()>;
    /// `timeout_seconds` 0 waits for ever.
    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout_seconds: i64,
    ) -> Result<pb::ExecSyncResponse>;
    async fn reopen_log(&self, id: &str) -> Result<()>;
    async fn exec_url(&self, request: pb::ExecRequest) -> Result<String>;
    async fn attach_url(&self, request: pb::AttachRequest) -> Result<String>;
    async fn port_forward_url(&self, request: pb::PortForwardRequest) -> Result<String>;
    async fn events(&self) -> Result<Events>;
    async fn sandbox_stats(&self) -> Result<Vec<pb::PodSandboxStats>>;
    async fn container_stats(&self) -> Result<Vec<pb::ContainerStats>>;

    async fn image(&self, image: &str) -> Result<Option<pb::Image>>;
    async fn images(&self) -> Result<Vec<pb::Image>>;
    async fn pull_image(
        &self,
        image: &str,
        auth: Option<pb::AuthConfig>,
        sandbox: &pb::PodSandboxConfig,
    ) -> Result<String>;
    async fn remove_image(&self, image: &str) -> Result<()>;
    async fn image_filesystem(&self) -> Result<Option<pb::FilesystemUsage>>;
}

/// A runtime behind a CRI socket.
#[derive(Clone)]
pub struct CriRuntime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// Answers carry a pod's labels and an image's layers, never more than this.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

impl CriRuntime {
    pub fn new(channel: Channel) -> Self {
        CriRuntime {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES),
        }
    }
}

fn uid_selector(pod_uid: Option<&str>) -> std::collections::HashMap<String, String> {
    pod_uid.map(|uid| (POD_UID.to_owned(), uid.to_owned())).into_iter().collect()
}

fn image_spec(image: &str) -> Option<pb::ImageSpec> {
    Some(pb::ImageSpec { image: image.to_owned(), ..Default::default() })
}

fn missing(what: &str) -> tonic::Status {
    tonic::Status::internal(format!("the container runtime answered without {what}"))
}

#[async_trait]
impl Runtime for CriRuntime {
    async fn version(&self) -> Result<pb::VersionResponse> {
        let request = pb::VersionRequest { version: "v1".into() };
        Ok(self.runtime.clone().version(request).await?.into_inner())
    }

    async fn status(&self) -> Result<pb::StatusResponse> {
        Ok(self.runtime.clone().status(pb::StatusRequest { verbose: false }).await?.into_inner())
    }

    async fn set_pod_cidr(&self, pod_cidr: &str) -> Result<()> {
        let network_config = Some(pb::NetworkConfig { pod_cidr: pod_cidr.to_owned() });
        let runtime_config = Some(pb::RuntimeConfig { network_config });
        self.runtime.clone().update_runtime_config(pb::UpdateRuntimeConfigRequest { runtime_config }).await?;
        Ok(())
    }

    async fn run_sandbox(&self, config: pb::PodSandboxConfig, handler: &str) -> Result<String> {
        let request = pb::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        Ok(self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let request = pb::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let request = pb::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    async fn sandbox_status(&self, id: &str) -> Result<pb::PodSandboxStatus> {
        let request = pb::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        answer.status.ok_or_else(|| missing("a sandbox status"))
    }

    async fn sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<pb::PodSandbox>> {
        let filter = pb::PodSandboxFilter { label_selector: uid_selector(pod_uid), ..Default::default() };
        let request = pb::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.runtime.clone().list_pod_sandbox(request).await?.into_inner().items)
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: pb::ContainerConfig,
        sandbox: pb::PodSandboxConfig,
    ) -> Result<String> {
        let request = pb::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let request = pb::StartContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().start_container(request).await.map(drop)
    }

    async fn stop_container(&self, id: &str, timeout_seconds: i64) -> Result<()> {
        let request = pb::StopContainerRequest { container_id: id.to_owned(), timeout: timeout_seconds };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let request = pb::RemoveContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().remove_container(request).await.map(drop)
    }

    async fn containers(&self, pod_uid: Option<&str>) -> Result<Vec<pb::Container>> {
        let filter = pb::ContainerFilter { label_selector: uid_selector(pod_uid), ..Default::default() };
        let request = pb::ListContainersRequest { filter: Some(filter) };
        Ok(self.runtime.clone().list_containers(request).await?.into_inner().containers)
    }

    async fn container_status(&self, id: &str) -> Result<pb::ContainerStatus> {
        let request = pb::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime.clone().container_status(request).await?.into_inner();
        answer.status.ok_or_else(|| missing("a container status"))
    }

    async fn update_resources(&self, id: &str, resources: pb::LinuxContainerResources) -> Result<()> {
        let request = pb::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources),
            ..Default::default()
        };
        self.runtime.clone().update_container_resources(request).await.map(drop)
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout_seconds: i64,
    ) -> Result<pb::ExecSyncResponse> {
        let request = pb::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            timeout: timeout_seconds,
        };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        let request = pb::ReopenContainerLogRequest { container_id: id.to_owned() };
        self.runtime.clone().reopen_container_log(request).await.map(drop)
    }

    async fn exec_url(&self, request: pb::ExecRequest) -> Result<String> {
        Ok(self.runtime.clone().exec(request).await?.into_inner().url)
    }

    async fn attach_url(&self, request: pb::AttachRequest) -> Result<String> {
        Ok(self.runtime.clone().attach(request).await?.into_inner().url)
    }

    async fn port_forward_url(&self, request: pb::PortForwardRequest) -> Result<String> {
        Ok(self.runtime.clone().port_forward(request).await?.into_inner().url)
    }

    async fn events(&self) -> Result<Events> {
        let stream = self.runtime.clone().get_container_events(pb::GetEventsRequest {}).await?.into_inner();
        Ok(stream.boxed())
    }

    async fn sandbox_stats(&self) -> Result<Vec<pb::PodSandboxStats>> {
        let request = pb::ListPodSandboxStatsRequest { filter: None };
        Ok(self.runtime.clone().list_pod_sandbox_stats(request).await?.into_inner().stats)
    }

    async fn container_stats(&self) -> Result<Vec<pb::ContainerStats>> {
        let request = pb::ListContainerStatsRequest { filter: None };
        Ok(self.runtime.clone().list_container_stats(request).await?.into_inner().stats)
    }

    async fn image(&self, image: &str) -> Result<Option<pb::Image>> {
        let request = pb::ImageStatusRequest { image: image_spec(image), verbose: false };
        Ok(self.images.clone().image_status(request).await?.into_inner().image)
    }

    async fn images(&self) -> Result<Vec<pb::Image>> {
        Ok(self.images.clone().list_images(pb::ListImagesRequest { filter: None }).await?.into_inner().images)
    }

    async fn pull_image(
        &self,
        image: &str,
        auth: Option<pb::AuthConfig>,
        sandbox: &pb::PodSandboxConfig,
    ) -> Result<String> {
        let request =
            pb::PullImageRequest { image: image_spec(image), auth, sandbox_config: Some(sandbox.clone()) };
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        self.images.clone().remove_image(pb::RemoveImageRequest { image: image_spec(image) }).await.map(drop)
    }

    async fn image_filesystem(&self) -> Result<Option<pb::FilesystemUsage>> {
        let answer = self.images.clone().image_fs_info(pb::ImageFsInfoRequest {}).await?.into_inner();
        Ok(answer.image_filesystems.into_iter().next())
    }
}
