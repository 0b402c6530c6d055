//! The conditions of a pod that the kubelet owns.

use api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use api::meta::Time;

use super::Facts;
use crate::actions::sandbox_changed;
use crate::pod::{containers, init_containers, is_sidecar, phase};
use crate::restart_all;

const OWNED: [&str; 8] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "PodResizePending",
    "PodResizeInProgress",
    restart_all::CONDITION,
];

/// All conditions: others' as they stand, then ours, with the time of the last change kept where nothing changed.
pub fn all(facts: &Facts, status: &PodStatus) -> Vec<PodCondition> {
    let present = facts.pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let mut all: Vec<PodCondition> =
        present.into_iter().filter(|c| !OWNED.contains(&c.type_.as_str())).collect();
    let statuses: Vec<&ContainerStatus> = [&status.init_container_statuses, &status.container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    let phase_now = status.phase.as_deref().unwrap_or_default();
    let (needs_sandbox, ..) = sandbox_changed(facts.pod, facts.state);
    let containers_ready = containers_ready(facts, &statuses, phase_now);
    let ready = ready(facts, &all, &containers_ready);
    let mut ours = vec![
        condition("PodReadyToStartContainers", !needs_sandbox, "", String::new()),
        initialized(facts, &statuses, phase_now),
        ready,
        containers_ready,
        condition("PodScheduled", true, "", String::new()),
    ];
    if restart_all::is_possible(facts.pod) {
        ours.push(all_restarting(facts, phase_now));
    }
    all.extend(
        ours.into_iter().map(|c| PodCondition { observed_generation: facts.pod.metadata.generation, ..c }),
    );
    all.extend_from_slice(facts.resize);
    if let Some(verdict) = facts.verdict.filter(|verdict| verdict.disrupted) {
        // Upstream: k8s.io/api/core/v1 PodReasonTerminationByKubelet
        all.retain(|c| c.type_ != "DisruptionTarget");
        let target = condition("DisruptionTarget", true, "TerminationByKubelet", verdict.message.clone());
        all.push(PodCondition { observed_generation: facts.pod.metadata.generation, ..target });
    }
    for condition in &mut all {
        stamp(condition, facts);
    }
    all
}

/// Keeps the transition time while the status stays the same.
fn stamp(condition: &mut PodCondition, facts: &Facts) {
    let old = [Some(facts.old), facts.pod.status.as_ref()]
        .into_iter()
        .flatten()
        .find_map(|s| s.conditions.iter().flatten().find(|c| c.type_ == condition.type_));
    let kept = old.filter(|o| o.status == condition.status).and_then(|o| o.last_transition_time.clone());
    condition.last_transition_time = kept.or_else(|| {
        let seconds = jiff::Timestamp::from_second(facts.now.as_second()).unwrap_or(facts.now);
        Some(Time(seconds))
    });
}

fn condition(kind: &str, is_true: bool, reason: &str, message: String) -> PodCondition {
    PodCondition {
        type_: kind.to_owned(),
        status: if is_true { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()).filter(|r| !r.is_empty()),
        message: Some(message).filter(|m| !m.is_empty()),
        ..Default::default()
    }
}

// Upstream: pkg/kubelet/status/generate.go GenerateAllContainersRestartingCondition
fn all_restarting(facts: &Facts, phase_now: &str) -> PodCondition {
    let over = match phase_now {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ => None,
    };
    if let Some(reason) = over {
        return condition(restart_all::CONDITION, false, reason, String::new());
    }
    if !facts.restarts_all() || restart_all::is_cleaned_up(facts.pod, facts.state) {
        return condition(restart_all::CONDITION, false, "", String::new());
    }
    let message = "container exited with restart policy rule".to_owned();
    condition(restart_all::CONDITION, true, "RestartAllContainersStarted", message)
}

/// `containers with unready status: [a b]`, as Go prints a list.
fn named(what: &str, names: &[&str]) -> Option<String> {
    (!names.is_empty()).then(|| format!("containers with {what} status: [{}]", names.join(" ")))
}

fn join(parts: [Option<String>; 2]) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

// Upstream: pkg/kubelet/status/generate.go GenerateContainersReadyCondition
fn containers_ready(facts: &Facts, statuses: &[&ContainerStatus], phase: &str) -> PodCondition {
    let kind = "ContainersReady";
    let sidecars = init_containers(facts.pod).iter().filter(|c| is_sidecar(c));
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    for container in sidecars.chain(containers(facts.pod)) {
        match statuses.iter().find(|s| s.name == container.name) {
            None => unknown.push(container.name.as_str()),
            Some(status) if !status.ready => unready.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    match phase {
        "Succeeded" if unknown.is_empty() => return condition(kind, false, "PodCompleted", String::new()),
        "Failed" => return condition(kind, false, "PodFailed", String::new()),
        _ => {}
    }
    let message = join([named("unknown", &unknown), named("unready", &unready)]);
    let is_ready = message.is_empty();
    condition(kind, is_ready, if is_ready { "" } else { "ContainersNotReady" }, message)
}

fn ready(facts: &Facts, others: &[PodCondition], containers_ready: &PodCondition) -> PodCondition {
    if containers_ready.status != "True" {
        return PodCondition { type_: "Ready".into(), ..containers_ready.clone() };
    }
    let gates = facts.pod.spec.as_ref().and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
    let mut messages = Vec::new();
    for gate in gates.iter().map(|g| &g.condition_type) {
        match others.iter().find(|c| c.type_ == *gate) {
            None => messages
                .push(format!("corresponding condition of pod readiness gate {gate:?} does not exist.")),
            Some(c) if c.status != "True" => {
                messages.push(format!(
                    "the status of pod readiness gate {gate:?} is not \"True\", but {}",
                    c.status
                ));
            }
            Some(_) => {}
        }
    }
    let open = messages.is_empty();
    condition("Ready", open, if open { "" } else { "ReadinessGatesNotReady" }, messages.join(", "))
}

// Upstream: pkg/kubelet/status/generate.go GeneratePodInitializedCondition
fn initialized(facts: &Facts, statuses: &[&ContainerStatus], phase_now: &str) -> PodCondition {
    let kind = "Initialized";
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for container in init_containers(facts.pod) {
        match statuses.iter().find(|s| s.name == container.name) {
            None => unknown.push(container.name.as_str()),
            Some(status) => {
                let done = if is_sidecar(container) { status.started == Some(true) } else { status.ready };
                if !done {
                    incomplete.push(container.name.as_str());
                }
            }
        }
    }
    if phase_now == "Succeeded" && unknown.is_empty() {
        return condition(kind, true, "PodCompleted", String::new());
    }
    let was_started = |name: &str| {
        statuses.iter().find(|s| s.name == name).is_some_and(|s| {
            let ran =
                |state: &api::core::v1::ContainerState| state.running.is_some() || state.terminated.is_some();
            s.state.as_ref().is_some_and(ran) || s.last_state.as_ref().is_some_and(ran)
        })
    };
    let message = join([named("unknown", &unknown), named("incomplete", &incomplete)]);
    let before = || {
        let of = |s: &PodStatus| s.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True");
        of(facts.old) && phase(facts.pod) != "Pending"
    };
    if message.is_empty() || containers(facts.pod).iter().any(|c| was_started(&c.name)) || before() {
        return condition(kind, true, "", String::new());
    }
    condition(kind, false, "ContainersNotInitialized", message)
}
