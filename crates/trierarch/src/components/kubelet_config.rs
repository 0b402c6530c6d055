//! A KubeletConfiguration, as kubeadm and people write it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use api::core::v1::Taint;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::kubelet_fields::may_say;
use super::read_config;

/// The fields that are read here. Others may say what is done anyway, and are refused by name and line when they
/// ask for something else.
///
/// Upstream: kubelet/config/v1beta1/types.go KubeletConfiguration
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeletConfiguration {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
    pub static_pod_path: Option<PathBuf>,
    pub pod_logs_dir: Option<PathBuf>,
    pub tls_cert_file: Option<PathBuf>,
    pub tls_private_key_file: Option<PathBuf>,
    pub rotate_certificates: Option<bool>,
    #[serde(rename = "serverTLSBootstrap")]
    pub server_tls_bootstrap: Option<bool>,
    pub authentication: Authentication,
    authorization: Authorization,
    pub cluster_domain: Option<String>,
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Option<Vec<IpAddr>>,
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold_percent: Option<u8>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold_percent: Option<u8>,
    #[serde(flatten)]
    pub eviction: Eviction,
    pub allowed_unsafe_sysctls: Vec<String>,
    pub container_log_max_size: Option<String>,
    pub container_log_max_files: Option<usize>,
    pub memory_swap: MemorySwap,
    pub max_pods: Option<u32>,
    pub resolv_conf: Option<PathBuf>,
    pub cgroup_root: Option<String>,
    cgroup_driver: Option<String>,
    pub register_node: Option<bool>,
    pub register_with_taints: Option<Vec<Taint>>,
    #[serde(rename = "providerID")]
    pub provider_id: Option<String>,
    pub container_runtime_endpoint: Option<String>,
    pub shutdown_grace_period: Option<String>,
    pub shutdown_grace_period_critical_pods: Option<String>,
    pub shutdown_grace_period_by_pod_priority: Vec<ShutdownPeriod>,
    #[serde(rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: Option<String>,
    #[serde(rename = "imageMaximumGCAge")]
    pub image_maximum_gc_age: Option<String>,
    pub pod_pids_limit: Option<i64>,
    pub kube_reserved: BTreeMap<String, String>,
    pub system_reserved: BTreeMap<String, String>,
    pub enforce_node_allocatable: Option<Vec<String>>,
    pub seccomp_default: bool,
    pub node_status_max_images: Option<i64>,
    pub crash_loop_back_off: CrashLoopBackOff,
    pub fail_swap_on: Option<bool>,
    pub fail_cgroup_v1: Option<bool>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShutdownPeriod {
    pub priority: i32,
    pub shutdown_grace_period_seconds: u64,
}

/// When pods are evicted.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Eviction {
    #[serde(rename = "evictionHard")]
    pub hard: Option<BTreeMap<String, String>>,
    #[serde(rename = "evictionSoft")]
    pub soft: Option<BTreeMap<String, String>>,
    #[serde(rename = "evictionSoftGracePeriod")]
    pub soft_grace_period: Option<BTreeMap<String, String>>,
    #[serde(rename = "evictionMinimumReclaim")]
    pub minimum_reclaim: Option<BTreeMap<String, String>>,
    #[serde(rename = "evictionMaxPodGracePeriod")]
    pub max_pod_grace_period: Option<i64>,
    #[serde(rename = "evictionPressureTransitionPeriod")]
    pub pressure_transition_period: Option<String>,
    /// Whether what is not named is as by default.
    #[serde(rename = "mergeDefaultEvictionSettings")]
    pub merges_defaults: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CrashLoopBackOff {
    pub max_container_restart_period: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MemorySwap {
    pub swap_behavior: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authentication {
    pub x509: X509,
    anonymous: Anonymous,
    /// Tokens of callers: how long an answer about one is kept is not to be set.
    #[serde(rename = "webhook")]
    _webhook: Value,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct X509 {
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Anonymous {
    enabled: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Authorization {
    mode: Option<String>,
    #[serde(rename = "webhook")]
    _webhook: Value,
}

/// The line on which a field of the outermost mapping stands.
fn line_of(text: &str, field: &str) -> usize {
    let stands = |line: &str| line.strip_prefix(field).is_some_and(|rest| rest.trim_start().starts_with(':'));
    text.lines().position(stands).map_or(1, |index| index + 1)
}

impl KubeletConfiguration {
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let config: Self = read_config(path, "kubelet.config.k8s.io/v1beta1", "KubeletConfiguration")?;
        let text = crate::certificates::read(path)?;
        let refuse = |field: &str, why: &str| {
            anyhow::bail!("{}: line {}: {field} {why}", path.display(), line_of(&text, field))
        };
        for (field, value) in &config.others {
            if !may_say(field, value) {
                return refuse(field, "is not supported");
            }
        }
        if config.cgroup_driver.as_deref().is_some_and(|driver| driver != "cgroupfs") {
            return refuse("cgroupDriver", "can only be cgroupfs");
        }
        if config.authentication.anonymous.enabled {
            return refuse("authentication", "cannot admit anonymous callers");
        }
        if config.authorization.mode.as_deref().is_some_and(|mode| mode != "Webhook") {
            return refuse("authorization", "can only be by Webhook, which asks the API server");
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &str) -> anyhow::Result<KubeletConfiguration> {
        let file = tempfile::NamedTempFile::new()?;
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        std::fs::write(file.path(), format!("{head}{fields}"))?;
        KubeletConfiguration::read(file.path())
    }

    #[test]
    fn what_kubeadm_writes_is_read() {
        let config = read(
            "authentication:
  anonymous: {enabled: false}
  webhook: {cacheTTL: 0s, enabled: true}
  x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}
authorization:
  mode: Webhook
  webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}
cgroupDriver: cgroupfs
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
cpuManagerReconcilePeriod: 0s
healthzPort: 0
memorySwap: {}
registerWithTaints: [{key: a, effect: NoSchedule}]
rotateCertificates: true
staticPodPath: /etc/kubernetes/manifests
syncFrequency: 0s
evictionSoft: {memory.available: 1Gi}
evictionSoftGracePeriod: {memory.available: 1m30s}
evictionPressureTransitionPeriod: 0s
allowedUnsafeSysctls: [\"kernel.msg*\"]
podPidsLimit: 100
kubeReserved: {cpu: 100m, memory: 1Gi}
shutdownGracePeriod: 30s
imageMinimumGCAge: 2m0s
failSwapOn: false
logging: {flushFrequency: 0, format: text, options: {json: {infoBufferSize: \"0\"}}, verbosity: 2}
",
        )
        .unwrap();
        assert_eq!(config.eviction.soft_grace_period.unwrap()["memory.available"], "1m30s");
        assert_eq!(config.allowed_unsafe_sysctls, ["kernel.msg*"]);
        assert_eq!(config.cluster_dns.unwrap(), ["10.96.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(config.register_with_taints.unwrap()[0].key, "a");
        assert_eq!(
            config.authentication.x509.client_ca_file.unwrap(),
            Path::new("/etc/kubernetes/pki/ca.crt")
        );
    }

    #[test]
    fn what_means_nothing_here_is_refused_with_its_line() {
        for (fields, words) in [
            ("maxPods: 5\nreadOnlyPort: 10255\n", "line 4: readOnlyPort is not supported"),
            ("cgroupDriver: systemd\n", "line 3: cgroupDriver can only be cgroupfs"),
            (
                "authentication: {anonymous: {enabled: true}}\n",
                "line 3: authentication cannot admit anonymous",
            ),
            ("authorization: {mode: AlwaysAllow}\n", "line 3: authorization can only be by Webhook"),
        ] {
            let error = read(fields).err().unwrap().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(read("port: many\n").is_err());
    }
}
