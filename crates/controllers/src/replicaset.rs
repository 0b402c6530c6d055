//! ReplicaSets and ReplicationControllers: two kinds with one [core](crate::replication).

use api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use api::meta::{LabelSelector, Time};

use crate::replication::{Counts, Replicated};

const FAILURE: &str = "ReplicaFailure";

impl Replicated for ReplicaSet {
    const COMPONENT: &'static str = "replicaset-controller";
    const COUNTS_TERMINATING: bool = true;

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> LabelSelector {
        self.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default()
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn counts(&self) -> Counts {
        let Some(status) = &self.status else {
            return Counts { observed_generation: -1, ..Default::default() };
        };
        let failure = status.conditions.iter().flatten().find(|c| c.type_ == FAILURE);
        Counts {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: status.terminating_replicas.unwrap_or(0),
            observed_generation: status.observed_generation.unwrap_or(0),
            failure: failure
                .map(|c| (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default())),
        }
    }

    fn set_counts(&mut self, counts: Counts, now: Time) {
        let had_failure = self.counts().failure.is_some();
        let old = self.status.take().unwrap_or_default().conditions.unwrap_or_default();
        let keep = |c: &ReplicaSetCondition| c.type_ != FAILURE || (had_failure && counts.failure.is_some());
        let mut conditions: Vec<_> = old.into_iter().filter(keep).collect();
        if let (false, Some((reason, message))) = (had_failure, counts.failure) {
            conditions.push(ReplicaSetCondition {
                type_: FAILURE.to_owned(),
                status: "True".to_owned(),
                last_transition_time: Some(now),
                reason: Some(reason),
                message: Some(message),
            });
        }
        self.status = Some(ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.fully_labeled),
            ready_replicas: Some(counts.ready),
            available_replicas: Some(counts.available),
            terminating_replicas: Some(counts.terminating),
            observed_generation: Some(counts.observed_generation),
            conditions: Some(conditions).filter(|c| !c.is_empty()),
        });
    }
}

impl Replicated for ReplicationController {
    const COMPONENT: &'static str = "replication-controller";
    const COUNTS_TERMINATING: bool = false;

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> LabelSelector {
        let match_labels = self.spec.as_ref().and_then(|spec| spec.selector.clone());
        LabelSelector { match_labels, match_expressions: None }
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn counts(&self) -> Counts {
        let Some(status) = &self.status else {
            return Counts { observed_generation: -1, ..Default::default() };
        };
        let failure = status.conditions.iter().flatten().find(|c| c.type_ == FAILURE);
        Counts {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: 0,
            observed_generation: status.observed_generation.unwrap_or(0),
            failure: failure
                .map(|c| (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default())),
        }
    }

    fn set_counts(&mut self, counts: Counts, now: Time) {
        let had_failure = self.counts().failure.is_some();
        let old = self.status.take().unwrap_or_default().conditions.unwrap_or_default();
        let keep = |c: &ReplicationControllerCondition| {
            c.type_ != FAILURE || (had_failure && counts.failure.is_some())
        };
        let mut conditions: Vec<_> = old.into_iter().filter(keep).collect();
        if let (false, Some((reason, message))) = (had_failure, counts.failure) {
            conditions.push(ReplicationControllerCondition {
                type_: FAILURE.to_owned(),
                status: "True".to_owned(),
                last_transition_time: Some(now),
                reason: Some(reason),
                message: Some(message),
            });
        }
        self.status = Some(ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.fully_labeled),
            ready_replicas: Some(counts.ready),
            available_replicas: Some(counts.available),
            observed_generation: Some(counts.observed_generation),
            conditions: Some(conditions).filter(|c| !c.is_empty()),
        });
    }
}
