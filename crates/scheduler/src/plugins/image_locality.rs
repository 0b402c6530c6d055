//! A node that has the pod's large images already starts it sooner.

use crate::cluster::Cluster;
use crate::framework::{MAX_SCORE, Plugin, Score};
use crate::{NodeInfo, PodInfo};

/// Below so many bytes an image does not count; above so many for each container no more is gained.
///
/// Upstream: pkg/scheduler/framework/plugins/imagelocality/image_locality.go
const MIN_BYTES: i64 = 23 << 20;
const MAX_CONTAINER_BYTES: i64 = 1000 << 20;

pub struct ImageLocality;

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let spec = pod.spec()?;
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let images = containers.clone().filter_map(|container| container.image.as_deref());
        let volumes =
            spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
        let total = cluster.nodes().len() as f64;
        // Each image counts by how many nodes have it, so that not all pods flock to the first that does.
        let spread = images.chain(volumes).map(normalized).filter_map(|image| {
            let nodes = cluster.nodes_with_image(&image);
            (nodes > 0).then(|| (image, nodes as f64 / total))
        });
        let images: Vec<(String, f64)> = spread.collect();
        (!images.is_empty())
            .then(|| Box::new(Present { images, containers: containers.count() }) as Box<dyn Score>)
    }
}

/// An image without a tag is its `latest`.
fn normalized(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains(':') || image.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

struct Present {
    /// Those that any node has, with the share of nodes that do.
    images: Vec<(String, f64)>,
    containers: usize,
}

impl Score for Present {
    fn score(&self, node: &NodeInfo) -> i64 {
        let scaled = self.images.iter().filter_map(|(image, share)| {
            let bytes = *node.images.get(image)?;
            Some((bytes as f64 * share) as i64)
        });
        let most = MAX_CONTAINER_BYTES * self.containers.max(1) as i64;
        MAX_SCORE * (scaled.sum::<i64>().clamp(MIN_BYTES, most) - MIN_BYTES) / (most - MIN_BYTES)
    }
}
