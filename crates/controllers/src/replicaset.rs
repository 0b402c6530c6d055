//! ReplicaSets and ReplicationControllers: two kinds with one [core](crate::replication).

use api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use api::meta::{LabelSelector, Time};

use crate::replication::{Counts, Replicated};

const FAILURE: &str = "ReplicaFailure";

/// The two differ in the names of their types, in how they select, and in that one counts terminating pods.
macro_rules! replicated {
    (@count $status:ident) => { 0 };
    (@count $status:ident $field:ident) => { $status.$field.unwrap_or(0) };
    (
        $kind:ty, $status:ident, $condition:ident, $component:literal,
        selector: $selector:expr, terminating: $counts_terminating:literal $(in $terminating:ident)?
    ) => {
        impl Replicated for $kind {
            const COMPONENT: &'static str = $component;
            const COUNTS_TERMINATING: bool = $counts_terminating;

            fn replicas(&self) -> i32 {
                self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
            }

            fn min_ready_seconds(&self) -> i32 {
                self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
            }

            fn selector(&self) -> LabelSelector {
                self.spec.as_ref().map($selector).unwrap_or_default()
            }

            fn template(&self) -> Option<&PodTemplateSpec> {
                self.spec.as_ref()?.template.as_ref()
            }

            fn counts(&self) -> Counts {
                let Some(status) = &self.status else {
                    return Counts { observed_generation: -1, ..Default::default() };
                };
                let failure = status.conditions.iter().flatten().find(|c| c.type_ == FAILURE);
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                Counts {
                    replicas: status.replicas,
                    fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
                    ready: status.ready_replicas.unwrap_or(0),
                    available: status.available_replicas.unwrap_or(0),
                    terminating: replicated!(@count status $($terminating)?),
                    observed_generation: status.observed_generation.unwrap_or(0),
                    failure: failure.map(|c| (text(&c.reason), text(&c.message))),
                }
            }

            fn set_counts(&mut self, counts: Counts, now: Time) {
                let had_failure = self.counts().failure.is_some();
                let old = self.status.take().unwrap_or_default().conditions.unwrap_or_default();
                let keep = |c: &$condition| c.type_ != FAILURE || (had_failure && counts.failure.is_some());
                let mut conditions: Vec<_> = old.into_iter().filter(keep).collect();
                if let (false, Some((reason, message))) = (had_failure, counts.failure) {
                    conditions.push($condition {
                        type_: FAILURE.to_owned(),
                        status: "True".to_owned(),
                        last_transition_time: Some(now),
                        reason: Some(reason),
                        message: Some(message),
                    });
                }
                self.status = Some($status {
                    replicas: counts.replicas,
                    fully_labeled_replicas: Some(counts.fully_labeled),
                    ready_replicas: Some(counts.ready),
                    available_replicas: Some(counts.available),
                    $($terminating: Some(counts.terminating),)?
                    observed_generation: Some(counts.observed_generation),
                    conditions: Some(conditions).filter(|c| !c.is_empty()),
                });
            }
        }
    };
}

replicated!(
    ReplicaSet, ReplicaSetStatus, ReplicaSetCondition, "replicaset-controller",
    selector: |spec| spec.selector.clone(), terminating: true in terminating_replicas
);
replicated!(
    ReplicationController, ReplicationControllerStatus, ReplicationControllerCondition, "replication-controller",
    selector: |spec| LabelSelector { match_labels: spec.selector.clone(), match_expressions: None },
    terminating: false
);
