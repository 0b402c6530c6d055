//! Where the kubelet keeps things: upstream's layout below its root directory.

use std::path::{Path, PathBuf};

use api::Object;
use api::core::v1::Pod;

/// The directories of one kubelet.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
    logs: PathBuf,
}

impl Paths {
    pub fn new(root: &Path, logs: &Path) -> Self {
        Paths { root: root.to_owned(), logs: logs.to_owned() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// What the node's part of a plugin keeps.
    pub fn plugins(&self) -> PathBuf {
        self.root.join("plugins")
    }

    /// Where plugins put the sockets by which they make themselves known.
    pub fn plugin_registry(&self) -> PathBuf {
        self.root.join("plugins_registry")
    }

    pub fn volume(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.pod(uid).join("volumes").join(format!("kubernetes.io~{plugin}")).join(name)
    }

    pub fn subpath(&self, uid: &str, volume: &str, container: &str, index: usize) -> PathBuf {
        self.pod(uid).join("volume-subpaths").join(volume).join(container).join(index.to_string())
    }

    pub fn container(&self, uid: &str, container: &str) -> PathBuf {
        self.pod(uid).join("containers").join(container)
    }

    pub fn hosts_file(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("etc-hosts")
    }

    /// Which ids of the machine are the pod's.
    pub fn user_namespace(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("userns")
    }

    /// Where device plugins find the kubelet, and it them.
    pub fn device_plugins(&self) -> PathBuf {
        self.root.join("device-plugins")
    }

    pub fn pod_resources(&self) -> PathBuf {
        self.root.join("pod-resources")
    }

    /// Who pulled which image.
    pub fn image_manager(&self) -> PathBuf {
        self.root.join("image_manager")
    }

    pub fn seccomp(&self) -> PathBuf {
        self.root.join("seccomp")
    }

    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// The logs of a pod's containers.
    pub fn pod_logs(&self, pod: &Pod) -> PathBuf {
        self.logs.join(format!("{}_{}_{}", pod.namespace(), pod.name(), pod.uid()))
    }
}
