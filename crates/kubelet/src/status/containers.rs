//! The statuses of containers.

use std::collections::HashMap;

use api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, LinuxContainerUser, VolumeMountStatus,
};
use api::meta::Time;
use jiff::Timestamp;

use super::Facts;
use crate::actions::{any_regular_created, should_be_started};
use crate::pod::{self, ContainerKind, ephemeral_containers, init_containers, is_sidecar};
use crate::pod_state::{ContainerRecord, State};
use crate::restart_all;
use crate::worker::recursive_read_only;

pub fn init(facts: &Facts) -> Option<Vec<ContainerStatus>> {
    let list: Vec<(Container, ContainerKind)> = init_containers(facts.pod)
        .iter()
        .map(|c| (c.clone(), if is_sidecar(c) { ContainerKind::Sidecar } else { ContainerKind::Init }))
        .collect();
    (!list.is_empty()).then(|| convert(facts, facts.old.init_container_statuses.as_deref(), &list))
}

/// Upstream sorts these by name, and clients compare lists.
pub fn regular(facts: &Facts) -> Vec<ContainerStatus> {
    let list: Vec<_> =
        pod::containers(facts.pod).iter().map(|c| (c.clone(), ContainerKind::Regular)).collect();
    let mut statuses = convert(facts, facts.old.container_statuses.as_deref(), &list);
    statuses.sort_by(|a, b| a.name.cmp(&b.name));
    statuses
}

pub fn ephemeral(facts: &Facts) -> Option<Vec<ContainerStatus>> {
    let list: Vec<_> =
        ephemeral_containers(facts.pod).into_iter().map(|(c, _)| (c, ContainerKind::Ephemeral)).collect();
    (!list.is_empty()).then(|| convert(facts, facts.old.ephemeral_container_statuses.as_deref(), &list))
}

// Upstream: pkg/kubelet/kubelet_pods.go convertToAPIContainerStatuses
fn convert(
    facts: &Facts,
    old: Option<&[ContainerStatus]>,
    containers: &[(Container, ContainerKind)],
) -> Vec<ContainerStatus> {
    let old: HashMap<&str, &ContainerStatus> =
        old.unwrap_or_default().iter().map(|s| (s.name.as_str(), s)).collect();
    containers.iter().map(|(c, kind)| one(facts, c, *kind, old.get(c.name.as_str()).copied())).collect()
}

fn one(
    facts: &Facts,
    container: &Container,
    kind: ContainerKind,
    old: Option<&ContainerStatus>,
) -> ContainerStatus {
    let mut records = facts.state.containers.iter().filter(|c| c.name == container.name);
    let newest = records.next();
    let mut status = match newest {
        Some(record) => known(facts, container, record, old),
        None => unknown(facts, container, kind, old),
    };
    if let (Some(_), Some(previous)) = (newest, records.next()) {
        status.last_state = Some(state_of(facts, previous, old));
    }
    if newest.is_none()
        && kind == ContainerKind::Init
        && any_regular_created(facts.pod, facts.state)
        && status.state.as_ref().is_some_and(|s| s.waiting.is_some())
    {
        status.state = Some(finished_before());
    }
    let starts = should_be_started(facts.pod, container, kind, facts.state) && !facts.terminal;
    if let Some(waiting) = facts.waiting.get(&container.name).filter(|_| starts) {
        if let Some(state) = status.state.take().filter(|s| s.terminated.is_some()) {
            status.last_state = Some(state);
        }
        status.state = Some(waiting_state(&waiting.reason, &waiting.message));
    }
    readiness(facts, kind, newest, &mut status);
    status.allocated_resources_status = facts.devices.get(&container.name).cloned();
    status
}

fn readiness(
    facts: &Facts,
    kind: ContainerKind,
    record: Option<&ContainerRecord>,
    status: &mut ContainerStatus,
) {
    let running = status.state.as_ref().is_some_and(|s| s.running.is_some());
    let id = record.map(|r| r.id.as_str()).unwrap_or_default();
    let started = running && facts.readiness.started.get(id).copied().unwrap_or(true);
    status.started = Some(started);
    status.ready = match kind {
        ContainerKind::Init => {
            status.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0)
        }
        ContainerKind::Ephemeral => false,
        _ => started && facts.readiness.ready.get(id).copied().unwrap_or(true),
    };
}

fn base(facts: &Facts, container: &Container) -> ContainerStatus {
    let mounts: Vec<VolumeMountStatus> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only.filter(|r| *r),
            recursive_read_only: mount.read_only.filter(|r| *r).map(|_| {
                let recursive = recursive_read_only(mount, facts.recursive_read_only);
                if recursive == Ok(true) { "Enabled" } else { "Disabled" }.to_owned()
            }),
            ..Default::default()
        })
        .collect();
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        volume_mounts: (!mounts.is_empty()).then_some(mounts),
        ..Default::default()
    }
}

/// The runtime has a container of that name.
fn known(
    facts: &Facts,
    container: &Container,
    record: &ContainerRecord,
    old: Option<&ContainerStatus>,
) -> ContainerStatus {
    let mut status = base(facts, container);
    status.restart_count = record.restart_count.max(0);
    if !record.image.is_empty() {
        status.image = record.image.clone();
    }
    status.image_id = record.image_ref.clone();
    status.container_id = Some(format!("{}://{}", facts.runtime_name, record.id));
    status.state = Some(state_of(facts, record, old));
    status.last_state = old.and_then(|old| {
        let replaced = old.container_id != status.container_id;
        let ended = old.state.clone().filter(|s| replaced && s.terminated.is_some());
        ended.or_else(|| old.last_state.clone().filter(|l| l.terminated.is_some()))
    });
    status.resources = container.resources.clone();
    status.allocated_resources = container.resources.as_ref().and_then(|r| r.requests.clone());
    status.user = record.user.as_ref().map(|user| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: Some(user.supplemental_groups.clone()).filter(|g| !g.is_empty()),
        }),
    });
    status
}

/// The runtime has none: it was never made, or is gone.
fn unknown(
    facts: &Facts,
    container: &Container,
    kind: ContainerKind,
    old: Option<&ContainerStatus>,
) -> ContainerStatus {
    let reason = match kind {
        ContainerKind::Ephemeral => "ContainerCreating",
        _ if init_containers(facts.pod).is_empty() => "ContainerCreating",
        _ => "PodInitializing",
    };
    let mut status = base(facts, container);
    status.state = Some(waiting_state(reason, ""));
    let Some(old) = old else { return status };
    let old_state = old.state.clone().unwrap_or_default();
    if kind != ContainerKind::Ephemeral && old_state.waiting.is_none() && facts.restarts_all() {
        status.state = Some(waiting_state(restart_all::REASON, restart_all::MESSAGE));
        status.last_state =
            Some(ContainerState { terminated: Some(restart_all::ended()), ..Default::default() });
        status.restart_count = old.restart_count + 1;
        return status;
    }
    if old_state.terminated.is_some() {
        return old.clone();
    }
    status.restart_count = old.restart_count;
    status.last_state = old.last_state.clone();
    let last_known = status.last_state.as_ref().is_some_and(|l| l.terminated.is_some());
    if old_state.running.is_some() && !last_known {
        let lost = ContainerStateTerminated {
            reason: Some("ContainerStatusUnknown".into()),
            message: Some(
                "The container could not be located when the pod was deleted.  The container used to be Running".into(),
            ),
            exit_code: 137,
            ..Default::default()
        };
        let lost = ContainerState { terminated: Some(lost), ..Default::default() };
        if facts.terminal {
            status.state = Some(lost);
        } else {
            status.last_state = Some(lost);
        }
        if facts.pod.metadata.deletion_timestamp.is_none() {
            status.restart_count += 1;
        }
    }
    status
}

fn finished_before() -> ContainerState {
    let terminated = ContainerStateTerminated {
        reason: Some("Completed".into()),
        message: Some(
            "Unable to get init container status from container runtime and pod has been initialized, treat it as \
             exited normally"
                .into(),
        ),
        ..Default::default()
    };
    ContainerState { terminated: Some(terminated), ..Default::default() }
}

fn waiting_state(reason: &str, message: &str) -> ContainerState {
    let some = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
    let waiting = ContainerStateWaiting { reason: some(reason), message: some(message) };
    ContainerState { waiting: Some(waiting), ..Default::default() }
}

/// Times in the API have no fractions.
fn time(nanoseconds: i64) -> Option<Time> {
    Timestamp::from_second(nanoseconds.div_euclid(1_000_000_000)).ok().map(Time)
}

fn state_of(facts: &Facts, record: &ContainerRecord, old: Option<&ContainerStatus>) -> ContainerState {
    let id = format!("{}://{}", facts.runtime_name, record.id);
    let was_running = old.and_then(|o| o.state.as_ref()).is_some_and(|s| s.running.is_some());
    match record.state {
        State::Running => ContainerState {
            running: Some(ContainerStateRunning { started_at: time(record.started_at) }),
            ..Default::default()
        },
        State::Exited => {
            let some = |text: &String| Some(text.clone()).filter(|t| !t.is_empty());
            let terminated = ContainerStateTerminated {
                exit_code: record.exit_code,
                reason: some(&record.reason),
                message: some(&record.message),
                started_at: time(record.started_at),
                finished_at: time(record.finished_at),
                container_id: Some(id),
                ..Default::default()
            };
            ContainerState { terminated: Some(terminated), ..Default::default() }
        }
        State::Unknown if was_running => {
            let terminated = ContainerStateTerminated {
                reason: Some("ContainerStatusUnknown".into()),
                message: Some("The container could not be located when the pod was terminated".into()),
                exit_code: 137,
                ..Default::default()
            };
            ContainerState { terminated: Some(terminated), ..Default::default() }
        }
        State::Created | State::Unknown => waiting_state("", ""),
    }
}
