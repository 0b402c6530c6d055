//! CRI's lists as streams: what the unary calls list, in parts. A list has no bound that a message would not break.

use std::pin::Pin;

use cri::streams::{self, image_service_server, runtime_service_server};
use cri::v1;
use cri::v1::image_service_server::ImageService as _;
use cri::v1::runtime_service_server::RuntimeService as _;
use futures::Stream;
use tonic::{Request, Response, Status};

use super::{Image, Runtime};

/// How many items a message has: a container with its labels and annotations is seldom more than 100 KiB.
const PART: usize = 100;

type Parts<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Reply<T> = Result<Response<Parts<T>>, Status>;

fn in_parts<I, T>(items: Vec<I>, part: impl Fn(Vec<I>) -> T + Send + 'static) -> Reply<T>
where
    I: Send + 'static,
    T: 'static,
{
    let mut items = items.into_iter();
    let parts = std::iter::from_fn(move || {
        let next: Vec<I> = items.by_ref().take(PART).collect();
        (!next.is_empty()).then(|| Ok(part(next)))
    });
    Ok(Response::new(Box::pin(futures::stream::iter(parts))))
}

#[tonic::async_trait]
impl runtime_service_server::RuntimeService for Runtime {
    type StreamPodSandboxesStream = Parts<streams::StreamPodSandboxesResponse>;
    type StreamContainersStream = Parts<streams::StreamContainersResponse>;
    type StreamContainerStatsStream = Parts<streams::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Parts<streams::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<streams::StreamPodSandboxesRequest>,
    ) -> Reply<streams::StreamPodSandboxesResponse> {
        let request = v1::ListPodSandboxRequest { filter: request.into_inner().filter };
        let all = self.list_pod_sandbox(Request::new(request)).await?.into_inner().items;
        in_parts(all, |pod_sandboxes| streams::StreamPodSandboxesResponse { pod_sandboxes })
    }

    async fn stream_containers(
        &self,
        request: Request<streams::StreamContainersRequest>,
    ) -> Reply<streams::StreamContainersResponse> {
        let request = v1::ListContainersRequest { filter: request.into_inner().filter };
        let all = self.list_containers(Request::new(request)).await?.into_inner().containers;
        in_parts(all, |containers| streams::StreamContainersResponse { containers })
    }

    async fn stream_container_stats(
        &self,
        request: Request<streams::StreamContainerStatsRequest>,
    ) -> Reply<streams::StreamContainerStatsResponse> {
        let request = v1::ListContainerStatsRequest { filter: request.into_inner().filter };
        let all = self.list_container_stats(Request::new(request)).await?.into_inner().stats;
        in_parts(all, |container_stats| streams::StreamContainerStatsResponse { container_stats })
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<streams::StreamPodSandboxStatsRequest>,
    ) -> Reply<streams::StreamPodSandboxStatsResponse> {
        let request = v1::ListPodSandboxStatsRequest { filter: request.into_inner().filter };
        let all = self.list_pod_sandbox_stats(Request::new(request)).await?.into_inner().stats;
        in_parts(all, |pod_sandbox_stats| streams::StreamPodSandboxStatsResponse { pod_sandbox_stats })
    }
}

#[tonic::async_trait]
impl image_service_server::ImageService for Image {
    type StreamImagesStream = Parts<streams::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<streams::StreamImagesRequest>,
    ) -> Reply<streams::StreamImagesResponse> {
        let request = v1::ListImagesRequest { filter: request.into_inner().filter };
        let all = self.list_images(Request::new(request)).await?.into_inner().images;
        in_parts(all, |images| streams::StreamImagesResponse { images })
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn parts_are_bounded_and_hold_all() {
        for (items, expected) in [(0, vec![]), (PART, vec![PART]), (2 * PART + 1, vec![PART, PART, 1])] {
            let parts = in_parts((0..items).collect(), |part| part).unwrap().into_inner();
            let parts: Vec<Vec<usize>> = parts.try_collect().await.unwrap();
            assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), expected);
            assert_eq!(parts.concat(), (0..items).collect::<Vec<_>>());
        }
    }
}
