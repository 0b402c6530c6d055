//! `/configz`: what the kubelet was told, in the form of its configuration.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Answer, json as answer};
use crate::backoff::go_duration;
use crate::config::Config;
use crate::node::allocatable::Resources;
use crate::pressure::Threshold;
use crate::{SwapBehavior, images};

pub fn answer_of(config: &Config) -> Answer {
    answer(&json!({ "kubeletconfig": of(config) }))
}

/// Thresholds as the configuration writes them: a map of those that are hard, or of the others.
fn thresholds(all: &[Threshold], hard: bool, value: impl Fn(&Threshold) -> Option<String>) -> Value {
    let of = all.iter().filter(|threshold| threshold.is_hard() == hard);
    let pairs = of.filter_map(|t| Some((t.signal.name().to_owned(), Value::from(value(t)?))));
    Value::Object(pairs.collect::<Map<_, _>>())
}

fn reserved(resources: &Resources) -> Value {
    resources.iter().map(|(name, amount)| (name.clone(), Value::from(amount.to_string()))).collect()
}

// Upstream: kubelet/config/v1beta1/types.go KubeletConfiguration
fn of(config: &Config) -> Value {
    let duration = |d: Duration| go_duration(d);
    let all = &config.eviction;
    let swap = match config.swap_behavior {
        SwapBehavior::NoSwap => "NoSwap",
        SwapBehavior::LimitedSwap => "LimitedSwap",
    };
    let mut told = json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "address": config.address.to_string(),
        "port": config.port,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
        },
        "authorization": {"mode": "Webhook"},
        "allowedUnsafeSysctls": config.sysctls.unsafe_patterns(),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": config.cgroup_root,
        "cgroupsPerQOS": true,
        "clusterDNS": config.cluster_dns.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "clusterDomain": config.cluster_domain,
        "containerLogMaxFiles": config.log_rotation.max_files,
        "containerLogMaxSize": config.log_rotation.max_bytes.to_string(),
        "containerRuntimeEndpoint": config.cri_endpoint,
        "cpuCFSQuota": true,
        "enableServer": config.tls.is_some(),
        "evictionHard": thresholds(all, true, |t| Some(t.limit())),
        "evictionSoft": thresholds(all, false, |t| Some(t.limit())),
        "evictionSoftGracePeriod": thresholds(all, false, |t| Some(duration(t.grace()))),
        "evictionMaxPodGracePeriod": config.eviction_max_pod_grace_seconds,
        "evictionPressureTransitionPeriod": duration(config.eviction_transition),
        "imageGCHighThresholdPercent": config.image_gc_high_percent,
        "imageGCLowThresholdPercent": config.image_gc_low_percent,
        "imagePullCredentialsVerificationPolicy": images::VERIFICATION,
        "maxPods": config.max_pods,
        "memorySwap": {"swapBehavior": swap},
        "nodeLeaseDurationSeconds": crate::node::LEASE_SECONDS,
        "nodeStatusReportFrequency": duration(crate::node::REPORT),
        "podLogsDir": config.pod_logs_dir,
        "providerID": config.provider_id,
        "registerNode": config.register,
        "registerWithTaints": config.taints,
        "resolvConf": config.resolv_conf,
        "staticPodPath": config.static_pod_path,
    });
    if let (Some(told), Value::Object(rest)) = (told.as_object_mut(), rest(config)) {
        told.extend(rest);
    }
    told
}

/// The rest, which one macro could not take as well.
fn rest(config: &Config) -> Value {
    let duration = |d: Duration| go_duration(d);
    json!({
        "crashLoopBackOff": {"maxContainerRestartPeriod": duration(config.max_restart_wait)},
        "enforceNodeAllocatable": if config.enforce_pods { json!(["pods"]) } else { json!(["none"]) },
        "imageMinimumGCAge": duration(config.image_min_age),
        "imageMaximumGCAge": duration(config.image_max_age.unwrap_or_default()),
        "kubeReserved": reserved(&config.kube_reserved),
        "systemReserved": reserved(&config.system_reserved),
        "nodeStatusMaxImages": config.max_images,
        "podPidsLimit": config.pod_pids_limit.map_or(-1, i64::from),
        "seccompDefault": config.seccomp_default,
        "shutdownGracePeriod": duration(config.shutdown.total),
        "shutdownGracePeriodCriticalPods": duration(config.shutdown.critical),
        "shutdownGracePeriodByPodPriority": config.shutdown.by_priority.iter().map(|period| json!({
            "priority": period.priority, "shutdownGracePeriodSeconds": period.seconds,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use controller_runtime::Clock;

    use super::*;

    #[test]
    fn the_configuration_is_told_as_it_is_written() {
        let clock = Clock::new(|| jiff::Timestamp::UNIX_EPOCH);
        let mut config = Config::new("n", [192, 0, 2, 1].into(), std::path::Path::new("/d"), clock);
        config.sysctls = crate::sysctls::Allowed::new(["kernel.msg*"]).unwrap();
        let told = of(&config);
        assert_eq!(told["evictionHard"]["memory.available"], "100Mi");
        assert_eq!(told["evictionHard"]["nodefs.inodesFree"], "5%");
        assert_eq!(told["allowedUnsafeSysctls"], json!(["kernel.msg*"]));
        assert_eq!(told["evictionPressureTransitionPeriod"], "5m0s");
    }
}
