//! What failed pods and succeeded indexes mean for a Job: its policies, and how long it waits after failures.

use std::time::Duration;

use api::Object;
use api::batch::v1::{Job, JobSpec, PodFailurePolicyOnExitCodesRequirement, SuccessPolicy};
use api::core::v1::{ContainerStatus, Pod};
use jiff::{SignedDuration, Timestamp};

use super::indexes::Indexes;
use crate::objects::{annotation, condition, created, is_deleting, phase};

pub(crate) const FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-failure-count";
pub(crate) const IGNORED_FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// Upstream: pkg/controller/job/job_controller.go DefaultJobPodFailureBackOff, MaxJobPodFailureBackOff
const FIRST_DELAY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_secs(600);

/// What the failure policy says of a failed pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No rule matches, or one that says to count.
    Count,
    Ignore,
    FailIndex,
    /// With the message that tells why.
    FailJob(String),
}

impl Verdict {
    pub fn counts(&self) -> bool {
        *self != Verdict::Ignore
    }
}

/// Upstream: pkg/controller/job/pod_failure_policy.go matchPodFailurePolicy
pub(crate) fn judge(spec: &JobSpec, pod: &Pod) -> Verdict {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    for (at, rule) in rules.enumerate() {
        let (namespace, name, action) = (pod.namespace(), pod.name(), &rule.action);
        let why = if let Some(codes) = &rule.on_exit_codes {
            failed_container(pod, codes).map(|(container, code)| {
                format!("Container {container} for pod {namespace}/{name} failed with exit code {code}")
            })
        } else {
            let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
            let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let mut found = conditions.filter(|c| {
                let wanted = |status: &Option<String>| status.as_deref().unwrap_or("True") == c.status;
                patterns.iter().any(|pattern| pattern.type_ == c.type_ && wanted(&pattern.status))
            });
            found.next().map(|c| format!("Pod {namespace}/{name} has condition {}", c.type_))
        };
        let Some(why) = why else { continue };
        match action.as_str() {
            "Ignore" => return Verdict::Ignore,
            "FailIndex" => return Verdict::FailIndex,
            "Count" => return Verdict::Count,
            "FailJob" => {
                return Verdict::FailJob(format!("{why} matching {action} rule at index {at}"));
            }
            _ => {}
        }
    }
    Verdict::Count
}

/// The first container that ended with a code that the requirement names, and the code.
fn failed_container<'a>(
    pod: &'a Pod,
    wanted: &PodFailurePolicyOnExitCodesRequirement,
) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let code = |container: &ContainerStatus| Some(container.state.as_ref()?.terminated.as_ref()?.exit_code);
    let named = all.filter(|c| wanted.container_name.as_ref().is_none_or(|name| *name == c.name));
    let mut ended = named.filter_map(|c| Some((c.name.as_str(), code(c)?))).filter(|(_, code)| *code != 0);
    ended.find(|(_, code)| match wanted.operator.as_str() {
        "In" => wanted.values.contains(code),
        "NotIn" => !wanted.values.contains(code),
        _ => false,
    })
}

/// The message of the rule that is met, if one is.
///
/// Upstream: pkg/controller/job/success_policy.go matchSuccessPolicy
pub(crate) fn success(
    policy: Option<&SuccessPolicy>,
    completions: i32,
    succeeded: &Indexes,
) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let met = policy?.rules.iter().position(|rule| match &rule.succeeded_indexes {
        Some(indexes) => {
            let required = Indexes::parse(indexes, completions);
            let common = required.common(succeeded);
            !required.is_empty()
                && (common == required.total() || rule.succeeded_count.is_some_and(|count| common >= count))
        }
        None => rule.succeeded_count.is_some_and(|count| succeeded.total() >= count),
    });
    met.map(|at| format!("Matched rules at index {at}"))
}

/// Whether only pods that have ended are replaced, not those that are still going.
///
/// Upstream: pkg/controller/job/job_controller.go onlyReplaceFailedPods
pub(crate) fn replaces_ended_only(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// Upstream: pkg/controller/job/job_controller.go isPodFailed
pub(crate) fn is_failed(spec: &JobSpec, pod: &Pod) -> bool {
    phase(pod) == "Failed" || (!replaces_ended_only(spec) && is_deleting(pod) && phase(pod) != "Succeeded")
}

/// Failures of an index so far, counted and ignored ones.
pub(crate) fn failure_counts(pod: &Pod) -> (i32, i32) {
    let count =
        |key| annotation(pod, key).and_then(|text| text.parse::<i32>().ok()).filter(|n| *n >= 0).unwrap_or(0);
    (count(FAILURE_COUNT), count(IGNORED_FAILURE_COUNT))
}

/// When a pod ended: as its containers say, or else its readiness, its deletion, its creation.
///
/// Upstream: pkg/controller/job/backoff_utils.go getFinishedTime
pub(crate) fn finished_at(pod: &Pod) -> Timestamp {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ended = |c: &ContainerStatus| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0);
    let ended: Option<Vec<_>> = containers.map(ended).collect();
    let unready = || {
        let ready = condition(pod, "Ready").filter(|ready| ready.status == "False")?;
        ready.last_transition_time.as_ref().map(|time| time.0)
    };
    let deleted = || {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        let at = pod.metadata.deletion_timestamp.as_ref()?.0;
        at.checked_sub(SignedDuration::from_secs(grace)).ok()
    };
    ended
        .and_then(|all| all.into_iter().max())
        .or_else(unready)
        .or_else(deleted)
        .unwrap_or_else(|| created(pod))
}

/// Failures in a row, and when the last was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    failures: u32,
    last: Option<Timestamp>,
}

impl Record {
    /// Upstream: pkg/controller/job/backoff_utils.go newBackoffRecord
    pub fn after(self, succeeded: &[Timestamp], failed: &[Timestamp]) -> Self {
        let success = succeeded.iter().max();
        let before = if success.is_some() { Record::default() } else { self };
        let since = failed.iter().filter(|at| success.is_none_or(|success| *at > success));
        let count = u32::try_from(since.clone().count()).unwrap_or(u32::MAX);
        Record { failures: before.failures.saturating_add(count), last: since.max().copied().or(before.last) }
    }

    /// How long no pod is to be made yet.
    pub fn remaining(self, now: Timestamp) -> Duration {
        self.last.map_or(Duration::ZERO, |last| remaining(self.failures, last, now))
    }
}

/// How long after so many failures, the last at `last`, there is to be no other try.
pub(crate) fn remaining(failures: u32, last: Timestamp, now: Timestamp) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
    let delay = FIRST_DELAY.saturating_mul(1 << doublings.min(16)).min(LONGEST_DELAY);
    let passed = now.duration_since(last).try_into().unwrap_or(Duration::ZERO);
    delay.saturating_sub(passed)
}

/// Whether containers that restart in place have restarted too often together.
///
/// Upstream: pkg/controller/job/job_controller.go pastBackoffLimitOnFailure
pub(crate) fn restarted_too_often<'a>(job: &Job, pods: impl Iterator<Item = &'a Pod>) -> bool {
    let Some(spec) = &job.spec else { return false };
    let policy = spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let alive = pods.filter(|pod| matches!(phase(pod), "Running" | "Pending"));
    let statuses = alive.filter_map(|pod| pod.status.as_ref());
    let containers =
        statuses.flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses).flatten());
    let restarts: i64 = containers.map(|container| i64::from(container.restart_count)).sum();
    match spec.backoff_limit.unwrap_or(6) {
        0 => restarts > 0,
        limit => restarts >= i64::from(limit),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::objects::tests::{at, pod};

    fn spec(rules: Value) -> JobSpec {
        serde_json::from_value(json!({"template": {}, "podFailurePolicy": {"rules": rules}})).unwrap()
    }

    fn failed(code: i32) -> Pod {
        let mut failed = pod("p", "Failed", false);
        let status = failed.status.as_mut().unwrap();
        status.container_statuses = serde_json::from_value(json!([{
            "name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "finishedAt": "2026-01-01T00:00:30Z"}},
        }]))
        .unwrap();
        status.conditions =
            serde_json::from_value(json!([{"type": "DisruptionTarget", "status": "True"}])).unwrap();
        failed
    }

    #[test]
    fn the_first_rule_that_matches_judges() {
        let codes = |operator: &str, action: &str| json!({"action": action, "onExitCodes": {"operator": operator, "values": [3, 4]}});
        let disruption =
            json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]});
        let message = "Container main for pod ns/p failed with exit code 3 matching FailJob rule at index 1";
        for (rules, code, expected) in [
            (json!([]), 3, Verdict::Count),
            (json!([codes("In", "Count"), disruption]), 3, Verdict::Count),
            (json!([codes("In", "FailIndex")]), 3, Verdict::FailIndex),
            (json!([codes("NotIn", "FailIndex")]), 3, Verdict::Count),
            (json!([codes("NotIn", "FailIndex")]), 5, Verdict::FailIndex),
            (json!([codes("In", "FailJob"), disruption]), 9, Verdict::Ignore),
            (json!([codes("NotIn", "Ignore"), codes("In", "FailJob")]), 3, Verdict::FailJob(message.into())),
        ] {
            assert_eq!(judge(&spec(rules.clone()), &failed(code)), expected, "{rules} {code}");
        }
    }

    #[test]
    fn rules_of_success() {
        let check = |rules: Value, succeeded: &str, expected: Option<&str>| {
            let policy: SuccessPolicy = serde_json::from_value(json!({ "rules": rules })).unwrap();
            let met = success(Some(&policy), 10, &Indexes::parse(succeeded, 10));
            assert_eq!(met.as_deref(), expected, "{rules} {succeeded}");
        };
        let (first, second) = (Some("Matched rules at index 0"), Some("Matched rules at index 1"));
        check(json!([{"succeededIndexes": "0-2"}]), "0,2", None);
        check(json!([{"succeededIndexes": "0-2"}]), "0-2,5", first);
        check(json!([{"succeededIndexes": "0-2", "succeededCount": 2}]), "0,2", first);
        check(json!([{"succeededIndexes": "0"}, {"succeededCount": 2}]), "1,2", second);
        check(json!([{"succeededCount": 1}]), "", None);
    }

    #[test]
    fn failures_in_a_row_delay_the_next_try() {
        let record = Record::default().after(&[], &[at(0), at(5)]);
        assert_eq!(record.remaining(at(5)), Duration::from_secs(20));
        assert_eq!(record.remaining(at(15)), Duration::from_secs(10));
        assert_eq!(record.remaining(at(99)), Duration::ZERO);
        let record = record.after(&[at(7)], &[at(6)]);
        assert_eq!(record.remaining(at(7)), Duration::ZERO);
        let record = record.after(&[at(8)], &[at(9)]);
        assert_eq!(record.remaining(at(9)), Duration::from_secs(10));
        assert_eq!(remaining(100, at(0), at(0)), LONGEST_DELAY);
    }

    #[test]
    fn the_end_of_a_pod() {
        assert_eq!(finished_at(&failed(1)), at(30));
        let mut deleted = pod("p", "Running", true);
        assert_eq!(finished_at(&deleted), at(0));
        deleted.metadata.deletion_timestamp = Some(api::meta::Time(at(60)));
        deleted.metadata.deletion_grace_period_seconds = Some(20);
        assert_eq!(finished_at(&deleted), at(40));
    }
}
