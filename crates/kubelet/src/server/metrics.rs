//! `/stats/summary`, `/metrics` and `/configz`: what the node uses.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::PoisonError;

use cri::v1 as pb;
use http::StatusCode;
use serde_json::{Value, json};

use super::{Answer, json as answer_json, text};
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

/// The summary that metrics-server and `kubectl top` read.
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
        if let Some(containers) = pod["containers"].as_array_mut() {
            containers.push(json!({
                "name": label(CONTAINER_NAME),
                "startTime": time,
                "cpu": cpu(container.cpu.as_ref(), &time),
                "memory": memory(container.memory.as_ref(), &time),
            }));
        }
    }
    let usage = linux::cgroups::Cgroup::new(std::path::Path::new("/")).usage();
    let node = json!({
        "nodeName": core.config.node_name,
        "startTime": time,
        "cpu": {"time": time, "usageCoreNanoSeconds": usage.cpu_nanos},
        "memory": {
            "time": time,
            "usageBytes": usage.memory_bytes,
            "workingSetBytes": usage.memory_working_set_bytes,
            "rssBytes": usage.memory_rss_bytes,
        },
    });
    answer_json(&json!({"node": node, "pods": pods.into_values().collect::<Vec<_>>()}))
}

/// A line of the text format.
fn line(out: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    let labels: Vec<String> =
        labels.iter().map(|(k, v)| format!("{k}={}", crate::container::downward::quote(v))).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    writeln!(out, "{name}{labels} {value}").expect("writing to a String cannot fail");
}

pub async fn resource(core: &Core) -> Answer {
    let stats = match core.runtime.container_stats().await {
        Ok(stats) => stats,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, describe(&error)),
    };
    let mut out = String::new();
    let usage = linux::cgroups::Cgroup::new(std::path::Path::new("/")).usage();
    line(&mut out, "node_cpu_usage_seconds_total", &[], usage.cpu_nanos as f64 / 1e9);
    line(&mut out, "node_memory_working_set_bytes", &[], usage.memory_working_set_bytes as f64);
    for container in &stats {
        let labels = container.attributes.as_ref().map(|a| a.labels.clone()).unwrap_or_default();
        let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
        let (name, namespace, pod) = (label(CONTAINER_NAME), label(POD_NAMESPACE), label(POD_NAME));
        let labels = [("container", name.as_str()), ("namespace", &namespace), ("pod", &pod)];
        let nanos =
            container.cpu.as_ref().and_then(|c| number(c.usage_core_nano_seconds.as_ref())).unwrap_or(0);
        line(&mut out, "container_cpu_usage_seconds_total", &labels, nanos as f64 / 1e9);
        let bytes = container.memory.as_ref().and_then(|m| number(m.working_set_bytes.as_ref())).unwrap_or(0);
        line(&mut out, "container_memory_working_set_bytes", &labels, bytes as f64);
    }
    line(&mut out, "resource_scrape_error", &[], 0.0);
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
