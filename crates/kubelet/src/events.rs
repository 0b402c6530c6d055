//! Events of a pod and its containers.

use api::core::v1::Pod;
use controller_runtime::{EventRecorder, EventType, reference};

use crate::pod::{ContainerKind, find_container};

/// Records events of one pod.
pub struct PodEvents<'a> {
    pub recorder: &'a EventRecorder,
    pub pod: &'a Pod,
}

impl PodEvents<'_> {
    /// An event of a container, or of the pod when `container` is empty.
    pub fn normal(&self, container: &str, reason: &str, message: &str) {
        self.record(EventType::Normal, container, reason, message);
    }

    pub fn warning(&self, container: &str, reason: &str, message: &str) {
        self.record(EventType::Warning, container, reason, message);
    }

    fn record(&self, kind: EventType, container: &str, reason: &str, message: &str) {
        let mut about = reference(self.pod);
        about.field_path = field_path(self.pod, container);
        self.recorder.event_about(about, kind, reason, message);
    }
}

/// `spec.containers{name}`, by which describe and others tell containers apart.
// Upstream: pkg/kubelet/container/ref.go fieldPath
fn field_path(pod: &Pod, container: &str) -> Option<String> {
    let (_, kind) = find_container(pod, container)?;
    let list = match kind {
        ContainerKind::Init | ContainerKind::Sidecar => "initContainers",
        ContainerKind::Regular => "containers",
        ContainerKind::Ephemeral => "ephemeralContainers",
    };
    Some(format!("spec.{list}{{{container}}}"))
}
