//! What a kubelet is told at its start.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::core::v1::Taint;
use controller_runtime::Clock;

use crate::container::config::SwapBehavior;
use crate::log_rotation;
use crate::node::allocatable::{self, Resources};
use crate::pressure::{self, Threshold};
use crate::shutdown::periods::Settings;
use crate::sysctls;

/// How the kubelet shows itself to the API server, and whom it answers.
#[derive(Clone)]
pub struct ServingTls {
    /// The certificate, which may change while the kubelet runs.
    pub certificate: Arc<dyn rustls::server::ResolvesServerCert>,
    /// PEM of the authorities whose clients may call.
    pub client_ca: Vec<u8>,
}

/// What a kubelet evicts for that is told nothing else.
// Upstream: pkg/kubelet/apis/config/v1beta1/defaults_linux.go DefaultEvictionHard
pub const EVICTION_HARD: [(&str, &str); 5] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
];

/// Milder for a server that is all in one process: it shares its disk with what else the machine is for, and a
/// share of a large disk is much.
const EVICTION_HARD_OF_SERVER: [(&str, &str); 5] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "500Mi"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "500Mi"),
    ("imagefs.inodesFree", "5%"),
];

fn hard(pairs: &[(&str, &str)]) -> pressure::Statements {
    let hard = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    pressure::Statements { hard, ..Default::default() }
}

#[derive(Clone)]
pub struct Config {
    pub node_name: String,
    /// The node's addresses; the first counts as its own.
    pub node_ips: Vec<IpAddr>,
    pub hostname: String,
    /// Where pods' directories and volumes live.
    pub root_dir: PathBuf,
    /// Where containers' logs live; `/var/log/pods` upstream.
    pub pod_logs_dir: PathBuf,
    pub cri_endpoint: String,
    /// A directory of manifests that run without an API server.
    pub static_pod_path: Option<PathBuf>,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The resolver configuration that pods inherit.
    pub resolv_conf: PathBuf,
    pub max_pods: u32,
    /// Where the kubelet's own API listens. Without [`Config::tls`] it is not served.
    pub address: IpAddr,
    pub port: u16,
    pub tls: Option<ServingTls>,
    /// The cgroup that `kubepods` lies in: `/` upstream.
    pub cgroup_root: PathBuf,
    pub node_labels: BTreeMap<String, String>,
    pub node_annotations: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub provider_id: Option<String>,
    /// Whether to make the Node object.
    pub register: bool,
    /// Percent of the image disk from which unused images are removed, and down to which.
    pub image_gc_high_percent: u8,
    pub image_gc_low_percent: u8,
    /// How long an image is kept that was just found, and how long one that nobody uses.
    pub image_min_age: Duration,
    pub image_max_age: Option<Duration>,
    /// How little may be left before pods are evicted.
    pub eviction: Vec<Threshold>,
    /// The longest time that a pod gets which goes for a soft threshold.
    pub eviction_max_pod_grace_seconds: i64,
    /// How long a condition is told after the last time that it held.
    pub eviction_transition: Duration,
    /// The sysctls that pods may set.
    pub sysctls: sysctls::Allowed,
    pub log_rotation: log_rotation::Policy,
    pub swap_behavior: SwapBehavior,
    /// What is kept for the machine's own processes, and for Kubernetes'.
    pub system_reserved: Resources,
    pub kube_reserved: Resources,
    /// Whether the kernel holds pods altogether to what is left.
    pub enforce_pods: bool,
    /// How many processes a pod may have.
    pub pod_pids_limit: Option<u32>,
    /// Whether pods that name no seccomp profile get the runtime's.
    pub seccomp_default: bool,
    /// How many images the node lists.
    pub max_images: usize,
    /// The longest wait before a container that crashes is restarted.
    pub max_restart_wait: Duration,
    /// How long the machine's shutdown is held up, and for which pods.
    pub shutdown: Settings,
    pub clock: Clock,
}

impl Config {
    /// What is reserved altogether.
    pub fn reserved(&self) -> Resources {
        allocatable::sum(&self.system_reserved, &self.kube_reserved)
    }

    /// A kubelet below `data_dir`, as upstream starts it but for its thresholds of eviction.
    pub fn new(node_name: &str, node_ip: IpAddr, data_dir: &std::path::Path, clock: Clock) -> Self {
        Config {
            node_name: node_name.to_owned(),
            node_ips: vec![node_ip],
            hostname: node_name.to_owned(),
            root_dir: data_dir.join("kubelet"),
            pod_logs_dir: data_dir.join("logs"),
            cri_endpoint: format!("unix://{}", data_dir.join("cri.sock").display()),
            static_pod_path: None,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            max_pods: 110,
            address: match node_ip {
                IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            },
            port: 10250,
            tls: None,
            cgroup_root: PathBuf::from("/"),
            node_labels: BTreeMap::new(),
            node_annotations: BTreeMap::new(),
            taints: Vec::new(),
            provider_id: None,
            register: true,
            image_gc_high_percent: 85,
            image_gc_low_percent: 80,
            // Upstream: pkg/kubelet/apis/config/v1beta1/defaults.go ImageMinimumGCAge
            image_min_age: Duration::from_secs(120),
            image_max_age: None,
            eviction: pressure::parse(&hard(&EVICTION_HARD_OF_SERVER))
                .expect("the usual thresholds are well written"),
            eviction_max_pod_grace_seconds: 0,
            // Upstream: pkg/kubelet/apis/config/v1beta1/defaults.go EvictionPressureTransitionPeriod
            eviction_transition: Duration::from_secs(300),
            sysctls: sysctls::Allowed::new([]).expect("the safe sysctls are well written"),
            log_rotation: log_rotation::Policy::default(),
            swap_behavior: SwapBehavior::default(),
            system_reserved: Resources::new(),
            kube_reserved: Resources::new(),
            enforce_pods: true,
            pod_pids_limit: None,
            seccomp_default: false,
            // Upstream: pkg/kubelet/apis/config/v1beta1/defaults.go NodeStatusMaxImages
            max_images: 50,
            // Upstream: pkg/kubelet/apis/config/v1beta1/defaults.go MaxContainerBackOff
            max_restart_wait: Duration::from_secs(300),
            shutdown: Settings::default(),
            clock,
        }
    }
}
