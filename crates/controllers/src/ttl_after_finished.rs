//! Finished Jobs go when their time to live is over.

use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::batch::v1::Job;
use client::{DeleteOptions, Propagation};
use controller_runtime::{Event, Informer, WorkQueue};
use jiff::Timestamp;

use crate::Error;
use crate::context::Context;
use crate::job::finished_condition;
use crate::objects::is_deleting;

const WORKERS: usize = 5;

/// How long a Job still lives; `None` while nothing limits that.
///
/// Upstream: pkg/controller/ttlafterfinished/ttlafterfinished_controller.go timeLeft
pub(crate) fn decide(job: &Job, now: Timestamp) -> Option<Duration> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let finished = finished_condition(job).filter(|_| !is_deleting(job))?;
    let since = finished.last_transition_time.as_ref()?.0;
    let passed = now.duration_since(since).try_into().unwrap_or(Duration::ZERO);
    Some(Duration::from_secs(u64::try_from(ttl).unwrap_or(0)).saturating_sub(passed))
}

struct Finished {
    context: Context,
    jobs: Informer<Job>,
    queue: WorkQueue<String>,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let jobs = context.informers.informer::<Job>();
    let controller = Arc::new(Finished { jobs, queue: WorkQueue::new(), context });
    let this = controller.clone();
    controller.jobs.subscribe(move |event| {
        if !matches!(event, Event::Deleted(_)) && finished_condition(event.object()).is_some() {
            this.queue.add(event.object().key());
        }
    });
    controller.context.work(&controller, &controller.queue, WORKERS, Finished::reconcile).await;
}

impl Finished {
    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(job) = self.jobs.get(&key) else { return Ok(()) };
        let now = self.context.clock().now();
        match decide(&job, now) {
            None => return Ok(()),
            Some(left) if !left.is_zero() => {
                self.queue.add_after(key.clone(), left);
                return Ok(());
            }
            Some(_) => {}
        }
        // The cache may be behind an extension of the time: what is deleted does not come back.
        let client = &self.context.client;
        let fresh = match client.get::<Job>(job.namespace(), job.name()).await {
            Err(error) if error.is_not_found() => return Ok(()),
            outcome => outcome?,
        };
        if decide(&fresh, now).is_none_or(|left| !left.is_zero()) {
            // The watch will bring what is new.
            return Ok(());
        }
        let options = DeleteOptions {
            propagation_policy: Some(Propagation::Foreground),
            ..DeleteOptions::uid(fresh.uid())
        };
        match client.delete::<Job>(fresh.namespace(), fresh.name(), &options).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => Ok(outcome?),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::objects::tests::at;

    #[test]
    fn the_time_that_is_left() {
        let finished = |kind: &str| json!([{"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        for (ttl, conditions, seconds, left) in [
            (json!(100), finished("Complete"), 40, Some(60)),
            (json!(100), finished("Failed"), 400, Some(0)),
            (json!(0), finished("Complete"), 0, Some(0)),
            (Value::Null, finished("Complete"), 40, None),
            (json!(100), finished("Suspended"), 40, None),
            (json!(100), json!([]), 40, None),
        ] {
            let job = Job::from_value(json!({
                "metadata": {}, "spec": {"ttlSecondsAfterFinished": ttl, "template": {}},
                "status": {"conditions": conditions},
            }))
            .unwrap();
            assert_eq!(decide(&job, at(seconds)), left.map(Duration::from_secs), "{ttl} {conditions}");
        }
    }
}
