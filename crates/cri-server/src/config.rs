//! What an engine is told when it starts.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

/// Where the engine reads the time; the binary gives the real one.
#[derive(Clone)]
pub struct Clock(pub Arc<dyn Fn() -> i64 + Send + Sync>);

impl Clock {
    /// A clock that reads nanoseconds since the epoch from `now`.
    pub fn new(now: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(crate) fn now(&self) -> i64 {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// Which CNI plugins connect pods.
#[derive(Debug, Clone)]
pub enum CniConfig {
    /// The first network of `conf_dir`, with plugins from `bin_dirs`; the built-in one while there is none.
    Plugins { conf_dir: PathBuf, bin_dirs: Vec<PathBuf>, builtin: BuiltinNetwork },
    /// Pods get a network namespace with a loopback link and no address: for tests.
    Disabled,
}

/// The built-in network's configuration, to which the pod CIDR is added when the kubelet tells it.
#[derive(Debug, Clone)]
pub struct BuiltinNetwork {
    pub state_dir: PathBuf,
    pub service_cidrs: Vec<String>,
    pub mtu: Option<u32>,
    /// Further fields of the configuration, taken literally.
    pub extra: serde_json::Map<String, Value>,
}

impl BuiltinNetwork {
    pub(crate) fn conf(&self, pod_cidrs: &[String]) -> Value {
        let mut conf = json!({
            "cniVersion": "1.0.0", "name": "trierarch", "type": "trierarch-cni",
            "capabilities": { "portMappings": true },
            "podCIDRs": pod_cidrs, "serviceCIDRs": self.service_cidrs, "stateDir": self.state_dir,
        });
        if let Some(mtu) = self.mtu {
            conf["mtu"] = json!(mtu);
        }
        for (key, value) in &self.extra {
            conf[key] = value.clone();
        }
        conf
    }
}

/// What an engine is told when it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// CRI's socket.
    pub socket: PathBuf,
    /// Images, unpacked layers and the writable layers of containers.
    pub root: PathBuf,
    /// Sandboxes, bundles and shims' sockets. A socket's path ends at 107 bytes, so keep this below 80.
    pub state: PathBuf,
    /// This program, started again as `shim`, `cni` and `oci-runtime`.
    pub self_exe: PathBuf,
    /// The OCI runtime's command; runc or crun can stand in for ours.
    pub oci_runtime: Vec<String>,
    pub cni: CniConfig,
    /// The cgroup of pods that name no parent.
    pub cgroup_root: PathBuf,
    /// Registries that are spoken to without TLS, besides those on this machine.
    pub plain_http: Vec<String>,
    /// Which servers stand for registries, and how to speak to them; it need not be there.
    pub registries: PathBuf,
    /// Where `Localhost` seccomp profiles that are not absolute lie.
    pub seccomp_dir: PathBuf,
    /// Where vendors describe their devices, the directory that counts most last.
    pub cdi_dirs: Vec<PathBuf>,
    pub clock: Clock,
    /// The version that CRI's `Version` names.
    pub version: String,
}

impl Config {
    /// The usual places below one data directory.
    pub fn new(data_dir: &std::path::Path, self_exe: PathBuf, clock: Clock) -> Self {
        let oci_runtime = vec![self_exe.display().to_string(), "oci-runtime".to_owned()];
        Self {
            socket: data_dir.join("cri.sock"),
            root: data_dir.join("images"),
            state: data_dir.join("engine"),
            self_exe,
            oci_runtime,
            cni: CniConfig::Plugins {
                conf_dir: "/etc/cni/net.d".into(),
                bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
                builtin: BuiltinNetwork {
                    state_dir: data_dir.join("cni"),
                    service_cidrs: vec!["10.43.0.0/16".to_owned()],
                    mtu: None,
                    extra: serde_json::Map::new(),
                },
            },
            cgroup_root: "/trierarch".into(),
            plain_http: Vec::new(),
            registries: data_dir.join("registries.yaml"),
            seccomp_dir: "/var/lib/kubelet/seccomp".into(),
            cdi_dirs: crate::runtime::cdi::DIRECTORIES.map(PathBuf::from).into(),
            clock,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Where `trierarch image import` reaches the engine.
    pub fn import_socket(&self) -> PathBuf {
        self.socket.with_extension("import.sock")
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    /// Sockets have short names of their own, for a sandbox's id is 64 characters long.
    pub(crate) fn shim_socket(&self, sandbox: &str) -> PathBuf {
        self.state.join("s").join(format!("{}.sock", &sandbox[..sandbox.len().min(16)]))
    }
}
