//! `/stats/summary`, `/metrics` and `/configz`: what the node uses.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use api::Object;
use api::core::v1::Pod;
use cri::v1 as pb;
use http::StatusCode;
use serde_json::{Value, json};

use super::{Answer, json as answer_json, text};
use crate::cgroup;
use crate::core::Core;
use crate::runtime::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID, describe};

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

/// The cgroups of the pods that are here, by UID.
fn pod_cgroups(core: &Core) -> Vec<(String, linux::cgroups::Cgroup)> {
    let pods = core.pods.lock().unwrap_or_else(PoisonError::into_inner);
    let group = |pod: &Pod| linux::cgroups::Cgroup::new(&cgroup::path(&core.config.cgroup_root, pod));
    pods.values().map(|pod| (pod.uid().to_owned(), group(pod))).collect()
}

/// A line of the text format.
fn line(out: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    let labels: Vec<String> =
        labels.iter().map(|(k, v)| format!("{k}={}", crate::container::downward::quote(v))).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    writeln!(out, "{name}{labels} {value}").expect("writing to a String cannot fail");
}

/// One metric: its name, its type, and each value with its labels.
type Family<'a> = (&'a str, &'a str, Vec<(Vec<(&'a str, String)>, f64)>);

/// What metrics-server reads.
// Upstream: pkg/kubelet/metrics/collectors/resource_metrics.go
pub async fn resource(core: &Core) -> Answer {
    let (stats, containers) =
        match (core.runtime.container_stats().await, core.runtime.containers(None).await) {
            (Ok(stats), Ok(containers)) => (stats, containers),
            (Err(error), _) | (_, Err(error)) => {
                return text(StatusCode::INTERNAL_SERVER_ERROR, describe(&error));
            }
        };
    let node = linux::cgroups::Cgroup::new(Path::new("/")).usage();
    let (mut cpu, mut memory, mut started) = (Vec::new(), Vec::new(), Vec::new());
    for container in &stats {
        let attributes = container.attributes.clone().unwrap_or_default();
        let label = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
        let names = vec![
            ("container", label(CONTAINER_NAME)),
            ("namespace", label(POD_NAMESPACE)),
            ("pod", label(POD_NAME)),
        ];
        let nanos = container.cpu.as_ref().and_then(|c| number(c.usage_core_nano_seconds.as_ref()));
        cpu.push((names.clone(), nanos.unwrap_or(0) as f64 / 1e9));
        let bytes = container.memory.as_ref().and_then(|m| number(m.working_set_bytes.as_ref()));
        memory.push((names.clone(), bytes.unwrap_or(0) as f64));
        if let Some(known) = containers.iter().find(|known| known.id == attributes.id) {
            started.push((names, known.created_at as f64 / 1e9));
        }
    }
    let (mut pod_cpu, mut pod_memory) = (Vec::new(), Vec::new());
    let pods: Vec<Arc<Pod>> =
        core.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
    for pod in pods {
        let group = linux::cgroups::Cgroup::new(&cgroup::path(&core.config.cgroup_root, &pod));
        if !group.exists() {
            continue;
        }
        let usage = group.usage();
        let names = vec![("namespace", pod.namespace().to_owned()), ("pod", pod.name().to_owned())];
        pod_cpu.push((names.clone(), usage.cpu_nanos as f64 / 1e9));
        pod_memory.push((names, usage.memory_working_set_bytes as f64));
    }
    let one = |value: f64| vec![(Vec::new(), value)];
    let families: [Family; 8] = [
        ("container_cpu_usage_seconds_total", "counter", cpu),
        ("container_memory_working_set_bytes", "gauge", memory),
        ("container_start_time_seconds", "gauge", started),
        ("node_cpu_usage_seconds_total", "counter", one(node.cpu_nanos as f64 / 1e9)),
        ("node_memory_working_set_bytes", "gauge", one(node.memory_working_set_bytes as f64)),
        ("pod_cpu_usage_seconds_total", "counter", pod_cpu),
        ("pod_memory_working_set_bytes", "gauge", pod_memory),
        ("resource_scrape_error", "gauge", one(0.0)),
    ];
    let mut out = String::new();
    for (name, kind, values) in families.into_iter().filter(|(.., values)| !values.is_empty()) {
        writeln!(out, "# TYPE {name} {kind}").expect("writing to a String cannot fail");
        for (labels, value) in values {
            let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
            line(&mut out, name, &labels, value);
        }
    }
    text(StatusCode::OK, out)
}

/// What the kubelet says of itself.
pub fn own(core: &Core) -> Answer {
    let pods = core.pods.lock().unwrap_or_else(PoisonError::into_inner).len();
    let mut out = String::new();
    line(&mut out, "kubelet_node_name", &[("node", &core.config.node_name)], 1.0);
    line(&mut out, "kubelet_desired_pods", &[], pods as f64);
    text(StatusCode::OK, out)
}

pub fn configz(core: &Core) -> Answer {
    let config = &core.config;
    answer_json(&json!({"kubeletconfig": {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "address": config.address.to_string(),
        "port": config.port,
        "clusterDomain": config.cluster_domain,
        "clusterDNS": config.cluster_dns.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "maxPods": config.max_pods,
        "cgroupDriver": "cgroupfs",
        "staticPodPath": config.static_pod_path,
        "resolvConf": config.resolv_conf,
        "imageGCHighThresholdPercent": config.image_gc_high_percent,
        "imageGCLowThresholdPercent": config.image_gc_low_percent,
    }}))
}
