use serde_json::{Value, json};

use super::*;
use crate::objects::tests::{arcs, at};

fn cron_job(spec: Value, status: Value) -> CronJob {
    let mut full = json!({"schedule": "*/5 * * * *", "jobTemplate": {"metadata": {"labels": {"a": "b"}}}});
    for (key, value) in spec.as_object().unwrap() {
        full[key] = value.clone();
    }
    CronJob::from_value(json!({
        "metadata": {"namespace": "ns", "name": "c", "uid": "c", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": full, "status": status,
    }))
    .unwrap()
}

/// A Job that runs, or has ended with the condition at the minute.
fn job(name: &str, ended: Option<(&str, i64)>) -> Job {
    let status = match ended {
        None => json!({}),
        Some((kind, minute)) => json!({
            "conditions": [{"type": kind, "status": "True"}], "startTime": at(minute * 60 - 30).to_string(),
            "completionTime": (kind == "Complete").then(|| at(minute * 60).to_string()),
        }),
    };
    Job::from_value(json!({"metadata": {"namespace": "ns", "name": name, "uid": name}, "status": status}))
        .unwrap()
}

fn active(names: &[&str]) -> Value {
    json!({"active": names.iter().map(|name| json!({"name": name, "uid": name})).collect::<Vec<_>>()})
}

/// Checks which Job is made at a second, if one is, and what is told.
fn check(spec: Value, status: Value, jobs: &[Job], second: i64, made: Option<i64>, told: &[&str]) -> Plan {
    let plan = decide(&cron_job(spec.clone(), status.clone()), &arcs(jobs.to_vec()), at(second));
    let time = plan.create.as_ref().map(|(_, time)| time.duration_since(at(0)).as_secs());
    let reasons: Vec<_> = plan.events.iter().map(|(_, reason, _)| *reason).collect();
    assert_eq!((time, reasons.as_slice()), (made, told), "{spec} {status} at {second}");
    plan
}

#[test]
fn a_job_for_every_time() {
    let none = json!({});
    let plan = check(none.clone(), none.clone(), &[], 100, None, &[]);
    assert_eq!(plan.again, Some(Duration::from_millis(200_100)));
    let plan = check(none.clone(), none.clone(), &[], 301, Some(300), &[]);
    let (job, _) = plan.create.unwrap();
    assert_eq!(job.name(), format!("c-{}", at(300).as_second() / 60));
    assert_eq!(job.metadata.annotations.unwrap()[SCHEDULED], "2026-01-01T00:05:00Z");
    let done = json!({"lastScheduleTime": "2026-01-01T00:05:00Z"});
    check(none.clone(), done.clone(), &[], 302, None, &[]);
    check(none.clone(), done.clone(), &[], 601, Some(600), &[]);
    check(none.clone(), done, &[], 1900, Some(1800), &[]);
    check(none.clone(), none.clone(), &[], 300 * 200 + 7, Some(300 * 200), &["TooManyMissedTimes"]);
    check(json!({"suspend": true}), none.clone(), &[], 301, None, &[]);
    let zone = json!({"schedule": "5 * * * *", "timeZone": "Europe/Berlin"});
    let plan = check(zone, none, &[], 301, Some(300), &[]);
    assert_eq!(plan.create.unwrap().0.metadata.annotations.unwrap()[SCHEDULED], "2026-01-01T01:05:00+01:00");
}

#[test]
fn what_cannot_be_scheduled_is_told() {
    let none = json!({});
    check(json!({"schedule": "nonsense"}), none.clone(), &[], 301, None, &["UnparseableSchedule"]);
    check(json!({"schedule": "0 0 30 2 *"}), none.clone(), &[], 301, None, &["InvalidSchedule"]);
    check(json!({"timeZone": "No/Where"}), none, &[], 301, None, &["UnknownTimeZone"]);
}

#[test]
fn deadlines_and_concurrency() {
    let running = [job("x", None)];
    let late = json!({"startingDeadlineSeconds": 60});
    check(late.clone(), json!({}), &[], 350, Some(300), &[]);
    check(late, json!({}), &[], 400, None, &[]);
    check(json!({}), active(&["x"]), &running, 301, Some(300), &[]);
    let forbid = json!({"concurrencyPolicy": "Forbid"});
    check(forbid.clone(), active(&["x"]), &running, 301, None, &["JobAlreadyActive"]);
    check(forbid, json!({}), &[], 301, Some(300), &[]);
    let plan = check(json!({"concurrencyPolicy": "Replace"}), active(&["x"]), &running, 301, Some(300), &[]);
    assert_eq!(plan.replace.len(), 1);
}

#[test]
fn jobs_are_accounted_for_and_forgotten() {
    let done = job("x", Some(("Complete", 2)));
    let plan = check(json!({}), active(&["x", "y"]), &[done], 200, None, &["SawCompletedJob", "MissingJob"]);
    assert_eq!(plan.status.active, None);
    assert_eq!(plan.status.last_successful_time, Some(Time(at(120))));
    check(json!({}), json!({}), &[job("z", None)], 200, None, &["UnexpectedJob"]);
    let limits = json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0});
    let jobs =
        [job("a", Some(("Complete", 2))), job("b", Some(("Complete", 1))), job("c", Some(("Failed", 1)))];
    let plan = check(limits, json!({}), &jobs, 200, None, &[]);
    assert_eq!(plan.forget.iter().map(|job| job.name()).collect::<Vec<_>>(), ["b", "c"]);
}
