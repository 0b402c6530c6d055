//! CRI's image service.

use std::collections::BTreeSet;

use cri::v1::{self, image_service_server::ImageService};
use tonic::{Request, Response, Status};

use super::status;
use crate::SharedEngine;
use crate::engine::blocking;
use crate::images::{Credentials, How, ImageInfo, Store, pull};

/// Answers `ImageService`.
pub(crate) struct Image {
    engine: SharedEngine,
}

impl Image {
    pub(crate) fn new(engine: SharedEngine) -> Self {
        Self { engine }
    }
}

/// An image as CRI shows it. A user that is a number is told apart from a name, for `runAsNonRoot` is decided
/// by it.
///
/// What was imported from an archive is pinned, because it could not be pulled again if it were cleaned away.
fn shown(images: &Store, image: ImageInfo) -> v1::Image {
    let user = image.run.user.split(':').next().unwrap_or_default();
    let uid = user.parse::<i64>().ok();
    let pinned = image.repo_tags.iter().any(|tag| images.was_imported(tag));
    v1::Image {
        spec: Some(v1::ImageSpec { image: image.id.clone(), ..Default::default() }),
        id: image.id,
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
        size: image.size,
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        uid: uid.map(|value| v1::Int64Value { value }),
        pinned,
    }
}

fn reference(spec: Option<v1::ImageSpec>) -> Result<String, Status> {
    let name = spec.map(|spec| spec.image).unwrap_or_default();
    if name.is_empty() { Err(Status::invalid_argument("image reference is empty")) } else { Ok(name) }
}

#[tonic::async_trait]
impl ImageService for Image {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let filter = request.into_inner().filter.and_then(|filter| filter.image).map(|spec| spec.image);
        let images = match filter.filter(|name| !name.is_empty()) {
            Some(name) => self.engine.images.find(&name).into_iter().collect(),
            None => self.engine.images.list(),
        };
        Ok(Response::new(v1::ListImagesResponse {
            images: images.into_iter().map(|image| shown(&self.engine.images, image)).collect(),
        }))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let image = self.engine.images.find(&reference(request.image)?);
        let mut info = std::collections::HashMap::new();
        if let (true, Some(image)) = (request.verbose, &image) {
            info.insert("info".to_owned(), serde_json::to_string(&image.run).unwrap_or_default());
        }
        Ok(Response::new(v1::ImageStatusResponse {
            image: image.map(|image| shown(&self.engine.images, image)),
            info,
        }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let request = request.into_inner();
        let asked_plain =
            request.image.as_ref().is_some_and(|i| i.annotations.contains_key(crate::cli::PLAIN_HTTP));
        let name = reference(request.image)?;
        let credentials = Credentials::from_cri(request.auth.as_ref());
        let mut plain_http = self.engine.config.plain_http.clone();
        if asked_plain {
            plain_http.extend(name.split('/').next().map(str::to_owned));
        }
        let registries = self.engine.config.registries.clone();
        let how = How { credentials, plain_http, registries };
        let image_ref = pull(&self.engine.images, &name, &how).await.map_err(|e| status(e.into()))?;
        Ok(Response::new(v1::PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let name = reference(request.into_inner().image)?;
        let containers = self.engine.containers();
        let in_use: BTreeSet<String> = containers.iter().flat_map(|c| c.record.diff_ids.clone()).collect();
        let images = self.engine.images.clone();
        blocking(move || Ok(images.remove(&name, &in_use)?)).await.map_err(status)?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        let images = self.engine.images.clone();
        let mountpoint = images.root().display().to_string();
        let (bytes, inodes) = blocking(move || Ok(images.usage())).await.map_err(status)?;
        let usage = v1::FilesystemUsage {
            timestamp: self.engine.now(),
            fs_id: Some(v1::FilesystemIdentifier { mountpoint }),
            used_bytes: Some(v1::UInt64Value { value: bytes }),
            inodes_used: Some(v1::UInt64Value { value: inodes }),
        };
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}
