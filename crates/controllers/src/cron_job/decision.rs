//! What is to be done for a CronJob: pure.

use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::batch::v1::{CronJob, CronJobStatus, Job};
use api::meta::{ObjectMeta, Time};
use controller_runtime::EventType;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::schedule::Schedule;
use crate::job::{finished_condition, is_finished};
use crate::objects::{controller_reference, is_deleting};

/// A look that comes a little late finds the time passed.
///
/// Upstream: pkg/controller/cronjob/cronjob_controllerv2.go nextScheduleDelta
const LATE: Duration = Duration::from_millis(100);
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Times that have passed unserved and are told of.
const MANY_MISSED: i64 = 100;

#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Jobs that go before the new one comes.
    pub replace: Vec<Arc<Job>>,
    /// The Job to make, with the time it is made for.
    pub create: Option<(Box<Job>, Timestamp)>,
    /// Finished Jobs that nobody wants to remember.
    pub forget: Vec<Arc<Job>>,
    pub status: CronJobStatus,
    pub events: Vec<(EventType, &'static str, String)>,
    /// When the next Job is due.
    pub again: Option<Duration>,
}

impl Plan {
    fn normal(&mut self, reason: &'static str, message: String) {
        self.events.push((EventType::Normal, reason, message));
    }

    fn warning(&mut self, reason: &'static str, message: String) {
        self.events.push((EventType::Warning, reason, message));
    }
}

/// Decides from the Jobs that the CronJob owns.
///
/// Upstream: pkg/controller/cronjob/cronjob_controllerv2.go syncCronJob
pub(crate) fn decide(cron_job: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let mut plan = Plan { status: cron_job.status.clone().unwrap_or_default(), ..Default::default() };
    account(jobs, &mut plan);
    plan.forget = outlived(cron_job, jobs);
    if is_deleting(cron_job) {
        return plan;
    }
    let spec = &cron_job.spec;
    let zone = match &spec.time_zone {
        None => TimeZone::UTC,
        Some(name) => match TimeZone::get(name) {
            Ok(zone) => zone,
            Err(_) => {
                plan.warning(
                    "UnknownTimeZone",
                    format!("invalid timeZone: {name:?}: unknown time zone {name}"),
                );
                return plan;
            }
        },
    };
    if spec.suspend == Some(true) {
        return plan;
    }
    if spec.schedule.contains("TZ") {
        let message = format!(
            "CRON_TZ or TZ used in schedule {:?} is not officially supported, see \
             https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
            spec.schedule
        );
        plan.warning("UnsupportedSchedule", message);
    }
    match Schedule::parse(&spec.schedule, zone.clone()) {
        Ok(schedule) => start(cron_job, jobs, &schedule, &zone, now, &mut plan),
        Err(error) => {
            let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
            plan.warning("UnparseableSchedule", message);
        }
    }
    plan
}

/// Brings the list of active Jobs up to date, and the time of the last success.
fn account(jobs: &[Arc<Job>], plan: &mut Plan) {
    let mut active = plan.status.active.take().unwrap_or_default();
    for job in jobs {
        let listed = active.iter().any(|reference| reference.uid.as_deref() == Some(job.uid()));
        let Some(condition) = finished_condition(job) else {
            if !listed {
                let message =
                    format!("Saw a job that the controller did not create or forgot: {}", job.name());
                plan.warning("UnexpectedJob", message);
            }
            continue;
        };
        if listed {
            active.retain(|reference| reference.uid.as_deref() != Some(job.uid()));
            let message = format!("Saw completed job: {}, condition: {}", job.name(), condition.type_);
            plan.normal("SawCompletedJob", message);
        }
        let completed = job.status.as_ref().and_then(|status| status.completion_time.as_ref());
        if let Some(completed) = completed.filter(|_| condition.type_ == "Complete") {
            let last = plan.status.last_successful_time.get_or_insert_with(|| completed.clone());
            last.0 = last.0.max(completed.0);
        }
    }
    let (present, missing): (Vec<_>, Vec<_>) = active
        .into_iter()
        .partition(|reference| jobs.iter().any(|job| reference.uid.as_deref() == Some(job.uid())));
    for reference in missing {
        let name = reference.name.unwrap_or_default();
        plan.normal("MissingJob", format!("Active job went missing: {name}"));
    }
    plan.status.active = Some(present).filter(|active| !active.is_empty());
}

/// Upstream: pkg/controller/cronjob/cronjob_controllerv2.go cleanupFinishedJobs
fn outlived(cron_job: &CronJob, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let spec = &cron_job.spec;
    let mut outlived = Vec::new();
    for (kind, limit) in
        [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)]
    {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
        let of_kind = |job: &&Arc<Job>| finished_condition(job).is_some_and(|c| c.type_ == kind);
        let mut ended: Vec<_> = jobs.iter().filter(of_kind).filter(|job| !is_deleting(&***job)).collect();
        ended.sort_by_key(|job| {
            let started = job.status.as_ref().and_then(|status| status.start_time.as_ref());
            (started.map_or(Timestamp::MAX, |time| time.0), job.name())
        });
        ended.truncate(ended.len().saturating_sub(limit));
        outlived.extend(ended.into_iter().cloned());
    }
    outlived
}

/// The last time that has passed since the last Job, and whether many have.
struct Due {
    /// From when times were counted.
    since: Timestamp,
    last: Option<Timestamp>,
    missed: i64,
}

/// Upstream: pkg/controller/cronjob/utils.go mostRecentScheduleTime
fn due(
    cron_job: &CronJob,
    schedule: &Schedule,
    now: Timestamp,
    within_deadline: bool,
) -> Result<Due, String> {
    let created = cron_job.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let last = cron_job.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
    let mut since = last.map_or(created, |time| time.0);
    let deadline = cron_job.spec.starting_deadline_seconds;
    if let Some(deadline) = deadline.filter(|_| within_deadline) {
        let earliest = now.checked_sub(SignedDuration::from_secs(deadline)).unwrap_or(Timestamp::MIN);
        since = since.max(earliest);
    }
    let never = || "time difference between two schedules is less than 1 second".to_owned();
    let first = schedule.next(since).ok_or_else(never)?;
    if now < first {
        return Ok(Due { since, last: None, missed: 0 });
    }
    let second = schedule.next(first).ok_or_else(never)?;
    if now < second {
        return Ok(Due { since, last: Some(first), missed: 0 });
    }
    let between = second.duration_since(first).as_secs();
    if between < 1 {
        return Err(never());
    }
    let missed = now.duration_since(first).as_secs() / between + 1;
    // The times between are skipped over: after a long absence there are too many to walk through.
    let skipped = SignedDuration::from_secs((missed - 2).saturating_mul(between));
    let mut last = None;
    let mut at = first.checked_add(skipped).unwrap_or(first);
    while let Some(next) = schedule.next(at).filter(|next| *next <= now) {
        last = Some(next);
        at = next;
    }
    Ok(Due { since, last, missed })
}

/// Upstream: pkg/controller/cronjob/utils.go nextScheduleTimeDuration
fn until_next(cron_job: &CronJob, schedule: &Schedule, now: Timestamp) -> Option<Duration> {
    let after = match due(cron_job, schedule, now, false) {
        Ok(Due { last: Some(last), .. }) => last,
        Ok(Due { missed: 0, since, .. }) => since,
        _ => now,
    };
    let wait = schedule.next(after)?.duration_since(now).try_into().unwrap_or(Duration::ZERO);
    Some(wait + LATE)
}

fn start(
    cron_job: &CronJob,
    jobs: &[Arc<Job>],
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
    plan: &mut Plan,
) {
    let spec = &cron_job.spec;
    let due = match due(cron_job, schedule, now, true) {
        Ok(due) => due,
        Err(error) => {
            plan.warning("InvalidSchedule", format!("invalid schedule: {} : {error}", spec.schedule));
            return;
        }
    };
    plan.again = until_next(cron_job, schedule, now);
    let Some(time) = due.last else { return };
    if due.missed > MANY_MISSED {
        let message =
            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.warning("TooManyMissedTimes", message.to_owned());
    }
    let deadline = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
    if deadline.is_some_and(|deadline| now.duration_since(time) > deadline) {
        let time = time.to_zoned(TimeZone::UTC).strftime("%a, %d %b %Y %H:%M:%S %z");
        plan.warning("MissSchedule", format!("Missed scheduled time to start a job: {time}"));
        return;
    }
    let name = job_name(cron_job, time);
    let active = plan.status.active.as_deref().unwrap_or_default();
    let last = plan.status.last_schedule_time.as_ref().map(|last| last.0);
    if last == Some(time) || active.iter().any(|job| job.name.as_ref() == Some(&name)) {
        return;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message =
                "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.normal("JobAlreadyActive", message.to_owned());
            return;
        }
        Some("Replace") => {
            let listed = |job: &&Arc<Job>| active.iter().any(|r| r.uid.as_deref() == Some(job.uid()));
            plan.replace = jobs.iter().filter(listed).filter(|job| !is_finished(job)).cloned().collect();
        }
        _ => {}
    }
    plan.create = Some((Box::new(make(cron_job, name, time, zone)), time));
}

/// Upstream: pkg/controller/cronjob/cronjob_controllerv2.go getJobName
fn job_name(cron_job: &CronJob, time: Timestamp) -> String {
    format!("{}-{}", cron_job.name(), time.as_second() / 60)
}

fn make(cron_job: &CronJob, name: String, time: Timestamp, zone: &TimeZone) -> Job {
    let template = cron_job.spec.job_template.clone();
    let metadata = template.metadata.unwrap_or_default();
    let mut annotations = metadata.annotations.unwrap_or_default();
    let local = time.to_zoned(zone.clone());
    let offset = if local.offset().is_zero() { "Z".to_owned() } else { local.strftime("%:z").to_string() };
    annotations.insert(SCHEDULED.to_owned(), format!("{}{offset}", local.strftime("%Y-%m-%dT%H:%M:%S")));
    Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: cron_job.metadata.namespace.clone(),
            labels: metadata.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron_job)]),
            ..Default::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// The status when the Job has been made, or was there already.
pub(crate) fn with_started(status: &mut CronJobStatus, job: &Job, time: Timestamp) {
    status.active.get_or_insert_default().push(controller_runtime::reference(job));
    status.last_schedule_time = Some(Time(time));
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
