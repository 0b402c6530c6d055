//! The pod resources API: what monitoring on the node asks for on a socket, to tell which container has which
//! device.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use api::Object;
use api::core::v1::{Container, Pod};
use cri::podresources as pr;
use cri::podresources::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::book::Device;
use super::{Devices, registration};
use crate::Error;
use crate::core::Core;
use crate::pod;

/// Serves it until the shutdown.
pub async fn serve(core: Arc<Core>, dir: PathBuf, shutdown: CancellationToken) -> Result<(), Error> {
    let Some(listener) = registration::listen(&dir) else {
        shutdown.cancelled().await;
        return Ok(());
    };
    let served = tonic::transport::Server::builder()
        .add_service(PodResourcesListerServer::new(Lister { core }))
        .serve_with_incoming_shutdown(
            tokio_stream::wrappers::UnixListenerStream::new(listener),
            shutdown.cancelled_owned(),
        )
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the socket of pods' resources ended");
    }
    let _ = std::fs::remove_file(dir.join(registration::SOCKET));
    Ok(())
}

struct Lister {
    core: Arc<Core>,
}

fn shown(resource: &str, id: &str, device: Option<&Device>) -> pr::ContainerDevices {
    let nodes = device.map(|d| d.numa_nodes.as_slice()).unwrap_or_default();
    let topology = pr::TopologyInfo { nodes: nodes.iter().map(|id| pr::NumaNode { id: *id }).collect() };
    pr::ContainerDevices {
        resource_name: resource.to_owned(),
        device_ids: vec![id.to_owned()],
        topology: (!nodes.is_empty()).then_some(topology),
    }
}

impl Devices {
    /// The devices of one container, one by one.
    fn shown_of(&self, pod_uid: &str, container: &str) -> Vec<pr::ContainerDevices> {
        let book = self.book();
        let of = book.allocations.get(&(pod_uid.to_owned(), container.to_owned()));
        let of = of.into_iter().flatten();
        of.flat_map(|(resource, allocation)| {
            let pool = book.pools.get(resource);
            allocation.devices.iter().map(move |id| shown(resource, id, pool.and_then(|pool| pool.get(id))))
        })
        .collect()
    }

    /// All devices that can be had.
    fn allocatable(&self) -> Vec<pr::ContainerDevices> {
        let book = self.book();
        let pools = book.pools.iter();
        pools
            .flat_map(|(resource, pool)| {
                let healthy = pool.iter().filter(|(_, device)| device.healthy);
                healthy.map(move |(id, device)| shown(resource, id, Some(device)))
            })
            .collect()
    }

    /// A pod's containers that live as long as it does, with what they have.
    /// `claimed` is what a container has by claims.
    pub(super) fn resources_of(
        &self,
        pod: &Pod,
        claimed: impl Fn(&Container) -> Vec<pr::DynamicResource>,
    ) -> pr::PodResources {
        let of = |container: &Container| pr::ContainerResources {
            name: container.name.clone(),
            devices: self.shown_of(pod.uid(), &container.name),
            dynamic_resources: claimed(container),
            ..Default::default()
        };
        let sidecars = pod::init_containers(pod).iter().filter(|c| pod::is_sidecar(c));
        pr::PodResources {
            name: pod.name().to_owned(),
            namespace: pod.namespace().to_owned(),
            containers: sidecars.chain(pod::containers(pod)).map(of).collect(),
        }
    }
}

impl Lister {
    fn resources_of(&self, pod: &Pod) -> pr::PodResources {
        self.core.devices.resources_of(pod, |container| self.core.dra.shown_of(pod, container))
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        self.core.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

// Upstream: pkg/kubelet/apis/podresources/server_v1.go
#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _: Request<pr::ListPodResourcesRequest>,
    ) -> Result<Response<pr::ListPodResourcesResponse>, Status> {
        let mut pods = self.pods();
        pods.retain(|pod| !pod::is_terminal_phase(pod::phase(pod)));
        let pod_resources = pods.iter().map(|pod| self.resources_of(pod)).collect();
        Ok(Response::new(pr::ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<pr::AllocatableResourcesRequest>,
    ) -> Result<Response<pr::AllocatableResourcesResponse>, Status> {
        let devices = self.core.devices.allocatable();
        Ok(Response::new(pr::AllocatableResourcesResponse { devices, ..Default::default() }))
    }

    async fn get(
        &self,
        request: Request<pr::GetPodResourcesRequest>,
    ) -> Result<Response<pr::GetPodResourcesResponse>, Status> {
        let pr::GetPodResourcesRequest { pod_name, pod_namespace } = request.into_inner();
        let pods = self.pods();
        let found = pods.iter().find(|pod| pod.name() == pod_name && pod.namespace() == pod_namespace);
        let found = found.ok_or_else(|| {
            Status::unknown(format!("pod {pod_name} in namespace {pod_namespace} not found"))
        })?;
        let pod_resources = Some(self.resources_of(found));
        Ok(Response::new(pr::GetPodResourcesResponse { pod_resources }))
    }
}
