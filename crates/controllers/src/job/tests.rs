use serde_json::{Value, json};

use super::super::indexes::INDEX;
use super::super::pods::FINALIZER;
use super::super::policy::FAILURE_COUNT;
use super::*;
use crate::objects::tests::{arcs, at, pod};

fn job(spec: Value) -> Job {
    let mut full = json!({"backoffLimit": 6, "parallelism": 2, "completions": 3, "template": {
        "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}], "restartPolicy": "Never"},
    }});
    for (key, value) in spec.as_object().unwrap() {
        full[key] = value.clone();
    }
    Job::from_value(json!({"metadata": {"namespace": "ns", "name": "j", "uid": "j"}, "spec": full})).unwrap()
}

/// `name` or `name:index`, after one letter: R runs, S has succeeded, F has failed, D is going while it runs;
/// in lower case, without the finalizer.
fn pods(text: &str) -> Vec<Arc<Pod>> {
    arcs(text.split_whitespace().map(|text| {
        let (letter, rest) = text.split_at(1);
        let (name, index) = rest.split_once(':').unwrap_or((rest, ""));
        let phase = match letter.to_uppercase().as_str() {
            "S" => "Succeeded",
            "F" => "Failed",
            _ => "Running",
        };
        let mut pod = pod(name, phase, phase == "Running");
        if letter.eq_ignore_ascii_case("d") {
            pod.metadata.deletion_timestamp = pod.metadata.creation_timestamp.clone();
        }
        if letter.chars().all(char::is_uppercase) {
            pod.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
        }
        if !index.is_empty() {
            pod.metadata.annotations = Some([(INDEX.to_owned(), index.to_owned())].into());
        }
        pod
    }))
}

fn names(pods: &[Arc<Pod>]) -> String {
    pods.iter().map(|pod| pod.name()).collect::<Vec<_>>().join(" ")
}

/// Checks how many pods are made, and which go and which are let go, after all back-off.
fn check(spec: Value, present: &str, create: usize, delete: &str, release: &str) -> Plan {
    let plan = decide(&job(spec.clone()), &pods(present), Record::default(), at(10_000));
    let is = (plan.create.len(), names(&plan.delete), names(&plan.release));
    assert_eq!(is, (create, delete.to_owned(), release.to_owned()), "{spec} {present}");
    plan
}

/// Decides again and again as the executor would, and returns the status in the end.
fn run(spec: Value, present: &str) -> (JobStatus, Vec<String>) {
    let mut job = job(spec);
    let mut pods = pods(present);
    let mut events = Vec::new();
    for _ in 0..10 {
        let plan = decide(&job, &pods, Record::default(), at(10_000));
        let gone: BTreeSet<_> = plan.delete.iter().map(|pod| pod.uid().to_owned()).collect();
        for pod in &mut pods {
            if gone.contains(pod.uid()) {
                let pod = Arc::make_mut(pod);
                pod.metadata.deletion_timestamp = pod.metadata.creation_timestamp.clone();
            }
            if plan.release.iter().any(|released| released.uid() == pod.uid()) {
                Arc::make_mut(pod).metadata.finalizers = None;
            }
        }
        pods.retain(|pod| is_tracked(pod) || !is_deleting(&**pod));
        job.status = plan.status.or(job.status);
        events.extend(plan.events.into_iter().map(|(_, reason, _)| reason));
        if is_finished(&job) {
            break;
        }
    }
    (job.status.unwrap(), events)
}

fn last_condition(status: &JobStatus) -> (&str, &str) {
    let last = status.conditions.as_ref().and_then(|all| all.last());
    last.map_or(("", ""), |c| (&c.type_, c.reason.as_deref().unwrap_or_default()))
}

#[test]
fn as_many_pods_as_are_wanted() {
    check(json!({}), "", 2, "", "");
    check(json!({}), "Ra", 1, "", "");
    check(json!({}), "Ra Rb", 0, "", "");
    check(json!({}), "Sa Sb", 1, "", "a b");
    check(json!({"parallelism": 1}), "Ra Rb", 0, "a", "");
    check(json!({"completions": null}), "Sa Rb", 0, "", "a");
    check(json!({"completions": null, "parallelism": 3}), "", 3, "", "");
    check(json!({"suspend": true}), "Ra", 0, "a", "");
    check(json!({"suspend": true}), "", 0, "", "");
    check(json!({"parallelism": 0}), "", 0, "", "");
}

#[test]
fn what_ends_is_replaced_as_the_policy_says() {
    check(json!({}), "Fa Rb", 1, "", "a");
    check(json!({}), "Da Rb", 1, "", "a");
    check(json!({"podReplacementPolicy": "Failed"}), "Da Rb", 0, "", "");
    check(json!({"podReplacementPolicy": "Failed"}), "Fa Rb", 1, "", "a");
}

#[test]
fn failures_delay_what_replaces_them() {
    let pods = pods("Fa");
    let plan = decide(&job(json!({})), &pods, Record::default(), at(3));
    assert_eq!((plan.create.len(), plan.again), (0, Some(Duration::from_secs(7))));
    assert_eq!(plan.status.unwrap().uncounted_terminated_pods.unwrap().failed.unwrap(), ["uid-a"]);
    assert_eq!(names(&plan.release), "a");
}

#[test]
fn pods_are_counted_once() {
    let mut job = job(json!({"parallelism": 0}));
    let first = decide(&job, &pods("Sa Fb"), Record::default(), at(9_999)).status.unwrap();
    job.status = Some(first.clone());
    let same = decide(&job, &pods("Sa Fb"), Record::default(), at(9_999));
    assert!(same.status.is_none() && names(&same.release) == "a b");
    let counted = decide(&job, &pods("sa Fb"), Record::default(), at(9_999)).status.unwrap();
    assert_eq!((counted.succeeded, counted.failed), (Some(1), None));
    job.status = Some(counted);
    let all = decide(&job, &[], Record::default(), at(9_999)).status.unwrap();
    assert_eq!((all.succeeded, all.failed), (Some(1), Some(1)));
    assert_eq!(all.uncounted_terminated_pods, Some(Default::default()));
}

#[test]
fn a_job_ends_when_all_is_counted() {
    let (status, events) = run(json!({}), "Sa Sb Sc");
    assert_eq!(last_condition(&status), ("Complete", "CompletionsReached"));
    assert_eq!((status.succeeded, status.active, status.ready), (Some(3), None, Some(0)));
    assert!(status.completion_time.is_some());
    assert_eq!(events, ["Completed"]);
    let (status, events) = run(json!({"backoffLimit": 0}), "Fa Rb");
    assert_eq!(last_condition(&status), ("Failed", "BackoffLimitExceeded"));
    assert_eq!((status.failed, status.active), (Some(2), None));
    assert_eq!(events, ["BackoffLimitExceeded"]);
}

#[test]
fn deadlines() {
    let mut job = job(json!({"activeDeadlineSeconds": 100}));
    job.status = Some(JobStatus { start_time: Some(Time(at(0))), ..Default::default() });
    let plan = decide(&job, &pods("Ra Rb"), Record::default(), at(40));
    assert_eq!((plan.again, plan.delete.len()), (Some(Duration::from_secs(60)), 0));
    let plan = decide(&job, &pods("Ra Rb"), Record::default(), at(100));
    assert_eq!(last_condition(&plan.status.unwrap()), ("FailureTarget", "DeadlineExceeded"));
    assert_eq!(names(&plan.delete), "a b");
}

#[test]
fn a_suspended_job_says_so_and_starts_anew() {
    let mut job = job(json!({"suspend": true}));
    let status = decide(&job, &[], Record::default(), at(5)).status.unwrap();
    assert_eq!((last_condition(&status), status.start_time.clone()), (("Suspended", "JobSuspended"), None));
    job.spec.as_mut().unwrap().suspend = Some(false);
    job.status = Some(status);
    let plan = decide(&job, &[], Record::default(), at(9));
    let status = plan.status.unwrap();
    assert_eq!(last_condition(&status), ("Suspended", "JobResumed"));
    assert_eq!(status.start_time, Some(Time(at(9))));
    assert_eq!(plan.events[0].1, "Resumed");
}

#[test]
fn indexes_are_filled_from_the_first_gap() {
    let indexed = |more: Value| {
        let mut spec = json!({"completionMode": "Indexed", "completions": 5, "parallelism": 3});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        spec
    };
    let made = |plan: &Plan| {
        let prefixes = plan.create.iter().map(|pod| pod.metadata.generate_name.clone().unwrap());
        prefixes.collect::<Vec<_>>().join(" ")
    };
    let plan = check(indexed(json!({})), "Ra:1", 2, "", "");
    assert_eq!(made(&plan), "j-0- j-2-");
    let spec = plan.create[0].spec.as_ref().unwrap();
    assert_eq!(spec.hostname.as_deref(), Some("j-0"));
    assert_eq!(spec.containers[0].env.as_ref().unwrap()[0].name, "JOB_COMPLETION_INDEX");
    let plan = check(indexed(json!({})), "Sa:0 Rb:1", 2, "", "a");
    assert_eq!(made(&plan), "j-2- j-3-");
    assert_eq!(plan.status.unwrap().completed_indexes.as_deref(), Some("0"));
    check(indexed(json!({})), "Ra:1 Rb:1 Rc:9", 0, "c a", "");
    let plan = check(indexed(json!({"backoffLimitPerIndex": 1})), "Fa:0 Rb:1", 2, "", "");
    assert_eq!(made(&plan), "j-0- j-2-");
    assert_eq!(plan.create[0].metadata.annotations.as_ref().unwrap()[FAILURE_COUNT], "1");
    let plan = check(indexed(json!({"backoffLimitPerIndex": 0})), "Fa:0 Rb:1", 2, "", "a");
    assert_eq!(made(&plan), "j-2- j-3-");
    assert_eq!(plan.status.unwrap().failed_indexes.as_deref(), Some("0"));
}

#[test]
fn indexed_jobs_end_by_their_indexes() {
    let spec = |more: Value| {
        let mut spec = json!({"completionMode": "Indexed", "completions": 2, "backoffLimitPerIndex": 0});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        spec
    };
    let (status, _) = run(spec(json!({})), "Fa:0 Sb:1");
    assert_eq!(last_condition(&status), ("Failed", "FailedIndexes"));
    assert_eq!(status.completed_indexes.as_deref(), Some("1"));
    let (status, _) = run(spec(json!({"maxFailedIndexes": 0})), "Fa:0 Rb:1");
    assert_eq!(last_condition(&status), ("Failed", "MaxFailedIndexesExceeded"));
    let policy = json!({"successPolicy": {"rules": [{"succeededIndexes": "1"}]}});
    let (status, _) = run(spec(policy), "Ra:0 Sb:1");
    assert_eq!(last_condition(&status), ("Complete", "SuccessPolicy"));
    assert_eq!(status.succeeded, Some(1));
    let (status, events) = run(spec(json!({})), "Sa:0 Sb:1");
    assert_eq!((last_condition(&status), status.succeeded), (("Complete", "CompletionsReached"), Some(2)));
    assert_eq!(events, ["Completed"]);
}
