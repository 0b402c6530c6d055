//! Evictions of pods that use more local storage than they said they would.

use api::Object;
use api::core::v1::{EmptyDirVolumeSource, Pod};
use std::collections::BTreeMap;

use crate::paths::Paths;
use crate::pod::{self, qos};
use crate::pressure;
use crate::runtime::{self, CONTAINER_NAME, POD_UID, Runtime};
use crate::status::Verdict;
use crate::volumes::usage;

const RESOURCE: &str = "ephemeral-storage";

/// What a pod uses of the node's disk, in bytes, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageUse {
    /// The emptyDir volumes that are on disk.
    pub volumes: BTreeMap<String, u64>,
    /// The writable layers of containers with their logs.
    pub containers: BTreeMap<String, u64>,
}

/// Whether anything bounds the pod's use of local storage.
pub fn is_limited(pod: &Pod) -> bool {
    limits_containers(pod) || on_disk(pod).any(|(_, source)| size_limit(source).is_some())
}

fn limits_containers(pod: &Pod) -> bool {
    pod::containers(pod).iter().any(|c| qos::limit(&c.resources, RESOURCE).is_some())
}

/// The emptyDir volumes that are not in memory, where the kernel keeps to the limit.
fn on_disk(pod: &Pod) -> impl Iterator<Item = (&str, &EmptyDirVolumeSource)> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes
        .filter_map(|v| Some((v.name.as_str(), v.empty_dir.as_ref()?)))
        .filter(|(_, source)| source.medium.as_deref().unwrap_or_default().is_empty())
}

fn size_limit(source: &EmptyDirVolumeSource) -> Option<u64> {
    let limit = qos::amount(RESOURCE, source.size_limit.as_ref()?);
    u64::try_from(limit).ok().filter(|l| *l > 0)
}

/// The first limit that the pod exceeds: of a volume, of the pod as a whole, or of a container.
// Upstream: pkg/kubelet/eviction/eviction_manager.go localStorageEviction
pub fn verdict(pod: &Pod, used: &StorageUse) -> Option<Verdict> {
    let evicted = |message| {
        let grace_seconds = Some(pressure::IMMEDIATE_GRACE_SECONDS);
        Some(Verdict { reason: "Evicted".into(), message, grace_seconds, ..Default::default() })
    };
    for (name, source) in on_disk(pod) {
        let limit = size_limit(source);
        if limit.is_some_and(|limit| used.volumes.get(name).is_some_and(|used| *used > limit)) {
            let limit = source.size_limit.as_ref().map(|q| q.0.as_str()).unwrap_or_default();
            return evicted(format!("Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. "));
        }
    }
    let total: u64 = used.volumes.values().chain(used.containers.values()).sum();
    let limit = qos::pod_limit(pod, RESOURCE).and_then(|l| u64::try_from(l).ok());
    if let Some(limit) = limit.filter(|limit| total > *limit) {
        return evicted(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            apimachinery::quantity::Quantity::parse(&limit.to_string())
                .map_or(limit.to_string(), |q| q.to_string())
        ));
    }
    for container in pod::containers(pod) {
        let limit = qos::limit(&container.resources, RESOURCE).and_then(|l| u64::try_from(l).ok());
        let used = used.containers.get(&container.name).copied().unwrap_or(0);
        if limit.is_some_and(|limit| used > limit) {
            let given = container.resources.iter().flat_map(|r| r.limits.iter().flatten());
            let given = given.filter(|(name, _)| *name == RESOURCE).map(|(_, q)| q.0.as_str()).next();
            return evicted(format!(
                "Container {} exceeded its local ephemeral storage limit {:?}. ",
                container.name,
                given.unwrap_or_default()
            ));
        }
    }
    None
}

/// Measures what a pod uses: its volumes, and its containers if they have limits or if `all` is asked for.
pub async fn measure(
    pod: &Pod,
    paths: &Paths,
    runtime: &dyn Runtime,
    all: bool,
) -> runtime::Result<StorageUse> {
    let volumes: Vec<_> =
        on_disk(pod).map(|(name, _)| (name.to_owned(), paths.volume(pod.uid(), "empty-dir", name))).collect();
    let logs = paths.pod_logs(pod);
    let names: Vec<String> = pod::containers(pod).iter().map(|c| c.name.clone()).collect();
    let of_containers = all || limits_containers(pod);
    let walked = tokio::task::spawn_blocking(move || StorageUse {
        volumes: volumes.into_iter().map(|(name, dir)| (name, usage::of_tree(&dir).0)).collect(),
        containers: match of_containers {
            true => {
                names.into_iter().map(|name| (name.clone(), usage::of_tree(&logs.join(name)).0)).collect()
            }
            false => BTreeMap::new(),
        },
    });
    let mut used = walked.await.unwrap_or_default();
    if of_containers {
        for stats in runtime.container_stats().await? {
            let labels = stats.attributes.map(|a| a.labels).unwrap_or_default();
            let bytes = stats.writable_layer.and_then(|w| w.used_bytes).map_or(0, |v| v.value);
            if labels.get(POD_UID).is_some_and(|uid| uid == pod.uid())
                && let Some(sum) = labels.get(CONTAINER_NAME).and_then(|name| used.containers.get_mut(name))
            {
                *sum += bytes;
            }
        }
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_exceeds_its_limit() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {
                "containers": [
                    {"name": "a", "resources": {"limits": {"ephemeral-storage": "10Ki"}}},
                    {"name": "b", "resources": {"limits": {"ephemeral-storage": "20Ki"}}},
                ],
                "volumes": [
                    {"name": "small", "emptyDir": {"sizeLimit": "1Ki"}},
                    {"name": "free", "emptyDir": {}},
                    {"name": "memory", "emptyDir": {"sizeLimit": "1Ki", "medium": "Memory"}},
                ],
            },
        }))
        .unwrap();
        let cases = [
            (vec![("small", 1024), ("free", 1024), ("memory", 9999)], vec![("a", 1024)], None),
            (
                vec![("small", 1025)],
                vec![],
                Some("Usage of EmptyDir volume \"small\" exceeds the limit \"1Ki\". "),
            ),
            (
                vec![("free", 30 << 10)],
                vec![("a", 1024)],
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 30720. "),
            ),
            (
                vec![],
                vec![("a", 11 << 10)],
                Some("Container a exceeded its local ephemeral storage limit \"10Ki\". "),
            ),
        ];
        let map = |pairs: Vec<(&str, u64)>| pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        assert!(is_limited(&pod));
        for (volumes, containers, want) in cases {
            let used = StorageUse { volumes: map(volumes), containers: map(containers) };
            assert_eq!(verdict(&pod, &used).map(|v| v.message).as_deref(), want, "{used:?}");
        }
    }
}
