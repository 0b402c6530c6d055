//! Sandboxes and containers as CRI's lists and statuses show them.

use std::collections::HashMap;

use cri::v1;

use crate::engine::{Container, Sandbox};

pub(super) fn sandbox_state(sandbox: &Sandbox) -> v1::PodSandboxState {
    if sandbox.record().ready {
        v1::PodSandboxState::SandboxReady
    } else {
        v1::PodSandboxState::SandboxNotready
    }
}

pub(super) fn sandbox(sandbox: &Sandbox) -> v1::PodSandbox {
    let record = sandbox.record();
    v1::PodSandbox {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(sandbox) as i32,
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

pub(super) fn sandbox_status(sandbox: &Sandbox) -> v1::PodSandboxStatus {
    let record = sandbox.record();
    let mut addresses = record.addresses.iter().cloned();
    let network = v1::PodSandboxNetworkStatus {
        ip: addresses.next().unwrap_or_default(),
        additional_ips: addresses.map(|ip| v1::PodIp { ip }).collect(),
    };
    let options = Some(sandbox.options());
    v1::PodSandboxStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(sandbox) as i32,
        created_at: record.created_at,
        network: Some(network),
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options }) }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

pub(super) fn container_state(container: &Container) -> v1::ContainerState {
    let phase = container.phase();
    match (&phase.exit, phase.started_at) {
        (Some(_), _) => v1::ContainerState::ContainerExited,
        (None, 0) => v1::ContainerState::ContainerCreated,
        _ => v1::ContainerState::ContainerRunning,
    }
}

pub(super) fn container(container: &Container) -> v1::Container {
    let record = &container.record;
    v1::Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox.clone(),
        metadata: record.config.metadata.clone(),
        image: record.config.image.clone(),
        image_ref: record.image_ref.clone(),
        state: container_state(container) as i32,
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.clone(),
    }
}

pub(super) fn container_status(container: &Container) -> v1::ContainerStatus {
    let record = container.record.clone();
    let phase = container.phase();
    let exit = phase.exit.as_ref();
    v1::ContainerStatus {
        id: record.id,
        metadata: record.config.metadata,
        state: container_state(container) as i32,
        created_at: record.created_at,
        started_at: phase.started_at,
        finished_at: exit.map_or(0, |exit| exit.finished_at),
        exit_code: exit.map_or(0, |exit| exit.code),
        image: record.config.image,
        image_ref: record.image_ref,
        reason: exit.map(|exit| exit.reason.clone()).unwrap_or_default(),
        message: exit.map(|exit| exit.message.clone()).unwrap_or_default(),
        labels: record.config.labels,
        annotations: record.config.annotations,
        mounts: record.config.mounts,
        log_path: record.log_path,
        resources: Some(v1::ContainerResources { linux: Some(phase.resources), windows: None }),
        image_id: record.image_id,
        user: Some(v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: i64::from(record.user.uid),
                gid: i64::from(record.user.gid),
                supplemental_groups: record.user.additional.iter().map(|gid| i64::from(*gid)).collect(),
            }),
        }),
    }
}

/// What a verbose status adds: the first process, which debuggers look for.
pub(super) fn container_info(container: &Container) -> HashMap<String, String> {
    let info = serde_json::json!({
        "sandboxID": container.record.sandbox, "pid": container.phase().pid, "cgroup": container.record.cgroup,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

/// Whether labels contain all that a selector asks for.
pub(super) fn matches(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
