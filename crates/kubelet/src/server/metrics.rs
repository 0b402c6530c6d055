//! `/stats/summary`, `/metrics` and those below it: what the node uses.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use api::Object;
use api::core::v1::Pod;
use cri::v1 as pb;
use http::StatusCode;
use serde_json::{Value, json};

use super::{Answer, json as answer_json, text};
use crate::core::Core;
use crate::exposition::{self, Family, Kind, LabelSet};
use crate::runtime::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID, describe};
use crate::volumes::usage::{Usage, VolumeUsage};
use crate::{cgroup, pod};

fn number(value: Option<&pb::UInt64Value>) -> Option<u64> {
    value.map(|v| v.value)
}

fn cpu(usage: Option<&pb::CpuUsage>, time: &str) -> Value {
    json!({
        "time": time,
        "usageNanoCores": usage.and_then(|u| number(u.usage_nano_cores.as_ref())),
        "usageCoreNanoSeconds": usage.and_then(|u| number(u.usage_core_nano_seconds.as_ref())),
    })
}

fn memory(usage: Option<&pb::MemoryUsage>, time: &str) -> Value {
    json!({
        "time": time,
        "workingSetBytes": usage.and_then(|u| number(u.working_set_bytes.as_ref())),
        "usageBytes": usage.and_then(|u| number(u.usage_bytes.as_ref())),
        "rssBytes": usage.and_then(|u| number(u.rss_bytes.as_ref())),
    })
}

/// What the kernel says of one filesystem.
fn filesystem(path: &Path, time: &str) -> Value {
    let Ok(disk) = rustix::fs::statvfs(path) else { return json!({"time": time}) };
    json!({
        "time": time,
        "availableBytes": disk.f_bavail * disk.f_frsize,
        "capacityBytes": disk.f_blocks * disk.f_frsize,
        "usedBytes": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
        "inodesFree": disk.f_ffree,
        "inodes": disk.f_files,
        "inodesUsed": disk.f_files - disk.f_ffree,
    })
}

/// What a cgroup has used, as the summary says it.
fn of_cgroup(usage: &linux::cgroups::Usage, limit: u64, time: &str) -> (Value, Value) {
    let memory = json!({
        "time": time,
        "availableBytes": limit.saturating_sub(usage.memory_working_set_bytes),
        "usageBytes": usage.memory_bytes,
        "workingSetBytes": usage.memory_working_set_bytes,
        "rssBytes": usage.memory_rss_bytes,
        "pageFaults": usage.page_faults,
        "majorPageFaults": usage.major_page_faults,
    });
    (json!({"time": time, "usageCoreNanoSeconds": usage.cpu_nanos}), memory)
}

/// The summary that monitoring reads.
// Upstream: kubelet/pkg/apis/stats/v1alpha1/types.go Summary
pub async fn summary(core: &Core) -> Answer {
    let stats = match core.runtime.container_stats().await {
        Ok(stats) => stats,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, describe(&error)),
    };
    let time = core.config.clock.now().to_string();
    let mut pods: BTreeMap<String, Value> = BTreeMap::new();
    for container in &stats {
        let labels = container.attributes.as_ref().map(|a| a.labels.clone()).unwrap_or_default();
        let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
        let pod = pods.entry(label(POD_UID)).or_insert_with(|| {
            let reference =
                json!({"name": label(POD_NAME), "namespace": label(POD_NAMESPACE), "uid": label(POD_UID)});
            json!({"podRef": reference, "startTime": time, "containers": []})
        });
        let layer = container.writable_layer.as_ref();
        let layer = layer.map(|layer| {
            json!({
                "time": time,
                "usedBytes": number(layer.used_bytes.as_ref()),
                "inodesUsed": number(layer.inodes_used.as_ref()),
            })
        });
        if let Some(containers) = pod["containers"].as_array_mut() {
            containers.push(json!({
                "name": label(CONTAINER_NAME),
                "startTime": time,
                "cpu": cpu(container.cpu.as_ref(), &time),
                "memory": memory(container.memory.as_ref(), &time),
                "rootfs": layer,
            }));
        }
    }
    for (uid, group) in pod_cgroups(core) {
        let Some(pod) = pods.get_mut(&uid) else { continue };
        let usage = group.usage();
        (pod["cpu"], pod["memory"]) = of_cgroup(&usage, usage.memory_limit_bytes.unwrap_or(0), &time);
        pod["process_stats"] = json!({"process_count": usage.pids});
    }
    for pod in known_pods(core) {
        let Some(stats) = pods.get_mut(pod.uid()) else { continue };
        let volumes = core.volumes.usage(&pod).await;
        stats["volume"] = volumes.iter().map(|volume| of_volume(&pod, volume, &time)).collect();
    }
    let capacity = u64::try_from(core.machine.memory).unwrap_or(0);
    let root = linux::cgroups::Cgroup::new(Path::new("/"));
    let (node_cpu, node_memory) = of_cgroup(&root.usage(), capacity, &time);
    let images = core.runtime.image_filesystem().await.ok().flatten().and_then(|f| f.fs_id);
    let image_fs = images.map(|images| filesystem(Path::new(&images.mountpoint), &time));
    let node = json!({
        "nodeName": core.config.node_name,
        "startTime": time,
        "cpu": node_cpu,
        "memory": node_memory,
        "fs": filesystem(&core.config.root_dir, &time),
        "runtime": {"imageFs": image_fs},
    });
    answer_json(&json!({"node": node, "pods": pods.into_values().collect::<Vec<_>>()}))
}

fn known_pods(core: &Core) -> Vec<Arc<Pod>> {
    core.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
}

fn of_volume(pod: &Pod, volume: &VolumeUsage, time: &str) -> Value {
    let usage = &volume.usage;
    let claim = volume.claim.as_ref().map(|name| json!({"name": name, "namespace": pod.namespace()}));
    let mut stats = json!({
        "time": time,
        "name": volume.name,
        "availableBytes": usage.available_bytes,
        "capacityBytes": usage.capacity_bytes,
        "usedBytes": usage.used_bytes,
        "inodesFree": usage.inodes_free,
        "inodes": usage.inodes,
        "inodesUsed": usage.inodes_used,
        "pvcRef": claim,
    });
    // What nobody knows is absent.
    stats.as_object_mut().into_iter().for_each(|fields| fields.retain(|_, value| !value.is_null()));
    stats
}

/// The cgroups of the pods that are here, by UID.
fn pod_cgroups(core: &Core) -> Vec<(String, linux::cgroups::Cgroup)> {
    let pods = core.pods.lock().unwrap_or_else(PoisonError::into_inner);
    let group = |pod: &Pod| linux::cgroups::Cgroup::new(&cgroup::path(&core.config.cgroup_root, pod));
    pods.values().map(|pod| (pod.uid().to_owned(), group(pod))).collect()
}

/// The containers' and pods' own values, and the node's.
// Upstream: pkg/kubelet/metrics/collectors/resource_metrics.go
pub async fn resource(core: &Core) -> Answer {
    let known = match Known::read(core).await {
        Ok(known) => known,
        Err(refusal) => return *refusal,
    };
    let stable = |name, help, kind| Family::new(name, help, kind);
    let mut cpu = stable(
        "container_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        Kind::Counter,
    );
    let mut memory = stable(
        "container_memory_working_set_bytes",
        "[STABLE] Current working set of the container in bytes",
        Kind::Gauge,
    );
    let mut swap = stable(
        "container_swap_usage_bytes",
        "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems",
        Kind::Gauge,
    );
    let mut started = stable(
        "container_start_time_seconds",
        "[STABLE] Start time of the container since unix epoch in seconds",
        Kind::Gauge,
    );
    for container in &known.containers {
        cpu.push(container.short_labels(), container.cpu_seconds());
        memory.push(container.short_labels(), container.memory(|m| m.working_set_bytes.as_ref()));
        started.push(container.short_labels(), container.started_seconds);
        let used = container.stats.swap.as_ref().and_then(|s| number(s.swap_usage_bytes.as_ref()));
        if let Some(used) = used {
            swap.push(container.short_labels(), used as f64);
        }
    }
    let mut pod_cpu = stable(
        "pod_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
        Kind::Counter,
    );
    let mut pod_memory = stable(
        "pod_memory_working_set_bytes",
        "[STABLE] Current working set of the pod in bytes",
        Kind::Gauge,
    );
    for (pod, usage) in &known.pods {
        let labels = || vec![("namespace", pod.namespace().to_owned()), ("pod", pod.name().to_owned())];
        pod_cpu.push(labels(), usage.cpu_nanos as f64 / 1e9);
        pod_memory.push(labels(), usage.memory_working_set_bytes as f64);
    }
    let node = linux::cgroups::Cgroup::new(Path::new("/")).usage();
    let node_cpu = Family::single(
        "node_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        Kind::Counter,
        node.cpu_nanos as f64 / 1e9,
    );
    let node_memory = Family::single(
        "node_memory_working_set_bytes",
        "[STABLE] Current working set of the node in bytes",
        Kind::Gauge,
        node.memory_working_set_bytes as f64,
    );
    let scraped = Family::single(
        "resource_scrape_error",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
        Kind::Gauge,
        0.0,
    );
    let all = [cpu, memory, started, swap, node_cpu, node_memory, pod_cpu, pod_memory, scraped];
    text(StatusCode::OK, exposition::text(&all))
}

/// A container with its numbers.
struct Measured {
    stats: pb::ContainerStats,
    listed: pb::Container,
    started_seconds: f64,
}

impl Measured {
    fn label(&self, key: &str) -> String {
        self.listed.labels.get(key).cloned().unwrap_or_default()
    }

    fn short_labels(&self) -> LabelSet {
        vec![
            ("container", self.label(CONTAINER_NAME)),
            ("namespace", self.label(POD_NAMESPACE)),
            ("pod", self.label(POD_NAME)),
        ]
    }

    /// With what cAdvisor knows besides.
    fn long_labels(&self) -> LabelSet {
        let mut labels = self.short_labels();
        labels.push(("id", self.listed.id.clone()));
        labels.push(("image", self.listed.image_ref.clone()));
        labels.push(("name", self.listed.id.clone()));
        labels
    }

    fn cpu_seconds(&self) -> f64 {
        let used = self.stats.cpu.as_ref().and_then(|c| number(c.usage_core_nano_seconds.as_ref()));
        used.unwrap_or(0) as f64 / 1e9
    }

    fn memory(&self, field: impl Fn(&pb::MemoryUsage) -> Option<&pb::UInt64Value>) -> f64 {
        self.stats.memory.as_ref().and_then(|m| number(field(m))).unwrap_or(0) as f64
    }
}

/// What is measured of containers and pods.
struct Known {
    containers: Vec<Measured>,
    pods: Vec<(Arc<Pod>, linux::cgroups::Usage)>,
}

impl Known {
    async fn read(core: &Core) -> Result<Self, Box<Answer>> {
        let failed =
            |error: tonic::Status| Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, describe(&error)));
        let stats = core.runtime.container_stats().await.map_err(failed)?;
        let listed = core.runtime.containers(None).await.map_err(failed)?;
        let of = |stats: pb::ContainerStats| {
            let id = &stats.attributes.as_ref()?.id;
            let listed = listed.iter().find(|known| known.id == *id)?.clone();
            let started_seconds = listed.created_at as f64 / 1e9;
            Some(Measured { stats, listed, started_seconds })
        };
        let with_usage = |pod: Arc<Pod>| {
            let group = linux::cgroups::Cgroup::new(&cgroup::path(&core.config.cgroup_root, &pod));
            group.exists().then(|| (pod, group.usage()))
        };
        Ok(Known {
            containers: stats.into_iter().filter_map(of).collect(),
            pods: known_pods(core).into_iter().filter_map(with_usage).collect(),
        })
    }
}

/// What dashboards read: the part of cAdvisor's metrics that CRI has numbers for.
// Upstream: github.com/google/cadvisor/metrics/prometheus.go
pub async fn cadvisor(core: &Core) -> Answer {
    let known = match Known::read(core).await {
        Ok(known) => known,
        Err(refusal) => return *refusal,
    };
    type Value = fn(&Measured) -> f64;
    let rows: [(&str, &str, Kind, Value); 6] = [
        (
            "container_cpu_usage_seconds_total",
            "Cumulative cpu time consumed in seconds.",
            Kind::Counter,
            Measured::cpu_seconds,
        ),
        ("container_memory_working_set_bytes", "Current working set in bytes.", Kind::Gauge, |c| {
            c.memory(|m| m.working_set_bytes.as_ref())
        }),
        (
            "container_memory_usage_bytes",
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
            Kind::Gauge,
            |c| c.memory(|m| m.usage_bytes.as_ref()),
        ),
        ("container_memory_rss", "Size of RSS in bytes.", Kind::Gauge, |c| {
            c.memory(|m| m.rss_bytes.as_ref())
        }),
        (
            "container_start_time_seconds",
            "Start time of the container since unix epoch in seconds.",
            Kind::Gauge,
            |c| c.started_seconds,
        ),
        (
            "container_fs_usage_bytes",
            "Number of bytes that are consumed by the container on this filesystem.",
            Kind::Gauge,
            |c| {
                let used = c.stats.writable_layer.as_ref().and_then(|l| number(l.used_bytes.as_ref()));
                used.unwrap_or(0) as f64
            },
        ),
    ];
    let mut all: Vec<Family> = rows
        .into_iter()
        .map(|(name, help, kind, value)| {
            let mut family = Family::new(name, help, kind);
            known.containers.iter().for_each(|c| family.push(c.long_labels(), value(c)));
            family
        })
        .collect();
    all.push(Family::single(
        "machine_cpu_cores",
        "Number of logical CPU cores.",
        Kind::Gauge,
        core.machine.milli_cpu as f64 / 1e3,
    ));
    all.push(Family::single(
        "machine_memory_bytes",
        "Amount of memory installed on the machine.",
        Kind::Gauge,
        core.machine.memory as f64,
    ));
    text(StatusCode::OK, exposition::text(&all))
}

/// What the kubelet says of itself.
// Upstream: pkg/kubelet/metrics/metrics.go
pub async fn own(core: &Core) -> Answer {
    let containers = core.runtime.containers(None).await.unwrap_or_default();
    let mut running: BTreeMap<&str, usize> = BTreeMap::new();
    let mut pods_running = std::collections::BTreeSet::new();
    for container in &containers {
        let state = match container.state() {
            pb::ContainerState::ContainerCreated => "created",
            pb::ContainerState::ContainerRunning => "running",
            pb::ContainerState::ContainerExited => "exited",
            pb::ContainerState::ContainerUnknown => "unknown",
        };
        *running.entry(state).or_default() += 1;
        if state == "running" {
            pods_running.insert(container.pod_sandbox_id.as_str());
        }
    }
    let mut of_containers = Family::new(
        "kubelet_running_containers",
        "[ALPHA] Number of containers currently running",
        Kind::Gauge,
    );
    for (state, count) in running {
        of_containers.push(vec![("container_state", state.to_owned())], count as f64);
    }
    let mut desired: BTreeMap<bool, usize> = BTreeMap::new();
    for pod in core.pods.lock().unwrap_or_else(PoisonError::into_inner).values() {
        *desired.entry(pod::is_static(pod)).or_default() += 1;
    }
    let mut of_pods = Family::new(
        "kubelet_desired_pods",
        "[ALPHA] The number of pods the kubelet is being instructed to run. static is true if the pod is not from \
         the apiserver.",
        Kind::Gauge,
    );
    for (is_static, count) in desired {
        of_pods.push(vec![("static", is_static.to_string())], count as f64);
    }
    let mut name =
        Family::new("kubelet_node_name", "[ALPHA] The node's name. The count is always 1.", Kind::Gauge);
    name.push(vec![("node", core.config.node_name.clone())], 1.0);
    let sandboxes = Family::single(
        "kubelet_running_pods",
        "[ALPHA] Number of pods that have a running pod sandbox",
        Kind::Gauge,
        pods_running.len() as f64,
    );
    let mut all = vec![name, sandboxes, of_containers, of_pods];
    let last = crate::shutdown::Record::read(core.paths.root());
    for (name, help, time) in [
        (
            "kubelet_graceful_shutdown_start_time_seconds",
            "[ALPHA] Last graceful shutdown start time since unix epoch in seconds",
            last.start,
        ),
        (
            "kubelet_graceful_shutdown_end_time_seconds",
            "[ALPHA] Last graceful shutdown end time since unix epoch in seconds",
            last.end,
        ),
    ] {
        let seconds = time.map_or(0, |time| time.as_second());
        all.push(Family::single(name, help, Kind::Gauge, seconds as f64));
    }
    all.extend(of_claims(core).await);
    text(StatusCode::OK, exposition::text(&all))
}

/// How full the volumes by claims are.
// Upstream: pkg/kubelet/metrics/collectors/volume_stats.go
async fn of_claims(core: &Core) -> Vec<Family> {
    type Value = fn(&Usage) -> Option<u64>;
    let rows: [(&str, &str, Value); 6] = [
        ("kubelet_volume_stats_capacity_bytes", "[ALPHA] Capacity in bytes of the volume", |u| {
            u.capacity_bytes
        }),
        ("kubelet_volume_stats_available_bytes", "[ALPHA] Number of available bytes in the volume", |u| {
            u.available_bytes
        }),
        ("kubelet_volume_stats_used_bytes", "[ALPHA] Number of used bytes in the volume", |u| u.used_bytes),
        ("kubelet_volume_stats_inodes", "[ALPHA] Maximum number of inodes in the volume", |u| u.inodes),
        ("kubelet_volume_stats_inodes_free", "[ALPHA] Number of free inodes in the volume", |u| {
            u.inodes_free
        }),
        ("kubelet_volume_stats_inodes_used", "[ALPHA] Number of used inodes in the volume", |u| {
            u.inodes_used
        }),
    ];
    let mut families = rows.map(|(name, help, _)| Family::new(name, help, Kind::Gauge));
    for pod in known_pods(core) {
        for volume in core.volumes.usage(&pod).await {
            let Some(claim) = volume.claim else { continue };
            for (family, (.., value)) in families.iter_mut().zip(rows) {
                let labels = || {
                    let namespace = pod.namespace().to_owned();
                    vec![("namespace", namespace), ("persistentvolumeclaim", claim.clone())]
                };
                value(&volume.usage).into_iter().for_each(|value| family.push(labels(), value as f64));
            }
        }
    }
    families.into()
}
