//! A node that has the pod's large images already starts it sooner.

use std::collections::HashMap;

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
        nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let spec = pod.spec()?;
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let images: Vec<String> = containers.filter_map(|c| c.image.as_deref()).map(normalized).collect();
        let total = cluster.nodes().len() as f64;
        // Each image counts by how many nodes have it, so that not all pods flock to the first that does.
        let spread: HashMap<String, f64> = images
            .iter()
            .map(|image| {
                (image.clone(), nodes.iter().filter(|n| n.images.contains_key(image)).count() as f64 / total)
            })
            .filter(|(_, share)| *share > 0.0)
            .collect();
        (!spread.is_empty()).then(|| Box::new(Present { images, spread }) as Box<dyn Score>)
    }
}

/// An image without a tag is its `latest`.
fn normalized(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains(':') || image.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

struct Present {
    images: Vec<String>,
    spread: HashMap<String, f64>,
}

impl Score for Present {
    fn score(&self, node: &NodeInfo) -> i64 {
        let bytes: i64 = self
            .images
            .iter()
            .filter_map(|image| Some((*node.images.get(image)? as f64 * self.spread.get(image)?) as i64))
            .sum();
        let most = MAX_CONTAINER_BYTES * self.images.len() as i64;
        MAX_SCORE * (bytes.clamp(MIN_BYTES, most) - MIN_BYTES) / (most - MIN_BYTES)
    }
}
