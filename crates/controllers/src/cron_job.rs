//! CronJobs: a Job at every time of a schedule.

mod decision;
mod schedule;

use std::sync::Arc;

use api::Object;
use api::batch::v1::{CronJob, CronJobStatus, Job};
use client::{DeleteOptions, Propagation};
use controller_runtime::{Event, EventRecorder, Informer, WorkQueue};

use crate::Error;
use crate::context::Context;
use crate::objects::{controller_of, is_controlled_by, namespace_is_terminating};
use crate::ownership::{add_index, controlled};
use decision::{Plan, decide, with_started};

const COMPONENT: &str = "cronjob-controller";
const WORKERS: usize = 5;

struct CronJobs {
    context: Context,
    cron_jobs: Informer<CronJob>,
    jobs: Informer<Job>,
    queue: WorkQueue<String>,
    events: EventRecorder,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(CronJobs {
        cron_jobs: context.informers.informer::<CronJob>(),
        jobs: context.informers.informer::<Job>(),
        queue: WorkQueue::new(),
        events: context.events(COMPONENT),
        context,
    });
    add_index(&controller.jobs);
    let this = controller.clone();
    controller.cron_jobs.subscribe(move |event| this.queue.add(event.object().key()));
    let this = controller.clone();
    controller.jobs.subscribe(move |event| this.job_event(event));
    controller.context.work(&controller, &controller.queue, WORKERS, CronJobs::reconcile).await;
}

impl CronJobs {
    fn job_event(&self, event: &Event<Job>) {
        for job in event.old().into_iter().chain([event.object()]) {
            if let Some(owner) = controller_of(&job.metadata).filter(|owner| owner.kind == CronJob::KIND) {
                self.queue.add(format!("{}/{}", job.namespace(), owner.name));
            }
        }
    }

    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(cron_job) = self.cron_jobs.get(&key) else { return Ok(()) };
        let mut jobs = controlled(&self.jobs, cron_job.uid());
        jobs.extend(self.unseen(&cron_job, &jobs).await?);
        let plan = decide(&cron_job, &jobs, self.context.clock().now());
        let again = plan.again;
        self.execute(&cron_job, plan).await?;
        if let Some(delay) = again {
            self.queue.add_after(key.clone(), delay);
        }
        Ok(())
    }

    /// The active Jobs that the cache does not show yet: one that is only unseen still keeps others from starting.
    async fn unseen(&self, cron_job: &CronJob, seen: &[Arc<Job>]) -> Result<Vec<Arc<Job>>, client::Error> {
        let active = cron_job.status.iter().flat_map(|status| status.active.iter().flatten());
        let mut found = Vec::new();
        for reference in active {
            let uid = reference.uid.as_deref().unwrap_or_default();
            if seen.iter().any(|job| job.uid() == uid) {
                continue;
            }
            let name = reference.name.as_deref().unwrap_or_default();
            match self.context.client.get::<Job>(cron_job.namespace(), name).await {
                Ok(job) if job.uid() == uid => found.push(self.jobs.assume(job)),
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(found)
    }

    async fn execute(&self, cron_job: &CronJob, plan: Plan) -> Result<(), client::Error> {
        let mut status = plan.status;
        for (kind, reason, message) in plan.events {
            self.events.event(cron_job, kind, reason, message);
        }
        let mut failure = None;
        for job in &plan.replace {
            match self.delete(cron_job, job).await {
                Ok(()) => forget(&mut status, job),
                Err(error) => failure = Some(error),
            }
        }
        if let (Some((job, time)), None) = (plan.create, &failure) {
            match self.create(cron_job, &job).await {
                Ok(Some(made)) => {
                    let known = status.active.iter().flatten().any(|r| r.uid.as_deref() == Some(made.uid()));
                    if !known {
                        with_started(&mut status, &made, time);
                    }
                }
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
        }
        for job in &plan.forget {
            match self.delete(cron_job, job).await {
                Ok(()) => forget(&mut status, job),
                Err(error) => failure = Some(error),
            }
        }
        if cron_job.status.clone().unwrap_or_default() != status {
            let mut updated = cron_job.clone();
            updated.status = Some(status);
            match self.cron_jobs.update_status(&updated).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// The Job as it is then; `None` when the name is another's, or nothing can be made any more.
    async fn create(&self, cron_job: &CronJob, job: &Job) -> Result<Option<Arc<Job>>, client::Error> {
        match self.jobs.create(job).await {
            Ok(made) => {
                self.events.normal(cron_job, "SuccessfulCreate", format!("Created job {}", made.name()));
                Ok(Some(made))
            }
            Err(error) if namespace_is_terminating(&error) => Ok(None),
            Err(error) if error.is_already_exists() => {
                let existing: Job = self.context.client.get(job.namespace(), job.name()).await?;
                Ok(is_controlled_by(&existing, cron_job.uid()).then(|| self.jobs.assume(existing)))
            }
            Err(error) => {
                self.events.warning(cron_job, "FailedCreate", format!("Error creating job: {error}"));
                Err(error)
            }
        }
    }

    async fn delete(&self, cron_job: &CronJob, job: &Job) -> Result<(), client::Error> {
        let options = DeleteOptions {
            propagation_policy: Some(Propagation::Background),
            ..DeleteOptions::uid(job.uid())
        };
        match self.context.client.delete::<Job>(job.namespace(), job.name(), &options).await {
            Ok(()) => {
                self.events.normal(cron_job, "SuccessfulDelete", format!("Deleted job {}", job.name()));
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => {
                self.events.warning(cron_job, "FailedDelete", format!("Deleted job: {error}"));
                Err(error)
            }
        }
    }
}

fn forget(status: &mut CronJobStatus, job: &Job) {
    if let Some(active) = &mut status.active {
        active.retain(|reference| reference.uid.as_deref() != Some(job.uid()));
    }
    status.active.take_if(|active| active.is_empty());
}
