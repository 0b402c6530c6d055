//! What is to be done for a Job: pure.
//!
//! A pod that has ended keeps a finalizer until it is counted, and is counted once: first its uid goes into the
//! status, then the finalizer goes from the pod, then the uid becomes a number. Each step is a pass of its own,
//! so that a crash between two of them loses and doubles nothing. In the same way a Job that has met its end is
//! first marked so (FailureTarget, SuccessCriteriaMet), and is Failed or Complete when all its pods are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use api::core::v1::Pod;
use api::meta::Time;
use controller_runtime::EventType;
use jiff::Timestamp;

use super::indexes::{Indexes, index_of, indexes_of};
use super::pods::{is_indexed, is_tracked, make, surplus};
use super::policy::{
    Record, Verdict, failure_counts, finished_at, is_failed, judge, remaining, replaces_ended_only,
    restarted_too_often, success,
};
use crate::objects::{is_active, is_deleting, is_ready, is_terminal, phase};

/// Upstream: pkg/controller/job/job_controller.go MaxUncountedPods
const MAX_UNCOUNTED: usize = 500;
/// Upstream: pkg/controller/job/job_controller.go MaxPodCreateDeletePerSync
const MAX_BATCH: usize = 500;

/// What is to be done, in this order.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub delete: Vec<Arc<Pod>>,
    /// Whether the pods to delete are let go uncounted: the Job did not want them any more.
    pub uncounted_deletes: bool,
    pub create: Vec<Pod>,
    pub status: Option<JobStatus>,
    /// Pods that have been counted with that status.
    pub release: Vec<Arc<Pod>>,
    /// Failures in a row, to be remembered with that status.
    pub record: Record,
    pub events: Vec<(EventType, String, String)>,
    /// When to look again, should nothing happen.
    pub again: Option<Duration>,
}

pub(crate) fn find<'a>(conditions: Option<&'a Vec<JobCondition>>, kind: &str) -> Option<&'a JobCondition> {
    conditions.into_iter().flatten().find(|condition| condition.type_ == kind)
}

fn is_true(status: &JobStatus, kind: &str) -> bool {
    find(status.conditions.as_ref(), kind).is_some_and(|condition| condition.status == "True")
}

pub(crate) fn is_finished(job: &Job) -> bool {
    job.status.as_ref().is_some_and(|status| is_true(status, "Complete") || is_true(status, "Failed"))
}

/// The reason and message of how a Job ends.
#[derive(Clone, Debug)]
struct End {
    failed: bool,
    reason: String,
    message: String,
}

fn failure(reason: &str, message: &str) -> End {
    End { failed: true, reason: reason.to_owned(), message: message.to_owned() }
}

/// A Job while it is decided.
struct Work<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    pods: &'a [Arc<Pod>],
    now: Timestamp,
    active: Vec<Arc<Pod>>,
    status: JobStatus,
    uncounted: (BTreeSet<String>, BTreeSet<String>),
    succeeded: i32,
    failed: i32,
    succeeded_before: Indexes,
    succeeded_indexes: Indexes,
    failed_indexes: Option<Indexes>,
    /// Failed pods that are kept until another takes their place and their count of failures.
    awaiting_replacement: BTreeMap<i32, Arc<Pod>>,
    plan: Plan,
}

/// Decides from all pods that the Job owns.
pub(crate) fn decide(job: &Job, pods: &[Arc<Pod>], record: Record, now: Timestamp) -> Plan {
    let Some(spec) = &job.spec else { return Plan::default() };
    let mut work = observe(job, spec, pods, record, now);
    let end = work.end();
    match &end {
        Some(_) => work.plan.delete = work.active.clone(),
        None if !is_deleting(job) => work.manage(),
        None => {}
    }
    let active_after = work.active.len() - work.plan.delete.len() + work.plan.create.len();
    let end = end.or_else(|| work.completion(active_after));
    if end.is_none() && !is_deleting(job) {
        work.suspension();
    }
    work.count(active_after);
    work.track(end.as_ref());
    work.finish(end);
    if changed(job, &work.status) {
        work.plan.status = Some(work.status);
    }
    work.plan
}

fn completions(spec: &JobSpec) -> i32 {
    spec.completions.unwrap_or(1)
}

fn observe<'a>(
    job: &'a Job,
    spec: &'a JobSpec,
    pods: &'a [Arc<Pod>],
    record: Record,
    now: Timestamp,
) -> Work<'a> {
    let mut status = job.status.clone().unwrap_or_default();
    settle_uncounted(&mut status, pods);
    if status.start_time.is_none() && spec.suspend != Some(true) {
        status.start_time = Some(Time(now));
    }
    let lists = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let set = |list: Option<Vec<String>>| list.into_iter().flatten().collect::<BTreeSet<_>>();
    let uncounted = (set(lists.succeeded), set(lists.failed));
    let active = pods.iter().filter(|pod| is_active(pod)).cloned().collect();
    let mut work = Work {
        job,
        spec,
        pods,
        now,
        active,
        uncounted,
        succeeded: 0,
        failed: 0,
        succeeded_before: Indexes::default(),
        succeeded_indexes: Indexes::default(),
        failed_indexes: None,
        awaiting_replacement: BTreeMap::new(),
        plan: Plan::default(),
        status,
    };
    let fresh = |work: &Work<'_>, done: &BTreeSet<String>, test: &dyn Fn(&Pod) -> bool| -> Vec<Arc<Pod>> {
        let valid = work.valid().filter(|pod| !done.contains(pod.uid()) && test(pod));
        valid.cloned().collect()
    };
    let new_succeeded = fresh(&work, &work.uncounted.0, &|pod| phase(pod) == "Succeeded");
    let new_failed = fresh(&work, &work.uncounted.1, &|pod| is_failed(spec, pod));
    let counted = new_failed.iter().filter(|pod| judge(spec, pod).counts()).count();
    work.succeeded =
        work.status.succeeded.unwrap_or(0) + (new_succeeded.len() + work.uncounted.0.len()) as i32;
    work.failed = work.status.failed.unwrap_or(0) + (counted + work.uncounted.1.len()) as i32;
    let ends = |pods: &[Arc<Pod>]| pods.iter().map(|pod| finished_at(pod)).collect::<Vec<_>>();
    work.plan.record = record.after(&ends(&new_succeeded), &ends(&new_failed));
    if is_indexed(job) {
        work.observe_indexes();
    }
    work
}

/// Uids whose pods have lost the finalizer become numbers.
///
/// Upstream: pkg/controller/job/job_controller.go cleanUncountedPodsWithoutFinalizers
fn settle_uncounted(status: &mut JobStatus, pods: &[Arc<Pod>]) {
    let tracked: BTreeSet<&str> = pods.iter().filter(|pod| is_tracked(pod)).map(|pod| pod.uid()).collect();
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    for (list, number) in
        [(&mut uncounted.succeeded, &mut status.succeeded), (&mut uncounted.failed, &mut status.failed)]
    {
        let Some(uids) = list else { continue };
        let before = uids.len();
        uids.retain(|uid| tracked.contains(uid.as_str()));
        let settled = (before - uids.len()) as i32;
        *number = Some(number.unwrap_or(0) + settled).filter(|number| *number != 0);
        list.take_if(|uids| uids.is_empty());
    }
}

impl<'a> Work<'a> {
    /// Pods that are not counted yet and have, in an indexed Job, an index that it wants.
    fn valid(&self) -> impl Iterator<Item = &'a Arc<Pod>> + use<'a> {
        let (indexed, completions) = (is_indexed(self.job), completions(self.spec));
        let pods: &'a [Arc<Pod>] = self.pods;
        pods.iter().filter(move |pod| {
            is_tracked(pod) && (!indexed || index_of(pod).is_some_and(|index| index < completions))
        })
    }

    fn observe_indexes(&mut self) {
        let (spec, completions) = (self.spec, completions(self.spec));
        let of = |pod: &Arc<Pod>| index_of(pod);
        self.succeeded_before =
            Indexes::parse(self.status.completed_indexes.as_deref().unwrap_or_default(), completions);
        let new = self.valid().filter(|pod| phase(pod) == "Succeeded").filter_map(of);
        self.succeeded_indexes = self.succeeded_before.with(new);
        self.succeeded = self.succeeded_indexes.total();
        let Some(limit) = spec.backoff_limit_per_index else { return };
        let before = Indexes::parse(self.status.failed_indexes.as_deref().unwrap_or_default(), completions);
        let lost = self.valid().filter(|pod| is_failed(spec, pod)).filter(|pod| match judge(spec, pod) {
            Verdict::FailIndex => true,
            verdict => verdict.counts() && failure_counts(pod).0 >= limit,
        });
        let failed = before.with(lost.filter_map(of));
        let active = indexes_of(&self.active);
        for pod in self.valid().filter(|pod| is_failed(spec, pod)) {
            let Some(index) = index_of(pod) else { continue };
            if self.succeeded_indexes.contains(index) || failed.contains(index) || active.contains(&index) {
                continue;
            }
            let rank = |pod: &Pod| (total_failures(pod), finished_at(pod));
            let later = self.awaiting_replacement.get(&index).is_none_or(|other| rank(other) <= rank(pod));
            if later {
                self.awaiting_replacement.insert(index, pod.clone());
            }
        }
        self.failed_indexes = Some(failed);
    }

    /// How the Job ends, if it does whatever its pods do from now on. The order decides where several hold.
    ///
    /// Upstream: pkg/controller/job/job_controller.go syncJob
    fn end(&mut self) -> Option<End> {
        let known = |kind: &str| {
            let condition = find(self.status.conditions.as_ref(), kind).filter(|c| c.status == "True")?;
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            Some(End {
                failed: kind == "FailureTarget",
                reason: text(&condition.reason),
                message: text(&condition.message),
            })
        };
        known("SuccessCriteriaMet")
            .or_else(|| known("FailureTarget"))
            .or_else(|| self.failed_by_policy())
            .or_else(|| self.failed_by_limits())
            .or_else(|| self.failed_by_indexes())
            .or_else(|| {
                let policy = self.spec.success_policy.as_ref();
                let message = success(policy, completions(self.spec), &self.succeeded_indexes)?;
                Some(End { failed: false, reason: "SuccessPolicy".to_owned(), message })
            })
    }

    fn failed_by_policy(&self) -> Option<End> {
        let failed = self.pods.iter().filter(|pod| is_failed(self.spec, pod));
        let mut verdicts = failed.map(|pod| judge(self.spec, pod));
        verdicts.find_map(|verdict| match verdict {
            Verdict::FailJob(message) => Some(failure("PodFailurePolicy", &message)),
            _ => None,
        })
    }

    fn failed_by_limits(&mut self) -> Option<End> {
        let limit = self.spec.backoff_limit.unwrap_or(if self.spec.backoff_limit_per_index.is_some() {
            i32::MAX
        } else {
            6
        });
        if self.failed > limit || restarted_too_often(self.job, self.pods.iter().map(|pod| &**pod)) {
            return Some(failure("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
        }
        let deadline = self.spec.active_deadline_seconds.filter(|_| self.spec.suspend != Some(true))?;
        let start = self.status.start_time.as_ref()?.0;
        let deadline = Duration::from_secs(u64::try_from(deadline).unwrap_or(0).min(u64::from(u32::MAX)));
        let passed = self.now.duration_since(start).try_into().unwrap_or(Duration::ZERO);
        match deadline.checked_sub(passed).filter(|left| !left.is_zero()) {
            None => Some(failure("DeadlineExceeded", "Job was active longer than specified deadline")),
            Some(left) => {
                self.look_again(left);
                None
            }
        }
    }

    fn failed_by_indexes(&self) -> Option<End> {
        let failed = self.failed_indexes.as_ref()?;
        if self.spec.max_failed_indexes.is_some_and(|max| failed.total() > max) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(failure("MaxFailedIndexesExceeded", message));
        }
        let all = failed.total() + self.succeeded_indexes.total() >= completions(self.spec);
        (all && !failed.is_empty()).then(|| failure("FailedIndexes", "Job has failed indexes"))
    }

    fn look_again(&mut self, after: Duration) {
        self.plan.again = Some(self.plan.again.map_or(after, |other| other.min(after)));
    }

    /// As many pods as are wanted.
    ///
    /// Upstream: pkg/controller/job/job_controller.go manageJob
    fn manage(&mut self) {
        let active = self.active.len();
        let suspended = self.spec.suspend == Some(true);
        let parallelism = self.spec.parallelism.unwrap_or(1).max(0);
        let wanted = match self.spec.completions {
            _ if suspended => 0,
            None if self.succeeded > 0 => active,
            None => parallelism as usize,
            Some(completions) => (completions - self.succeeded).clamp(0, parallelism) as usize,
        };
        let mut gone = surplus(self.job, &self.active, active.saturating_sub(wanted), self.now);
        if !gone.is_empty() {
            if !suspended {
                gone.truncate(MAX_BATCH);
            }
            self.plan.delete = gone;
            self.plan.uncounted_deletes = true;
            return;
        }
        let going = if replaces_ended_only(self.spec) { self.terminating() } else { 0 };
        let missing = wanted.saturating_sub(going + active).min(MAX_BATCH);
        if suspended || missing == 0 {
            return;
        }
        let wait = self.plan.record.remaining(self.now);
        if self.spec.backoff_limit_per_index.is_none() && !wait.is_zero() {
            self.look_again(wait);
            return;
        }
        self.plan.create = if is_indexed(self.job) {
            self.indexed_pods(missing)
        } else {
            (0..missing).filter_map(|_| make(self.job, None, None)).collect()
        };
    }

    fn indexed_pods(&mut self, missing: usize) -> Vec<Pod> {
        let mut taken = self.succeeded_indexes.with(indexes_of(&self.active));
        if replaces_ended_only(self.spec) {
            let going = self.pods.iter().filter(|pod| is_deleting(&***pod) && !is_terminal(pod));
            taken = taken.with(indexes_of(going));
        }
        if let Some(failed) = &self.failed_indexes {
            taken = taken.union(failed);
        }
        let mut pods = Vec::new();
        let mut soonest: Option<Duration> = None;
        for index in taken.gaps(completions(self.spec)).take(missing) {
            let replaced = self.awaiting_replacement.get(&index);
            let wait = replaced.map_or(Duration::ZERO, |pod| {
                remaining(total_failures(pod).saturating_add(1), finished_at(pod), self.now)
            });
            if wait.is_zero() {
                pods.extend(make(self.job, Some(index), replaced.map(|pod| &**pod)));
            } else {
                soonest = Some(soonest.map_or(wait, |other| other.min(wait)));
            }
        }
        if let Some(wait) = soonest {
            self.look_again(wait);
        }
        pods
    }

    fn terminating(&self) -> usize {
        self.pods.iter().filter(|pod| is_deleting(&***pod) && !is_terminal(pod)).count()
    }

    fn completion(&self, active: usize) -> Option<End> {
        let enough = match self.spec.completions {
            None => self.succeeded > 0,
            Some(completions) => self.succeeded >= completions,
        };
        (enough && active == 0).then(|| End {
            failed: false,
            reason: "CompletionsReached".to_owned(),
            message: "Reached expected number of succeeded pods".to_owned(),
        })
    }

    fn suspension(&mut self) {
        let suspended = self.spec.suspend == Some(true);
        let (status, reason, message, event) = if suspended {
            ("True", "JobSuspended", "Job suspended", "Suspended")
        } else {
            ("False", "JobResumed", "Job resumed", "Resumed")
        };
        if !self.set_condition("Suspended", status, reason, message) {
            return;
        }
        self.plan.events.push((EventType::Normal, event.to_owned(), message.to_owned()));
        // The deadline counts from when the Job last began to run.
        self.status.start_time = (!suspended).then_some(Time(self.now));
    }

    /// True when that changes something. What never was is not said to be false.
    ///
    /// Upstream: pkg/controller/job/job_controller.go ensureJobConditionStatus
    fn set_condition(&mut self, kind: &str, status: &str, reason: &str, message: &str) -> bool {
        let condition = JobCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            last_probe_time: Some(Time(self.now)),
            last_transition_time: Some(Time(self.now)),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
        };
        let conditions = self.status.conditions.get_or_insert_default();
        let says = |c: &JobCondition| (c.status.clone(), c.reason.clone(), c.message.clone());
        let set = match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(old) if says(old) == says(&condition) => false,
            Some(old) => {
                *old = condition;
                true
            }
            None if status == "False" => false,
            None => {
                conditions.push(condition);
                true
            }
        };
        self.status.conditions.take_if(|conditions| conditions.is_empty());
        set
    }

    fn count(&mut self, active: usize) {
        let deleted: BTreeSet<&str> = self.plan.delete.iter().map(|pod| pod.uid()).collect();
        let ready = self.active.iter().filter(|pod| is_ready(pod) && !deleted.contains(pod.uid())).count();
        let terminating = self.terminating() + deleted.len();
        self.status.active = Some(active as i32).filter(|active| *active != 0);
        self.status.ready = Some(ready as i32);
        self.status.terminating = Some(terminating as i32);
    }

    /// Puts pods that have ended into the status, and lets them go once they are there.
    ///
    /// Upstream: pkg/controller/job/job_controller.go trackJobStatusAndRemoveFinalizers
    fn track(&mut self, end: Option<&End>) {
        let (indexed, completions) = (is_indexed(self.job), completions(self.spec));
        let mut pods: Vec<_> = self.pods.iter().filter(|pod| is_tracked(pod)).collect();
        if indexed {
            pods.sort_by_key(|pod| index_of(pod));
        }
        let mut new_indexes = BTreeSet::new();
        let mut uncounted = self.uncounted.clone();
        for pod in pods {
            if new_indexes.len() + uncounted.0.len() + uncounted.1.len() >= MAX_UNCOUNTED {
                break;
            }
            let failed = is_failed(self.spec, pod);
            if !self.may_release(pod, failed, end.is_some()) {
                continue;
            }
            self.plan.release.push(pod.clone());
            let index = index_of(pod).filter(|index| *index < completions);
            let valid = !indexed || index.is_some();
            if phase(pod) == "Succeeded" && !uncounted.1.contains(pod.uid()) {
                match index.filter(|_| indexed) {
                    // An index is counted once, whatever number of pods it took.
                    Some(index) => {
                        new_indexes.insert(index);
                    }
                    None if !indexed => {
                        uncounted.0.insert(pod.uid().to_owned());
                    }
                    None => {}
                }
            } else if (failed || end.is_some_and(|end| end.failed)) && valid && judge(self.spec, pod).counts()
            {
                uncounted.1.insert(pod.uid().to_owned());
            }
        }
        if indexed {
            let done = self.succeeded_before.with(new_indexes);
            self.status.succeeded = Some(done.total()).filter(|total| *total != 0);
            self.status.completed_indexes = Some(done.to_string()).filter(|text| !text.is_empty());
            self.status.failed_indexes = self.failed_indexes.as_ref().map(ToString::to_string);
        }
        let list =
            |set: BTreeSet<String>| Some(set.into_iter().collect::<Vec<_>>()).filter(|l| !l.is_empty());
        let lists = self.status.uncounted_terminated_pods.get_or_insert_default();
        (lists.succeeded, lists.failed) = (list(uncounted.0), list(uncounted.1));
    }

    /// Upstream: pkg/controller/job/job_controller.go canRemoveFinalizer
    fn may_release(&self, pod: &Pod, failed: bool, ended: bool) -> bool {
        if is_deleting(self.job) || ended || phase(pod) == "Succeeded" {
            return true;
        }
        let kept = index_of(pod).and_then(|index| self.awaiting_replacement.get(&index));
        failed && kept.is_none_or(|kept| kept.uid() != pod.uid())
    }

    /// Marks how the Job ends; when no pod is left to count or to wait for, it has ended.
    ///
    /// Upstream: pkg/controller/job/job_controller.go enactJobFinished
    fn finish(&mut self, end: Option<End>) {
        let Some(end) = end else { return };
        let (target, last) =
            if end.failed { ("FailureTarget", "Failed") } else { ("SuccessCriteriaMet", "Complete") };
        let marked = is_true(&self.status, target);
        self.set_condition(target, "True", &end.reason, &end.message);
        let lists = self.status.uncounted_terminated_pods.as_ref();
        let uncounted = lists.is_some_and(|lists| lists.succeeded.is_some() || lists.failed.is_some());
        let busy = uncounted || !self.plan.release.is_empty() || self.status.terminating.unwrap_or(0) > 0;
        if !marked || busy {
            return;
        }
        self.set_condition(last, "True", &end.reason, &end.message);
        let mut tell = |kind, reason: &str, message: &str| {
            self.plan.events.push((kind, reason.to_owned(), message.to_owned()));
        };
        if end.failed {
            tell(EventType::Warning, &end.reason, &end.message);
            return;
        }
        if self.spec.completions.is_some_and(|wanted| self.status.succeeded.unwrap_or(0) > wanted) {
            let message = "Too many succeeded pods running after completion count reached";
            tell(EventType::Warning, "TooManySucceededPods", message);
        }
        tell(EventType::Normal, "Completed", "Job completed");
        self.status.completion_time = Some(Time(self.now));
    }
}

fn total_failures(pod: &Pod) -> u32 {
    let (counted, ignored) = failure_counts(pod);
    (counted as u32).saturating_add(ignored as u32)
}

/// Whether the status differs from what the Job has. Absent numbers are zeros.
fn changed(job: &Job, status: &JobStatus) -> bool {
    let Some(old) = &job.status else { return true };
    let plain = |status: &JobStatus| {
        let mut status = status.clone();
        for number in [&mut status.active, &mut status.succeeded, &mut status.failed] {
            number.get_or_insert_default();
        }
        status.conditions.get_or_insert_default();
        status
    };
    plain(old) != plain(status)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
