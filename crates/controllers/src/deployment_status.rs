//! A Deployment's status: counts, conditions and progress.

use std::time::Duration;

use api::Object;
use api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use api::meta::Time;
use jiff::Timestamp;

use crate::deployment::{Rollout, deadline, max_unavailable, replicas_of, wanted};

/// A condition of now.
pub(crate) fn new_condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

pub(crate) fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// Sets a condition unless it stands already with the same status and reason.
///
/// Upstream: pkg/controller/deployment/util/deployment_util.go SetDeploymentCondition
pub(crate) fn set(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    if let Some(old) = find(status, &condition.type_) {
        if old.status == condition.status && old.reason == condition.reason {
            return;
        }
        if old.status == condition.status {
            condition.last_transition_time = old.last_transition_time.clone();
        }
    }
    remove(status, &condition.type_.clone());
    status.conditions.get_or_insert_default().push(condition);
}

pub(crate) fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != kind);
    }
}

/// Counts, and the condition on availability.
///
/// Upstream: pkg/controller/deployment/sync.go calculateStatus
pub(crate) fn count(rollout: &Rollout<'_>) -> DeploymentStatus {
    let deployment = rollout.deployment;
    let old = deployment.status.clone().unwrap_or_default();
    let all = || rollout.all();
    let sum = |of: &dyn Fn(&ReplicaSet) -> i32| all().map(of).sum::<i32>();
    let status = |rs: &ReplicaSet| rs.status.clone().unwrap_or_default();
    let available = sum(&|rs| status(rs).available_replicas.unwrap_or(0));
    let mut counted = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(sum(&|rs| status(rs).replicas)),
        updated_replicas: Some(rollout.new.as_ref().map_or(0, |new| status(&new.set).replicas)),
        ready_replicas: Some(sum(&|rs| status(rs).ready_replicas.unwrap_or(0))),
        available_replicas: Some(available),
        unavailable_replicas: Some((sum(&replicas_of) - available).max(0)),
        terminating_replicas: Some(sum(&|rs| status(rs).terminating_replicas.unwrap_or(0))),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let now = rollout.now;
    let condition = if available >= wanted(deployment) - max_unavailable(deployment) {
        let message = "Deployment has minimum availability.".to_owned();
        new_condition("Available", "True", "MinimumReplicasAvailable", message, now)
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        new_condition("Available", "False", "MinimumReplicasUnavailable", message, now)
    };
    set(&mut counted, condition);
    counted
}

/// Upstream: pkg/controller/deployment/util/deployment_util.go DeploymentComplete
pub(crate) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(wanted(deployment));
    let or_zero = |n: Option<i32>| Some(n.unwrap_or(0));
    or_zero(status.updated_replicas) == wanted
        && or_zero(status.replicas) == wanted
        && or_zero(status.available_replicas) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let old_pods = |s: &DeploymentStatus| s.replicas.unwrap_or(0) - s.updated_replicas.unwrap_or(0);
    let more = |a: Option<i32>, b: Option<i32>| a.unwrap_or(0) > b.unwrap_or(0);
    more(new.updated_replicas, old.updated_replicas)
        || old_pods(new) < old_pods(old)
        || more(new.ready_replicas, old.ready_replicas)
        || more(new.available_replicas, old.available_replicas)
}

/// The status while rolling out, and when to look again for lack of progress.
///
/// Upstream: pkg/controller/deployment/progress.go syncRolloutStatus
pub(crate) fn progress(
    rollout: &Rollout<'_>,
    conditions: Vec<DeploymentCondition>,
) -> (DeploymentStatus, Option<Duration>) {
    let (deployment, now) = (rollout.deployment, rollout.now);
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = count(rollout);
    let decided = !conditions.is_empty();
    conditions.into_iter().for_each(|condition| set(&mut status, condition));
    let current = find(&status, "Progressing").cloned();
    let Some(deadline) = deadline(deployment) else {
        remove(&mut status, "Progressing");
        replica_failure(rollout, &mut status);
        return (status, None);
    };
    let was_complete = status.replicas == status.updated_replicas
        && current.as_ref().is_some_and(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable"));
    if !was_complete {
        let subject = match &rollout.new {
            Some(new) => format!("ReplicaSet {:?}", new.set.name()),
            None => format!("Deployment {:?}", deployment.name()),
        };
        if is_complete(deployment, &status) {
            let message = format!("{subject} has successfully progressed.");
            set(&mut status, new_condition("Progressing", "True", "NewReplicaSetAvailable", message, now));
        } else if has_progressed(&old, &status) && !decided {
            let message = format!("{subject} is progressing.");
            let mut condition = new_condition("Progressing", "True", "ReplicaSetUpdated", message, now);
            if let Some(current) = current.as_ref().filter(|c| c.status == "True") {
                condition.last_transition_time = current.last_transition_time.clone();
            }
            // Progress of the same reason still renews the time.
            remove(&mut status, "Progressing");
            set(&mut status, condition);
        } else if current.as_ref().is_some_and(|current| deadline_left(current, deadline, now).is_none()) {
            let message = format!("{subject} has timed out progressing.");
            set(&mut status, new_condition("Progressing", "False", "ProgressDeadlineExceeded", message, now));
        }
    }
    replica_failure(rollout, &mut status);
    let waiting = find(&status, "Progressing").filter(|c| {
        let settled =
            matches!(c.reason.as_deref(), Some("NewReplicaSetAvailable" | "ProgressDeadlineExceeded"));
        !settled && !is_complete(deployment, &status)
    });
    let left = waiting.and_then(|current| deadline_left(current, deadline, now));
    (status, left.map(|left| left + Duration::from_secs(1)))
}

/// How long until the deadline counted from the last progress; `None` when it has passed.
fn deadline_left(condition: &DeploymentCondition, deadline: i32, now: Timestamp) -> Option<Duration> {
    match condition.reason.as_deref() {
        Some("NewReplicaSetAvailable") => return Some(Duration::ZERO),
        Some("ProgressDeadlineExceeded") => return None,
        _ => {}
    }
    let passed =
        condition.last_update_time.as_ref().map_or(0.0, |since| now.duration_since(since.0).as_secs_f64());
    let left = f64::from(deadline) - passed;
    (left >= 0.0).then(|| Duration::from_secs_f64(left))
}

/// Failures of replica sets, the new one's first, become the Deployment's.
fn replica_failure(rollout: &Rollout<'_>, status: &mut DeploymentStatus) {
    let new = rollout.new.iter().map(|new| &new.set);
    let mut failures = new.chain(rollout.old.iter().map(|old| &old.set)).flat_map(|set| {
        let conditions = set.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.filter(|c| c.type_ == "ReplicaFailure")
    });
    match failures.next() {
        Some(failure) => {
            let condition = DeploymentCondition {
                type_: "ReplicaFailure".to_owned(),
                status: failure.status.clone(),
                reason: failure.reason.clone(),
                message: failure.message.clone(),
                last_update_time: failure.last_transition_time.clone(),
                last_transition_time: failure.last_transition_time.clone(),
            };
            set(status, condition);
        }
        None => remove(status, "ReplicaFailure"),
    }
}
