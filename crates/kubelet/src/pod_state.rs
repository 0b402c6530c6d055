//! What the runtime knows of one pod, read from CRI into plain facts that the deciders take.

use std::collections::HashMap;

use cri::v1 as pb;

use crate::logs;
use crate::runtime::{self, CONTAINER_NAME, Runtime};

/// The annotations that carry over a restart of the kubelet what the runtime does not know.
pub mod annotations {
    pub const HASH: &str = "io.kubernetes.container.hash";
    pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    pub const DELETION_GRACE_PERIOD: &str = "io.kubernetes.pod.deletionGracePeriod";
    pub const TERMINATION_GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
    pub const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
    pub const PORTS: &str = "io.kubernetes.container.ports";
    pub const MEMORY_REQUEST: &str = "io.trierarch.container.memoryRequest";
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Exited,
    #[default]
    Unknown,
}

impl State {
    /// The state as upstream's messages name it.
    pub fn name(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Running => "running",
            State::Exited => "exited",
            State::Unknown => "unknown",
        }
    }
}

/// One container, alive or dead. Times are nanoseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerRecord {
    pub id: String,
    pub name: String,
    pub sandbox_id: String,
    pub state: State,
    pub restart_count: i32,
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    /// As the user wrote it.
    pub image: String,
    /// With its digest.
    pub image_ref: String,
    pub hash: String,
    pub log_path: String,
    pub user: Option<pb::LinuxContainerUser>,
    pub resources: Option<pb::LinuxContainerResources>,
    /// What it was made with, as the runtime does not keep it.
    pub memory_request: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct SandboxRecord {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: i64,
    pub host_network: bool,
    pub ips: Vec<String>,
}

/// A pod in the runtime: newest first, both lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodState {
    pub sandboxes: Vec<SandboxRecord>,
    pub containers: Vec<ContainerRecord>,
}

impl PodState {
    /// The newest container of that name.
    pub fn container(&self, name: &str) -> Option<&ContainerRecord> {
        self.containers.iter().find(|c| c.name == name)
    }

    pub fn running(&self) -> impl Iterator<Item = &ContainerRecord> {
        self.containers.iter().filter(|c| c.state == State::Running)
    }

    /// The addresses of the sandbox that is in use.
    pub fn ips(&self) -> &[String] {
        match self.sandboxes.first() {
            Some(sandbox) if sandbox.ready => &sandbox.ips,
            _ => &[],
        }
    }

    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.containers.is_empty()
    }
}

/// Reads the state of a pod. A container that goes while it is read is left out.
pub async fn read(runtime: &dyn Runtime, pod_uid: &str) -> runtime::Result<PodState> {
    let (sandboxes, containers) =
        futures::try_join!(runtime.sandboxes(Some(pod_uid)), runtime.containers(Some(pod_uid)))?;
    let statuses = futures::future::join_all(sandboxes.iter().map(|s| runtime.sandbox_status(&s.id)));
    let container_statuses =
        futures::future::join_all(containers.iter().map(|c| runtime.container_status(&c.id)));
    let (statuses, container_statuses) = futures::join!(statuses, container_statuses);
    let mut state = PodState::default();
    for status in statuses {
        match status {
            Ok(status) => state.sandboxes.push(sandbox(&status)),
            Err(error) if runtime::is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    for (listed, status) in containers.iter().zip(container_statuses) {
        match status {
            Ok(status) => state.containers.push(container(&status, &listed.pod_sandbox_id)),
            Err(error) if runtime::is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    state.sandboxes.sort_by_key(|s| std::cmp::Reverse(s.created_at));
    state.containers.sort_by_key(|c| std::cmp::Reverse((c.created_at, c.restart_count)));
    Ok(state)
}

fn sandbox(status: &pb::PodSandboxStatus) -> SandboxRecord {
    let network = status.network.as_ref();
    let namespaces =
        status.linux.as_ref().and_then(|l| l.namespaces.as_ref()).and_then(|n| n.options.as_ref());
    let first = network.map(|n| n.ip.clone()).filter(|ip| !ip.is_empty());
    let others = network.map(|n| n.additional_ips.as_slice()).unwrap_or_default();
    SandboxRecord {
        id: status.id.clone(),
        attempt: status.metadata.as_ref().map_or(0, |m| m.attempt),
        ready: status.state() == pb::PodSandboxState::SandboxReady,
        created_at: status.created_at,
        host_network: namespaces.is_some_and(|n| n.network() == pb::NamespaceMode::Node),
        ips: first.into_iter().chain(others.iter().map(|ip| ip.ip.clone())).collect(),
    }
}

fn container(status: &pb::ContainerStatus, sandbox_id: &str) -> ContainerRecord {
    let state = match status.state() {
        pb::ContainerState::ContainerCreated => State::Created,
        pb::ContainerState::ContainerRunning => State::Running,
        pb::ContainerState::ContainerExited => State::Exited,
        pb::ContainerState::ContainerUnknown => State::Unknown,
    };
    let metadata = status.metadata.clone().unwrap_or_default();
    let spec = status.image.clone().unwrap_or_default();
    let annotation = |key: &str| status.annotations.get(key).cloned().unwrap_or_default();
    let mut record = ContainerRecord {
        id: status.id.clone(),
        name: status.labels.get(CONTAINER_NAME).cloned().unwrap_or(metadata.name),
        sandbox_id: sandbox_id.to_owned(),
        state,
        restart_count: annotation(annotations::RESTART_COUNT).parse().unwrap_or(metadata.attempt as i32),
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        reason: status.reason.clone(),
        message: status.message.clone(),
        image: if spec.user_specified_image.is_empty() { spec.image } else { spec.user_specified_image },
        image_ref: status.image_ref.clone(),
        hash: annotation(annotations::HASH),
        log_path: status.log_path.clone(),
        user: status.user.as_ref().and_then(|u| u.linux.clone()),
        resources: status.resources.as_ref().and_then(|r| r.linux.clone()),
        memory_request: annotation(annotations::MEMORY_REQUEST).parse().ok(),
    };
    if state == State::Exited {
        if record.reason.is_empty() {
            record.reason = if record.exit_code == 0 { "Completed" } else { "Error" }.into();
        }
        let written = termination_message(status, &record);
        if !written.is_empty() {
            if !record.message.is_empty() {
                record.message.push_str(": ");
            }
            record.message.push_str(&written);
        }
    }
    record
}

/// The longest termination message that is read from its file, and the most that is taken from the log.
const MAX_MESSAGE_BYTES: u64 = 4096;
const MAX_LOG_MESSAGE_BYTES: usize = 2048;
const MAX_LOG_MESSAGE_LINES: usize = 80;

/// What the container left as its last words: the file at its termination message path, or the end of its log
/// when it failed, wrote none and asked for that.
// Upstream: pkg/kubelet/kuberuntime/kuberuntime_container.go getTerminationMessage
fn termination_message(status: &pb::ContainerStatus, record: &ContainerRecord) -> String {
    let empty = String::new();
    let note = |key: &str| status.annotations.get(key).unwrap_or(&empty);
    let fall_back = note(annotations::TERMINATION_MESSAGE_POLICY) == "FallbackToLogsOnError"
        && record.exit_code != 0
        && record.reason != "ContainerCannotRun";
    let path = note(annotations::TERMINATION_MESSAGE_PATH);
    let mount = status.mounts.iter().find(|m| !path.is_empty() && m.container_path == *path);
    let written = match mount.map(|m| read_at_most(&m.host_path)) {
        Some(Ok(text)) => text,
        Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
            return format!("Error on reading termination log {path}: {error}");
        }
        _ => String::new(),
    };
    if written.is_empty() && fall_back {
        return logs::tail_text(&record.log_path, MAX_LOG_MESSAGE_LINES, MAX_LOG_MESSAGE_BYTES);
    }
    written
}

fn read_at_most(path: &str) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_MESSAGE_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(MAX_MESSAGE_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The pods that the runtime knows, by UID, with the labels of one of their sandboxes or containers.
pub async fn known_pods(runtime: &dyn Runtime) -> runtime::Result<HashMap<String, HashMap<String, String>>> {
    let (sandboxes, containers) = futures::try_join!(runtime.sandboxes(None), runtime.containers(None))?;
    let labels = sandboxes.into_iter().map(|s| s.labels).chain(containers.into_iter().map(|c| c.labels));
    Ok(labels.filter_map(|l| l.get(runtime::POD_UID).cloned().map(|uid| (uid, l))).collect())
}
