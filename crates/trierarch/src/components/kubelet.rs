//! `trierarch kubelet`: upstream's kubelet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use api::core::v1::Taint;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::kubelet_config::{Eviction, KubeletConfiguration};
use super::{client_of, say_ready};
use crate::certificates::{Current, Files, read};
use crate::host;
use crate::join::NodeCertificates;

/// Upstream: cmd/kubelet/app/options/options.go
#[derive(Args)]
pub struct Kubelet {
    /// The kubeconfig file that says how to reach the API server, and as whom; it is written when the kubelet asks
    /// for a certificate by --bootstrap-kubeconfig
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// A kubeconfig with a token that may ask for a certificate, while --kubeconfig is not there yet
    #[arg(long, value_name = "FILE")]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Where certificates that were asked for are kept [default: <ROOT_DIR>/pki]
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
    /// A file with a KubeletConfiguration; flags count more
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The name of this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// The addresses of this node [default: the one that leads to the default gateway]
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    /// Where volumes and other files of pods are kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
    /// The CRI socket of the container engine [default: unix:///run/containerd/containerd.sock]
    #[arg(long, value_name = "ENDPOINT")]
    pub container_runtime_endpoint: Option<String>,
    /// A directory of manifests of static pods
    #[arg(long, value_name = "DIR")]
    pub pod_manifest_path: Option<PathBuf>,
    /// The addresses of the cluster DNS
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub cluster_dns: Vec<IpAddr>,
    /// The DNS domain of the cluster [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// The resolver configuration that pods inherit [default: /etc/resolv.conf]
    #[arg(long, value_name = "FILE")]
    pub resolv_conf: Option<PathBuf>,
    /// The cgroup under which pods' cgroups are made [default: /]
    #[arg(long, value_name = "CGROUP")]
    pub cgroup_root: Option<String>,
    /// How many pods may run here [default: 110]
    #[arg(long, value_name = "COUNT")]
    pub max_pods: Option<u32>,
    /// How little may be left of what before pods are evicted [default:
    /// memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%]
    #[arg(long, value_name = "SIGNAL<QUANTITY,…")]
    pub eviction_hard: Option<String>,
    /// How little may be left of what for how long before pods are evicted
    #[arg(long, value_name = "SIGNAL<QUANTITY,…")]
    pub eviction_soft: Option<String>,
    /// How long a soft threshold must have been reached
    #[arg(long, value_name = "SIGNAL=DURATION,…")]
    pub eviction_soft_grace_period: Option<String>,
    /// The longest time in seconds that a pod gets which goes for a soft threshold [default: 0]
    #[arg(long, value_name = "SECONDS")]
    pub eviction_max_pod_grace_period: Option<i64>,
    /// How much more than a threshold must be left before all is well again
    #[arg(long, value_name = "SIGNAL=QUANTITY,…")]
    pub eviction_minimum_reclaim: Option<String>,
    /// How long a condition is told after the last time that it held [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = super::duration)]
    pub eviction_pressure_transition_period: Option<Duration>,
    /// Sysctls beside the safe ones that pods may set; a star at the end stands for any
    #[arg(long, value_name = "SYSCTL", value_delimiter = ',')]
    pub allowed_unsafe_sysctls: Vec<String>,
    /// How large a container's log grows before it is rotated [default: 10Mi]
    #[arg(long, value_name = "QUANTITY")]
    pub container_log_max_size: Option<String>,
    /// How many files of logs a container has [default: 5]
    #[arg(long, value_name = "COUNT")]
    pub container_log_max_files: Option<usize>,
    /// Make the Node object [default: true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub register_node: Option<bool>,
    /// Labels of the Node, as it is made
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    pub node_labels: Vec<String>,
    /// Taints of the Node, as it is made
    #[arg(long, value_name = "KEY=VALUE:EFFECT", value_delimiter = ',')]
    pub register_with_taints: Vec<String>,
    /// What a cloud calls this machine
    #[arg(long, value_name = "ID")]
    pub provider_id: Option<String>,
    /// The address of the kubelet's own server [default: 0.0.0.0]
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// The port of the kubelet's own server [default: 10250]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// The certificates that clients of the kubelet's server are verified by [default: the kubeconfig's]
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// The certificate of the kubelet's server [default: one that it asks the API server for]
    #[arg(long, value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// The key of the kubelet's server
    #[arg(long, value_name = "FILE")]
    pub tls_private_key_file: Option<PathBuf>,
}

/// Labels as flags have them.
///
/// Upstream: pkg/kubelet/apis/well_known_labels.go, cmd/kubelet/app/options/options.go ValidateKubeletFlags
pub fn labels(texts: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let label = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        anyhow::ensure!(!key.is_empty(), "--node-labels {text:?} is not KEY=VALUE");
        Ok((key.to_owned(), value.to_owned()))
    };
    texts.iter().filter(|text| !text.is_empty()).map(label).collect()
}

/// Taints as flags have them: `key=value:effect` or `key:effect`.
///
/// Upstream: pkg/util/taints/taints.go parseTaint
pub fn taints(texts: &[String]) -> anyhow::Result<Vec<Taint>> {
    let taint = |text: &String| {
        let parts = text.rsplit_once(':').filter(|(key, effect)| {
            !key.is_empty() && matches!(*effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute")
        });
        let (key, effect) =
            parts.with_context(|| format!("--register-with-taints {text:?} is not KEY=VALUE:EFFECT"))?;
        let (key, value) = key.split_once('=').map_or((key, None), |(key, value)| (key, Some(value)));
        Ok(Taint {
            key: key.to_owned(),
            value: value.map(str::to_owned),
            effect: effect.to_owned(),
            ..Default::default()
        })
    };
    texts.iter().filter(|text| !text.is_empty()).map(taint).collect()
}

/// The engine must answer within a quarter of a minute, as upstream's kubelet has it; what is waited for is said.
async fn say_engine(endpoint: &str) {
    if cri::connect(endpoint).await.is_err() {
        tracing::warn!(endpoint, "waits for the container runtime");
    }
}

impl Kubelet {
    /// Flags over the file over defaults.
    fn config(
        &self,
        file: KubeletConfiguration,
        tls: kubelet::ServingTls,
    ) -> anyhow::Result<kubelet::Config> {
        let (node_name, node_ips) = self.node()?;
        let first_ip = *node_ips.first().context("a node has an address")?;
        let root_dir = std::path::absolute(&self.root_dir)?;
        check_machine(&file)?;
        let shutdown = shutdown(&file)?;
        let (kube_reserved, system_reserved) =
            (reserved(&file.kube_reserved)?, reserved(&file.system_reserved)?);
        let usual = kubelet::Config::new(&node_name, first_ip, &root_dir, host::clock());
        let endpoint = self.container_runtime_endpoint.clone().or(file.container_runtime_endpoint);
        let taints = match file.register_with_taints {
            Some(taints) if self.register_with_taints.is_empty() => taints,
            _ => taints(&self.register_with_taints)?,
        };
        Ok(kubelet::Config {
            cri_endpoint: endpoint.unwrap_or_else(|| cri::CONTAINERD_ENDPOINT.to_owned()),
            pod_logs_dir: file.pod_logs_dir.unwrap_or_else(|| "/var/log/pods".into()),
            static_pod_path: self.pod_manifest_path.clone().or(file.static_pod_path),
            cluster_dns: some(&self.cluster_dns).or(file.cluster_dns).unwrap_or_default(),
            cluster_domain: self
                .cluster_domain
                .clone()
                .or(file.cluster_domain)
                .unwrap_or(usual.cluster_domain.clone()),
            resolv_conf: self.resolv_conf.clone().or(file.resolv_conf).unwrap_or(usual.resolv_conf.clone()),
            cgroup_root: self.cgroup_root.clone().or(file.cgroup_root).unwrap_or_else(|| "/".into()).into(),
            max_pods: self.max_pods.or(file.max_pods).unwrap_or(usual.max_pods),
            address: self.address.or(file.address).unwrap_or(usual.address),
            port: self.port.or(file.port).unwrap_or(usual.port),
            register: self.register_node.or(file.register_node).unwrap_or(true),
            node_labels: labels(&self.node_labels)?,
            taints,
            provider_id: self.provider_id.clone().or(file.provider_id),
            image_gc_high_percent: file
                .image_gc_high_threshold_percent
                .unwrap_or(usual.image_gc_high_percent),
            eviction: self.eviction(&file.eviction)?,
            eviction_max_pod_grace_seconds: self
                .eviction_max_pod_grace_period
                .or(file.eviction.max_pod_grace_period)
                .unwrap_or(usual.eviction_max_pod_grace_seconds),
            eviction_transition: match &file.eviction.pressure_transition_period {
                _ if self.eviction_pressure_transition_period.is_some() => None,
                Some(text) => Some(duration("evictionPressureTransitionPeriod", text)?),
                None => None,
            }
            .or(self.eviction_pressure_transition_period)
            .filter(|period| !period.is_zero())
            .unwrap_or(usual.eviction_transition),
            sysctls: self.sysctls(&file.allowed_unsafe_sysctls)?,
            log_rotation: log_rotation(
                self.container_log_max_size.as_deref().or(file.container_log_max_size.as_deref()),
                self.container_log_max_files.or(file.container_log_max_files),
            )?,
            swap_behavior: match file.memory_swap.swap_behavior.as_str() {
                "" | "NoSwap" => kubelet::SwapBehavior::NoSwap,
                "LimitedSwap" => kubelet::SwapBehavior::LimitedSwap,
                other => anyhow::bail!("memorySwap.swapBehavior is NoSwap or LimitedSwap, not {other:?}"),
            },
            shutdown,
            kube_reserved,
            system_reserved,
            enforce_pods: enforces_pods(file.enforce_node_allocatable.as_deref())?,
            // Upstream: pkg/kubelet/apis/config/v1beta1/defaults.go PodPidsLimit, where -1 is no limit
            pod_pids_limit: file
                .pod_pids_limit
                .and_then(|limit| u32::try_from(limit).ok())
                .filter(|n| *n > 0),
            seccomp_default: file.seccomp_default,
            max_images: match file.node_status_max_images {
                Some(-1) => usize::MAX,
                Some(count) => usize::try_from(count).map_err(|_| {
                    anyhow::anyhow!(
                        "invalid configuration: nodeStatusMaxImages {count} must be -1 or greater"
                    )
                })?,
                None => usual.max_images,
            },
            max_restart_wait: or_usual(
                "maxContainerRestartPeriod",
                file.crash_loop_back_off.max_container_restart_period.as_deref(),
                usual.max_restart_wait,
            )?,
            image_min_age: or_usual(
                "imageMinimumGCAge",
                file.image_minimum_gc_age.as_deref(),
                usual.image_min_age,
            )?,
            image_max_age: Some(or_usual(
                "imageMaximumGCAge",
                file.image_maximum_gc_age.as_deref(),
                Duration::ZERO,
            )?)
            .filter(|age| !age.is_zero()),
            image_gc_low_percent: file.image_gc_low_threshold_percent.unwrap_or(usual.image_gc_low_percent),
            tls: Some(tls),
            root_dir,
            node_ips,
            ..usual
        })
    }

    /// Of each of the four the flag counts more than the file.
    fn eviction(&self, file: &Eviction) -> anyhow::Result<Vec<kubelet::pressure::Threshold>> {
        let of =
            |flag: &str, text: &Option<String>, sign, field: &Option<BTreeMap<String, String>>| match text {
                Some(text) => pairs(flag, text, sign).map(Some),
                None => Ok(field.clone()),
            };
        let usual = || -> BTreeMap<String, String> {
            kubelet::EVICTION_HARD.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
        };
        let hard = match of("--eviction-hard", &self.eviction_hard, '<', &file.hard)? {
            Some(named) if file.merges_defaults == Some(true) => usual().into_iter().chain(named).collect(),
            Some(named) => named,
            None => usual(),
        };
        let soft = of("--eviction-soft", &self.eviction_soft, '<', &file.soft)?.unwrap_or_default();
        let grace = &self.eviction_soft_grace_period;
        let grace = of("--eviction-soft-grace-period", grace, '=', &file.soft_grace_period)?;
        let soft_grace = grace
            .unwrap_or_default()
            .into_iter()
            .map(|(name, text)| Ok((name, duration("the grace period of a soft threshold", &text)?)))
            .collect::<anyhow::Result<_>>()?;
        let reclaim = &self.eviction_minimum_reclaim;
        let minimum_reclaim = of("--eviction-minimum-reclaim", reclaim, '=', &file.minimum_reclaim)?;
        let minimum_reclaim = minimum_reclaim.unwrap_or_default();
        let statements = kubelet::pressure::Statements { hard, soft, soft_grace, minimum_reclaim };
        kubelet::pressure::parse(&statements).map_err(|why| anyhow::anyhow!("eviction thresholds: {why}"))
    }

    fn sysctls(&self, file: &[String]) -> anyhow::Result<kubelet::sysctls::Allowed> {
        let named = if self.allowed_unsafe_sysctls.is_empty() { file } else { &self.allowed_unsafe_sysctls };
        kubelet::sysctls::Allowed::new(named.iter().map(String::as_str)).map_err(anyhow::Error::msg)
    }

    fn node(&self) -> anyhow::Result<(String, Vec<IpAddr>)> {
        let name = self.hostname_override.clone().map_or_else(host::hostname, Ok)?;
        let ips = some(&self.node_ip).map_or_else(|| Ok(vec![host::node_ip()?]), anyhow::Ok)?;
        Ok((name, ips))
    }
}

/// `memory.available<100Mi,nodefs.available<10%`, or with another sign between name and value.
fn pairs(flag: &str, text: &str, sign: char) -> anyhow::Result<BTreeMap<String, String>> {
    let statements = text.split(',').filter(|statement| !statement.is_empty());
    let pair = |statement: &str| {
        let (name, value) = statement
            .split_once(sign)
            .with_context(|| format!("{flag}: {statement:?} is not of the form signal{sign}quantity"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    statements.map(pair).collect()
}

fn duration(field: &str, text: &str) -> anyhow::Result<Duration> {
    super::duration(text).map_err(|why| anyhow::anyhow!("{field}: {why}"))
}

/// A duration of the file; none, or zero, is the usual one.
fn or_usual(field: &str, text: Option<&str>, usual: Duration) -> anyhow::Result<Duration> {
    let given = text.map(|text| duration(field, text)).transpose()?;
    Ok(given.filter(|given| !given.is_zero()).unwrap_or(usual))
}

/// What the machine must be like, where the file says so.
fn check_machine(file: &KubeletConfiguration) -> anyhow::Result<()> {
    // Upstream: pkg/kubelet/cm/container_manager_linux.go NewContainerManager
    let swaps = || std::fs::read_to_string("/proc/swaps").unwrap_or_default().lines().count() > 1;
    anyhow::ensure!(
        file.fail_swap_on != Some(true) || !swaps(),
        "running with swap on is not supported, please disable swap or set --fail-swap-on flag to false"
    );
    let is_v1 = linux::cgroups::version() == linux::cgroups::Version::V1;
    anyhow::ensure!(
        file.fail_cgroup_v1 != Some(true) || !is_v1,
        "failCgroupV1 is set, and this machine has cgroups of version 1"
    );
    Ok(())
}

// Upstream: cmd/kubelet/app/server.go parseResourceList
fn reserved(pairs: &BTreeMap<String, String>) -> anyhow::Result<kubelet::Resources> {
    let parse = |(name, text): (&String, &String)| {
        anyhow::ensure!(
            matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage" | "pid"),
            "cannot reserve {name:?} resource"
        );
        let amount = apimachinery::quantity::Quantity::parse(text)
            .with_context(|| format!("failed to parse quantity {text:?} for {name:?} resource"))?;
        anyhow::ensure!(!amount.is_negative(), "resource quantity for {name:?} cannot be negative: {text}");
        Ok((name.clone(), amount))
    };
    pairs.iter().map(parse).collect()
}

/// Whether the kernel holds pods to what is not reserved. Nobody but pods can be held to it here.
fn enforces_pods(named: Option<&[String]>) -> anyhow::Result<bool> {
    let Some(named) = named else { return Ok(true) };
    let other = named.iter().find(|name| !matches!(name.as_str(), "pods" | "none"));
    anyhow::ensure!(
        other.is_none(),
        "enforceNodeAllocatable {:?} is not supported",
        other.map_or("", String::as_str)
    );
    Ok(named.iter().any(|name| name == "pods"))
}

fn shutdown(file: &KubeletConfiguration) -> anyhow::Result<kubelet::ShutdownSettings> {
    let period = |name: &str, text: &Option<String>| {
        text.as_ref().map_or(Ok(Duration::ZERO), |text| duration(name, text))
    };
    let by_priority = file.shutdown_grace_period_by_pod_priority.iter().map(|period| {
        kubelet::ShutdownPeriod { priority: period.priority, seconds: period.shutdown_grace_period_seconds }
    });
    let settings = kubelet::ShutdownSettings {
        total: period("shutdownGracePeriod", &file.shutdown_grace_period)?,
        critical: period("shutdownGracePeriodCriticalPods", &file.shutdown_grace_period_critical_pods)?,
        by_priority: by_priority.collect(),
    };
    settings.check().map_err(anyhow::Error::msg)
}

fn log_rotation(max_size: Option<&str>, max_files: Option<usize>) -> anyhow::Result<kubelet::LogRotation> {
    let usual = kubelet::LogRotation::default();
    let max_files = max_files.unwrap_or(usual.max_files);
    anyhow::ensure!(max_files > 1, "invalid MaxFiles {max_files}, must be > 1");
    let max_bytes = match max_size {
        Some(text) => {
            let size = apimachinery::quantity::Quantity::parse(text)
                .with_context(|| format!("failed to parse container log max size {text:?}"))?;
            // A negative size turns rotation off.
            u64::try_from(size.value()).unwrap_or(u64::MAX)
        }
        None => usual.max_bytes,
    };
    Ok(kubelet::LogRotation { max_bytes, max_files })
}

fn some<T: Clone>(values: &[T]) -> Option<Vec<T>> {
    (!values.is_empty()).then(|| values.to_vec())
}

/// The authority that the kubelet's kubeconfig trusts is the one of its callers, unless another is given.
fn client_authority(given: Option<&Path>, kubeconfig: &Path) -> anyhow::Result<String> {
    match given {
        Some(path) => read(path),
        None => super::controller_manager::authority_of(kubeconfig)
            .context("--client-ca-file is needed: the kubeconfig names no authority"),
    }
}

pub async fn run(args: Kubelet) -> anyhow::Result<()> {
    let file = args.config.as_deref().map(KubeletConfiguration::read).transpose()?.unwrap_or_default();
    let (node_name, node_ips) = args.node()?;
    // What is wrong with the flags is said before anything is touched.
    labels(&args.node_labels)?;
    taints(&args.register_with_taints)?;
    let serving = Files::of_flags(
        ["--tls-cert-file", "--tls-private-key-file"],
        args.tls_cert_file.clone().or(file.tls_cert_file.clone()),
        args.tls_private_key_file.clone().or(file.tls_private_key_file.clone()),
    )?;
    host::check_can_run_containers("")?;
    let shutdown = host::shutdown_signal()?;
    let cert_dir = args.cert_dir.clone().unwrap_or_else(|| args.root_dir.join("pki"));
    let certificates = NodeCertificates::new(&cert_dir, &node_name, &node_ips, host::clock());
    if !args.kubeconfig.exists() {
        let bootstrap = args.bootstrap_kubeconfig.as_deref().with_context(|| {
            format!("{} does not exist; give --bootstrap-kubeconfig", args.kubeconfig.display())
        })?;
        certificates.join(bootstrap, &args.kubeconfig, &shutdown).await?;
    }
    let client = client_of(&args.kubeconfig, "kubelet")?;
    let (certificate, own) = match serving {
        Some(files) => (Current::of_files(files)?, false),
        None => (certificates.serving(&client, &shutdown).await?, true),
    };
    let given = args.client_ca_file.as_deref().or(file.authentication.x509.client_ca_file.as_deref());
    let client_ca = client_authority(given, &args.kubeconfig)?.into_bytes();
    let config = args.config(file, kubelet::ServingTls { certificate, client_ca })?;
    say_engine(&config.cri_endpoint).await;
    let run = async {
        kubelet::run(config, client.clone(), shutdown.clone()).await?;
        shutdown.cancel();
        anyhow::Ok(())
    };
    let renew = async {
        match args.bootstrap_kubeconfig {
            Some(_) => certificates.renew(client.clone(), own, shutdown.clone()).await,
            None => Ok(()),
        }
    };
    tokio::try_join!(run, renew, say_ready("kubelet", client.clone(), CancellationToken::clone(&shutdown)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_taints_are_read_as_upstream_writes_them() {
        let texts = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let labels = labels(&texts(&["a=b", "c", ""])).unwrap();
        assert_eq!(labels, BTreeMap::from([("a".into(), "b".into()), ("c".into(), String::new())]));
        assert!(super::labels(&texts(&["=b"])).is_err());
        let read = taints(&texts(&["a=b:NoSchedule", "c:NoExecute"])).unwrap();
        assert_eq!((read[0].value.as_deref(), read[0].effect.as_str()), (Some("b"), "NoSchedule"));
        assert_eq!((read[1].key.as_str(), read[1].value.as_deref()), ("c", None));
        for wrong in ["a", "a=b", "a=b:Sometimes", ":NoExecute"] {
            assert!(taints(&texts(&[wrong])).is_err(), "{wrong}");
        }
    }
}
